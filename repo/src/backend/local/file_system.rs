//! Which file systems are somewhere else: what another host did shows late there, whatever a probe from this host sees.
//!
//! Not here: cluster file systems that keep the caches of all hosts coherent (CephFS, Lustre, GPFS, OCFS2, GFS2): those a probe
//! may judge. What holds: a file system in user space counts as a network one, since nobody can tell what is behind it.

use rustix::fs::StatFs;

/// By the magic number that `statfs` tells, as in the kernel's `magic.h`.
const NETWORK: [(u32, &str); 9] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x6573_5546, "FUSE"),
    (0x5346_414f, "AFS"),
    (0x0102_1997, "9P"),
    (0x7375_7245, "Coda"),
    (0x786f_4256, "VirtualBox's shared folders"),
];

/// What kind of network file system this is; `None` for any other.
pub(super) fn network(stat: &StatFs) -> Option<&'static str> {
    // The magic numbers have 32 bits, and the field is signed on some machines and wider on others.
    let magic = u32::try_from(i128::from(stat.f_type) & 0xffff_ffff).ok()?;
    NETWORK.iter().find(|(of, _)| *of == magic).map(|(_, name)| *name)
}
