//! A new image file as a target, written through a private qemu-nbd.
//!
//! Not here: the format. What holds: the image was made empty, or holds what the same restore wrote, so that what is not
//! written reads as zeroes; qemu's own lock keeps others out.

use super::nbd::NbdTarget;
use super::{DiskTarget, Order, Space, Start, TargetOptions, sync_name};
use crate::image_format::ImageFormat;
use crate::qemu_nbd::{Purpose, QemuNbd, create_image};
use crate::source::RandomDisk;
use crate::{Error, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An open image. The client in `disk` leaves before the child is waited for or killed.
pub(super) struct ImageTarget {
    disk: Box<NbdTarget>,
    qemu: QemuNbd,
    path: PathBuf,
}

impl ImageTarget {
    /// Makes (or goes on with) the image at `path` of a disk of `size` bytes.
    pub(super) fn open(
        path: &Path,
        format: ImageFormat,
        size: u64,
        start: Start,
        options: &TargetOptions,
    ) -> Result<Self> {
        // qemu rounds down what is no multiple of a sector.
        let capacity = size.next_multiple_of(512);
        if start == Start::Fresh {
            create_image(path, format, capacity, options.space == Space::Allocated)?;
        }
        let (qemu, client) = QemuNbd::start(path, format, Purpose::Writing, &options.scratch)?;
        let disk = Box::new(NbdTarget::new(client, options.space));
        if disk.size() != capacity {
            return Err(Error::invalid(format!("the image has {} bytes where {capacity} are due", disk.size())));
        }
        Ok(ImageTarget { disk, qemu, path: path.to_owned() })
    }

    fn with_messages<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|e| e.within(format!("qemu-nbd{}", self.qemu.errors().clause())))
    }
}

impl DiskTarget for ImageTarget {
    fn order(&self) -> Order {
        Order::Any
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.with_messages(self.disk.write_at(offset, bytes))
    }

    fn zero(&self, _range: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.with_messages(self.disk.sync())
    }

    fn read_back(&self) -> Result<Box<dyn RandomDisk + '_>> {
        self.disk.read_back()
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let ImageTarget { disk, qemu, path } = *self;
        disk.finish()?;
        qemu.finish()?;
        sync_name(&path)
    }
}
