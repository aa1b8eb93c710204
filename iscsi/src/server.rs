//! The iSCSI target server: targets over portals, to any number of initiators.
//!
//! ```text
//!   IscsiServer       what connections share                                          this file
//!     conversation    one connection from its first byte to its last
//!       login         who it is, what it may, and on which terms; bounded in time, number and size
//!       connection    bytes <-> PDUs
//!         desk        what PDUs do: commands, data, pings, text, task management
//!         sender      what is said, and said again
//!     target          who may use a target, and its sessions
//!       session       commands in order over all connections; which tasks are still wanted
//! ```
//! Event loops, storage threads, budgets and the like are those of every server of disks ([`coffer_gateway::serving`]). The caller is
//! synchronous: [`IscsiServer`] owns its threads and ends them.
//!
//! Not here: disks ([`crate::scsi`]). What holds: an initiator can neither crash the server nor make it use more memory than its two
//! budgets and `max_connections` x about 6 MiB; task management and pings never wait for storage; an error of a device concerns the
//! command it belongs to.

use crate::conversation::{Portal, converse};
use crate::job::Job;
use crate::login::{Allowance, Chap};
use crate::pdu::LoginStatus;
use crate::scsi::PortOptions;
use crate::session::Session;
use crate::target::{TargetOptions, Targets};
use coffer_gateway::serving::{
    Accepted, Budget, Connections, Counters, Hall, HallOptions, Host, Listener, Listening, Place, Pool, Report,
    Reports, SocketFile, Statistics, Stopped, Stream, Visit, tuned, tuned_local,
};
use coffer_gateway::{ActivityTotals, Error, Export, Kind, Peer, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The port that is registered for iSCSI.
pub const DEFAULT_PORT: u16 = 3260;

/// Where initiators come in.
#[derive(Clone, Debug)]
pub struct PortalOptions {
    /// The socket.
    pub listener: Listener,
    /// The portal group; a session may have connections through all portals of one group. Each group is a port for SCSI.
    pub group: u16,
}

/// How a server is dimensioned.
#[derive(Clone)]
pub struct ServerOptions {
    /// Threads that talk to sockets.
    pub socket_threads: usize,
    /// Threads that wait for devices.
    pub storage_threads: usize,
    /// Connections at once, of all sessions together; more are turned away.
    pub max_connections: u32,
    /// Commands of one session at once.
    pub depth: u32,
    /// Commands of one connection that may wait for storage.
    pub requests_in_flight: usize,
    /// Bytes that one connection may hold of data that were asked for, and of answers; and as much of data that come unasked. A single
    /// larger command is let through.
    pub bytes_in_flight: usize,
    /// Bytes that all connections together may hold beyond 2 MiB each, half of it for data that come unasked. Who needs more than is
    /// left waits. An initiator that keeps some of it for 30 s while others wait, and neither reads nor sends a byte, is sent away.
    pub bytes_in_flight_together: usize,
    /// What sessions may agree on.
    pub allowance: Allowance,
    /// For a whole login.
    pub login_timeout: Duration,
    /// An initiator that is silent for so long is asked whether it is there.
    pub ping_after: Duration,
    /// And has so long to answer.
    pub ping_timeout: Duration,
    /// An initiator that answers pings but sends nothing of a write's data, or of a PDU that it began, for so long: the write ends, or the
    /// connection.
    pub data_timeout: Duration,
    /// How long initiators have to log out when the server stops.
    pub stop_timeout: Duration,
    /// What discovery sessions have to prove; nothing unless said otherwise.
    pub discovery: Option<Chap>,
    /// Whether CHAP may use MD5.
    pub allow_md5: bool,
    /// Told of errors; nobody by default.
    pub report: Option<Report>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            socket_threads: 2,
            storage_threads: 8,
            max_connections: 512,
            depth: 128,
            requests_in_flight: 128,
            bytes_in_flight: 32 << 20,
            bytes_in_flight_together: 256 << 20,
            allowance: Allowance {
                max_connections: 8,
                error_recovery_level: 1,
                first_burst: 256 << 10,
                max_burst: 1 << 20,
                max_outstanding_r2t: 8,
                max_segment: 256 << 10,
            },
            login_timeout: Duration::from_secs(15),
            ping_after: Duration::from_secs(15),
            ping_timeout: Duration::from_secs(15),
            data_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(10),
            discovery: None,
            allow_md5: false,
            report: None,
        }
    }
}

/// A session, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionReport {
    /// The target's name.
    pub target: String,
    /// The initiator's name.
    pub initiator: String,
    /// What it calls itself besides.
    pub alias: Option<String>,
    /// Its part of the session's identity.
    pub isid: [u8; 6],
    /// The target's part.
    pub tsih: u16,
    /// The portal group.
    pub group: u16,
    /// Its connections: number, whose, and the address that was reached.
    pub connections: Vec<(u16, Peer, Option<SocketAddr>)>,
    /// What it did.
    pub activity: ActivityTotals,
}

/// A running server. Dropping it stops it as [`IscsiServer::stop`] does.
pub struct IscsiServer {
    services: Arc<Services>,
    hall: Hall,
    files: Vec<SocketFile>,
}

/// What a login came to.
pub(crate) struct Entry {
    pub(crate) session: Arc<Session>,
    pub(crate) local: Option<SocketAddr>,
}

/// What connections share.
pub(crate) struct Services {
    pub(crate) targets: Targets,
    pub(crate) options: ServerOptions,
    pub(crate) pool: Pool<Job>,
    pub(crate) counters: Counters,
    refused_logins: AtomicU64,
    /// Memory of data that come unasked, and of all others.
    pub(crate) unasked: Arc<Budget>,
    pub(crate) asked: Arc<Budget>,
    connections: Connections<Entry>,
    portals: Vec<(PortOptions, Place)>,
    reports: Option<Arc<Reports>>,
}

impl IscsiServer {
    /// Listens at `portals` and serves `targets` until stopped. A port in use is `Locked`; no portal, or a group 0, is `Invalid`.
    pub fn start(portals: &[PortalOptions], targets: Vec<TargetOptions>, mut options: ServerOptions) -> Result<Self> {
        if portals.is_empty() || portals.iter().any(|portal| portal.group == 0) {
            return Err(Error::invalid("an iSCSI server needs a portal, and portal groups count from 1"));
        }
        let known = Targets::default();
        targets.into_iter().try_for_each(|target| known.add(target))?;
        let (mut sockets, mut files, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let ports = ports(portals);
        for portal in portals {
            let Listening { socket, place, file } = portal.listener.open()?;
            sockets.push(socket);
            files.extend(file);
            places.extend(ports.iter().find(|port| port.group == portal.group).map(|port| (*port, place)));
        }
        let pool = Pool::start("iscsi", options.storage_threads)?;
        let reports = options.report.take().map(|report| Reports::new("iSCSI server", report));
        options.report = reports.as_ref().map(Reports::as_report);
        let half = options.bytes_in_flight_together / 2;
        let ServerOptions { socket_threads, max_connections, .. } = options;
        let services = Arc::new(Services {
            targets: known,
            options,
            pool,
            counters: Counters::default(),
            refused_logins: AtomicU64::new(0),
            unasked: Budget::new(half),
            asked: Budget::new(half),
            connections: Connections::default(),
            portals: places,
            reports,
        });
        let hall = HallOptions { name: "iscsi", socket_threads, max_connections };
        let hall = Hall::open(hall, sockets, &services)?;
        Ok(IscsiServer { services, hall, files })
    }

    /// Where initiators find it, in the order of the portals; with the ports that were chosen.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.services.portals.iter().map(|(_, place)| place)
    }

    /// Shows one more target from now on. A name that is taken is `Locked`.
    pub fn add_target(&self, target: TargetOptions) -> Result<()> {
        self.services.targets.add(target)
    }

    /// Takes a target away; its sessions are asked to log out, and end after `stop_timeout`. `NotFound` when there is none.
    pub fn remove_target(&self, name: &str) -> Result<()> {
        let target = self.services.targets.remove(name)?;
        target.close();
        let sessions = target.sessions();
        let is_meant = |visit: &Visit<Entry>| {
            visit.entered().is_some_and(|entry| sessions.iter().any(|session| Arc::ptr_eq(session, &entry.session)))
        };
        self.services.connections.dismiss(is_meant);
        Ok(())
    }

    /// The targets, by name.
    #[must_use]
    pub fn targets(&self) -> Vec<String> {
        self.services.targets.all().iter().map(|target| target.options.name.clone()).collect()
    }

    /// The sessions that there are now, by target.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionReport> {
        let visits = self.services.connections.all();
        let report = |name: &String, session: &Arc<Session>| {
            let connections = session.connections().into_iter().map(|(cid, id)| {
                let visit = visits.iter().find(|visit| visit.id() == id);
                let local = visit.and_then(|visit| visit.entered()).and_then(|entry| entry.local);
                (cid, visit.map_or_else(Peer::default, |visit| visit.peer().clone()), local)
            });
            SessionReport {
                target: name.clone(),
                initiator: session.identity.initiator.clone(),
                alias: session.identity.alias.clone(),
                isid: session.identity.isid,
                tsih: session.identity.tsih,
                group: session.identity.group,
                connections: connections.collect(),
                activity: session.activity.totals(),
            }
        };
        let targets = self.services.targets.all();
        let of_target = |target: &Arc<crate::target::Target>| {
            let name = &target.options.name;
            target.sessions().iter().map(|session| report(name, session)).collect::<Vec<_>>()
        };
        targets.iter().flat_map(of_target).collect()
    }

    /// What it did so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.services.counters.statistics()
    }

    /// Logins that were refused.
    #[must_use]
    pub fn refused_logins(&self) -> u64 {
        self.services.refused_logins.load(Ordering::Relaxed)
    }

    /// The LUNs of all targets: the target's name, the LUN's number, and what it shows.
    #[must_use]
    pub fn luns(&self) -> Vec<(String, u16, Arc<Export>)> {
        let of_target = |target: Arc<crate::target::Target>| {
            let name = target.options.name.clone();
            let exports = target.options.device.exports();
            exports.into_iter().map(move |(number, export)| (name.clone(), number, export))
        };
        self.services.targets.all().into_iter().flat_map(of_target).collect()
    }

    /// Accepts nobody any more, asks initiators to log out (they have `stop_timeout`), closes all connections and returns when the last
    /// device call did.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for IscsiServer {
    fn drop(&mut self) {
        self.hall.stop();
        self.services.connections.dismiss_all();
        self.hall.wait();
        if let Some(reports) = &self.services.reports {
            reports.settle();
        }
        self.files.clear();
    }
}

/// The ports that the devices of a server with these portals have: one for each portal group, in the order in which they come.
#[must_use]
pub fn ports(portals: &[PortalOptions]) -> Vec<PortOptions> {
    let mut ports: Vec<PortOptions> = Vec::new();
    for portal in portals {
        if ports.iter().all(|port| port.group != portal.group) {
            let relative = u16::try_from(ports.len() + 1).unwrap_or(u16::MAX);
            ports.push(PortOptions { relative, group: portal.group });
        }
    }
    ports
}

impl Services {
    /// What SendTargets is answered: everything that the initiator may use and asked about.
    pub(crate) fn targets_for(&self, session: &Session, visit: &Visit<Entry>, asked: &str) -> Vec<(String, String)> {
        let own = session.disks.as_ref().map(|disks| disks.target.options.name.clone());
        let targets = match (asked, &own) {
            // Of all targets only a discovery session is told.
            ("All", None) => self.targets.all(),
            ("", Some(own)) => self.targets.find(own).into_iter().collect(),
            ("All" | "", _) => Vec::new(),
            (name, _) => self.targets.find(name).into_iter().collect(),
        };
        let local = visit.entered().and_then(|entry| entry.local);
        let mut pairs = Vec::new();
        for target in targets.iter().filter(|t| t.admit(&session.identity.initiator, visit.peer()).is_some()) {
            pairs.push(("TargetName".to_owned(), target.options.name.clone()));
            for (port, place) in &self.portals {
                let address = address(place, local);
                pairs.extend(address.map(|address| ("TargetAddress".to_owned(), format!("{address},{}", port.group))));
            }
        }
        pairs
    }

    /// A login came to nothing. Of what tells of a mistake or an attack somebody is told.
    pub(crate) fn refused(&self, peer: &Peer, status: LoginStatus) {
        self.refused_logins.fetch_add(1, Ordering::Relaxed);
        let (kind, what) = match status {
            LoginStatus::AUTHENTICATION_FAILED => (Kind::WrongKey, "it did not prove who it is"),
            LoginStatus::NOT_FOUND => (Kind::NotFound, "it asked for a target that is not there, or not for it"),
            LoginStatus::TOO_MANY_CONNECTIONS | LoginStatus::OUT_OF_RESOURCES => {
                (Kind::Unavailable, "there are too many connections")
            }
            _ => return,
        };
        self.report(&Error::new(kind, format!("the login of {peer} was refused: {what}")));
    }
}

/// How an initiator that reached `local` reaches `place`: one that listens everywhere is where it was reached.
fn address(place: &Place, local: Option<SocketAddr>) -> Option<String> {
    let Place::Tcp(host, port) = place else { return None };
    let address = host.parse::<std::net::IpAddr>().ok()?;
    let reached = match address.is_unspecified() {
        true => local?.ip().to_canonical(),
        false => address,
    };
    Some(SocketAddr::new(reached, *port).to_string())
}

impl Host for Services {
    async fn serve(self: Arc<Self>, client: Accepted, stopped: Stopped) {
        let Some((port, _)) = self.portals.get(client.door) else { return };
        let port = *port;
        self.counters.came();
        let visit = self.connections.open(client.id, client.peer());
        // How a connection ended is the initiator's affair; errors of devices were reported where they happened.
        let _ = match client.stream {
            Stream::Unix(s) => converse(tuned_local(s), &visit, &self, Portal { port, local: None }, stopped).await,
            Stream::Tcp(s) => {
                let local = s.local_addr().ok();
                converse(tuned(s), &visit, &self, Portal { port, local }, stopped).await
            }
        };
        self.connections.close(&visit);
        self.counters.left();
    }

    fn look(&self) {
        self.connections.look(self.asked.is_wanted());
        if let Some(reports) = &self.reports {
            reports.settle();
        }
    }

    fn report(&self, error: &Error) {
        if let Some(report) = &self.options.report {
            report(&error.duplicate().within("iSCSI server"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initiator_is_told_addresses_that_it_can_reach() {
        let at = |host: &str, local: Option<&str>| {
            address(&Place::Tcp(host.into(), 3260), local.map(|local| local.parse().unwrap()))
        };
        assert_eq!(at("10.0.0.1", None).as_deref(), Some("10.0.0.1:3260"));
        assert_eq!(at("fd00::1", Some("10.0.0.9:7")).as_deref(), Some("[fd00::1]:3260"));
        assert_eq!(at("0.0.0.0", Some("10.0.0.9:7")).as_deref(), Some("10.0.0.9:3260"));
        assert_eq!(at("::", Some("[::ffff:10.0.0.9]:7")).as_deref(), Some("10.0.0.9:3260"));
        assert_eq!(at("::", Some("[fd00::9]:7")).as_deref(), Some("[fd00::9]:3260"));
        assert_eq!(at("::", None), None);
        assert_eq!(address(&Place::Unix("/s".into()), None), None);
    }

    #[test]
    fn every_portal_group_is_a_port() {
        let portal = |group| PortalOptions { listener: Listener::Tcp(([127, 0, 0, 1], 0).into()), group };
        let found = ports(&[portal(7), portal(3), portal(7)]);
        assert_eq!(found, [PortOptions { relative: 1, group: 7 }, PortOptions { relative: 2, group: 3 }]);
        assert!(IscsiServer::start(&[], Vec::new(), ServerOptions::default()).is_err());
        assert!(IscsiServer::start(&[portal(0)], Vec::new(), ServerOptions::default()).is_err());
    }
}
