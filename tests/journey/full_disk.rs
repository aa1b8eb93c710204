//! The repository's disk is full: the backup fails and says so, what there was stays, and with more space it goes on.

use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::kernel::Mounted;

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
    coffer.fails(&backup, &["packs/", "No space left on device"]);
    assert_eq!(coffer.snapshots(), points);
    coffer.assert_restores("web@latest", "small.raw");
    coffer.fails(&backup, &["No space left on device"]);
    assert_eq!(coffer.snapshots(), points);

    store.remount("size=256m");
    coffer.run(&backup);
    coffer.assert_restores("web@latest", "large.raw");
    coffer.assert_restores("web@-1", "small.raw");
}
