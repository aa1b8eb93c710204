//! Sense for each thing that can go wrong.

use super::bench::{
    add, compare, device, disk, exec, exec_at, fails, good, join, long, ranges, read, sense, unmap, write,
};
use coffer_gateway::{
    BlockDevice, Durability, Error, Export, Extent, Faults, FaultyDevice, Kind, MemoryDevice, Result, Zeroing,
};
use coffer_iscsi::scsi::{Code, Key, LunOptions, Outcome, Sense, Specifics};
use std::ops::Range;
use std::sync::Arc;

/// A disk without space for anything.
struct FullDevice(MemoryDevice);

impl BlockDevice for FullDevice {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn block_size(&self) -> u32 {
        self.0.block_size()
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

    fn write_at(&self, _: u64, _: &[u8], _: Durability) -> Result<()> {
        Err(Error::new(Kind::Full, "no space"))
    }

    fn zero(&self, _: Range<u64>, _: Zeroing) -> Result<()> {
        Err(Error::new(Kind::Full, "no space"))
    }

    fn compare_and_write(&self, _: u64, _: &[u8], _: &[u8]) -> Result<Option<usize>> {
        Err(Error::new(Kind::Full, "no space"))
    }
}

#[test]
fn blocks_that_are_not_there() {
    let (_device, nexus) = disk(100);
    let out_of_range = |lba| Sense::illegal(Code::LBA_OUT_OF_RANGE).at(lba);
    for cdb in [read(99, 2), write(99, 2), long(0x8f, 0, 99, 2), long(0x93, 0, 99, 2), long(0x90, 0, 99, 2)] {
        assert_eq!(sense(&nexus, &cdb, &[0; 1024]), out_of_range(100), "{cdb:x?}");
    }
    assert_eq!(sense(&nexus, &compare(99, 2), &[0; 2048]), out_of_range(100));
    assert_eq!(sense(&nexus, &long(0x9e, 0x12, 100, 24), &[]), out_of_range(100));
    assert_eq!(sense(&nexus, &read(u64::MAX, 1), &[]), out_of_range(u64::MAX));
    assert_eq!(sense(&nexus, &read(101, 0), &[]), out_of_range(101));
    assert!(good(&nexus, &read(100, 0), &[]).is_empty());
    let list = ranges(&[(0, 10), (99, 2)]);
    good(&nexus, &write(0, 1), &[7; 512]);
    assert_eq!(sense(&nexus, &unmap(&list), &list), out_of_range(100));
    assert_eq!(good(&nexus, &read(0, 1), &[]), [7; 512], "nothing of a refused list is done");
}

#[test]
fn a_disk_that_is_not_to_be_written() {
    let device = device(None);
    add(&device, 0, Arc::new(MemoryDevice::new(64 << 10).into_read_only()));
    let nexus = join(&device, "iqn.a", 1);
    let list = ranges(&[(0, 1)]);
    let block = [0; 512];
    for (cdb, data) in [
        (write(0, 1), &block[..]),
        (vec![0x0a, 0, 0, 0, 1, 0], &block),
        (vec![0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &block),
        (vec![0xaa, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], &block),
        (long(0x8e, 2, 0, 1), &block),
        (long(0x8b, 0, 0, 1), &block),
        (long(0x93, 8, 0, 1), &block),
        (vec![0x41, 8, 0, 0, 0, 0, 0, 0, 1, 0], &block),
        (unmap(&list), &list),
        (compare(0, 1), &[0; 1024]),
        (vec![0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0], &[]),
    ] {
        assert_eq!(fails(&nexus, &cdb, data), (Key::DataProtect, Code::WRITE_PROTECTED), "{cdb:x?}");
    }
    assert_eq!(good(&nexus, &read(0, 1), &[]).len(), 512);
    good(&nexus, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert_eq!(good(&nexus, &[0x1a, 0, 0x3f, 0, 255, 0], &[])[2], 0x90);
    assert_eq!(good(&nexus, &long(0x9e, 0x10, 0, 32), &[])[14], 0, "nothing can be unmapped");
}

#[test]
fn a_full_disk_and_a_damaged_one() {
    let device = device(None);
    add(&device, 0, Arc::new(FullDevice(MemoryDevice::new(64 << 10))));
    let nexus = join(&device, "iqn.a", 1);
    let full = (Key::DataProtect, Code::SPACE_ALLOCATION_FAILED);
    assert_eq!(fails(&nexus, &write(3, 1), &[0; 512]), full);
    assert_eq!(fails(&nexus, &compare(3, 1), &[0; 1024]), full);
    assert_eq!(fails(&nexus, &long(0x93, 0, 0, 1), &[0; 512]), full);

    let reported = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = Arc::clone(&reported);
    let device = coffer_iscsi::scsi::Device::new(coffer_iscsi::scsi::DeviceOptions {
        iqn: "iqn.t".to_owned(),
        ports: vec![coffer_iscsi::scsi::PortOptions { relative: 1, group: 1 }],
        state: None,
        report: Some(Arc::new(move |e: &Error| told.lock().unwrap().push(e.context().to_owned()))),
    });
    let device = Arc::new(device.unwrap());
    let faults = Faults { unreadable: vec![5 * 512..6 * 512], ..Faults::default() };
    add(&device, 0, Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::new(64 << 10)), faults)));
    let nexus = join(&device, "iqn.a", 1);
    for cdb in [read(0, 100), long(0x8f, 0, 4, 3), read(5, 1)] {
        let sense = sense(&nexus, &cdb, &[]);
        assert_eq!(sense, Sense::new(Key::MediumError, Code::UNRECOVERED_READ_ERROR).at(5), "{cdb:x?}");
    }
    assert!(reported.lock().unwrap()[0].contains("export 'e0': a read at block 5"), "{:?}", reported.lock().unwrap());
    assert_eq!(good(&nexus, &read(6, 10), &[]).len(), 5120);
}

#[test]
fn lengths_that_do_not_fit() {
    let (_device, nexus) = disk(100);
    let bad_field = (Key::IllegalRequest, Code::INVALID_FIELD_IN_CDB);
    // 32 MiB at once, 255 blocks to compare, 128 KiB that are atomic.
    let large = super::bench::disk(1 << 20).1;
    assert_eq!(fails(&large, &read(0, 65_537), &[]), bad_field);
    assert_eq!(good(&large, &read(0, 65_536), &[]).len(), 32 << 20);
    let atomic = |count: u16| {
        let [high, low] = count.to_be_bytes();
        [&[0x9c, 0][..], &[0; 10], &[high, low, 0, 0]].concat()
    };
    assert_eq!(fails(&large, &atomic(257), &[0; 257 * 512]), bad_field);
    good(&large, &atomic(256), &[1; 256 * 512]);
    // Data that are not what the CDB says.
    assert_eq!(fails(&nexus, &compare(0, 1), &[0; 2048]), bad_field);
    assert_eq!(fails(&nexus, &compare(0, 3), &[0; 2048]), bad_field);
    for len in [256, 1024] {
        assert_eq!(fails(&nexus, &long(0x93, 0, 0, 1), &vec![0; len]), bad_field);
        assert_eq!(fails(&nexus, &[0x41, 8, 0, 0, 0, 0, 0, 0, 1, 0], &vec![0; len]), bad_field);
    }
    good(&nexus, &write(0, 2), &[7; 1024]);
    good(&nexus, &long(0x93, 8, 0, 1), &[]);
    assert_eq!(good(&nexus, &read(0, 2), &[]), [[0; 512], [7; 512]].concat());
    // WRITE takes whole blocks.
    good(&nexus, &write(0, 2), &[9; 700]);
    assert_eq!(good(&nexus, &read(0, 2), &[]), [[9; 512], [7; 512]].concat());
    let too_short = (Key::IllegalRequest, Code::PARAMETER_LIST_LENGTH_ERROR);
    assert_eq!(fails(&nexus, &unmap(&[0; 7]), &[0; 7]), too_short);
    assert_eq!(fails(&nexus, &unmap(&[0; 24]), &[0; 20]), too_short);
}

#[test]
fn sense_tells_where_it_hurts_in_both_formats() {
    let (_device, nexus) = disk(100);
    let wrong = sense(&nexus, &[0x12, 0, 1, 0, 255, 0], &[]);
    assert_eq!(wrong.specifics, Some(Specifics::Field { in_cdb: true, byte: 2, bit: None }));
    let bytes = wrong.encode();
    assert_eq!(bytes, [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xc0, 0, 2]);
    let bytes = sense(&nexus, &read(99, 2), &[]).encode();
    assert_eq!(bytes[..8], [0xf0, 0, 5, 0, 0, 0, 100, 10]);
    // An LBA that does not fit is left out.
    assert_eq!(sense(&nexus, &read(1 << 40, 2), &[]).encode()[0], 0x70);
    // D_SENSE on.
    let page = [0, 0, 0, 0, 0x0a, 10, 4, 0x10, 0, 0, 0, 0, 0xff, 0xff, 0, 0];
    good(&nexus, &[0x15, 0x10, 0, 0, 16, 0], &page);
    let bytes = sense(&nexus, &read(1 << 40, 2), &[]).encode();
    assert_eq!(bytes[..8], [0x72, 5, 0x21, 0, 0, 0, 0, 12]);
    assert_eq!(bytes[8..], [0, 10, 0x80, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    // REQUEST SENSE asks for its format.
    assert_eq!(good(&nexus, &[3, 1, 0, 0, 255, 0], &[])[..4], [0x72, 0, 0, 0]);
    assert_eq!(good(&nexus, &[3, 0, 0, 0, 255, 0], &[])[0], 0x70);
}

#[test]
fn a_lun_that_is_not_there_says_so() {
    let (_device, nexus) = disk(100);
    let lun = [0, 9, 0, 0, 0, 0, 0, 0];
    let absent = Outcome::check(Sense::illegal(Code::LUN_NOT_SUPPORTED));
    assert_eq!(exec_at(&nexus, lun, &[0; 6], &[]).0, absent);
    assert_eq!(exec_at(&nexus, lun, &read(0, 1), &[]).0, absent);
    let (outcome, reply) = exec_at(&nexus, lun, &[0x12, 0, 0, 0, 255, 0], &[]);
    assert_eq!((outcome, reply[0]), (Outcome::GOOD, 0x7f));
    let (outcome, reply) = exec_at(&nexus, lun, &[3, 0, 0, 0, 255, 0], &[]);
    assert_eq!((outcome, reply[12]), (Outcome::GOOD, 0x25));
    let (outcome, reply) = exec_at(&nexus, lun, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[]);
    assert_eq!((outcome, &reply[..4]), (Outcome::GOOD, &[0, 0, 0, 8][..]));
}

#[test]
fn what_cannot_be_a_lun_is_refused_by_name() {
    let device = device(None);
    let options = |size: u64, identity: &str, block_size| LunOptions {
        export: Arc::new(Export::new("web", Arc::new(MemoryDevice::new(size)))),
        block_size,
        physical_block_size: None,
        identity: identity.to_owned(),
    };
    device.add_lun(0, options(8192, "a", None)).unwrap();
    for (number, options, kind) in [
        (0, options(8192, "b", None), Kind::Locked),
        (1, options(8192, "a", None), Kind::Locked),
        (1, options(100, "b", None), Kind::Invalid),
        (1, options(8192, "b", Some(520)), Kind::Invalid),
        (1, LunOptions { physical_block_size: Some(8192), ..options(8192, "b", None) }, Kind::Invalid),
        (0x4000, options(8192, "b", None), Kind::Invalid),
    ] {
        assert_eq!(device.add_lun(number, options).unwrap_err().kind(), kind);
    }
    assert_eq!(device.remove_lun(7).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(device.remove_lun(0).unwrap().name, "web");
    // A cache that is turned off makes every write durable: seen by its flag alone here.
    device.add_lun(0, options(8192, "a", Some(4096))).unwrap();
    let nexus = join(&device, "iqn.a", 1);
    assert_eq!(good(&nexus, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]), [0, 0, 0, 1, 0, 0, 16, 0]);
    assert_eq!(exec(&nexus, &read(0, 2), &[]).1.len(), 8192);
}
