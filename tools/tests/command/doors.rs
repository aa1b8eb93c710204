//! Doors that stay open: the mount and the NBD server.

use crate::stage::{Stage, disk, finish};
use coffer_gateway::nbd::proto::Framing;
use coffer_gateway::nbd::proto::handshake::{Go, encode_option, option};
use coffer_gateway::nbd::proto::transmission::{Request, command};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
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

#[test]
fn a_client_is_told_what_changed_since_another_point() {
    let stage = Stage::with_repository();
    let old = disk(1);
    let mut new = old.clone();
    new[5000..6000].fill(0xaa);
    new.resize(new.len() + 8192, 7);
    stage.back_up(&old);
    stage.back_up(&new);
    let serve = ["serve", "nbd", "--listen", "unix:s", "vda=web@latest", "old=web@-1", "--changed-since", "vda=web@-1"];
    let mut server = stage.start(&serve, Stdio::null());
    server.line_with("listening");
    let ask = |export: &str, context: &str| {
        let map = format!("--map={context}");
        finish(&mut stage.outside("nbdinfo", &[&map, "--json", &format!("nbd+unix:///{export}?socket=s")]))
    };
    let run = ask("vda", "coffer:changed:web@-1");
    assert_eq!(run.code, 0, "{run:?}");
    let map: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    let mut rebuilt = old.clone();
    rebuilt.resize(new.len(), 0);
    let (mut at, mut changed) = (0, 0);
    for extent in map.as_array().unwrap() {
        let field = |name: &str| usize::try_from(extent[name].as_u64().unwrap()).unwrap();
        let range = field("offset")..field("offset") + field("length");
        assert_eq!(range.start, at);
        at = range.end;
        if field("type") == 1 {
            changed += range.len();
            rebuilt[range.clone()].copy_from_slice(&new[range]);
        }
    }
    // Whoever copies what changed over the old one has the new one, and copies little.
    assert!(at == new.len() && rebuilt == new);
    assert!(changed < 1 << 20, "{changed} of {} bytes", new.len());
    assert_ne!(ask("old", "coffer:changed:web@-1").code, 0, "it was asked for of another export");
    server.signal(Signal::TERM);
    server.end();

    let all = ["serve", "nbd", "--listen", "unix:s", "vda=web@latest", "--changed-since", "all"];
    let mut server = stage.start(&all, Stdio::null());
    server.line_with("listening");
    let info = finish(&mut stage.outside("nbdinfo", &["nbd+unix:///vda?socket=s"])).text();
    assert_eq!(info.matches("coffer:changed:web@20").count(), 1, "{info}");
}

#[test]
fn a_socket_that_was_handed_over_is_served_and_stays() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    let socket = UnixListener::bind(stage.path("handed")).unwrap();
    // As systemd does: descriptor 3, and two variables, one of them the process's own number.
    let script = "exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" serve nbd --listen systemd vda=web@latest";
    let mut command = stage.outside("sh", &["-c", script, env!("CARGO_BIN_EXE_coffer")]);
    let child = command.stdin(Stdio::from(OwnedFd::from(socket))).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut server = crate::stage::Running::of(child.unwrap());
    server.line_with("listening on nbd+unix:///vda?socket=");
    let size = finish(&mut stage.outside("nbdinfo", &["--size", "nbd+unix:///vda?socket=handed"]));
    assert_eq!(size.text().trim(), disk(1).len().to_string(), "{size:?}");
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    assert!(stage.path("handed").exists(), "it is not the server's to remove");

    stage.fails(2, "no socket was handed over", &["serve", "nbd", "--listen", "systemd", "web@latest"]);
    let script = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" serve nbd --listen systemd web@latest 3<&-";
    let run = finish(&mut stage.outside("sh", &["-c", script, env!("CARGO_BIN_EXE_coffer")]));
    assert!(run.code == 1 && run.stderr.contains("descriptor 3"), "{run:?}");
    let script = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" serve nbd --listen systemd web@latest 3</dev/null";
    let run = finish(&mut stage.outside("sh", &["-c", script, env!("CARGO_BIN_EXE_coffer")]));
    assert!(run.code == 1 && run.stderr.contains("handed over"), "{run:?}");
}

/// An authority and a server's certificate of its own making.
pub(crate) fn make_certificates(stage: &Stage) {
    let write = |name: &str, text: &str| {
        stage.write(name, text.as_bytes());
        std::fs::set_permissions(stage.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    std::fs::create_dir(stage.path("client")).unwrap();
    for name in ["server", "other"] {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        write(&format!("{name}.pem"), &pair.cert.pem());
        write(&format!("{name}.key"), &pair.signing_key.serialize_pem());
    }
    std::fs::copy(stage.path("server.pem"), stage.path("client/ca-cert.pem")).unwrap();
}

#[test]
fn tls_access_and_modes_are_as_they_were_asked_for() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    make_certificates(&stage);
    let uid = format!("hidden=uid:{}", rustix::process::geteuid().as_raw() + 1);
    let mut arguments = vec!["serve", "nbd", "--listen", "unix:s", "--listen", "localhost:0", "--socket-mode", "0660"];
    arguments.extend(["vda=web@latest", "hidden=web@latest", "--allow", &uid, "--limit", "vda=1000/64M"]);
    arguments.extend(["--tls-cert", "server.pem", "--tls-key", "server.key"]);
    let mut server = stage.start(&arguments, Stdio::null());
    server.line_with("listening on nbds+unix:///vda");
    server.line_with("listening on nbds://");
    assert_eq!(std::fs::metadata(stage.path("s")).unwrap().permissions().mode() & 0o777, 0o660);
    let size = |uri: &str| finish(&mut stage.outside("nbdinfo", &["--size", uri]));
    assert_ne!(size("nbd+unix:///vda?socket=s").code, 0, "in the clear");
    // Our own client, with the server's certificate for its authority.
    stage.ok(&["backup", "-w", "copy", "vda=nbds+unix:///vda?socket=s&tls-certificates=client"]);
    stage.ok(&["restore", "copy@latest", "--to", "copy.raw"]);
    assert!(stage.read("copy.raw") == disk(1));
    let hidden = "vda=nbds+unix:///hidden?socket=s&tls-certificates=client";
    stage.fails(1, "no such export", &["backup", "-w", "copy", hidden]);
    let elsewhere = "vda=nbds+unix:///vda?socket=s&tls-certificates=client&tls-hostname=elsewhere";
    stage.fails(1, "elsewhere", &["backup", "-w", "copy", elsewhere]);
    stage.fails(1, "write nbds", &["backup", "-w", "copy", "vda=nbd+unix:///vda?socket=s"]);
    stage.fails(1, "pre-shared keys", &["backup", "-w", "copy", "vda=nbds://localhost/vda?tls-psk-file=k"]);
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
}

#[test]
fn what_cannot_be_served_is_named_before_anything_listens() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    make_certificates(&stage);
    std::fs::set_permissions(stage.path("other.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::create_dir(stage.path("psk")).unwrap();
    stage.write("psk/keys.psk", b"me:00");
    for (code, says, more) in [
        (1, "does not go with", &["--tls-cert", "other.pem", "--tls-key", "server.key"][..]),
        (1, "can be read by others", &["--tls-cert", "other.pem", "--tls-key", "other.key"]),
        (1, "keys.psk", &["--tls-cert", "psk", "--tls-key", "server.key"]),
        (1, "pre-shared keys", &["--tls-psk", "psk/keys.psk"]),
        (1, "nowhere.pem", &["--tls-cert", "nowhere.pem", "--tls-key", "server.key"]),
        (2, "--tls-key", &["--tls-cert", "server.pem"]),
        (2, "--tls-cert", &["--tls", "allowed"]),
        (2, "--tls-client-ca", &["--allow", "x=cert:me"]),
        (2, "there is no such export", &["--allow", "y=10.0.0.0/8"]),
        (2, "there is no such export", &["--limit", "y=1/1M"]),
        (2, "there is no such export", &["--changed-since", "y=web@-1"]),
        (2, "nor uid:NUMBER", &["--allow", "x=somebody"]),
        (2, "REQUESTS/BYTES", &["--limit", "x=5"]),
        (2, "octal", &["--socket-mode", "rw"]),
        (1, "there is no web@-1", &["--changed-since", "web@-1"]),
        (1, "the nearest workloads", &["--changed-since", "wbe@latest"]),
    ] {
        let arguments = [&["serve", "nbd", "--listen", "unix:s", "x=web@latest"], more].concat();
        stage.fails(code, says, &arguments);
        assert!(!stage.path("s").exists(), "{more:?}");
    }
    stage.fails(1, "the nearest workloads", &["serve", "nbd", "--listen", "unix:s", "x=wbe@latest"]);
    stage.fails(1, "there is no web@-7", &["serve", "nbd", "--listen", "unix:s", "x=web@-7"]);
}

#[test]
fn clients_that_never_read_do_not_make_the_server_grow() {
    const CLIENTS: usize = 32;
    const ASKED: usize = 500;
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    let arguments = ["serve", "nbd", "--listen", "unix:s", "--max-requests", "4", "x=web@latest"];
    let mut server = stage.start(&arguments, Stdio::null());
    server.line_with("listening");
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(encode_option(option::GO, &Go { name: "x".into(), infos: Vec::new() }.encode()));
    for cookie in 0..ASKED as u64 {
        let read = Request { flags: 0, command: command::READ, cookie, offset: 0, length: 1 << 20 };
        read.encode(Framing::Simple, &mut bytes).unwrap();
    }
    let greedy = (0..CLIENTS).map(|_| {
        let mut stream = UnixStream::connect(stage.path("s")).unwrap();
        stream.set_write_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
        // What is not taken waits with the client.
        let _ = stream.write_all(&bytes);
        stream
    });
    let mut greedy = greedy.collect::<Vec<_>>();
    let compared =
        finish(&mut stage.outside("qemu-img", &["compare", "-f", "raw", "disk.raw", "nbd+unix:///x?socket=s"]));
    assert_eq!(compared.code, 0, "{compared:?}");
    // The first of each has begun to answer.
    greedy.iter_mut().for_each(|stream| stream.read_exact(&mut [0; 1 << 16]).unwrap());
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child().id())).unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    let peak: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
    // They asked for 15 GiB; the caches are allowed 80 MiB, and each connection a few requests.
    assert!(peak < 600 << 10, "{peak} KiB");
}
