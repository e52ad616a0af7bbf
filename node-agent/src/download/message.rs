//! How large the messages of a download are: smaller after each cut, larger again while all goes well.
//!
//! What a cut loses is at most one message, so that a bad line wants small ones and a good line large ones.
//! Pure: it knows neither clock nor connection.

use std::time::Duration;

/// The largest message, and the first that is tried.
pub(super) const MAX_MESSAGE: u32 = 1024 * 1024;
/// After cuts, messages get smaller down to this.
pub(super) const MIN_MESSAGE: u32 = 16 * 1024;
/// So many messages are asked for at once, as long as a larger size is to be tried after them.
const RUN: u32 = 16;
/// A message that takes longer is too large for its line, cut or not: larger ones are not tried.
const LONGEST: Duration = Duration::from_secs(2);

/// The size of messages that is asked for. A power of two, within the bounds above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MessageSize {
    bytes: u32,
    ceiling: u32,
}

impl MessageSize {
    /// Begins with the largest that a rate in bytes per second can bear: one that takes half a second.
    pub(super) fn new(rate: Option<u64>) -> Self {
        let mut ceiling = MAX_MESSAGE;
        while ceiling > MIN_MESSAGE && rate.is_some_and(|rate| u64::from(ceiling) > rate / 2) {
            ceiling /= 2;
        }
        Self { bytes: ceiling, ceiling }
    }

    /// In bytes.
    pub(super) fn bytes(self) -> u32 {
        self.bytes
    }

    /// How many bytes are asked for at once; `None` is all there are.
    pub(super) fn run(self) -> Option<u64> {
        (self.bytes < self.ceiling).then(|| u64::from(self.bytes) * u64::from(RUN))
    }

    /// After a cut.
    pub(super) fn cut(self) -> Self {
        Self { bytes: (self.bytes / 2).max(MIN_MESSAGE), ..self }
    }

    /// After a whole run, which took so long.
    pub(super) fn came(self, took: Duration) -> Self {
        if took / RUN * 2 > LONGEST {
            return self;
        }
        Self { bytes: (self.bytes * 2).min(self.ceiling), ..self }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What happens to a download next.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Cut,
        Came(Duration),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let came = (0_u64..60_000).prop_map(|millis| Event::Came(Duration::from_millis(millis)));
        proptest::collection::vec(prop_oneof![Just(Event::Cut), came], 0..40)
    }

    /// Walks a download of `size` bytes over a line that is cut after each of `cuts` bytes in turn; a message
    /// costs 64 bytes more than it carries. Returns the bytes that were fetched twice for each cut.
    fn walk(size: u64, cuts: &[u64]) -> Vec<(u64, u32)> {
        let (mut message, mut offset, mut lost) = (MessageSize::new(None), 0, Vec::new());
        'connections: for cut in cuts.iter().cycle() {
            let mut line = *cut;
            loop {
                let end = message.run().map_or(size, |run| (offset + run).min(size));
                while offset < end {
                    let next = u64::from(message.bytes()).min(end - offset);
                    if next + 64 > line {
                        lost.push((line, message.bytes()));
                        message = message.cut();
                        continue 'connections;
                    }
                    line -= next + 64;
                    offset += next;
                }
                if offset == size {
                    return lost;
                }
                message = message.came(Duration::ZERO);
            }
        }
        unreachable!("`cuts` is not empty")
    }

    proptest! {
        #[test]
        fn sizes_keep_their_bounds(events in events(), rate in proptest::option::of(0_u64..10_000_000)) {
            let mut message = MessageSize::new(rate);
            for event in events {
                let before = message;
                message = match event {
                    Event::Cut => message.cut(),
                    Event::Came(took) => message.came(took),
                };
                prop_assert!((MIN_MESSAGE..=MAX_MESSAGE).contains(&message.bytes()));
                prop_assert!(message.bytes().is_power_of_two());
                match event {
                    Event::Cut => prop_assert_eq!(message.bytes(), (before.bytes() / 2).max(MIN_MESSAGE)),
                    Event::Came(_) => prop_assert!(message.bytes() >= before.bytes()),
                }
            }
        }

        #[test]
        fn a_good_line_leads_back_to_the_largest(events in events()) {
            let message = events.into_iter().fold(MessageSize::new(None), |message, event| match event {
                Event::Cut => message.cut(),
                Event::Came(took) => message.came(took),
            });
            let healed = (0..6).fold(message, |message, _| message.came(Duration::from_millis(10)));
            prop_assert_eq!(healed, MessageSize::new(None));
            prop_assert_eq!(healed.run(), None);
        }

        /// Whatever the line: it ends, and no cut costs more than one message.
        #[test]
        fn a_cut_costs_at_most_one_message(
            size in 1_u64..20_000_000,
            cuts in proptest::collection::vec(17_000_u64..3_000_000, 1..20),
        ) {
            for (lost, message) in walk(size, &cuts) {
                prop_assert!(lost < u64::from(message) + 64);
            }
        }

        #[test]
        fn a_cut_after_every_64_kib_costs_at_most_those(size in 1_u64..5_000_000) {
            let lost = walk(size, &[64 * 1024]);
            prop_assert!(lost.iter().all(|(lost, _)| *lost <= 64 * 1024));
            // Six cuts find the size; then each connection carries three messages of 16 KiB.
            prop_assert!(lost.len() as u64 <= 6 + size / (3 * 16 * 1024));
        }
    }

    #[test]
    fn slow_lines_and_rates_keep_messages_small() {
        let small = (0..6).fold(MessageSize::new(None), |message, _| message.cut());
        assert_eq!(small.bytes(), MIN_MESSAGE);
        assert_eq!(small.came(Duration::from_secs(17)), small, "a second each; the next would take two");
        assert_eq!(small.came(Duration::from_secs(15)).bytes(), 2 * MIN_MESSAGE);
        let check = |rate, bytes| assert_eq!(MessageSize::new(rate).bytes(), bytes, "{rate:?}");
        check(None, MAX_MESSAGE);
        check(Some(10_000_000), MAX_MESSAGE);
        check(Some(1_000_000), 256 * 1024);
        check(Some(1), MIN_MESSAGE);
    }
}
