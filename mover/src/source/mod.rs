//! Sources of backups: the one door, the seam behind it, and the disks it yields.
//!
//! ```text
//!   source::open("vda=/srv/a.qcow2") -> DiskSource          one session: a moment of one or several disks
//!                                         |  disks()
//!                                         v
//!                                     SourceDisk.access:  Random(RandomDisk)  -> WindowFeed  --\
//!                                                         Sequential(Stream)  -> StreamFeed ----+-> repository writer
//! ```
//!
//! Not here: chunking, comparing, committing. What holds: dropping a [`DiskSource`] aborts it, whatever happened, and ends
//! all it started; [`DiskSource::finish`] ends it too and says whether what was read may be committed; a token that a source
//! does not honour yields extents without [`Content::Unchanged`], never a wrong one.

mod feed;
mod file;
mod image;
mod nbd;
mod stream;

pub use feed::{FeedOptions, WindowFeed};
pub(crate) use file::FileDisk;
pub(crate) use nbd::NbdDisk;
pub use stream::{Stream, StreamFeed};

use crate::image_format::ImageFormat;
use crate::location::{Location, SourceSpec};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// How sources are opened.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// Read a device although it is mounted read-write: what is read may not be of one moment. A warning is given.
    pub live: bool,
    /// The format of image files; `None`: by their names and first bytes, see [`crate::image_format`].
    pub format: Option<ImageFormat>,
    /// By name of the disk, the token its parent snapshot was committed with: what has not changed since need not be read.
    pub tokens: BTreeMap<String, String>,
    /// A folder in which private folders for sockets are made. Its path must be short: a socket's is at most 107 bytes.
    pub scratch: PathBuf,
}

impl Default for SourceOptions {
    fn default() -> Self {
        SourceOptions { live: false, format: None, tokens: BTreeMap::new(), scratch: PathBuf::from("/tmp") }
    }
}

/// A session with something that holds disks, from opening to [`finish`](DiskSource::finish) or drop.
pub trait DiskSource: Send {
    /// The disks, as of one moment.
    fn disks(&self) -> &[SourceDisk];

    /// What the user ought to know about this backup although it goes on.
    fn warnings(&self) -> &[String];

    /// Ends the session after everything was read, and gives for each disk the token by which the next run can ask what has
    /// changed since. An error means that what was read must not be committed.
    fn finish(self: Box<Self>) -> Result<Vec<Option<String>>>;
}

/// One disk of a session.
pub struct SourceDisk {
    /// Its name in the snapshot.
    pub name: String,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// How it is read.
    pub access: Access,
}

/// How a disk can be read.
pub enum Access {
    /// Anywhere, in any order, by several threads.
    Random(Box<dyn RandomDisk>),
    /// From its start to its end, once; its size is known only then.
    Sequential(Stream),
}

/// A disk that can be read anywhere.
pub trait RandomDisk: Send + Sync {
    /// Its size in bytes now: asked of the source again at every call, so that a change is seen.
    fn size(&self) -> Result<u64>;

    /// Fills `out` from `offset` on.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), ReadFault>;

    /// Stretches that cover `range` from its start on, in order and without gaps: at most `max`, at least one for a range that
    /// is not empty.
    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<SourceExtent>>;
}

/// What a stretch of a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes that have to be read.
    Bytes,
    /// Reads as zeroes.
    Zero,
    /// As it was when the token was given.
    Unchanged,
}

/// A stretch of a source, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceExtent {
    /// Where it lies.
    pub range: Range<u64>,
    /// What it is.
    pub content: Content,
}

/// Why a read failed: the difference decides whether a run that keeps going may go on.
#[derive(Debug)]
pub enum ReadFault {
    /// The source answers, but cannot read some of these bytes.
    Bytes(Error),
    /// The source itself failed: it is gone, it broke its protocol, it shrank.
    Source(Error),
}

impl ReadFault {
    /// The same fault with `context` before its error's.
    #[must_use]
    pub fn within(self, context: impl fmt::Display) -> Self {
        match self {
            ReadFault::Bytes(error) => ReadFault::Bytes(error.within(context)),
            ReadFault::Source(error) => ReadFault::Source(error.within(context)),
        }
    }
}

impl From<ReadFault> for Error {
    fn from(fault: ReadFault) -> Error {
        match fault {
            ReadFault::Bytes(error) | ReadFault::Source(error) => error,
        }
    }
}

/// Opens the source that `spec` names: `[DISK=]LOCATION`, see [`crate::location`].
pub fn open(spec: &str, options: &SourceOptions) -> Result<Box<dyn DiskSource>> {
    let SourceSpec { disk, location } = spec.parse()?;
    let opened: Result<Box<dyn DiskSource>> = match &location {
        Location::Standard => stream::open_standard_input(disk),
        Location::Nbd(uri) => nbd::open(disk, uri),
        Location::Path(path) => match file::open(disk, path, options) {
            Ok(file::Opened::Raw(source)) => Ok(Box::new(source)),
            Ok(file::Opened::Image { disk, format, warnings }) => image::open(disk, path, format, warnings, options),
            Err(error) => Err(error),
        },
    };
    opened.map_err(|error| error.within(format!("opening source {location}")))
}
