//! One download: which source is asked next, when it is given up, and what the bytes turn out to be.

use std::collections::BTreeSet;

use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use upfleet_domain::reason::{Reason, ReasonCode};

use super::{
    FetchRequest, Fetched, Progress, Shared,
    body::{Body, Fail, Opened},
    controller::Store,
    message::MessageSize,
    part::Part,
    policy::{Permitted, shown},
};

/// Slower than this over a minute is as good as nothing.
const MIN_BYTES_PER_SECOND: u64 = 1024;
/// A source that failed so often without giving a byte yields to the next one.
const PATIENCE: u32 = 3;

enum Place {
    Https(Box<Permitted>, Option<String>),
    Controller(Store),
}

struct Source {
    place: Place,
    name: String,
    /// Failed attempts since it gave a byte.
    fruitless: u32,
    given_up: bool,
}

/// See the module.
pub(super) struct Fetch<'a> {
    shared: &'a Shared,
    request: FetchRequest,
    told: mpsc::Sender<Progress>,
    part: Part,
    sources: Vec<Source>,
    current: usize,
    /// Which sources gave the bytes in the file; `usize::MAX` for those of an earlier call.
    origins: BTreeSet<usize>,
    /// Bytes of two sources together were wrong once: from then on they are not mixed.
    unmixed: bool,
    message: MessageSize,
    /// The last cut made the messages smaller: the next attempt may go better at once.
    shrunk: bool,
    /// The last attempt ended because the source is as good as none.
    slow: bool,
    /// Failed attempts.
    attempts: u32,
    /// The most bytes that ever were there: less, from a source that starts over, is no progress.
    furthest: u64,
    /// Why no source gave the right bytes; the gravest is told in the end.
    mismatch: Option<Reason>,
    refusal: Option<Reason>,
    last_problem: String,
}

impl<'a> Fetch<'a> {
    pub(super) async fn begin(
        shared: &'a Shared,
        request: FetchRequest,
        told: mpsc::Sender<Progress>,
    ) -> Result<Self, Reason> {
        let artifact = &request.artifact;
        let part = Part::open(&request.part_path, artifact.size, artifact.md5.is_some()).await?;
        let mut refusal = None;
        let mut sources = Vec::new();
        let source = |place, name| Source { place, name, fruitless: 0, given_up: false };
        for url in &request.artifact.sources {
            match shared.policy.permit(url) {
                Ok(permitted) => sources.push(source(Place::Https(Box::new(permitted), None), shown(url))),
                Err(reason) => {
                    tracing::warn!(%reason, "source passed over");
                    refusal = Some(reason);
                }
            }
        }
        if let Some(connector) = &shared.controller {
            let store = Store::new(connector.clone());
            sources.push(source(Place::Controller(store), "the controller".to_owned()));
        }
        let origins = if part.length() > 0 { BTreeSet::from([usize::MAX]) } else { BTreeSet::new() };
        Ok(Self {
            shared,
            request,
            told,
            furthest: part.length(),
            part,
            sources,
            current: 0,
            origins,
            unmixed: false,
            message: MessageSize::new(shared.limiter.rate()),
            shrunk: false,
            slow: false,
            attempts: 0,
            mismatch: None,
            refusal,
            last_problem: "there is no source".to_owned(),
        })
    }

    pub(super) async fn run(mut self) -> Result<Fetched, Reason> {
        loop {
            if self.part.length() == self.request.artifact.size
                && let Some(fetched) = self.examine().await?
            {
                return Ok(fetched);
            }
            if self.sources.iter().all(|source| source.given_up) {
                return Err(self.verdict());
            }
            while self.sources[self.current].given_up {
                self.next_source().await?;
            }
            self.tell(Progress::Bytes(self.part.length())).await;
            let outcome = self.attempt().await?;
            self.attempts += u32::from(outcome.is_err());
            match outcome {
                Ok(()) => {}
                Err(Fail::Final(reason)) => {
                    // A source of the wrong length gave wrong bytes, too.
                    let wrong = matches!(reason.code, ReasonCode::SizeMismatch | ReasonCode::WrongCopy);
                    if wrong && self.origins.contains(&self.current) {
                        self.start_over().await?;
                    }
                    self.give_up(reason);
                }
                Err(Fail::Retry(problem)) => self.wait(problem).await?,
            }
        }
    }

    /// Nobody listens any more where the download was cancelled.
    async fn tell(&self, progress: Progress) {
        let _ = self.told.send(progress).await;
    }

    /// Asks the current source once, and takes what it gives. The outer error is the disk's.
    async fn attempt(&mut self) -> Result<Result<(), Fail>, Reason> {
        let opened = match timeout(self.shared.patience.stall, self.open()).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(fail)) => return Ok(Err(self.broken(fail))),
            Err(_) => return Ok(Err(self.broken(Fail::Retry("it did not answer".to_owned())))),
        };
        if opened.offset != self.part.length() {
            tracing::info!(source = self.sources[self.current].name, "the source starts over");
            self.start_over().await?;
        }
        let (began, end, run) = (Instant::now(), opened.end, self.message.run());
        let taken = self.take(opened.body, end).await?;
        if matches!(self.sources[self.current].place, Place::Controller(_)) {
            let before = self.message;
            self.message = match &taken {
                Ok(()) if run.is_some() => self.message.came(began.elapsed()),
                Err(Fail::Retry(_)) => self.message.cut(),
                _ => self.message,
            };
            self.shrunk = self.message.bytes() < before.bytes();
        }
        Ok(taken.map_err(|fail| self.broken(fail)))
    }

    /// A connection that failed once is not used again.
    fn broken(&mut self, fail: Fail) -> Fail {
        if let Place::Controller(store) = &mut self.sources[self.current].place {
            store.disconnect();
        }
        fail
    }

    async fn open(&mut self) -> Result<Opened, Fail> {
        let (offset, artifact) = (self.part.length(), &self.request.artifact);
        match &mut self.sources[self.current].place {
            Place::Https(permitted, etag) => {
                self.shared.https.open(permitted, offset, artifact.size, etag).await
            }
            Place::Controller(store) => store.open(artifact, offset, self.message).await,
        }
    }

    /// Takes the bytes up to `end`.
    async fn take(&mut self, mut body: Body, end: u64) -> Result<Result<(), Fail>, Reason> {
        let stall = self.shared.patience.stall;
        let mut window = (Instant::now(), self.part.length());
        while self.part.length() < end {
            let chunk = match timeout(stall, body.next(self.part.length())).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Ok(Err(self.ended_early(&body).await?)),
                Ok(Err(fail)) => return Ok(Err(fail)),
                Err(_) => return Ok(Err(Fail::Retry("it stalled".to_owned()))),
            };
            let length = self.part.length() + chunk.len() as u64;
            if length > end {
                return Ok(Err(self.too_much(end)));
            }
            self.shared.limiter.take(chunk.len()).await;
            self.origins.insert(self.current);
            self.part.write(chunk).await?;
            self.tell(Progress::Bytes(length)).await;
            if window.0.elapsed() >= self.shared.patience.window {
                if u128::from(length - window.1) * 1000
                    < u128::from(self.slowest()) * window.0.elapsed().as_millis()
                {
                    self.slow = true;
                    return Ok(Err(Fail::Retry("it is too slow".to_owned())));
                }
                window = (Instant::now(), length);
            }
        }
        // One byte more than the manifest says is a wrong source, even if the first bytes are right.
        match timeout(stall, body.next(end)).await {
            Ok(Ok(Some(more))) if !more.is_empty() => Ok(Err(self.too_much(end))),
            _ => Ok(Ok(())),
        }
    }

    fn too_much(&self, end: u64) -> Fail {
        let size = self.request.artifact.size;
        if end == size {
            return self.wrong_size(format!("more than {size}"));
        }
        Fail::Retry("it gave more than it was asked for".to_owned())
    }

    fn slowest(&self) -> u64 {
        let configured = self.shared.limiter.rate().map_or(u64::MAX, |rate| rate / 2);
        MIN_BYTES_PER_SECOND.min(configured)
    }

    /// The answer is over, and too short. What an HTTPS source gives is whole then: a copy that is not the artifact.
    async fn ended_early(&mut self, body: &Body) -> Result<Fail, Reason> {
        if matches!(body, Body::Controller(_)) {
            return Ok(Fail::Retry("the stream ended early".to_owned()));
        }
        // What the copy is can be told only where all these bytes are of it.
        if self.origins != BTreeSet::from([self.current]) {
            return Ok(self.wrong_size(self.part.length()));
        }
        let got = self.part.finish().await?;
        let (source, artifact) = (&self.sources[self.current], &self.request.artifact);
        Ok(Fail::Final(
            Reason::new(ReasonCode::WrongCopy)
                .with("source", &source.name)
                .with("actual", got.sha256)
                .with("actual_size", got.size)
                .with("expected", artifact.sha256)
                .with("expected_size", artifact.size),
        ))
    }

    fn wrong_size(&self, actual: impl std::fmt::Display) -> Fail {
        Fail::Final(
            Reason::new(ReasonCode::SizeMismatch)
                .with("source", &self.sources[self.current].name)
                .with("actual", actual)
                .with("expected", self.request.artifact.size),
        )
    }

    /// Compares the whole file with the manifest. Wrong bytes are thrown away, and their source with them.
    async fn examine(&mut self) -> Result<Option<Fetched>, Reason> {
        let (artifact, fetched) = (&self.request.artifact, self.part.finish().await?);
        let reason = if fetched.sha256 != artifact.sha256 {
            let reason = Reason::new(ReasonCode::DigestMismatch)
                .with("actual", fetched.sha256)
                .with("expected", artifact.sha256);
            let reason = fetched.md5.iter().fold(reason, |reason, md5| reason.with("actual_md5", md5));
            artifact.md5.iter().fold(reason, |reason, md5| reason.with("expected_md5", md5))
        } else if let (Some(actual), Some(expected)) = (fetched.md5, artifact.md5)
            && actual != expected
        {
            Reason::new(ReasonCode::Md5Mismatch).with("actual", actual).with("expected", expected)
        } else {
            return Ok(Some(fetched));
        };
        let mut origins = std::mem::take(&mut self.origins).into_iter();
        match (origins.next(), origins.next()) {
            (Some(only), None) if only != usize::MAX => {
                let reason = reason.with("source", &self.sources[only].name);
                self.current = only;
                self.give_up(reason);
            }
            _ => {
                tracing::warn!(%reason, "bytes of several sources do not fit together; fetched anew");
                self.unmixed = true;
            }
        }
        self.part.reset().await?;
        Ok(None)
    }

    fn give_up(&mut self, reason: Reason) {
        let source = &mut self.sources[self.current];
        tracing::warn!(source = source.name, %reason, "source given up");
        source.given_up = true;
        self.last_problem = format!("{}: {reason}", source.name);
        match reason.code {
            ReasonCode::SizeMismatch
            | ReasonCode::WrongCopy
            | ReasonCode::DigestMismatch
            | ReasonCode::Md5Mismatch => {
                self.mismatch = Some(reason);
            }
            ReasonCode::SourceNotAllowed => self.refusal = Some(reason),
            _ => {
                let problem = reason.metadata.get("problem").cloned();
                self.last_problem =
                    format!("{}: {}", source.name, problem.unwrap_or_else(|| reason.message()));
            }
        }
    }

    /// Waits before the next attempt, which goes to the next source where this one gave nothing for long.
    async fn wait(&mut self, problem: String) -> Result<(), Reason> {
        let progressed = self.part.length() > self.furthest;
        self.furthest = self.furthest.max(self.part.length());
        let (shrunk, slow) = (std::mem::take(&mut self.shrunk), std::mem::take(&mut self.slow));
        let source = &mut self.sources[self.current];
        source.fruitless = match () {
            // A few bytes a minute are no reason to stay.
            () if slow => PATIENCE,
            () if progressed => 0,
            () => source.fruitless + u32::from(!shrunk),
        };
        let (name, fruitless) = (source.name.clone(), source.fruitless);
        self.last_problem = format!("{name}: {problem}");
        let retrying = Reason::new(ReasonCode::FetchRetrying)
            .with("attempt", self.attempts)
            .with("source", name)
            .with("problem", problem);
        tracing::info!(reason = %retrying, "fetch is tried again");
        self.tell(Progress::Retrying(retrying)).await;
        if fruitless > 0 && fruitless % PATIENCE == 0 {
            self.next_source().await?;
        }
        let delay = self.shared.patience.backoff.delay(fruitless.saturating_sub(1), rand::random());
        let until = Instant::now() + delay;
        if self.request.deadline.is_some_and(|deadline| until >= deadline) {
            return Err(self.verdict());
        }
        tokio::time::sleep_until(until).await;
        Ok(())
    }

    async fn next_source(&mut self) -> Result<(), Reason> {
        self.current = (self.current + 1) % self.sources.len();
        if self.unmixed && !self.origins.is_empty() {
            self.start_over().await?;
        }
        Ok(())
    }

    async fn start_over(&mut self) -> Result<(), Reason> {
        self.origins.clear();
        self.part.reset().await
    }

    /// What to tell when nothing is left to try: wrong bytes first, then what policy forbade.
    fn verdict(&mut self) -> Reason {
        let all_refused = self.sources.iter().all(|source| source.given_up);
        let refusal = self.refusal.take().filter(|_| all_refused);
        self.mismatch.take().or(refusal).unwrap_or_else(|| {
            Reason::new(ReasonCode::FetchFailed)
                .with("digest", self.request.artifact.sha256)
                .with("attempts", self.attempts)
                .with("problem", &self.last_problem)
        })
    }
}
