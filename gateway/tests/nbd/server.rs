//! Our NBD server and the clients of others: libnbd's tools, QEMU's and fio; and our own client.

use crate::programs::run;
use coffer_gateway::nbd::{ClientOptions, Listener, NbdClient, Server, ServerOptions};
use coffer_gateway::{
    BlockDevice, Content, Durability, Export, Exports, Extent, Faults, FaultyDevice, Kind, MemoryDevice, Zeroing,
};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;

/// A served device, on a unix socket.
struct Bench {
    dir: TempDir,
    exports: Arc<Exports>,
    server: Server,
    reports: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let exports = Arc::new(Exports::new());
        let listener = Listener::Unix { path: dir.path().join("s"), mode: 0o600 };
        let reports = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&reports);
        let options = ServerOptions {
            report: Some(Arc::new(move |e| sink.lock().unwrap().push(e.to_string()))),
            ..ServerOptions::default()
        };
        let server = Server::start(&listener, Arc::clone(&exports), options).unwrap();
        Bench { dir, exports, server, reports }
    }

    fn offering(name: &str, device: Arc<dyn BlockDevice>, read_only: bool) -> Self {
        let bench = Bench::new();
        let description = format!("the disk {name}");
        bench.exports.add(Export { description, read_only, ..Export::new(name, device) }).unwrap();
        bench
    }

    fn uri(&self, export: &str) -> String {
        self.server.uri(export).to_string()
    }

    fn path(&self, name: &str) -> String {
        let path: PathBuf = self.dir.path().join(name);
        path.to_str().unwrap().to_owned()
    }

    fn client(&self, export: &str) -> NbdClient {
        NbdClient::connect(&self.server.uri(export), &ClientOptions::default()).unwrap()
    }
}

/// 8 MiB: bytes from 1 to 2 MiB and in the last sector, zeroes elsewhere.
fn disk() -> Arc<MemoryDevice> {
    let device = MemoryDevice::new(8 * MIB);
    let bytes = (0..MIB).map(|i| (i / 256 + i) as u8 | 1).collect::<Vec<_>>();
    device.write_at(MIB, &bytes, Durability::Cached).unwrap();
    device.write_at(8 * MIB - 512, &[9; 512], Durability::Cached).unwrap();
    Arc::new(device)
}

fn cold(below: Arc<dyn BlockDevice>) -> Arc<FaultyDevice> {
    Arc::new(FaultyDevice::new(below, Faults { is_cold: true, ..Faults::default() }))
}

fn content(device: &dyn BlockDevice) -> Vec<u8> {
    let mut out = vec![0; device.size() as usize];
    device.read_at(0, &mut out).unwrap();
    out
}

#[test]
fn nbdinfo_sees_what_is_offered() {
    let bench = Bench::offering("vda", disk(), true);
    let info = run("nbdinfo", &[&bench.uri("vda")]);
    for line in ["protocol: newstyle-fixed without TLS, using structured packets", "description: the disk vda"] {
        assert!(info.contains(line), "{line}\n{info}");
    }
    for fact in
        ["export-size: 8388608", "is_read_only: true", "can_multi_conn: true", "can_df: true", "can_cache: true"]
    {
        assert!(info.contains(fact), "{fact}\n{info}");
    }
    for fact in ["base:allocation", "block_size_maximum: 33554432", "block_size_minimum: 1"] {
        assert!(info.contains(fact), "{fact}\n{info}");
    }
    let map = run("nbdinfo", &["--map", &bench.uri("")]);
    let lines = map.lines().map(|l| l.split_whitespace().take(3).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    assert_eq!(lines, ["0 1048576 3", "1048576 1048576 0", "2097152 6287360 3", "8384512 4096 0"]);
    bench.exports.add(Export::new("vdb", disk())).unwrap();
    let list = run("nbdinfo", &["--list", &bench.uri("")]);
    assert!(list.contains("export=\"vda\"") && list.contains("export=\"vdb\""), "{list}");
    assert!(list.contains("can_fast_zero: true") && list.contains("can_fua: true"), "{list}");
}

#[test]
fn copies_by_others_are_equal() {
    for (device, is_cold) in [(disk() as Arc<dyn BlockDevice>, false), (cold(disk()), true)] {
        let bench = Bench::offering("vda", device, true);
        let due = content(&*disk());
        let copy = bench.path("copy");
        run("nbdcopy", &[&bench.uri("vda"), &copy]);
        assert!(std::fs::read(&copy).unwrap() == due, "cold: {is_cold}");
        run("nbdcopy", &["--synchronous", "--sparse=0", "--allocated", &bench.uri("vda"), &copy]);
        assert!(std::fs::read(&copy).unwrap() == due, "cold: {is_cold}");
        let converted = bench.path("converted");
        run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &bench.uri("vda"), &converted]);
        assert!(std::fs::read(&converted).unwrap() == due, "cold: {is_cold}");
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &bench.uri("vda"), &copy]);
        let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &bench.uri("vda")]);
        assert_eq!(map.matches("\"zero\": true, \"data\": false").count(), 2, "{map}");
    }
}

#[test]
fn others_write_and_what_they_wrote_is_there() {
    let device = Arc::new(MemoryDevice::new(16 * MIB));
    let bench = Bench::offering("vda", cold(Arc::clone(&device) as Arc<dyn BlockDevice>), false);
    let commands = [
        "write -P 5 0 1M",
        "write -f -P 6 1M 64k",
        "write -z -u 64k 64k",
        "write -z 128k 64k",
        "discard 256k 128k",
        "aio_write -P 7 3000 5000",
        "aio_flush",
        "read -P 5 0 3000",
        "read -P 7 3000 5000",
        "read -P 0 64k 128k",
        "flush",
    ];
    let arguments = commands.iter().flat_map(|c| ["-c", *c]).collect::<Vec<_>>();
    let said = run("qemu-io", &[&["-f", "raw"], &arguments[..], &[&bench.uri("vda")]].concat());
    assert!(!said.contains("verification failed") && !said.contains("failed:"), "{said}");
    let mut due = vec![0; 16 * MIB as usize];
    due[..MIB as usize].fill(5);
    due[MIB as usize..(MIB + 64 * KIB) as usize].fill(6);
    due[64 << 10..192 << 10].fill(0);
    due[256 << 10..384 << 10].fill(0);
    due[3000..8000].fill(7);
    assert!(content(&*device) == due);
    let extents = device.extents(0..256 * KIB, 9).unwrap();
    let e = |range, content| Extent { range, content };
    let due = [
        e(0..64 * KIB, Content::Bytes),
        e(64 * KIB..128 * KIB, Content::Zero),
        e(128 * KIB..256 * KIB, Content::Bytes),
    ];
    assert_eq!(extents, due);

    let source = bench.path("source");
    std::fs::write(&source, content(&*disk())).unwrap();
    run("nbdcopy", &["--destination-is-zero", &source, &bench.uri("vda")]);
    run("nbdcopy", &[&source, &bench.uri("vda")]);
    assert!(content(&*device)[..8 * MIB as usize] == content(&*disk()));
}

#[test]
fn fio_verifies_what_it_wrote() {
    for is_cold in [false, true] {
        let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(32 * MIB));
        let bench = Bench::offering("vda", if is_cold { cold(device) } else { device }, false);
        let uri = format!("--uri={}", bench.uri("vda"));
        let arguments = [
            "--name=x",
            "--ioengine=nbd",
            &uri,
            "--size=32m",
            "--rw=randrw",
            "--bsrange=512-256k",
            "--blockalign=512",
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--randseed=1",
        ];
        run("fio", &arguments);
    }
}

#[test]
fn writes_to_a_read_only_export_are_refused() {
    let bench = Bench::offering("vda", disk(), true);
    let client = bench.client("vda");
    assert!(client.is_read_only());
    // Our client would not even ask; QEMU's opens for writing only if the server says that one may.
    let refused =
        std::process::Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 512", &bench.uri("vda")]).output();
    assert!(!refused.unwrap().status.success());
    assert!(content(&client) == content(&*disk()));
}

#[test]
fn our_client_and_our_server_agree() {
    for is_cold in [false, true] {
        let device: Arc<dyn BlockDevice> = disk();
        let bench = Bench::offering("vda", if is_cold { cold(device) } else { device }, false);
        let client = bench.client("vda");
        let mut due = content(&*disk());
        assert!(content(&client) == due);
        let plain = Zeroing { may_unmap: true, fast_only: false, durability: Durability::Forced };
        for round in 0..20_u64 {
            let at = round * 7919 * 41 % (7 * MIB);
            let bytes = vec![round as u8 + 1; (round * 1111) as usize + 1];
            client.write_at(at, &bytes, if round % 2 == 0 { Durability::Forced } else { Durability::Cached }).unwrap();
            due[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
            let hole = at / 2..at / 2 + round * 3000;
            client.zero(hole.clone(), plain).unwrap();
            due[hole.start as usize..hole.end as usize].fill(0);
        }
        client.flush().unwrap();
        assert!(content(&client) == due, "cold: {is_cold}");
        let mut at = 0;
        while at < client.size() {
            let found = client.extents(at..client.size(), 3).unwrap();
            for Extent { range, content } in found {
                assert_eq!(range.start, at);
                let bytes = &due[range.start as usize..range.end as usize];
                assert!(content == Content::Bytes || bytes.iter().all(|b| *b == 0));
                at = range.end;
            }
        }
        client.trim(0..8 * MIB).unwrap();
        assert_eq!(client.extents(0..8 * MIB, 2).unwrap(), [Extent { range: 0..8 * MIB, content: Content::Zero }]);
    }
}

#[test]
fn sizes_beyond_32_bits_fit() {
    let huge = 1 << 44;
    let device = MemoryDevice::new(huge);
    device.write_at(huge - 4096, &[3; 4096], Durability::Cached).unwrap();
    let bench = Bench::offering("huge", Arc::new(device), false);
    let client = bench.client("huge");
    let extents = client.extents(0..huge, 10).unwrap();
    let zero = Extent { range: 0..huge - 4096, content: Content::Zero };
    assert_eq!(extents, [zero, Extent { range: huge - 4096..huge, content: Content::Bytes }]);
    client
        .zero(huge - (5 << 30)..huge, Zeroing { may_unmap: true, fast_only: true, durability: Durability::Cached })
        .unwrap();
    assert_eq!(client.extents(0..huge, 10).unwrap().len(), 1);
    assert!(run("nbdinfo", &["--size", &bench.uri("huge")]).trim() == huge.to_string());
}

#[test]
fn what_cannot_be_read_fails_its_own_request_only() {
    for is_cold in [false, true] {
        let unreadable = vec![MIB + 4096..MIB + 6000, MIB + 6000..MIB + 8192];
        let faults = Faults { unreadable, is_cold, ..Faults::default() };
        let bench = Bench::offering("vda", Arc::new(FaultyDevice::new(disk(), faults)), true);
        let client = bench.client("vda");
        let due = content(&*disk());
        std::thread::scope(|scope| {
            for t in 0..4 {
                let (client, due) = (&client, &due);
                scope.spawn(move || {
                    for round in 0..50_u64 {
                        let at = MIB - 8192 + (round + t) % 8 * 4096;
                        let mut out = [0; 4096];
                        let outcome = client.read_at(at, &mut out);
                        if at == MIB + 4096 {
                            let error = outcome.unwrap_err();
                            assert!(error.to_string().contains("EIO"), "{error}");
                        } else {
                            outcome.unwrap();
                            assert!(out == due[at as usize..at as usize + 4096]);
                        }
                    }
                });
            }
        });
        let reports = std::mem::take(&mut *bench.reports.lock().unwrap());
        assert!(
            !reports.is_empty()
                && reports.iter().all(|r| r.contains("export 'vda': read of 4096 bytes at offset 1052672"))
        );
        // A copy must fail too, and never come out as zeroes.
        let copy =
            std::process::Command::new("nbdcopy").args([&bench.uri("vda"), &bench.path("copy")]).output().unwrap();
        assert!(!copy.status.success());
    }
}

#[test]
fn failures_of_the_device_never_become_data() {
    let seed = 20_261_121;
    println!("seed {seed}");
    let faults = Faults { seed, one_in: NonZeroU64::new(5), ..Faults::default() };
    let bench = Bench::offering("vda", Arc::new(FaultyDevice::new(disk(), faults)), false);
    let client = bench.client("vda");
    let due = content(&*disk());
    let mut failed = 0;
    for i in 0..500_u64 {
        let at = i * 12_289 % (8 * MIB - 4096);
        let mut out = [0; 4096];
        match client.read_at(at, &mut out) {
            Ok(()) => assert!(out == due[at as usize..at as usize + 4096]),
            Err(e) => {
                assert_eq!(e.kind(), Kind::Unavailable);
                failed += 1;
            }
        }
    }
    assert!((50..150).contains(&failed), "{failed}");
}

#[test]
fn clients_share_a_server_over_tcp() {
    let exports = Arc::new(Exports::new());
    let device: Arc<dyn BlockDevice> = disk();
    for name in ["a", "b"] {
        exports.add(Export { read_only: name == "a", ..Export::new(name, Arc::clone(&device)) }).unwrap();
    }
    let listener = Listener::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
    let server = Server::start(&listener, exports, ServerOptions::default()).unwrap();
    let due = content(&*disk());
    std::thread::scope(|scope| {
        for i in 0..6 {
            let (server, due) = (&server, &due);
            scope.spawn(move || {
                let uri = server.uri(if i % 2 == 0 { "a" } else { "b" });
                let client = NbdClient::connect(&uri, &ClientOptions::default()).unwrap();
                for _ in 0..5 {
                    assert!(content(&client) == *due);
                }
            });
        }
    });
    let statistics = server.statistics();
    assert_eq!(statistics.connections, 6);
    assert!(statistics.requests >= 30 && statistics.bytes_sent > 6 * MIB);
    let uri = server.uri("nothing");
    assert_eq!(NbdClient::connect(&uri, &ClientOptions::default()).unwrap_err().kind(), Kind::NotFound);
    server.stop();
    assert_eq!(NbdClient::connect(&uri, &ClientOptions::default()).unwrap_err().kind(), Kind::Unavailable);
}

#[test]
fn a_stop_ends_clients_that_do_nothing_and_removes_the_socket() {
    let bench = Bench::offering("vda", disk(), false);
    let client = bench.client("vda");
    client.write_at(0, &[1; 4096], Durability::Cached).unwrap();
    let path = bench.dir.path().join("s");
    let _half_open = std::os::unix::net::UnixStream::connect(&path).unwrap();
    assert!(path.exists());
    bench.server.stop();
    assert!(!path.exists());
    assert_eq!(client.flush().unwrap_err().kind(), Kind::Unavailable);
}
