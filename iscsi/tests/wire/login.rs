//! Logins: what is agreed, and how they end when something is wrong.

use crate::bench::{Bench, TARGET, options, portal, target};
use crate::initiator::{Initiator, Login, NO_TAG, Pdu, connect, pairs, receive, text};
use coffer_iscsi::scsi::LunMask;
use coffer_iscsi::{Guest, IscsiServer, PortalOptions};
use std::io::{Read, Write};
use std::time::Duration;

#[test]
fn everything_is_agreed_in_one_step() {
    let bench = Bench::new();
    let keys = [
        ("HeaderDigest", "CRC32C,None"),
        ("DataDigest", "None"),
        ("MaxConnections", "9"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "16776192"),
        ("FirstBurstLength", "65536"),
        ("DefaultTime2Wait", "2"),
        ("DefaultTime2Retain", "20"),
        ("MaxOutstandingR2T", "1"),
        ("ErrorRecoveryLevel", "2"),
        ("IFMarker", "No"),
        ("X-com.example.unknown", "1"),
    ];
    let mut initiator = Initiator::login(bench.address, &Login::to(TARGET).with(&keys)).unwrap();
    let due = [
        ("HeaderDigest", "CRC32C"),
        ("DataDigest", "None"),
        ("MaxConnections", "8"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "1048576"),
        ("FirstBurstLength", "65536"),
        ("DefaultTime2Wait", "2"),
        ("DefaultTime2Retain", "0"),
        ("MaxOutstandingR2T", "1"),
        ("ErrorRecoveryLevel", "1"),
        ("IFMarker", "No"),
        ("X-com.example.unknown", "NotUnderstood"),
        ("MaxRecvDataSegmentLength", "262144"),
        ("TargetPortalGroupTag", "1"),
        ("TargetAlias", "a disk"),
    ];
    let due = due.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    assert_eq!(initiator.said, due);
    assert_ne!(initiator.tsih, 0);
    initiator.ping();
    let sessions = bench.server.sessions();
    assert_eq!((sessions.len(), sessions[0].tsih, sessions[0].target.as_str()), (1, initiator.tsih, TARGET));
    assert_eq!(initiator.log_out(0, 0), 0);
    assert!(initiator.is_hung_up());
    crate::bench::eventually("the session is gone", || bench.server.sessions().is_empty());
}

#[test]
fn a_login_may_take_several_steps_and_texts_several_requests() {
    let bench = Bench::new();
    let login = Login::to(TARGET);
    let mut stream = connect(bench.address);
    let mut ask = |flags: u8, said: &[u8]| {
        stream.write_all(&login.request(flags, said).encode(false, false)).unwrap();
        receive(&mut stream, false, false).unwrap()
    };
    let introduction = login.introduction();
    let (first, second) = introduction.split_at(20);
    let answer = ask(0x40, first);
    assert_eq!((answer.head[1], answer.data.len(), answer.u32(24)), (0, 0, 1));
    let answer = ask(0x00, second);
    assert_eq!(pairs(&answer.data)["TargetPortalGroupTag"], "1");
    let answer = ask(0x81, &text(&[("AuthMethod", "CHAP,None")]));
    assert_eq!((answer.head[1], pairs(&answer.data)["AuthMethod"].as_str()), (0x81, "None"));
    let answer = ask(0x04, &text(&[("InitialR2T", "No")]));
    assert_eq!(answer.head[1], 0x04);
    let answer = ask(0x87, &text(&[("ImmediateData", "No")]));
    assert_eq!((answer.head[1], answer.u32(24)), (0x87, 5));
    Initiator::after(stream, &login, &answer).ping();
}

#[test]
fn what_is_wrong_has_its_status() {
    let bench = Bench::new();
    let status = |pdu: Pdu| {
        let mut stream = connect(bench.address);
        stream.write_all(&pdu.encode(false, false)).unwrap();
        let answer = receive(&mut stream, false, false).unwrap();
        assert_eq!(answer.opcode(), 0x23);
        let status = u16::from_be_bytes([answer.head[36], answer.head[37]]);
        assert_ne!(status, 0);
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the target hangs up");
        status
    };
    let login = Login::to(TARGET);
    let said = login.introduction();
    let other = |change: fn(&mut Login)| {
        let mut login = Login::to(TARGET);
        change(&mut login);
        login.request(0x87, &login.introduction())
    };
    assert_eq!(status(other(|l| l.target = Some("iqn.2026-01.test:none".into()))), 0x0203);
    assert_eq!(status(other(|l| l.tsih = 77)), 0x020a);
    assert_eq!(status(login.request(0x87, &text(&[("TargetName", TARGET)]))), 0x0207);
    assert_eq!(status(login.request(0x87, &text(&[("InitiatorName", "iqn.x")]))), 0x0207);
    assert_eq!(status(login.request(0x87, &text(&[("InitiatorName", "nobody")]))), 0x0200);
    let strange = text(&[("InitiatorName", "iqn.x"), ("SessionType", "Strange")]);
    assert_eq!(status(login.request(0x87, &strange)), 0x0209);
    assert_eq!(status(login.request(0x87, &said).bytes(2, &[1, 1])), 0x0205);
    for flags in [0x84, 0x86, 0x8b, 0xc7, 0x08, 0x85] {
        assert_eq!(status(login.request(flags, &said)), 0x020b, "{flags:#x}");
    }
    let twice = [said.clone(), text(&[("MaxBurstLength", "512"), ("MaxBurstLength", "512")])].concat();
    assert_eq!(status(login.request(0x87, &twice)), 0x0200);
    assert_eq!(status(login.request(0x87, b"no pairs")), 0x0200);
    let method = [said.clone(), text(&[("AuthMethod", "KRB5")])].concat();
    assert_eq!(status(login.request(0x81, &method)), 0x0201);
    let mut discovery = Login { target: None, ..Login::to(TARGET) };
    discovery.tsih = 1;
    assert_eq!(status(discovery.request(0x87, &discovery.introduction())), 0x0208);
    assert_eq!(bench.server.sessions(), []);
    bench.session(1, &[]).ping();
}

#[test]
fn a_login_that_does_not_come_to_an_end_is_ended() {
    let bench =
        Bench::with(coffer_iscsi::ServerOptions { login_timeout: Duration::from_millis(100), ..options() }, Vec::new());
    let mut silent = connect(bench.address);
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0);
    let login = Login::to(TARGET);
    let mut endless = connect(bench.address);
    let mut steps = 0;
    while endless.write_all(&login.request(0x04, &login.introduction()).encode(false, false)).is_ok() && steps < 1000 {
        if receive(&mut endless, false, false).is_err() {
            break;
        }
        steps += 1;
    }
    assert!(steps < 1000);
}

#[test]
fn before_a_login_nothing_else_is_answered() {
    let bench = Bench::new();
    let mut stream = connect(bench.address);
    stream.write_all(&Pdu::new(0x40, 0x80, 1).with(20, NO_TAG).encode(false, false)).unwrap();
    let answer = receive(&mut stream, false, false).unwrap();
    assert_eq!((answer.opcode(), answer.head[2], answer.data.len()), (0x3f, 4, 48));
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

/// What SendTargets is answered.
fn send_targets(initiator: &mut Initiator, asked: &str) -> Vec<(String, String)> {
    let tag = initiator.tag();
    initiator.send(Pdu::new(0x04, 0x80, tag).with(20, NO_TAG).data(&text(&[("SendTargets", asked)])));
    let mut said = Vec::new();
    loop {
        let answer = initiator.receive();
        assert_eq!(answer.opcode(), 0x24);
        said.extend(&answer.data);
        if answer.head[1] & 0x40 == 0 {
            assert_eq!((answer.head[1], answer.u32(20)), (0x80, NO_TAG));
            break;
        }
        let tag = initiator.tag();
        initiator.send(Pdu::new(0x04, 0x80, tag).with(20, answer.u32(20)));
    }
    let pairs = said.split(|b| *b == 0).filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| String::from_utf8(pair.to_vec()).unwrap());
    pairs.map(|pair| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap()).collect()
}

#[test]
fn discovery_shows_what_an_initiator_may_use() {
    let guest = |name: &str| Guest { initiator: Some(name.into()), luns: LunMask::All, ..Guest::default() };
    let targets = vec![
        target("iqn.x:everybody", &[], Vec::new()),
        target("iqn.x:mine", &[], vec![guest("iqn.2026-01.test:initiator")]),
        target("iqn.x:others", &[], vec![guest("iqn.x:other")]),
    ];
    let portals = [PortalOptions { group: 3, ..portal() }, portal()];
    let server = IscsiServer::start(&portals, targets, options()).unwrap();
    let addresses: Vec<String> = server.places().map(ToString::to_string).collect();
    let discovery = Login { target: None, ..Login::to("") };
    let login = |keys: &[(&'static str, &'static str)]| {
        Initiator::login(addresses[0].parse().unwrap(), &discovery.clone().with(keys)).unwrap()
    };
    let mut initiator = login(&[("MaxConnections", "4")]);
    assert_eq!(initiator.said["MaxConnections"], "Irrelevant");
    let of = |name: &str| {
        let tagged = |i: usize, group: u16| ("TargetAddress".to_owned(), format!("{},{group}", addresses[i]));
        vec![("TargetName".to_owned(), name.to_owned()), tagged(0, 3), tagged(1, 1)]
    };
    let both = [of("iqn.x:everybody"), of("iqn.x:mine")].concat();
    assert_eq!(send_targets(&mut initiator, "All"), both);
    assert_eq!(send_targets(&mut initiator, "iqn.x:mine"), of("iqn.x:mine"));
    for nothing in ["", "iqn.x:others", "iqn.x:none"] {
        assert_eq!(send_targets(&mut initiator, nothing), []);
    }
    assert_eq!(initiator.read(0, 0, 1).status, 2, "there are no disks here");
    // A question may come in pieces.
    let tag = initiator.tag();
    initiator.send(Pdu::new(0x04, 0x40, tag).with(20, NO_TAG).data(b"SendTargets=iqn.x"));
    let more = initiator.receive();
    assert_eq!((more.opcode(), more.head[1], more.data.len()), (0x24, 0, 0));
    initiator.send(Pdu::new(0x04, 0x80, tag).with(20, more.u32(20)).data(b":mine\0HeaderDigest=None\0X=1\0"));
    let answer = initiator.receive();
    assert_eq!(answer.head[1], 0x80);
    let said = pairs(&answer.data);
    assert_eq!((said["TargetName"].as_str(), said["HeaderDigest"].as_str()), ("iqn.x:mine", "Reject"));
    assert_eq!(said["X"], "NotUnderstood");
    initiator.send(Pdu::new(0x04, 0x80, tag).with(20, more.u32(20)));
    assert_eq!(initiator.receive().head[2], 4, "there is nothing more of it");
    assert_eq!(initiator.log_out(0, 0), 0);
    // What does not fit one segment goes on.
    for i in 0..40 {
        server.add_target(target(&format!("iqn.x:many-{i:02}"), &[], Vec::new())).unwrap();
    }
    let mut initiator = login(&[("MaxRecvDataSegmentLength", "512")]);
    assert_eq!(send_targets(&mut initiator, "All").len(), 42 * 3);
    // A normal session hears of its own target alone.
    let mine = Login::to("iqn.x:mine");
    let mut initiator = Initiator::login(addresses[1].parse().unwrap(), &mine).unwrap();
    assert_eq!(send_targets(&mut initiator, ""), of("iqn.x:mine"));
    assert_eq!(send_targets(&mut initiator, "All"), []);
    assert_eq!(Initiator::login(addresses[0].parse().unwrap(), &Login::to("iqn.x:others")).err(), Some(0x0203));
    server.remove_target("iqn.x:mine").unwrap();
    let farewell = initiator.receive();
    assert_eq!((farewell.opcode(), farewell.head[36]), (0x32, 1));
    assert_eq!(initiator.log_out(0, 0), 0);
    assert_eq!(Initiator::login(addresses[0].parse().unwrap(), &mine).err(), Some(0x0203));
}
