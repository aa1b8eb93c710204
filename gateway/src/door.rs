//! A listening socket with a thread for each of its few callers: for doors that are asked seldom and answer in one go.
//!
//! Not here: what is said; disks, whose server has event loops. What holds: there are [`MAX_CALLERS`] at once at most, and more are
//! turned away; a caller has a time for all it sends, and another for all it is sent, however it deals it out; dropping the
//! door hangs up on everybody and waits for the threads.

use crate::serving::{Listener, Listening, ListeningSocket, Place, SocketFile};
use crate::{Error, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Callers at once.
pub(crate) const MAX_CALLERS: usize = 16;
/// After a failure to accept, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is done with a caller; it is hung up when this returns.
pub(crate) type Serve = Arc<dyn Fn(&mut Caller) + Send + Sync>;

/// An open door.
pub(crate) struct Door {
    place: Place,
    /// Closing it ends the thread.
    end: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    _file: Option<SocketFile>,
}

/// Whoever called. A copy has the same socket and a time of its own.
#[derive(Clone)]
pub(crate) struct Caller {
    socket: Arc<OwnedFd>,
    deadline: Instant,
}

impl Door {
    /// Listens at `listener`, and lets `serve` answer each caller on a thread of its own, `patience` long. A place in use is `Locked`.
    pub(crate) fn open(listener: &Listener, name: &'static str, patience: Duration, serve: Serve) -> Result<Door> {
        let Listening { socket, place, file } = listener.open()?;
        let (end, ended) = UnixStream::pair().map_err(|e| Error::io("making a pair of sockets", e))?;
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || accept(&socket, &ended, name, patience, &serve));
        let thread = thread.map_err(|e| Error::io("starting a thread that listens", e))?;
        Ok(Door { place, end: Some(end), thread: Some(thread), _file: file })
    }

    /// Where it is; with the port that was chosen.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.end = None;
        // A thread that panicked has said so; there is nothing left to wait for.
        self.thread.take().map(JoinHandle::join);
    }
}

/// Accepts callers until `ended` is closed on the other side.
fn accept(listening: &ListeningSocket, ended: &UnixStream, name: &str, patience: Duration, serve: &Serve) {
    let mut callers: Vec<(Arc<OwnedFd>, JoinHandle<()>)> = Vec::new();
    loop {
        let mut events = [PollFd::new(ended, PollFlags::IN), PollFd::new(listening, PollFlags::IN)];
        // A signal may interrupt it; the sockets then say that nothing is there.
        let _ = poll(&mut events, None);
        if !events[0].revents().is_empty() {
            break;
        }
        let socket = match listening.accept() {
            Ok(socket) => Arc::new(socket),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => {
                std::thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        callers.retain(|(_, thread)| !thread.is_finished());
        if callers.len() >= MAX_CALLERS {
            continue;
        }
        let (serve, own) = (Arc::clone(serve), Arc::clone(&socket));
        let run = move || {
            let mut caller = Caller { socket: own, deadline: Instant::now() };
            caller.give(patience);
            serve(&mut caller);
            // It may have hung up before.
            let _ = shutdown(&caller.socket, Shutdown::Both);
        };
        // Without a thread the caller is turned away, by dropping its socket.
        if let Ok(thread) = std::thread::Builder::new().name(format!("{name}-caller")).spawn(run) {
            callers.push((socket, thread));
        }
    }
    for (socket, thread) in callers {
        // One that is gone needs no hanging up; one that panicked has said so.
        let _ = shutdown(&socket, Shutdown::Both);
        let _ = thread.join();
    }
}

impl ListeningSocket {
    fn accept(&self) -> io::Result<OwnedFd> {
        let socket: OwnedFd = match self {
            ListeningSocket::Unix(socket) => socket.accept()?.0.into(),
            ListeningSocket::Tcp(socket) => socket.accept()?.0.into(),
        };
        // Inherited from the listener on some systems; a caller's thread may block.
        rustix::io::ioctl_fionbio(&socket, false)?;
        Ok(socket)
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            ListeningSocket::Unix(socket) => socket.as_fd(),
            ListeningSocket::Tcp(socket) => socket.as_fd(),
        }
    }
}

impl Caller {
    /// Gives it so much time from now on.
    pub(crate) fn give(&mut self, patience: Duration) {
        self.deadline = Instant::now() + patience;
    }

    /// The user that it runs as, as the kernel tells; `None` for one that comes over the network.
    pub(crate) fn user(&self) -> Option<u32> {
        let is_local = rustix::net::sockopt::socket_domain(&self.socket).ok()? == rustix::net::AddressFamily::UNIX;
        if !is_local {
            return None;
        }
        socket_peercred(&self.socket).ok().map(|credentials| credentials.uid.as_raw())
    }

    /// Lets the next operation take no longer than there is time.
    fn arm(&self, which: Timeout) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(1) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(set_socket_timeout(&self.socket, which, Some(left))?)
    }
}

impl Read for Caller {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.arm(Timeout::Recv)?;
        Ok(recv(&self.socket, out, RecvFlags::empty())?.0)
    }
}

impl Write for Caller {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.arm(Timeout::Send)?;
        Ok(send(&self.socket, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
