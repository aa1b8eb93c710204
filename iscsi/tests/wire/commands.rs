//! Commands: data both ways under every agreement, residuals, sense, order, and the window.

use crate::bench::{Bench, TARGET, eventually, options};
use crate::initiator::{Initiator, Login, NO_TAG, Pdu, read10, write10};
use coffer_iscsi::ServerOptions;

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 512) as u8 ^ (i as u8).wrapping_mul(31) ^ seed).collect()
}

#[test]
fn data_go_both_ways_under_every_agreement() {
    let bench = Bench::new();
    let mut number = 0;
    for digest in ["None", "CRC32C"] {
        for level in ["0", "1"] {
            for (initial_r2t, immediate, first, max, outstanding, segment) in [
                ("No", "Yes", "65536", "262144", "1", "262144"),
                ("Yes", "Yes", "8192", "16384", "8", "8192"),
                ("Yes", "No", "65536", "65536", "2", "4096"),
                ("No", "No", "16384", "131072", "1", "1000"),
            ] {
                number += 1;
                let keys = [
                    ("HeaderDigest", digest),
                    ("DataDigest", digest),
                    ("ErrorRecoveryLevel", level),
                    ("InitialR2T", initial_r2t),
                    ("ImmediateData", immediate),
                    ("FirstBurstLength", first),
                    ("MaxBurstLength", max),
                    ("MaxOutstandingR2T", outstanding),
                    ("MaxRecvDataSegmentLength", segment),
                ];
                let mut initiator = bench.session(number, &keys);
                for lun in [0, 1] {
                    for (i, blocks) in [1, 8, 100, 1024].into_iter().enumerate() {
                        let data = pattern(blocks * 512, number.wrapping_mul(7) + i as u8);
                        let given = if immediate == "Yes" { data.len().min(8192) } else { 0 };
                        let written = initiator.write(lun, 40 * i as u32, &data, given);
                        assert_eq!((written.status, written.residual), (0, 0), "{keys:?}");
                        let read = initiator.read(lun, 40 * i as u32, blocks as u16);
                        assert_eq!((read.status, read.residual), (0, 0));
                        assert!(read.data == data, "{keys:?}");
                        let segment: usize = segment.parse().unwrap();
                        let burst: usize = max.parse().unwrap();
                        let least = data.len().div_ceil(segment.min(burst)) as u32;
                        assert!((least..=least + 16).contains(&read.segments), "{} {least}", read.segments);
                    }
                }
                if initial_r2t == "No" {
                    unasked(&mut initiator, first.parse().unwrap());
                }
            }
        }
    }
}

/// A write whose first burst comes without being asked for.
fn unasked(initiator: &mut Initiator, first: usize) {
    let data = pattern(first + 51_200, 99);
    let command = initiator.command(0, &write10(7, (data.len() / 512) as u16), 0x20, data.len() as u32);
    let (tag, mut command) = (command.tag(), command);
    command.head[1] &= 0x7f;
    initiator.send(command);
    initiator.data_out(tag, NO_TAG, 0, &data[..first]);
    assert_eq!(initiator.finish(tag, &data).status, 0);
    assert!(initiator.read(0, 7, (data.len() / 512) as u16).data == data);
}

#[test]
fn what_was_expected_and_what_there_was() {
    let bench = Bench::new();
    let mut initiator = bench.session(1, &[("InitialR2T", "Yes")]);
    let mut run = |cdb: &[u8], flags: u8, expected: u32, data: &[u8]| {
        let command = initiator.command(0, cdb, flags, expected);
        let tag = command.tag();
        initiator.send(command);
        initiator.finish(tag, data)
    };
    let read = run(&read10(0, 2), 0x40, 512, &[]);
    assert_eq!((read.status, read.residual, read.data.len()), (0, 512, 512));
    let read = run(&read10(0, 2), 0x40, 4096, &[]);
    assert_eq!((read.status, read.residual, read.data.len()), (0, -3072, 1024));
    let read = run(&read10(0, 2), 0, 0, &[]);
    assert_eq!((read.status, read.residual, read.data.len()), (0, 1024, 0));
    let data = pattern(2048, 1);
    let written = run(&write10(0, 2), 0x20, 2048, &data);
    assert_eq!((written.status, written.residual), (0, -1024));
    let wrong = run(&[0xff], 0x40, 512, &[]);
    assert_eq!((wrong.status, wrong.residual, wrong.sense[2] & 0xf, wrong.sense[12]), (2, -512, 5, 0x20));
    let both = run(&read10(0, 1), 0x60, 512, &data);
    assert_eq!((both.status, both.sense[2] & 0xf), (2, 5), "bidirectional commands are not there");
}

#[test]
fn an_error_of_storage_has_its_sense_and_harms_nobody_else() {
    let bench = Bench::new();
    let mut initiator = bench.session(1, &[]);
    let bad = initiator.read(1, 99, 1);
    assert_eq!((bad.status, bad.sense[2] & 0xf, bad.sense[12]), (2, 3, 0x11));
    assert_eq!(initiator.read(1, 100, 1).status, 0);
    let totals = bench.exports[1].activity().totals();
    assert!(totals.failures >= 1 && totals.reads >= 2);
}

#[test]
fn many_commands_at_once_are_answered_each() {
    let bench = Bench::new();
    let mut initiator = bench.session(1, &[]);
    let data = pattern(512 * 64, 5);
    assert_eq!(initiator.write(1, 0, &data, 8192).status, 0);
    for _ in 0..20 {
        let tags: Vec<u32> = (0..64)
            .map(|lba| {
                let command = initiator.command(1, &read10(lba, 1), 0x40, 512);
                let tag = command.tag();
                initiator.send(command);
                tag
            })
            .collect();
        let mut seen = Vec::new();
        for _ in &tags {
            let answer = initiator.receive();
            let lba = tags.iter().position(|tag| *tag == answer.tag()).unwrap();
            assert!(answer.data == data[lba * 512..(lba + 1) * 512]);
            seen.push(answer.tag());
        }
        seen.sort_unstable();
        assert_eq!(seen, tags);
    }
}

#[test]
fn the_window_bounds_what_is_under_way() {
    let options = ServerOptions { depth: 4, ..options() };
    let bench = Bench::with(options, Vec::new());
    let mut initiator = bench.session(1, &[]);
    assert_eq!(initiator.max_cmd_sn.wrapping_sub(initiator.cmd_sn), 3);
    bench.gate.close();
    let tags: Vec<u32> = (0..6)
        .map(|_| {
            let command = initiator.command(1, &read10(0, 1), 0x40, 512);
            let tag = command.tag();
            initiator.send(command);
            tag
        })
        .collect();
    bench.gate.until_waiting(4);
    // Two are beyond the window: they are not taken, and not answered. A ping for immediate delivery is.
    initiator.cmd_sn -= 2;
    initiator.ping();
    assert_eq!(initiator.exp_cmd_sn, initiator.cmd_sn);
    assert_eq!(initiator.max_cmd_sn, initiator.cmd_sn - 1, "it is closed");
    bench.gate.open();
    for _ in 0..4 {
        assert!(tags[..4].contains(&initiator.receive().tag()));
    }
    assert_eq!(initiator.max_cmd_sn, initiator.cmd_sn + 3);
    // What was answered already is not taken again.
    let command = initiator.command(0, &read10(0, 1), 0x40, 512);
    initiator.send_as_it_is(command.with(24, initiator.cmd_sn - 1));
    initiator.ping();
    assert_eq!(initiator.read(0, 0, 1).status, 0);
}

#[test]
fn ordered_tasks_wait_for_others_and_head_of_queue_does_not() {
    let bench = Bench::new();
    let mut initiator = bench.session(1, &[]);
    bench.gate.close();
    let mut send = |attribute: u8| {
        let command = initiator.command(1, &read10(0, 1), 0x40 | attribute, 512);
        let tag = command.tag();
        initiator.send(command);
        tag
    };
    let simple = send(1);
    bench.gate.until_waiting(1);
    let (ordered, behind, head) = (send(2), send(1), send(3));
    // The last one began; those between did not.
    bench.gate.until_waiting(2);
    initiator.ping();
    bench.gate.open();
    let order: Vec<u32> = (0..4).map(|_| initiator.receive().tag()).collect();
    let at = |tag: u32| order.iter().position(|t| *t == tag).unwrap();
    assert!(at(simple) < at(ordered) && at(ordered) < at(behind) && order.contains(&head), "{order:?}");
}

#[test]
fn data_that_have_no_room_are_refused_and_others_wait() {
    let options = ServerOptions { bytes_in_flight: 1 << 20, ..options() };
    let bench = Bench::with(options, Vec::new());
    let mut initiator = bench.session(1, &[("InitialR2T", "No"), ("FirstBurstLength", "262144")]);
    bench.gate.close();
    let data = pattern(262_144, 3);
    let send = |initiator: &mut Initiator| {
        let mut command = initiator.command(1, &write10(0, 512), 0x20, 262_144);
        command.head[1] &= 0x7f;
        let tag = command.tag();
        initiator.send(command);
        initiator.data_out(tag, NO_TAG, 0, &data);
        tag
    };
    let taken: Vec<u32> = (0..4).map(|_| send(&mut initiator)).collect();
    let refused = send(&mut initiator);
    let answer = initiator.receive();
    assert_eq!((answer.tag(), answer.opcode(), answer.head[3]), (refused, 0x21, 0x28), "TASK SET FULL");
    // Data that are asked for have room of their own, in turn.
    let waiting: Vec<Pdu> = (0..4).map(|i| initiator.command(0, &write10(i * 1024, 1024), 0x20, 524_288)).collect();
    waiting.iter().for_each(|command| initiator.send(command.clone()));
    let data = pattern(524_288, 4);
    let mut done = 0;
    while done < 4 {
        let pdu = initiator.receive();
        match pdu.opcode() {
            0x31 => {
                let (from, len) = (pdu.u32(40) as usize, pdu.u32(44) as usize);
                initiator.data_out(pdu.tag(), pdu.u32(20), from, &data[from..from + len]);
            }
            opcode => {
                assert_eq!((opcode, pdu.head[3]), (0x21, 0));
                done += 1;
            }
        }
    }
    bench.gate.open();
    for _ in &taken {
        let answer = initiator.receive();
        assert!(taken.contains(&answer.tag()) && answer.head[3] == 0);
    }
}

#[test]
fn limits_of_an_export_slow_it_and_no_other() {
    let gate = crate::bench::Gate::new();
    let limits = coffer_gateway::Limits { operations: std::num::NonZeroU64::new(50), bytes: None };
    let slow = coffer_gateway::Export { limits, ..coffer_gateway::Export::new("slow", gate) };
    let bench = Bench::new();
    let slow = std::sync::Arc::new(slow);
    let exports = [std::sync::Arc::clone(&slow), std::sync::Arc::clone(&bench.exports[0])];
    bench.server.add_target(crate::bench::target("iqn.x:slow", &exports, Vec::new())).unwrap();
    let mut initiator = Initiator::login(bench.address, &Login::to("iqn.x:slow")).unwrap();
    initiator.settle();
    let slow_reads: Vec<u32> = (0..30)
        .map(|_| {
            let command = initiator.command(0, &read10(0, 1), 0x40, 512);
            let tag = command.tag();
            initiator.send(command);
            tag
        })
        .collect();
    let command = initiator.command(1, &read10(0, 1), 0x40, 512);
    let quick = command.tag();
    initiator.send(command);
    let order: Vec<u32> = (0..31).map(|_| initiator.receive().tag()).collect();
    assert_ne!(*order.last().unwrap(), quick, "it overtook some of {slow_reads:?}");
    assert!(slow.activity().totals().delays > 0);
    assert_eq!(bench.server.targets(), [TARGET, "iqn.x:slow"]);
}

#[test]
fn a_session_is_counted_with_what_it_did() {
    let bench = Bench::new();
    let mut initiator = bench.session(1, &[]);
    for _ in 0..10 {
        assert_eq!(initiator.read(0, 0, 8).status, 0);
    }
    assert_eq!(initiator.write(0, 0, &pattern(1024, 0), 1024).status, 0);
    let report = &bench.server.sessions()[0];
    eventually("the write is counted", || bench.server.sessions()[0].activity.writes == 1);
    assert_eq!((report.activity.reads, report.activity.bytes_read), (10, 40_960));
    assert_eq!(report.connections.len(), 1);
    assert_eq!(report.connections[0].1.address, Some([127, 0, 0, 1].into()));
}
