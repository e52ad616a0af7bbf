//! Plain requests about units by name, for the agent's own and its guard's. It waits for no job and decides nothing.

use super::bus::{Bus, Trouble};

/// Systemd, asked over the system's bus.
pub(in crate::supervise) struct Manager(Bus);

impl Manager {
    /// The system's.
    pub(in crate::supervise) fn system() -> Self {
        Self(Bus::default())
    }

    /// Has a unit started; nothing happens to one that runs.
    pub(in crate::supervise) async fn start(&self, unit: &str) -> Result<(), String> {
        let told = |trouble: Trouble| trouble.to_string();
        let manager = self.0.manager().await.map_err(told)?;
        manager.start_unit(unit, "replace").await.map(drop).map_err(Trouble::from).map_err(told)
    }

    /// Forgets that a unit was given up.
    pub(in crate::supervise) async fn reset_failed(&self, unit: &str) -> Result<(), String> {
        let told = |trouble: Trouble| trouble.to_string();
        let manager = self.0.manager().await.map_err(told)?;
        match manager.reset_failed_unit(unit).await.map_err(Trouble::from) {
            // One that was never loaded has not failed.
            Ok(()) | Err(Trouble::Refused { .. }) => Ok(()),
            Err(trouble) => Err(told(trouble)),
        }
    }

    /// The main process of a unit.
    pub(in crate::supervise) async fn main_pid(&self, unit: &str) -> Result<Option<u32>, String> {
        let told = |trouble: Trouble| trouble.to_string();
        let (_, service) = self.0.unit(unit).await.map_err(told)?;
        let pid = service.main_pid().await.map_err(Trouble::from).map_err(told)?;
        Ok((pid != 0).then_some(pid))
    }
}
