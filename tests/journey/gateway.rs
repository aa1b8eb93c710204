//! A gateway with a configuration: clients read and write, exports come and go by command and by the file, Prometheus is told,
//! and after a stop and a start the fork and what was added by command are there again.

use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::{Running, run};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

const SIZE: u64 = 8 * MIB;
const SERVE: [&str; 3] = ["serve", "--config", "gateway.toml"];
const CONFIGURATION: &str = r#"
listen = ["unix:nbd.sock"]
metrics = "unix:metrics.sock"

[[export]]
name = "root"
point = "web@latest"

[[export]]
name = "scratch"
fork = "lab"
limit = "100000/"
"#;

fn uri(export: &str) -> String {
    format!("nbd+unix:///{export}?socket=nbd.sock")
}

fn io(coffer: &Coffer, export: &str, commands: &[&str]) {
    let mut command = coffer.outside("qemu-io");
    command.args(["-f", "raw"]);
    if !commands.iter().any(|text| text.starts_with("write")) {
        command.arg("-r");
    }
    for text in commands {
        command.args(["-c", text]);
    }
    let out = run(command.arg(uri(export)));
    assert!(!out.contains("failed"), "{out}");
}

fn scrape(socket: &Path) -> String {
    let mut socket = UnixStream::connect(socket).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: coffer\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    text
}

fn exports(coffer: &Coffer) -> Vec<Value> {
    coffer.json(&["export", "list"])["exports"].as_array().unwrap().clone()
}

fn names(coffer: &Coffer) -> Vec<String> {
    exports(coffer).iter().map(|export| export["name"].as_str().unwrap().to_owned()).collect()
}

fn named(coffer: &Coffer, name: &str) -> Value {
    exports(coffer).into_iter().find(|export| export["name"] == name).unwrap()
}

/// A client of our own that has an export until it is dropped.
fn client(coffer: &Coffer, export: &str) -> coffer_gateway::nbd::NbdClient {
    let socket = coffer.path("nbd.sock");
    let uri = format!("nbd+unix:///{export}?socket={}", socket.display());
    let client = coffer_gateway::nbd::NbdClient::connect(&uri.parse().unwrap(), &Default::default()).unwrap();
    // A client is counted a moment after it has its answer.
    coffer_gateway::BlockDevice::read_at(&client, 0, &mut [0; 512]).unwrap();
    client
}

fn stop(gateway: Running) {
    let ended = gateway.terminate();
    assert!(ended.status.success(), "{ended}");
}

#[test]
fn a_gateway_keeps_its_promises_over_a_restart() {
    let coffer = Coffer::new();
    for seed in [20_401, 20_402] {
        image::make(&coffer.path(&format!("{seed}.raw")), SIZE, &[0..SIZE], seed);
        let mut backup = coffer.command(&["backup", "-w", "web"]);
        run(backup.arg(format!("vda={seed}.raw")));
    }
    coffer.run(&["fork", "create", "lab", "web@-1"]);
    coffer.run(&["fork", "create", "other", "web@-1"]);
    std::fs::write(coffer.path("gateway.toml"), CONFIGURATION).unwrap();
    coffer.run(&["serve", "--config", "gateway.toml", "--check"]);
    coffer.fails(&["export", "list"], &["no gateway listens", "coffer serve --config"]);

    let gateway = coffer.start(&SERVE, "controlled at");
    coffer.fails(&SERVE, &["another gateway runs", "state"]);
    assert_eq!(names(&coffer), ["root", "scratch"]);
    io(&coffer, "scratch", &["write -P 0x5a 1M 64k", "flush", "read -P 0x5a 1M 64k"]);
    run(coffer.outside("qemu-img").args(["compare", "-f", "raw", "-F", "raw", "20402.raw", &uri("root")]));

    // By command: a point that is meant once and for all, and a fork; names that are taken, points and forks that are not there.
    coffer.run(&["export", "add", "then=web@latest", "--allow", "uid:0,10.0.0.0/8", "--limit", "50000/1G"]);
    coffer.run(&["export", "add", "more=fork:other"]);
    coffer.fails(&["export", "add", "root=web@latest"], &["'root'", "already"]);
    coffer.fails(&["export", "add", "x=db@latest"], &["db"]);
    coffer.fails(&["export", "add", "x=fork:nowhere"], &["no fork 'nowhere'", "lab"]);
    coffer.fails(&["export", "add", "x=web@latest", "--allow", "cert:me"], &["client-ca"]);
    coffer.fails(&["export", "remove", "x"], &["no export 'x'", "root"]);
    io(&coffer, "more", &["write -P 0x77 0 4k"]);
    image::make(&coffer.path("20403.raw"), SIZE, &[0..SIZE], 20_403);
    coffer.run(&["backup", "-w", "web", "vda=20403.raw"]);

    // Live figures, to people and to Prometheus.
    let scratch = named(&coffer, "scratch");
    assert!(scratch["writes"].as_u64().unwrap() >= 1 && scratch["bytes_written"].as_u64().unwrap() >= 64 << 10);
    let page = scrape(&coffer.path("metrics.sock"));
    let written = format!("coffer_export_written_bytes_total{{export=\"scratch\"}} {}", scratch["bytes_written"]);
    assert!(page.lines().any(|line| line == written), "{written}\n{page}");

    // A client keeps what is removed; its fork is free when it left.
    let kept = client(&coffer, "more");
    assert_eq!(named(&coffer, "more")["clients"], 1);
    coffer.run(&["export", "remove", "more"]);
    assert_eq!(named(&coffer, "more")["is_leaving"], true);
    coffer_gateway::BlockDevice::read_at(&kept, 0, &mut [0; 512]).unwrap();
    coffer.fails(&["fork", "drop", "other"], &["open in another process"]);
    drop(kept);
    let mut gateway = gateway;
    gateway.wait_until("the fork's end", |_| !names(&coffer).contains(&"more".to_owned()));
    coffer.run(&["fork", "drop", "other"]);

    // Who is disconnected has to go.
    let sent_away = client(&coffer, "then");
    coffer.run(&["export", "remove", "then", "--disconnect"]);
    gateway.wait_until("the client's end", |_| !names(&coffer).contains(&"then".to_owned()));
    assert!(coffer_gateway::BlockDevice::read_at(&sent_away, 0, &mut [0; 512]).is_err());
    coffer.run(&["export", "add", "then=web@-1"]);

    // SIGTERM with a client there, and a start: the fork with its writes, and the point that was meant then.
    let idle = client(&coffer, "scratch");
    stop(gateway);
    drop(idle);
    assert!(!coffer.path("nbd.sock").exists() && !coffer.path("metrics.sock").exists());
    let gateway = coffer.start(&SERVE, "controlled at");
    assert_eq!(names(&coffer), ["root", "scratch", "then"]);
    assert_eq!(named(&coffer, "then")["origin"], "command");
    io(&coffer, "scratch", &["read -P 0x5a 1M 64k"]);
    for (export, file) in [("then", "20402.raw"), ("root", "20403.raw")] {
        run(coffer.outside("qemu-img").args(["compare", "-f", "raw", "-F", "raw", file, &uri(export)]));
    }

    // A fork that is offered becomes a point.
    coffer.run(&["fork", "commit", "lab"]);
    coffer.run(&["restore", "web@latest", "--to", "committed.raw"]);
    run(coffer.outside("qemu-img").args(["compare", "-f", "raw", "-F", "raw", "committed.raw", &uri("scratch")]));
    stop(gateway);

    // What cannot be offered again is told, and the rest is there.
    coffer.run(&["forget", "web@-2"]);
    let gateway = coffer.start(&SERVE, "controlled at");
    assert!(gateway.err().contains("'then' is not offered again"), "{}", gateway.err());
    assert_eq!(names(&coffer), ["root", "scratch"]);
    coffer.run(&["export", "remove", "then"]);
    assert_eq!(gateway.terminate().status.code(), Some(3), "done with warnings");
}

#[test]
fn a_changed_file_is_followed_and_a_wrong_one_is_not() {
    let coffer = Coffer::new();
    image::make(&coffer.path("disk.raw"), SIZE, &[0..SIZE], 20_404);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    let configure = |exports: &[(&str, &str)]| {
        let exports: String = exports
            .iter()
            .map(|(name, more)| format!("[[export]]\nname = '{name}'\npoint = 'web@latest'\n{more}\n"))
            .collect();
        std::fs::write(coffer.path("gateway.toml"), format!("listen = ['unix:nbd.sock']\n{exports}")).unwrap();
    };
    configure(&[("a", ""), ("b", "")]);
    let mut gateway = coffer.start(&SERVE, "controlled at");
    let untouched = client(&coffer, "a");
    configure(&[("a", ""), ("b", "limit = '7/'"), ("c", "")]);
    gateway.signal(rustix::process::Signal::HUP);
    gateway.wait_until("the second reading", |g| g.err().contains("2 exports added, 1 removed, 0 failed"));
    assert_eq!(names(&coffer), ["a", "b", "c"]);
    assert_eq!(named(&coffer, "a")["clients"], 1);
    coffer_gateway::BlockDevice::read_at(&untouched, 0, &mut [0; 512]).unwrap();
    std::fs::write(coffer.path("gateway.toml"), "listen = ['unix:nbd.sock']\nlisten-to = 1\n").unwrap();
    gateway.signal(rustix::process::Signal::HUP);
    gateway.wait_until("the complaint", |g| g.err().contains("line 2: 'listen-to'"));
    assert_eq!(names(&coffer), ["a", "b", "c"]);
    configure(&[("c", "")]);
    gateway.signal(rustix::process::Signal::HUP);
    gateway.wait_until("the fourth reading", |g| g.err().contains("0 exports added, 2 removed, 0 failed"));
    drop(untouched);
    gateway.wait_until("the client's end", |_| names(&coffer) == ["c"]);
    assert_eq!(gateway.terminate().status.code(), Some(3), "done with warnings");
}

/// One fork through two doors at once: what one writes the other reads, at once. Disks come and go under a session; who is not a guest
/// sees nothing.
#[test]
fn nbd_and_iscsi_are_doors_to_the_same_disk() {
    const TARGET: &str = "iqn.2026-01.test:san";
    let coffer = Coffer::new();
    image::make(&coffer.path("disk.raw"), SIZE, &[0..SIZE], 20_405);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    coffer.run(&["fork", "create", "lab", "web@latest"]);
    let configure = |more: &str| {
        let text = format!(
            "listen = ['unix:nbd.sock']\nmetrics = 'unix:metrics.sock'\n[[export]]\nname = 'lab'\nfork = 'lab'\n[iscsi]\nlisten = ['127.0.0.1:0']\n\
             [[target]]\nname = '{TARGET}'\n[[target.lun]]\nnumber = 0\nfork = 'lab'\n{more}"
        );
        std::fs::write(coffer.path("gateway.toml"), text).unwrap();
    };
    configure("");
    let mut gateway = coffer.start(&SERVE, "controlled at");
    let said = gateway.err();
    let portal = said.split("iscsi://").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();
    let lun = |number: u16| format!("iscsi://{portal}/{TARGET}/{number}");
    let scsi = |number: u16, command: &str| {
        let out = run(coffer.outside("qemu-io").args(["-f", "raw", "-c", command]).arg(lun(number)));
        assert!(!out.contains("failed"), "{out}");
    };
    io(&coffer, "lab", &["write -P 0x61 1M 64k"]);
    scsi(0, "read -P 0x61 1M 64k");
    scsi(0, "write -P 0x62 2M 64k");
    io(&coffer, "lab", &["read -P 0x62 2M 64k", "write -z 2M 64k"]);
    scsi(0, "read -P 0 2M 64k");
    run(coffer.outside("qemu-img").args(["compare", "-f", "raw", "-F", "raw", &uri("lab"), &lun(0)]));

    // A point comes as a second disk, and the first goes while a session has it.
    let mut command = coffer.outside("qemu-system-x86_64");
    command.args(["-M", "none", "-nodefaults", "-display", "none", "-serial", "none", "-monitor", "none"]);
    command
        .args(["-blockdev", &format!("driver=iscsi,node-name=x,transport=tcp,portal={portal},target={TARGET},lun=0")]);
    let mut initiator = Running::start(&mut command);
    let sessions = || coffer.json(&["iscsi", "sessions"])["sessions"].as_array().unwrap().clone();
    initiator.wait_until("a session", |_| !sessions().is_empty());
    assert_eq!(sessions()[0]["target"], TARGET);
    let page = scrape(&coffer.path("metrics.sock"));
    let lun_line = format!("target=\"{TARGET}\",lun=\"0\"}} ");
    let of_lun = |metric: &str| page.lines().find(|line| line.starts_with(metric) && line.contains(&lun_line)).unwrap();
    assert!(of_lun("coffer_export_clients{").ends_with(" 1"), "{page}");
    assert!(!of_lun("coffer_export_writes_total{").ends_with(" 0"), "{page}");
    assert!(page.contains("coffer_iscsi_connections{") && page.contains("coffer_export_clients{export=\"lab\"} "));
    configure("[[target.lun]]\nnumber = 1\npoint = 'web@latest'\n");
    gateway.signal(rustix::process::Signal::HUP);
    gateway.wait_until("the second reading", |g| g.err().contains("1 exports added, 0 removed, 0 failed"));
    let targets = coffer.json(&["iscsi", "targets"]);
    let luns = targets["targets"][0]["luns"].as_array().unwrap();
    assert_eq!((luns.len(), &luns[0]["size"], &luns[1]["is_read_only"]), (2, &SIZE.into(), &true.into()), "{targets}");
    run(coffer.outside("qemu-img").args(["compare", "-f", "raw", "-F", "raw", "disk.raw", &lun(1)]));
    assert!(coffer.run(&["iscsi", "targets"]).contains("read-only"));
    assert!(!sessions().is_empty(), "the session is still there");
    initiator.kill();

    // Whoever is no guest any more.
    configure("[[target.initiator]]\nname = 'iqn.2026-01.test:somebody'\n");
    gateway.signal(rustix::process::Signal::HUP);
    gateway.wait_until("the third reading", |g| {
        g.err().contains("1 exports added, 2 removed") || g.err().contains("2 exports added")
    });
    let refused =
        coffer_tests::program::attempt(coffer.outside("qemu-io").args(["-f", "raw", "-c", "read 0 512"]).arg(lun(0)));
    assert!(!refused.status.success(), "{refused}");
    io(&coffer, "lab", &["read -P 0x61 1M 64k"]);
    stop(gateway);
}
