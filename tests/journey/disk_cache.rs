//! The disk cache of the real program: what a mount that was killed kept serves the next process, without the store.

use coffer_repo::Kind;
use coffer_repo::backend::cached::{CacheOptions, Cached, Intake};
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Put};
use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::kernel::Mounted;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the cache of the only repository takes.
fn kept(coffer: &Coffer) -> u64 {
    let shown = coffer.json(&["cache", "show"]);
    shown["caches"][0]["bytes"].as_u64().unwrap_or(0)
}

/// Bytes of all packs.
fn stored(coffer: &Coffer) -> u64 {
    let objects = [coffer.objects("packs"), coffer.objects("trees")];
    objects.iter().flat_map(|objects| objects.values()).map(|(_, len, _)| *len).sum()
}

fn wait_until_kept(coffer: &Coffer, bytes: u64) {
    let begun = Instant::now();
    while kept(coffer) < bytes {
        assert!(begun.elapsed() < Duration::from_secs(300), "{} of {bytes} bytes are kept", kept(coffer));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_a_killed_mount_kept_serves_the_next_one_without_the_store() {
    let coffer = Coffer::new();
    image::make(&coffer.path("disk.raw"), 64 * MIB, &[0..20 * MIB, 40 * MIB..44 * MIB], 20_270);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    std::fs::create_dir(coffer.path("mnt")).unwrap();
    let mount = || coffer.start(&["mount", "mnt", "--disk-cache", "1G"], "mounted at");
    let running = mount();
    coffer.assert_same("disk.raw", "mnt/web/latest/vda.raw");
    wait_until_kept(&coffer, stored(&coffer));
    running.kill();
    coffer.outside("umount").args(["--lazy", "mnt"]).status().unwrap();

    // Everything else goes to the store as ever: only what is read of packs does not.
    for kind in ["packs", "trees"] {
        std::fs::rename(coffer.path(&format!("repo/{kind}")), coffer.path(kind)).unwrap();
    }
    let running = mount();
    coffer.assert_same("disk.raw", "mnt/web/latest/vda.raw");
    let ended = running.terminate();
    assert!(ended.status.success(), "{ended}");
    coffer.run(&["--disk-cache", "1G", "restore", "web@latest", "--to", "cached.raw"]);
    coffer.assert_same("disk.raw", "cached.raw");

    // Whoever wants to know how the store is does not hear it from the cache.
    coffer.ended(1, &["--disk-cache", "1G", "verify"]);
    coffer.run(&["cache", "clear"]);
    assert_eq!(kept(&coffer), 0);
    coffer.fails(&["--disk-cache", "1G", "restore", "web@latest", "--to", "lost.raw"], &["trees/"]);
    for kind in ["packs", "trees"] {
        std::fs::rename(coffer.path(kind), coffer.path(&format!("repo/{kind}"))).unwrap();
    }
    coffer.assert_restores("web@latest", "disk.raw");
}

/// A cache on a disk that is much smaller than its budget takes what there is, and the mount reads on; as it does when the cache is
/// removed under it.
#[test]
fn a_cache_on_a_small_disk_or_one_that_goes_is_no_trouble() {
    let coffer = Coffer::new();
    image::make(&coffer.path("disk.raw"), 64 * MIB, &[0..24 * MIB], 20_271);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    std::fs::create_dir(coffer.path("mnt")).unwrap();
    // The index is there, which can be made again.
    std::fs::remove_dir_all(coffer.path("cache")).unwrap();
    let _disk = Mounted::mount("tmpfs", "tmpfs", "size=8m", &coffer.path("cache"));
    for _ in 0..3 {
        let running = coffer.start(&["mount", "mnt", "--disk-cache", "1G"], "mounted at");
        coffer.assert_same("disk.raw", "mnt/web/latest/vda.raw");
        wait_until_kept(&coffer, MIB);
        assert!(kept(&coffer) <= 8 * MIB);
        coffer.run(&["cache", "clear"]);
        coffer.assert_same("disk.raw", "mnt/web/latest/vda.raw");
        let ended = running.terminate();
        assert!(ended.status.success(), "{ended}");
    }
}

/// The disk fills up although there was space when it was looked at: the cache stays as small as it is, says so once, and every read is
/// right. With space again what is old in it makes room for what is new.
#[test]
fn a_disk_that_fills_up_is_told_of_once() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("disk");
    let _disk = Mounted::mount("tmpfs", "tmpfs", "size=64m", &folder);
    let store = Memory::default();
    let bytes = |i: u8| vec![i; 1 << 20];
    let name = |i: u8| format!("packs/{i:02x}/{i:032x}");
    for i in 0..40 {
        assert_eq!(store.put(&name(i), &[&bytes(i)]).unwrap(), Put::Created);
    }
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let options = CacheOptions { folder: folder.join("cache"), budget_bytes: 1 << 30, intake: Intake::Keep };
    let cached =
        Cached::new(Arc::new(store), options, move |e| tell.lock().unwrap().push((e.kind(), e.to_string()))).unwrap();
    let read = |i: u8| {
        let mut out = vec![0; 1 << 20];
        cached.get_range(&name(i), 0, &mut out).unwrap();
        assert!(out == bytes(i));
        cached.settle();
    };
    read(0);
    // Everything that is free, while the cache still has leave to write.
    let filler = folder.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    (1..20).for_each(read);
    let said = told.lock().unwrap().clone();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].0 == Kind::Full && said[0].1.contains("stays smaller"), "{said:?}");
    std::fs::remove_file(&filler).unwrap();
    (20..40).for_each(read);
    assert_eq!(told.lock().unwrap().len(), 1);
}
