//! systemd's manager, faked: a private bus, and `org.freedesktop.systemd1` on it, which reads unit files, really starts
//! processes, restarts them, keeps start limits and kills whole control groups. It must never touch this machine's own
//! systemd or bus.
//!
//! A control group is every process that has the unit's invocation id in its environment, whoever its parent is.

#![expect(dead_code, reason = "each test that includes this uses a part of it")]

mod bus;
mod faces;
mod service;
mod unit_file;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use tempfile::TempDir;
use tokio::runtime::Runtime;

use bus::Daemon;
use service::Service;
pub use service::Standing;

/// The manager. Its processes, its bus and its files end with it.
pub struct FakeSystemd {
    dir: TempDir,
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
    daemon: Mutex<Option<Daemon>>,
    connection: Mutex<Option<zbus::Connection>>,
}

/// What the manager's faces on the bus share.
struct Shared {
    units_dir: PathBuf,
    services: Mutex<BTreeMap<String, Arc<Service>>>,
    /// Methods that are refused, as polkit would.
    denied: Mutex<BTreeSet<String>>,
    /// What was called, as `Method unit`.
    calls: Mutex<Vec<String>>,
    jobs: Mutex<u32>,
}

impl FakeSystemd {
    /// Starts it; `None` where this machine has no `dbus-daemon`.
    pub fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(dir.path())?;
        let units_dir = dir.path().join("units");
        std::fs::create_dir(&units_dir).unwrap();
        let shared = Shared {
            units_dir,
            services: Mutex::default(),
            denied: Mutex::default(),
            calls: Mutex::default(),
            jobs: Mutex::default(),
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let own = Self {
            dir,
            runtime: Some(runtime),
            shared: Arc::new(shared),
            daemon: Mutex::new(Some(daemon)),
            connection: Mutex::default(),
        };
        own.serve();
        Some(own)
    }

    /// The bus's address, for `DBUS_SYSTEM_BUS_ADDRESS`.
    pub fn address(&self) -> String {
        bus::address(self.dir.path())
    }

    /// Where unit files and their drop-ins lie.
    pub fn units_dir(&self) -> PathBuf {
        self.shared.units_dir.clone()
    }

    /// Writes a unit's file, as an operator would, with a reload.
    pub fn install(&self, unit: &str, text: &str) {
        std::fs::write(self.shared.units_dir.join(unit), text).unwrap();
        self.reload();
    }

    /// `systemctl mask`.
    pub fn mask(&self, unit: &str) {
        let path = self.shared.units_dir.join(unit);
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink("/dev/null", path).unwrap();
        self.reload();
    }

    /// `systemctl daemon-reload`.
    pub fn reload(&self) {
        self.shared.services.lock().unwrap().values().for_each(|service| service.reload());
    }

    /// `systemctl start`, with the result of the job.
    pub fn operator_starts(&self, unit: &str) -> &'static str {
        self.service(unit).start()
    }

    /// `systemctl start --no-block`.
    pub fn begins(&self, unit: &str) {
        let service = self.service(unit);
        std::thread::spawn(move || service.start());
    }

    /// `systemctl stop`.
    pub fn operator_stops(&self, unit: &str) -> &'static str {
        self.service(unit).stop()
    }

    /// `systemctl restart`.
    pub fn operator_restarts(&self, unit: &str) -> &'static str {
        self.service(unit).stop();
        self.service(unit).start()
    }

    /// `systemctl start` of the socket unit of a service; says where it listens.
    pub fn operator_opens_socket(&self, unit: &str) -> std::net::SocketAddr {
        self.service(unit).listen_for()
    }

    /// Ends all units at once, and leaves them as after a boot that starts nothing.
    pub fn loses_power(&self) {
        let services: Vec<_> = self.shared.services.lock().unwrap().values().cloned().collect();
        services.iter().for_each(|service| service.end());
    }

    /// `systemctl show`.
    pub fn standing(&self, unit: &str) -> Standing {
        self.service(unit).standing()
    }

    /// What the unit's processes have printed.
    pub fn journal(&self, unit: &str) -> String {
        std::fs::read_to_string(self.service(unit).journal()).unwrap_or_default()
    }

    /// Has a method of the manager refused from now on, or allowed again.
    pub fn deny(&self, method: &str, denied: bool) {
        let mut all = self.shared.denied.lock().unwrap();
        if denied {
            all.insert(method.to_owned())
        } else {
            all.remove(method)
        };
    }

    /// What was called over the bus, as `Method unit`.
    pub fn calls(&self) -> Vec<String> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// Ends the bus, with every connection to it. The units go on.
    pub fn end_bus(&self) {
        drop(self.daemon.lock().unwrap().take());
        drop(self.connection.lock().unwrap().take());
    }

    /// Starts it again, at the same address.
    pub fn begin_bus(&self) {
        *self.daemon.lock().unwrap() = Some(Daemon::start(self.dir.path()).unwrap());
        self.serve();
    }

    fn service(&self, unit: &str) -> Arc<Service> {
        self.shared.service(unit)
    }

    /// Puts the manager on the bus.
    fn serve(&self) {
        let runtime = self.runtime.as_ref().unwrap();
        let (address, shared) = (self.address(), Arc::clone(&self.shared));
        let serving = runtime.spawn(async move { faces::serve(&address, shared).await });
        // Neither blocks a runtime that the test may be in, nor needs one.
        let (sender, receiver) = std::sync::mpsc::channel();
        runtime.spawn(async move { sender.send(serving.await.unwrap().unwrap()) });
        *self.connection.lock().unwrap() = Some(receiver.recv().unwrap());
    }
}

impl Shared {
    /// A unit, loaded if need be. One without a file is `not-found`.
    fn service(&self, unit: &str) -> Arc<Service> {
        let mut services = self.services.lock().unwrap();
        let service =
            services.entry(unit.to_owned()).or_insert_with(|| Arc::new(Service::load(&self.units_dir, unit)));
        Arc::clone(service)
    }
}

impl Drop for FakeSystemd {
    fn drop(&mut self) {
        let services: Vec<_> = self.shared.services.lock().unwrap().values().cloned().collect();
        services.iter().for_each(|service| service.end());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
