//! Tells systemd how the agent does: ready, reloading, stopping, alive, and one line for `systemctl status`.
//!
//! It asks the loops whether they live and says what they answer. It decides nothing, and where no service manager
//! listens it does nothing at all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use upfleet_domain::{id::ComponentId, upgrade::Phase};

use crate::{
    component::{Doing, Handle, Handles, Pulse},
    transport::{Link, now},
};

/// How often the loops are asked, at most: the line for people is as old as this.
const EVERY: Duration = Duration::from_secs(5);
/// How long a loop may take to answer where no watchdog says it.
const ANSWER: Duration = Duration::from_secs(10);
/// How many upgrades the line names.
const NAMED: usize = 3;
/// The longest line for people, in characters.
const LONGEST: usize = 1000;

/// What is asked whether it lives.
pub struct Watched {
    handles: Handles,
    link: Option<watch::Receiver<Link>>,
    main: mpsc::Sender<oneshot::Sender<()>>,
    reloading: Arc<AtomicBool>,
}

/// The main loop's end.
pub struct Listener {
    asked: mpsc::Receiver<oneshot::Sender<()>>,
    reloading: Arc<AtomicBool>,
}

impl Listener {
    /// Answers one question whether the loop lives. Never ends where nobody asks.
    pub async fn answer(&mut self) {
        match self.asked.recv().await {
            // Whoever asked has given up by now.
            Some(answer) => drop(answer.send(())),
            None => std::future::pending().await,
        }
    }

    /// The configuration is being read again. Until [`Listener::reloaded`] actors may come and go.
    pub fn reloading(&self) {
        self.reloading.store(true, Ordering::Relaxed);
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let micros = i128::from(time.tv_sec) * 1_000_000 + i128::from(time.tv_nsec) / 1000;
        tell(&[NotifyState::Reloading, NotifyState::MonotonicUsec(micros)]);
    }

    /// See [`Listener::reloading`].
    pub fn reloaded(&self) {
        self.reloading.store(false, Ordering::Relaxed);
        tell(&[NotifyState::Ready]);
    }
}

/// The agent ends; what it supervises does not.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("Stopping; the components go on")]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}

impl Watched {
    /// Both ends.
    #[must_use]
    pub fn new(handles: Handles, link: Option<watch::Receiver<Link>>) -> (Self, Listener) {
        // One question at a time.
        let (main, asked) = mpsc::channel(1);
        let reloading = Arc::new(AtomicBool::new(false));
        let listener = Listener { asked, reloading: Arc::clone(&reloading) };
        (Self { handles, link, main, reloading }, listener)
    }

    /// Says that the agent is ready once every component is looked after, and from then on that it lives, for as long
    /// as all its loops do.
    #[must_use]
    pub fn follow(self, shutdown: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(async move {
            // The manager's variables are the only way to it.
            if std::env::var_os("NOTIFY_SOCKET").is_some() {
                tokio::select! {
                    () = self.tell_for_ever(sd_notify::watchdog_enabled()) => {}
                    () = shutdown.cancelled() => {}
                }
            }
        })
    }

    async fn tell_for_ever(self, watchdog: Option<Duration>) {
        let every = watchdog.map_or(EVERY, |limit| (limit / 3).min(EVERY));
        let limit = watchdog.map_or(ANSWER, |limit| limit / 3);
        let (mut ready, mut said) = (false, String::new());
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (pulses, dead) = self.ask(limit).await;
            let line = if dead.is_empty() {
                let link = self.link.as_ref().map(|link| link.borrow().clone());
                status(&pulses, link.as_ref())
            } else {
                tracing::error!(silent = dead.join(", "), "does not answer");
                format!("No answer from: {}", dead.join(", "))
            };
            let line = one_line(&line);
            let mut states = Vec::new();
            if dead.is_empty() {
                if !ready {
                    tracing::debug!("ready");
                    states.push(NotifyState::Ready);
                    ready = true;
                }
                states.push(NotifyState::Watchdog);
            }
            if line != said {
                states.push(NotifyState::Status(&line));
            }
            if !states.is_empty() {
                tell(&states);
            }
            said = line;
        }
    }

    /// Asks all loops at once: what they answer, and who does not.
    async fn ask(&self, limit: Duration) -> (Vec<(ComponentId, Pulse)>, Vec<String>) {
        let (mut pulses, mut dead) = (Vec::new(), Vec::new());
        let asked: Vec<_> =
            self.handles.all().into_iter().map(|handle| tokio::spawn(pulse(handle, limit))).collect();
        let main = self.main_lives(limit).await;
        for task in asked {
            match task.await {
                Ok((component, Answer::Pulse(pulse))) => pulses.push((component, pulse)),
                // While the configuration is read again, one that goes waits for its step under way.
                Ok((component, Answer::Ended | Answer::None)) if !self.reloading.load(Ordering::Relaxed) => {
                    dead.push(component.to_string());
                }
                Ok((_, Answer::Ended | Answer::None | Answer::WaitsForDisk)) | Err(_) => {}
            }
        }
        if !main {
            dead.push("the main loop".to_owned());
        }
        (pulses, dead)
    }

    async fn main_lives(&self, limit: Duration) -> bool {
        let (sender, answer) = oneshot::channel();
        let asked = async { self.main.send(sender).await.is_ok() && answer.await.is_ok() };
        // It can't answer while it reads the configuration again, which waits for steps under way.
        timeout(limit, asked).await.unwrap_or(false) || self.reloading.load(Ordering::Relaxed)
    }
}

/// Without what would begin another assignment: a part of it is the controller's own words, and the manager obeys those
/// that it reads on lines of their own.
fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(LONGEST).collect()
}

enum Answer {
    Pulse(Pulse),
    /// The actor is gone.
    Ended,
    WaitsForDisk,
    None,
}

async fn pulse(handle: Handle, limit: Duration) -> (ComponentId, Answer) {
    let before = handle.waits();
    let answer = match timeout(limit, handle.pulse()).await {
        Ok(Ok(pulse)) => Answer::Pulse(pulse),
        Ok(Err(_)) => Answer::Ended,
        Err(_) if handle.waits() != before => Answer::WaitsForDisk,
        Err(_) => Answer::None,
    };
    (handle.component().clone(), answer)
}

/// One line for people: `WATCHING payments 1.0.8 (30 s left)`, else how many are healthy and how it stands with the
/// controller.
fn status(pulses: &[(ComponentId, Pulse)], link: Option<&Link>) -> String {
    let busy: Vec<String> = pulses
        .iter()
        .filter_map(|(component, pulse)| pulse.doing.as_ref().map(|doing| upgrade(component, doing)))
        .collect();
    let connection = match link {
        None => "not enrolled".to_owned(),
        Some(link) if link.connected => format!("connected to {}", link.controller),
        Some(link) => match &link.problem {
            Some(problem) => format!("without the controller: {problem}"),
            None => format!("connecting to {}", link.controller),
        },
    };
    if !busy.is_empty() {
        let mut line = busy.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        if busy.len() > NAMED {
            line.push_str(&format!(", and {} more", busy.len() - NAMED));
        }
        return if link.is_some_and(|link| link.connected) { line } else { format!("{line}; {connection}") };
    }
    let ill: Vec<&str> =
        pulses.iter().filter(|(_, pulse)| !pulse.healthy).map(|(component, _)| component.as_str()).collect();
    let health = match (pulses.len(), ill.len()) {
        (0, _) => "no components".to_owned(),
        (1, 0) => format!("{} healthy", pulses[0].0),
        (all, 0) => format!("{all} components healthy"),
        (all, some) if some <= NAMED => {
            format!("{} of {all} components not healthy: {}", some, ill.join(", "))
        }
        (all, some) => format!("{some} of {all} components not healthy"),
    };
    format!("{health}; {connection}")
}

fn upgrade(component: &ComponentId, doing: &Doing) -> String {
    let Doing { phase, to, since, soaking } = doing;
    match soaking {
        Some(left) => format!("WATCHING {component} {to} ({} s left)", left.as_millis().div_ceil(1000)),
        None if *phase == Phase::RollingBack => format!("{phase} {component} to {to}"),
        None => format!("{phase} {component} {to} (for {} s)", now().since(*since).as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use upfleet_domain::{
        digest::Digest,
        state::{Base, ComponentState, ReleaseRef},
        time::Time,
    };

    use super::*;

    fn doing(phase: Phase, soaking: Option<Duration>) -> Option<Doing> {
        let release = ReleaseRef {
            component: "payments".parse().unwrap(),
            version: "1.0.8".parse().unwrap(),
            sequence: 8,
            manifest: Digest::of(b"manifest"),
            artifact: Digest::of(b"artifact"),
        };
        let to = ComponentState { base: Base::Release(release), layers: Vec::new() };
        Some(Doing { phase, to, since: now(), soaking })
    }

    fn line(pulses: &[(&str, bool, Option<Doing>)], link: Option<&Link>) -> String {
        let pulses: Vec<_> = pulses
            .iter()
            .map(|(name, healthy, doing)| {
                (name.parse().unwrap(), Pulse { healthy: *healthy, doing: doing.clone() })
            })
            .collect();
        status(&pulses, link)
    }

    #[test]
    fn what_the_controller_says_is_no_assignment() {
        assert_eq!(one_line("no\nMAINPID=1\r\u{85}"), "no MAINPID=1  ");
        assert_eq!(one_line(&"x".repeat(LONGEST + 1)).len(), LONGEST);
    }

    #[test]
    fn the_line_says_what_a_person_would_ask() {
        let link = |connected, problem: Option<&str>| Link {
            controller: "c:7443".to_owned(),
            connected,
            reported: connected,
            since: Time(0),
            problem: problem.map(str::to_owned),
        };
        let up = link(true, None);
        assert_eq!(line(&[], None), "no components; not enrolled");
        assert_eq!(line(&[("web", true, None)], Some(&up)), "web healthy; connected to c:7443");
        let two = [("web", true, None), ("payments", false, None)];
        let away = link(false, Some("no route"));
        assert_eq!(
            line(&two, Some(&away)),
            "1 of 2 components not healthy: payments; without the controller: no route"
        );
        let soaking = doing(Phase::Probing, Some(Duration::from_millis(29_100)));
        let busy = [("web", true, None), ("payments", true, soaking)];
        assert_eq!(line(&busy, Some(&up)), "WATCHING payments 1.0.8 (30 s left)");
        let fetching = [("payments", true, doing(Phase::Fetching, None))];
        assert_eq!(line(&fetching, Some(&up)), "FETCHING payments 1.0.8 (for 0 s)");
    }

    /// Who asks finds the loop that sleeps, the one that is gone, and the one that waits for a disk.
    #[tokio::test(start_paused = true)]
    async fn only_a_loop_that_answers_lives() {
        let (watched, mut listener) = Watched::new(Handles::default(), None);
        let limit = Duration::from_secs(1);
        assert_eq!(watched.ask(limit).await.1, ["the main loop"]);
        listener.reloading();
        assert!(watched.ask(limit).await.1.is_empty(), "it reads the configuration");
        listener.reloaded();
        tokio::spawn(async move {
            loop {
                listener.answer().await;
            }
        });
        assert!(watched.ask(limit).await.1.is_empty());
    }
}
