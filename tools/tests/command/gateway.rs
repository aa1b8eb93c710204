//! A gateway that is asked for what cannot be: told in one line, before anything is offered.

use crate::doors::make_certificates;
use crate::stage::{Running, Stage, disk, finish};
use coffer_gateway::nbd::proto::Framing;
use coffer_gateway::nbd::proto::handshake::{Go, encode_option, option};
use coffer_gateway::nbd::proto::transmission::{Request, command};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

#[test]
fn a_configuration_that_cannot_be_meant_is_wrong_use() {
    let stage = Stage::with_repository();
    stage.write("listne.toml", b"listen = ['unix:s']\n\nlistne = ['unix:t']\n");
    stage.write(
        "twice.toml",
        b"listen = ['unix:s']\n[[export]]\nname = 'x'\nfork = 'a'\n[[export]]\nname = 'x'\nfork = 'b'\n",
    );
    stage.write("right.toml", b"listen = ['unix:s']\n[[export]]\npoint = 'web@latest'\n");
    for (says, arguments) in [
        ("line 3: 'listne' is not known", &["serve", "--config", "listne.toml"][..]),
        ("line 3: 'listne' is not known", &["serve", "--config", "listne.toml", "--check"]),
        ("'x', which is taken", &["serve", "--config", "twice.toml", "--check"]),
        ("nowhere.toml: it cannot be read", &["serve", "--config", "nowhere.toml"]),
        ("--config", &["serve"]),
        ("--config", &["serve", "--check"]),
        ("cannot be used with", &["serve", "--config", "right.toml", "nbd", "--listen", "unix:s", "web@latest"]),
        ("WORKLOAD@latest", &["export", "add", "x=web@noon"]),
        ("neither a network", &["export", "add", "web@latest", "--allow", "everybody"]),
        ("limits nothing", &["export", "add", "web@latest", "--limit", "/"]),
    ] {
        stage.fails(2, says, arguments);
    }
    // Right as far as a look tells, and nothing is opened for it.
    stage.ok(&["serve", "--config", "right.toml", "--check"]);
    stage.fails(1, "no gateway listens there", &["export", "list"]);
}

#[test]
fn what_a_gateway_cannot_offer_or_have_is_named() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap();
    let export = |text: &str| format!("listen = ['unix:s']\n[[export]]\nname = 'x'\n{text}\n");
    for (says, text) in [
        ("export 'x': ", export("point = 'wbe@latest'")),
        ("the nearest workloads are: web", export("point = 'wbe@latest'")),
        ("no fork 'lab' here", export("fork = 'lab'")),
        ("'web' has ", export("point = 'web@latest'\nchanged-since = ['web@-7']")),
        ("in use", format!("listen = ['{port}']\n")),
        ("in use", format!("listen = ['unix:s']\nmetrics = '{port}'\n")),
    ] {
        stage.write("gateway.toml", text.as_bytes());
        let run = stage.run(&["serve", "--config", "gateway.toml"]);
        assert!(run.code == 1 && run.stderr.contains(says), "{text}: {run:?}");
        assert!(!stage.path("s").exists(), "{text}");
    }
    stage.write("gateway.toml", b"listen = ['unix:s']\n");
    let mut gateway = stage.start(&["serve", "--config", "gateway.toml", "--metrics", "unix:m"], Stdio::null());
    gateway.line_with("controlled at");
    stage.fails(1, "another gateway runs on the state folder", &["serve", "--config", "gateway.toml"]);
    let (added, again) = (stage.run(&["export", "add", "x=web@latest"]), ["export", "add", "x=web@latest"]);
    assert!(added.code == 0 && added.text().contains("nbd+unix:///x?socket="), "{added:?}");
    stage.fails(1, "there is an export 'x' already", &again);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.end().code(), Some(0));
    assert!(!stage.path("s").exists() && !stage.path("m").exists());
}

#[test]
fn a_gateway_takes_sockets_over_and_encrypts() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    make_certificates(&stage);
    stage.write(
        "gateway.toml",
        b"listen = ['systemd']\n[tls]\ncert = 'server.pem'\nkey = 'server.key'\n[[export]]\nname = 'vda'\npoint = 'web@latest'\n",
    );
    let socket = UnixListener::bind(stage.path("handed")).unwrap();
    let script = "exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" serve --config gateway.toml";
    let mut command = stage.outside("sh", &["-c", script, env!("CARGO_BIN_EXE_coffer")]);
    let child = command.stdin(Stdio::from(OwnedFd::from(socket))).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut gateway = Running::of(child.unwrap());
    gateway.line_with("listening on nbds+unix:///?socket=");
    gateway.line_with("controlled at");
    let size = finish(&mut stage.outside("nbdinfo", &["--size", "nbd+unix:///vda?socket=handed"]));
    assert_ne!(size.code, 0, "in the clear");
    stage.ok(&["backup", "-w", "copy", "vda=nbds+unix:///vda?socket=handed&tls-certificates=client"]);
    stage.ok(&["restore", "copy@latest", "--to", "copy.raw"]);
    assert!(stage.read("copy.raw") == disk(1));
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.end().code(), Some(0));
    assert!(stage.path("handed").exists(), "it is not the gateway's to remove");
}

#[test]
fn a_second_signal_ends_what_a_first_one_waits_for() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    stage.write("gateway.toml", b"listen = ['unix:s']\n[[export]]\nname = 'x'\npoint = 'web@latest'\n");
    let mut gateway = stage.start(&["serve", "--config", "gateway.toml"], Stdio::null());
    gateway.line_with("controlled at");
    // A client that takes the first bytes of what it asked for, and no more: the gateway would wait for it a while.
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(encode_option(option::GO, &Go { name: "x".into(), infos: Vec::new() }.encode()));
    for cookie in 0..32 {
        let read = Request { flags: 0, command: command::READ, cookie, offset: 0, length: 1 << 20 };
        read.encode(Framing::Simple, &mut bytes).unwrap();
    }
    let mut client = UnixStream::connect(stage.path("s")).unwrap();
    client.write_all(&bytes).unwrap();
    client.read_exact(&mut [0; 1 << 16]).unwrap();
    gateway.signal(Signal::TERM);
    gateway.line_with("a second signal ends at once");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.end().signal(), Some(Signal::TERM.as_raw()));
    // What a gateway left that ended so is no obstacle for the next.
    let mut gateway = stage.start(&["serve", "--config", "gateway.toml"], Stdio::null());
    gateway.line_with("controlled at");
    gateway.signal(Signal::INT);
    assert_eq!(gateway.end().code(), Some(0));
}
