//! Whether a block device, or anything that lies on it, is mounted and can be written to.
//!
//! Not here: what follows from it. What holds: partitions of the device and devices stacked on it (LVM, RAID, encryption)
//! are looked at too; a read-only mount of a file system that is writable elsewhere counts as writable.

use crate::{Error, Result};
use rustix::fs::{Dev, major, makedev, minor};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the device with number `device`, or something on it, is mounted read-write; `None` if nowhere.
pub(crate) fn mounted_read_write(device: Dev) -> Result<Option<PathBuf>> {
    let mut devices = BTreeSet::new();
    collect(Path::new("/sys/dev/block"), device, &mut devices)?;
    const TABLE: &str = "/proc/self/mountinfo";
    let table = std::fs::read_to_string(TABLE).map_err(|e| Error::io(format!("reading {TABLE}"), e))?;
    // Some file systems (btrfs) are mounted under a number of their own and name their device by its path only.
    let number_of = |source: &Path| std::fs::metadata(source).ok().map(|m| m.rdev());
    Ok(find_writable(&table, &devices, number_of))
}

/// Adds `device`, its partitions and what is stacked on them. A device without an entry below `block` has neither.
fn collect(block: &Path, device: Dev, devices: &mut BTreeSet<Dev>) -> Result<()> {
    if !devices.insert(device) {
        return Ok(());
    }
    let own = block.join(format!("{}:{}", major(device), minor(device)));
    let mut above = Vec::new();
    for (folder, only_partitions) in [(own.clone(), true), (own.join("holders"), false)] {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io(format!("listing {}", folder.display()), e)),
        };
        for entry in entries {
            let path = entry.map_err(|e| Error::io(format!("listing {}", folder.display()), e))?.path();
            if !only_partitions || path.join("partition").exists() {
                above.extend(std::fs::read_to_string(path.join("dev")).ok().and_then(|text| parse_number(text.trim())));
            }
        }
    }
    above.into_iter().try_for_each(|device| collect(block, device, devices))
}

fn parse_number(text: &str) -> Option<Dev> {
    let (major, minor) = text.split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The first line of a mountinfo table that mounts one of `devices` from a writable file system.
///
/// A line: `36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/root rw,errors=continue`.
fn find_writable(table: &str, devices: &BTreeSet<Dev>, number_of: impl Fn(&Path) -> Option<Dev>) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        let (number, point) = (parse_number(left.next()?)?, left.nth(1)?);
        let mut right = right.split(' ').skip(1);
        let (source, options) = (right.next()?, right.next()?);
        let ours = devices.contains(&number)
            || source.starts_with("/dev/") && number_of(Path::new(source)).is_some_and(|n| devices.contains(&n));
        (ours && options.split(',').any(|o| o == "rw")).then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
40 22 7:3 / /mnt/ro ro,relatime - ext4 /dev/loop3 ro
41 22 7:4 / /mnt/bind ro,relatime - ext4 /dev/loop4 rw,errors=continue
42 22 0:45 / /mnt/btrfs rw - btrfs /dev/loop5 rw,space_cache
a broken line";

    fn find(major: u32, minor: u32) -> Option<PathBuf> {
        let number_of = |source: &Path| (source == Path::new("/dev/loop5")).then(|| makedev(7, 5));
        find_writable(TABLE, &BTreeSet::from([makedev(major, minor)]), number_of)
    }

    #[test]
    fn the_file_system_counts_and_not_the_mount() {
        assert_eq!(find(254, 1), Some("/".into()));
        assert_eq!(find(254, 0), None, "the whole disk is found through its partitions, not here");
        assert_eq!(find(7, 3), None);
        assert_eq!(find(7, 4), Some("/mnt/bind".into()));
        assert_eq!(find(7, 5), Some("/mnt/btrfs".into()), "by the path of its source");
    }

    #[test]
    fn partitions_and_holders_are_collected() {
        let sys = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = sys.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("8:0/sda1/partition", "1\n");
        put("8:0/sda1/dev", "8:1\n");
        put("8:0/queue/dev", "9:9\n");
        put("8:1/holders/dm-0/dev", "253:0\n");
        put("253:0/holders/dm-1/dev", "253:1\n");
        let mut devices = BTreeSet::new();
        collect(sys.path(), makedev(8, 0), &mut devices).unwrap();
        let want = [(8, 0), (8, 1), (253, 0), (253, 1)].map(|(major, minor)| makedev(major, minor));
        assert_eq!(devices, BTreeSet::from(want));
    }
}
