//! An iSCSI target, as a person writes it: its LUNs, and who may use it.
//!
//! Not here: what a target does ([`coffer_iscsi`]), portals. What holds: secrets come from files that others cannot read; a LUN's names
//! come from what the disk is, so that it is the same disk on every path and after every restart, and another one when it is another.

use super::offer::{Offer, OpenFork, Opener};
use crate::credential::read_bytes;
use crate::exit::Result;
use crate::terminal::Terminal;
use coffer_gateway::nbd::check_private;
use coffer_gateway::{Access, Export, Permit};
use coffer_iscsi::scsi::{Device, DeviceOptions, LunMask, LunOptions, PortOptions, Report};
use coffer_iscsi::{Chap, Credentials, Guest, Secret, TargetOptions};
use coffer_repo::Error;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// A disk of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LunSpec {
    pub(super) number: u16,
    pub(super) offer: Offer,
    /// Logical blocks in bytes; the disk's own without.
    pub(super) block_size: Option<u32>,
    /// What initiators are told is a physical block, in bytes; a logical one without.
    pub(super) physical_block_size: Option<u32>,
}

/// Who proves to be somebody, and the file of the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CredentialSpec {
    pub(super) name: String,
    pub(super) secret: PathBuf,
}

/// Somebody who may use a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GuestSpec {
    /// The initiator of this name; any without.
    pub(super) initiator: Option<String>,
    /// Where it may come from; anywhere without.
    pub(super) permits: Vec<Permit>,
    /// What it has to prove, and what the target proves to it.
    pub(super) chap: Option<(CredentialSpec, Option<CredentialSpec>)>,
    /// What it sees; everything without.
    pub(super) luns: Option<BTreeSet<u16>>,
}

/// A target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TargetSpec {
    pub(super) name: String,
    pub(super) luns: Vec<LunSpec>,
    pub(super) guests: Vec<GuestSpec>,
}

/// A target whose disks are open.
pub(super) struct OpenTarget {
    pub(super) device: Arc<Device>,
    pub(super) luns: BTreeMap<u16, OpenLun>,
}

/// A disk of it.
pub(super) struct OpenLun {
    pub(super) spec: LunSpec,
    pub(super) export: Arc<Export>,
    pub(super) fork: Option<OpenFork>,
}

impl TargetSpec {
    /// Makes the target, without disks: they come by [`OpenTarget::add`].
    pub(super) fn open(
        &self,
        ports: Vec<PortOptions>,
        state: PathBuf,
        report: Report,
    ) -> Result<(OpenTarget, TargetOptions)> {
        let options = DeviceOptions { iqn: self.name.clone(), ports, state: Some(state), report: Some(report) };
        let device = Arc::new(Device::new(options)?);
        let guests = self.guests.iter().map(GuestSpec::open).collect::<Result<_>>()?;
        let options = TargetOptions { name: self.name.clone(), alias: None, device: Arc::clone(&device), guests };
        Ok((OpenTarget { device, luns: BTreeMap::new() }, options))
    }
}

impl OpenTarget {
    /// Opens a disk and shows it, to sessions that there are too.
    pub(super) fn add(&mut self, spec: &LunSpec, opener: &mut Opener<'_>) -> Result<()> {
        let opened = opener.open(&spec.offer)?;
        let export = Arc::new(opened.export);
        let options = LunOptions {
            export: Arc::clone(&export),
            block_size: spec.block_size,
            physical_block_size: spec.physical_block_size,
            identity: opened.identity,
        };
        self.device.add_lun(spec.number, options)?;
        self.luns.insert(spec.number, OpenLun { spec: spec.clone(), export, fork: opened.fork });
        Ok(())
    }

    /// Shows a disk no more. Commands that are under way have it still.
    pub(super) fn remove(&mut self, number: u16) -> Option<OpenLun> {
        let lun = self.luns.remove(&number)?;
        // It is there: only this adds and removes.
        let _ = self.device.remove_lun(number);
        Some(lun)
    }
}

impl OpenLun {
    /// Lets go of the disk; a fork is flushed for the last time.
    pub(super) fn close(self, terminal: &Terminal) {
        let OpenLun { export, fork, .. } = self;
        drop(export);
        fork.into_iter().for_each(|fork| fork.close(terminal));
    }
}

impl GuestSpec {
    fn open(&self) -> Result<Guest> {
        let chap = match &self.chap {
            None => None,
            Some((initiator, target)) => {
                let target = target.as_ref().map(CredentialSpec::open).transpose()?;
                Some(Chap::new(initiator.open()?, target)?)
            }
        };
        Ok(Guest {
            initiator: self.initiator.clone(),
            access: Access::only(self.permits.clone()),
            chap,
            luns: self.luns.clone().map_or(LunMask::All, LunMask::Only),
        })
    }
}

impl CredentialSpec {
    /// Reads the secret: the file's content without the line's end.
    pub(super) fn open(&self) -> Result<Credentials> {
        let what = format!("the CHAP secret of '{}'", self.name);
        let within = |e: Error| e.within(&what);
        let metadata = std::fs::metadata(&self.secret);
        let metadata = metadata.map_err(|e| within(Error::io(self.secret.display().to_string(), e)))?;
        check_private(&self.secret, &metadata).map_err(within)?;
        let bytes = read_bytes(&self.secret, &what)?;
        let bytes = bytes.strip_suffix(b"\n").map_or(bytes.as_slice(), |rest| rest.strip_suffix(b"\r").unwrap_or(rest));
        Ok(Credentials { name: self.name.clone(), secret: Secret::new(bytes).map_err(within)? })
    }
}
