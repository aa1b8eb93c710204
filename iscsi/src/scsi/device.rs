//! A SCSI target device: its LUNs, ports and nexuses.

use super::lun::{Lun, LunOptions};
use super::nexus::Nexus;
use coffer_gateway::{Error, Export, Kind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

/// Called with errors that are not an initiator's own affair.
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
    /// Where reservations that outlive power losses are kept; none can be asked for without it.
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

/// A SCSI target device. See the file's header.
pub struct Device {
    pub(crate) options: DeviceOptions,
    luns: RwLock<BTreeMap<u16, Arc<Lun>>>,
    nexuses: Mutex<Vec<Weak<Nexus>>>,
}

impl Device {
    /// A device without LUNs.
    #[must_use]
    pub fn new(options: DeviceOptions) -> Self {
        Device { options, luns: RwLock::default(), nexuses: Mutex::default() }
    }

    /// Shows an export as `number`. `Locked` if the number is taken.
    pub fn add_lun(&self, number: u16, lun: LunOptions) -> Result<()> {
        let mut luns = self.luns.write().unwrap_or_else(PoisonError::into_inner);
        if luns.contains_key(&number) {
            return Err(Error::new(Kind::Locked, format!("there is a LUN {number} already; choose another number")));
        }
        let block_size = lun.block_size.unwrap_or(lun.export.device.block_size());
        luns.insert(number, Arc::new(Lun { export: lun.export, block_size }));
        Ok(())
    }

    /// Takes a LUN away. Tasks that are under way end by themselves. `NotFound` if there is none.
    pub fn remove_lun(&self, number: u16) -> Result<Arc<Export>> {
        let removed = self.luns.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
        let lun = removed.ok_or_else(|| Error::not_found(format!("there is no LUN {number}")))?;
        Ok(Arc::clone(&lun.export))
    }

    /// A nexus begins: a session's first connection is in its full feature phase. `port` is a relative target port identifier.
    #[must_use]
    pub fn join(self: &Arc<Self>, initiator: &str, isid: [u8; 6], port: u16, visible: LunMask) -> Arc<Nexus> {
        let nexus = Arc::new(Nexus::new(Arc::clone(self), initiator, isid, port, visible));
        self.nexuses.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&nexus));
        nexus
    }

    /// A nexus ends: its session did.
    pub fn leave(&self, nexus: &Arc<Nexus>) {
        let mut nexuses = self.nexuses.lock().unwrap_or_else(PoisonError::into_inner);
        nexuses.retain(|known| known.upgrade().is_some_and(|known| !Arc::ptr_eq(&known, nexus)));
    }

    pub(crate) fn lun(&self, number: u16) -> Option<Arc<Lun>> {
        self.luns.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("iqn", &self.options.iqn).finish_non_exhaustive()
    }
}
