//! The iSCSI targets of a gateway: as its configuration says, while sessions come and go.
//!
//! Not here: what a target is made of ([`super::target`]), the configuration. What holds: a target or a LUN that cannot be offered is no
//! other's affair; LUNs come and go under sessions, which are told so; who may use a target changes by ending its sessions. A disk
//! that was removed is closed when the last command that had it is over.

use super::iscsi::{PortalSpec, portals};
use super::offer::Opener;
use super::target::{LunSpec, OpenLun, OpenTarget, TargetSpec};
use crate::context::Context;
use crate::exit::{Failure, Result};
use coffer_iscsi::scsi::{PortOptions, Report};
use coffer_iscsi::{IscsiServer, ServerOptions, SessionReport, ports};
use coffer_repo::Error;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What is the same for all targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IscsiFrame {
    pub(super) listen: Vec<PortalSpec>,
    pub(super) allow_md5: bool,
    pub(super) max_connections: u32,
}

/// A target that is offered.
struct Standing {
    spec: TargetSpec,
    target: OpenTarget,
}

/// See the file's header.
pub(super) struct Targets {
    /// Others may look at it; it is stopped here.
    server: Arc<IscsiServer>,
    /// Those of its portals.
    ports: Vec<PortOptions>,
    standing: BTreeMap<String, Standing>,
    /// Disks of which commands may be under way.
    leaving: Vec<OpenLun>,
    /// Where reservations, modes and states of port groups are kept.
    state: PathBuf,
    /// Told of errors that no initiator is told of.
    report: Report,
}

/// What following a configuration came to.
#[derive(Default)]
pub(super) struct Followed {
    pub(super) added: usize,
    pub(super) removed: usize,
    pub(super) failed: Vec<Error>,
}

impl Targets {
    /// Opens what `specs` say, and only then listens.
    pub(super) fn start(
        context: &Context,
        frame: &IscsiFrame,
        specs: &[TargetSpec],
        opener: &mut Opener<'_>,
    ) -> Result<Self> {
        let state = opener.state_folder()?.join("reservations");
        let portals = portals(&frame.listen)?;
        let ports = ports(&portals);
        let (mut standing, mut all) = (BTreeMap::new(), Vec::new());
        for spec in specs {
            let (mut target, options) = spec.open(ports.clone(), state.clone(), super::report(context))?;
            for lun in &spec.luns {
                target.add(lun, opener).map_err(|failure| failing(spec, lun, failure))?;
            }
            standing.insert(spec.name.clone(), Standing { spec: spec.clone(), target });
            all.push(options);
        }
        let options = ServerOptions {
            max_connections: frame.max_connections,
            allow_md5: frame.allow_md5,
            report: Some(super::report(context)),
            ..ServerOptions::default()
        };
        let server = Arc::new(IscsiServer::start(&portals, all, options)?);
        for place in server.places() {
            context.terminal.notice(format_args!("listening on iscsi://{place}"));
        }
        Ok(Targets { server, ports, standing, leaving: Vec::new(), state, report: super::report(context) })
    }

    /// Offers what `specs` say, and nothing else.
    pub(super) fn follow(&mut self, specs: &[TargetSpec], opener: &mut Opener<'_>) -> Followed {
        let mut followed = Followed::default();
        let is_meant = |standing: &Standing| {
            specs.iter().any(|spec| spec.name == standing.spec.name && spec.guests == standing.spec.guests)
        };
        let gone: Vec<String> =
            self.standing.iter().filter(|(_, s)| !is_meant(s)).map(|(name, _)| name.clone()).collect();
        for name in gone {
            followed.removed += 1;
            self.remove(&name);
        }
        for spec in specs {
            if let Err(e) = self.add(spec, &mut followed) {
                followed.failed.push(e.within(format_args!("target '{}'", spec.name)));
                continue;
            }
            let Some(standing) = self.standing.get_mut(&spec.name) else { continue };
            let is_other = |lun: &OpenLun| !spec.luns.contains(&lun.spec);
            let others: Vec<u16> =
                standing.target.luns.iter().filter(|(_, l)| is_other(l)).map(|(number, _)| *number).collect();
            followed.removed += others.len();
            self.leaving.extend(others.into_iter().filter_map(|number| standing.target.remove(number)));
            for lun in spec
                .luns
                .iter()
                .filter(|lun| !standing.target.luns.contains_key(&lun.number))
                .cloned()
                .collect::<Vec<_>>()
            {
                match standing.target.add(&lun, opener) {
                    Ok(()) => followed.added += 1,
                    Err(failure) => followed.failed.push(failing(spec, &lun, failure)),
                }
            }
            standing.spec = spec.clone();
        }
        followed
    }

    /// Offers a target without disks, unless it is there.
    fn add(&mut self, spec: &TargetSpec, followed: &mut Followed) -> coffer_repo::Result<()> {
        if self.standing.contains_key(&spec.name) {
            return Ok(());
        }
        let opened = spec.open(self.ports.clone(), self.state.clone(), Arc::clone(&self.report));
        let (target, options) = opened.map_err(Failure::into_error)?;
        self.server.add_target(options)?;
        self.standing.insert(spec.name.clone(), Standing { spec: spec.clone(), target });
        followed.added += 1;
        Ok(())
    }

    fn remove(&mut self, name: &str) {
        // It is there: targets change here only.
        let _ = self.server.remove_target(name);
        if let Some(Standing { mut target, .. }) = self.standing.remove(name) {
            let numbers: Vec<u16> = target.luns.keys().copied().collect();
            self.leaving.extend(numbers.into_iter().filter_map(|number| target.remove(number)));
        }
    }

    /// The server, to be looked at.
    pub(super) fn server(&self) -> Arc<IscsiServer> {
        Arc::clone(&self.server)
    }

    /// Whether a disk that was removed is not closed yet.
    pub(super) fn is_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Closes what was removed and has no command any more.
    pub(super) fn let_go(&mut self, context: &Context) {
        let (unused, used): (Vec<_>, Vec<_>) =
            self.leaving.drain(..).partition(|lun| Arc::strong_count(&lun.export) == 1);
        self.leaving = used;
        unused.into_iter().for_each(|lun| lun.close(&context.terminal));
    }

    /// The targets and their disks, an object each.
    pub(super) fn targets(&self) -> Vec<Value> {
        let sessions = self.server.sessions();
        let object = |(name, standing): (&String, &Standing)| {
            let luns: Vec<Value> = standing
                .target
                .device
                .reports()
                .iter()
                .map(|lun| {
                    json!({
                        "number": lun.number,
                        "description": lun.description,
                        "size": lun.blocks * u64::from(lun.block_size),
                        "block_size": lun.block_size,
                        "is_read_only": lun.is_read_only,
                        "registrants": lun.registrants,
                        "reservation": lun.reservation,
                        "reads": lun.activity.reads,
                        "bytes_read": lun.activity.bytes_read,
                        "writes": lun.activity.writes,
                        "bytes_written": lun.activity.bytes_written,
                        "failures": lun.activity.failures,
                    })
                })
                .collect();
            let count = sessions.iter().filter(|session| session.target == *name).count();
            json!({ "name": name, "sessions": count, "luns": luns })
        };
        self.standing.iter().map(object).collect()
    }

    /// The sessions, an object each.
    pub(super) fn sessions(&self) -> Vec<Value> {
        self.server.sessions().iter().map(session).collect()
    }

    /// Sends initiators away, and flushes and closes everything.
    pub(super) fn end(self, context: &Context) {
        let Targets { server, standing, leaving, .. } = self;
        // Whoever looked at it does not any more.
        Arc::into_inner(server).into_iter().for_each(IscsiServer::stop);
        let luns = standing.into_values().flat_map(|mut standing| {
            let numbers: Vec<u16> = standing.target.luns.keys().copied().collect();
            numbers.into_iter().filter_map(|number| standing.target.remove(number)).collect::<Vec<_>>()
        });
        luns.chain(leaving).for_each(|lun| lun.close(&context.terminal));
    }
}

/// What is wrong with a disk.
fn failing(spec: &TargetSpec, lun: &LunSpec, failure: Failure) -> Error {
    failure.into_error().within(format_args!("LUN {} of '{}'", lun.number, spec.name))
}

fn session(session: &SessionReport) -> Value {
    let isid: String = session.isid.iter().map(|byte| format!("{byte:02x}")).collect();
    let connections: Vec<Value> = session
        .connections
        .iter()
        .map(|(cid, peer, local)| {
            json!({
                "number": cid,
                "from": peer.address.map(|address| address.to_string()),
                "portal": local.map(|address| address.to_string()),
            })
        })
        .collect();
    json!({
        "target": session.target,
        "initiator": session.initiator,
        "alias": session.alias,
        "isid": isid,
        "tsih": session.tsih,
        "connections": connections,
        "reads": session.activity.reads,
        "bytes_read": session.activity.bytes_read,
        "writes": session.activity.writes,
        "bytes_written": session.activity.bytes_written,
        "failures": session.activity.failures,
    })
}
