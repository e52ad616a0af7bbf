//! Watching against a scripted controller: breaks, endings, silence.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use upfleet_api::v1::{
    UpgradeState as U,
    rollout::State as S,
    rollout_service_server::{RolloutService, RolloutServiceServer},
    watch_rollout_response::Change,
};

use super::{super::app::Globals, *};

type Changes = Vec<Result<v1::WatchRolloutResponse, Status>>;
type Stream = std::pin::Pin<
    Box<dyn tokio_stream::Stream<Item = Result<v1::WatchRolloutResponse, Status>> + Send + 'static>,
>;

/// Answers each watch with the next script, and keeps the revisions that it was asked to go on from.
#[derive(Clone, Default)]
struct Script {
    rollout: v1::Rollout,
    streams: Arc<Mutex<VecDeque<Changes>>>,
    asked: Arc<Mutex<Vec<u64>>>,
}

macro_rules! unscripted {
    ($($method:ident($request:ident) -> $response:ident;)+) => {
        // Written as `async_trait` writes it: that macro does not see into this one.
        $(fn $method<'life0, 'async_trait>(
            &'life0 self,
            _: Request<v1::$request>,
        ) -> std::pin::Pin<
            Box<dyn Future<Output = Result<Response<v1::$response>, Status>> + Send + 'async_trait>,
        >
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented("not in the script")) })
        })+
    };
}

#[tonic::async_trait]
impl RolloutService for Script {
    type WatchRolloutStream = Stream;

    async fn watch_rollout(
        &self,
        request: Request<v1::WatchRolloutRequest>,
    ) -> Result<Response<Stream>, Status> {
        self.asked.lock().unwrap().push(request.into_inner().from_revision);
        match self.streams.lock().unwrap().pop_front() {
            Some(changes) => Ok(Response::new(Box::pin(tokio_stream::iter(changes)))),
            None => Ok(Response::new(Box::pin(tokio_stream::pending()))),
        }
    }

    async fn get_rollout(
        &self,
        _: Request<v1::GetRolloutRequest>,
    ) -> Result<Response<v1::GetRolloutResponse>, Status> {
        Ok(Response::new(v1::GetRolloutResponse { rollout: Some(self.rollout.clone()) }))
    }

    async fn list_upgrades(
        &self,
        _: Request<v1::ListUpgradesRequest>,
    ) -> Result<Response<v1::ListUpgradesResponse>, Status> {
        Ok(Response::new(v1::ListUpgradesResponse::default()))
    }

    unscripted! {
        create_rollout(CreateRolloutRequest) -> CreateRolloutResponse;
        start_rollout(StartRolloutRequest) -> StartRolloutResponse;
        list_rollouts(ListRolloutsRequest) -> ListRolloutsResponse;
        approve_rollout(ApproveRolloutRequest) -> ApproveRolloutResponse;
        pause_rollout(PauseRolloutRequest) -> PauseRolloutResponse;
        resume_rollout(ResumeRolloutRequest) -> ResumeRolloutResponse;
        cancel_rollout(CancelRolloutRequest) -> CancelRolloutResponse;
        retry_rollout(RetryRolloutRequest) -> RetryRolloutResponse;
        skip_node(SkipNodeRequest) -> SkipNodeResponse;
        roll_back_rollout(RollBackRolloutRequest) -> RollBackRolloutResponse;
    }
}

fn rollout(state: S) -> v1::Rollout {
    v1::Rollout { name: "rollouts/r-1".into(), state: state.into(), ..Default::default() }
}

fn told(revision: u64, change: Change) -> Result<v1::WatchRolloutResponse, Status> {
    Ok(v1::WatchRolloutResponse { change: Some(change), revision, ..Default::default() })
}

fn upgrade(revision: u64, state: U) -> Result<v1::WatchRolloutResponse, Status> {
    let upgrade = v1::Upgrade { node: "nodes/a".into(), wave: 1, state: state.into(), ..Default::default() };
    told(revision, Change::Upgrade(upgrade))
}

/// Plays scripts and returns how `wait` ended and from where it asked to go on.
async fn play(streams: Vec<Changes>, timeout: Option<Duration>) -> (Result<Exit>, Vec<u64>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let script = Script {
        rollout: rollout(S::Running),
        streams: Arc::new(Mutex::new(streams.into())),
        ..Default::default()
    };
    let service = RolloutServiceServer::new(script.clone());
    let incoming = TcpListenerStream::new(listener);
    let server =
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let client = Client::plain(address);
    let app = App::new(Globals { quiet: true, timeout, ..Default::default() });
    let exit = existing(&app, &client, "rollouts/r-1", Until::Rest, &WaitArgs::default()).await;
    server.abort();
    let asked = script.asked.lock().unwrap().clone();
    (exit, asked)
}

#[tokio::test]
async fn a_broken_connection_goes_on_after_the_last_revision_seen() {
    let broken = vec![upgrade(3, U::Fetching), Err(Status::unavailable("gone"))];
    let ended = vec![upgrade(4, U::Succeeded), told(5, Change::Rollout(rollout(S::Succeeded)))];
    let (exit, asked) = play(vec![broken, vec![], ended], None).await;
    assert_eq!(exit.unwrap(), Exit::Success);
    assert_eq!(asked, [0, 3, 3]);
}

#[tokio::test]
async fn a_halt_is_not_the_end_while_a_node_is_being_put_back() {
    let changes = vec![
        upgrade(1, U::RollingBack),
        told(2, Change::Rollout(rollout(S::Halted))),
        upgrade(3, U::RolledBack),
        upgrade(4, U::Fetching),
    ];
    let (exit, _) = play(vec![changes], None).await;
    assert_eq!(exit.unwrap(), Exit::RolledBack);
}

#[tokio::test]
async fn silence_ends_at_the_time_out() {
    let (exit, _) = play(vec![], Some(Duration::from_millis(50))).await;
    assert_eq!(exit.unwrap(), Exit::TimedOut);
}

#[tokio::test]
async fn a_caller_who_may_not_watch_is_told_at_once() {
    let refused = vec![Err(Status::permission_denied("no"))];
    let (exit, asked) = play(vec![refused], None).await;
    assert_eq!(exit.unwrap_err().exit, Exit::NotAuthorised);
    assert_eq!(asked.len(), 1);
}
