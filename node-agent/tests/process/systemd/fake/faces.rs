//! The faces of the faked manager on the bus: `Manager`, and `Unit` and `Service` for each unit that was asked for.

use std::{sync::Arc, thread, time::Duration};

use rustix::process::Signal;
use zbus::{
    Connection, DBusError, ObjectPath, ObjectServer, OwnedObjectPath, connection, interface,
    object_server::SignalEmitter,
};

use super::{Shared, service::Service};

const ROOT: &str = "/org/freedesktop/systemd1";

#[derive(Debug, DBusError)]
#[zbus(prefix = "org.freedesktop")]
enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    #[zbus(name = "systemd1.NoSuchUnit")]
    NoSuchUnit(String),
    #[zbus(name = "systemd1.UnitMasked")]
    UnitMasked(String),
    #[zbus(name = "DBus.Error.AccessDenied")]
    Denied(String),
}

/// Puts the manager on the bus at `address`, and whatever units it has.
pub async fn serve(address: &str, shared: Arc<Shared>) -> zbus::Result<Connection> {
    let manager = Manager(Arc::clone(&shared));
    let connection = connection::Builder::address(address)
        .serve_at(ROOT, manager)
        .name("org.freedesktop.systemd1")
        .build()
        .await?;
    let services: Vec<_> = shared.services.lock().unwrap().values().cloned().collect();
    for service in services {
        show(connection.object_server(), &service).await?;
    }
    Ok(connection)
}

async fn show(server: &ObjectServer, service: &Arc<Service>) -> zbus::Result<OwnedObjectPath> {
    let path = unit_path(&service.name);
    server.at(&path, UnitFace(Arc::clone(service))).await?;
    server.at(&path, ServiceFace(Arc::clone(service))).await?;
    Ok(path)
}

fn unit_path(unit: &str) -> OwnedObjectPath {
    let mut path = format!("{ROOT}/unit/");
    for byte in unit.bytes() {
        match byte {
            byte if byte.is_ascii_alphanumeric() => path.push(char::from(byte)),
            byte => path.push_str(&format!("_{byte:02x}")),
        }
    }
    path.try_into().unwrap()
}

struct Manager(Arc<Shared>);

impl Manager {
    fn called(&self, method: &str, unit: &str) -> Result<(), zbus::fdo::Error> {
        self.0.calls.lock().unwrap().push(format!("{method} {unit}").trim().to_owned());
        if self.0.denied.lock().unwrap().contains(method) {
            return Err(zbus::fdo::Error::AccessDenied("Access denied".to_owned()));
        }
        Ok(())
    }

    /// Begins a job, whose end is told by a signal.
    fn job(
        &self,
        (method, unit): (&str, &str),
        emitter: SignalEmitter<'_>,
        work: impl FnOnce(&Arc<Service>) -> &'static str + Send + 'static,
    ) -> Result<OwnedObjectPath, Refusal> {
        self.called(method, unit).map_err(|_| Refusal::Denied("Access denied".to_owned()))?;
        let service = self.0.service(unit);
        match service.standing().load {
            "not-found" => return Err(Refusal::NoSuchUnit(format!("Unit {unit} not found."))),
            "masked" if method != "StopUnit" => {
                return Err(Refusal::UnitMasked(format!("Unit {unit} is masked.")));
            }
            _ => {}
        }
        let id = {
            let mut jobs = self.0.jobs.lock().unwrap();
            *jobs += 1;
            *jobs
        };
        let path: OwnedObjectPath = format!("{ROOT}/job/{id}").try_into().unwrap();
        let (job, emitter, unit) = (path.clone(), emitter.to_owned(), unit.to_owned());
        service.set_job(id);
        let runtime = tokio::runtime::Handle::current();
        thread::spawn(move || {
            // The caller has its answer before the job is over, as a rule.
            thread::sleep(Duration::from_millis(2));
            let result = work(&service);
            service.set_job(0);
            runtime.spawn(async move { Self::job_removed(&emitter, id, job.as_ref(), &unit, result).await });
        });
        Ok(path)
    }
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn subscribe(&self) {}

    async fn load_unit(
        &self,
        name: &str,
        #[zbus(object_server)] server: &ObjectServer,
    ) -> zbus::fdo::Result<OwnedObjectPath> {
        Ok(show(server, &self.0.service(name)).await?)
    }

    fn start_unit(
        &self,
        name: &str,
        _mode: &str,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refusal> {
        self.job(("StartUnit", name), emitter, Service::start)
    }

    fn stop_unit(
        &self,
        name: &str,
        _mode: &str,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refusal> {
        self.job(("StopUnit", name), emitter, |service| service.stop())
    }

    fn restart_unit(
        &self,
        name: &str,
        _mode: &str,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refusal> {
        self.job(("RestartUnit", name), emitter, |service| {
            service.stop();
            service.start()
        })
    }

    fn reset_failed_unit(&self, name: &str) -> Result<(), zbus::fdo::Error> {
        self.called("ResetFailedUnit", name)?;
        self.0.service(name).reset_failed();
        Ok(())
    }

    fn kill_unit(&self, name: &str, _whom: &str, signal: i32) -> Result<(), zbus::fdo::Error> {
        self.called("KillUnit", name)?;
        let signal = if signal == 9 { Signal::KILL } else { Signal::TERM };
        self.0.service(name).signal(signal);
        Ok(())
    }

    fn reload(&self) -> Result<(), zbus::fdo::Error> {
        self.called("Reload", "")?;
        self.0.services.lock().unwrap().values().for_each(|service| service.reload());
        Ok(())
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: ObjectPath<'_>,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

struct UnitFace(Arc<Service>);

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl UnitFace {
    #[zbus(property)]
    fn load_state(&self) -> &str {
        self.0.standing().load
    }
    #[zbus(property)]
    fn active_state(&self) -> &str {
        self.0.standing().active
    }
    #[zbus(property)]
    fn sub_state(&self) -> &str {
        self.0.standing().sub
    }
    #[zbus(property)]
    fn need_daemon_reload(&self) -> bool {
        self.0.standing().outdated
    }
    #[zbus(property)]
    fn job(&self) -> (u32, OwnedObjectPath) {
        let id = self.0.standing().job;
        (id, format!("{ROOT}/job/{id}").try_into().unwrap())
    }
}

struct ServiceFace(Arc<Service>);

/// A command as systemd shows it.
type Shown = (String, Vec<String>, bool, u64, u64, u64, u64, u32, i32, i32);

#[interface(name = "org.freedesktop.systemd1.Service")]
impl ServiceFace {
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> u32 {
        self.0.standing().main_pid
    }
    #[zbus(property, name = "NRestarts")]
    fn n_restarts(&self) -> u32 {
        self.0.standing().restarts
    }
    #[zbus(property)]
    fn result(&self) -> &str {
        self.0.standing().result
    }
    #[zbus(property)]
    fn exec_main_code(&self) -> i32 {
        self.0.standing().exit.0
    }
    #[zbus(property)]
    fn exec_main_status(&self) -> i32 {
        self.0.standing().exit.1
    }
    #[zbus(property, name = "TimeoutStopUSec")]
    fn timeout_stop_u_sec(&self) -> u64 {
        let limit = self.0.file().span("TimeoutStopSec", Duration::from_secs(90));
        limit.map_or(u64::MAX, |limit| u64::try_from(limit.as_micros()).unwrap())
    }
    #[zbus(property, name = "Type")]
    fn kind(&self) -> String {
        self.0.file().get("Type").unwrap_or("simple").to_owned()
    }
    #[zbus(property)]
    fn exec_start(&self) -> Vec<Shown> {
        let shown =
            |(words, ignored): (Vec<String>, bool)| (words[0].clone(), words, ignored, 0, 0, 0, 0, 0, 0, 0);
        self.0.file().commands("ExecStart").into_iter().map(shown).collect()
    }
    #[zbus(property)]
    fn environment(&self) -> Vec<String> {
        self.0.file().environment().into_iter().map(|(key, value)| format!("{key}={value}")).collect()
    }
    #[zbus(property)]
    fn environment_files(&self) -> Vec<(String, bool)> {
        self.0.file().all("EnvironmentFile").iter().map(|path| (path.clone(), false)).collect()
    }
}
