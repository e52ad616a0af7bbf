//! One address that opens connections without end, and honest agents beside it.
//!
//! In network namespaces, since nothing bounds what comes over loopback.

use std::{
    collections::VecDeque,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use upfleet_api::v1::rollout::State;

use crate::{
    network::{fleet_in, node_at, spec_for},
    support::{Api, netns::Network},
};

/// Idle connections held at the same time.
const IDLE: usize = 1000;
/// What the honest may wait for at most.
const SOON: Duration = Duration::from_secs(5);

/// Holds as many connections as it can until told to stop, and says a byte of a handshake on each now and then.
fn hold_connections(target: SocketAddr, stop: &AtomicBool, opened: &AtomicUsize) {
    let mut held: VecDeque<TcpStream> = VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..100 {
            if let Ok(tcp) = TcpStream::connect_timeout(&target, Duration::from_secs(1)) {
                opened.fetch_add(1, Ordering::Relaxed);
                held.push_back(tcp);
            }
        }
        while held.len() > IDLE {
            held.pop_front();
        }
        for tcp in held.iter_mut().step_by(7) {
            let _ = tcp.write(&[0x16]);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test]
async fn idle_connections_of_one_address_lock_nobody_out() {
    let Some(network) = Network::enter("idle_connections_of_one_address_lock_nobody_out", 2) else { return };
    let fleet = fleet_in(&network).await;
    let mut node = node_at(&fleet, &network, 0, "", None).await;
    let target: SocketAddr = fleet.context().address.parse().unwrap();
    let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let attack = network.at(1, {
        let (stop, opened) = (stop.clone(), opened.clone());
        move || hold_connections(target, &stop, &opened)
    });
    crate::support::eventually_async("the attack to be under way", || async {
        let opened = opened.load(Ordering::Relaxed);
        if opened >= IDLE { Ok(()) } else { Err(opened.to_string()) }
    })
    .await;
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let began = Instant::now();
        Api::connect(fleet.context()).await.node(&node.name).await;
        slowest = slowest.max(began.elapsed());
    }
    // An agent that comes back gets in, and an upgrade takes its way.
    node.kill();
    fleet.api.reach_online(&node.name, false).await;
    node.start();
    let began = Instant::now();
    fleet.api.reach_online(&node.name, true).await;
    let back = began.elapsed();
    let rollout = fleet.api.start(spec_for(&fleet, &node, "1.1.0")).await;
    fleet.api.reach(&rollout, State::Succeeded).await;
    let lost = node.log().matches("no session with the controller").count();
    stop.store(true, Ordering::Relaxed);
    attack.join().unwrap();
    println!(
        "figure: idle_connections {} opened from one address; 20 honest connections took at most {} ms each, an agent was back in {} ms",
        opened.load(Ordering::Relaxed),
        slowest.as_millis(),
        back.as_millis()
    );
    assert!(slowest < SOON && back < SOON, "{slowest:?}, {back:?}");
    assert_eq!(lost, 0, "the honest agent lost no session");
}
