//! Initiators that mean harm. Every test ends with an honest session that is served as ever.
//!
//! Seeds are printed; `COFFER_SEED=N` repeats one, `COFFER_SEEDS=N` tries so many from there on.

use crate::bench::{Bench, TARGET, eventually, options};
use crate::initiator::{Initiator, Login, NO_TAG, Pdu, connect, read10, receive, text, write10};
use coffer_iscsi::ServerOptions;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// A small generator of repeatable noise.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Flips, removes and inserts a few bytes.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let (at, len) = (self.below(bytes.len()), bytes.len());
            match self.below(6) {
                0 => bytes[at] = self.next() as u8,
                1 => bytes[at] ^= 1 << self.below(8),
                // The first bytes of a header say most.
                2 => bytes[at / 48 * 48 % len] ^= 1 << self.below(8),
                3 => bytes[(at / 48 * 48 + 1 + self.below(7)) % len] = self.next() as u8,
                4 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, self.next() as u8),
            }
        }
    }
}

/// The seeds to go through: `first`, unless the environment says otherwise. To be printed.
fn seeds(first: u64) -> impl Iterator<Item = u64> {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    let first = number("COFFER_SEED").unwrap_or(first);
    first..first + number("COFFER_SEEDS").unwrap_or(1)
}

/// A login with everything that can be said in it.
fn login(number: usize, keys: &[(&str, &str)]) -> Vec<u8> {
    let mut login = Login::to(TARGET);
    login.isid[3..5].copy_from_slice(&(number as u16).to_be_bytes());
    login.isid[5] = 99;
    login.cmd_sn = 1;
    let said = [login.introduction(), text(&[("AuthMethod", "CHAP,None")])].concat();
    let mut out = login.request(0x81, &said).encode(false, false);
    out.extend(login.request(0x87, &text(keys)).encode(false, false));
    out
}

/// One PDU of each kind, in an order that makes sense.
fn requests(noise: &mut Noise, header_digest: bool, data_digest: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut sn = 1;
    let mut put = |pdu: Pdu| {
        let is_immediate = pdu.head[0] & 0x40 != 0;
        out.extend(pdu.with(24, sn).encode(header_digest, data_digest));
        sn += u32::from(!is_immediate);
    };
    let command = |tag: u32, cdb: &[u8], flags: u8, expected: u32| {
        Pdu::new(0x01, flags, tag).lun(1).with(20, expected).bytes(32, cdb)
    };
    put(command(1, &read10(noise.below(1000) as u32, 8), 0xc1, 4096));
    put(command(2, &write10(0, 8), 0xa0, 4096).data(&[1; 4096]));
    put(command(3, &write10(0, 16), 0x22, 8192).data(&[2; 1024]));
    put(Pdu::new(0x05, 0x00, 3).with(20, NO_TAG).with(40, 1024).data(&[3; 3072]));
    put(Pdu::new(0x05, 0x80, 3).with(20, NO_TAG).with(36, 1).with(40, 4096).data(&[3; 4096]));
    put(command(4, &write10(9, 64), 0xa0, 32_768));
    put(Pdu::new(0x05, 0x80, 4).with(20, 1).data(&[4; 8192]));
    put(Pdu::new(0x00, 0x80, 5).with(20, NO_TAG).data(b"ping"));
    put(Pdu::new(0x40, 0x80, NO_TAG).with(20, 77));
    put(Pdu::new(0x42, 0x81, 6).with(20, 4).with(32, 4));
    put(Pdu::new(0x02, 0x85, 7).lun(1));
    put(Pdu::new(0x04, 0x40, 8).with(20, NO_TAG).data(b"SendTar"));
    put(Pdu::new(0x04, 0x80, 8).with(20, NO_TAG).data(b"gets=All\0"));
    for kind in 0..4 {
        put(Pdu::new(0x10, 0x80 | kind, 1).with(20, NO_TAG).with(40, noise.below(3) as u32));
    }
    put(command(9, &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 4], 0xc3, 2048));
    put(Pdu::new(0x06, 0x80, 10));
    out
}

#[test]
fn mutated_and_random_streams_harm_nobody() {
    for seed in seeds(0x00c0_ffe4_2026_1122) {
        println!("COFFER_SEED={seed}");
        mutated_and_random_streams(seed);
    }
}

fn mutated_and_random_streams(seed: u64) {
    let options = ServerOptions { login_timeout: Duration::from_secs(5), ..options() };
    let bench = Bench::with(options, Vec::new());
    let mut honest = bench.session(1, &[]);
    let mut noise = Noise(seed);
    for round in 0..800 {
        let (header_digest, data_digest) = (round % 5 == 3, round % 5 == 4);
        let word = |is_on| if is_on { "CRC32C" } else { "None" };
        let keys = [
            ("HeaderDigest", word(header_digest)),
            ("DataDigest", word(data_digest)),
            ("ErrorRecoveryLevel", if round % 2 == 0 { "1" } else { "0" }),
            ("InitialR2T", if round % 3 == 0 { "Yes" } else { "No" }),
            ("MaxConnections", "2"),
            ("MaxBurstLength", "8192"),
        ];
        let mut first = login(round, &keys);
        let mut rest = requests(&mut noise, header_digest, data_digest);
        match round % 4 {
            0 => noise.mutate(&mut first),
            1 | 2 => noise.mutate(&mut rest),
            _ => rest = (0..noise.below(600)).map(|_| noise.next() as u8).collect(),
        }
        let mut stream = connect(bench.address);
        // The target may hang up in the middle: that is an answer, too.
        let _ = stream.write_all(&first).and_then(|()| stream.write_all(&rest));
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new()).map_err(|e| {
            let kind = e.kind();
            assert_ne!(kind, std::io::ErrorKind::WouldBlock, "round {round}: the target neither answers nor hangs up");
        });
        if round % 50 == 0 {
            honest.settle();
            assert_eq!(honest.read(0, 0, 8).status, 0);
        }
    }
    honest.settle();
    assert_eq!(honest.read(0, 0, 8).status, 0);
    eventually("they are all gone", || bench.server.statistics().open_connections == 1);
}

#[test]
fn lengths_that_nobody_means_are_not_believed() {
    let bench = Bench::new();
    for (flags, opcode) in [(0xa0, 0x01), (0x80, 0x05), (0x80, 0x40), (0x80, 0x44), (0x80, 0x3e)] {
        let mut one = bench.session(2, &[]);
        let mut head = Pdu::new(opcode, flags, 5).with(20, u32::MAX).with(24, one.cmd_sn).encode(false, false);
        head[5..8].copy_from_slice(&[0xff, 0xff, 0xff]);
        one.stream.write_all(&head).unwrap();
        let reject = one.receive();
        assert_eq!((reject.opcode(), reject.head[2]), (0x3f, 9));
        assert!(one.is_hung_up());
    }
    let mut before = connect(bench.address);
    let mut head = Login::to(TARGET).request(0x87, &[]).encode(false, false);
    head[5..8].copy_from_slice(&[0xff, 0xff, 0xff]);
    before.write_all(&head).unwrap();
    assert_eq!(receive(&mut before, false, false).unwrap().opcode(), 0x3f);
    // What is unknown or malformed is rejected, and the connection goes on.
    let mut one = bench.session(3, &[]);
    for (pdu, reason) in [
        (Pdu::new(0x1d, 0x80, 9), 5),
        (Pdu::new(0x45, 0x80, 9).data(&[1; 100]), 5),
        (Pdu::new(0x41, 0x87, 9), 9),
        (Pdu::new(0x44, 0xc0, 9), 9),
    ] {
        let pdu = if reason == 5 && pdu.opcode() == 5 { Pdu::new(0x07, 0x80, 9) } else { pdu };
        one.send_as_it_is(pdu.with(24, one.cmd_sn));
        let reject = one.receive();
        assert_eq!((reject.opcode(), reject.head[2], reject.data.len()), (0x3f, reason, 48));
    }
    one.ping();
    // A number that belongs to what was rejected is used up.
    one.send(Pdu::new(0x01, 0x87, 9));
    assert_eq!(one.receive().head[2], 9);
    one.ping();
    assert_eq!(one.exp_cmd_sn, one.cmd_sn);
    // The same tag twice.
    bench.gate.close();
    let command = one.command(1, &read10(0, 1), 0x40, 512);
    one.send(command.clone());
    one.send(command.clone());
    assert_eq!(one.receive().head[2], 7);
    bench.gate.open();
    assert_eq!(one.finish(command.tag(), &[]).status, 0);
}

#[test]
fn data_beyond_their_bounds_end_their_command() {
    let bench = Bench::new();
    let mut one = bench.session(1, &[]);
    for (target_tag, offset, len) in
        [(None, 4096, 512), (None, 0, 4608), (Some(999), 0, 512), (None, u32::MAX - 3, 512)]
    {
        let command = one.command(0, &write10(0, 8), 0x20, 4096);
        let tag = command.tag();
        one.send(command);
        let request = one.receive();
        let target_tag = target_tag.unwrap_or(request.u32(20));
        one.send_as_it_is(Pdu::new(0x05, 0x80, tag).with(20, target_tag).with(40, offset).data(&vec![1; len]));
        let answer = one.finish(tag, &[]);
        assert_eq!((answer.status, answer.sense[2] & 0xf, answer.sense[12]), (2, 0x0b, 0x0c));
    }
    assert_eq!(one.read(0, 0, 8).data, [0; 4096]);
    // More with the command than it may bring.
    let command = one.command(0, &write10(0, 8), 0x20, 512);
    one.send(command.data(&[1; 4096]));
    assert_eq!(one.receive().head[2], 4);
    assert!(one.is_hung_up());
}

#[test]
fn who_never_reads_waits_alone() {
    let options = ServerOptions { bytes_in_flight_together: 8 << 20, ..options() };
    let bench = Bench::with(options, Vec::new());
    let mut honest = bench.session(1, &[]);
    let greedy: Vec<Initiator> = (2..8)
        .map(|number| {
            let mut one = bench.session(number, &[]);
            for _ in 0..100 {
                let command = one.command(number % 2, &read10(0, 2048), 0x40, 1 << 20);
                one.send(command);
            }
            one
        })
        .collect();
    for _ in 0..50 {
        let read = honest.read(1, 0, 1024);
        assert_eq!((read.status, read.data.len()), (0, 524_288));
    }
    assert!(bench.server.statistics().bytes_sent < 400 << 20);
    drop(greedy);
    eventually("they are gone", || bench.server.sessions().len() == 1);
    honest.ping();
}

#[test]
fn who_goes_away_in_the_middle_is_forgotten() {
    let bench = Bench::new();
    let streams: Vec<TcpStream> = (0..40usize)
        .map(|i| {
            let mut stream = connect(bench.address);
            let mut all = login(i, &[("InitialR2T", "No")]);
            all.extend(requests(&mut Noise(7), false, false));
            let len = all.len() * i / 40;
            stream.write_all(&all[..len]).unwrap();
            stream
        })
        .collect();
    bench.session(1, &[]).ping();
    drop(streams);
    eventually("they are gone", || bench.server.statistics().open_connections == 0);
}

#[test]
fn many_idle_sessions_take_little_memory() {
    let bench = Bench::new();
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let before = resident();
    let mut sessions: Vec<Initiator> = (0..=255).map(|number| bench.session(number, &[])).collect();
    assert_eq!(bench.server.sessions().len(), 256);
    for one in &mut sessions {
        assert_eq!(one.read(0, 0, 256).data.len(), 131_072);
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 256 << 20, "{grown} bytes for 256 sessions");
}
