//! A thousand exports and a thousand clients that did something and now do nothing, at one gateway: what they take of memory.

use coffer_gateway::nbd::proto::Framing;
use coffer_gateway::nbd::proto::handshake::{Go, encode_option, option};
use coffer_gateway::nbd::proto::transmission::{Request, command};
use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::Running;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;

const MANY: usize = 1000;
/// What all of them together may take.
const ALLOWED: u64 = 64 << 20;
const SIZE: u64 = 4 * MIB;
const BLOCK: usize = 4 << 10;
const BLOCKS: usize = (4 << 20) / BLOCK;

/// Starts a gateway with so many exports.
fn gateway(coffer: &Coffer, exports: usize) -> Running {
    let mut text =
        "listen = ['unix:nbd.sock']\nmax-connections = 2000\ncache-size = '8M'\nreadahead = '1M'\n".to_owned();
    for i in 0..exports {
        writeln!(text, "[[export]]\nname = 'e{i}'\npoint = 'web@latest'").unwrap();
    }
    std::fs::write(coffer.path("gateway.toml"), text).unwrap();
    coffer.start(&["serve", "--config", "gateway.toml"], "controlled at")
}

/// A client that has read a block of an export.
fn client(coffer: &Coffer, export: usize) -> UnixStream {
    let mut stream = UnixStream::connect(coffer.path("nbd.sock")).unwrap();
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(encode_option(option::GO, &Go { name: format!("e{export}"), infos: Vec::new() }.encode()));
    let offset = (export % BLOCKS * BLOCK) as u64;
    let read = Request { flags: 0, command: command::READ, cookie: 1, offset, length: BLOCK as u64 };
    read.encode(Framing::Simple, &mut bytes).unwrap();
    stream.write_all(&bytes).unwrap();
    // Greeting, export information, acknowledgement, and the block with its head.
    let mut answer = vec![0; 18 + 20 + 12 + 20 + 16 + BLOCK];
    stream.read_exact(&mut answer).unwrap();
    stream
}

#[test]
fn a_thousand_idle_exports_and_clients_take_little() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let coffer = Coffer::new();
    image::make(&coffer.path("disk.raw"), SIZE, &[0..SIZE], 20_501);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);

    let alone = gateway(&coffer, 1);
    // What the process takes with one of each.
    drop(client(&coffer, 0));
    let before = alone.memory();
    let ended = alone.terminate();
    assert!(ended.status.success(), "{ended}");

    let mut crowded = gateway(&coffer, MANY);
    let exports = crowded.memory();
    let clients: Vec<UnixStream> = (0..MANY).map(|export| client(&coffer, export)).collect();
    let busy = crowded.memory();
    crowded.wait_until("rest", |gateway| gateway.memory() < before + ALLOWED);
    let idle = crowded.memory();
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    println!(
        "1 export: {:.1} MiB; {MANY} exports: {:.1}; {MANY} clients just after a request: {:.1}; idle: {:.1}",
        mib(before),
        mib(exports),
        mib(busy),
        mib(idle)
    );
    let listed = coffer.json(&["export", "list"])["exports"].as_array().unwrap().clone();
    assert!(listed.len() == MANY && listed.iter().all(|export| export["clients"] == 1 && export["reads"] == 1));
    drop(clients);
    let ended = crowded.terminate();
    assert!(ended.status.success(), "{ended}");
}
