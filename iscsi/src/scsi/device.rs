//! A SCSI target device: its LUNs, ports and nexuses.
//!
//! Not here: what commands do. What holds: every nexus has a seat at every LUN that it may see, from the moment that either comes
//! to the moment that either goes, and is told when LUNs come and go. One lock guards who is there; commands do not ask for it.

use super::alua::{self, AccessState, Groups, Unset};
use super::identity::Identity;
use super::kept::Kept;
use super::lun::{Lun, LunOptions, LunReport};
use super::nexus::Nexus;
use super::sense::{Code, Key, Sense};
use coffer_gateway::serving::Reports;
use coffer_gateway::{Error, Export, Kind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The highest number of a LUN.
const MAX_LUN: u16 = 0x3fff;
/// Initiators that are remembered; beyond, they are told of the device's start once more.
const MAX_KNOWN: usize = 4096;

/// Called with errors that are not an initiator's own affair, a bounded number of each kind a second.
pub type Report = Arc<dyn Fn(&Error) + Send + Sync>;

/// A target port, as initiators and other ports know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortOptions {
    /// Relative target port identifier, from 1.
    pub relative: u16,
    /// Target port group; for iSCSI also the portal group tag.
    pub group: u16,
}

/// What a device is made of.
#[derive(Clone)]
pub struct DeviceOptions {
    /// The target's name.
    pub iqn: String,
    /// Its ports, at least one.
    pub ports: Vec<PortOptions>,
    /// Where what outlives a restart is kept: reservations, saved modes, states of port groups. Without it none does, and no initiator
    /// is told that any would.
    pub state: Option<PathBuf>,
    /// For errors of storage.
    pub report: Option<Report>,
}

/// The LUNs that an initiator sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LunMask {
    /// All of them, also those to come.
    #[default]
    All,
    /// These, if they are there.
    Only(BTreeSet<u16>),
}

impl LunMask {
    /// Whether `lun` is one of them.
    #[must_use]
    pub fn shows(&self, lun: u16) -> bool {
        match self {
            LunMask::All => true,
            LunMask::Only(luns) => luns.contains(&lun),
        }
    }
}

/// Who is there.
#[derive(Default)]
struct Roster {
    luns: BTreeMap<u16, Arc<Lun>>,
    nexuses: Vec<Weak<Nexus>>,
    /// How many nexuses there were.
    joined: u64,
    /// Initiators by name who have been told that the device has started.
    known: BTreeSet<String>,
}

impl Roster {
    fn nexuses(&self) -> impl Iterator<Item = Arc<Nexus>> {
        self.nexuses.iter().filter_map(Weak::upgrade)
    }
}

/// A SCSI target device. See the file's header.
pub struct Device {
    pub(super) iqn: String,
    pub(super) ports: Vec<PortOptions>,
    pub(super) groups: Groups,
    state: Option<PathBuf>,
    report: Option<Report>,
    roster: Mutex<Roster>,
}

impl Device {
    /// A device without LUNs. `Corrupt` if its kept states are damaged.
    pub fn new(options: DeviceOptions) -> Result<Self> {
        let DeviceOptions { iqn, ports, state, report } = options;
        let report = report.map(|report| Reports::new("SCSI device", report).as_report());
        let name = format!("port-groups-{}", Identity::of(&iqn).file_name());
        let kept = state.as_ref().map(|folder| Kept::new(folder, &name, alua::TITLE));
        let groups = Groups::new(&ports, kept)?;
        Ok(Device { iqn, ports, groups, state, report, roster: Mutex::default() })
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        // Each change leaves it sound.
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows an export as `number`. `Locked` if the number is taken or the disk is there already, `Invalid` for one that cannot be
    /// shown, `Corrupt` if its saved modes are damaged. Reservations that are damaged are reported, and lost.
    pub fn add_lun(&self, number: u16, options: LunOptions) -> Result<()> {
        if number > MAX_LUN {
            return Err(Error::invalid(format!("LUN {number}: the highest number is {MAX_LUN}")));
        }
        let lun = Arc::new(Lun::new(number, options, self.state.as_deref(), self.report.as_ref())?);
        let mut roster = self.roster();
        if roster.luns.contains_key(&number) {
            return Err(Error::new(Kind::Locked, format!("there is a LUN {number} already; choose another number")));
        }
        if let Some(other) = roster.luns.values().find(|other| other.identity == lun.identity) {
            let text =
                format!("LUN {number} would be the same disk as LUN {}, which one target shows once", other.number);
            return Err(Error::new(Kind::Locked, text));
        }
        roster.luns.insert(number, Arc::clone(&lun));
        for nexus in roster.nexuses() {
            if nexus.visible.shows(number) {
                nexus.tell(Code::REPORTED_LUNS_CHANGED);
                nexus.sit_down(&lun);
            }
        }
        Ok(())
    }

    /// Takes a LUN away. Tasks that are under way end by themselves. `NotFound` if there is none.
    pub fn remove_lun(&self, number: u16) -> Result<Arc<Export>> {
        let mut roster = self.roster();
        let removed = roster.luns.remove(&number);
        let lun = removed.ok_or_else(|| Error::not_found(format!("there is no LUN {number}")))?;
        for nexus in roster.nexuses() {
            if nexus.stand_up(number) {
                nexus.tell(Code::REPORTED_LUNS_CHANGED);
            }
        }
        lun.sanitizing.give_up();
        Ok(Arc::clone(lun.medium.export()))
    }

    /// A nexus begins: a session's first connection is in its full feature phase. `port` is a relative target port identifier.
    #[must_use]
    pub fn join(self: &Arc<Self>, initiator: &str, isid: [u8; 6], port: u16, visible: LunMask) -> Arc<Nexus> {
        let mut roster = self.roster();
        roster.joined += 1;
        let nexus = Arc::new(Nexus::new(Arc::clone(self), roster.joined, initiator, isid, port, visible));
        for lun in roster.luns.values().filter(|lun| nexus.visible.shows(lun.number)) {
            nexus.sit_down(lun);
        }
        // Who comes back knows that its session was lost: it logged in again.
        if roster.known.insert(initiator.to_lowercase()) {
            nexus.tell(Code::POWER_ON);
        }
        if roster.known.len() > MAX_KNOWN {
            roster.known.clear();
        }
        roster.nexuses.push(Arc::downgrade(&nexus));
        nexus
    }

    /// A nexus ends: its session did.
    pub fn leave(&self, nexus: &Arc<Nexus>) {
        let mut roster = self.roster();
        roster.nexuses.retain(|known| known.upgrade().is_some_and(|known| !Arc::ptr_eq(&known, nexus)));
        roster.luns.values().for_each(|lun| lun.forget(nexus.number));
        nexus.leave();
    }

    /// Sets how well the disks are reached through a group of ports, durably, and tells the initiators. `NotFound`: no such group.
    pub fn set_group_state(&self, group: u16, state: AccessState) -> Result<()> {
        if self.groups.set(group, state)? {
            self.tell_groups_changed(None);
        }
        Ok(())
    }

    /// Does what a SET TARGET PORT GROUPS of `by` asks for.
    pub(super) fn select_groups(&self, list: &[u8], by: &Nexus) -> std::result::Result<(), Sense> {
        match self.groups.select(list) {
            Ok(true) => self.tell_groups_changed(Some(by)),
            Ok(false) => {}
            Err(Unset::Refused(sense)) => return Err(sense),
            Err(Unset::Unkept(e)) => {
                if let Some(report) = &self.report {
                    report(&e);
                }
                return Err(Sense::new(Key::HardwareError, Code::INTERNAL_FAILURE));
            }
        }
        Ok(())
    }

    /// Tells everybody but `by` that groups have other states.
    fn tell_groups_changed(&self, by: Option<&Nexus>) {
        let roster = self.roster();
        let others = roster.nexuses().filter(|nexus| by.is_none_or(|by| !std::ptr::eq(by, &**nexus)));
        others.for_each(|nexus| nexus.tell(Code::ALUA_STATE_CHANGED));
    }

    /// All LUNs as they are now, by number.
    #[must_use]
    pub fn reports(&self) -> Vec<LunReport> {
        self.luns().iter().map(|lun| lun.report()).collect()
    }

    /// What all LUNs show, by number.
    #[must_use]
    pub fn exports(&self) -> Vec<(u16, Arc<Export>)> {
        self.luns().iter().map(|lun| (lun.number, Arc::clone(lun.medium.export()))).collect()
    }

    /// All LUNs.
    pub(super) fn luns(&self) -> Vec<Arc<Lun>> {
        self.roster().luns.values().cloned().collect()
    }

    /// Relative identifiers of all ports.
    pub(super) fn relative_ports(&self) -> Vec<u16> {
        self.ports.iter().map(|port| port.relative).collect()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.luns().iter().for_each(|lun| lun.sanitizing.give_up());
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("iqn", &self.iqn).finish_non_exhaustive()
    }
}
