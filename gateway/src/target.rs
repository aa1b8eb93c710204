//! Where a disk is brought to: a file, a block device or an NBD export, as a person writes it, and opened.
//!
//! ```text
//!   "/dev/vg/web", "web.raw", "nbd://host/web"  ->  Place (absolute)  ->  FileDevice | NbdClient
//! ```
//! Not here: copying. What holds: a place means the same from every folder, so that it can be written down; nothing that holds
//! something is overwritten unless the caller insists; what is in use is refused even then, where that can be told.

use crate::device::BlockDevice;
use crate::nbd::{ClientOptions, NbdClient, NbdUri, Place as Socket};
use crate::{Content, Error, FileDevice, Kind, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// How much of the ends of a device is looked at to tell whether it holds something: boot sectors, partition tables and the
/// superblocks of file systems lie there.
const ENDS: u64 = 1 << 20;

/// A place that can take a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file or a block device.
    Path(PathBuf),
    /// An NBD export.
    Nbd(NbdUri),
}

/// A place that was opened.
pub struct Target {
    device: Arc<dyn BlockDevice>,
    /// The same, if it is one.
    file: Option<Arc<FileDevice>>,
}

/// Whether what a place holds may be overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// Only if it holds nothing, as far as a look tells.
    IfEmpty,
    /// In any case.
    Always,
}

impl FromStr for Place {
    type Err = Error;

    /// Relative paths are those of the working directory at this moment.
    fn from_str(text: &str) -> Result<Self> {
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|e| Error::io(format!("finding the folder of {}", path.display()), e))
        };
        match text.split_once("://") {
            _ if text.is_empty() => Err(Error::invalid("an empty target: a path or an nbd:// URI is due")),
            Some(("nbd" | "nbds" | "nbd+unix" | "nbds+unix", _)) => {
                let mut uri: NbdUri = text.parse()?;
                if let Socket::Unix(path) = &mut uri.place {
                    *path = absolute(path)?;
                }
                if let Some(folder) = uri.tls.as_mut().and_then(|tls| tls.certificates.as_mut()) {
                    *folder = absolute(folder)?;
                }
                Ok(Place::Nbd(uri))
            }
            Some((scheme, _)) if scheme.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'+') => {
                let why = format!("'{text}': '{scheme}:' is no kind of target that this version knows");
                Err(Error::new(Kind::Unsupported, format!("{why}; it knows paths, nbd:// and nbd+unix://")))
            }
            _ => Ok(Place::Path(absolute(Path::new(text))?)),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Path(path) => write!(f, "{}", path.display()),
            Place::Nbd(uri) => write!(f, "{uri}"),
        }
    }
}

impl Place {
    /// Whether something is there. An export is, until it is found missing.
    #[must_use]
    pub fn exists(&self) -> bool {
        match self {
            Place::Path(path) => path.symlink_metadata().is_ok(),
            Place::Nbd(_) => true,
        }
    }

    /// Makes a file with `size` bytes there, all of them a hole.
    pub fn create(&self, size: u64) -> Result<Target> {
        match self {
            Place::Path(path) => Ok(Target::of_file(FileDevice::create(path, size)?)),
            Place::Nbd(_) => Err(Error::internal("an export cannot be made from here")),
        }
    }

    /// Opens what is there for a disk of `size` bytes that it is to take. `Invalid` when it is smaller, or holds something that is not
    /// to be overwritten, or is a file of another size: a file is the disk and nothing else.
    pub fn open_for(&self, size: u64, overwrite: Overwrite) -> Result<Target> {
        let target = self.open(size)?;
        if overwrite == Overwrite::IfEmpty {
            self.check_empty(&*target.device)?;
        }
        Ok(target)
    }

    /// Opens what is there and holds a disk of `size` bytes.
    pub fn open(&self, size: u64) -> Result<Target> {
        let target = match self {
            Place::Path(path) => Target::of_file(FileDevice::open(path)?),
            Place::Nbd(uri) => {
                Target { device: Arc::new(NbdClient::connect(uri, &ClientOptions::default())?), file: None }
            }
        };
        let found = target.device.size();
        let may_be_larger = target.file.as_ref().is_none_or(|file| file.is_block_device());
        if target.device.is_read_only() {
            return Err(Error::invalid(format!("{self} can be read only")));
        }
        if found < size {
            return Err(Error::invalid(format!(
                "{self} has {found} bytes, the disk needs {size}: choose a larger one"
            )));
        }
        if found > size && !may_be_larger {
            let why = "a file has to be as large as the disk: resize it, or name one that does not exist";
            return Err(Error::invalid(format!("{self} has {found} bytes, the disk has {size}; {why}")));
        }
        Ok(target)
    }

    /// An error when something seems to be there.
    fn check_empty(&self, device: &dyn BlockDevice) -> Result<()> {
        let size = device.size();
        let holds = |from: u64, to: u64| {
            let why =
                format!("{self} is not empty (bytes {from} to {to} are not all zero); say --force to overwrite it");
            Err(Error::invalid(why))
        };
        let tail = size.saturating_sub(ENDS);
        for range in [0..ENDS.min(size), tail..size] {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or_default()];
            device.read_at(range.start, &mut bytes)?;
            if bytes.iter().any(|byte| *byte != 0) {
                return holds(range.start, range.end);
            }
        }
        // What is between them in a file is free to look at; a device would have to be read.
        let Place::Path(_) = self else { return Ok(()) };
        match device.extents(0..size, 2)?.iter().find(|extent| extent.content != Content::Zero) {
            Some(extent) if extent.range != (0..size) => holds(extent.range.start, extent.range.end),
            _ => Ok(()),
        }
    }
}

impl Target {
    fn of_file(file: FileDevice) -> Self {
        let file = Arc::new(file);
        Target { device: Arc::clone(&file) as _, file: Some(file) }
    }

    /// What it is.
    #[must_use]
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.device)
    }

    /// Sees that whoever opens the place finds this target, and makes that durable.
    pub fn settle_name(&self) -> Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| file.settle_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Durability;

    fn place(text: &str) -> Place {
        text.parse().unwrap()
    }

    #[test]
    fn a_place_means_the_same_from_everywhere() {
        let Place::Path(path) = place("some.raw") else { panic!("it is a path") };
        assert!(path.is_absolute() && path.ends_with("some.raw"));
        let text = place("nbds+unix:///x?socket=s&tls-certificates=c").to_string();
        assert!(text.contains("socket=/") && text.contains("tls-certificates=/"), "{text}");
        assert_eq!(place(&text).to_string(), text);
        assert_eq!(place("nbd://host/x").to_string(), "nbd://host:10809/x");
        for (bad, kind) in [("", Kind::Invalid), ("s3://b/k", Kind::Unsupported), ("nbd://u@h/x", Kind::Invalid)] {
            assert_eq!(bad.parse::<Place>().unwrap_err().kind(), kind, "{bad}");
        }
    }

    #[test]
    fn what_holds_something_or_is_of_the_wrong_size_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Path(folder.path().join("disk"));
        assert!(!place.exists());
        drop(place.create(8 << 20).unwrap());
        place.open_for(8 << 20, Overwrite::IfEmpty).unwrap();
        for size in [(8 << 20) + 1, (8 << 20) - 1] {
            let error = place.open_for(size, Overwrite::Always).err().unwrap();
            assert!(error.kind() == Kind::Invalid && error.to_string().contains(&size.to_string()), "{error}");
        }
        for at in [0, 4 << 20, (8 << 20) - 1] {
            let device = place.open(8 << 20).unwrap().device();
            device.write_at(at, &[1], Durability::Cached).unwrap();
            drop(device);
            let error = place.open_for(8 << 20, Overwrite::IfEmpty).err().unwrap();
            assert!(error.to_string().contains("--force"), "{error}");
            let device = place.open_for(8 << 20, Overwrite::Always).unwrap().device();
            let how = crate::Zeroing { may_unmap: true, fast_only: false, durability: Durability::Cached };
            device.zero(0..8 << 20, how).unwrap();
        }
    }
}
