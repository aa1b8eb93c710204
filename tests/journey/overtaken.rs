//! A collection takes away what a backup under way relies on: the backup notices before it commits, and is made once more.

use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::nbd::NbdKit;
use coffer_tests::program::Running;
use std::fs;

const SIZE: u64 = 4 * MIB;

#[test]
fn a_backup_that_a_collection_overtakes_is_made_once_more() {
    let coffer = Coffer::new();
    let (disk, gate, reached) = (coffer.path("disk.raw"), coffer.path("gate"), coffer.path("reached"));
    image::make(&disk, SIZE, &[0..SIZE], 20_281);
    // A disk that is read only once the gate is gone.
    let pread = format!(
        "pread=touch {reached}; while [ -e {gate} ]; do sleep 0.02; done; \
         dd if={disk} iflag=skip_bytes,count_bytes skip=$4 count=$3 bs=64k status=none",
        reached = reached.display(),
        gate = gate.display(),
        disk = disk.display()
    );
    let server = NbdKit::start(&["eval", &format!("get_size=echo {SIZE}"), &pread]);
    let source = format!("vda={}", server.uri);

    // What the second backup relies on: packs that nothing refers to any more, but the index remembers.
    coffer.run(&["backup", "-w", "old", "vda=disk.raw"]);
    coffer.run(&["forget", "old@latest"]);
    fs::write(&gate, "").unwrap();
    let mut backup = Running::start(&mut coffer.command(&["backup", "-w", "new", &source]));
    backup.wait_until("its first read", |_| reached.exists());
    let collected = coffer.json(&["gc"]);
    assert!(collected["removed"]["packs"].as_u64().unwrap() > 0, "{collected}");
    fs::remove_file(&gate).unwrap();
    let ended = backup.wait();
    assert!(ended.status.success() && ended.err.contains("made once more"), "{ended}");

    coffer.assert_restores("new@latest:vda", "disk.raw");
    coffer.run(&["verify", "--data", "all"]);
}
