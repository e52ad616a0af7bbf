//! What a shim that was itself killed has left running, and how the next one ends it.
//!
//! Such a process can't be adopted: nobody reads its output any more, and nobody but its parent learns how
//! it ends. It is found by the dead shim's session, which its descendants share; by the record, which names the shim's
//! processes; and by the mark of the shim in its environment, where it was started with the shim's sockets and has left
//! the session: with one of them open, the next shim could not listen.

use std::{io, time::Duration};

use super::{
    child::kill_all,
    pass::{SHIM, of_shim},
    spec::Record,
    tree::variable,
};
use crate::processes::{self, Identity};

impl Record {
    /// Puts this shim's session on record, before it starts anything.
    ///
    /// # Errors
    /// Where `/proc` is not there.
    pub fn begin_shim(&mut self) -> io::Result<()> {
        self.shim = Some(Identity::of(std::process::id())?);
        self.process = None;
        self.besides.clear();
        Ok(())
    }

    /// Kills what the shim on record has left; answers whether nothing is left. The caller holds the lock of
    /// the directory, so that shim is dead.
    pub fn end_leftovers(&self, limit: Duration) -> bool {
        let Some(shim) = &self.shim else { return true };
        if processes::boot_id().is_ok_and(|boot_id| boot_id != shim.boot_id) {
            return true;
        }
        let recorded: Vec<&Identity> = self.process.iter().chain(&self.besides).collect();
        kill_all(limit, || find(shim, &recorded))
    }
}

fn find(shim: &Identity, recorded: &[&Identity]) -> Vec<Identity> {
    let all = processes::all();
    // Another process of that number: it was given away, which the kernel does only once the whole old session
    // is gone. The shim itself may still be there as well, dead and not collected.
    let given_away = all.get(&shim.pid).is_some_and(|stat| stat.start_time != shim.start_time);
    let mark = of_shim(shim);
    let left = all.iter().filter(|(pid, stat)| {
        let of_session = !given_away && stat.session == shim.pid;
        let begun = stat.start_time >= shim.start_time && stat.is_running() && **pid != std::process::id();
        begun && (of_session || variable(**pid, SHIM).is_some_and(|of| of == mark))
    });
    let identity = |pid: u32, start_time: u64| Identity { boot_id: shim.boot_id.clone(), pid, start_time };
    let mut found: Vec<Identity> = left.map(|(pid, stat)| identity(*pid, stat.start_time)).collect();
    for process in recorded {
        if process.is_running() && !found.contains(process) {
            found.push((*process).clone());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

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
        let left = find(&identity, &[]);
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].signal(Signal::KILL));
        shim.wait().unwrap();
    }

    #[test]
    fn what_has_left_a_dead_shims_session_is_found_by_its_mark_or_on_record() {
        let mut shim =
            Command::new("setsid").args(["sh", "-c", "read _"]).stdin(Stdio::piped()).spawn().unwrap();
        let identity = Identity::of(shim.id()).unwrap();
        drop(shim.stdin.take());
        shim.wait().unwrap();
        let sleep = |mark: String| Command::new("/bin/sleep").arg("60").env(SHIM, mark).spawn().unwrap();
        let mut marked = sleep(of_shim(&identity));
        let mut other = sleep(format!("{}:{}", identity.pid, identity.start_time + 1));
        let (own, not) = (Identity::of(marked.id()).unwrap(), Identity::of(other.id()).unwrap());
        assert_eq!(find(&identity, &[]), std::slice::from_ref(&own));
        assert_eq!(find(&identity, &[&own, &not]), [own, not]);
        for process in [&mut marked, &mut other] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}
