//! Sanitizing, beyond that a disk is overwritten and erased: by its key, and at the pace that its export's limits allow.

use super::bench::{add, device, disk, exec, fails, good, join, read, sense, settle, write};
use coffer_gateway::{BlockDevice, Durability, Error, Export, Extent, Limits, MemoryDevice, Result, Zeroing};
use coffer_iscsi::scsi::{Code, Device, Function, Key, LunOptions, Nexus, Outcome, Specifics};
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const TUR: [u8; 6] = [0; 6];
const BY_KEY: [u8; 10] = [0x48, 0x03, 0, 0, 0, 0, 0, 0, 0, 0];
const PATIENCE: Duration = Duration::from_secs(300);

/// A disk whose key can be thrown away, or cannot just now.
struct Keyed {
    below: MemoryDevice,
    keys: AtomicUsize,
    is_stuck: AtomicBool,
}

impl Keyed {
    fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Keyed { below: MemoryDevice::new(bytes), keys: AtomicUsize::new(1), is_stuck: AtomicBool::new(false) })
    }
}

impl BlockDevice for Keyed {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn block_size(&self) -> u32 {
        self.below.block_size()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.below.read_at(offset, out)
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        self.below.try_read_at(offset, out)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        self.below.extents(range, max)
    }

    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        self.below.write_at(offset, bytes, durability)
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.below.zero(range, how)
    }

    fn erases_by_key(&self) -> bool {
        true
    }

    fn erase_by_key(&self) -> Result<()> {
        if self.is_stuck.load(Ordering::Relaxed) {
            return Err(Error::new(coffer_gateway::Kind::Locked, "it is being committed"));
        }
        self.keys.fetch_add(1, Ordering::Relaxed);
        let how = Zeroing { may_unmap: true, fast_only: false, durability: Durability::Cached };
        self.below.zero(0..self.size(), how)
    }
}

/// Byte 7 of the block device characteristics: WABEREQ, WACEREQ.
fn after_erasing(nexus: &Arc<Nexus>) -> u8 {
    good(nexus, &[0x12, 1, 0xb1, 0, 64, 0], &[])[7]
}

/// Whether REPORT SUPPORTED OPERATION CODES has the cryptographic erase.
fn is_supported(nexus: &Arc<Nexus>) -> bool {
    good(nexus, &[0xa3, 0x0c, 2, 0x48, 0, 3, 0, 0, 0, 64, 0, 0], &[])[1] == 3
}

#[test]
fn a_disk_with_a_key_is_erased_by_throwing_it_away() {
    let device = device(None);
    let keyed = Keyed::new(64 << 10);
    add(&device, 0, Arc::clone(&keyed) as _);
    let nexus = join(&device, "iqn.a", 1);
    assert!(is_supported(&nexus) && after_erasing(&nexus) == 0x50);
    good(&nexus, &write(0, 128), &[7; 64 << 10]);
    good(&nexus, &BY_KEY, &[]);
    assert_eq!(keyed.keys.load(Ordering::Relaxed), 2);
    assert_eq!(good(&nexus, &read(0, 128), &[]), vec![0; 64 << 10]);
    // No parameters, and nothing that is reserved.
    let invalid = (Key::IllegalRequest, Code::INVALID_FIELD_IN_CDB);
    assert_eq!(fails(&nexus, &[0x48, 0x03, 0, 0, 0, 0, 0, 0, 8, 0], &[0; 8]), invalid);
    assert_eq!(fails(&nexus, &[0x48, 0x43, 0, 0, 0, 0, 0, 0, 0, 0], &[]), invalid);

    // One that fails keeps the disk from being used, until it goes well or the failure is left where that was allowed.
    good(&nexus, &write(0, 1), &[8; 512]);
    keyed.is_stuck.store(true, Ordering::Relaxed);
    assert_eq!(fails(&nexus, &BY_KEY, &[]), (Key::MediumError, Code::SANITIZE_FAILED));
    assert_eq!(fails(&nexus, &read(0, 1), &[]), (Key::MediumError, Code::SANITIZE_FAILED));
    assert_eq!(fails(&nexus, &[0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0], &[]), invalid);
    let mut may_exit = BY_KEY;
    may_exit[1] |= 0x20;
    assert_eq!(fails(&nexus, &may_exit, &[]), invalid, "it began without that");
    keyed.is_stuck.store(false, Ordering::Relaxed);
    good(&nexus, &BY_KEY, &[]);
    good(&nexus, &write(0, 1), &[8; 512]);
    keyed.is_stuck.store(true, Ordering::Relaxed);
    assert_eq!(fails(&nexus, &may_exit, &[]), (Key::MediumError, Code::SANITIZE_FAILED));
    good(&nexus, &[0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert_eq!(good(&nexus, &read(0, 1), &[]), [8; 512], "nothing was erased");
    assert_eq!(keyed.keys.load(Ordering::Relaxed), 3);
    keyed.is_stuck.store(false, Ordering::Relaxed);
    let mut at_once = BY_KEY;
    at_once[1] |= 0x80;
    good(&nexus, &at_once, &[]);
    until_ready(&nexus);
    assert_eq!(good(&nexus, &read(0, 1), &[]), [0; 512]);
}

#[test]
fn a_disk_without_a_key_does_not_claim_one() {
    let (_device, nexus) = disk(128);
    assert!(!is_supported(&nexus) && after_erasing(&nexus) == 0x40);
    let refused = sense(&nexus, &BY_KEY, &[]);
    assert_eq!(refused, coffer_iscsi::scsi::Sense::field(1, Some(4)));
}

fn until_ready(nexus: &Arc<Nexus>) {
    let end = Instant::now() + PATIENCE;
    while exec(nexus, &TUR, &[]).0 != Outcome::GOOD {
        assert!(Instant::now() < end, "not ready");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A disk of 8 MiB that is written at most so fast, and a nexus to it.
fn limited(bytes_a_second: u64) -> (Arc<Device>, Arc<Nexus>) {
    let device = device(None);
    let below = Arc::new(MemoryDevice::new(8 << 20));
    let limits = Limits { operations: None, bytes: NonZeroU64::new(bytes_a_second) };
    let export = Arc::new(Export { limits, ..Export::new("slow", below) });
    let options = LunOptions { export, block_size: None, physical_block_size: None, identity: "slow".to_owned() };
    device.add_lun(0, options).unwrap();
    let nexus = join(&device, "iqn.a", 1);
    (device, nexus)
}

#[test]
fn overwriting_keeps_to_the_limits_and_outlives_resets() {
    let (_device, nexus) = limited(2 << 20);
    let started = Instant::now();
    good(&nexus, &[0x48, 0x81, 0, 0, 0, 0, 0, 0, 5, 0], &[1, 0, 0, 1, 0x33]);
    nexus.manage([0; 8], Function::LunReset);
    nexus.manage([0; 8], Function::TargetWarmReset);
    settle(&nexus);
    // If it is over by now, then by more time than 8 MiB take.
    let running = exec(&nexus, &TUR, &[]).0;
    match running.sense {
        Some(sense) => {
            assert_eq!((sense.key, sense.code), (Key::NotReady, Code::SANITIZE_IN_PROGRESS));
            assert!(matches!(sense.specifics, Some(Specifics::Progress(_))));
        }
        None => assert!(started.elapsed() > Duration::from_secs(3)),
    }
    until_ready(&nexus);
    assert!(started.elapsed() > Duration::from_secs(3), "8 MiB at 2 MiB/s");
    assert_eq!(good(&nexus, &read(16_383, 1), &[]), [0x33; 512]);
}

#[test]
fn a_lun_that_is_taken_away_is_not_overwritten_to_the_end() {
    let (device, nexus) = limited(1 << 10);
    good(&nexus, &[0x48, 0x81, 0, 0, 0, 0, 0, 0, 5, 0], &[1, 0, 0, 1, 0x33]);
    let export = device.remove_lun(0).unwrap();
    drop((device, nexus));
    // The thread lets go of it long before the hours are over that this would take.
    let end = Instant::now() + PATIENCE;
    while Arc::strong_count(&export) > 1 {
        assert!(Instant::now() < end, "it is overwritten still");
        std::thread::sleep(Duration::from_millis(5));
    }
}
