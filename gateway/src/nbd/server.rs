//! The NBD server: exports over a unix socket or TCP, to any number of clients.
//!
//! ```text
//!   Server::start     what connections share                                           this file
//!     conversation    one connection from its first byte to its last: the next three in turn
//!     negotiation     which export, which dialect, TLS; bounded in time, number and size
//!     transmission    requests in, replies out; answers from memory at once; waits for an export's limits
//!       session       what a request does to a device
//!       context       what block status tells
//!       reply         how the answer looks
//!       job           a request among the storage threads
//! ```
//! Event loops, storage threads, the common budget and the like are those of every server ([`crate::serving`]).
//! The caller is synchronous: [`Server`] owns its threads and ends them. A connection lives on one socket thread, so that a
//! request answered from memory costs one receive and one send and no hand-over; only what has to wait crosses to the pool.
//!
//! Not here: what TLS goes by ([`super::Tls`]), who may use an export (the exports know), who may connect at all (the socket's
//! permissions and the network decide). What holds: a client can neither crash the server nor make it use more memory than
//! `bytes_in_flight_together` and `max_connections` x about 6 MiB, nor delay others by more than a request per storage thread and a
//! batch per socket thread; an error of a device concerns the request it belongs to.

mod context;
mod conversation;
mod entry;
mod job;
mod negotiation;
mod reply;
mod session;
mod transmission;

pub use entry::ConnectionReport;

use super::tls::Tls;
use super::uri::{NbdUri, TlsUri};
use crate::export::{Export, Exports};
use crate::serving::{
    Accepted, Budget, Connections, Counters, Hall, HallOptions, Host, Listener, Listening, Place, Pool, Report,
    Reports, SocketFile, Statistics, Stopped, Stream, tuned, tuned_local,
};
use crate::{Error, Result};
use conversation::converse;
use entry::Entry;
use job::Job;
use std::sync::Arc;
use std::time::Duration;

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

/// A running server. Dropping it stops it as [`Server::stop`] does.
pub struct Server {
    place: Place,
    services: Arc<Services>,
    hall: Hall,
    file: Option<SocketFile>,
}

/// What connections share.
struct Services {
    exports: Arc<Exports>,
    options: ServerOptions,
    pool: Pool<Job>,
    counters: Counters,
    connections: Connections<Entry>,
    budget: Arc<Budget>,
    reports: Option<Arc<Reports>>,
}

impl Server {
    /// Listens at `listener` and serves `exports` until stopped. A socket or port in use is `Locked`.
    pub fn start(listener: &Listener, exports: Arc<Exports>, mut options: ServerOptions) -> Result<Server> {
        let Listening { socket, place, file } = listener.open()?;
        let pool = Pool::start("nbd", options.storage_threads)?;
        let reports = options.report.take().map(|report| Reports::new("NBD server", report));
        options.report = reports.as_ref().map(Reports::as_report);
        let budget = Budget::new(options.bytes_in_flight_together);
        let ServerOptions { socket_threads, max_connections, .. } = options;
        let services = Arc::new(Services {
            exports,
            options,
            pool,
            counters: Counters::default(),
            connections: Connections::default(),
            budget,
            reports,
        });
        let hall = HallOptions { name: "nbd", socket_threads, max_connections };
        let hall = Hall::open(hall, vec![socket], &services)?;
        Ok(Server { place, services, hall, file })
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
        self.services.connections.all().iter().map(|visit| ConnectionReport::of(visit)).collect()
    }

    /// Ends the connections that took `export`, once what they have in flight is answered (for `stop_timeout` at most); how many they
    /// are. An export that is still in the table can be taken again.
    pub fn disconnect(&self, export: &Arc<Export>) -> usize {
        self.services.connections.dismiss(|visit| visit.entered().is_some_and(|entry| entry.is_of(export)))
    }

    /// What it did so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.services.counters.statistics()
    }

    /// Accepts nobody any more, lets what is in flight finish (for `stop_timeout` at most), closes all connections and returns
    /// when the last device call did.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.hall.stop();
        self.services.connections.dismiss_all();
        self.hall.wait();
        if let Some(reports) = &self.services.reports {
            reports.settle();
        }
        self.file = None;
    }
}

impl Host for Services {
    async fn serve(self: Arc<Self>, client: Accepted, stopped: Stopped) {
        self.counters.came();
        let visit = self.connections.open(client.id, client.peer());
        // How a connection ended is the client's affair; errors of devices were reported where they happened.
        let _ = match client.stream {
            Stream::Unix(s) => converse(tuned_local(s), &visit, &self, stopped).await,
            Stream::Tcp(s) => converse(tuned(s), &visit, &self, stopped).await,
        };
        self.connections.close(&visit);
        self.counters.left();
    }

    fn look(&self) {
        self.connections.look(self.budget.is_wanted());
        if let Some(reports) = &self.reports {
            reports.settle();
        }
    }

    fn report(&self, error: &Error) {
        if let Some(report) = &self.options.report {
            report(&error.duplicate().within("NBD server"));
        }
    }
}
