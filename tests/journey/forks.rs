//! A fork is served, written to, and its server killed; what was flushed, and what was only acknowledged, is there again. Its point
//! is forgotten and collected around it; dropping the fork lets it go. Another is committed, and goes on from there.

use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::run;
use std::path::Path;

const SIZE: u64 = 8 * MIB;
const URI: &str = "nbd+unix:///lab?socket=nbd.sock";

fn io(coffer: &Coffer, commands: &[&str]) {
    let mut command = coffer.outside("qemu-io");
    command.args(["-f", "raw"]);
    for text in commands {
        command.args(["-c", text]);
    }
    let out = run(command.arg(URI));
    assert!(!out.contains("failed"), "{out}");
}

#[test]
fn a_fork_outlives_its_server_and_its_points_forget() {
    let coffer = Coffer::new();
    image::make(&coffer.path("disk.raw"), SIZE, &[0..SIZE], 20_301);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    let made = coffer.json(&["fork", "create", "lab", "web@latest"]);
    assert_eq!(made["fork"]["size"], SIZE, "{made}");
    coffer.fails(&["fork", "create", "lab", "web@latest"], &["lab", "already"]);
    coffer.run(&["forget", "web@latest"]);

    let serve = ["serve", "nbd", "--listen", "unix:nbd.sock", "lab=fork:lab"];
    let server = coffer.start(&serve, "listening on");
    coffer.fails(&["fork", "drop", "lab"], &["lab", "open in another process"]);
    assert_eq!(coffer.json(&["fork", "list"])["forks"][0]["is_open"], true);
    io(
        &coffer,
        &["write -P 0x5a 1M 64k", "write -P 0x5b 12800 512", "flush", "write -P 0x5c 2M 128k", "discard 3M 1M"],
    );
    server.kill();
    let _ = std::fs::remove_file(coffer.path("nbd.sock"));

    // A collection while nobody serves it: the fork's pin alone holds what it builds on.
    coffer.run(&["gc"]);
    assert!(coffer.snapshots().is_empty());
    let server = coffer.start(&serve, "listening on");
    io(&coffer, &["read -P 0x5a 1M 64k", "read -P 0x5b 12800 512", "read -P 0x5c 2M 128k"]);
    run(coffer.outside("qemu-img").args(["convert", "-f", "raw", "-O", "raw", URI, "fork.raw"]));
    let ended = server.terminate();
    assert!(ended.status.success(), "{ended}");
    let (mut expected, found) = (read(&coffer.path("disk.raw")), read(&coffer.path("fork.raw")));
    expected[1 << 20..][..64 << 10].fill(0x5a);
    expected[12800..][..512].fill(0x5b);
    expected[2 << 20..][..128 << 10].fill(0x5c);
    expected[3 << 20..][..1 << 20].fill(0);
    assert!(expected == found, "the fork is its point and what was written");

    coffer.run(&["fork", "drop", "lab"]);
    assert_eq!(coffer.json(&["fork", "list"])["forks"].as_array().map(Vec::len), Some(0));
    let collected = coffer.json(&["gc"]);
    assert!(collected["removed"]["packs"].as_u64().unwrap() > 0, "{collected}");
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// What a point's disk holds.
fn restored(coffer: &Coffer, point: &str) -> Vec<u8> {
    let _ = std::fs::remove_file(coffer.path("restored.raw"));
    coffer.run(&["restore", point, "--to", "restored.raw"]);
    read(&coffer.path("restored.raw"))
}

#[test]
fn a_fork_is_committed_and_goes_on_from_there() {
    let coffer = Coffer::new();
    // Two windows and a bit, so that there is something that a commit need not read.
    let size = 40 * MIB;
    image::make(&coffer.path("disk.raw"), size, &[0..size], 20_302);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    let origin = coffer.snapshots()[0]["id"].as_str().unwrap().to_owned();
    coffer.run(&["fork", "create", "lab", "web@latest"]);
    let serve = ["serve", "nbd", "--listen", "unix:nbd.sock", "lab=fork:lab"];
    let mut expected = read(&coffer.path("disk.raw"));
    let before = expected.clone();

    let server = coffer.start(&serve, "listening on");
    io(&coffer, &["write -P 0x5a 1M 64k", "write -P 0x5b 12800 512", "write -z 4M 1M"]);
    // The process that serves it makes the point, while a client goes on.
    let served = coffer.json(&["fork", "commit", "lab", "--tag", "served"]);
    assert_eq!(served["snapshot"]["tags"][0], "served", "{served}");
    expected[1 << 20..][..64 << 10].fill(0x5a);
    expected[12800..][..512].fill(0x5b);
    expected[4 << 20..][..1 << 20].fill(0);
    assert!(restored(&coffer, "web@latest") == expected);
    io(&coffer, &["read -P 0x5a 1M 64k", "write -P 0x5d 12288 512", "flush"]);
    expected[12288..][..512].fill(0x5d);
    let map = run(coffer.outside("nbdinfo").args(["--map=qemu:allocation-depth", URI]));
    let lines: Vec<Vec<&str>> = map.lines().take(3).map(|l| l.split_whitespace().take(3).collect()).collect();
    assert_eq!(lines, [["0", "12288", "2"], ["12288", "4096", "1"], ["16384", "4177920", "2"]], "{map}");
    assert!(server.terminate().status.success());
    let _ = std::fs::remove_file(coffer.path("nbd.sock"));

    let made = coffer.json(&["fork", "commit", "lab", "--tag", "tried"]);
    let first = made["snapshot"]["id"].as_str().unwrap().to_owned();
    assert_eq!(
        (made["snapshot"]["workload"].as_str(), made["snapshot"]["tags"][0].as_str()),
        (Some("web"), Some("tried"))
    );
    // What was touched, and the chunks around it.
    assert!((1..5 * MIB / 2).contains(&made["read"].as_u64().unwrap()), "{made}");
    assert!(made["new_bytes"].as_u64().unwrap() < 2 * MIB, "{made}");
    assert!(restored(&coffer, &first) == expected);
    assert!(restored(&coffer, &origin) == before, "the point before is as it was");

    let again = coffer.json(&["fork", "commit", "lab"]);
    assert_eq!((&again["read"], &again["new_bytes"]), (&0.into(), &0.into()), "nothing was written: {again}");

    let server = coffer.start(&serve, "listening on");
    io(&coffer, &["read -P 0x5a 1M 64k", "write -P 0x5c 39M 4k", "flush"]);
    server.kill();
    let _ = std::fs::remove_file(coffer.path("nbd.sock"));
    expected[39 << 20..][..4 << 10].fill(0x5c);
    coffer.run(&["fork", "commit", "lab"]);
    assert!(restored(&coffer, "web@latest") == expected);
    assert_eq!(coffer.snapshots().len(), 5);

    // What is behind the last one may go; the fork and its point stay whole.
    coffer.run(&["fork", "drop", "lab"]);
    coffer.run(&["forget", &origin, &first, served["snapshot"]["id"].as_str().unwrap()]);
    coffer.run(&["gc"]);
    assert!(restored(&coffer, "web@latest") == expected);
    coffer.run(&["verify", "--data", "all"]);
}
