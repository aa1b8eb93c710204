//! `coffer-stores IMAGE`: backs IMAGE up into a folder, SeaweedFS and Ceph, and reads a disk over a link with latency, for the
//! benchmarks to compare.
//!
//! Prints lines `step<TAB>bytes<TAB>seconds`:
//! - `put NAME`: what the store itself takes, as objects of a pack's size by as many at once as a backup uses;
//! - `backup NAME`: all of IMAGE that is not zero, into a new repository there; `stored NAME`: what of it came to the store;
//!   `processor NAME`: the same bytes by the processors' time that Coffer took for them, without the store's;
//! - `link`: objects read through the link by many at once: what it gives at best;
//! - `mount`, `nbd`: a disk of noise read from its beginning to its end through that door, over the link.
//!
//! Not here: what is good enough; bench.py prints the ratios. What holds: stores start for this alone and end with it; the link is
//! [`coffer_tests::proxy`] before SeaweedFS; nothing is cached when a step begins.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "printing is what this program is for; it speaks by failing"
)]

use anyhow::{Context, Result, ensure};
use coffer_repo::backend::{Backend, Put};
use coffer_tests::coffer::Coffer;
use coffer_tests::dice::Dice;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::run;
use coffer_tests::proxy::{Link, Proxy};
use coffer_tests::service::ceph::Ceph;
use coffer_tests::service::seaweedfs::SeaweedFs;
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Like a gigabit line to another continent's edge.
const LINK: Link = Link { latency: Duration::from_millis(50), rate: Some(125_000_000) };
/// Of the disk that is read over it.
const DISK: u64 = 384 * MIB;
/// Of an object that a store is measured with.
const OBJECT: u64 = 32 * MIB;
const OBJECTS: u64 = 16;
const AT_ONCE: usize = 4;
const SEED: u64 = 20_605;

fn print(step: &str, bytes: u64, took: Duration) {
    println!("{step}\t{bytes}\t{}", took.as_secs_f64());
}

/// Does `work` with each number below [`OBJECTS`], some at once.
fn share(at_once: usize, work: &(dyn Fn(u64) + Sync)) {
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= OBJECTS {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

fn name(number: u64) -> String {
    format!("packs/00/{number}")
}

/// Fills a store with objects.
fn put(step: &str, store: &dyn Backend) {
    let mut noise = vec![0; usize::try_from(OBJECT).unwrap()];
    Dice::new(SEED).noise(&mut noise);
    let began = Instant::now();
    share(AT_ONCE, &|number| assert_eq!(store.put(&name(number), &[&noise]).unwrap(), Put::Created));
    print(step, OBJECT * OBJECTS, began.elapsed());
}

fn back_up(place: &str, coffer: &Coffer, image: &str) {
    let (began, before) = (Instant::now(), processor());
    let done = coffer.json(&["backup", "-w", "machine", &format!("disk={image}")]);
    let (took, worked) = (began.elapsed(), processor() - before);
    let bytes = |key: &str| done[key].as_u64().unwrap();
    print(&format!("backup {place}"), bytes("new_bytes"), took);
    print(&format!("stored {place}"), bytes("stored_bytes"), took);
    print(&format!("processor {place}"), bytes("new_bytes"), worked);
}

/// Time of processors that programs took which ended; stores go on.
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // After the name, which may have spaces: user and system time of children that were waited for, in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[13..15].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

fn main() -> Result<()> {
    let image = std::env::args().nth(1).context("usage: coffer-stores IMAGE")?;
    let image = std::fs::canonicalize(image)?.to_str().context("a name that is not UTF-8")?.to_owned();
    // Into the page cache, so that no backup pays for being first.
    std::io::copy(&mut File::open(&image)?, &mut std::io::sink())?;

    back_up("folder", &Coffer::new(), &image);
    let (seaweed, ceph) = (SeaweedFs::shared(), Ceph::shared());
    for (store, raw, place) in [
        ("seaweedfs", seaweed.bucket("raw"), seaweed.bucket("backup")),
        ("ceph", ceph.bucket("raw"), ceph.bucket("backup")),
    ] {
        put(&format!("put {store}"), &*raw.open());
        back_up(store, &Coffer::new_in(place), &image);
    }

    let proxy = Proxy::start(seaweed.port(), LINK);
    let distant = seaweed.bucket("raw-2").through(proxy.port());
    put("put over the link", &*distant.open());
    let store = distant.open();
    let began = Instant::now();
    share(8, &|number| drop(store.get(&name(number)).unwrap()));
    print("link", OBJECT * OBJECTS, began.elapsed());

    let place = seaweed.bucket("distant");
    let coffer = Coffer::new_in(place.clone());
    image::make(&coffer.path("disk.raw"), DISK, &[0..DISK], SEED);
    coffer.run(&["backup", "-w", "machine", "disk=disk.raw"]);
    let coffer = coffer.at(place.through(proxy.port()));
    std::fs::create_dir(coffer.path("mnt"))?;
    let mount = coffer.start(&["mount", "mnt"], "mounted at");
    let mut file = File::open(coffer.path("mnt/machine/latest/disk.raw"))?;
    let mut piece = vec![0; 1 << 20];
    let (began, mut read) = (Instant::now(), 0);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            more => read += more as u64,
        }
    }
    print("mount", read, began.elapsed());
    drop(file);
    ensure!(mount.terminate().status.success(), "the mount failed");

    std::fs::remove_dir_all(coffer.path("cache"))?;
    let server = coffer.start(&["serve", "nbd", "--listen", "unix:nbd.sock", "disk=machine@latest"], "listening on");
    let began = Instant::now();
    run(coffer.outside("nbdcopy").args(["--request-size=1048576", "nbd+unix:///disk?socket=nbd.sock", "copy.raw"]));
    print("nbd", DISK, began.elapsed());
    coffer.assert_same("disk.raw", "copy.raw");
    ensure!(server.terminate().status.success(), "the server failed");
    Ok(())
}
