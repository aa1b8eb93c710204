//! What connections hold together: a budget that they share, and nothing that one client keeps from all others.

use coffer_gateway::nbd::proto::Framing;
use coffer_gateway::nbd::proto::handshake::{Go, encode_option, option};
use coffer_gateway::nbd::proto::transmission::{Request, command};
use coffer_gateway::nbd::{ClientOptions, Listener, NbdClient, Server, ServerOptions};
use coffer_gateway::{BlockDevice, Export, Exports, MemoryDevice};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

const MIB: usize = 1 << 20;

#[test]
fn clients_that_never_read_use_up_the_budget_and_hold_nobody_back_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let exports = Arc::new(Exports::new());
    let export = exports.add(Export::new("disk", Arc::new(MemoryDevice::new(16 * MIB as u64)))).unwrap();
    let options = ServerOptions { bytes_in_flight_together: 6 * MIB, ..ServerOptions::default() };
    let listener = Listener::Unix { path: path.clone(), mode: 0o600 };
    let server = Server::start(&listener, Arc::clone(&exports), options).unwrap();

    let mut asked = 3u32.to_be_bytes().to_vec();
    asked.extend(encode_option(option::GO, &Go { name: "disk".into(), infos: Vec::new() }.encode()));
    for cookie in 0..32 {
        let read = Request { flags: 0, command: command::READ, cookie, offset: 0, length: MIB as u64 };
        read.encode(Framing::Simple, &mut asked).unwrap();
    }
    let greedy: Vec<UnixStream> = (0..4)
        .map(|_| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(&asked).unwrap();
            // It has come to its requests.
            stream.read_exact(&mut [0; 1024]).unwrap();
            stream
        })
        .collect();
    let honest = NbdClient::connect(&server.uri("disk"), &ClientOptions::default()).unwrap();
    // A client has its answer a moment before it is counted.
    while export.clients() < 5 {
        std::thread::yield_now();
    }
    assert_eq!(export.clients(), 5);
    for _ in 0..50 {
        honest.read_at(0, &mut vec![1; MIB]).unwrap();
    }
    let taken = server.statistics().requests;
    assert!(taken < 50 + 4 * 6 + 6, "{taken}: 4 connections with their own MiB, some sent, and 6 of the budget");
    // More than its own, which the others keep and do nothing about: they have to go in the end.
    let mut large = vec![1; 8 * MIB];
    honest.read_at(0, &mut large).unwrap();
    assert!(large.iter().all(|byte| *byte == 0));
    drop(greedy);
}

#[test]
fn an_exports_clients_are_disconnected_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let exports = Arc::new(Exports::new());
    let one = exports.add(Export::new("one", Arc::new(MemoryDevice::new(4096)))).unwrap();
    exports.add(Export::new("two", Arc::new(MemoryDevice::new(4096)))).unwrap();
    let listener = Listener::Unix { path: dir.path().join("s"), mode: 0o600 };
    let server = Server::start(&listener, Arc::clone(&exports), ServerOptions::default()).unwrap();
    let client = |name: &str| NbdClient::connect(&server.uri(name), &ClientOptions::default()).unwrap();
    let (of_one, of_two) = (client("one"), client("two"));
    exports.remove("one").unwrap();
    let again = exports.add(Export::new("one", Arc::new(MemoryDevice::new(4096)))).unwrap();
    let of_again = client("one");
    of_one.read_at(0, &mut [0; 512]).unwrap();
    assert_eq!(server.disconnect(&one), 1);
    while one.clients() > 0 {
        std::thread::yield_now();
    }
    assert!(of_one.read_at(0, &mut [0; 512]).is_err());
    of_two.read_at(0, &mut [0; 512]).unwrap();
    of_again.read_at(0, &mut [0; 512]).unwrap();
    assert_eq!((again.clients(), server.disconnect(&one)), (1, 0));
}
