//! Secrets do not reach the logs: canaries are looked for in all that is written while a fleet is set up.

use std::{
    io,
    sync::{Arc, Mutex},
};

use rcgen::KeyPair;
use tracing_subscriber::fmt::MakeWriter;
use upfleet_api::v1;

use super::support::{Agent, Controller, enroll_request, hello};

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Written {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// The test's runtime has one thread, so that the thread's subscriber hears all of the controller.
#[tokio::test(flavor = "current_thread")]
async fn no_secret_is_logged() {
    let written = Written::default();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(written.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let controller = Controller::start().await;
    let token = controller.token(v1::CreateEnrollmentTokenRequest::default()).await;
    let key = KeyPair::generate().unwrap();
    let mut enrollment = controller.enrollment().await;
    enrollment.enroll(enroll_request(&token, "web-01", &key)).await.unwrap();
    enrollment.enroll(enroll_request(&token, "web-01", &key)).await.unwrap_err();
    let node = controller.enroll("web-02").await;
    let _agent = Agent::open(&controller, &node, hello("a")).await.unwrap();
    let data = controller.dir.path().join("data");
    let read = |path: &str| std::fs::read_to_string(data.join(path)).unwrap();
    let keys = [read("ca/ca.key"), read("tls/server.key"), controller.admin.key_pem.clone(), node.key_pem];
    controller.running.stop().await;

    let log = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("enrolled a node") && log.contains("\"node_id\":\"web-02\""), "something is logged");
    let lines = keys.iter().filter_map(|pem| pem.lines().nth(1)).map(str::to_owned);
    for canary in lines.chain([token.secret.clone(), token.to_string()]) {
        assert!(!log.contains(&canary), "a secret was logged");
    }
}
