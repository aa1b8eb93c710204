//! One server, many clients: contexts, who may use what, limits, and what the counts say.

use crate::programs::run;
use coffer_gateway::nbd::{ClientOptions, Listener, NbdClient, Server, ServerOptions};
use coffer_gateway::{
    Access, BlockDevice, ChangeSource, Changes, Durability, Export, Exports, Kind, Limits, MemoryDevice, Permit,
    Result, Zeroing,
};
use coffer_gateway::{Error, Extent};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const MIB: u64 = 1 << 20;

struct Bench {
    exports: Arc<Exports>,
    server: Server,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn offering(offers: impl IntoIterator<Item = Export>) -> Self {
        let exports = Arc::new(Exports::new());
        offers.into_iter().for_each(|export| drop(exports.add(export).unwrap()));
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::Unix { path: dir.path().join("s"), mode: 0o600 };
        let server = Server::start(&listener, Arc::clone(&exports), ServerOptions::default()).unwrap();
        Bench { exports, server, _dir: dir }
    }

    fn uri(&self, export: &str) -> String {
        self.server.uri(export).to_string()
    }

    fn connect(&self, export: &str, contexts: &[&str]) -> Result<NbdClient> {
        let contexts = contexts.iter().map(|c| (*c).to_owned()).collect();
        NbdClient::connect(&self.server.uri(export), &ClientOptions { contexts, ..ClientOptions::default() })
    }
}

/// 8 MiB with bytes in the second one.
fn disk() -> Arc<MemoryDevice> {
    let device = MemoryDevice::new(8 * MIB);
    device.write_at(MIB, &[5; MIB as usize], Durability::Cached).unwrap();
    Arc::new(device)
}

/// Says that every third MiB changed.
struct Thirds;

impl ChangeSource for Thirds {
    fn changes(&self, range: Range<u64>, max: usize) -> Result<Vec<(Range<u64>, bool)>> {
        let next = |at: u64| at..((at / MIB + 1) * MIB).min(range.end);
        let all = std::iter::successors(Some(next(range.start)), |last| Some(next(last.end)));
        Ok(all
            .take_while(|r| !r.is_empty())
            .take(max)
            .map(|r| (r.clone(), (r.start / MIB).is_multiple_of(3)))
            .collect())
    }
}

fn lines(map: &str) -> Vec<String> {
    map.lines().map(|l| l.split_whitespace().take(3).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn contexts_are_listed_and_answered_side_by_side() {
    let changes = vec![Changes { since: "web@-1".into(), source: Arc::new(Thirds) }];
    let bench = Bench::offering([Export { changes, ..Export::new("vda", disk()) }]);
    let (depth, changed) = ("qemu:allocation-depth", "coffer:changed:web@-1");
    let client = bench.connect("vda", &[depth, changed, "coffer:changed:web@-2"]).unwrap();
    assert!(client.has_context(depth) && client.has_context(changed) && !client.has_context("coffer:changed:web@-2"));
    let due = [(0..MIB, 0), (MIB..2 * MIB, 1), (2 * MIB..8 * MIB, 0)];
    assert_eq!(client.status(depth, 0..8 * MIB, 9).unwrap(), due);
    let due = [(0..MIB, 1), (MIB..3 * MIB, 0), (3 * MIB..4 * MIB, 1)];
    assert_eq!(client.status(changed, 0..4 * MIB, 9).unwrap(), due);
    assert_eq!(client.status(changed, 3 * MIB..8 * MIB, 1).unwrap(), [(3 * MIB..4 * MIB, 1)]);
    assert_eq!(client.extents(MIB..2 * MIB, 1).unwrap().len(), 1);
    let due = [
        "0 1048576 1",
        "1048576 2097152 0",
        "3145728 1048576 1",
        "4194304 2097152 0",
        "6291456 1048576 1",
        "7340032 1048576 0",
    ];
    assert_eq!(lines(&run("nbdinfo", &[&format!("--map={changed}"), &bench.uri("vda")])), due);
    let map = run("nbdinfo", &[&format!("--map={depth}"), &bench.uri("vda")]);
    assert_eq!(lines(&map), ["0 1048576 0", "1048576 1048576 1", "2097152 6291456 0"]);
    let info = run("nbdinfo", &[&bench.uri("vda")]);
    assert!(info.contains(depth) && info.contains(changed), "{info}");
    // QEMU asks for the context by a name of its own, and takes what it says as data and holes.
    let image = format!(
        "driver=nbd,x-dirty-bitmap={depth},{}",
        bench.uri("vda").replace("nbd+unix:///vda?socket=", "export=vda,path=")
    );
    let map = run("qemu-img", &["map", "--output=json", "--image-opts", &image]);
    assert!(map.contains("\"start\": 1048576"), "{map}");
}

#[test]
fn a_device_says_how_deep_things_lie() {
    /// As a fork of a fork.
    struct Layers(Arc<MemoryDevice>);

    impl BlockDevice for Layers {
        fn size(&self) -> u64 {
            self.0.size()
        }

        fn block_size(&self) -> u32 {
            512
        }

        fn is_read_only(&self) -> bool {
            true
        }

        fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
            self.0.read_at(offset, out)
        }

        fn try_read_at(&self, _: u64, _: &mut [u8]) -> Result<bool> {
            Ok(false)
        }

        fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
            self.0.extents(range, max)
        }

        fn depths(&self, range: Range<u64>, max: usize) -> Result<Vec<(Range<u64>, u32)>> {
            assert!(max > 1 && range == (0..8 * MIB));
            Ok(vec![(0..MIB, 2), (MIB..2 * MIB, 1), (2 * MIB..8 * MIB, 0)])
        }
    }
    let bench = Bench::offering([Export::new("vda", Arc::new(Layers(disk())))]);
    let map = run("nbdinfo", &["--map=qemu:allocation-depth", &bench.uri("vda")]);
    assert_eq!(lines(&map), ["0 1048576 2", "1048576 1048576 1", "2097152 6291456 0"]);
}

#[test]
fn qemu_speaks_extended_headers_with_it() {
    let huge = 1 << 43;
    let device = Arc::new(MemoryDevice::new(huge));
    device.write_at(huge - 4096, &[3; 4096], Durability::Cached).unwrap();
    let bench = Bench::offering([Export::new("huge", Arc::clone(&device) as Arc<dyn BlockDevice>)]);
    let asked = bench.server.statistics().requests;
    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &bench.uri("huge")]);
    assert!(map.contains(&format!("\"length\": {}", huge - 4096)), "{map}");
    // With compact headers nothing is longer than 4 GiB, and 2,048 requests are the least.
    let asked = bench.server.statistics().requests - asked;
    assert!(asked < 100, "{asked} requests");
    let zero = format!("write -z -n -u {} {}", huge - (16 << 30), 8_u64 << 30);
    let said = run("qemu-io", &["-f", "raw", "-c", &zero, "-c", "discard 0 1G", &bench.uri("huge")]);
    assert!(!said.contains("failed"), "{said}");
}

/// Zeroes only as slowly as writing does.
struct Slow(Arc<MemoryDevice>, AtomicBool);

impl BlockDevice for Slow {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, out)
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        self.0.try_read_at(offset, out)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        self.0.extents(range, max)
    }

    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        self.0.write_at(offset, bytes, durability)
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        if how.fast_only {
            self.1.store(true, Ordering::Relaxed);
            return Err(Error::new(Kind::Unsupported, "not fast"));
        }
        self.0.zero(range, how)
    }

    fn trim(&self, _: Range<u64>) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "no trim here"))
    }
}

#[test]
fn fast_zeroes_are_fast_or_refused() {
    let device = Arc::new(Slow(disk(), AtomicBool::new(false)));
    let bench = Bench::offering([Export::new("vda", Arc::clone(&device) as Arc<dyn BlockDevice>)]);
    let client = bench.connect("vda", &[]).unwrap();
    let how = Zeroing { may_unmap: true, fast_only: true, durability: Durability::Cached };
    let error = client.zero(MIB..2 * MIB, how).unwrap_err();
    assert!(error.kind() == Kind::Unsupported && device.1.load(Ordering::Relaxed), "{error}");
    let mut out = [0; 4096];
    client.read_at(MIB, &mut out).unwrap();
    assert_eq!(out, [5; 4096], "a refusal leaves the bytes");
    client.zero(MIB..2 * MIB, Zeroing { fast_only: false, ..how }).unwrap();
    client.read_at(MIB, &mut out).unwrap();
    assert_eq!(out, [0; 4096]);
    // The number that means "not fast" is kept for that.
    assert_eq!(client.trim(0..4096).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn an_export_is_there_for_those_who_may_use_it_only() {
    let uid = rustix::process::geteuid().as_raw();
    let with = |name: &str, permit: &str| Export {
        access: Access::only([permit.parse::<Permit>().unwrap()]),
        ..Export::new(name, disk())
    };
    let bench = Bench::offering([
        with("mine", &format!("uid:{uid}")),
        with("theirs", &format!("uid:{}", uid + 1)),
        with("net", "127.0.0.0/8"),
        with("far", "10.0.0.0/8"),
    ]);
    let listener = Listener::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
    let tcp = Server::start(&listener, Arc::clone(&bench.exports), ServerOptions::default()).unwrap();
    let attempt = |server: &Server, name: &str| {
        NbdClient::connect(&server.uri(name), &ClientOptions::default()).map(|c| c.size()).map_err(|e| e.kind())
    };
    for (server, open) in [(&bench.server, "mine"), (&tcp, "net")] {
        for name in ["mine", "theirs", "net", "far"] {
            let due = if name == open { Ok(8 * MIB) } else { Err(Kind::NotFound) };
            assert_eq!(attempt(server, name), due, "{name} at {:?}", server.place());
        }
        assert_eq!(attempt(server, ""), Ok(8 * MIB), "the only one that is there");
        let list = run("nbdinfo", &["--list", &server.uri("").to_string()]);
        assert!(list.matches("export=").count() == 1 && list.contains(open), "{list}");
    }
}

#[test]
fn limits_hold_one_export_back_and_no_other() {
    let limits = Limits { operations: NonZeroU64::new(1), bytes: None };
    let bench = Bench::offering([Export { limits, ..Export::new("slow", disk()) }, Export::new("free", disk())]);
    let slow = bench.connect("slow", &[]).unwrap();
    let free = bench.connect("free", &[]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            // 8 requests take 7 seconds, if nobody ends it.
            scope.spawn(|| slow.read_at(0, &mut [0; 512]).map_err(|e| e.kind()));
        }
        for i in 0..300 {
            free.read_at(i * 4096, &mut [0; 4096]).unwrap();
        }
        let totals =
            |name: &str| bench.exports.find(name, &coffer_gateway::Peer::default()).unwrap().activity().totals();
        assert_eq!((totals("free").reads, totals("free").delays), (300, 0));
        while totals("slow").delays == 0 {
            std::thread::yield_now();
        }
        slow.disconnect();
    });
    // Whoever goes away while waiting is noticed, and keeps nothing from the others.
    while bench.server.connections().len() > 1 {
        std::thread::yield_now();
    }
    let again = bench.connect("slow", &[]).unwrap();
    again.read_at(0, &mut [0; 512]).unwrap();
}

#[test]
fn what_is_done_is_counted() {
    let bench = Bench::offering([Export::new("vda", disk())]);
    let client = bench.connect("vda", &[]).unwrap();
    let other = bench.connect("vda", &[]).unwrap();
    client.write_at(0, &[1; 8192], Durability::Cached).unwrap();
    client.read_at(0, &mut [0; 4096]).unwrap();
    other.read_at(0, &mut [0; 512]).unwrap();
    client.flush().unwrap();
    assert!(client.status("base:allocation", 0..8192, 1).is_ok());
    let totals = bench.exports.all()[0].activity().totals();
    assert_eq!((totals.reads, totals.bytes_read, totals.writes, totals.bytes_written), (2, 4608, 1, 8192));
    assert_eq!((totals.others, totals.failures), (2, 0));
    assert_eq!(totals.latencies.iter().sum::<u64>(), 5);
    let connections = bench.server.connections();
    let reads = connections.iter().map(|c| c.activity.reads).collect::<Vec<_>>();
    assert_eq!(reads, [1, 1]);
    assert_eq!(connections[0].peer.user, Some(rustix::process::geteuid().as_raw()));
    assert_eq!(connections[0].export.as_deref(), Some("vda"));
    drop((client, other));
    while !bench.server.connections().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(bench.exports.all()[0].activity().totals(), totals);
}
