//! Our NBD client against the servers of others: qemu-nbd and nbdkit.

use crate::programs::Server;
use coffer_gateway::nbd::{ClientOptions, NbdClient};
use coffer_gateway::{BlockDevice, Content, Durability, Extent, Kind, Zeroing};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::Duration;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const PLAIN: Zeroing = Zeroing { may_unmap: true, fast_only: false, durability: Durability::Cached };

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        Bench { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A sparse raw file with `byte` from 1 to 2 MiB.
    fn raw(&self, size: u64, byte: u8) -> PathBuf {
        let path = self.path("disk.raw");
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(&vec![byte; MIB as usize], MIB).unwrap();
        path
    }

    fn qemu_nbd(&self, more: &[&str]) -> Server {
        let socket = self.path("s");
        let at = format!("--socket={}", socket.display());
        Server::start("qemu-nbd", &[&["--persistent", "--shared=0", &at], more].concat(), &socket)
    }

    fn nbdkit(&self, more: &[&str]) -> Server {
        let socket = self.path("s");
        Server::start("nbdkit", &[&["-f", "-U", socket.to_str().unwrap()], more].concat(), &socket)
    }
}

fn connected(server: &Server) -> NbdClient {
    NbdClient::connect(&server.uri, &ClientOptions::default()).unwrap()
}

fn read(client: &NbdClient, offset: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0xee; len];
    client.read_at(offset, &mut out).unwrap();
    out
}

#[test]
fn qemu_nbd_reads_writes_and_tells_its_extents() {
    let bench = Bench::new();
    let raw = bench.raw(64 * MIB, 7);
    let server = bench.qemu_nbd(&["--format=raw", "--discard=unmap", raw.to_str().unwrap()]);
    let client = connected(&server);
    assert_eq!((client.size(), client.is_read_only()), (64 * MIB, false));
    let extents = client.extents(0..64 * MIB, 10).unwrap();
    let e = |range, content| Extent { range, content };
    let due = [e(0..MIB, Content::Zero), e(MIB..2 * MIB, Content::Bytes), e(2 * MIB..64 * MIB, Content::Zero)];
    assert_eq!(extents, due);
    assert_eq!(client.extents(MIB / 2..64 * MIB, 1).unwrap(), [e(MIB / 2..MIB, Content::Zero)]);

    assert_eq!(read(&client, MIB - 1, 3), [0, 7, 7]);
    // More than one payload, and holes among the bytes.
    let all = read(&client, 0, 64 * MIB as usize);
    assert!(all.iter().enumerate().all(|(i, b)| *b == if (MIB..2 * MIB).contains(&(i as u64)) { 7 } else { 0 }));

    client.write_at(3 * MIB + 1, b"odd place", Durability::Forced).unwrap();
    assert_eq!(read(&client, 3 * MIB, 11), b"\0odd place\0");
    let large = vec![9; 33 * MIB as usize];
    client.write_at(8 * MIB, &large, Durability::Cached).unwrap();
    client.flush().unwrap();
    assert!(read(&client, 8 * MIB, large.len()) == large);
    client.zero(8 * MIB..41 * MIB, PLAIN).unwrap();
    assert_eq!(client.extents(8 * MIB..41 * MIB, 9).unwrap(), [e(8 * MIB..41 * MIB, Content::Zero)]);
    client.trim(MIB..2 * MIB).unwrap();
    assert_eq!(client.read_at(64 * MIB - 1, &mut [0; 2]).unwrap_err().kind(), Kind::Invalid);
    client.disconnect();
    assert_eq!(client.flush().unwrap_err().kind(), Kind::Cancelled);
}

#[test]
fn a_dirty_bitmap_is_a_context_like_any_other() {
    let bench = Bench::new();
    let disk = bench.path("disk.qcow2");
    let disk = disk.to_str().unwrap();
    crate::programs::run("qemu-img", &["create", "-q", "-f", "qcow2", disk, "16M"]);
    crate::programs::run("qemu-img", &["bitmap", "--add", disk, "since"]);
    crate::programs::run("qemu-io", &["-f", "qcow2", "-c", "write -P 3 4M 64k", disk]);
    let server = bench.qemu_nbd(&["--format=qcow2", "--read-only", "--bitmap=since", disk]);
    let context = "qemu:dirty-bitmap:since";
    let options = ClientOptions { contexts: vec![context.into()], ..ClientOptions::default() };
    let client = NbdClient::connect(&server.uri, &options).unwrap();
    assert!(client.has_context(context) && !client.has_context("qemu:dirty-bitmap:other"));
    let due = [(0..4 * MIB, 0), (4 * MIB..4 * MIB + 65536, 1), (4 * MIB + 65536..16 * MIB, 0)];
    assert_eq!(client.status(context, 0..16 * MIB, 10).unwrap(), due);
    assert!(client.is_read_only());
    assert_eq!(client.write_at(0, &[1], Durability::Cached).unwrap_err().kind(), Kind::Unsupported);
    assert_eq!(connected(&server).status(context, 0..MIB, 1).unwrap_err().kind(), Kind::Unsupported);
}

#[test]
fn many_threads_share_one_connection() {
    let bench = Bench::new();
    let server = bench.nbdkit(&["--filter=delay", "memory", "64M", "rdelay=1ms", "delay-open=0"]);
    let client = connected(&server);
    let (threads, rounds) = (16_u64, 40_u64);
    let start = Barrier::new(threads as usize);
    std::thread::scope(|scope| {
        for t in 0..threads {
            let (client, start) = (&client, &start);
            scope.spawn(move || {
                start.wait();
                for round in 0..rounds {
                    let at = (round * threads + t) * 65536;
                    let bytes = vec![(t * 10 + round) as u8; if round % 8 == 0 { 65536 } else { 4096 }];
                    client.write_at(at, &bytes, Durability::Cached).unwrap();
                    assert!(read(client, at, bytes.len()) == bytes, "thread {t}, round {round}");
                }
            });
        }
    });
}

#[test]
fn a_server_with_large_blocks_is_read_and_written_at_any_byte() {
    let bench = Bench::new();
    let policy = ["blocksize-minimum=4096", "blocksize-maximum=65536", "blocksize-error-policy=error"];
    let server = bench.nbdkit(&[&["--filter=blocksize-policy", "memory", "1M"], &policy[..]].concat());
    let client = connected(&server);
    assert_eq!(client.block_size(), 4096);
    let mut model = vec![0; MIB as usize];
    let mut write = |at: usize, len: usize, byte: u8| {
        client.write_at(at as u64, &vec![byte; len], Durability::Cached).unwrap();
        model[at..at + len].fill(byte);
    };
    write(0, 300_000, 1);
    write(4095, 2, 2);
    write(MIB as usize - 1, 1, 3);
    write(70_000, 200_001, 4);
    client.zero(5000..5001, PLAIN).unwrap();
    client.zero(100_000..250_000, PLAIN).unwrap();
    model[5000] = 0;
    model[100_000..250_000].fill(0);
    assert!(read(&client, 0, MIB as usize) == model);
    assert!(read(&client, 4095, 500_000) == model[4095..504_095]);
}

#[test]
fn an_error_concerns_its_request_only() {
    let bench = Bench::new();
    let server = bench.nbdkit(&["--filter=error", "memory", "1M", "error-pread=EIO", "error-pread-rate=100%"]);
    let client = connected(&server);
    for _ in 0..3 {
        let error = client.read_at(0, &mut [0; 512]).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains("EIO"), "{error}");
        client.write_at(0, &[1; 512], Durability::Cached).unwrap();
    }
}

#[test]
fn servers_that_lack_things_are_served_with_what_they_have() {
    let bench = Bench::new();
    let arguments = ["--no-sr", "--filter=nozero", "--filter=fua", "memory", "1M", "zeromode=none"];
    let server = bench.nbdkit(&arguments);
    let client = connected(&server);
    client.write_at(100, &[5; 5000], Durability::Forced).unwrap();
    client.zero(200..300, PLAIN).unwrap();
    assert_eq!(client.zero(0..4096, Zeroing { fast_only: true, ..PLAIN }).unwrap_err().kind(), Kind::Unsupported);
    let found = read(&client, 0, 5200);
    assert!((0..5200).all(|i| found[i] == if (100..200).contains(&i) || (300..5100).contains(&i) { 5 } else { 0 }));
    assert_eq!(client.extents(0..MIB, 5).unwrap(), [Extent { range: 0..MIB, content: Content::Bytes }]);
}

#[test]
fn what_cannot_be_reached_is_named() {
    let bench = Bench::new();
    let server = bench.qemu_nbd(&["--export-name=here", "--format=raw", bench.raw(4 * MIB, 1).to_str().unwrap()]);
    let mut uri = server.uri.clone();
    let attempt = |uri: &_| NbdClient::connect(uri, &ClientOptions::default()).map(|c| c.size()).map_err(|e| e.kind());
    assert_eq!(attempt(&uri), Err(Kind::NotFound));
    uri.export = "here".into();
    assert_eq!(attempt(&uri), Ok(4 * MIB));
    drop(server);
    assert_eq!(attempt(&uri), Err(Kind::Unavailable));
    let nowhere = "nbd+unix:///?socket=/nonexistent/socket".parse().unwrap();
    assert_eq!(attempt(&nowhere), Err(Kind::NotFound));
}

#[test]
fn a_silent_server_is_given_up() {
    let bench = Bench::new();
    let socket = bench.path("silent");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let uri = format!("nbd+unix:///?socket={}", socket.display()).parse().unwrap();
    let options = ClientOptions { connect_timeout: Duration::from_millis(50), ..ClientOptions::default() };
    let error = NbdClient::connect(&uri, &options).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");

    let server = bench.nbdkit(&["--filter=delay", "memory", "1M", "rdelay=3"]);
    let options = ClientOptions { reply_timeout: Some(Duration::from_millis(50)), ..ClientOptions::default() };
    let client = NbdClient::connect(&server.uri, &options).unwrap();
    assert_eq!(client.read_at(0, &mut [0; 512]).unwrap_err().kind(), Kind::Unavailable);
    // The reply that comes too late must not be taken for the next one's.
    assert_eq!(client.read_at(512, &mut [0; 512]).unwrap_err().kind(), Kind::Unavailable);
}
