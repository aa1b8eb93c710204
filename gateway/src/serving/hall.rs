//! Event loops on threads of their own, and the listening sockets whose clients they are dealt.
//!
//! ```text
//!   listening sockets -> accept -> a seat -> the next event loop -> Host::serve
//! ```
//! Not here: what is said to clients. What holds: a client lives on one event loop; each keeps its seat until it is gone, and who
//! finds none is turned away; after [`Hall::stop`] nobody is accepted, and the threads end when the last client left.

use super::listener::ListeningSocket;
use crate::export::Peer;
use crate::{Error, Result};
use rustix::net::sockopt::socket_peercred;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

/// So many tasks run between two looks at the sockets: fewer than usual, since one that stays awake counts as running.
const EVENT_INTERVAL: u32 = 8;
/// After a failure to accept, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at everybody.
const LOOK: Duration = Duration::from_secs(1);

/// How a hall is dimensioned.
#[derive(Clone, Copy, Debug)]
pub struct HallOptions {
    /// Whose threads they are, for their names.
    pub name: &'static str,
    /// Event loops.
    pub socket_threads: usize,
    /// Clients at once; more are turned away.
    pub max_connections: u32,
}

/// What a server does in its hall.
pub trait Host: Send + Sync + 'static {
    /// Serves a client from its first byte to its last.
    fn serve(self: Arc<Self>, client: Accepted, stopped: Stopped) -> impl Future<Output = ()> + Send;

    /// What is to be done once a second.
    fn look(&self);

    /// Is told of what no client hears of.
    fn report(&self, error: &Error);
}

/// Tells when the server stops.
pub type Stopped = watch::Receiver<bool>;

/// A client that was accepted, not yet bound to an event loop.
pub struct Accepted {
    /// Counts up from 0.
    pub id: u64,
    /// Which of the hall's sockets it came through.
    pub door: usize,
    /// The connection.
    pub stream: Stream,
}

/// A connection of either family.
pub enum Stream {
    /// Through a socket file.
    Unix(std::os::unix::net::UnixStream),
    /// Through a port.
    Tcp(std::net::TcpStream),
}

impl Accepted {
    /// Whom the kernel says is there.
    #[must_use]
    pub fn peer(&self) -> Peer {
        // A client that is gone already is nobody, and gets no further.
        match &self.stream {
            Stream::Unix(s) => {
                Peer { user: socket_peercred(s).ok().map(|credentials| credentials.uid.as_raw()), ..Peer::default() }
            }
            Stream::Tcp(s) => Peer { address: s.peer_addr().ok().map(|a| a.ip().to_canonical()), ..Peer::default() },
        }
    }
}

/// The threads. Dropping it stops as [`Hall::stop`] and [`Hall::wait`] do.
pub struct Hall {
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Hall {
    /// Lets `host` serve whoever comes through one of `sockets`.
    pub fn open<H: Host>(options: HallOptions, sockets: Vec<ListeningSocket>, host: &Arc<H>) -> Result<Hall> {
        let (stop, stopped) = watch::channel(false);
        let runtimes = (0..options.socket_threads.max(1))
            .map(|_| Builder::new_current_thread().enable_all().event_interval(EVENT_INTERVAL).build())
            .collect::<io::Result<Vec<Runtime>>>()
            .map_err(|e| Error::io("starting an event loop", e))?;
        let max_connections = options.max_connections.max(1);
        let reception = Arc::new(Reception {
            host: Arc::clone(host),
            loops: runtimes.iter().map(|r| r.handle().clone()).collect(),
            seats: Arc::new(Semaphore::new(max_connections as usize)),
            max_connections,
            arrivals: AtomicU64::new(0),
            stopped: stopped.clone(),
        });
        if let Some(first) = runtimes.first() {
            for (door, socket) in sockets.into_iter().enumerate() {
                first.spawn(Arc::clone(&reception).run(door, socket));
            }
            let host = Arc::clone(host);
            first.spawn(async move {
                loop {
                    sleep(LOOK).await;
                    host.look();
                }
            });
        }
        let mut hall = Hall { stop, threads: Vec::new() };
        for (i, runtime) in runtimes.into_iter().enumerate() {
            let (seats, mut stopped) = (Arc::clone(&reception.seats), stopped.clone());
            let everybody_left = async move {
                // An error of either means that the server is gone, which is what is waited for.
                let _ = stopped.wait_for(|is_stopped| *is_stopped).await;
                let _ = seats.acquire_many(max_connections).await;
            };
            let thread = std::thread::Builder::new().name(format!("{}-socket-{i}", options.name));
            let thread = thread.spawn(move || runtime.block_on(everybody_left));
            hall.threads.push(thread.map_err(|e| Error::io("starting a socket thread", e))?);
        }
        Ok(hall)
    }

    /// Accepts nobody any more, and says so to all who serve.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Returns when everybody left; to be called after [`Hall::stop`].
    pub fn wait(&mut self) {
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so; there is nothing left to wait for.
            let _ = thread.join();
        }
    }
}

impl Drop for Hall {
    fn drop(&mut self) {
        self.stop();
        self.wait();
    }
}

/// Accepts clients and deals them out to the event loops.
struct Reception<H> {
    host: Arc<H>,
    loops: Vec<Handle>,
    /// One for each connection; connections keep theirs until they are gone.
    seats: Arc<Semaphore>,
    max_connections: u32,
    arrivals: AtomicU64,
    stopped: Stopped,
}

/// A listening socket on its event loop.
enum Door {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Door {
    fn open(socket: ListeningSocket) -> io::Result<Door> {
        Ok(match socket {
            ListeningSocket::Unix(socket) => Door::Unix(UnixListener::from_std(socket)?),
            ListeningSocket::Tcp(socket) => Door::Tcp(TcpListener::from_std(socket)?),
        })
    }

    async fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Door::Unix(socket) => Stream::Unix(socket.accept().await?.0.into_std()?),
            Door::Tcp(socket) => Stream::Tcp(socket.accept().await?.0.into_std()?),
        })
    }
}

impl<H: Host> Reception<H> {
    async fn run(self: Arc<Self>, door: usize, socket: ListeningSocket) {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            _ = stopped.wait_for(|is_stopped| *is_stopped) => {}
            Err(e) = self.accept_all(door, socket) => self.host.report(&Error::io("listening", e)),
        }
    }

    /// Deals out whoever comes, for ever.
    async fn accept_all(&self, door: usize, socket: ListeningSocket) -> io::Result<()> {
        let listening = Door::open(socket)?;
        for event_loop in self.loops.iter().cycle() {
            let stream = match listening.accept().await {
                Ok(stream) => stream,
                Err(e) => {
                    self.host.report(&Error::io("accepting a connection", e));
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(seat) = Arc::clone(&self.seats).try_acquire_owned() else {
                let open = io::Error::other(format!("{} are open, one more was turned away", self.max_connections));
                self.host.report(&Error::io("too many connections", open));
                continue;
            };
            let id = self.arrivals.fetch_add(1, Ordering::Relaxed);
            let (host, stopped) = (Arc::clone(&self.host), self.stopped.clone());
            event_loop.spawn(async move {
                let _seat = seat;
                host.serve(Accepted { id, door, stream }, stopped).await;
            });
        }
        Ok(())
    }
}
