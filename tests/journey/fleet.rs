//! Four hosts, each with a cache of its own, back up into one repository at the same time; one more comes with nothing but location
//! and key, and reads at once.

use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::{Running, run};
use serde_json::Value;

const HOSTS: usize = 4;

#[test]
fn hosts_share_a_repository() {
    let coffer = Coffer::new();
    let probed = coffer.json(&["probe", "--rounds", "20"]);
    assert_eq!((&probed["class"], &probed["recorded"]), (&"strong".into(), &"strong".into()), "{probed}");
    image::make(&coffer.path("disk.raw"), 256 * MIB, &[0..64 * MIB, 200 * MIB..210 * MIB], 20_271);

    let names: Vec<(String, String)> = (0..HOSTS).map(|n| (format!("cache-{n}"), format!("web{n}"))).collect();
    let all_at_once = |tag: &str| -> Vec<Value> {
        let started: Vec<Running> = names
            .iter()
            .map(|(cache, workload)| {
                let arguments = ["--json", "backup", "-w", workload, "--tag", tag, "disk.raw"];
                Running::start(&mut coffer.command_from(cache, &arguments))
            })
            .collect();
        let ended = started.into_iter().map(|running| {
            let ended = running.wait();
            assert!(ended.status.success(), "{ended}");
            serde_json::from_str(&ended.out).unwrap()
        });
        ended.collect()
    };
    // At once, nobody knows of the others: chunks may lie there several times, and nothing is lost.
    let first = all_at_once("first");
    assert!(first.iter().all(|made| made["new_bytes"].as_u64().unwrap() <= 74 * MIB), "{first:?}");
    // What all have published nobody stores again, whoever it was.
    let again = all_at_once("again");
    assert!(again.iter().all(|made| made["new_chunks"] == 0), "{again:?}");
    let newcomer = run(&mut coffer.command_from("cache-new", &["--json", "backup", "-w", "new", "disk.raw"]));
    let newcomer: Value = serde_json::from_str(&newcomer).unwrap();
    assert_eq!(newcomer["new_chunks"], 0, "{newcomer}");
    assert_eq!(coffer.snapshots().len(), 2 * HOSTS + 1);

    // Another one reads, without an index.
    let point = format!("web{}@-1", HOSTS - 1);
    let serve = ["serve", "nbd", "--listen", "unix:nbd.sock", point.as_str()];
    let mut server = Running::start(&mut coffer.command_from("cache-reader", &serve));
    server.wait_until("its socket", |_| coffer.path("nbd.sock").exists());
    let uri = format!("nbd+unix:///{point}?socket=nbd.sock");
    run(coffer.outside("qemu-img").args(["compare", "-f", "raw", "-F", "raw", "disk.raw", &uri]));
    assert!(server.terminate().status.success());
    let is_index = |path: std::path::PathBuf| path.join("index").exists();
    let folders = std::fs::read_dir(coffer.path("cache-reader")).into_iter().flatten();
    assert!(!folders.map(|entry| entry.unwrap().path()).any(is_index), "whoever only reads has an index");
    coffer.run(&["verify", "--data", "all"]);
}
