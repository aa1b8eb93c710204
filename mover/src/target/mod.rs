//! Targets of restores: the one door, and the seam behind it.
//!
//! ```text
//!   target::open("/srv/vda.qcow2", disk) -> Target { DiskTarget: file | device | image | nbd | stream, checkpoint? }
//! ```
//!
//! Not here: copying. What holds: nothing that holds something is overwritten unless the caller insists, except by the same
//! restore going on; a device that is in use is refused even then; after [`DiskTarget::sync`] what was written is
//! durable.

mod device;
mod file;
mod image;
mod nbd;
mod stream;

use crate::checkpoint::{Checkpoint, Key};
use crate::image_format::ImageFormat;
use crate::location::Location;
use crate::source::RandomDisk;
use crate::{Error, Kind, Result};
use coffer_gateway::nbd::NbdUri;
use coffer_repo::id::SnapshotId;
use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What is done with the space of zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Space {
    /// It is left out or given back.
    #[default]
    Sparse,
    /// It is allocated, so that later writes cannot run out of space.
    Allocated,
}

/// How targets are opened.
#[derive(Clone, Debug)]
pub struct TargetOptions {
    /// Overwrite what is there.
    pub force: bool,
    /// The format of a file that is made; `None`: qcow2 if it is named so, else raw.
    pub format: Option<ImageFormat>,
    /// What is done with the space of zeroes.
    pub space: Space,
    /// A folder in which private folders for sockets are made; see [`SourceOptions`](crate::source::SourceOptions::scratch).
    pub scratch: PathBuf,
}

impl Default for TargetOptions {
    fn default() -> Self {
        TargetOptions { force: false, format: None, space: Space::default(), scratch: PathBuf::from("/tmp") }
    }
}

/// The disk that is restored.
#[derive(Clone, Debug)]
pub struct RestoredDisk {
    /// The snapshot it comes from.
    pub snapshot: SnapshotId,
    /// Its name there.
    pub name: String,
    /// In bytes.
    pub size: u64,
}

/// In which order a target takes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Any, from several threads.
    Any,
    /// From the start to the end without gaps.
    Ascending,
}

/// Something that takes a disk's bytes.
pub trait DiskTarget: Send + Sync {
    /// In which order it wants them.
    fn order(&self) -> Order;

    /// Writes `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Makes `range` read as zeroes.
    fn zero(&self, range: Range<u64>) -> Result<()>;

    /// Makes everything that was written durable.
    fn sync(&self) -> Result<()>;

    /// The target as a disk to be read, as far from caches as it gets. Follows [`sync`](DiskTarget::sync). `Unsupported` where
    /// what was written cannot be read.
    fn read_back(&self) -> Result<Box<dyn RandomDisk + '_>>;

    /// Ends it after everything is durable. Dropping it instead leaves a partly restored target.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// An open target.
pub struct Target {
    pub(crate) disk: Box<dyn DiskTarget>,
    /// Only where an interrupted restore can go on.
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) size: u64,
    warnings: Vec<String>,
}

impl Target {
    /// What the user ought to know about this restore although it goes on.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// Opens the target that `location` names for `disk`. A file with the checkpoint of the same restore goes on where that
/// ended.
pub fn open(location: &str, disk: &RestoredDisk, options: &TargetOptions) -> Result<Target> {
    let location: Location = location.parse()?;
    let opened = match &location {
        Location::Standard => stream::open_standard_output().map(|target| plain(Box::new(target), disk, Vec::new())),
        Location::Nbd(uri) => open_export(uri, disk, options),
        Location::Path(path) => open_path(path, disk, options),
    };
    opened.map_err(|error| error.within(format!("opening target {location}")))
}

/// A target whose restore cannot go on after an interruption.
fn plain(target: Box<dyn DiskTarget>, disk: &RestoredDisk, warnings: Vec<String>) -> Target {
    Target { disk: target, checkpoint: None, size: disk.size, warnings }
}

fn open_export(uri: &NbdUri, disk: &RestoredDisk, options: &TargetOptions) -> Result<Target> {
    let target = nbd::NbdTarget::connect(uri, options.space)?;
    let warnings = check_device(&target, target.size(), disk, options)?;
    Ok(plain(Box::new(target), disk, warnings))
}

fn open_path(path: &Path, disk: &RestoredDisk, options: &TargetOptions) -> Result<Target> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_block_device() => {
            if options.format.is_some_and(|format| format != ImageFormat::Raw) {
                return Err(Error::invalid("an image cannot be made on a block device, only in a file"));
            }
            let target = device::DeviceTarget::open(path, options.space)?;
            let warnings = check_device(&target, target.size()?, disk, options)?;
            Ok(plain(Box::new(target), disk, warnings))
        }
        Ok(metadata) if metadata.is_file() => open_file(path, Some(&metadata), disk, options),
        Ok(_) => Err(Error::invalid("it is neither a file nor a block device")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => open_file(path, None, disk, options),
        Err(e) => Err(Error::io("asking what it is", e)),
    }
}

/// Opens a file: the one of an interrupted restore as it is, any other from scratch.
fn open_file(path: &Path, old: Option<&Metadata>, disk: &RestoredDisk, options: &TargetOptions) -> Result<Target> {
    let format = match options.format.or_else(|| ImageFormat::of_name(path)).unwrap_or(ImageFormat::Raw) {
        made @ (ImageFormat::Raw | ImageFormat::Qcow2) => made,
        other => {
            let context = format!("restoring to {other}: restore to raw or qcow2 and use qemu-img convert -O {other}");
            return Err(Error::new(Kind::Unsupported, context));
        }
    };
    let key = |of: &Metadata| Key {
        snapshot: disk.snapshot,
        disk: &disk.name,
        size: disk.size,
        format,
        file: (of.dev(), of.ino()),
    };
    let earlier = old.map(|old| Checkpoint::resume(path, &key(old))).transpose();
    let earlier = match earlier {
        Ok(earlier) => earlier.flatten(),
        Err(_) if options.force => None,
        Err(error) => return Err(error),
    };
    if old.is_some() && earlier.is_none() && !options.force {
        return Err(Error::invalid(
            "it exists, and not as the interrupted restore of this disk; say --force to overwrite it, or choose another",
        ));
    }
    let start = if earlier.is_some() { Start::Resume } else { Start::Fresh };
    let target: Box<dyn DiskTarget> = match format {
        ImageFormat::Qcow2 => Box::new(image::ImageTarget::open(path, format, disk.size, start, options)?),
        _ => Box::new(file::FileTarget::open(path, disk.size, start, options.space)?),
    };
    let checkpoint = match earlier {
        Some(earlier) => earlier,
        None => {
            let made = std::fs::metadata(path).map_err(|e| Error::io("asking for its number", e))?;
            Checkpoint::begin(path, &key(&made))?
        }
    };
    Ok(Target { disk: target, checkpoint: Some(checkpoint), size: disk.size, warnings: Vec::new() })
}

/// Whether a file is begun or gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// It is made, or emptied.
    Fresh,
    /// It holds what an interrupted restore wrote.
    Resume,
}

/// How much of a device's ends is looked at to tell whether it holds something: boot sectors, partition tables and the
/// superblocks of file systems lie there.
const ENDS: u64 = 1 << 20;

/// Sees that a device of `capacity` bytes takes `disk`, and is empty unless the caller insists.
fn check_device(
    target: &dyn DiskTarget,
    capacity: u64,
    disk: &RestoredDisk,
    options: &TargetOptions,
) -> Result<Vec<String>> {
    if capacity < disk.size {
        return Err(Error::invalid(format!("it has {capacity} bytes, disk {} needs {}", disk.name, disk.size)));
    }
    if !options.force {
        let device = target.read_back()?;
        let tail = capacity.saturating_sub(ENDS);
        for range in [0..ENDS.min(capacity), tail..capacity] {
            let length = usize::try_from(range.end - range.start).map_err(|_| Error::internal("a large end"))?;
            let mut bytes = vec![0; length];
            device.read_at(range.start, &mut bytes)?;
            if bytes.iter().any(|&b| b != 0) {
                return Err(Error::invalid(format!(
                    "it is not empty (bytes {} to {} are not all zero); say --force to overwrite it",
                    range.start, range.end
                )));
            }
        }
    }
    let larger = capacity - disk.size;
    let warning = format!(
        "the target is {larger} bytes larger than disk {}; the rest is left as it is, and what must lie at a disk's end \
         (a second GPT) lies before it",
        disk.name
    );
    Ok(if larger == 0 { Vec::new() } else { vec![warning] })
}

/// Makes the name of a new file durable.
fn sync_name(path: &Path) -> Result<()> {
    let absolute = std::path::absolute(path).map_err(|e| Error::io("finding its folder", e))?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| Error::io(format!("making the name of {} durable", path.display()), e))
}

/// Zeroes a range the slow way, by writing, a MiB at a time.
fn write_zeroes(target: &dyn DiskTarget, range: Range<u64>) -> Result<()> {
    const ZEROES: usize = 1 << 20;
    let zeroes = vec![0; ZEROES];
    let mut at = range.start;
    while at < range.end {
        let length = usize::try_from(range.end - at).unwrap_or(ZEROES).min(ZEROES);
        target.write_at(at, zeroes.get(..length).unwrap_or_default())?;
        at += length as u64;
    }
    Ok(())
}
