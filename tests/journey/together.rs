//! Two backups of one workload at the same time, within bounds of memory, and reading what they made within others.

use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::{Ended, Running, run};
use std::path::Path;

/// Of a backup, in bytes, whatever the disk's size.
const BACKUP_MEMORY: u64 = 400 * MIB;
/// Of a mount or a server, in bytes, besides its cache.
const READING_MEMORY: u64 = (128 + WAITING) * MIB;
/// On a busy disk readers wait for it: a pool has eight threads a core then, of 2 MiB each, and there are two pools.
const WAITING: u64 = 64;
const CACHE: u64 = 64 * MIB;

/// Whether an index below `cache` has a guest.
fn has_guest(cache: &Path) -> bool {
    let folders = |path: &Path| -> Vec<_> {
        std::fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    };
    folders(cache).iter().flat_map(|repo| folders(&repo.join("index"))).any(|folder| {
        let name = folder.file_name().unwrap().to_str().unwrap();
        name.starts_with("private-")
    })
}

fn assert_within(ended: &Ended, bytes: u64, what: &str) {
    assert!(ended.status.success(), "{ended}");
    let peak = ended.peak_memory;
    assert!(peak > 0 && peak < bytes, "{what} took {} MiB, {} are allowed", peak / MIB, bytes / MIB);
    println!("{what}: {} MiB of {}", peak / MIB, bytes / MIB);
}

#[test]
fn two_backups_at_once_and_all_memory_is_bounded() {
    let coffer = Coffer::new();
    // 700 MiB here and there on a disk of 2 GiB.
    let filled: Vec<_> = (0..7).map(|n| n * 290 * MIB..n * 290 * MIB + 100 * MIB).collect();
    image::make(&coffer.path("disk.raw"), 2048 * MIB, &filled, 20_262);

    let backup = ["backup", "-w", "web", "disk.raw"];
    let mut owner = Running::start(&mut coffer.command(&backup));
    owner.wait_until("a pack", |_| !coffer.objects("packs").is_empty());
    let mut guest = Running::start(&mut coffer.command(&backup));
    guest.wait_until("an index of a guest", |_| has_guest(&coffer.path("cache")));
    owner.wait_until("packs of both", |_| coffer.objects("packs").len() > 4);
    assert_within(&owner.wait(), BACKUP_MEMORY, "the first backup");
    assert_within(&guest.wait(), BACKUP_MEMORY, "the second backup, as a guest");
    assert!(!has_guest(&coffer.path("cache")));

    assert_eq!(coffer.snapshots().len(), 2);
    let exports = ["serve", "nbd", "--listen", "unix:nbd.sock", "newer=web@latest", "older=web@-1"];
    let server = coffer.start(&exports, "older");
    for export in ["newer", "older"] {
        let uri = format!("nbd+unix:///{export}?socket=nbd.sock");
        run(coffer.outside("qemu-img").args(["compare", "-f", "raw", "-F", "raw", "disk.raw", &uri]));
    }
    assert_within(&server.terminate(), READING_MEMORY + CACHE, "the NBD server");

    std::fs::create_dir(coffer.path("mnt")).unwrap();
    let mount = coffer.start(&["mount", "mnt"], "mounted at");
    coffer.assert_same("disk.raw", "mnt/web/latest/disk.raw");
    assert_within(&mount.terminate(), READING_MEMORY + CACHE, "the mount");
}
