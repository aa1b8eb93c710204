//! A connected stream socket, unix or TCP, with bounded waiting.
//!
//! Not here: what travels over it. What holds: connecting, and every read under a [`Deadline`], ends within a given time;
//! a shared reference can be read and written, so that one thread may send while another receives.

use super::super::uri::Place;
use crate::{Error, Kind, Result};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A connected socket.
pub(super) enum Socket {
    /// To a socket file.
    Unix(UnixStream),
    /// To a host, without Nagle's delay.
    Tcp(TcpStream),
}

impl Socket {
    /// Connects within `timeout`.
    pub(super) fn connect(place: &Place, timeout: Duration) -> Result<Socket> {
        match place {
            Place::Unix(path) => connect_unix(path, timeout)
                .map(Socket::Unix)
                .map_err(|e| Error::io(format!("connecting to the socket {}", path.display()), e)),
            Place::Tcp(host, port) => {
                let what = || format!("connecting to {host} port {port}");
                let addresses = (host.as_str(), *port)
                    .to_socket_addrs()
                    .map_err(|e| Error::io(what(), e).with_kind(Kind::Unavailable))?;
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in addresses {
                    match TcpStream::connect_timeout(&address, timeout) {
                        Ok(stream) => {
                            stream.set_nodelay(true).map_err(|e| Error::io(what(), e))?;
                            return Ok(Socket::Tcp(stream));
                        }
                        Err(e) => last = e,
                    }
                }
                Err(Error::io(what(), last))
            }
        }
    }

    /// Bounds every later read and write; `None` waits for ever.
    pub(super) fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Socket::Unix(s) => s.set_read_timeout(timeout).and_then(|()| s.set_write_timeout(timeout)),
            Socket::Tcp(s) => s.set_read_timeout(timeout).and_then(|()| s.set_write_timeout(timeout)),
        }
    }

    /// Ends both directions at once; whoever reads or writes wakes up.
    pub(super) fn shut_down(&self) {
        // An error means that the other side was quicker.
        let _ = match self {
            Socket::Unix(s) => s.shutdown(Shutdown::Both),
            Socket::Tcp(s) => s.shutdown(Shutdown::Both),
        };
    }
}

/// A full backlog makes connecting to a unix socket wait; the send timeout bounds that too, but it must be set before.
fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

impl Read for &Socket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(s) => (&mut &*s).read(out),
            Socket::Tcp(s) => (&mut &*s).read(out),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Unix(s) => (&mut &*s).write_vectored(parts),
            Socket::Tcp(s) => (&mut &*s).write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads that all end before one moment, however slowly the other side drips.
pub(super) struct Deadline<'a> {
    socket: &'a Socket,
    until: Instant,
}

impl<'a> Deadline<'a> {
    /// From now on.
    pub(super) fn after(socket: &'a Socket, time: Duration) -> Self {
        Deadline { socket, until: Instant::now() + time }
    }
}

impl Read for Deadline<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_timeout(Some(left))?;
        let mut socket = self.socket;
        socket.read(out)
    }
}
