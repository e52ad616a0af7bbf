//! The listening sockets that a shim owns: opened before the first process that needs them, kept while no process
//! runs, given to each one that is started. It neither accepts nor connects to anything but a Unix socket's stale file.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown},
            net::UnixStream,
        },
    },
    path::Path,
};

use core::net::SocketAddr;
use rustix::{
    fs::{Mode, OFlags},
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
        sockopt::set_socket_reuseaddr,
    },
};

use super::spec::SocketSpec;
use crate::{config::Listen, exec::owner_number, processes::FileId};

/// How many connections may wait for a process to take them; the kernel's own limit (`somaxconn`) may be lower.
const BACKLOG: i32 = 4096;

/// The sockets that are open.
#[derive(Default)]
pub struct Sockets {
    open: Vec<Open>,
}

/// One of them.
struct Open {
    spec: SocketSpec,
    fd: OwnedFd,
    /// The file that it made, of a Unix socket.
    file: Option<FileId>,
}

impl Sockets {
    /// Opens those of `wanted` that are not open yet. Those that are stay as they are, with what waits in them.
    ///
    /// # Errors
    /// Which can't be opened and why, as a sentence; what was opened for this call is closed again.
    pub fn ensure(&mut self, wanted: &[SocketSpec]) -> Result<(), String> {
        let before = self.open.len();
        for spec in wanted {
            let done = match self.open.iter_mut().find(|open| open.spec.listen == spec.listen) {
                Some(open) if open.spec == *spec => Ok(()),
                Some(open) => open.become_like(spec),
                None => open(spec).map(|open| self.open.push(open)),
            };
            if let Err(error) = done {
                self.open.split_off(before).iter().for_each(Open::unlink);
                return Err(format!("could not listen on `{}`: {error}", spec.listen));
            }
        }
        Ok(())
    }

    /// Gives those of `wanted` that are open their names and permissions back, after a process that wanted others.
    pub fn restore(&mut self, wanted: &[SocketSpec]) {
        let open = wanted.iter().filter(|spec| self.open.iter().any(|open| open.spec.listen == spec.listen));
        let open: Vec<SocketSpec> = open.cloned().collect();
        if let Err(problem) = self.ensure(&open) {
            eprintln!("upfleet-agent shim: {problem}");
        }
    }

    /// The open socket that keeps `wanted` from being opened.
    #[must_use]
    pub fn in_the_way_of(&self, wanted: &SocketSpec) -> Option<&SocketSpec> {
        let mut specs = self.open.iter().map(|open| &open.spec);
        if specs.clone().any(|spec| spec.listen == wanted.listen) {
            return None;
        }
        specs.find(|spec| spec.listen.collides(&wanted.listen))
    }

    /// Copies of the descriptors of `wanted`, in that order.
    ///
    /// # Errors
    /// Where one is not open, or no descriptor is left.
    pub fn copies(&self, wanted: &[SocketSpec]) -> io::Result<Vec<OwnedFd>> {
        let copy = |spec: &SocketSpec| {
            let found = self.open.iter().find(|open| open.spec.listen == spec.listen);
            found.ok_or_else(|| io::Error::from(ErrorKind::NotFound))?.fd.try_clone()
        };
        wanted.iter().map(copy).collect()
    }

    /// Closes all but `wanted`. Processes that have them keep their own copies.
    pub fn keep_only(&mut self, wanted: &[SocketSpec]) {
        self.open.retain(|open| {
            let stays = wanted.iter().any(|wanted| wanted.listen == open.spec.listen);
            if !stays {
                open.unlink();
            }
            stays
        });
    }
}

impl Open {
    /// Another name or other permissions: the socket stays, and what waits in it. Where its file is gone or is another
    /// one, nobody finds it any more, and it is opened anew.
    fn become_like(&mut self, spec: &SocketSpec) -> io::Result<()> {
        if let (Listen::Unix(path), Some(own)) = (&spec.listen, self.file) {
            match look(path) {
                Ok((file, metadata)) if FileId::of(&metadata) == own => permit(&file, spec)?,
                _ => *self = open(spec)?,
            }
        }
        self.spec = spec.clone();
        Ok(())
    }

    /// Removes its file, unless that is somebody else's by now. No other file can have the number of this one while the
    /// socket is open.
    fn unlink(&self) {
        if let (Listen::Unix(path), Some(own)) = (&self.spec.listen, self.file)
            && fs::symlink_metadata(path).is_ok_and(|metadata| FileId::of(&metadata) == own)
        {
            let _ = fs::remove_file(path);
        }
    }
}

fn open(spec: &SocketSpec) -> io::Result<Open> {
    let (fd, file) = match &spec.listen {
        Listen::Tcp(address) => (tcp(address)?, None),
        Listen::Unix(path) => unix(path, spec).map(|(fd, file)| (fd, Some(file)))?,
    };
    Ok(Open { spec: spec.clone(), fd, file })
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

fn unix(path: &Path, spec: &SocketSpec) -> io::Result<(OwnedFd, FileId)> {
    clear_stale(path)?;
    let socket = stream(AddressFamily::UNIX)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    let (file, metadata) = look(path)?;
    if metadata.nlink() != 1 {
        // Who may write into the directory has put another name of something in the place of what was just made.
        return Err(io::Error::new(ErrorKind::AlreadyExists, "somebody else's socket lies there"));
    }
    let opened = Open { spec: spec.clone(), fd: socket, file: Some(FileId::of(&metadata)) };
    // Nobody can connect before `listen`, so the file is never reachable with other permissions than these.
    if let Err(error) = permit(&file, spec).and_then(|()| Ok(listen(&opened.fd, BACKLOG)?)) {
        opened.unlink();
        return Err(error);
    }
    Ok((opened.fd, FileId::of(&metadata)))
}

/// The socket's file that lies at `path`: no link is followed, and the file is opened for nothing but its own name
/// and permissions.
fn look(path: &Path) -> io::Result<(File, fs::Metadata)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if metadata.file_type().is_socket() { Ok((file, metadata)) } else { Err(no_socket()) }
}

/// A path that leads to this very file, whatever lies in its place.
fn magic(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Gives a Unix socket's file its owner and permissions; the owner first, since changing it clears bits of the mode.
fn permit(file: &File, spec: &SocketSpec) -> io::Result<()> {
    let number =
        |name: &Option<String>, table| name.as_ref().map(|name| owner_number(name, table)).transpose();
    let (owner, group) = (number(&spec.owner, "/etc/passwd")?, number(&spec.group, "/etc/group")?);
    if owner.is_some() || group.is_some() {
        chown(magic(file), owner, group)?;
    }
    fs::set_permissions(magic(file), fs::Permissions::from_mode(spec.mode & 0o777))
}

fn no_socket() -> io::Error {
    io::Error::new(ErrorKind::AlreadyExists, "something that is no socket lies there")
}

/// Removes the file of a socket on which nobody listens any more. Anything else stays, and is said.
fn clear_stale(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(no_socket());
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
    fn no_link_is_followed_and_what_somebody_else_put_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("sock"), dir.path().join("victim"));
        fs::write(&victim, "").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o640)).unwrap();
        let mut sockets = Sockets::default();
        sockets.ensure(&[at(&path)]).unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        let other = SocketSpec { mode: 0o666, ..at(&path) };
        assert!(sockets.ensure(std::slice::from_ref(&other)).unwrap_err().contains("no socket"));
        assert_eq!(fs::metadata(&victim).unwrap().permissions().mode() & 0o777, 0o640);
        // Also to a socket of somebody else's.
        let theirs = UnixListener::bind(dir.path().join("theirs")).unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(dir.path().join("theirs"), &path).unwrap();
        assert!(look(&path).is_err());
        drop(theirs);
        // Where nothing is in the way it is opened anew.
        fs::remove_file(&path).unwrap();
        sockets.ensure(std::slice::from_ref(&other)).unwrap();
        UnixStream::connect(&path).unwrap();
        // Somebody else listens at the path by now.
        fs::remove_file(&path).unwrap();
        let stranger = UnixListener::bind(&path).unwrap();
        sockets.keep_only(&[]);
        UnixStream::connect(&path).unwrap();
        drop(stranger);
    }

    #[test]
    fn permissions_that_only_a_dismissed_process_wanted_are_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let mut sockets = Sockets::default();
        sockets.ensure(&[at(&path)]).unwrap();
        sockets.ensure(&[SocketSpec { mode: 0o666, ..at(&path) }]).unwrap();
        sockets.restore(&[at(&path), at(&dir.path().join("other"))]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!dir.path().join("other").exists(), "nothing is opened for that");
    }

    #[test]
    fn what_is_in_the_way_is_known_before_it_is_tried() {
        let tcp =
            |text: &str| SocketSpec { listen: Listen::Tcp(text.parse().unwrap()), ..at(Path::new("/")) };
        let mut sockets = Sockets::default();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        sockets.ensure(&[tcp(&free.to_string())]).unwrap();
        let wide = tcp(&format!("0.0.0.0:{}", free.port()));
        assert_eq!(sockets.in_the_way_of(&wide), Some(&tcp(&free.to_string())));
        assert_eq!(sockets.in_the_way_of(&tcp(&free.to_string())), None);
        assert_eq!(sockets.in_the_way_of(&tcp("127.0.0.1:1")), None);
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
