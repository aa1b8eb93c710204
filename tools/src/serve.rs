//! `coffer serve`: disks of points and forks over the network: those of a command line, or a gateway with a configuration.
//!
//! ```text
//!   place            where: a port, a socket file, or what systemd hands over (activation)
//!   offer            what, to whom, how fast, compared with what
//!   target           an iSCSI target: what, to whom
//!   iscsi            one of a command line
//!   configuration    the same in a file
//!   gateway          a process whose exports come and go
//!     remembered     those that were added by command
//!     targets        its iSCSI targets
//! ```
//! Not here: serving ([`coffer_gateway::nbd`], [`coffer_iscsi`]). What holds: nothing listens before all that was asked for is found and allowed.

mod activation;
mod configuration;
mod gateway;
mod iscsi;
mod offer;
mod place;
mod remembered;
mod target;
mod targets;

use crate::budgets::Budgets;
use crate::context::Context;
use crate::environment;
use crate::exit::{Result, describe, wrong_use};
use crate::signal;
use clap::{Subcommand, ValueEnum};
use coffer_gateway::Exports;
use coffer_gateway::metrics::{self, MetricsServer, Offered, Served};
use coffer_gateway::nbd::{Listener, Report, Server, ServerOptions, Tls, TlsDemand, TlsFiles, no_psk};
use coffer_iscsi::IscsiServer;
pub(crate) use gateway::control_path;
use offer::{AllowSpec, ChangedSpec, LimitSpec, Offer, Opener};
pub(crate) use offer::{ExportSpec, parse_limits};
use place::{Place, SocketMode};
use std::path::PathBuf;
use std::sync::Arc;

/// Serve disks of points and forks to hypervisors and other clients
///
/// With --config a gateway runs until a signal ends it: its exports come from a configuration file and from 'coffer export add', SIGHUP
/// has it read the file again, and when it is started again what was added by command is there again.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// Run a gateway as this file says
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,

    /// Only see whether the file is right
    #[arg(long, requires = "config")]
    check: bool,

    /// Tell Prometheus at /metrics there, instead of where the file says
    #[arg(long, value_name = "HOST:PORT|unix:PATH")]
    metrics: Option<Place>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Nbd(Box<Nbd>),
    Iscsi(Box<iscsi::Iscsi>),
}

/// Serve disks as NBD exports until a signal ends it: points read-only, forks to be written
#[derive(Debug, clap::Args)]
struct Nbd {
    /// Where: HOST:PORT, unix:PATH for a socket file, or systemd for the sockets that systemd hands over. May be repeated
    #[arg(long, value_name = "HOST:PORT|unix:PATH|systemd", required = true)]
    listen: Vec<Place>,

    /// Permissions of socket files
    #[arg(long, value_name = "OCTAL", default_value = "0600")]
    socket_mode: SocketMode,

    /// What: the exports. Without NAME= an export is called as its point is written here
    #[arg(required = true, value_name = "[NAME=]POINT[:DISK]|[NAME=]fork:NAME")]
    exports: Vec<ExportSpec>,

    /// Who may use an export; to all others it does not exist. Networks as in 10.0.0.0/8, cert: and the common name of a client's
    /// certificate, uid: and the number of a user on a unix socket. Without it everybody may
    #[arg(long, value_name = "EXPORT=NETWORK|cert:NAME|uid:N,..")]
    allow: Vec<AllowSpec>,

    /// How much of an export all its clients together get a second, as in vda=2000/100M; either number may be left out
    #[arg(long, value_name = "EXPORT=REQUESTS/BYTES")]
    limit: Vec<LimitSpec>,

    /// Also tell clients what changed since another point, as the metadata context coffer:changed:POINT. Without EXPORT= for each
    /// export of the point's machine and disk; all stands for all points of the machine, and holds them while it serves
    #[arg(long, value_name = "[EXPORT=]POINT|all")]
    changed_since: Vec<ChangedSpec>,

    #[command(flatten)]
    encryption: Encryption,

    /// Clients at once, at each place
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_connections: u32,

    /// Requests of one client that may wait for storage; it is not listened to beyond
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    max_requests: u16,

    /// Tell Prometheus at /metrics there what the exports are doing
    #[arg(long, value_name = "HOST:PORT|unix:PATH")]
    metrics: Option<Place>,

    #[command(flatten)]
    budgets: Budgets,
}

/// TLS, as arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
struct Encryption {
    /// Certificate for TLS, and those between it and its authority (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM), which others must not be able to read
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Authority (PEM) whose certificates clients have to have; without, clients need none
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,

    /// Whether clients may do without TLS, once there is a certificate
    #[arg(long, value_enum, default_value_t = Demand::Required, requires = "tls_cert")]
    tls: Demand,

    /// Not supported: pre-shared keys
    #[arg(long, value_name = "FILE", hide = true)]
    tls_psk: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Demand {
    #[default]
    Required,
    Allowed,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        environment::allow_many_files();
        match (&self.command, &self.config) {
            (Some(Command::Nbd(nbd)), _) => nbd.run(context),
            (Some(Command::Iscsi(iscsi)), _) => iscsi.run(context),
            (None, Some(file)) if self.check => gateway::check(file),
            (None, Some(file)) => gateway::run(context, file, self.metrics.as_ref()),
            (None, None) => Err(wrong_use("serve what? Say --config FILE, serve nbd or serve iscsi")),
        }
    }
}

impl Nbd {
    fn run(&self, context: &Context) -> Result<()> {
        let tls = self.encryption.open()?;
        let offers = offer::offers(&self.exports, &self.allow, &self.limit, &self.changed_since)?;
        if self.encryption.tls_client_ca.is_none() && offers.iter().any(Offer::names_certificate) {
            return Err(wrong_use("--allow EXPORT=cert:NAME needs TLS with client certificates: add --tls-client-ca"));
        }
        let listeners = place::listeners(&self.listen, self.socket_mode)?;
        let stopped = signal::stopped(&context.terminal)?;
        let mut opener = Opener::new(context, self.budgets.reader_options())?;
        let (exports, forks) = offer::open_all(&mut opener, &offers)?;
        let options = ServerOptions {
            max_connections: self.max_connections,
            requests_in_flight: self.max_requests.into(),
            tls,
            report: Some(report(context)),
            ..ServerOptions::default()
        };
        let servers = start(&listeners, &exports, &options)?;
        let metrics =
            self.metrics.as_ref().map(|place| start_metrics(context, place, &exports, &servers, None)).transpose()?;
        for server in servers.iter() {
            for spec in &self.exports {
                context.terminal.notice(format_args!("listening on {}", server.uri(&spec.name)));
            }
        }
        // An error says that the thread that listens for signals is gone: then nobody could stop the servers any more.
        let _ = stopped.recv();
        drop(metrics);
        stop(servers);
        drop(exports);
        forks.into_iter().for_each(|fork| fork.close(&context.terminal));
        Ok(())
    }
}

/// What tells of errors that no caller sees.
fn report(context: &Context) -> Report {
    let terminal = Arc::clone(&context.terminal);
    Arc::new(move |error| terminal.notice(describe(error)))
}

/// Serves one table at several places.
fn start(listeners: &[Listener], exports: &Arc<Exports>, options: &ServerOptions) -> Result<Arc<Vec<Server>>> {
    let servers = listeners.iter().map(|listener| Server::start(listener, Arc::clone(exports), options.clone()));
    Ok(Arc::new(servers.collect::<coffer_repo::Result<Vec<Server>>>()?))
}

/// Stops servers whose metrics nobody asks for any more.
fn stop(servers: Arc<Vec<Server>>) {
    Arc::into_inner(servers).into_iter().flatten().for_each(Server::stop);
}

/// Offers what exports and servers are doing.
fn start_metrics(
    context: &Context,
    place: &Place,
    exports: &Arc<Exports>,
    servers: &Arc<Vec<Server>>,
    iscsi: Option<Arc<IscsiServer>>,
) -> Result<MetricsServer> {
    let listeners = match place {
        Place::Systemd => return Err(wrong_use("metrics have a place of their own: HOST:PORT or unix:PATH")),
        place => place::listeners(std::slice::from_ref(place), SocketMode::OWN)?,
    };
    let [listener] = listeners.as_slice() else { return Err(wrong_use("metrics have one place")) };
    let (exports, servers) = (Arc::clone(exports), Arc::clone(servers));
    let text = move || {
        let by_name = exports.all().into_iter().map(|export| Offered { export, lun: None });
        let luns = iscsi.iter().flat_map(|iscsi| iscsi.luns());
        let luns = luns.map(|(target, number, export)| Offered { export, lun: Some((target, number)) });
        let nbd = servers.iter().map(|server| Served {
            protocol: "nbd",
            place: server.place().to_string(),
            statistics: server.statistics(),
            refused: None,
        });
        let portals = |iscsi: &IscsiServer| iscsi.places().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let iscsi = iscsi.iter().map(|iscsi| Served {
            protocol: "iscsi",
            place: portals(iscsi),
            statistics: iscsi.statistics(),
            refused: Some(iscsi.refused_logins()),
        });
        metrics::text(&by_name.chain(luns).collect::<Vec<_>>(), &nbd.chain(iscsi).collect::<Vec<_>>())
    };
    let server = MetricsServer::start(listener, text)?;
    context.terminal.notice(format_args!("metrics at {}", server.place()));
    Ok(server)
}

impl Encryption {
    /// What was asked for; `None` for none.
    fn open(&self) -> Result<Option<Tls>> {
        if let Some(file) = &self.tls_psk {
            return Err(no_psk(&format!("--tls-psk {}", file.display())).into());
        }
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else { return Ok(None) };
        let files =
            TlsFiles { certificate: certificate.clone(), key: key.clone(), client_ca: self.tls_client_ca.clone() };
        let demand = match self.tls {
            Demand::Required => TlsDemand::Required,
            Demand::Allowed => TlsDemand::Allowed,
        };
        Ok(Some(Tls::open(&files, demand)?))
    }
}
