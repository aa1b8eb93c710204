//! Sessions: several connections, commands in order over them, reinstatement, and what becomes of a connection that breaks.

use crate::bench::{Bench, TARGET, eventually, options, portal, target};
use crate::initiator::{Initiator, Login, read10, write10};
use coffer_iscsi::{IscsiServer, PortalOptions};

/// A session of `count` connections.
fn connections(bench: &Bench, count: u16) -> Vec<Initiator> {
    let login = Login::to(TARGET).with(&[("MaxConnections", "4")]);
    let mut first = Initiator::login(bench.address, &login).unwrap();
    first.settle();
    let (tsih, cmd_sn) = (first.tsih, first.cmd_sn);
    let mut all = vec![first];
    for cid in 1..count {
        let further = Login { tsih, cid, cmd_sn, ..Login::to(TARGET) };
        all.push(Initiator::login(bench.address, &further).unwrap());
    }
    all
}

#[test]
fn commands_are_in_order_over_connections() {
    let bench = Bench::new();
    let mut all = connections(&bench, 3);
    assert_eq!(bench.server.sessions()[0].connections.len(), 3);
    let sn = all[0].cmd_sn;
    // The last one comes first, and waits.
    let commands: Vec<_> = all.iter_mut().map(|one| one.command(0, &write10(0, 1), 0x22, 512)).collect();
    for i in [2, 1, 0] {
        let command = commands[i].clone().with(24, sn + i as u32).data(&[i as u8 + 1; 512]);
        all[i].send_as_it_is(command);
    }
    for (one, command) in all.iter_mut().zip(&commands) {
        assert_eq!(one.finish(command.tag(), &[]).status, 0);
    }
    all[1].cmd_sn = sn + 3;
    assert_eq!(all[1].read(0, 0, 1).data, [3; 512], "written in the order of numbers, each being ORDERED");
    // Task management reaches all connections.
    bench.gate.close();
    let sn = sn + 4;
    for (i, one) in all.iter_mut().enumerate() {
        let command = one.command(1, &read10(0, 1), 0x40, 512);
        one.send_as_it_is(command.with(24, sn + i as u32));
    }
    bench.gate.until_waiting(3);
    all[0].cmd_sn = sn + 3;
    assert_eq!(all[0].manage(5, 1, u32::MAX, 0), 0);
    bench.gate.open();
    all[0].settle();
    let sn = all[0].cmd_sn;
    for (i, one) in all.iter_mut().enumerate() {
        one.cmd_sn = sn + i as u32;
        assert_eq!(one.read(0, 0, 1).status, 0, "the next answer is that of the next command");
    }
    // A connection leaves, and its session stays.
    let cmd_sn = sn + 3;
    all[1].cmd_sn = cmd_sn;
    assert_eq!(all[1].log_out(1, 2), 0, "another one's end");
    assert!(all[2].is_hung_up());
    assert_eq!(all[1].log_out(1, 1), 0);
    eventually("one is left", || bench.server.sessions()[0].connections.len() == 1);
    all[0].cmd_sn = cmd_sn;
    all[0].ping();
}

#[test]
fn a_connection_that_breaks_takes_its_tasks_along_and_no_others() {
    let bench = Bench::new();
    let mut all = connections(&bench, 2);
    let sn = all[0].cmd_sn;
    bench.gate.close();
    let broken = all[1].command(1, &read10(0, 1), 0x40, 512);
    all[1].send_as_it_is(broken.with(24, sn));
    bench.gate.until_waiting(1);
    // It also had a command that was early.
    let early = all[1].command(0, &read10(0, 1), 0x40, 512);
    all[1].send_as_it_is(early.clone().with(24, sn + 2));
    all[1].exp_stat_sn = 0;
    drop(all.pop());
    eventually("one is left", || bench.server.sessions()[0].connections.len() == 1);
    let first = &mut all[0];
    let command = first.command(0, &read10(0, 1), 0x40, 512);
    first.send_as_it_is(command.clone().with(24, sn + 1));
    assert_eq!(first.finish(command.tag(), &[]).status, 0);
    // What was early did not have its turn: it comes again, here.
    first.send_as_it_is(early.clone().with(24, sn + 2));
    assert_eq!(first.finish(early.tag(), &[]).status, 0);
    first.cmd_sn = sn + 3;
    bench.gate.open();
    first.ping();
    assert_eq!(first.exp_cmd_sn, sn + 3);
}

#[test]
fn the_same_port_again_ends_the_session_before() {
    let bench = Bench::new();
    let mut before = bench.session(1, &[]);
    bench.gate.close();
    let command = before.command(1, &read10(0, 1), 0x40, 512);
    before.send(command);
    bench.gate.until_waiting(1);
    let mut after = bench.session(1, &[]);
    assert!(before.is_hung_up());
    assert_ne!(before.tsih, after.tsih);
    assert_eq!(bench.server.sessions().len(), 1);
    bench.gate.open();
    assert_eq!(after.read(0, 0, 1).status, 0);
    // The same connection again ends the one before; others are too many, or not of this session.
    let login = Login { tsih: after.tsih, cmd_sn: after.cmd_sn, ..Login::to(TARGET) };
    let mut again = Initiator::login(bench.address, &login).unwrap();
    assert!(after.is_hung_up());
    again.ping();
    assert_eq!(Initiator::login(bench.address, &Login { cid: 1, ..login.clone() }).err(), Some(0x0206));
    assert_eq!(Initiator::login(bench.address, &Login { isid: [9; 6], cid: 1, ..login }).err(), Some(0x020a));
}

#[test]
fn a_cold_reset_ends_all_sessions() {
    let bench = Bench::new();
    let (mut one, mut other) = (bench.session(1, &[]), bench.session(2, &[]));
    assert_eq!(one.manage(7, 0, u32::MAX, 0), 0);
    assert!(one.is_hung_up() && other.is_hung_up());
    eventually("all are gone", || bench.server.sessions().is_empty());
    bench.session(1, &[]).ping();
}

#[test]
fn connections_that_race_lose_nothing() {
    let bench = Bench::new();
    let all = connections(&bench, 4);
    let next = std::sync::atomic::AtomicU32::new(all[0].cmd_sn);
    std::thread::scope(|scope| {
        for mut one in all {
            let next = &next;
            scope.spawn(move || {
                for round in 0..400u32 {
                    // Few enough to fit the window whoever else is slow.
                    let tags: Vec<u32> = (0..8)
                        .map(|i| {
                            let attribute = if round % 50 == 7 && i == 3 { 2 } else { 1 };
                            let command = one.command((i % 2) as u8, &read10(i, 1), 0x40 | attribute, 512);
                            let tag = command.tag();
                            let sn = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            one.send_as_it_is(command.with(24, sn));
                            tag
                        })
                        .collect();
                    for _ in &tags {
                        let answer = one.receive();
                        assert!(tags.contains(&answer.tag()) && answer.data.len() == 512);
                    }
                }
            });
        }
    });
}

#[test]
fn a_session_spans_the_portals_of_its_group_and_no_others() {
    let bench = Bench::new();
    let portals = [portal(), portal(), PortalOptions { group: 2, ..portal() }];
    let targets = vec![target(TARGET, &bench.exports, Vec::new())];
    let server = IscsiServer::start(&portals, targets, options()).unwrap();
    let addresses: Vec<_> = server.places().map(|place| place.to_string().parse().unwrap()).collect();
    let login = Login::to(TARGET).with(&[("MaxConnections", "4")]);
    let mut first = Initiator::login(addresses[0], &login).unwrap();
    first.settle();
    let further = Login { tsih: first.tsih, cid: 1, cmd_sn: first.cmd_sn, ..Login::to(TARGET) };
    let mut second = Initiator::login(addresses[1], &further).unwrap();
    second.ping();
    let report = &server.sessions()[0];
    let reached: Vec<_> = report.connections.iter().filter_map(|(_, _, local)| *local).collect();
    assert_eq!(reached, addresses[..2]);
    let elsewhere = Login { cid: 2, ..further };
    assert_eq!(Initiator::login(addresses[2], &elsewhere).err(), Some(0x0208));
    // The same initiator port through another group is another nexus, and another session.
    let mut other = Initiator::login(addresses[2], &login).unwrap();
    assert_eq!(other.said["TargetPortalGroupTag"], "2");
    other.ping();
    first.ping();
    assert_eq!(server.sessions().len(), 2);
}
