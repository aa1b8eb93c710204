//! Initiators that are there, answer pings and ping themselves, and do not send the data that they were asked for.

use crate::bench::{Bench, options};
use crate::initiator::{Initiator, NO_TAG, Pdu, write10};
use coffer_iscsi::ServerOptions;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(300);

/// How a command ended: its status, and its sense's key and code.
type End = (u8, u8, [u8; 2]);

fn bench(data_timeout: Duration) -> Bench {
    Bench::with(ServerOptions { data_timeout, bytes_in_flight_together: 8 << 20, ..options() }, Vec::new())
}

/// The commands of `tags` as they end, with pings meanwhile: their statuses, and the keys and codes of their senses. What the target
/// asks for is not sent; its requests are returned, by tag.
fn wait_out(one: &mut Initiator, tags: &[u32]) -> (BTreeMap<u32, End>, BTreeMap<u32, u32>) {
    let (mut ended, mut asked) = (BTreeMap::new(), BTreeMap::new());
    let end = Instant::now() + PATIENCE;
    while ended.len() < tags.len() {
        assert!(Instant::now() < end, "{} of {} commands ended", ended.len(), tags.len());
        let ping = one.tag();
        one.send(Pdu::new(0x40, 0x80, ping).with(20, NO_TAG));
        loop {
            let pdu = one.try_receive().unwrap();
            match pdu.opcode() {
                0x20 if pdu.tag() == ping => break,
                0x20 => {}
                0x31 => drop(asked.insert(pdu.tag(), pdu.u32(20))),
                0x21 => {
                    let sense = pdu.data.get(2..).unwrap_or_default();
                    let told = if sense.is_empty() { (0, [0; 2]) } else { (sense[2] & 0xf, [sense[12], sense[13]]) };
                    assert!(
                        tags.contains(&pdu.tag()) && ended.insert(pdu.tag(), (pdu.head[3], told.0, told.1)).is_none()
                    );
                }
                other => panic!("opcode {other:#x}"),
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    (ended, asked)
}

#[test]
fn writes_whose_data_do_not_come_end_and_let_go_of_their_memory() {
    let bench = bench(Duration::from_millis(500));
    // More together than there is, and of both kinds.
    let mut hoarders: Vec<(Initiator, Vec<u32>)> = (2..6)
        .map(|number| {
            let mut one = bench.session(number, &[("InitialR2T", "No")]);
            let mut tags = Vec::new();
            for i in 0..4 {
                let command = one.command(0, &write10(i * 4096, 4096), 0x20, 2 << 20);
                tags.push(command.tag());
                one.send(command);
                // Some of this comes unasked, and no end of it.
                let command = one.command(0, &write10(i * 4096, 1024), 0x20, 512 << 10).data(&[1; 4096]);
                tags.push(command.tag());
                let flags = command.head[1] & 0x7f;
                one.send(command.bytes(1, &[flags]));
            }
            (one, tags)
        })
        .collect();
    let mut honest = bench.session(1, &[]);
    for (one, tags) in &mut hoarders {
        let (ended, asked) = wait_out(one, tags);
        // ABORTED COMMAND, INITIATOR RESPONSE TIMEOUT; or there was no room for what comes unasked (TASK SET FULL).
        let is_late = |end: &End| *end == (2, 0x0b, [0x4b, 0x06]);
        assert!(ended.values().all(|end| is_late(end) || end.0 == 0x28), "{ended:?}");
        assert!(ended.values().any(is_late) && !asked.is_empty());
        // What comes now belongs to nothing, and does no harm.
        for (tag, target_tag) in asked {
            one.data_out(tag, target_tag, 0, &[9; 16_384]);
        }
        one.ping();
    }
    let end = Instant::now() + PATIENCE;
    while honest.write(0, 0, &vec![7; 2 << 20], 0).status != 0 {
        assert!(Instant::now() < end, "there is no memory for an honest write");
    }
    let read = honest.read(0, 0, 4096);
    assert!(read.status == 0 && read.data == vec![7; 2 << 20]);
    assert_eq!(honest.read(0, 3 * 4096, 4096).data, vec![0; 2 << 20], "nothing was written of what never came whole");
}

#[test]
fn who_sends_slowly_is_let_be() {
    let timeout = Duration::from_secs(2);
    let bench = bench(timeout);
    let end = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < end, "the machine is too busy to send anything in time");
        let mut one = bench.session(1, &[]);
        let command = one.command(0, &write10(0, 64), 0x20, 32_768);
        let tag = command.tag();
        one.send(command);
        let target_tag = one.receive().u32(20);
        let (mut longest, mut last) = (Duration::ZERO, Instant::now());
        for i in 0..8u32 {
            std::thread::sleep(timeout / 5);
            let pdu = Pdu::new(0x05, if i == 7 { 0x80 } else { 0 }, tag).with(20, target_tag).with(36, i);
            one.send_as_it_is(pdu.with(40, i * 4096).data(&[i as u8; 4096]));
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        let status = one.finish(tag, &[]).status;
        if longest < timeout / 2 {
            assert_eq!(status, 0);
            return;
        }
    }
}

#[test]
fn a_pdu_that_never_ends_ends_its_connection() {
    let bench = bench(Duration::from_millis(500));
    let mut one = bench.session(1, &[]);
    let command = one.command(0, &write10(0, 64), 0x20, 32_768);
    let tag = command.tag();
    one.send(command);
    let target_tag = one.receive().u32(20);
    let whole = Pdu::new(0x05, 0x80, tag).with(20, target_tag).data(&[1; 32_768]).encode(false, false);
    one.stream.write_all(&whole[..4096]).unwrap();
    one.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let end = Instant::now() + PATIENCE;
    // A byte now and then, so that it is never silent.
    for byte in whole[4096..].chunks(1) {
        assert!(Instant::now() < end, "it is still open");
        match one.stream.read(&mut [0; 64]) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
        if one.stream.write_all(byte).is_err() {
            break;
        }
    }
    let mut other = bench.session(2, &[]);
    assert_eq!(other.write(0, 0, &[3; 4096], 0).status, 0);
}
