//! The disks of a source as what healing may take bytes from.
//!
//! Not here: healing ([`coffer_repo::heal`]), which knows bytes by their id, so that a source that changes meanwhile does no harm.

use crate::source::{Access, DiskSource, RandomDisk, SourceDisk};
use crate::{Error, Kind, Result};
use coffer_repo::heal::DonorDisk;

/// One disk of a source.
pub struct SourceDonor<'a> {
    name: &'a str,
    disk: &'a dyn RandomDisk,
}

/// The disks of a source. `Unsupported` for one that can only be read in order.
pub fn disks(source: &dyn DiskSource) -> Result<Vec<SourceDonor<'_>>> {
    source.disks().iter().map(donor).collect()
}

fn donor(disk: &SourceDisk) -> Result<SourceDonor<'_>> {
    let name = disk.name.as_str();
    match &disk.access {
        Access::Random(disk) => Ok(SourceDonor { name, disk: &**disk }),
        Access::Sequential(_) => {
            let why =
                format!("disk '{name}' can only be read in order, from its start; healing looks for bytes anywhere");
            Err(Error::new(Kind::Unsupported, why))
        }
    }
}

impl DonorDisk for SourceDonor<'_> {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn size(&self) -> Result<u64> {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        Ok(self.disk.read_at(offset, out)?)
    }
}
