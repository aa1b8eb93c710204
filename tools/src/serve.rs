//! `coffer serve`: disks of points over the network.

use crate::budgets::Budgets;
use crate::context::{Context, choose, choose_disk};
use crate::exit::{Result, describe};
use crate::fork;
use crate::signal;
use clap::Subcommand;
use coffer_gateway::fork::ForkName;
use coffer_gateway::nbd::{Listener, Report, Server, ServerOptions};
use coffer_gateway::{Export, Exports, SnapshotDevice};
use coffer_repo::Error;
use coffer_repo::catalog::Pin;
use coffer_repo::id::SnapshotId;
use coffer_repo::point::PointName;
use std::collections::HashMap;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// Permission bits of a socket file: its owner's only.
const SOCKET_MODE: u32 = 0o600;

/// Serve disks of points to hypervisors and other clients
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Nbd(Nbd),
}

/// Serve disks as NBD exports until a signal ends it: points read-only, forks to be written
#[derive(Debug, clap::Args)]
struct Nbd {
    /// Where: HOST:PORT, or unix:PATH for a socket file that only its owner may use
    #[arg(long, value_name = "HOST:PORT|unix:PATH")]
    listen: Place,

    /// What: the exports. Without NAME= an export is called as its point is written here
    #[arg(required = true, value_name = "[NAME=]POINT[:DISK]|[NAME=]fork:NAME")]
    exports: Vec<ExportSpec>,

    #[command(flatten)]
    budgets: Budgets,
}

/// Where to listen, as a person writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Socket(PathBuf),
    /// Looked up when it is needed.
    HostAndPort(String),
}

/// An export, as a person writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ExportSpec {
    name: String,
    what: Exported,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Exported {
    Point(PointName),
    Fork(ForkName),
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        match &self.command {
            Command::Nbd(nbd) => nbd.run(context),
        }
    }
}

impl Nbd {
    fn run(&self, context: &Context) -> Result<()> {
        let listener = self.listen.listener()?;
        let stopped = signal::stopped(&context.terminal)?;
        let exports = self.exports(context)?;
        let terminal = Arc::clone(&context.terminal);
        let report: Report = Arc::new(move |error| terminal.notice(describe(error)));
        let options = ServerOptions { report: Some(report), ..ServerOptions::default() };
        let server = Server::start(&listener, exports, options)?;
        for spec in &self.exports {
            context.terminal.notice(format_args!("listening on {}", server.uri(&spec.name)));
        }
        // An error says that the thread that listens for signals is gone: then nobody could stop the server any more.
        let _ = stopped.recv();
        server.stop();
        Ok(())
    }

    fn exports(&self, context: &Context) -> Result<Arc<Exports>> {
        let repo = context.open()?;
        let points = context.points(&repo)?;
        let reader = context.reader(&repo, self.budgets.reader_options())?;
        let exports = Exports::new();
        let mut pins: HashMap<SnapshotId, Arc<Pin>> = HashMap::new();
        for spec in &self.exports {
            let point = match &spec.what {
                Exported::Point(point) => point,
                Exported::Fork(name) => {
                    let fork = fork::open(context, &repo, &reader, name)?;
                    exports.add(fork::export(&spec.name, name, fork))?;
                    continue;
                }
            };
            let snapshot = choose(point, &points)?;
            let disk = choose_disk(point, snapshot)?;
            let pin = match pins.get(&snapshot.id()) {
                Some(pin) => Arc::clone(pin),
                None => context.pin(&repo, snapshot, "export")?,
            };
            pins.insert(snapshot.id(), Arc::clone(&pin));
            exports.add(Export {
                name: spec.name.clone(),
                device: Arc::new(SnapshotDevice::new(reader.disk(snapshot, &disk.name)?, Some(pin))),
                description: format!("{}@{}:{}", snapshot.workload, snapshot.time(), disk.name),
                read_only: true,
            })?;
        }
        Ok(Arc::new(exports))
    }
}

impl Place {
    fn listener(&self) -> Result<Listener> {
        match self {
            Place::Socket(path) => Ok(Listener::Unix { path: path.clone(), mode: SOCKET_MODE }),
            Place::HostAndPort(text) => {
                let found = text.to_socket_addrs().map(|mut addresses| addresses.next());
                match found {
                    Ok(Some(address)) => Ok(Listener::Tcp(address)),
                    Ok(None) => Err(Error::invalid(format!("{text} has no address")).into()),
                    Err(e) => Err(Error::invalid(format!("looking up {text}")).with_source(e).into()),
                }
            }
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("unix: lacks the path of the socket".to_owned()),
                path => Ok(Place::Socket(path.into())),
            };
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Place::HostAndPort(text.to_owned()))
            }
            _ => Err("neither HOST:PORT, as in 127.0.0.1:10809, nor unix:PATH".to_owned()),
        }
    }
}

impl FromStr for ExportSpec {
    type Err = Error;

    fn from_str(text: &str) -> std::result::Result<Self, Error> {
        let (name, point) = text.split_once('=').unwrap_or((text, text));
        let what = match point.strip_prefix("fork:") {
            Some(fork) => Exported::Fork(fork.parse()?),
            None => Exported::Point(PointName::parse(point)?),
        };
        Ok(ExportSpec { name: name.to_owned(), what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_sockets_or_ports() {
        for (text, place) in [
            ("unix:/run/x.sock", Place::Socket("/run/x.sock".into())),
            ("unix:a:1", Place::Socket("a:1".into())),
            ("localhost:10809", Place::HostAndPort("localhost:10809".into())),
            ("[::1]:0", Place::HostAndPort("[::1]:0".into())),
        ] {
            assert_eq!(text.parse(), Ok(place), "{text}");
        }
        for bad in ["", "unix:", ":10809", "localhost", "localhost:", "localhost:99999", "/run/x.sock"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_export_has_the_name_it_is_given_or_its_points() {
        let spec: ExportSpec = "root=web@latest:vda".parse().unwrap();
        let point = |text| Exported::Point(PointName::parse(text).unwrap());
        assert_eq!((spec.name.as_str(), spec.what), ("root", point("web@latest:vda")));
        let spec: ExportSpec = "web@-1".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.what), ("web@-1", point("web@-1")));
        let spec: ExportSpec = "x=fork:lab".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.what), ("x", Exported::Fork("lab".parse().unwrap())));
        assert!("fork:../x".parse::<ExportSpec>().is_err());
        assert!("x=web@noon".parse::<ExportSpec>().is_err());
    }
}
