//! Doors that stay open: the mount and the NBD server.

use crate::stage::{Stage, disk, finish};
use rustix::process::Signal;
use std::net::TcpListener;
use std::process::Stdio;

#[test]
fn a_mount_shows_the_disks_until_a_signal() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    std::fs::create_dir(stage.path("mnt")).unwrap();
    let mut mount = stage.start(&["mount", "mnt", "--cache-size", "8M"], Stdio::null());
    mount.line_with("mounted at mnt");
    assert!(stage.read("mnt/web/latest/disk.raw") == disk(1));
    stage.fails(1, "in use", &["mount", "mnt"]);
    mount.signal(Signal::TERM);
    assert_eq!(mount.end().code(), Some(0));
    assert_eq!(std::fs::read_dir(stage.path("mnt")).unwrap().count(), 0);
    stage.fails(1, "does not exist", &["mount", "nowhere"]);
}

#[test]
fn exports_are_what_the_disks_were() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    stage.back_up(&disk(5));
    let arguments = ["serve", "nbd", "--listen", "unix:nbd.sock", "old=web@-1", "web@latest:disk"];
    let mut server = stage.start(&arguments, Stdio::null());
    for seed in [1, 5] {
        let line = server.line_with("listening on nbd+unix://");
        let uri = line.split(' ').next_back().unwrap();
        stage.write("expected.raw", &disk(seed));
        let compared = finish(&mut stage.outside("qemu-img", &["compare", "-f", "raw", "expected.raw", uri]));
        assert_eq!(compared.code, 0, "{uri}: {compared:?}");
    }
    stage.fails(1, "somebody listens", &["serve", "nbd", "--listen", "unix:nbd.sock", "web@latest"]);
    server.signal(Signal::INT);
    assert_eq!(server.end().code(), Some(0));
    assert!(!stage.path("nbd.sock").exists());
}

#[test]
fn a_port_is_opened_or_said_to_be_in_use() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    let mut server = stage.start(&["serve", "nbd", "--listen", "localhost:0", "x=web@latest"], Stdio::null());
    let line = server.line_with("listening on nbd://");
    let info = finish(&mut stage.outside("nbdinfo", &["--size", line.split(' ').next_back().unwrap()]));
    assert_eq!(info.text().trim(), disk(1).len().to_string(), "{info:?}");
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    stage.fails(1, "in use", &["serve", "nbd", "--listen", &address, "web@latest"]);
    stage.fails(1, "'x'", &["serve", "nbd", "--listen", "localhost:0", "x=web@latest", "x=web@latest"]);
}

#[test]
fn pins_are_let_go_of_when_a_door_closes() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    let count = |folder: &str, file: &str| {
        stage.objects().keys().filter(|p| p.starts_with(stage.path(folder)) && p.ends_with(file)).count()
    };
    let mut server = stage.start(&["serve", "nbd", "--listen", "unix:s", "web@latest"], Stdio::null());
    server.line_with("listening");
    assert_eq!((count("r/snapshots", "claim"), stage.path("r/forgets").exists()), (2, false));
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    assert_eq!(std::fs::read_dir(stage.path("r/forgets")).unwrap().count(), 1);
}
