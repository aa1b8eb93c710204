//! Task management while storage hangs, pings, logouts and farewells.

use crate::bench::{Bench, TARGET, eventually, options, portal, target};
use crate::initiator::{Initiator, Login, NO_TAG, Pdu, read10, write10};
use coffer_iscsi::{IscsiServer, ServerOptions};
use std::time::Duration;

/// Sends a read that hangs.
fn hanging(initiator: &mut Initiator, bench: &Bench, hanging: usize) -> (u32, u32) {
    let command = initiator.command(1, &read10(0, 1), 0x40, 512);
    let (tag, sn) = (command.tag(), initiator.cmd_sn);
    initiator.send(command);
    bench.gate.until_waiting(hanging);
    (tag, sn)
}

#[test]
fn a_task_is_aborted_at_once_however_storage_hangs() {
    let bench = Bench::new();
    let mut initiator = bench.session(1, &[]);
    bench.gate.close();
    let (tag, sn) = hanging(&mut initiator, &bench, 1);
    assert_eq!(initiator.manage(1, 1, tag, sn), 0);
    assert_eq!(initiator.manage(1, 1, tag, sn), 1, "it is not there any more");
    assert_eq!(initiator.manage(1, 1, 0x7777, sn - 1), 1, "it never was");
    // The tag may be used again at once, and the late outcome is nobody's.
    let command = initiator.command(0, &read10(0, 1), 0x40, 512).with(16, tag);
    initiator.send(command);
    assert_eq!(initiator.finish(tag, &[]).status, 0);
    bench.gate.open();
    assert_eq!(initiator.read(1, 0, 1).data.len(), 512);
    initiator.ping();
}

#[test]
fn sets_of_tasks_luns_and_targets_are_reset_at_once() {
    let bench = Bench::new();
    let mut initiator = bench.session(1, &[]);
    for (i, function) in [2, 4, 5, 6].into_iter().enumerate() {
        bench.gate.close();
        for n in 0..3 {
            hanging(&mut initiator, &bench, n + 1);
        }
        let window = initiator.max_cmd_sn;
        assert_eq!(initiator.manage(function, 1, NO_TAG, 0), 0, "function {function}");
        assert_eq!(initiator.max_cmd_sn, window + 3, "their places are free");
        initiator.ping();
        bench.gate.open();
        initiator.settle();
        assert_eq!(initiator.read(1, 0, 1).status, 0, "round {i}");
    }
    assert_eq!(initiator.manage(5, 9, NO_TAG, 0), 2, "no such LUN");
    assert_eq!(initiator.manage(8, 1, 1, 0), 4, "no reassignment below recovery level 2");
    assert_eq!(initiator.manage(3, 1, NO_TAG, 0), 5, "no ACA");
    assert_eq!(initiator.manage(77, 1, NO_TAG, 0), 5);
}

#[test]
fn another_sessions_tasks_are_cleared_too() {
    let bench = Bench::new();
    let (mut one, mut other) = (bench.session(1, &[]), bench.session(2, &[]));
    bench.gate.close();
    let (tag, _) = hanging(&mut other, &bench, 1);
    assert_eq!(one.manage(5, 1, NO_TAG, 0), 0);
    bench.gate.open();
    other.settle();
    assert_eq!(other.read(1, 0, 1).status, 0);
    let _ = tag;
}

#[test]
fn a_write_that_waits_for_data_is_aborted_and_its_data_are_skipped() {
    let bench = Bench::new();
    let mut initiator = bench.session(1, &[]);
    let command = initiator.command(0, &write10(0, 64), 0x20, 32_768);
    let (tag, sn) = (command.tag(), initiator.cmd_sn);
    initiator.send(command);
    let request = initiator.receive();
    assert_eq!((request.opcode(), request.u32(44)), (0x31, 32_768));
    assert_eq!(initiator.manage(1, 0, tag, sn), 0);
    initiator.data_out(tag, request.u32(20), 0, &[7; 32_768]);
    initiator.ping();
    assert!(initiator.read(0, 0, 64).data.iter().all(|byte| *byte == 0));
}

#[test]
fn a_command_that_did_not_come_yet_can_be_aborted() {
    let bench = Bench::new();
    let mut initiator = bench.session(1, &[]);
    let sn = initiator.cmd_sn;
    let late = initiator.command(0, &read10(0, 1), 0x40, 512);
    initiator.send_as_it_is(late.clone().with(24, sn + 1));
    assert_eq!(initiator.manage(1, 0, 0x4444, sn), 0, "it is taken as having come");
    let answer = initiator.receive();
    assert_eq!((answer.tag(), answer.head[3]), (late.tag(), 0));
    initiator.cmd_sn = sn + 2;
    assert_eq!(initiator.exp_cmd_sn, initiator.cmd_sn);
    initiator.ping();
}

#[test]
fn pings_of_both_sides_are_answered_and_the_dead_are_given_up() {
    let quick = Duration::from_millis(60);
    let bench = Bench::with(ServerOptions { ping_after: quick, ping_timeout: quick, ..options() }, Vec::new());
    let mut living = bench.session(1, &[]);
    let mut dead = bench.session(2, &[]);
    let mut pings = 0;
    while !bench.server.sessions().iter().all(|session| session.isid[5] == 1) || pings < 3 {
        let ping = living.receive();
        assert_eq!((ping.opcode(), ping.tag()), (0x20, NO_TAG));
        pings += 1;
        assert!(pings < 1000, "the dead one stays");
        let pong = Pdu::new(0x40, 0x80, NO_TAG).with(20, ping.u32(20)).with(24, living.cmd_sn);
        living.send_as_it_is(pong);
    }
    let ping = dead.receive();
    assert_eq!((ping.opcode(), ping.tag()), (0x20, NO_TAG));
    assert!(dead.is_hung_up());
    // One that stops in the middle of a PDU is no better.
    let mut halved = bench.session(3, &[]);
    std::io::Write::write_all(&mut halved.stream, &Pdu::new(0x40, 0x80, 1).encode(false, false)[..20]).unwrap();
    drop(living);
    eventually("all sessions are gone", || bench.server.sessions().is_empty());
}

#[test]
fn initiators_are_asked_to_log_out_before_the_server_stops() {
    let bench = Bench::new();
    let options = ServerOptions { stop_timeout: Duration::from_secs(20), ..options() };
    let targets = vec![target(TARGET, &bench.exports, Vec::new())];
    let server = IscsiServer::start(&[portal()], targets, options).unwrap();
    let address = server.places().next().unwrap().to_string().parse().unwrap();
    let mut initiators: Vec<Initiator> = (0..3)
        .map(|number| {
            let mut login = Login::to(TARGET);
            login.isid[5] = number;
            Initiator::login(address, &login).unwrap()
        })
        .collect();
    initiators.iter_mut().for_each(Initiator::settle);
    bench.gate.close();
    let (tag, _) = hanging(&mut initiators[0], &bench, 1);
    std::thread::scope(|scope| {
        scope.spawn(move || server.stop());
        for (i, initiator) in initiators.iter_mut().enumerate() {
            let message = initiator.receive();
            assert_eq!((message.opcode(), message.head[36], message.u32(40) & 0xffff), (0x32, 1, 20));
            if i == 0 {
                bench.gate.open();
                assert_eq!(initiator.finish(tag, &[]).status, 0, "what is under way is finished");
            }
            assert_eq!(initiator.log_out(0, 0), 0);
            assert!(initiator.is_hung_up());
        }
    });
}

#[test]
fn who_does_not_log_out_is_told_goodbye() {
    let bench = Bench::with(ServerOptions { stop_timeout: Duration::from_millis(100), ..options() }, Vec::new());
    let mut initiator = bench.session(1, &[]);
    bench.server.remove_target(TARGET).unwrap();
    let asked = initiator.receive();
    assert_eq!((asked.opcode(), asked.head[36]), (0x32, 1));
    let told = initiator.receive();
    assert_eq!((told.opcode(), told.head[36]), (0x32, 2));
    assert!(initiator.is_hung_up());
}

#[test]
fn logouts_have_their_responses() {
    let bench = Bench::new();
    let mut initiator = bench.session(1, &[]);
    assert_eq!(initiator.log_out(1, 9), 1, "no such connection");
    assert_eq!(initiator.log_out(2, 0), 2, "no recovery");
    bench.gate.close();
    hanging(&mut initiator, &bench, 1);
    assert_eq!(initiator.log_out(1, 0), 0, "and what hangs is left behind");
    assert!(initiator.is_hung_up());
    eventually("the session is gone", || bench.server.sessions().is_empty());
}
