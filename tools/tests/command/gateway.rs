//! A gateway that is asked for what cannot be: told in one line, before anything is offered.

use crate::stage::{Stage, disk};
use rustix::process::Signal;
use std::net::TcpListener;
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
