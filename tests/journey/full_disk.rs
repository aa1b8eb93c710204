//! A disk is full: that of the repository, and the backup fails and says so, what there was stays, and with more space it goes on; or
//! that of a fork.

use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::kernel::Mounted;
use coffer_tests::program::{attempt, run};

#[test]
fn a_full_repository_fails_cleanly_and_goes_on_when_it_has_space() {
    let coffer = Coffer::prepare();
    let store = Mounted::mount("tmpfs", "tmpfs", "size=64m", &coffer.path("repo"));
    coffer.run(&["init"]);
    image::make(&coffer.path("small.raw"), 20 * MIB, &[0..16 * MIB], 20_265);
    coffer.run(&["backup", "-w", "web", "vda=small.raw"]);
    image::make(&coffer.path("large.raw"), 200 * MIB, &[0..96 * MIB], 20_266);
    let points = coffer.snapshots();

    let backup = ["backup", "-w", "web", "vda=large.raw"];
    coffer.fails(&backup, &["the store is full", "writing '", "No space left on device"]);
    assert_eq!(coffer.snapshots(), points);
    coffer.assert_restores("web@latest", "small.raw");
    coffer.fails(&backup, &["No space left on device"]);
    assert_eq!(coffer.snapshots(), points);

    store.remount("size=256m");
    coffer.run(&backup);
    coffer.assert_restores("web@latest", "large.raw");
    coffer.assert_restores("web@-1", "small.raw");
}

/// The disk under a fork is full: the write that lacks space fails with that very error, reads go on, what was written is there, and
/// with more space writing goes on.
#[test]
fn a_fork_on_a_full_disk_fails_a_write_and_nothing_else() {
    const URI: &str = "nbd+unix:///lab?socket=nbd.sock";
    let coffer = Coffer::new();
    image::make(&coffer.path("disk.raw"), 64 * MIB, &[0..64 * MIB], 20_267);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    let state = Mounted::mount("tmpfs", "tmpfs", "size=32m", &coffer.path("state"));
    coffer.run(&["fork", "create", "lab", "web@latest"]);
    let serve = || coffer.start(&["serve", "nbd", "--listen", "unix:nbd.sock", "lab=fork:lab"], "listening on");
    let io = |command: &str| attempt(coffer.outside("qemu-io").args(["-f", "raw", "-c", command, URI])).out;
    let server = serve();

    let refused = (0..64).find(|at| {
        let said = io(&format!("write -P 0x5a {at}M 1M"));
        assert!(said.contains("wrote 1048576") || said.contains("No space left on device"), "{said}");
        said.contains("No space left on device")
    });
    let refused = refused.expect("64 MiB do not fit into 32");
    assert!(refused > 4, "{refused}");
    let written = refused * MIB;
    let mut expected = std::fs::read(coffer.path("disk.raw")).unwrap();
    expected[..usize::try_from(written).unwrap()].fill(0x5a);
    // The MiB that was refused may hold either; the rest is as it was.
    let check = |expected: &[u8]| {
        run(coffer.outside("nbdcopy").args([URI, "now.raw"]));
        let now = std::fs::read(coffer.path("now.raw")).unwrap();
        let (from, to) = (usize::try_from(written).unwrap(), usize::try_from(written + MIB).unwrap());
        assert!(now[..from] == expected[..from] && now[to..] == expected[to..]);
    };
    check(&expected);
    run(coffer.outside("qemu-io").args(["-f", "raw", "-c", "flush", URI]));
    // What is there already needs no space.
    assert!(io("write -P 0x5b 0 1M").contains("wrote"));
    expected[..1 << 20].fill(0x5b);
    assert!(server.terminate().status.success());
    let _ = std::fs::remove_file(coffer.path("nbd.sock"));

    let server = serve();
    check(&expected);
    state.remount("size=256m");
    assert!(io(&format!("write -P 0x5c {written} 8M")).contains("wrote"));
    expected[usize::try_from(written).unwrap()..][..8 << 20].fill(0x5c);
    check(&expected);
    assert!(server.terminate().status.success());
}
