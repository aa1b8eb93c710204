//! `coffer serve iscsi`: disks of points and forks as LUNs of one iSCSI target, for as long as the command runs.
//!
//! Not here: what a target is made of ([`super::target`]), gateways. What holds: nothing listens before all that was asked for is found
//! and allowed.

use super::offer::{ExportSpec, Offer, Opener, parse_limits};
use super::place::{self, Place, SocketMode};
use super::target::{CredentialSpec, GuestSpec, LunSpec, TargetSpec};
use crate::budgets::Budgets;
use crate::context::Context;
use crate::exit::{Result, wrong_use};
use crate::signal;
use coffer_gateway::{Limits, Permit};
use coffer_iscsi::{DEFAULT_PORT, IscsiServer, PortalOptions, ServerOptions, ports};
use std::path::PathBuf;
use std::str::FromStr;

/// Serve disks as LUNs of an iSCSI target until a signal ends it: points read-only, forks to be written
#[derive(Debug, clap::Args)]
pub(super) struct Iscsi {
    /// Where: HOST:PORT or HOST, whose port is then 3260. May be repeated: sessions may use all of them at once
    #[arg(long, value_name = "HOST[:PORT]", required = true)]
    listen: Vec<PortalSpec>,

    /// The target's name
    #[arg(long, value_name = "IQN", required = true)]
    target: String,

    /// What: the disks, by their numbers. May be repeated
    #[arg(long = "lun", value_name = "N=POINT[:DISK]|N=fork:NAME", required = true)]
    luns: Vec<NumberedSpec>,

    /// Logical blocks of all its disks, in bytes, instead of their own
    #[arg(long, value_name = "512|4096", value_parser = clap::value_parser!(u32).range(512..=4096))]
    block_size: Option<u32>,

    /// What initiators are told is a physical block of all its disks, in bytes, so that they align to it: from the logical block to 4096.
    /// Without it each logical block is one
    #[arg(long, value_name = "512|4096", value_parser = clap::value_parser!(u32).range(512..=4096))]
    physical_block_size: Option<u32>,

    /// How much of a disk all its initiators together get in a second: requests, bytes or both, as in 0=2000/100M or 0=/16M. SANITIZE is
    /// paced by it, too. May be repeated
    #[arg(long = "limit", value_name = "N=[REQUESTS]/[BYTES]")]
    limits: Vec<NumberedLimits>,

    /// Who may use it: the initiators of these names. Without it everybody may. May be repeated
    #[arg(long = "initiator", value_name = "IQN")]
    initiators: Vec<String>,

    /// From where it may be used, as in 10.0.0.0/8; without it from everywhere
    #[arg(long, value_name = "NETWORK,..", value_delimiter = ',')]
    allow: Vec<Permit>,

    /// What initiators have to call themselves, and prove to know the secret of, by CHAP
    #[arg(long, value_name = "NAME", requires = "chap_secret")]
    chap_user: Option<String>,

    /// File with the secret of --chap-user, which others must not be able to read: 12 bytes at least
    #[arg(long, value_name = "FILE", requires = "chap_user")]
    chap_secret: Option<PathBuf>,

    /// What the target calls itself to initiators that want it to prove who it is
    #[arg(long, value_name = "NAME", requires_all = ["chap_user", "target_secret"])]
    target_user: Option<String>,

    /// File with the secret of --target-user
    #[arg(long, value_name = "FILE", requires = "target_user")]
    target_secret: Option<PathBuf>,

    /// Let initiators use MD5 for CHAP that know nothing better
    #[arg(long, requires = "chap_user")]
    allow_md5: bool,

    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_connections: u32,

    #[command(flatten)]
    budgets: Budgets,
}

/// A portal: a place over the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortalSpec(pub(super) Place);

/// `N=EXPORT`
#[derive(Clone, Debug, PartialEq, Eq)]
struct NumberedSpec(u16, ExportSpec);

/// `N=REQUESTS/BYTES`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NumberedLimits(u16, Limits);

impl FromStr for PortalSpec {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        // An IPv6 address without brackets is no host with a port.
        let has_port = text.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
        let place = match has_port {
            true => text.parse::<Place>()?,
            false if text.starts_with('[') || !text.contains(':') => format!("{text}:{DEFAULT_PORT}").parse()?,
            false => format!("[{text}]:{DEFAULT_PORT}").parse()?,
        };
        match place {
            Place::HostAndPort(_) => Ok(PortalSpec(place)),
            Place::Socket(_) | Place::Systemd => Err("a portal is HOST:PORT, as in 10.0.0.1:3260".to_owned()),
        }
    }
}

impl FromStr for NumberedSpec {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (number, what) = numbered(text)?;
        Ok(NumberedSpec(number, what.parse().map_err(|e: coffer_repo::Error| e.to_string())?))
    }
}

impl FromStr for NumberedLimits {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (number, limits) = numbered(text)?;
        Ok(NumberedLimits(number, parse_limits(limits)?))
    }
}

/// The number of a LUN and what is said of it.
fn numbered(text: &str) -> std::result::Result<(u16, &str), String> {
    let (number, what) = text.split_once('=').ok_or("it lacks N=")?;
    let number = number.parse().map_err(|_| format!("'{number}' is not the number of a LUN"))?;
    Ok((number, what))
}

/// Listeners as portals of one group: sessions may use all of them at once.
pub(super) fn portals(listen: &[PortalSpec]) -> Result<Vec<PortalOptions>> {
    let places: Vec<Place> = listen.iter().map(|PortalSpec(place)| place.clone()).collect();
    let listeners = place::listeners(&places, SocketMode::OWN)?;
    Ok(listeners.into_iter().map(|listener| PortalOptions { listener, group: GROUP }).collect())
}

/// The one portal group that there is.
const GROUP: u16 = 1;

impl Iscsi {
    pub(super) fn run(&self, context: &Context) -> Result<()> {
        let spec = self.spec()?;
        let portals = portals(&self.listen)?;
        let stopped = signal::stopped(&context.terminal)?;
        let mut opener = Opener::new(context, self.budgets.reader_options())?;
        let state = opener.state_folder()?.join("reservations");
        let (mut target, options) = spec.open(ports(&portals), state, super::report(context))?;
        for lun in &spec.luns {
            target.add(lun, &mut opener)?;
        }
        let server_options = ServerOptions {
            max_connections: self.max_connections,
            allow_md5: self.allow_md5,
            report: Some(super::report(context)),
            ..ServerOptions::default()
        };
        let server = IscsiServer::start(&portals, vec![options], server_options)?;
        for place in server.places() {
            for number in target.luns.keys() {
                context.terminal.notice(format_args!("listening on iscsi://{place}/{}/{number}", self.target));
            }
        }
        // An error says that the thread that listens for signals is gone: then nobody could stop the server any more.
        let _ = stopped.recv();
        server.stop();
        let numbers: Vec<u16> = target.luns.keys().copied().collect();
        let luns: Vec<_> = numbers.into_iter().filter_map(|number| target.remove(number)).collect();
        luns.into_iter().for_each(|lun| lun.close(&context.terminal));
        Ok(())
    }

    /// What was asked for.
    fn spec(&self) -> Result<TargetSpec> {
        let lun = |NumberedSpec(number, spec): &NumberedSpec| LunSpec {
            number: *number,
            offer: Offer {
                spec: spec.clone(),
                permits: Vec::new(),
                limits: self.limits.iter().rfind(|limits| limits.0 == *number).map_or_else(Limits::default, |l| l.1),
                changed_since: Vec::new(),
            },
            block_size: self.block_size,
            physical_block_size: self.physical_block_size,
        };
        if let Some(limits) = self.limits.iter().find(|limits| self.luns.iter().all(|lun| lun.0 != limits.0)) {
            return Err(wrong_use(format!("--limit {}=: there is no such --lun", limits.0)));
        }
        for (option, size) in [("block", self.block_size), ("physical-block", self.physical_block_size)] {
            if size.is_some_and(|size| !size.is_power_of_two()) {
                return Err(wrong_use(format!("--{option}-size: a power of two from 512 to 4096")));
            }
        }
        if self.allow.iter().any(|permit| !matches!(permit, Permit::Network(_))) {
            return Err(wrong_use("--allow: initiators are told apart by their networks, and by --initiator"));
        }
        let credential = |name: &Option<String>, secret: &Option<PathBuf>| match (name, secret) {
            (Some(name), Some(secret)) => Some(CredentialSpec { name: name.clone(), secret: secret.clone() }),
            _ => None,
        };
        let chap = credential(&self.chap_user, &self.chap_secret)
            .map(|initiator| (initiator, credential(&self.target_user, &self.target_secret)));
        let guest = |initiator: Option<String>| GuestSpec {
            initiator,
            permits: self.allow.clone(),
            chap: chap.clone(),
            luns: None,
        };
        let guests = match self.initiators.as_slice() {
            [] => vec![guest(None)],
            names => names.iter().map(|name| guest(Some(name.clone()))).collect(),
        };
        Ok(TargetSpec { name: self.target.clone(), luns: self.luns.iter().map(lun).collect(), guests })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portal_has_a_port_of_its_own_or_the_registered_one() {
        let portal = |text: &str| match text.parse::<PortalSpec>() {
            Ok(PortalSpec(Place::HostAndPort(text))) => Ok(text),
            Ok(other) => panic!("{other:?}"),
            Err(why) => Err(why),
        };
        for (text, place) in [
            ("10.0.0.1", "10.0.0.1:3260"),
            ("10.0.0.1:99", "10.0.0.1:99"),
            ("host", "host:3260"),
            ("::1", "[::1]:3260"),
            ("[::1]", "[::1]:3260"),
            ("[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(portal(text).as_deref(), Ok(place), "{text}");
        }
        for wrong in ["unix:/run/x", "host:port"] {
            assert!(portal(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_lun_has_a_number_and_is_an_export() {
        let spec = |text: &str| text.parse::<NumberedSpec>();
        assert_eq!(spec("7=web@latest").unwrap().0, 7);
        assert_eq!(spec("0=fork:lab").unwrap().1, ExportSpec::of_fork("fork:lab", "lab").unwrap());
        let limits = |text: &str| text.parse::<NumberedLimits>().map(|limits| (limits.0, limits.1.bytes));
        assert_eq!(limits("3=/1k"), Ok((3, std::num::NonZeroU64::new(1024))));
        assert!(limits("x=/1k").is_err() && limits("3=").is_err() && limits("/1k").is_err());
        for wrong in ["web@latest", "x=web@latest", "=fork:lab", "1=fork:../x", "70000=fork:lab"] {
            assert!(spec(wrong).is_err(), "{wrong}");
        }
    }
}
