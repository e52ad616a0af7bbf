//! Words, numbers and times as people read them.

use std::borrow::Cow;

use upfleet_api::v1;

/// Whether colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint {
    colored: bool,
}

impl Paint {
    /// With colours.
    pub const COLORED: Self = Self { colored: true };
    /// Without.
    pub const PLAIN: Self = Self { colored: false };

    fn wrap(self, code: &str, text: impl AsRef<str>) -> String {
        let text = text.as_ref();
        if self.colored && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// It went well.
    #[must_use]
    pub fn good(self, text: impl AsRef<str>) -> String {
        self.wrap("32", text)
    }

    /// It went wrong.
    #[must_use]
    pub fn bad(self, text: impl AsRef<str>) -> String {
        self.wrap("31", text)
    }

    /// It deserves a second look.
    #[must_use]
    pub fn warn(self, text: impl AsRef<str>) -> String {
        self.wrap("33", text)
    }

    /// It is under way.
    #[must_use]
    pub fn busy(self, text: impl AsRef<str>) -> String {
        self.wrap("36", text)
    }

    /// It matters less.
    #[must_use]
    pub fn dim(self, text: impl AsRef<str>) -> String {
        self.wrap("2", text)
    }

    /// It matters most.
    #[must_use]
    pub fn bold(self, text: impl AsRef<str>) -> String {
        self.wrap("1", text)
    }
}

/// Text from a node as a terminal may see it: control characters are spelt out, so that nothing a program
/// writes can move the cursor, retitle the window or hide a line. Colours and tabs pass.
#[must_use]
pub fn safe(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        if !c.is_control() || c == '\n' || c == '\t' || (c == '\x1b' && is_color(&text[at + 1..])) {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
    }
    Cow::Owned(out)
}

/// Whether what follows an escape character only sets colours: `[`, digits and semicolons, `m`.
fn is_color(rest: &str) -> bool {
    let Some(rest) = rest.strip_prefix('[') else { return false };
    rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m')
}

/// The last part of a resource name: `nodes/web-01` is `web-01`.
#[must_use]
pub fn id(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// A digest's bytes in hex; empty where there is none.
#[must_use]
pub fn hex(digest: Option<&v1::Digest>) -> String {
    digest.map(|digest| digest.value.iter().map(|byte| format!("{byte:02x}")).collect()).unwrap_or_default()
}

/// The first twelve hex digits of a digest.
#[must_use]
pub fn short(digest: Option<&v1::Digest>) -> String {
    hex(digest).chars().take(12).collect()
}

/// What a component runs: `1.4.2`, `1.4.2+patch10,9`, `absent`, `unmanaged@9f2c3a…`, or `-` where unknown.
#[must_use]
pub fn component_state(state: Option<&v1::ComponentState>) -> String {
    use v1::component_state::Base;
    let Some(state) = state else { return "-".to_owned() };
    let mut text = match &state.base {
        None => "-".to_owned(),
        Some(Base::Absent(_)) => "absent".to_owned(),
        Some(Base::Release(release)) => release.version.clone(),
        Some(Base::Unmanaged(base)) => format!("unmanaged@{}", short(base.digest.as_ref())),
    };
    for (index, layer) in state.layers.iter().filter(|layer| !layer.retired).enumerate() {
        text.push_str(if index == 0 { "+patch" } else { "," });
        text.push_str(&layer.number.to_string());
    }
    text
}

/// A length in bytes with its unit, e.g. `12.4 MiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Seconds as people say them: `4s`, `2m 03s`, `1h 07m`, `3d 4h`.
#[must_use]
pub fn duration(seconds: i64) -> String {
    let s = seconds.max(0);
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86400, s % 86400 / 3600),
    }
}

fn parts(time: &pbjson_types::Timestamp) -> Option<time::OffsetDateTime> {
    time::OffsetDateTime::from_unix_timestamp(time.seconds).ok()
}

/// The time of day in UTC: `10:31:02Z`.
#[must_use]
pub fn clock(time: Option<&pbjson_types::Timestamp>) -> String {
    match time.and_then(parts) {
        Some(t) => format!("{:02}:{:02}:{:02}Z", t.hour(), t.minute(), t.second()),
        None => "--:--:--Z".to_owned(),
    }
}

/// Day and time in UTC: `2026-11-23 10:31:02Z`; `-` where there is none.
#[must_use]
pub fn date(time: Option<&pbjson_types::Timestamp>) -> String {
    match time.and_then(parts) {
        Some(t) => format!("{} {}", t.date(), clock(time)),
        None => "-".to_owned(),
    }
}

/// How long ago, e.g. `6m 02s ago`; `-` where there is none.
#[must_use]
pub fn since(time: Option<&pbjson_types::Timestamp>, now: i64) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{} ago", duration(now - time.seconds)))
}

/// A reason's sentence, and what it times out at.
#[must_use]
pub fn reason(reason: Option<&v1::Reason>, now: i64) -> String {
    let Some(reason) = reason else { return String::new() };
    let text = if reason.message.is_empty() { &reason.code } else { &reason.message };
    // A person who gave no message leaves a colon with nothing behind it.
    let text = safe(text.trim_end().trim_end_matches(':'));
    match &reason.deadline_time {
        Some(deadline) if deadline.seconds > now => {
            format!("{text} (times out in {})", duration(deadline.seconds - now))
        }
        _ => text.into_owned(),
    }
}

/// An upgrade's state as the wire names it, e.g. `ROLLED_BACK`.
#[must_use]
pub fn state_name(state: v1::UpgradeState) -> &'static str {
    state.as_str_name().trim_start_matches("UPGRADE_STATE_")
}

/// An upgrade's state as a sentence uses it, e.g. `rolled back`.
#[must_use]
pub fn state_word(state: v1::UpgradeState) -> String {
    state_name(state).to_ascii_lowercase().replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_can_color_its_lines_but_not_move_the_cursor() {
        assert_eq!(safe("plain\ttext"), "plain\ttext");
        assert_eq!(safe("\x1b[1;31mred\x1b[0m"), "\x1b[1;31mred\x1b[0m");
        assert_eq!(safe("\x1b[2Jgone\r\x07"), "\\u{1b}[2Jgone\\r\\u{7}");
        assert_eq!(safe("\x1b]0;title"), "\\u{1b}]0;title");
    }

    #[test]
    fn lengths_and_spans() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(13_002_342), "12.4 MiB");
        assert_eq!(duration(4), "4s");
        assert_eq!(duration(123), "2m 03s");
        assert_eq!(duration(4020), "1h 07m");
        assert_eq!(duration(273_600), "3d 4h");
        assert_eq!(duration(-5), "0s");
    }

    #[test]
    fn times() {
        let time = pbjson_types::Timestamp { seconds: 1_795_429_862, nanos: 5 };
        assert_eq!(clock(Some(&time)), "10:31:02Z");
        assert_eq!(date(Some(&time)), "2026-11-23 10:31:02Z");
        assert_eq!(since(Some(&time), time.seconds + 62), "1m 02s ago");
        assert_eq!(date(None), "-");
    }

    #[test]
    fn names_and_states() {
        assert_eq!(id("rollouts/r-1/upgrades/web-01"), "web-01");
        assert_eq!(component_state(None), "-");
        let release = v1::ReleaseRef { version: "1.4.2".into(), ..Default::default() };
        let layer = |number| v1::Layer { number, release: None, retired: number < 9, contains: Vec::new() };
        let state = v1::ComponentState {
            base: Some(v1::component_state::Base::Release(release)),
            layers: vec![layer(10), layer(9), layer(8)],
        };
        assert_eq!(component_state(Some(&state)), "1.4.2+patch10,9");
    }

    #[test]
    fn plain_paint_is_plain() {
        assert_eq!(Paint::PLAIN.bad("x"), "x");
        assert_eq!(Paint::COLORED.bad("x"), "\x1b[31mx\x1b[0m");
    }
}
