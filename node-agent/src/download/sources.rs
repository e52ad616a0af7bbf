//! One download: which source is asked next, when it is given up, and what the bytes turn out to be.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{Instant, timeout};
use upfleet_domain::{
    backoff::Backoff,
    reason::{Reason, ReasonCode},
};

use super::{
    FetchRequest, Fetched, Progress, Shared,
    body::{Body, Fail, Opened},
    controller,
    part::Part,
    policy::{Permitted, shown},
};

/// A source that gives nothing for so long is given up for this attempt.
const STALL: Duration = Duration::from_secs(30);
/// Slower than this over [`SPEED_WINDOW`] is as good as nothing.
const MIN_BYTES_PER_SECOND: u64 = 1024;
const SPEED_WINDOW: Duration = Duration::from_secs(60);
/// A source that failed so often without giving a byte yields to the next one.
const PATIENCE: u32 = 3;

enum Place {
    Https(Box<Permitted>, Option<String>),
    Controller,
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
    on: &'a (dyn Fn(Progress) + Send + Sync),
    part: Part,
    sources: Vec<Source>,
    current: usize,
    /// Which sources gave the bytes in the file; `usize::MAX` for those of an earlier call.
    origins: BTreeSet<usize>,
    /// Bytes of two sources together were wrong once: from then on they are not mixed.
    unmixed: bool,
    message_bytes: u32,
    attempts: u32,
    /// Why no source gave the right bytes; the gravest is told in the end.
    mismatch: Option<Reason>,
    refusal: Option<Reason>,
    last_problem: String,
}

impl<'a> Fetch<'a> {
    pub(super) async fn begin(
        shared: &'a Shared,
        request: FetchRequest,
        on: &'a (dyn Fn(Progress) + Send + Sync),
    ) -> Result<Self, Reason> {
        let part = Part::open(&request.part_path, request.artifact.size).await?;
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
        if shared.controller.is_some() {
            sources.push(source(Place::Controller, "the controller".to_owned()));
        }
        let origins = if part.length() > 0 { BTreeSet::from([usize::MAX]) } else { BTreeSet::new() };
        Ok(Self {
            shared,
            request,
            on,
            part,
            sources,
            current: 0,
            origins,
            unmixed: false,
            message_bytes: controller::MAX_MESSAGE,
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
            (self.on)(Progress::Bytes(self.part.length()));
            let before = self.part.length();
            self.attempts += 1;
            match self.attempt().await? {
                Ok(()) => {}
                Err(Fail::Final(reason)) => {
                    // A source of the wrong length gave wrong bytes, too.
                    if reason.code == ReasonCode::SizeMismatch && self.origins.contains(&self.current) {
                        self.start_over().await?;
                    }
                    self.give_up(reason);
                }
                Err(Fail::Retry(problem)) => self.wait(problem, self.part.length() > before).await?,
            }
        }
    }

    /// Asks the current source once, and takes what it gives. The outer error is the disk's.
    async fn attempt(&mut self) -> Result<Result<(), Fail>, Reason> {
        let opened = match timeout(STALL, self.open()).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(fail)) => return Ok(Err(fail)),
            Err(_) => return Ok(Err(Fail::Retry("it did not answer".to_owned()))),
        };
        if opened.offset != self.part.length() {
            tracing::info!(source = self.sources[self.current].name, "the source starts over");
            self.start_over().await?;
        }
        self.take(opened.body).await
    }

    async fn open(&mut self) -> Result<Opened, Fail> {
        let (offset, artifact) = (self.part.length(), &self.request.artifact);
        match (&mut self.sources[self.current].place, &self.shared.controller) {
            (Place::Https(permitted, etag), _) => {
                self.shared.https.open(permitted, offset, artifact.size, etag).await
            }
            (Place::Controller, Some(connector)) => {
                controller::open(connector, artifact.sha256, offset, self.message_bytes).await
            }
            (Place::Controller, None) => Err(Fail::Retry("there is no controller".to_owned())),
        }
    }

    async fn take(&mut self, mut body: Body) -> Result<Result<(), Fail>, Reason> {
        let size = self.request.artifact.size;
        let mut window = (Instant::now(), self.part.length());
        while self.part.length() < size {
            let chunk = match timeout(STALL, body.next(self.part.length())).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Ok(Err(self.ended_early(&body))),
                Ok(Err(fail)) => return Ok(Err(fail)),
                Err(_) => return Ok(Err(Fail::Retry("it stalled".to_owned()))),
            };
            let length = self.part.length() + chunk.len() as u64;
            if length > size {
                return Ok(Err(self.wrong_size(format!("more than {size}"))));
            }
            self.shared.limiter.take(chunk.len()).await;
            self.origins.insert(self.current);
            self.sources[self.current].fruitless = 0;
            self.part.write(chunk).await?;
            (self.on)(Progress::Bytes(length));
            if window.0.elapsed() >= SPEED_WINDOW {
                if length - window.1 < self.slowest() * SPEED_WINDOW.as_secs() {
                    return Ok(Err(Fail::Retry("it is too slow".to_owned())));
                }
                window = (Instant::now(), length);
            }
        }
        // One byte more than the manifest says is a wrong source, even if the first bytes are right.
        match timeout(STALL, body.next(size)).await {
            Ok(Ok(Some(more))) if !more.is_empty() => Ok(Err(self.wrong_size(format!("more than {size}")))),
            _ => Ok(Ok(())),
        }
    }

    fn slowest(&self) -> u64 {
        let configured = self.shared.limiter.rate().map_or(u64::MAX, |rate| rate / 2);
        MIN_BYTES_PER_SECOND.min(configured)
    }

    fn ended_early(&self, body: &Body) -> Fail {
        match body {
            // A whole answer that is too short: there is nothing more to come.
            Body::Https(_) => self.wrong_size(self.part.length()),
            Body::Controller(_) => Fail::Retry("the stream ended early".to_owned()),
        }
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
                .with("expected", artifact.sha256)
                .with("actual_md5", fetched.md5);
            artifact.md5.iter().fold(reason, |reason, md5| reason.with("expected_md5", md5))
        } else if let Some(md5) = artifact.md5.filter(|md5| *md5 != fetched.md5) {
            Reason::new(ReasonCode::Md5Mismatch).with("actual", fetched.md5).with("expected", md5)
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
            ReasonCode::SizeMismatch | ReasonCode::DigestMismatch | ReasonCode::Md5Mismatch => {
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
    async fn wait(&mut self, problem: String, progressed: bool) -> Result<(), Reason> {
        self.message_bytes = (self.message_bytes / 2).max(controller::MIN_MESSAGE);
        let source = &mut self.sources[self.current];
        source.fruitless = if progressed { 0 } else { source.fruitless + 1 };
        let (name, fruitless) = (source.name.clone(), source.fruitless);
        self.last_problem = format!("{name}: {problem}");
        let retrying = Reason::new(ReasonCode::FetchRetrying)
            .with("attempt", self.attempts)
            .with("source", name)
            .with("problem", problem);
        tracing::info!(reason = %retrying, "fetch is tried again");
        (self.on)(Progress::Retrying(retrying));
        if fruitless > 0 && fruitless % PATIENCE == 0 {
            self.next_source().await?;
        }
        let delay = Backoff::NETWORK.delay(fruitless.saturating_sub(1), rand::random());
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
