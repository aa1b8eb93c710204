//! A connected stream socket, unix or TCP, perhaps with TLS on it, with bounded waiting.
//!
//! Not here: what travels over it. What holds: connecting, and every read under a [`Deadline`], ends within a given time;
//! a shared reference can be read and written, so that one thread may send while another receives: one of each at a time,
//! which callers see to. With TLS each waits for the other's few microseconds of encryption, and for none of its I/O; what
//! TLS itself has to say meanwhile goes out with the next write.

use super::super::tls;
use crate::serving::Place;
use crate::{Error, Kind, Result};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Received bytes that are decrypted at once: a record of TLS and its header.
const SEALED: usize = 17 << 10;

/// A connected socket.
pub(super) struct Socket {
    raw: Raw,
    tls: Option<Mutex<Encrypted>>,
}

enum Raw {
    /// To a socket file.
    Unix(UnixStream),
    /// To a host, without Nagle's delay.
    Tcp(TcpStream),
}

/// TLS on a socket.
struct Encrypted {
    connection: ClientConnection,
    /// Received and not decrypted yet: these bytes of the buffer. A thread that waits for more has it with it.
    sealed: Vec<u8>,
    start: usize,
    end: usize,
}

impl Socket {
    /// Connects within `timeout`.
    pub(super) fn connect(place: &Place, timeout: Duration) -> Result<Socket> {
        match place {
            Place::Unix(path) => connect_unix(path, timeout)
                .map(|stream| Socket { raw: Raw::Unix(stream), tls: None })
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
                            return Ok(Socket { raw: Raw::Tcp(stream), tls: None });
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
        match &self.raw {
            Raw::Unix(s) => s.set_read_timeout(timeout).and_then(|()| s.set_write_timeout(timeout)),
            Raw::Tcp(s) => s.set_read_timeout(timeout).and_then(|()| s.set_write_timeout(timeout)),
        }
    }

    /// Turns TLS on, within `time`; the server has to be `name`. Whatever was received belongs to before.
    pub(super) fn encrypt(self, config: Arc<ClientConfig>, name: &str, time: Duration) -> Result<Socket> {
        let server = ServerName::try_from(name.to_owned())
            .map_err(|e| Error::invalid(format!("'{name}' cannot be the name in a certificate")).with_source(e))?;
        let failed = |e| tls::failed(&format!("TLS with '{name}'"), e);
        let mut connection = ClientConnection::new(config, server).map_err(|e| failed(io::Error::other(e)))?;
        let mut bounded = Deadline::after(&self, time);
        while connection.is_handshaking() {
            connection.complete_io(&mut bounded).map_err(failed)?;
        }
        let encrypted = Encrypted { connection, sealed: vec![0; SEALED], start: 0, end: 0 };
        Ok(Socket { tls: Some(Mutex::new(encrypted)), ..self })
    }

    /// Receives once at most, and decrypts. `Interrupted`: what came made no whole record yet, and the caller, who may have run
    /// out of time meanwhile, has to ask again. The lock is not held while waiting.
    fn read_sealed(&self, tls: &Mutex<Encrypted>, out: &mut [u8]) -> io::Result<usize> {
        let mut turn = locked(tls);
        let mut has_received = false;
        loop {
            match turn.connection.reader().read(out) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            if turn.start == turn.end {
                if has_received {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let mut sealed = std::mem::take(&mut turn.sealed);
                drop(turn);
                let received = (&self.raw).read(&mut sealed);
                turn = locked(tls);
                turn.sealed = sealed;
                (turn.start, turn.end) = (0, *received.as_ref().unwrap_or(&0));
                received?;
                has_received = true;
            }
            turn.decrypt()?;
        }
    }

    /// Encrypts some of `parts` and sends it whole. The lock is not held while sending; one thread at a time sends.
    fn write_sealed(&self, tls: &Mutex<Encrypted>, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut sealed = Vec::new();
        let mut turn = locked(tls);
        let taken = turn.connection.writer().write_vectored(parts)?;
        while turn.connection.wants_write() {
            turn.connection.write_tls(&mut sealed)?;
        }
        drop(turn);
        (&self.raw).write_all(&sealed)?;
        Ok(taken)
    }

    /// Ends both directions at once; whoever reads or writes wakes up.
    pub(super) fn shut_down(&self) {
        // An error means that the other side was quicker.
        let _ = match &self.raw {
            Raw::Unix(s) => s.shutdown(Shutdown::Both),
            Raw::Tcp(s) => s.shutdown(Shutdown::Both),
        };
    }
}

impl Encrypted {
    /// Gives TLS some of what was received, or the news that nothing more comes.
    fn decrypt(&mut self) -> io::Result<()> {
        let mut rest = self.sealed.get(self.start..self.end).unwrap_or_default();
        let before = rest.len();
        self.connection.read_tls(&mut rest)?;
        self.start += before - rest.len();
        self.connection.process_new_packets().map_err(io::Error::other)?;
        Ok(())
    }
}

/// A panic elsewhere leaves a connection that says so itself.
fn locked(tls: &Mutex<Encrypted>) -> MutexGuard<'_, Encrypted> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
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
        match &self.tls {
            None => (&self.raw).read(out),
            Some(tls) => self.read_sealed(tls, out),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.tls {
            None => (&self.raw).write_vectored(parts),
            Some(tls) => self.write_sealed(tls, parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for &Raw {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Raw::Unix(s) => (&mut &*s).read(out),
            Raw::Tcp(s) => (&mut &*s).read(out),
        }
    }
}

impl Write for &Raw {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Raw::Unix(s) => (&mut &*s).write_vectored(parts),
            Raw::Tcp(s) => (&mut &*s).write_vectored(parts),
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

impl Write for Deadline<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut socket = self.socket;
        socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
