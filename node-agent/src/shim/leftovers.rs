//! What a shim that was itself killed has left running, and how the next one ends it.
//!
//! Such a process can't be adopted: nobody reads its output any more, and nobody but its parent learns how
//! it ends. It is found by the dead shim's session, which its descendants share.

use std::{io, time::Duration};

use super::{child::kill_all, spec::Record};
use crate::processes::{self, Identity};

impl Record {
    /// Puts this shim's session on record, before it starts anything.
    ///
    /// # Errors
    /// Where `/proc` is not there.
    pub fn begin_shim(&mut self) -> io::Result<()> {
        self.shim = Some(Identity::of(std::process::id())?);
        self.process = None;
        Ok(())
    }

    /// Kills what the shim on record has left; answers whether nothing is left. The caller holds the lock of
    /// the directory, so that shim is dead.
    pub fn end_leftovers(&self, limit: Duration) -> bool {
        let Some(shim) = &self.shim else { return true };
        if processes::boot_id().is_ok_and(|boot_id| boot_id != shim.boot_id) {
            return true;
        }
        kill_all(limit, || find(shim, self.process.as_ref()))
    }
}

fn find(shim: &Identity, process: Option<&Identity>) -> Vec<Identity> {
    let all = processes::all();
    // Another process of that number: it was given away, which the kernel does only once the whole old session
    // is gone. The shim itself may still be there as well, dead and not collected.
    let given_away = all.get(&shim.pid).is_some_and(|stat| stat.start_time != shim.start_time);
    let of_session = all.iter().filter(|(_, stat)| {
        !given_away && stat.session == shim.pid && stat.start_time >= shim.start_time && stat.is_running()
    });
    let identity = |pid: u32, start_time: u64| Identity { boot_id: shim.boot_id.clone(), pid, start_time };
    let mut found: Vec<Identity> = of_session.map(|(pid, stat)| identity(*pid, stat.start_time)).collect();
    found.extend(process.filter(|process| process.is_running() && !found.contains(process)).cloned());
    found
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::Signal;

    use super::*;

    /// A killed shim stays in `/proc` until its parent collects it, which may be late or never.
    #[test]
    fn what_a_dead_shim_has_left_is_found_before_the_shim_is_collected() {
        let mut shim = Command::new("setsid").args(["sh", "-c", "sleep 60 & exit 0"]).spawn().unwrap();
        let identity = Identity::of(shim.id()).unwrap();
        while identity.is_running() {
            std::thread::yield_now();
        }
        let left = find(&identity, None);
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].signal(Signal::KILL));
        shim.wait().unwrap();
    }
}
