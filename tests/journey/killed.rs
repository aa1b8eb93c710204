//! A backup is killed again and again; nothing that was committed suffers, and what the killed runs had published is not
//! stored again.

use coffer_repo::index_delta::{self, IndexDelta};
use coffer_repo::location::PackKind;
use coffer_repo::sealed::ObjectKind;
use coffer_tests::coffer::Coffer;
use coffer_tests::dice::Dice;
use coffer_tests::image::{self, MIB};
use coffer_tests::nbd::NbdKit;
use coffer_tests::program::{Running, run};
use std::process::Stdio;
use std::sync::Arc;

const SEED: u64 = 20_261;
/// Noise; an index delta comes after every 256 MiB.
const SIZE: u64 = 640 * MIB;

/// Bytes of the chunks that a repository's index deltas name.
pub(crate) fn published(coffer: &Coffer, repository: &str) -> u64 {
    let repo = coffer.open_other(repository, |local| Arc::new(local));
    let mut names = Vec::new();
    repo.backend()
        .list(index_delta::PREFIX, &mut |object| {
            names.push(object.name);
            Ok(())
        })
        .unwrap();
    let packs = names.iter().flat_map(|name| {
        let record = repo.get_record(ObjectKind::IndexDelta, name).unwrap();
        IndexDelta::decode(&record.body).unwrap().packs
    });
    packs.filter(|pack| pack.kind == PackKind::Data).flat_map(|pack| pack.entries).map(|e| u64::from(e.raw_len)).sum()
}

#[test]
fn a_killed_backup_goes_on_where_it_was() {
    println!("seed {SEED}");
    let coffer = Coffer::new();
    image::make(&coffer.path("before.raw"), 8 * MIB, &[0..8 * MIB], SEED);
    coffer.run(&["backup", "-w", "web", "vda=before.raw"]);
    let points = coffer.snapshots();

    let (size, seed) = (format!("size={SIZE}"), format!("seed={SEED}"));
    // The rate is in bits per second: most kills hit a backup that reads.
    let serve = || NbdKit::start(&["--filter=rate", "random", &size, &seed, "rate=2G"]);
    let mut dice = Dice::new(SEED);
    // Before anything was published; between two deltas; after the last delta but the one at the end.
    for (deltas, most_packs) in [(0, 6), (1, 6), (1, 2)] {
        let old = coffer.objects("");
        let deltas = coffer.objects("index").len() + deltas;
        let packs = 1 + dice.index(most_packs);
        let source = serve();
        // The second disk is a pipe that says nothing: no run ends before it is killed, however slow this machine is.
        let mut backup = coffer.command(&["backup", "-w", "web", &format!("vda={}", source.uri), "vdb=-"]);
        let mut running = Running::start(backup.stdin(Stdio::piped()));
        running.wait_until("an index delta", |_| coffer.objects("index").len() >= deltas);
        let packs = coffer.objects("packs").len() + packs;
        running.wait_until("more packs", |_| coffer.objects("packs").len() >= packs);
        running.kill();

        assert_eq!(coffer.snapshots(), points);
        coffer.assert_restores("web@latest", "before.raw");
        let new = coffer.objects("");
        for (name, stamp) in old {
            assert_eq!(new.get(&name), Some(&stamp), "{} was replaced or is gone", name.display());
        }
    }

    let named = published(&coffer, "repo") - 8 * MIB;
    // Two deltas, each of 256 MiB with the frames around the chunks.
    assert!(named > 2 * 250 * MIB, "{named}");
    let source = serve();
    let done = coffer.json(&["backup", "-w", "web", &format!("vda={}", source.uri)]);
    assert_eq!(done["new_bytes"], SIZE - named, "{done}");
    assert_eq!(done["reused"], named, "{done}");
    assert_eq!(coffer.snapshots().len(), points.len() + 1);
    coffer.assert_restores("web@-1", "before.raw");
    let _export = coffer.start(&["serve", "nbd", "--listen", "unix:nbd.sock", "vda=web@latest"], "listening on");
    let export = "nbd+unix:///vda?socket=nbd.sock";
    run(coffer.outside("qemu-img").args(["compare", "-f", "raw", "-F", "raw", export, &source.uri]));
}
