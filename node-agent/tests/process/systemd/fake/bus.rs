//! A private `dbus-daemon` with a configuration of its own, which ends with its value.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

/// The daemon.
pub struct Daemon(Child);

/// Where a daemon of `dir` listens.
pub fn address(dir: &Path) -> String {
    format!("unix:path={}", dir.join("bus").display())
}

impl Daemon {
    /// Starts one that listens in `dir`; `None` where there is no such program.
    pub fn start(dir: &Path) -> Option<Self> {
        let config = dir.join("bus.conf");
        let text = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n<busconfig>\n\
             <listen>{}</listen>\n<auth>EXTERNAL</auth>\n<policy context=\"default\">\n\
             <allow send_destination=\"*\" eavesdrop=\"true\"/>\n<allow eavesdrop=\"true\"/>\n<allow own=\"*\"/>\n\
             </policy>\n</busconfig>\n",
            address(dir)
        );
        std::fs::write(&config, text).unwrap();
        // What a daemon that was killed has left is no socket any more.
        let _ = std::fs::remove_file(dir.join("bus"));
        let mut command = Command::new("dbus-daemon");
        command.arg(format!("--config-file={}", config.display())).args(["--nofork", "--print-address"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().ok()?;
        let mut line = String::new();
        // It prints its address once it listens.
        BufReader::new(child.stdout.take()?).read_line(&mut line).ok().filter(|length| *length > 0)?;
        Some(Self(child))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
