//! Where a server listens: a socket file or a TCP port, opened with care and closed without traces, or a socket that somebody
//! else opened.
//!
//! Not here: what is said to clients. What holds: a socket file that somebody listens on is never taken over, a dead one is
//! replaced; a socket file is never more open than its mode says; only our own file is removed, and never the one of a
//! socket that was handed in.

use crate::{Error, Kind, Result};
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::net::sockopt::{
    set_socket_keepalive, set_socket_send_buffer_size, set_tcp_keepidle, socket_acceptconn, socket_domain, socket_type,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use std::fmt;
use std::fs::{self, File, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Clients that connect at the same moment.
const BACKLOG: i32 = 128;
/// A TCP peer that is silent for so long is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A socket file.
    Unix(PathBuf),
    /// A host name or address (IPv6 without brackets) and a port.
    Tcp(String, u16),
}

impl fmt::Display for Place {
    /// As in `--listen`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
            Place::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Place::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// Where to listen.
#[derive(Clone, Debug)]
pub enum Listener {
    /// A socket file with these permission bits.
    Unix {
        /// Its path; the directory must exist.
        path: PathBuf,
        /// Permission bits, such as 0o600.
        mode: u32,
    },
    /// An address and port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A socket that listens already, unix or TCP, such as systemd hands to a service.
    Inherited(Arc<OwnedFd>),
}

/// A socket that listens.
pub struct Listening {
    /// The socket.
    pub socket: ListeningSocket,
    /// Where it can be reached.
    pub place: Place,
    /// Removed when it goes away.
    pub file: Option<SocketFile>,
}

/// One of either family.
pub enum ListeningSocket {
    /// A socket file's.
    Unix(UnixListener),
    /// A port's.
    Tcp(TcpListener),
}

/// A socket file that is ours.
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_some_and(|now| now == self.identity) {
            // It may be gone by now; the next server replaces a dead file anyway.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Begins to listen. A port or a socket that somebody listens on is `Locked`.
    pub fn open(&self) -> Result<Listening> {
        match self {
            Listener::Unix { path, mode } => {
                let socket = open_unix(path, *mode)?;
                let identity = identity(path);
                let file = identity.map(|identity| SocketFile { path: path.clone(), identity });
                Ok(Listening { socket: ListeningSocket::Unix(socket), place: Place::Unix(path.clone()), file })
            }
            Listener::Tcp(address) => {
                let failed = |e: io::Error| match e.kind() {
                    io::ErrorKind::AddrInUse => {
                        let text = format!("{address} is in use; choose another port, or stop what listens there");
                        Error::new(Kind::Locked, text).with_source(e)
                    }
                    io::ErrorKind::AddrNotAvailable => {
                        Error::invalid(format!("{address} is not an address of this host")).with_source(e)
                    }
                    _ => Error::io(format!("listening on {address}"), e),
                };
                let socket = TcpListener::bind(address).map_err(failed)?;
                socket.set_nonblocking(true).map_err(failed)?;
                let local = socket.local_addr().map_err(failed)?;
                let place = Place::Tcp(local.ip().to_string(), local.port());
                Ok(Listening { socket: ListeningSocket::Tcp(socket), place, file: None })
            }
            Listener::Inherited(socket) => inherited(socket),
        }
    }
}

/// Takes a socket over that somebody else opened. What does not listen for streams is `Invalid`.
fn inherited(socket: &OwnedFd) -> Result<Listening> {
    let failed =
        |e: io::Error| Error::invalid("the socket that was handed over is not one to listen on").with_source(e);
    if socket_type(socket).map_err(|e| failed(e.into()))? != SocketType::STREAM
        || !socket_acceptconn(socket).map_err(|e| failed(e.into()))?
    {
        return Err(Error::invalid("the socket that was handed over is not a stream socket that listens"));
    }
    let own = socket.try_clone().map_err(failed)?;
    match socket_domain(socket).map_err(|e| failed(e.into()))? {
        AddressFamily::UNIX => {
            let socket = UnixListener::from(own);
            socket.set_nonblocking(true).map_err(failed)?;
            let address = socket.local_addr().map_err(failed)?;
            let path = address.as_pathname().map_or_else(PathBuf::new, Path::to_path_buf);
            Ok(Listening { socket: ListeningSocket::Unix(socket), place: Place::Unix(path), file: None })
        }
        AddressFamily::INET | AddressFamily::INET6 => {
            let socket = TcpListener::from(own);
            socket.set_nonblocking(true).map_err(failed)?;
            let local = socket.local_addr().map_err(failed)?;
            let place = Place::Tcp(local.ip().to_string(), local.port());
            Ok(Listening { socket: ListeningSocket::Tcp(socket), place, file: None })
        }
        _ => Err(Error::invalid("the socket that was handed over is neither unix nor TCP")),
    }
}

/// The lock on the directory keeps two servers from both finding the same dead file.
fn open_unix(path: &Path, mode: u32) -> Result<UnixListener> {
    let failed = |e: io::Error| Error::io(format!("listening on the socket {}", path.display()), e);
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = File::open(directory).map_err(failed)?;
    flock(&directory, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
    make_way(path)?;
    let listener = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // The file gets its mode from the socket, less the umask; set before, it is never too open.
        fchmod(&socket, Mode::from_raw_mode(mode))?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        listen(&socket, BACKLOG)?;
        Ok(UnixListener::from(socket))
    };
    listener().map_err(failed)
}

/// Removes a socket file that nobody listens on.
fn make_way(path: &Path) -> Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(format!("looking at {}", path.display()), e)),
    };
    if !found.file_type().is_socket() {
        let text = format!("{} exists and is not a socket; choose another path", path.display());
        return Err(Error::new(Kind::Locked, text));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|e| Error::io(format!("removing the dead socket {}", path.display()), e))
        }
        _ => {
            let text = format!("somebody listens on {}; choose another path, or stop that server", path.display());
            Err(Error::new(Kind::Locked, text))
        }
    }
}

/// Device and inode of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// What the kernel holds of a reply that a local client has not taken yet: with the default of 208 KiB the two sides take turns at a
/// reply of a MiB, waking each other several times. The kernel may allow less.
const SEND_BUFFER: usize = 1 << 20;

/// Sets a fresh connection of a local client up.
pub fn tuned_local(stream: UnixStream) -> io::Result<tokio::net::UnixStream> {
    set_socket_send_buffer_size(&stream, SEND_BUFFER)?;
    tokio::net::UnixStream::from_std(stream)
}

/// Sets a fresh TCP connection up: no delays, and a dead peer is noticed.
pub fn tuned(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    stream.set_nodelay(true)?;
    set_socket_keepalive(&stream, true)?;
    set_tcp_keepidle(&stream, KEEPALIVE)?;
    tokio::net::TcpStream::from_std(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::Unix { path: path.clone(), mode: 0o600 };
        drop(UnixListener::bind(&path).unwrap());
        let open = listener.open().unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(listener.open().map(|_| ()).unwrap_err().kind(), Kind::Locked);
        drop(open);
        assert!(!path.exists());
        fs::write(&path, b"precious").unwrap();
        assert_eq!(listener.open().map(|_| ()).unwrap_err().kind(), Kind::Locked);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_file_that_is_not_ours_any_more_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let open = Listener::Unix { path: path.clone(), mode: 0o600 }.open().unwrap();
        fs::rename(&path, dir.path().join("old")).unwrap();
        fs::write(&path, b"theirs").unwrap();
        drop(open);
        assert!(path.exists());
    }

    #[test]
    fn a_socket_of_somebody_else_is_used_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let handed = |fd: OwnedFd| Listener::Inherited(Arc::new(fd));
        let unix = handed(UnixListener::bind(&path).unwrap().into());
        let open = unix.open().unwrap();
        assert_eq!(open.place, Place::Unix(path.clone()));
        UnixStream::connect(&path).unwrap();
        drop(open);
        assert!(path.exists());
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        assert_eq!(handed(tcp.into()).open().unwrap().place, Place::Tcp("127.0.0.1".into(), port));
        let (one, _other) = UnixStream::pair().unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = File::open(dir.path()).unwrap();
        for wrong in [OwnedFd::from(one), udp.into(), file.into()] {
            assert_eq!(handed(wrong).open().map(|_| ()).unwrap_err().kind(), Kind::Invalid);
        }
    }

    #[test]
    fn a_port_in_use_is_named() {
        let open = Listener::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))).open().unwrap();
        let Place::Tcp(host, port) = &open.place else { panic!("{:?}", open.place) };
        let again = Listener::Tcp(format!("{host}:{port}").parse().unwrap());
        let error = again.open().map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Locked);
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }
}
