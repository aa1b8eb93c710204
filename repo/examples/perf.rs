//! ad hoc
#![allow(clippy::all, missing_docs, clippy::unwrap_used, clippy::print_stdout)]
use coffer_repo::backend::local::Local;
use coffer_repo::cancel::Cancel;
use coffer_repo::chunker::*;
use coffer_repo::crypto::Aead;
use coffer_repo::entropy::{Entropy, System};
use coffer_repo::index::{Index, IndexOptions};
use coffer_repo::key_slot::*;
use coffer_repo::reader::*;
use coffer_repo::repository::*;
use coffer_repo::snapshot::*;
use coffer_repo::time::Timestamp;
use coffer_repo::window::*;
use coffer_repo::writer::*;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::*;
use std::time::Instant;
struct F { f: std::fs::File, size: u64, w: u64, next: AtomicU64 }
impl WindowSource for F {
    fn next(&self, win: &mut Window) -> coffer_repo::Result<Filled> {
        let i = self.next.fetch_add(1, Ordering::Relaxed);
        if i * self.w >= self.size { return Ok(Filled::End); }
        let n = (self.size - i * self.w).min(self.w) as usize;
        win.bytes.resize(n, 0);
        self.f.read_exact_at(&mut win.bytes, i * self.w).unwrap();
        Ok(Filled::Bytes(i))
    }
    fn size(&self) -> coffer_repo::Result<u64> { Ok(self.size) }
}
fn at(s: u64) -> Timestamp { Timestamp::from_seconds(s).unwrap() }
fn cpu() -> f64 { let s = std::fs::read_to_string("/proc/self/stat").unwrap(); let v: Vec<&str> = s.rsplit(") ").next().unwrap().split(' ').collect(); (v[11].parse::<f64>().unwrap() + v[12].parse::<f64>().unwrap()) / 100.0 }
fn rss() -> String { std::fs::read_to_string("/proc/self/status").unwrap().lines().filter(|l| l.starts_with("VmHWM")).collect() }
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (img, dir) = (&a[1], std::path::PathBuf::from(&a[2]));
    std::fs::create_dir_all(&dir).unwrap();
    let size = std::fs::metadata(img).unwrap().len();
    // zstd alone
    {
        let chunker = DiskChunker::new(DiskParams::default(), 1).unwrap();
        let src = F { f: std::fs::File::open(img).unwrap(), size, w: 16 << 20, next: AtomicU64::new(0) };
        let (t, c) = (Instant::now(), cpu());
        let (raw, out) = (AtomicU64::new(0), AtomicU64::new(0));
        let ns = AtomicU64::new(0);
        std::thread::scope(|s| for _ in 0..2 { s.spawn(|| {
            let mut z = zstd::bulk::Compressor::new(1).unwrap(); let mut w = Window::default(); let mut buf = vec![0u8; 300 << 10];
            loop { w.bytes.clear(); if src.next(&mut w).unwrap() == Filled::End { break; }
                let n = w.bytes.len().next_multiple_of(4096); w.bytes.resize(n, 0);
                let ps: Vec<_> = chunker.window(&w.bytes).unwrap().collect();
                let t = Instant::now();
                for p in ps { if let Piece::Chunk(r) = p { raw.fetch_add(r.len() as u64, Ordering::Relaxed); out.fetch_add(z.compress_to_buffer(&w.bytes[r], &mut buf).unwrap() as u64, Ordering::Relaxed); } }
                ns.fetch_add(t.elapsed().as_nanos() as u64, Ordering::Relaxed);
            }}); });
        let raw = raw.into_inner();
        println!("zstd alone: raw {} MB out {} MB wall {:.2}s zstd-only {:.2} thread-s => {:.0} MB/s/2cores cpu {:.2}", raw >> 20, out.into_inner() >> 20, t.elapsed().as_secs_f64(), ns.load(Ordering::Relaxed) as f64 / 1e9, raw as f64 / (ns.load(Ordering::Relaxed) as f64 / 2e9) / 1e6, cpu() - c);
    }
    let ent: Arc<dyn Entropy> = Arc::new(System);
    let backend = Arc::new(Local::create(&dir.join("r")).unwrap());
    let slot = SlotOptions { label: "x".into(), created: at(1), cost: PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 } };
    let repo = Arc::new(Repository::init(backend, InitOptions { credential: Credential::Passphrase("x".to_owned().into()), slot, disk: DiskParams::default(), stream: StreamParams::default(), aead: Aead::preferred() }, ent).unwrap());
    let index = Arc::new(Index::open(&dir.join("i"), repo.keys().repo(), IndexOptions::default()).unwrap());
    let go = |parent: Option<Snapshot>, name: &str| {
        let (t, c) = (Instant::now(), cpu());
        let mut w = Writer::begin(&repo, &index, "w", parent, Identity::default(), WriterOptions::default(), at(t.elapsed().as_secs() + 10)).unwrap();
        let src = F { f: std::fs::File::open(img).unwrap(), size, w: 16 << 20, next: AtomicU64::new(0) };
        w.disk(DiskSpec { name: "d".into(), block_size: 512, platform: None }, &src, &Cancel::default()).unwrap();
        let td = t.elapsed();
        let s = w.commit(vec![]).unwrap();
        println!("{name}: wall {:.2} (disk {:.2}) cpu {:.2} stats {:?} {}", t.elapsed().as_secs_f64(), td.as_secs_f64(), cpu() - c, s.stats, rss());
        s
    };
    let s = go(None, "first");
    go(None, "again, no parent");
    go(Some(s.clone()), "again, parent");
    drop(index);
    let seq = |threads, name: &str| {
        let reader = Reader::new(repo.clone(), ReaderOptions { threads, ..Default::default() }).unwrap();
        let d = reader.disk(&s, "d").unwrap();
        let (t, c) = (Instant::now(), cpu());
        let mut buf = vec![0u8; 1 << 20];
        let mut n = 0u64;
        let mut at = 0;
        while at < size { for e in d.extents(at..size, 64).unwrap() { if e.content == MapContent::Data { let mut p = e.range.start; while p < e.range.end { let l = (e.range.end - p).min(1 << 20) as usize; d.read_at(p, &mut buf[..l]).unwrap(); n += l as u64; p += l as u64; } } at = e.range.end; } }
        println!("{name}: {:.0} MB/s wall {:.2} cpu {:.2}", n as f64 / t.elapsed().as_secs_f64() / 1e6, t.elapsed().as_secs_f64(), cpu() - c);
    };
    seq(2, "seq read 2 threads");
    {
        let reader = Reader::new(repo.clone(), ReaderOptions::default()).unwrap();
        let d = reader.disk(&s, "d").unwrap();
        let mut blocks = vec![]; let mut at = 0;
        while at < size { for e in d.extents(at..size, 64).unwrap() { if e.content == MapContent::Data { let mut p = e.range.start; while p < e.range.end { blocks.push(p); p += 4096; } } at = e.range.end; } }
        let (t, c) = (Instant::now(), cpu());
        let n = AtomicU64::new(0);
        std::thread::scope(|sc| for k in 0..8u64 { let (d, blocks, n) = (&d, &blocks, &n); sc.spawn(move || { let mut x = k + 1; let mut b = [0u8; 4096]; while t.elapsed().as_secs_f64() < 3.0 { x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); let o = blocks[(x >> 33) as usize % blocks.len()]; d.read_at(o, &mut b[..4096.min((size - o) as usize)]).unwrap(); n.fetch_add(1, Ordering::Relaxed); } }); });
        println!("random 4k, 8 threads: {:.0}/s cpu {:.2} {}", n.into_inner() as f64 / t.elapsed().as_secs_f64(), cpu() - c, rss());
    }
}
