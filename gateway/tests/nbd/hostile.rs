//! Clients that mean harm, and servers that lie. Every test ends with an honest client that is served as ever.
//!
//! Seeds are printed; `COFFER_SEED=N` repeats one, `COFFER_SEEDS=N` tries so many from there on.

use crate::certificates::Authority;
use coffer_gateway::nbd::proto::handshake::{Go, MetaQuery, encode_option, info, option};
use coffer_gateway::nbd::proto::transmission::{Request, StatusQuery, command, command_flag};
use coffer_gateway::nbd::proto::{Framing, MAX_PAYLOAD};
use coffer_gateway::nbd::{ClientOptions, Listener, NbdClient, NbdUri, Server, ServerOptions, TlsDemand, TlsUri};
use coffer_gateway::{BlockDevice, Durability, Export, Exports, Kind, MemoryDevice};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const SIZE: u64 = 4 << 20;

struct Bench {
    dir: TempDir,
    server: Server,
}

impl Bench {
    fn new(options: ServerOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let exports = Arc::new(Exports::new());
        for (name, read_only) in [("honest", true), ("target", false)] {
            let device = MemoryDevice::new(SIZE);
            device.write_at(0, &[7; 65536], Durability::Cached).unwrap();
            exports.add(Export { read_only, ..Export::new(name, Arc::new(device)) }).unwrap();
        }
        let listener = Listener::Unix { path: dir.path().join("s"), mode: 0o600 };
        let server = Server::start(&listener, exports, options).unwrap();
        Bench { dir, server }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("s")).unwrap();
        let patience = Some(Duration::from_secs(30));
        stream.set_read_timeout(patience).unwrap();
        stream.set_write_timeout(patience).unwrap();
        stream
    }

    /// A stream in the transmission phase of the export "target".
    fn transmitting(&self, framing: Framing) -> UnixStream {
        let mut stream = self.connect();
        stream.write_all(&handshake(framing)).unwrap();
        let acks = if framing == Framing::Simple { 1 } else { 2 };
        let replies = 18 + acks * 20 + 2 + 20 + 12 - 2;
        let mut answer = vec![0; replies];
        stream.read_exact(&mut answer).unwrap();
        stream
    }

    fn honest(&self) -> NbdClient {
        NbdClient::connect(&self.server.uri("honest"), &ClientOptions::default()).unwrap()
    }

    fn is_well(&self) {
        let mut out = [0; 8192];
        self.honest().read_at(61440, &mut out).unwrap();
        assert!(out[..4096] == [7; 4096] && out[4096..] == [0; 4096]);
    }
}

/// What a client sends to get to the transmission phase of "target".
fn handshake(framing: Framing) -> Vec<u8> {
    let mut out = 3u32.to_be_bytes().to_vec();
    match framing {
        Framing::Simple => {}
        Framing::Structured => out.extend(encode_option(option::STRUCTURED_REPLY, &[])),
        Framing::Extended => out.extend(encode_option(option::EXTENDED_HEADERS, &[])),
    }
    out.extend(encode_option(option::GO, &Go { name: "target".into(), infos: Vec::new() }.encode()));
    out
}

fn request(framing: Framing, command: u16, flags: u16, offset: u64, length: u64) -> Vec<u8> {
    let mut out = Vec::new();
    Request { flags, command, cookie: 1, offset, length }.encode(framing, &mut out).unwrap();
    out
}

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
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes[at] = self.next() as u8,
                1 => bytes[at] ^= 1 << self.below(8),
                2 if bytes.len() > 1 => drop(bytes.remove(at)),
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

#[test]
fn mutated_and_random_streams_harm_nobody() {
    for seed in seeds(0x00c0_ffe4_2026_1121) {
        println!("COFFER_SEED={seed}");
        mutated_and_random_streams(seed);
    }
}

fn mutated_and_random_streams(seed: u64) {
    let bench = Bench::new(ServerOptions::default());
    let honest = bench.honest();
    let mut noise = Noise(seed);
    let framings = [Framing::Simple, Framing::Structured, Framing::Extended];
    for round in 0..600 {
        let framing = framings[round % 3];
        let mut options = 3u32.to_be_bytes().to_vec();
        let queries = ["base:allocation", "base:", "qemu:", "qemu:allocation-depth", "coffer:changed:x"];
        let query = MetaQuery { name: "target".into(), queries: queries.map(str::to_owned).into() };
        let infos = vec![info::BLOCK_SIZE, info::NAME, info::DESCRIPTION];
        for (number, payload) in [
            (option::LIST, vec![]),
            (option::STRUCTURED_REPLY, vec![]),
            (option::LIST_META_CONTEXT, query.encode()),
            (option::SET_META_CONTEXT, query.encode()),
            (option::STARTTLS, vec![]),
            (option::INFO, Go { name: "honest".into(), infos }.encode()),
        ] {
            options.extend(encode_option(number, &payload));
        }
        options.extend(&handshake(framing)[4..]);
        let mut requests = Vec::new();
        for c in 0..9 {
            let length = if c == command::DISC { 0 } else { 512 };
            let is_long = framing == Framing::Extended && c == command::WRITE;
            let flags = if is_long { command_flag::PAYLOAD_LEN } else { 0 };
            if c != command::DISC {
                requests.extend(request(framing, c, flags, noise.next() % SIZE, length));
            }
            if c == command::WRITE {
                requests.extend([0x11; 512]);
            }
        }
        if framing == Framing::Extended {
            let query = StatusQuery { length: 65_536, contexts: vec![2, 1] }.encode();
            requests.extend(request(framing, command::BLOCK_STATUS, command_flag::PAYLOAD_LEN, 0, query.len() as u64));
            requests.extend(query);
        }
        match round % 4 {
            0 => noise.mutate(&mut options),
            1 => noise.mutate(&mut requests),
            2 => options = (0..noise.below(300)).map(|_| noise.next() as u8).collect(),
            _ => requests = (0..noise.below(300)).map(|_| noise.next() as u8).collect(),
        }
        let mut stream = bench.connect();
        // The server may hang up in the middle: that is an answer, too.
        let _ = stream.write_all(&options).and_then(|()| stream.write_all(&requests));
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new()).map_err(|e| {
            assert_ne!(
                e.kind(),
                std::io::ErrorKind::WouldBlock,
                "round {round}: the server neither answers nor hangs up"
            );
        });
        if round % 50 == 0 {
            honest.read_at(0, &mut [0; 4096]).unwrap();
        }
    }
    bench.is_well();
}

#[test]
fn wrong_requests_are_answered_and_the_connection_goes_on() {
    let bench = Bench::new(ServerOptions::default());
    for framing in [Framing::Structured, Framing::Extended] {
        let mut stream = bench.transmitting(framing);
        let header = if framing == Framing::Extended { 32 } else { 20 };
        let mut asked = |bytes: &[u8]| {
            stream.write_all(bytes).unwrap();
            let mut reply = vec![0; header];
            stream.read_exact(&mut reply).unwrap();
            let length = u32::from_be_bytes(*reply.last_chunk().unwrap());
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload).unwrap();
            let is_error = reply[6] & 0x80 != 0;
            if is_error { u32::from_be_bytes(*payload.first_chunk().unwrap()) } else { 0 }
        };
        let (einval, enospc) = (22, 28);
        assert_eq!(asked(&request(framing, 77, 0, 0, 512)), einval);
        assert_eq!(asked(&request(framing, command::READ, 0, SIZE, 1)), einval);
        assert_eq!(asked(&request(framing, command::READ, 0, u64::MAX, 512)), einval);
        assert_eq!(asked(&request(framing, command::READ, 0, 0, u64::from(MAX_PAYLOAD) + 1)), einval);
        assert_eq!(asked(&request(framing, command::READ, 0, 0, 0)), einval);
        assert_eq!(asked(&request(framing, command::READ, 1 << 14, 0, 512)), einval);
        assert_eq!(asked(&request(framing, command::BLOCK_STATUS, 0, 0, 512)), einval);
        assert_eq!(asked(&request(framing, command::WRITE_ZEROES, 0, SIZE - 1, 2)), enospc);
        let beyond = [request(framing, command::WRITE, 0, SIZE - 1, 512), vec![1; 512]].concat();
        assert_eq!(asked(&beyond), enospc);
        let too_much = [request(framing, command::WRITE, 0, 0, SIZE + 1), vec![1; SIZE as usize + 1]].concat();
        assert_eq!(asked(&too_much), enospc);
        assert_eq!(asked(&request(framing, command::READ, 0, 0, 512)), 0);
        if framing == Framing::Extended {
            let with_payload = request(framing, command::READ, command_flag::PAYLOAD_LEN, 0, 512);
            assert_eq!(asked(&[with_payload, vec![0; 512]].concat()), einval);
            assert_eq!(asked(&request(framing, command::TRIM, 0, 0, 1 << 40)), einval);
            assert_eq!(asked(&request(framing, command::FLUSH, 0, 0, 0)), 0);
        }
    }
    bench.is_well();
}

#[test]
fn a_status_query_that_makes_no_sense_is_answered() {
    let bench = Bench::new(ServerOptions::default());
    let mut stream = bench.connect();
    let mut hello = 3u32.to_be_bytes().to_vec();
    hello.extend(encode_option(option::EXTENDED_HEADERS, &[]));
    let contexts = MetaQuery { name: "target".into(), queries: vec!["base:allocation".into()] };
    hello.extend(encode_option(option::SET_META_CONTEXT, &contexts.encode()));
    hello.extend(encode_option(option::GO, &Go { name: "target".into(), infos: Vec::new() }.encode()));
    stream.write_all(&hello).unwrap();
    stream.read_exact(&mut [0; 18 + 20 + (20 + 19) + 20 + (20 + 12) + 20]).unwrap();
    let mut asked = |payload: &[u8]| {
        let head =
            request(Framing::Extended, command::BLOCK_STATUS, command_flag::PAYLOAD_LEN, 4096, payload.len() as u64);
        stream.write_all(&[&head, payload].concat()).unwrap();
        let mut reply = [0; 32];
        stream.read_exact(&mut reply).unwrap();
        let length = u64::from_be_bytes(*reply.last_chunk().unwrap());
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).unwrap();
        if reply[6] & 0x80 == 0 { 0 } else { u32::from_be_bytes(*payload.first_chunk().unwrap()) }
    };
    let query = |length: u64, contexts: &[u32]| StatusQuery { length, contexts: contexts.to_vec() }.encode();
    assert_eq!(asked(&query(4096, &[1])), 0);
    assert_eq!(asked(&query(SIZE - 4096, &[1])), 0);
    let oversized = vec![0xff; 70_000];
    for wrong in [
        query(SIZE - 4095, &[1]),
        query(u64::MAX, &[1]),
        query(0, &[1]),
        query(4096, &[]),
        query(4096, &[2]),
        query(4096, &[1, 1]),
        query(4096, &[1])[..9].to_vec(),
        vec![],
        oversized,
    ] {
        assert_eq!(asked(&wrong), 22, "{wrong:02x?}");
    }
    assert_eq!(asked(&query(1, &[1])), 0);
    bench.is_well();
}

#[test]
fn half_open_connections_give_their_seats_back() {
    let options =
        ServerOptions { max_connections: 4, handshake_timeout: Duration::from_millis(300), ..ServerOptions::default() };
    let bench = Bench::new(options);
    let half_open = (0..4).map(|_| bench.connect()).collect::<Vec<_>>();
    // All seats are taken by nobody; whoever is patient gets one.
    let uri = bench.server.uri("honest");
    let patient = (0..10_000).find_map(|_| {
        std::thread::sleep(Duration::from_millis(2));
        NbdClient::connect(&uri, &ClientOptions::default()).ok()
    });
    patient.unwrap().read_at(0, &mut [0; 512]).unwrap();
    drop(half_open);
    bench.is_well();
}

#[test]
fn a_client_that_drips_gets_its_answer_and_delays_nobody() {
    let bench = Bench::new(ServerOptions::default());
    let mut bytes = handshake(Framing::Structured);
    bytes.extend(request(Framing::Structured, command::READ, 0, 0, 512));
    let mut stream = bench.connect();
    for (i, byte) in bytes.iter().enumerate() {
        stream.write_all(&[*byte]).unwrap();
        if i % 20 == 0 {
            bench.is_well();
        }
    }
    let mut answer = vec![0; 18 + 20 + (20 + 12) + 20 + 20 + 8 + 512];
    stream.read_exact(&mut answer).unwrap();
    assert!(answer.ends_with(&[7; 512]));
}

#[test]
fn noise_in_the_tls_phase_harms_nobody() {
    let authority = Authority::new();
    let tls = authority.server(&["localhost"], true, TlsDemand::Required);
    let bench = Bench::new(ServerOptions { tls: Some(tls), ..ServerOptions::default() });
    let folder = authority.client(Some("honest"));
    let uri = NbdUri { tls: Some(TlsUri { certificates: Some(folder), hostname: None }), ..bench.server.uri("honest") };
    let honest = NbdClient::connect(&uri, &ClientOptions::default()).unwrap();
    let start = [&3u32.to_be_bytes()[..], &encode_option(option::STARTTLS, &[])].concat();
    for seed in seeds(0x07f5_2026_1121) {
        println!("COFFER_SEED={seed}");
        let mut noise = Noise(seed);
        for round in 0..150 {
            let mut stream = bench.connect();
            let mut bytes = start.clone();
            match round % 5 {
                // A record that begins like a greeting of TLS and goes on with anything.
                0 => {
                    let len = noise.below(600) as u16;
                    bytes.extend([22, 3, 1]);
                    bytes.extend(len.to_be_bytes());
                    bytes.extend((0..len).map(|i| if i == 0 { 1 } else { noise.next() as u8 }));
                }
                1 => bytes.extend((0..noise.below(2000)).map(|_| noise.next() as u8)),
                // Options in the clear, behind the one that asks for TLS: they must not be answered, now or later.
                2 => bytes.extend(handshake(Framing::Structured).split_off(4)),
                // The longest record there is, and nothing in it.
                3 => bytes.extend([22, 3, 3, 0x40, 0]),
                _ => noise.mutate(&mut bytes),
            }
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).map_err(|e| {
                assert_ne!(
                    e.kind(),
                    std::io::ErrorKind::WouldBlock,
                    "seed {seed}, round {round}: neither answer nor end"
                );
            });
            assert!(
                !answer.windows(8).any(|w| w == (SIZE).to_be_bytes()),
                "seed {seed}, round {round}: told in the clear"
            );
            if round % 25 == 0 {
                honest.read_at(0, &mut [0; 65_536]).unwrap();
            }
        }
    }
    // One that begins TLS and says nothing more holds its own connection and nothing else.
    let mut silent = bench.connect();
    silent.write_all(&start).unwrap();
    silent.write_all(&[22, 3, 1, 2]).unwrap();
    let mut out = [0; 8192];
    NbdClient::connect(&uri, &ClientOptions::default()).unwrap().read_at(61_440, &mut out).unwrap();
    assert!(out[..4096] == [7; 4096] && out[4096..] == [0; 4096]);
}

#[test]
fn a_client_that_never_reads_waits_alone_and_holds_little() {
    let bench = Bench::new(ServerOptions { bytes_in_flight: 4 << 20, ..ServerOptions::default() });
    let mut greedy = (0..8).map(|_| bench.transmitting(Framing::Simple)).collect::<Vec<_>>();
    let read = request(Framing::Simple, command::READ, 0, 0, 1 << 20);
    let many = read.repeat(1000);
    for stream in &mut greedy {
        stream.set_nonblocking(true).unwrap();
        // As much as it takes, a gigabyte of answers; the rest waits in the socket.
        let _ = stream.write(&many);
    }
    for _ in 0..100 {
        bench.is_well();
    }
    let unread = bench.server.statistics();
    assert!(unread.requests < 8 * 20 + 1000, "{unread:?}");
    // Whoever begins to read gets everything.
    let slow = &mut greedy[0];
    slow.set_nonblocking(false).unwrap();
    let mut reply = vec![0; 16 + (1 << 20)];
    for _ in 0..20 {
        slow.read_exact(&mut reply).unwrap();
        assert!(reply[16..16 + 65536] == [7; 65536] && reply[16 + 65536..].iter().all(|b| *b == 0));
    }
    drop(greedy);
    bench.is_well();
}

#[test]
fn a_client_that_says_nothing_is_sent_away() {
    let options = ServerOptions { handshake_timeout: Duration::from_millis(50), ..ServerOptions::default() };
    let bench = Bench::new(options);
    for prefix in [&[][..], &[0, 0, 0, 3], b"\0\0\0\x03IHAVEOPT\0\0"] {
        let mut stream = bench.connect();
        stream.write_all(prefix).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    // Options without end, each of them fine.
    let mut stream = bench.connect();
    let _ = stream.write_all(&[0, 0, 0, 3]);
    let endless = encode_option(option::LIST, &[]).repeat(500);
    let _ = stream.write_all(&endless);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    // An option that claims to be longer than memory.
    let mut stream = bench.connect();
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xff").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.len() <= 18);
    bench.is_well();
}

#[test]
fn more_clients_than_seats_are_turned_away() {
    let bench = Bench::new(ServerOptions { max_connections: 3, ..ServerOptions::default() });
    let seated = (0..3).map(|_| bench.honest()).collect::<Vec<_>>();
    let mut stream = bench.connect();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty());
    drop(seated);
    while bench.server.statistics().open_connections > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    bench.is_well();
}

/// Serves one connection with fixed bytes, whatever the client says.
fn liar(script: Vec<u8>) -> (TempDir, NbdUri) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let uri = format!("nbd+unix:///?socket={}", path.display()).parse().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(&script);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    (dir, uri)
}

/// What an honest server says up to the transmission phase, with structured replies.
fn honest_script() -> Vec<u8> {
    use coffer_gateway::nbd::proto::handshake::{Info, encode_greeting, encode_option_reply, reply};
    let mut out = encode_greeting(3);
    encode_option_reply(option::EXTENDED_HEADERS, reply::ERR_UNSUP, &[], &mut out);
    encode_option_reply(option::STRUCTURED_REPLY, reply::ACK, &[], &mut out);
    encode_option_reply(option::SET_META_CONTEXT, reply::ACK, &[], &mut out);
    encode_option_reply(option::GO, reply::INFO, &Info::Export { size: 1 << 30, flags: 1 }.encode(), &mut out);
    encode_option_reply(option::GO, reply::ACK, &[], &mut out);
    out
}

fn chunk(flags: u8, kind: u16, cookie: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = b"\x66\x8e\x33\xef\0".to_vec();
    out.push(flags);
    out.extend(kind.to_be_bytes());
    out.extend([0, 0, 0, 0, 0, 0, 0, cookie]);
    out.extend((payload.len() as u32).to_be_bytes());
    out.extend(payload);
    out
}

#[test]
fn a_server_that_lies_gives_an_error_and_no_data() {
    let data = |offset: u64, n: usize| [&offset.to_be_bytes()[..], &vec![1; n]].concat();
    let lies: [(&str, Vec<u8>); 12] = [
        ("another cookie", chunk(1, 1, 9, &data(0, 1024))),
        ("bytes not asked for", chunk(1, 1, 1, &data(4096, 1024))),
        ("too many bytes", chunk(1, 1, 1, &data(0, 2048))),
        ("too few bytes", chunk(1, 1, 1, &data(0, 1000))),
        ("the same bytes twice", [chunk(0, 1, 1, &data(0, 512)), chunk(1, 1, 1, &data(256, 512))].concat()),
        ("no bytes at all", chunk(1, 0, 1, &[])),
        ("an empty chunk", chunk(1, 1, 1, &data(0, 0))),
        ("a malformed hole", chunk(1, 2, 1, &[0; 11])),
        ("an unknown type", chunk(1, 99, 1, &[])),
        ("an error without number", chunk(1, 0x8001, 1, &[0; 3])),
        ("a simple reply", b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01".to_vec()),
        ("a stream that ends", chunk(1, 1, 1, &data(0, 1024))[..100].to_vec()),
    ];
    for (lie, bytes) in lies {
        let (_dir, uri) = liar([honest_script(), bytes].concat());
        let client = NbdClient::connect(&uri, &ClientOptions::default()).unwrap();
        let error = client.read_at(0, &mut [0; 1024]).unwrap_err();
        assert!(matches!(error.kind(), Kind::Invalid | Kind::Unavailable), "{lie}: {error:?}");
    }
    let fine =
        [chunk(0, 2, 1, &[&0u64.to_be_bytes()[..], &512u32.to_be_bytes()].concat()), chunk(1, 1, 1, &data(512, 512))];
    let (_dir, uri) = liar([honest_script(), fine.concat()].concat());
    let mut out = [9; 1024];
    NbdClient::connect(&uri, &ClientOptions::default()).unwrap().read_at(0, &mut out).unwrap();
    assert!(out[..512] == [0; 512] && out[512..] == [1; 512]);
}

#[test]
fn mutated_servers_neither_hang_nor_crash_the_client() {
    let seed = 0x0bad_5eed_2026_1121;
    println!("seed {seed:#x}");
    let mut noise = Noise(seed);
    let honest = [honest_script(), chunk(1, 1, 1, &[&0u64.to_be_bytes()[..], &[1; 512]].concat())].concat();
    let mut outcomes = [0, 0, 0];
    for _ in 0..400 {
        let mut script = honest.clone();
        noise.mutate(&mut script);
        let (_dir, uri) = liar(script);
        let mut out = [0; 512];
        let outcome = match NbdClient::connect(&uri, &ClientOptions::default()) {
            Err(_) => 0,
            Ok(client) => client.read_at(0, &mut out).map_or(1, |()| 2),
        };
        outcomes[outcome] += 1;
    }
    assert!(outcomes.iter().all(|n| *n > 0), "refused, failed, read: {outcomes:?}");
}
