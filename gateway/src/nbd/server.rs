//! The NBD server: exports over a unix socket or TCP, to any number of clients.
//!
//! ```text
//!   Server::start     socket threads (one event loop each), storage threads            this file
//!     listener        a socket file, a port, or a socket that was handed over
//!     connections     who is there, for whoever asks; orders to rest or to leave
//!     conversation    one connection from its first byte to its last: the next three in turn
//!     negotiation     which export, which dialect, TLS; bounded in time, number and size
//!     transmission    requests in, replies out; answers from memory at once; waits for an export's limits
//!       session       what a request does to a device
//!       context       what block status tells
//!       reply         how the answer looks
//!     pool            threads that wait for storage, connections taking turns
//!     budget          memory that connections share
//!     reports         what is told, at a bounded rate
//! ```
//! The caller is synchronous: [`Server`] owns its threads and ends them. A connection lives on one socket thread, so that a
//! request answered from memory costs one receive and one send and no hand-over; only what has to wait crosses to the pool.
//!
//! Not here: what TLS goes by ([`super::Tls`]), who may use an export (the exports know), who may connect at all (the socket's
//! permissions and the network decide). What holds: a client can neither crash the server nor make it use more memory than
//! `bytes_in_flight_together` and `max_connections` x about 6 MiB, nor delay others by more than a request per storage thread and a
//! batch per socket thread; an error of a device concerns the request it belongs to.

mod budget;
mod buffer;
mod connections;
mod context;
mod conversation;
mod listener;
mod negotiation;
mod pool;
mod reply;
mod reports;
mod session;
mod transmission;
mod vigil;

pub use connections::ConnectionReport;
pub use listener::Listener;
pub(crate) use listener::{Listening, ListeningSocket, SocketFile};

use super::tls::Tls;
use super::uri::{NbdUri, Place, TlsUri};
use crate::export::{Export, Exports, Peer};
use crate::{Error, Result};
use budget::Budget;
use connections::Connections;
use conversation::converse;
use pool::Pool;
use reports::Reports;
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

/// Between two looks at all connections.
const LOOK: Duration = Duration::from_secs(1);

/// Who hears of errors that no caller sees: a device that failed under a request, a connection that could not be accepted.
/// Called on the server's threads: it must return soon. At most 10 of a kind come in a second, and a count of those left out.
pub type Report = Arc<dyn Fn(&Error) + Send + Sync>;

/// How a server is dimensioned.
#[derive(Clone)]
pub struct ServerOptions {
    /// Threads that talk to sockets.
    pub socket_threads: usize,
    /// Threads that wait for devices.
    pub storage_threads: usize,
    /// Clients at once; more are turned away.
    pub max_connections: u32,
    /// Requests of one connection that may wait for storage.
    pub requests_in_flight: usize,
    /// Bytes that one connection may hold: payloads, and replies that are not sent. A single larger request is let through.
    pub bytes_in_flight: usize,
    /// Bytes that all connections together may hold beyond 1 MiB each; who needs more of it than is left waits. A client that keeps
    /// some of it for 30 s while others wait, and neither reads nor sends a byte, is sent away.
    pub bytes_in_flight_together: usize,
    /// For the whole handshake.
    pub handshake_timeout: Duration,
    /// How long connections may take to finish what is in flight when the server stops.
    pub stop_timeout: Duration,
    /// Encryption; none unless said otherwise.
    pub tls: Option<Tls>,
    /// Told of errors; nobody by default.
    pub report: Option<Report>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            socket_threads: 2,
            storage_threads: 8,
            max_connections: 128,
            requests_in_flight: 128,
            bytes_in_flight: 32 << 20,
            bytes_in_flight_together: 256 << 20,
            handshake_timeout: Duration::from_secs(10),
            stop_timeout: Duration::from_secs(10),
            tls: None,
            report: None,
        }
    }
}

/// What a server did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open_connections: u64,
    /// Requests taken.
    pub requests: u64,
    /// Bytes received in the transmission phase.
    pub bytes_received: u64,
    /// Bytes sent in the transmission phase.
    pub bytes_sent: u64,
}

/// A running server. Dropping it stops it as [`Server::stop`] does.
pub struct Server {
    place: Place,
    services: Arc<Services>,
    stop: watch::Sender<bool>,
    socket_threads: Vec<JoinHandle<()>>,
    file: Option<SocketFile>,
}

/// What connections share.
struct Services {
    exports: Arc<Exports>,
    options: ServerOptions,
    pool: Pool,
    counters: Counters,
    connections: Connections,
    budget: Arc<Budget>,
    reports: Option<Arc<Reports>>,
}

#[derive(Default)]
struct Counters {
    connections: AtomicU64,
    open_connections: AtomicU64,
    requests: AtomicU64,
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
}

impl Counters {
    fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn received(&self, bytes: usize) {
        self.bytes_received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Server {
    /// Listens at `listener` and serves `exports` until stopped. A socket or port in use is `Locked`.
    pub fn start(listener: &Listener, exports: Arc<Exports>, mut options: ServerOptions) -> Result<Server> {
        let Listening { socket, place, file } = listener.open()?;
        let pool = Pool::start(options.storage_threads)?;
        let reports = options.report.take().map(Reports::new);
        options.report = reports.as_ref().map(Reports::as_report);
        let budget = Budget::new(options.bytes_in_flight_together);
        let services = Arc::new(Services {
            exports,
            options,
            pool,
            counters: Counters::default(),
            connections: Connections::default(),
            budget,
            reports,
        });
        let (stop, stopped) = watch::channel(false);
        let runtimes = (0..services.options.socket_threads.max(1))
            .map(|_| Builder::new_current_thread().enable_all().event_interval(EVENT_INTERVAL).build())
            .collect::<io::Result<Vec<Runtime>>>()
            .map_err(|e| Error::io("starting an event loop", e))?;
        let seats = Arc::new(Semaphore::new(services.options.max_connections.max(1) as usize));
        let acceptor = Acceptor {
            services: Arc::clone(&services),
            loops: runtimes.iter().map(|r| r.handle().clone()).collect(),
            seats: Arc::clone(&seats),
            stopped: stopped.clone(),
        };
        if let Some(first) = runtimes.first() {
            first.spawn(acceptor.run(socket));
            first.spawn(Services::look_after(Arc::clone(&services)));
        }
        let mut server = Server { place, services, stop, socket_threads: Vec::new(), file };
        for (i, runtime) in runtimes.into_iter().enumerate() {
            let everybody_left = server.everybody_left(Arc::clone(&seats), stopped.clone());
            let thread = std::thread::Builder::new().name(format!("nbd-socket-{i}"));
            let thread = thread.spawn(move || runtime.block_on(everybody_left));
            server.socket_threads.push(thread.map_err(|e| Error::io("starting a socket thread", e))?);
        }
        Ok(server)
    }

    /// Where clients find it; with the port that was chosen.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The URI of one of its exports.
    #[must_use]
    pub fn uri(&self, export: &str) -> NbdUri {
        let is_required = self.services.options.tls.as_ref().is_some_and(Tls::is_required);
        let tls = is_required.then(TlsUri::default);
        NbdUri { place: self.place.clone(), export: export.to_owned(), tls }
    }

    /// Who is connected now.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionReport> {
        self.services.connections.reports()
    }

    /// Ends the connections that took `export`, once what they have in flight is answered (for `stop_timeout` at most); how many they
    /// are. An export that is still in the table can be taken again.
    pub fn disconnect(&self, export: &Arc<Export>) -> usize {
        self.services.connections.dismiss(export)
    }

    /// What it did so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let c = &self.services.counters;
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Statistics {
            connections: read(&c.connections),
            open_connections: read(&c.open_connections),
            requests: read(&c.requests),
            bytes_received: read(&c.bytes_received),
            bytes_sent: read(&c.bytes_sent),
        }
    }

    /// Accepts nobody any more, lets what is in flight finish (for `stop_timeout` at most), closes all connections and returns
    /// when the last device call did.
    pub fn stop(self) {
        drop(self);
    }

    /// Ends when the server is stopping and all seats are free again.
    fn everybody_left(
        &self,
        seats: Arc<Semaphore>,
        mut stopped: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + use<> {
        let all = self.services.options.max_connections.max(1);
        async move {
            // An error of either means that the server is gone, which is what is waited for.
            let _ = stopped.wait_for(|is_stopped| *is_stopped).await;
            let _ = seats.acquire_many(all).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.services.connections.dismiss_all();
        for thread in self.socket_threads.drain(..) {
            // A thread that panicked has said so; there is nothing left to wait for.
            let _ = thread.join();
        }
        if let Some(reports) = &self.services.reports {
            reports.settle();
        }
        self.file = None;
    }
}

impl Services {
    /// What is to be done once a second, for as long as the event loop runs.
    async fn look_after(self: Arc<Self>) {
        loop {
            sleep(LOOK).await;
            self.connections.look(self.budget.is_wanted());
            if let Some(reports) = &self.reports {
                reports.settle();
            }
        }
    }
}

/// Accepts clients and deals them out to the event loops.
struct Acceptor {
    services: Arc<Services>,
    loops: Vec<Handle>,
    /// One for each connection; connections keep theirs until they are gone.
    seats: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
}

/// A listening socket on its event loop.
enum Door {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A client that was accepted, not yet bound to an event loop.
enum Accepted {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

impl Door {
    fn open(socket: ListeningSocket) -> io::Result<Door> {
        Ok(match socket {
            ListeningSocket::Unix(socket) => Door::Unix(UnixListener::from_std(socket)?),
            ListeningSocket::Tcp(socket) => Door::Tcp(TcpListener::from_std(socket)?),
        })
    }

    async fn accept(&self) -> io::Result<Accepted> {
        Ok(match self {
            Door::Unix(socket) => Accepted::Unix(socket.accept().await?.0.into_std()?),
            Door::Tcp(socket) => Accepted::Tcp(socket.accept().await?.0.into_std()?),
        })
    }
}

impl Accepted {
    /// Whom the kernel says is there.
    fn peer(&self) -> Peer {
        // A client that is gone already is nobody, and gets no further.
        match self {
            Accepted::Unix(s) => {
                Peer { user: socket_peercred(s).ok().map(|credentials| credentials.uid.as_raw()), ..Peer::default() }
            }
            Accepted::Tcp(s) => Peer { address: s.peer_addr().ok().map(|a| a.ip().to_canonical()), ..Peer::default() },
        }
    }
}

impl Acceptor {
    async fn run(self, socket: ListeningSocket) {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            _ = stopped.wait_for(|is_stopped| *is_stopped) => {}
            Err(e) = self.accept_all(socket) => self.report("listening", e),
        }
    }

    /// Deals out whoever comes, for ever.
    async fn accept_all(&self, socket: ListeningSocket) -> io::Result<()> {
        let door = Door::open(socket)?;
        for (id, event_loop) in (0..).zip(self.loops.iter().cycle()) {
            let accepted = match door.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    self.report("accepting a connection", e);
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(seat) = Arc::clone(&self.seats).try_acquire_owned() else {
                let max = self.services.options.max_connections;
                self.report(
                    "too many connections",
                    io::Error::other(format!("{max} are open, one more was turned away")),
                );
                continue;
            };
            let services = Arc::clone(&self.services);
            let stopped = self.stopped.clone();
            event_loop.spawn(async move {
                let _seat = seat;
                let counters = &services.counters;
                counters.connections.fetch_add(1, Ordering::Relaxed);
                counters.open_connections.fetch_add(1, Ordering::Relaxed);
                let visit = services.connections.open(id, accepted.peer());
                // How a connection ended is the client's affair; errors of devices were reported where they happened.
                let _ = match accepted {
                    Accepted::Unix(s) => converse(listener::tuned_local(s), &visit, &services, stopped).await,
                    Accepted::Tcp(s) => converse(listener::tuned(s), &visit, &services, stopped).await,
                };
                services.connections.close(&visit);
                counters.open_connections.fetch_sub(1, Ordering::Relaxed);
            });
        }
        Ok(())
    }

    fn report(&self, what: &str, error: io::Error) {
        if let Some(report) = &self.services.options.report {
            report(&Error::io(format!("NBD server: {what}"), error));
        }
    }
}
