//! Image files (qcow2, VMDK, VHDX, VDI) with their backing chains, read through a private qemu-nbd.
//!
//! Not here: the formats; qemu knows them best. What holds: the image is opened read-only and under qemu's own lock, so an
//! image that a machine writes to is refused; what qemu said is part of every error.

use super::{Access, DiskSource, NbdDisk, RandomDisk, ReadFault, SourceDisk, SourceExtent, SourceOptions};
use crate::Result;
use crate::image_format::ImageFormat;
use crate::qemu_nbd::{Errors, Purpose, QemuNbd};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Logical block size of disks in images: qemu does not tell, and presents all of them so.
const SECTOR: u32 = 512;

/// A session with one image. The client in `disks` leaves before the child is waited for or killed.
struct ImageSource {
    disks: Vec<SourceDisk>,
    warnings: Vec<String>,
    qemu: QemuNbd,
}

/// Opens the image at `path`.
pub(super) fn open(
    disk: String,
    path: &Path,
    format: ImageFormat,
    warnings: Vec<String>,
    options: &SourceOptions,
) -> Result<Box<dyn DiskSource>> {
    let (qemu, client) = QemuNbd::start(path, format, Purpose::Reading, &options.scratch)?;
    let image = ImageDisk { disk: NbdDisk::new(Arc::new(client)), errors: qemu.errors().clone() };
    let disks = vec![SourceDisk { name: disk, block_size: SECTOR, access: Access::Random(Box::new(image)) }];
    Ok(Box::new(ImageSource { disks, warnings, qemu }))
}

impl DiskSource for ImageSource {
    fn disks(&self) -> &[SourceDisk] {
        &self.disks
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn finish(self: Box<Self>) -> Result<Vec<Option<String>>> {
        let ImageSource { disks, qemu, .. } = *self;
        drop(disks);
        qemu.finish()?;
        Ok(vec![None])
    }
}

/// An image as a disk, whose errors say what qemu said.
struct ImageDisk {
    disk: NbdDisk,
    errors: Errors,
}

impl RandomDisk for ImageDisk {
    fn size(&self) -> Result<u64> {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), ReadFault> {
        self.disk.read_at(offset, out).map_err(|e| e.within(format!("qemu-nbd{}", self.errors.clause())))
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<SourceExtent>> {
        self.disk.extents(range, max).map_err(|e| e.within(format!("qemu-nbd{}", self.errors.clause())))
    }
}
