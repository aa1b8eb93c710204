//! The iSCSI target as a command: what it refuses to serve, and whom it refuses to serve to.

use crate::stage::{Stage, disk, finish};
use rustix::process::Signal;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

const TARGET: &str = "iqn.2026-01.test:disks";

/// A stage with a point of `web`, the fork `lab`, and secrets.
fn prepare() -> Stage {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    stage.ok(&["fork", "create", "lab", "web@latest"]);
    for (name, secret, mode) in [
        ("guest.secret", "what the guest knows\n", 0o600),
        ("disk.secret", "what the disk knows\r\n", 0o600),
        ("same.secret", "what the guest knows", 0o600),
        ("short.secret", "eleven byte\n", 0o600),
        ("open.secret", "what everybody knows", 0o640),
    ] {
        stage.write(name, secret.as_bytes());
        std::fs::set_permissions(stage.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    stage
}

fn serve<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["serve", "iscsi", "--listen", "127.0.0.1:0", "--target", TARGET], more].concat()
}

#[test]
fn what_cannot_be_a_target_is_named_before_anything_listens() {
    let stage = prepare();
    let chap = ["--lun", "0=fork:lab", "--chap-user", "guest", "--chap-secret"];
    for (code, says, more) in [
        (2, "--lun <N=POINT", &[][..]),
        (2, "it lacks N=", &["--lun", "fork:lab"]),
        (2, "'99999' is not the number of a LUN", &["--lun", "99999=fork:lab"]),
        (2, "is not the number of a LUN", &["--lun=-1=fork:lab"]),
        (1, "LUN 20000: the highest number is 16383", &["--lun", "20000=fork:lab"]),
        (1, "there is a LUN 0 already", &["--lun", "0=fork:lab", "--lun", "0=web@latest"]),
        (1, "same disk as LUN 0", &["--lun", "0=web@latest", "--lun", "1=web@latest"]),
        (1, "the nearest workloads are: web", &["--lun", "0=wbe@latest"]),
        (1, "there is no web@-7", &["--lun", "0=web@-7"]),
        (1, "no fork 'lob' here; there are: lab", &["--lun", "0=fork:lob"]),
        (2, "a power of two from 512", &["--lun", "0=fork:lab", "--block-size", "1000"]),
        (2, "--block-size", &["--lun", "0=fork:lab", "--block-size", "8192"]),
        (2, "a portal is HOST:PORT", &["--lun", "0=fork:lab", "--listen", "unix:s"]),
        (2, "told apart by their networks", &["--lun", "0=fork:lab", "--allow", "uid:0"]),
        (1, "'joe' is no iSCSI name", &["--lun", "0=fork:lab", "--initiator", "joe"]),
        (2, "--chap-user", &["--lun", "0=fork:lab", "--chap-secret", "guest.secret"]),
        (2, "--chap-secret", &["--lun", "0=fork:lab", "--chap-user", "guest"]),
        (2, "--chap-user", &["--lun", "0=fork:lab", "--allow-md5"]),
        (2, "--chap-user", &["--lun", "0=fork:lab", "--target-user", "disk", "--target-secret", "disk.secret"]),
        (2, "--target-secret", &[&chap[..], &["guest.secret", "--target-user", "disk"]].concat()),
        (1, "open.secret can be read by others; 'chmod 600' it", &[&chap[..], &["open.secret"]].concat()),
        (1, "12 to 256 bytes, this one 11", &[&chap[..], &["short.secret"]].concat()),
        (1, "nowhere.secret", &[&chap[..], &["nowhere.secret"]].concat()),
        (1, "needs a name", &["--lun", "0=fork:lab", "--chap-user", "", "--chap-secret", "guest.secret"]),
        (
            1,
            "of 'guest' and of the target are the same",
            &[&chap[..], &["guest.secret", "--target-user", "disk", "--target-secret", "same.secret"]].concat(),
        ),
    ] {
        stage.fails(code, says, &serve(more));
    }
    for name in ["web", "iqn.", "iqn.2026-01.test:two words", "iqn.2026-01.test:a,b"] {
        let arguments = ["serve", "iscsi", "--listen", "127.0.0.1:0", "--target", name, "--lun", "0=fork:lab"];
        stage.fails(1, "is no iSCSI name", &arguments);
    }
    // All of them let go of what they had opened.
    stage.ok(&["fork", "drop", "lab"]);
}

#[test]
fn a_portal_is_opened_or_said_to_be_in_use() {
    let stage = prepare();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let arguments = serve(&["--lun", "0=fork:lab", "--listen", &address]);
    stage.fails(1, &format!("{address} is in use"), &arguments);
    drop(taken);
    let mut server = stage.start(&arguments, Stdio::null());
    server.line_with(&format!("listening on iscsi://{address}/{TARGET}/0"));
    stage.fails(1, "open in another process", &["fork", "drop", "lab"]);
    stage.fails(1, "'lab'", &serve(&["--lun", "0=fork:lab"]));
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    stage.ok(&["fork", "drop", "lab"]);
}

/// libiscsi's tools know CHAP with MD5 only.
#[test]
fn whoever_proves_nothing_gets_nothing() {
    let stage = prepare();
    let arguments = serve(&["--lun", "0=fork:lab", "--chap-user", "guest", "--chap-secret", "guest.secret"]);
    let inquire =
        |address: &str, who: &str| finish(&mut stage.outside("iscsi-inq", &[&format!("iscsi://{who}{address}")]));
    for is_md5_allowed in [false, true] {
        let more: &[&str] = if is_md5_allowed { &["--allow-md5"] } else { &[] };
        let mut server = stage.start(&[&arguments[..], more].concat(), Stdio::null());
        let line = server.line_with("listening on iscsi://");
        let address = line.split("iscsi://").nth(1).unwrap();
        for who in ["", "guest%what nobody knows@", "other%what the guest knows@"] {
            let run = inquire(address, who);
            assert!(run.code != 0 && !run.text().contains("DIRECT_ACCESS"), "{who}: {run:?}");
            let line = server.line_with("refused");
            assert!(line.contains("127.0.0.1") && !line.contains("knows"), "{line}");
        }
        let run = inquire(address, "guest%what the guest knows@");
        assert_eq!(run.text().contains("DIRECT_ACCESS"), is_md5_allowed, "{run:?}");
        server.signal(Signal::TERM);
        assert_eq!(server.end().code(), Some(0));
    }
}

#[test]
fn an_initiator_that_is_on_no_list_sees_nothing() {
    let stage = prepare();
    let friends = ["--initiator", "iqn.2026-01.test:one", "--initiator", "iqn.2026-01.test:Two"];
    let mut server = stage.start(&serve(&[&["--lun", "3=web@latest"], &friends[..]].concat()), Stdio::null());
    let line = server.line_with("listening on iscsi://");
    let url = line.split(' ').next_back().unwrap();
    let portal = url.split(&format!("/{TARGET}")).next().unwrap();
    let list = |name: &str| finish(&mut stage.outside("iscsi-ls", &["-s", "-i", name, portal])).text();
    let inquire = |name: &str| finish(&mut stage.outside("iscsi-inq", &["-i", name, url])).text();
    for name in ["iqn.2026-01.test:one", "iqn.2026-01.test:two"] {
        let listed = list(name);
        assert!(listed.contains(TARGET) && listed.contains("Lun:3") && listed.contains("DIRECT_ACCESS"), "{listed}");
        assert!(inquire(name).contains("DIRECT_ACCESS"));
    }
    assert_eq!(list("iqn.2026-01.test:three"), "");
    assert!(!inquire("iqn.2026-01.test:three").contains("DIRECT_ACCESS"));
    server.line_with("not for it");
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));

    let mut server = stage.start(&serve(&["--lun", "0=web@latest", "--allow", "10.0.0.0/8"]), Stdio::null());
    let line = server.line_with("listening on iscsi://");
    let url = line.split(' ').next_back().unwrap();
    let run = finish(&mut stage.outside("iscsi-inq", &[url]));
    assert!(run.code != 0 && !run.text().contains("DIRECT_ACCESS"), "{run:?}");
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
}
