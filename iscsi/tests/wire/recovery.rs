//! Digests and recovery level 1: what is damaged or lost comes again.

use crate::bench::Bench;
use crate::initiator::{Initiator, NO_TAG, Pdu, read10, write10};

const DIGESTS: [(&str, &str); 3] = [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C"), ("InitialR2T", "No")];

fn level_1(bench: &Bench) -> Initiator {
    let initiator = bench
        .session(1, &[&DIGESTS[..], &[("ErrorRecoveryLevel", "1"), ("MaxRecvDataSegmentLength", "4096")]].concat());
    assert_eq!(initiator.said["ErrorRecoveryLevel"], "1");
    initiator
}

fn snack(kind: u8, tag: u32, target_tag: u32, first: u32, count: u32) -> Pdu {
    Pdu::new(0x10, 0x80 | kind, tag).with(20, target_tag).with(40, first).with(44, count)
}

#[test]
fn damage_ends_a_connection_of_level_0() {
    let bench = Bench::new();
    let mut initiator = bench.session(1, &DIGESTS);
    let command = initiator.command(0, &write10(0, 1), 0x20, 512).with(24, initiator.cmd_sn);
    initiator.send_damaged(command.data(&[1; 512]));
    let reject = initiator.receive();
    assert_eq!((reject.opcode(), reject.head[2]), (0x3f, 2));
    assert!(initiator.is_hung_up());
    let mut initiator = bench.session(2, &DIGESTS);
    // A header whose length cannot be trusted, at any level.
    let mut bytes = Pdu::new(0x40, 0x80, 1).with(20, NO_TAG).encode(true, false);
    bytes[20] ^= 1;
    std::io::Write::write_all(&mut initiator.stream, &bytes).unwrap();
    assert!(initiator.is_hung_up());
}

#[test]
fn immediate_data_that_are_damaged_come_again_with_their_command() {
    let bench = Bench::new();
    let mut initiator = level_1(&bench);
    let command = initiator.command(0, &write10(0, 1), 0x20, 512).with(24, initiator.cmd_sn).data(&[5; 512]);
    initiator.send_damaged(command.clone());
    let reject = initiator.receive();
    assert_eq!((reject.opcode(), reject.head[2], &reject.data[16..20]), (0x3f, 2, &command.head[16..20]));
    assert_eq!(initiator.exp_cmd_sn, initiator.cmd_sn, "it has not come");
    initiator.send(command.clone());
    assert_eq!(initiator.finish(command.tag(), &[]).status, 0);
    assert_eq!(initiator.read(0, 0, 1).data, [5; 512]);
}

#[test]
fn data_that_are_damaged_or_lost_are_asked_for_again() {
    let bench = Bench::new();
    let mut initiator = level_1(&bench);
    let data: Vec<u8> = (0..32_768u32).map(|i| (i / 100) as u8).collect();
    // Unasked: the first segment is damaged, the second one lost.
    let mut command = initiator.command(0, &write10(0, 64), 0x20, 32_768);
    command.head[1] &= 0x7f;
    let tag = command.tag();
    initiator.send(command);
    let segment = |tag: u32, target_tag: u32, sn: u32, at: usize, len: usize, flags: u8| {
        let pdu = Pdu::new(0x05, flags, tag).with(20, target_tag).with(36, sn).with(40, at as u32);
        pdu.data(&data[at..at + len])
    };
    initiator.send_damaged(segment(tag, NO_TAG, 0, 0, 4096, 0));
    let reject = initiator.receive();
    assert_eq!((reject.opcode(), reject.head[2]), (0x3f, 2));
    initiator.send_as_it_is(segment(tag, NO_TAG, 2, 8192, 4096, 0x80));
    // What was damaged, what was lost, and then the rest; the last request is answered with damage once more.
    let mut requests = Vec::new();
    let mut damaged = 0;
    loop {
        let pdu = initiator.receive();
        match pdu.opcode() {
            0x31 => {
                let (at, len) = (pdu.u32(40) as usize, pdu.u32(44) as usize);
                requests.push((pdu.u32(36), at, len));
                let answer = segment(tag, pdu.u32(20), 0, at, len, 0x80);
                if at == 12_288 && damaged == 0 {
                    damaged += 1;
                    initiator.send_damaged(answer);
                } else {
                    initiator.send_as_it_is(answer);
                }
            }
            0x3f => assert_eq!(pdu.head[2], 2),
            opcode => {
                assert_eq!((opcode, pdu.head[3], pdu.u32(36)), (0x21, 0, 4));
                break;
            }
        }
    }
    requests.sort_unstable();
    assert_eq!(requests.iter().map(|r| r.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let ranges: Vec<_> = requests.iter().map(|r| (r.1, r.2)).collect();
    for due in [(0, 4096), (4096, 4096), (12_288, 20_480)] {
        assert!(ranges.contains(&due), "{ranges:?}");
    }
    assert!(initiator.read(0, 0, 64).data == data);
}

#[test]
fn a_read_is_sent_again_whole_or_in_part() {
    let bench = Bench::new();
    let mut initiator = level_1(&bench);
    let data: Vec<u8> = (0..16_384u32).map(|i| (i / 100) as u8).collect();
    assert_eq!(initiator.write(0, 0, &data, 4096).status, 0);
    let command = initiator.command(0, &read10(0, 32), 0x40, 16_384);
    let tag = command.tag();
    initiator.send(command);
    // What the target sent is not acknowledged as long as nothing is sent that says so.
    let acknowledged = initiator.exp_stat_sn;
    let sent: Vec<Pdu> = (0..5).map(|_| initiator.receive()).collect();
    assert_eq!((sent[4].opcode(), sent[4].u32(36)), (0x21, 4), "the end is a PDU of its own, and counts the others");
    initiator.exp_stat_sn = acknowledged;
    let again = |initiator: &mut Initiator, pdu: Pdu, due: &[&Pdu]| {
        initiator.exp_stat_sn = acknowledged;
        initiator.send_as_it_is(pdu);
        for due in due {
            let pdu = initiator.try_receive().unwrap();
            let fields = |pdu: &Pdu| (pdu.opcode(), pdu.tag(), pdu.u32(24), pdu.u32(36), pdu.u32(40), pdu.data.clone());
            assert_eq!(fields(&pdu), fields(due));
        }
    };
    again(&mut initiator, snack(0, tag, NO_TAG, 1, 2), &[&sent[1], &sent[2]]);
    again(&mut initiator, snack(0, tag, NO_TAG, 0, 0), &[&sent[0], &sent[1], &sent[2], &sent[3]]);
    again(&mut initiator, snack(1, NO_TAG, NO_TAG, acknowledged, 1), &[&sent[4]]);
    again(&mut initiator, snack(1, NO_TAG, NO_TAG, acknowledged, 0), &[&sent[4]]);
    // With larger segments it is cut anew.
    initiator.exp_stat_sn = acknowledged + 1;
    let tag_of_text = initiator.tag();
    let said = crate::initiator::text(&[("MaxRecvDataSegmentLength", "8192")]);
    initiator.exp_stat_sn = acknowledged;
    initiator.send(Pdu::new(0x44, 0x80, tag_of_text).with(20, NO_TAG).data(&said));
    assert_eq!(initiator.try_receive().unwrap().opcode(), 0x24);
    initiator.exp_stat_sn = acknowledged;
    initiator.send_as_it_is(snack(3, tag, 0x55, 0, 0));
    let cut: Vec<Pdu> = (0..3).map(|_| initiator.try_receive().unwrap()).collect();
    assert_eq!((cut[0].data.len(), cut[1].data.len()), (8192, 8192));
    assert_eq!((cut[2].opcode(), cut[2].u32(20), cut[2].u32(36), cut[2].u32(24)), (0x21, 0x55, 2, acknowledged));
    assert!([&cut[0].data[..], &cut[1].data].concat() == data);
    // What is acknowledged cannot be had again.
    initiator.exp_stat_sn = acknowledged + 2;
    initiator.ping();
    initiator.send_as_it_is(snack(0, tag, NO_TAG, 0, 1));
    let reject = initiator.receive();
    assert_eq!((reject.opcode(), reject.head[2]), (0x3f, 3));
    initiator.ping();
}

#[test]
fn requests_for_data_are_made_again_and_bursts_acknowledged() {
    let bench = Bench::new();
    let mut initiator = bench.session(
        1,
        &[
            ("ErrorRecoveryLevel", "1"),
            ("MaxBurstLength", "8192"),
            ("MaxRecvDataSegmentLength", "4096"),
            ("MaxOutstandingR2T", "2"),
        ],
    );
    let command = initiator.command(0, &write10(0, 32), 0x20, 16_384);
    let tag = command.tag();
    initiator.send(command);
    let requests = [initiator.receive(), initiator.receive()];
    initiator.send_as_it_is(snack(0, tag, NO_TAG, 1, 1));
    let again = initiator.receive();
    assert_eq!((again.opcode(), again.u32(36), again.u32(20)), (0x31, 1, requests[1].u32(20)));
    for request in &requests {
        initiator.data_out(tag, request.u32(20), request.u32(40) as usize, &[9; 8192]);
    }
    assert_eq!(initiator.finish(tag, &[]).status, 0);
    let command = initiator.command(0, &read10(0, 32), 0x40, 16_384);
    let tag = command.tag();
    initiator.send(command);
    let sent: Vec<Pdu> = (0..5).map(|_| initiator.receive()).collect();
    assert_eq!(sent.iter().map(|pdu| pdu.head[1] & 0xc0).collect::<Vec<_>>(), [0, 0xc0, 0, 0x80, 0x80]);
    initiator.exp_stat_sn -= 1;
    initiator.send_as_it_is(snack(2, tag, sent[1].u32(20), 2, 0));
    initiator.send_as_it_is(snack(0, tag, NO_TAG, 2, 1));
    assert_eq!(initiator.try_receive().unwrap().u32(36), 2);
    initiator.send_as_it_is(snack(0, tag, NO_TAG, 0, 1));
    assert_eq!(initiator.try_receive().unwrap().head[2], 3, "it is gone");
}

#[test]
fn at_level_0_nothing_is_sent_again() {
    let bench = Bench::new();
    let mut initiator = bench.session(1, &[]);
    initiator.send_as_it_is(snack(1, NO_TAG, NO_TAG, 0, 0));
    let reject = initiator.receive();
    assert_eq!((reject.opcode(), reject.head[2]), (0x3f, 3));
    initiator.ping();
}
