//! Raw files and block devices, read in place.
//!
//! Not here: image formats; a file that is one is handed back by name. What holds: holes of a file are not read; a device
//! that is mounted read-write is refused unless the caller insists; a file that ends early is the source's failure, never
//! zeroes.

use super::{Access, Content, DiskSource, RandomDisk, ReadFault, SourceDisk, SourceExtent, SourceOptions};
use crate::image_format::{HEAD, ImageFormat};
use crate::{Error, Kind, Result, mounts};
use rustix::fs::{Advice, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

/// What a path turned out to be.
pub(super) enum Opened {
    /// The disk itself.
    Raw(FileSource),
    /// An image of `format`, to be read by somebody who knows it.
    Image {
        /// The disk's name.
        disk: String,
        /// The image's format.
        format: ImageFormat,
        /// What was found out on the way.
        warnings: Vec<String>,
    },
}

/// A session with one raw file or block device.
pub(super) struct FileSource {
    disks: [SourceDisk; 1],
    warnings: Vec<String>,
}

/// Opens `path` and finds out what it is.
pub(super) fn open(disk: String, path: &Path, options: &SourceOptions) -> Result<Opened> {
    // Asked first: opening a pipe waits for somebody to write to it.
    let metadata = std::fs::metadata(path).map_err(|e| Error::io("asking what it is", e))?;
    let is_device = metadata.file_type().is_block_device();
    if !is_device && !metadata.is_file() {
        return Err(Error::invalid("it is neither a file nor a block device; a pipe is read as -"));
    }
    let file = File::open(path).map_err(|e| Error::io("opening it for reading", e))?;
    let mut warnings = Vec::new();
    let mut block_size = 512;
    if is_device {
        warnings.extend(check_mounts(metadata.rdev(), options.live)?);
        block_size =
            rustix::fs::ioctl_blksszget(&file).map_err(|e| Error::io("asking for its block size", e.into()))?;
    }
    let mut head = [0; HEAD];
    let length = read_head(&file, &mut head)?;
    let format = ImageFormat::decide(path, head.get(..length).unwrap_or_default(), options.format)?;
    if format != ImageFormat::Raw {
        return Ok(Opened::Image { disk, format, warnings });
    }
    // Advice only: a file system that does not take it reads as well.
    let _ = rustix::fs::fadvise(&file, 0, None::<NonZeroU64>, Advice::Sequential);
    let disk = SourceDisk { name: disk, block_size, access: Access::Random(Box::new(FileDisk::new(file))) };
    Ok(Opened::Raw(FileSource { disks: [disk], warnings }))
}

/// Refuses a device that is written to meanwhile, or warns of it.
fn check_mounts(device: u64, live: bool) -> Result<Option<String>> {
    let Some(point) = mounts::mounted_read_write(device)? else { return Ok(None) };
    let point = point.display();
    if live {
        return Ok(Some(format!(
            "the device is mounted read-write at {point}: what was read is not of one moment and may need repair"
        )));
    }
    Err(Error::invalid(format!(
        "the device is mounted read-write at {point}, so its bytes are not of one moment; unmount it, remount it read-only, \
         back up a snapshot of it, or say --live to read it all the same"
    )))
}

fn read_head(file: &File, head: &mut [u8]) -> Result<usize> {
    let mut length = 0;
    while let Some(rest) = head.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, length as u64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("reading its first bytes", e)),
        }
    }
    Ok(length)
}

impl DiskSource for FileSource {
    fn disks(&self) -> &[SourceDisk] {
        &self.disks
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn finish(self: Box<Self>) -> Result<Vec<Option<String>>> {
        Ok(vec![None])
    }
}

/// An open file or block device as a disk.
pub(crate) struct FileDisk {
    file: File,
}

impl FileDisk {
    /// Reads `file`, which is a regular file or a block device.
    pub(crate) fn new(file: File) -> Self {
        FileDisk { file }
    }

    /// Where the data or the hole begins that `to` asks for, at most `end`; `unknown` where the kernel keeps no holes, as of a
    /// block device. Seeking moves a position that nobody uses: all reads here say where they read.
    fn seek(&self, to: SeekFrom, end: u64, unknown: u64) -> Result<u64> {
        match rustix::fs::seek(&self.file, to) {
            Ok(at) => Ok(at.min(end)),
            Err(Errno::NXIO) => Ok(end),
            Err(Errno::INVAL) => Ok(unknown),
            Err(e) => Err(Error::io("asking for holes", e.into())),
        }
    }
}

impl RandomDisk for FileDisk {
    fn size(&self) -> Result<u64> {
        rustix::fs::seek(&self.file, SeekFrom::End(0)).map_err(|e| Error::io("asking for the size", e.into()))
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), ReadFault> {
        let (mut at, mut rest) = (offset, out);
        while !rest.is_empty() {
            match self.file.read_at(rest, at) {
                Ok(0) => {
                    let context = format!("the file ends at byte {at} although it was longer: it was cut meanwhile");
                    return Err(ReadFault::Source(Error::new(Kind::Unavailable, context)));
                }
                Ok(n) => {
                    at += n as u64;
                    rest = rest.get_mut(n..).unwrap_or_default();
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(fault(at, e)),
            }
        }
        Ok(())
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<SourceExtent>> {
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end && found.len() < max {
            let data = self.seek(SeekFrom::Data(at), range.end, at)?;
            let (end, content) = if data > at {
                (data, Content::Zero)
            } else {
                // A file system that punches a hole between the two calls leaves an empty stretch: read at least a byte.
                (self.seek(SeekFrom::Hole(at), range.end, range.end)?.max(at + 1), Content::Bytes)
            };
            found.push(SourceExtent { range: at..end, content });
            at = end;
        }
        Ok(found)
    }
}

/// What the kernel says of a sector that a working device cannot read is one thing, all else is the device's failure.
fn fault(at: u64, error: std::io::Error) -> ReadFault {
    let sector = [Errno::IO, Errno::NODATA, Errno::ILSEQ, Errno::REMOTEIO, Errno::BADMSG];
    let is_sector = error.raw_os_error().is_some_and(|code| sector.iter().any(|e| e.raw_os_error() == code));
    let error = Error::io(format!("reading at byte {at}"), error);
    if is_sector { ReadFault::Bytes(error) } else { ReadFault::Source(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn holes_are_seen_and_a_cut_file_is_the_sources_failure() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[7; 8192], 256 << 10).unwrap();
        file.flush().unwrap();
        let disk = FileDisk::new(file.try_clone().unwrap());
        assert_eq!(disk.size().unwrap(), 1 << 20);
        let extents = disk.extents(0..1 << 20, 100).unwrap();
        let holes: u64 =
            extents.iter().filter(|e| e.content == Content::Zero).map(|e| e.range.end - e.range.start).sum();
        assert!(holes >= (1 << 20) - (128 << 10), "{extents:?}");
        assert_eq!(disk.extents(0..1 << 20, 1).unwrap().len(), 1);

        let mut out = [0; 16];
        disk.read_at((256 << 10) - 8, &mut out).unwrap();
        assert_eq!(out, [0, 0, 0, 0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7]);

        file.set_len(1000).unwrap();
        let Err(ReadFault::Source(error)) = disk.read_at(996, &mut out) else { panic!("a cut file was read") };
        assert!(error.to_string().contains("ends at byte 1000"), "{error}");
        assert_eq!(disk.size().unwrap(), 1000);
    }

    #[test]
    fn bad_sectors_are_told_from_lost_devices() {
        let kind = |errno: Errno| matches!(fault(0, errno.into()), ReadFault::Bytes(_));
        assert!(kind(Errno::IO) && kind(Errno::NODATA));
        assert!(!kind(Errno::NODEV) && !kind(Errno::NXIO) && !kind(Errno::STALE));
    }
}
