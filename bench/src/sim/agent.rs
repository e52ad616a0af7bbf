//! One simulated agent: connects, greets, answers, and comes back as a real one does.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::CryptoProvider, pki_types::ServerName};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};
use upfleet_api::{
    convert::{self, Order},
    v1::{
        self, agent_service_client::AgentServiceClient, session_request::Message as Out,
        session_response::Message as In,
    },
};
use upfleet_domain::{
    backoff::Backoff,
    id::ComponentId,
    order::Target,
    reason::{Reason, ReasonCode},
    state::ComponentState,
    time::Time,
    upgrade::{Outcome, UpgradeState},
};

use super::{
    Component, Identity, Mark, Pace, Roster, Stats, component::Answer, download, roster, stats::Count,
};
use crate::{api::SERVER_NAME, tls};

/// As the real agent: a controller that is silent so long is asked for a sign of life, and has as long to give it.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// As the real agent: how long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// As the real agent: after a session that lasted so long the back-off begins anew.
const GOOD_SESSION: Duration = Duration::from_secs(10);
/// Agents that set up their first connection at once. Returning ones are held back by their own back-off only.
const FIRST_CONNECTS: usize = 128;
/// So many agents share a source address: a pair of addresses has no more ports.
const PER_SOURCE: usize = 10_000;

/// How the agents of a fleet behave.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// `host:port` of the controller.
    pub controller: String,
    /// What every node has.
    pub components: Vec<(ComponentId, ComponentState)>,
    /// How upgrades go.
    pub pace: Pace,
    /// Whether artifacts are fetched really.
    pub download: bool,
}

/// Simulated agents that run until this is dropped.
pub struct Fleet {
    shared: Arc<Shared>,
    stats: Arc<Stats>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

struct Shared {
    behaviour: Behaviour,
    pace: Mutex<Arc<Pace>>,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    address: SocketAddr,
    first: Semaphore,
    stats: Arc<Stats>,
    stop: CancellationToken,
}

impl Shared {
    fn pace(&self) -> Arc<Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The agents' platform.
pub(super) fn platform() -> v1::Platform {
    v1::Platform { os: "linux".to_owned(), arch: "amd64".to_owned() }
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

impl Fleet {
    /// Starts an agent for each node of the roster, on the present runtime.
    ///
    /// # Errors
    /// Where the controller's address or the roster can't be used.
    pub async fn start(roster: &Roster, behaviour: Behaviour) -> anyhow::Result<Self> {
        let mut found = tokio::net::lookup_host(behaviour.controller.clone()).await?;
        let address = found.next().context("the controller's name has no address")?;
        let (stats, stop) = (Arc::<Stats>::default(), CancellationToken::new());
        let shared = Arc::new(Shared {
            pace: Mutex::new(Arc::new(behaviour.pace.clone())),
            behaviour,
            provider: tls::provider(),
            roots: tls::roots(roster.ca.as_bytes())?,
            address,
            first: Semaphore::new(FIRST_CONNECTS),
            stats: stats.clone(),
            stop: stop.clone(),
        });
        let mut tasks = JoinSet::new();
        for (number, identity) in roster.nodes.iter().enumerate() {
            let agent = Agent::new(shared.clone(), identity, number)?;
            tasks.spawn(agent.run());
        }
        Ok(Self { shared, stats, stop, tasks })
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// How upgrades go from now on.
    pub fn set_pace(&self, pace: Pace) {
        *self.shared.pace.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(pace);
    }

    /// Waits until `count` sessions are open.
    ///
    /// # Errors
    /// Where that takes longer than `patience`.
    pub async fn connected(&self, count: usize, patience: Duration) -> anyhow::Result<()> {
        let all = async {
            while self.stats.counts().connected < i64::try_from(count).unwrap_or(i64::MAX) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(patience, all).await;
        waited.with_context(|| format!("not all agents connected in time: {:?}", self.stats.counts()))
    }

    /// Ends all sessions and waits for that.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Agent {
    shared: Arc<Shared>,
    tls: Arc<ClientConfig>,
    source: Option<Ipv4Addr>,
    instance: String,
    node: String,
    components: Vec<Component>,
    renew: Option<Time>,
    renewing: Option<rcgen::KeyPair>,
    fetching: Option<(usize, oneshot::Receiver<Result<(), Reason>>)>,
}

/// Why a session ended.
enum End {
    Stopped,
    Lost,
    Refused(Status),
}

impl Agent {
    fn new(shared: Arc<Shared>, identity: &Identity, number: usize) -> anyhow::Result<Self> {
        let tls = tls::client(
            &shared.provider,
            &shared.roots,
            Some((identity.chain.as_bytes(), identity.key.as_bytes())),
        )?;
        let local = shared.address.ip().is_loopback();
        let last = u8::try_from(2 + number / PER_SOURCE).unwrap_or(u8::MAX);
        let component = |(id, state): &(ComponentId, ComponentState)| {
            Component::new(id.clone(), state.clone(), rand::random())
        };
        let components = shared.behaviour.components.iter().map(component).collect();
        Ok(Self {
            tls,
            source: local.then(|| Ipv4Addr::new(127, 0, 0, last)),
            instance: uuid::Uuid::new_v4().to_string(),
            node: identity.node.clone(),
            components,
            renew: None,
            renewing: None,
            fetching: None,
            shared,
        })
    }

    async fn run(mut self) {
        let stop = self.shared.stop.clone();
        let mut attempt = 0;
        let mut first = true;
        loop {
            let began = tokio::time::Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.session(first) => ended,
            };
            let count = match ended {
                Ok(End::Stopped) => return,
                Ok(End::Refused(status)) if status.code() == Code::Aborted => Count::Displaced,
                Ok(End::Refused(status)) if refuses(&status) => Count::Refused,
                Ok(End::Lost | End::Refused(_)) | Err(_) => Count::Failed,
            };
            self.shared.stats.count(count);
            first = false;
            attempt = if began.elapsed() > GOOD_SESSION { 0 } else { attempt + 1 };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Backoff::NETWORK.delay(attempt, rand::random())) => {}
            }
        }
    }

    async fn session(&mut self, first: bool) -> anyhow::Result<End> {
        let shared = self.shared.clone();
        let slot = if first { Some(shared.first.acquire().await?) } else { None };
        let channel = self.connect().await?;
        let (sender, outbound) = mpsc::channel(16);
        self.components.iter_mut().for_each(Component::reconnected);
        sender.send(boxed(Out::Hello(self.hello()))).await?;
        let outbound = ReceiverStream::new(outbound).map(|message: Box<v1::SessionRequest>| *message);
        let mut client = AgentServiceClient::new(channel).max_decoding_message_size(4 << 20);
        let mut inbound = match client.session(outbound).await {
            Ok(response) => response.into_inner(),
            Err(status) => return Ok(End::Refused(status)),
        };
        match inbound.message().await {
            Ok(Some(v1::SessionResponse { message: Some(In::Welcome(welcome)) })) => {
                self.renew = welcome.renew_time.as_ref().map(convert::time);
            }
            Ok(_) => return Ok(End::Lost),
            Err(status) => return Ok(End::Refused(status)),
        }
        drop(slot);
        let open = Open::new(shared.stats.clone());
        let ended = self.exchange(inbound, &sender).await;
        drop(open);
        ended
    }

    async fn connect(&self) -> anyhow::Result<Channel> {
        let (address, source, tls) = (self.shared.address, self.source, self.tls.clone());
        let connector = tower::service_fn(move |_| {
            let tls = TlsConnector::from(tls.clone());
            async move {
                let tcp = match source {
                    Some(source) => {
                        let socket = TcpSocket::new_v4()?;
                        socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
                        socket.connect(address).await?
                    }
                    None => TcpStream::connect(address).await?,
                };
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, tcp).await?))
            }
        });
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .buffer_size(4)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        // The time-out covers TLS as well, which tonic's does not.
        Ok(tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect_with_connector(connector)).await??)
    }

    fn hello(&self) -> v1::Hello {
        let fact = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        v1::Hello {
            purpose: v1::hello::Purpose::Serve.into(),
            instance_id: self.instance.clone(),
            boot_id: "simulated".to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            wire_minor: 0,
            platform: Some(platform()),
            facts: [fact("hostname", &self.node), fact("kernel", "6.1.0"), fact("libc", "glibc")].into(),
            components: self.components.iter().map(|component| (&component.inventory()).into()).collect(),
        }
    }

    async fn exchange(
        &mut self,
        mut inbound: Streaming<v1::SessionResponse>,
        sender: &mpsc::Sender<Box<v1::SessionRequest>>,
    ) -> anyhow::Result<End> {
        let stop = self.shared.stop.clone();
        loop {
            self.say(sender).await?;
            let until = self.due();
            tokio::select! {
                () = stop.cancelled() => return Ok(End::Stopped),
                message = inbound.message() => match message {
                    Ok(Some(message)) => self.heard(message.message, sender).await?,
                    Ok(None) => return Ok(End::Lost),
                    Err(status) => return Ok(End::Refused(status)),
                },
                () = tokio::time::sleep(until.unwrap_or_default()), if until.is_some() => {
                    self.time_passed(sender).await?;
                }
                fetched = fetched(&mut self.fetching) => {
                    if let Some((index, outcome)) = fetched {
                        let pace = self.shared.pace();
                        self.components[index].fetched(outcome, &pace, now());
                    }
                }
            }
        }
    }

    /// How long nothing happens by itself; at most a minute, as clocks are set.
    fn due(&self) -> Option<Duration> {
        let walks = self.components.iter().filter_map(Component::due);
        let renewal = self.renew.filter(|_| self.renewing.is_none());
        let at = walks.chain(renewal).min()?;
        Some(at.since(now()).min(Duration::from_secs(60)))
    }

    async fn time_passed(&mut self, sender: &mpsc::Sender<Box<v1::SessionRequest>>) -> anyhow::Result<()> {
        let (now, pace, real) = (now(), self.shared.pace(), self.shared.behaviour.download);
        self.components.iter_mut().for_each(|component| component.advance(&pace, real, now));
        if self.renewing.is_none() && self.renew.is_some_and(|at| at <= now) {
            let (key, csr) = roster::request()?;
            self.renewing = Some(key);
            let request = v1::CertificateRequest { csr_der: csr.into() };
            sender.send(boxed(Out::CertificateRequest(request))).await?;
        }
        Ok(())
    }

    /// Sends what components have to say, and begins fetches.
    async fn say(&mut self, sender: &mpsc::Sender<Box<v1::SessionRequest>>) -> anyhow::Result<()> {
        for (index, component) in self.components.iter_mut().enumerate() {
            for report in component.unsent() {
                self.shared.stats.count(Count::Reported);
                match report.state {
                    UpgradeState::Ended(Outcome::Succeeded) => self.shared.stats.count(Count::Succeeded),
                    UpgradeState::Ended(Outcome::RolledBack) => {
                        self.shared.stats.count(Count::RolledBack);
                        self.shared.stats.mark(Mark::RolledBack);
                    }
                    _ => {}
                }
                sender.send(boxed(Out::Report((&report).into()))).await?;
            }
            if let Some(inventory) = component.news() {
                sender.send(boxed(Out::Inventory((&inventory).into()))).await?;
            }
            let Some(digest) = component.wants().filter(|_| self.fetching.is_none()) else { continue };
            let (done, outcome) = oneshot::channel();
            self.fetching = Some((index, outcome));
            let (address, tls) = (self.shared.behaviour.controller.clone(), self.tls.clone());
            let stats = self.shared.stats.clone();
            tokio::spawn(async move {
                let fetched = download::fetch(&address, tls, digest).await;
                let fetched = fetched.map(|bytes| stats.fetched(bytes)).map_err(|error| {
                    Reason::new(ReasonCode::FetchFailed)
                        .with("digest", digest.short())
                        .with("attempts", 1)
                        .with("problem", format!("{error:#}"))
                });
                let _ = done.send(fetched);
            });
        }
        Ok(())
    }

    async fn heard(
        &mut self,
        message: Option<In>,
        sender: &mpsc::Sender<Box<v1::SessionRequest>>,
    ) -> anyhow::Result<()> {
        match message {
            Some(In::DesiredState(desired)) => self.ordered(desired, sender).await?,
            Some(In::ReportAck(ack)) => self.recorded(&ack),
            Some(In::CertificateGrant(grant)) => self.renewed(&grant)?,
            Some(In::LogQuery(query)) => {
                let lines = v1::LogLines {
                    query_id: query.query_id,
                    lines: vec!["a simulated line".to_owned()],
                    done: true,
                    failure: None,
                };
                sender.send(boxed(Out::LogLines(lines))).await?;
            }
            Some(In::Welcome(_) | In::LogQueryEnd(_)) | None => {}
        }
        Ok(())
    }

    async fn ordered(
        &mut self,
        desired: v1::DesiredState,
        sender: &mpsc::Sender<Box<v1::SessionRequest>>,
    ) -> anyhow::Result<()> {
        self.shared.stats.count(Count::Ordered);
        let (epoch, generation, component) = (desired.epoch, desired.generation, desired.component.clone());
        let upgrade = desired.upgrade.clone();
        let order = Order::try_from(desired).map_err(|reason| anyhow::anyhow!("{reason}"))?;
        // Not those that confirm what a node has put back by itself.
        if matches!(order.desired.target, Target::Install(_) | Target::Stack(_)) {
            self.shared.stats.mark(Mark::Ordered);
        }
        let found = self.components.iter_mut().find(|known| known.id().as_str() == component);
        let refused = |reason: &Reason, kept: upfleet_domain::order::Generation| {
            Out::Nack(v1::DesiredStateNack {
                component: component.clone(),
                epoch,
                generation,
                reason: Some(reason.into()),
                kept_epoch: kept.epoch,
                kept_generation: kept.number,
                upgrade: upgrade.clone(),
            })
        };
        let pace = self.shared.pace();
        let answer = match found.map(|known| known.order(order, &pace, now())) {
            Some(Answer::Kept(_)) => {
                Out::Ack(v1::DesiredStateAck { component: component.clone(), epoch, generation })
            }
            Some(Answer::Stale { reason, kept }) => refused(&reason, kept),
            None => {
                let reason = Reason::new(ReasonCode::UnknownComponent).with("component", &component);
                refused(&reason, upfleet_domain::order::Generation::default())
            }
        };
        Ok(sender.send(boxed(answer)).await?)
    }

    fn recorded(&mut self, ack: &v1::UpgradeReportAck) {
        let stats = &self.shared.stats;
        for component in &mut self.components {
            for report in component.recorded(&ack.upgrade, ack.sequence) {
                stats.count(Count::Recorded);
                if report.sequence == 1 {
                    stats.mark(Mark::Recorded);
                }
                if report.state.outcome().is_some() {
                    stats.mark(Mark::Ended);
                }
            }
        }
    }

    /// Later connections show the renewed certificate.
    fn renewed(&mut self, grant: &v1::CertificateGrant) -> anyhow::Result<()> {
        let Some(key) = self.renewing.take() else { return Ok(()) };
        let chain = grant.certificate_pem.as_bytes();
        let identity = Some((chain, key.serialize_pem()));
        let identity = identity.as_ref().map(|(chain, key)| (*chain, key.as_bytes()));
        self.tls = tls::client(&self.shared.provider, &self.shared.roots, identity)?;
        self.renew = None;
        self.shared.stats.count(Count::Renewed);
        Ok(())
    }
}

/// Counts a session in for as long as it is open.
struct Open(Arc<Stats>);

impl Open {
    fn new(stats: Arc<Stats>) -> Self {
        stats.count(Count::Connected);
        stats.mark(Mark::Online);
        Self(stats)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.count(Count::Closed);
    }
}

/// Whether a session was refused for who the agent is, rather than for the moment.
fn refuses(status: &Status) -> bool {
    matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied | Code::FailedPrecondition)
}

fn boxed(message: Out) -> Box<v1::SessionRequest> {
    Box::new(v1::SessionRequest { message: Some(message) })
}

/// The end of a fetch that is under way; never, where there is none.
async fn fetched(
    fetching: &mut Option<(usize, oneshot::Receiver<Result<(), Reason>>)>,
) -> Option<(usize, Result<(), Reason>)> {
    let Some((index, outcome)) = fetching else { return std::future::pending().await };
    let (index, outcome) = (*index, outcome.await);
    *fetching = None;
    Some((index, outcome.ok()?))
}
