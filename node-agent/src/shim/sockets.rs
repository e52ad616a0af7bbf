//! The listening sockets that a shim owns: opened before the first process that needs them, kept while no process
//! runs, given to each one that is started. It neither accepts nor connects to anything but a Unix socket's stale file.

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt as _, PermissionsExt as _, chown},
            net::UnixStream,
        },
    },
    path::Path,
};

use core::net::SocketAddr;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
    sockopt::set_socket_reuseaddr,
};

use super::spec::SocketSpec;
use crate::{config::Listen, exec::owner_number};

/// How many connections may wait for a process to take them; the kernel's own limit (`somaxconn`) may be lower.
const BACKLOG: i32 = 4096;

/// The sockets that are open.
#[derive(Default)]
pub struct Sockets {
    open: Vec<(SocketSpec, OwnedFd)>,
}

impl Sockets {
    /// Opens those of `wanted` that are not open yet. Those that are stay as they are, with what waits in them.
    ///
    /// # Errors
    /// Which can't be opened and why, as a sentence; what was opened for this call is closed again.
    pub fn ensure(&mut self, wanted: &[SocketSpec]) -> Result<(), String> {
        let before = self.open.len();
        for spec in wanted {
            let done = match self.open.iter_mut().find(|(open, _)| open.listen == spec.listen) {
                Some((open, _)) if open == spec => Ok(()),
                // Another name or other permissions: the socket stays, and what waits in it.
                Some((open, _)) => permit(spec).map(|()| *open = spec.clone()),
                None => open(spec).map(|fd| self.open.push((spec.clone(), fd))),
            };
            if let Err(error) = done {
                let opened = self.open.split_off(before);
                opened.iter().for_each(|(spec, _)| unlink(spec));
                return Err(format!("could not listen on `{}`: {error}", spec.listen));
            }
        }
        Ok(())
    }

    /// Copies of the descriptors of `wanted`, in that order.
    ///
    /// # Errors
    /// Where one is not open, or no descriptor is left.
    pub fn copies(&self, wanted: &[SocketSpec]) -> io::Result<Vec<OwnedFd>> {
        let copy = |spec: &SocketSpec| {
            let found = self.open.iter().find(|(open, _)| open.listen == spec.listen);
            found.ok_or_else(|| io::Error::from(ErrorKind::NotFound))?.1.try_clone()
        };
        wanted.iter().map(copy).collect()
    }

    /// Closes all but `wanted`. Processes that have them keep their own copies.
    pub fn keep_only(&mut self, wanted: &[SocketSpec]) {
        self.open.retain(|(spec, _)| {
            let stays = wanted.iter().any(|wanted| wanted.listen == spec.listen);
            if !stays {
                unlink(spec);
            }
            stays
        });
    }
}

fn unlink(spec: &SocketSpec) {
    if let Listen::Unix(path) = &spec.listen {
        let _ = fs::remove_file(path);
    }
}

fn open(spec: &SocketSpec) -> io::Result<OwnedFd> {
    match &spec.listen {
        Listen::Tcp(address) => tcp(address),
        Listen::Unix(path) => unix(path, spec),
    }
}

fn stream(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

fn tcp(address: &SocketAddr) -> io::Result<OwnedFd> {
    let socket = stream(if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 })?;
    // Connections of the shim before may still be winding down.
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn unix(path: &Path, spec: &SocketSpec) -> io::Result<OwnedFd> {
    clear_stale(path)?;
    let socket = stream(AddressFamily::UNIX)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    // Nobody can connect before `listen`, so the file is never reachable with other permissions than these.
    if let Err(error) = permit(spec).and_then(|()| Ok(listen(&socket, BACKLOG)?)) {
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(socket)
}

/// Gives a Unix socket's file its owner and permissions; the owner first, since changing it clears bits of the mode.
fn permit(spec: &SocketSpec) -> io::Result<()> {
    let Listen::Unix(path) = &spec.listen else { return Ok(()) };
    let number =
        |name: &Option<String>, table| name.as_ref().map(|name| owner_number(name, table)).transpose();
    let (owner, group) = (number(&spec.owner, "/etc/passwd")?, number(&spec.group, "/etc/group")?);
    if owner.is_some() || group.is_some() {
        chown(path, owner, group)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(spec.mode & 0o777))
}

/// Removes the file of a socket on which nobody listens any more. Anything else stays, and is said.
fn clear_stale(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "something that is no socket lies there"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another process listens there")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn at(path: &Path) -> SocketSpec {
        SocketSpec {
            name: "a".into(),
            listen: Listen::Unix(path.into()),
            mode: 0o600,
            owner: None,
            group: None,
        }
    }

    #[test]
    fn a_stale_file_is_replaced_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        drop(UnixListener::bind(&path).unwrap());
        let mut sockets = Sockets::default();
        sockets.ensure(&[at(&path)]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        let problem = Sockets::default().ensure(&[at(&path)]).unwrap_err();
        assert!(problem.contains("another process listens"), "{problem}");
        // The same again opens nothing anew: what waits in it stays.
        sockets.ensure(&[at(&path)]).unwrap();
        assert_eq!(sockets.copies(&[at(&path)]).unwrap().len(), 1);
        let other = SocketSpec { name: "b".into(), mode: 0o640, ..at(&path) };
        sockets.ensure(std::slice::from_ref(&other)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        sockets.keep_only(std::slice::from_ref(&other));
        UnixStream::connect(&path).unwrap();
        sockets.keep_only(&[]);
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        assert!(sockets.ensure(&[at(&path)]).unwrap_err().contains("no socket"));
        assert!(path.exists(), "somebody's file stays");
    }

    #[test]
    fn where_one_can_t_be_opened_none_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good"), dir.path().join("none/bad"));
        let mut sockets = Sockets::default();
        assert!(sockets.ensure(&[at(&good), at(&bad)]).is_err());
        assert!(!good.exists());
    }
}
