//! A machine that lives on a fork whose repository is far away.
//!
//! Not here: what reads over such a link give (`make bench`). What holds: times are told and not asserted.

use crate::guest::{boot, machine, prepare};
use coffer_tests::coffer::Coffer;
use coffer_tests::program::run;
use coffer_tests::proxy::{Link, Proxy};
use coffer_tests::service::seaweedfs::SeaweedFs;
use std::time::{Duration, Instant};

const EXPORT: &str = "nbd+unix:///lab?socket=nbd.sock";
const LATENCY: Duration = Duration::from_millis(50);

#[test]
fn a_guest_boots_from_a_fork_over_a_store_at_50_ms() {
    let seaweed = SeaweedFs::shared();
    let place = seaweed.bucket("far");
    let coffer = Coffer::new_in(place.clone());
    let kernel = prepare(&coffer, "brief");
    coffer.run(&["backup", "-w", "guest", "root.raw"]);
    let began = Instant::now();
    let said = boot(&coffer, &kernel, "root.raw");
    let local = began.elapsed();
    assert!(said.contains("COFFER-BOOT-OK boots=1 dataok=yes"), "{said}");

    let proxy = Proxy::start(seaweed.port(), Link { latency: LATENCY, rate: None });
    // What this host has kept of it while it was near must not help.
    std::fs::remove_dir_all(coffer.path("cache")).unwrap();
    let coffer = coffer.at(place.through(proxy.port()));
    coffer.run(&["fork", "create", "lab", "guest@latest"]);
    let server = coffer.start(&["serve", "nbd", "--listen", "unix:nbd.sock", "lab=fork:lab"], "listening on");
    let before = proxy.requests();
    for boots in 1..=2 {
        let began = Instant::now();
        let said = run(&mut machine(&coffer, &format!("{kernel}/vmlinuz"), EXPORT));
        println!(
            "boot {boots} over {LATENCY:?}: {:.1} s and {} requests; from a local file {:.1} s",
            began.elapsed().as_secs_f64(),
            proxy.requests() - before,
            local.as_secs_f64()
        );
        // What a guest writes is there when it boots again.
        assert!(said.contains(&format!("COFFER-BOOT-OK boots={boots} dataok=yes")), "{said}");
    }
    assert!(proxy.requests() > before, "it was not read over the link");
    assert!(server.terminate().status.success());
}
