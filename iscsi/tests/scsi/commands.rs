//! Commands by what they are for.

use super::bench::{disk, exec, fails, good, long, read, write};
use coffer_iscsi::scsi::{Code, Key, Outcome, Specifics};

#[test]
fn a_disk_says_what_it_is() {
    let (_device, nexus) = disk(2048);
    let standard = good(&nexus, &[0x12, 0, 0, 0, 255, 0], &[]);
    assert_eq!((standard.len(), standard[4]), (96, 91));
    assert_eq!(&standard[8..32], b"COFFER  DISK            ");
    assert_eq!(good(&nexus, &[0x12, 0, 0, 0, 5, 0], &[]), standard[..5]);
    let pages = good(&nexus, &[0x12, 1, 0, 0, 255, 0], &[]);
    assert_eq!(pages[4..], [0x00, 0x80, 0x83, 0x85, 0x86, 0x87, 0x88, 0x8f, 0xb0, 0xb1, 0xb2]);
    for page in &pages[4..] {
        let data = good(&nexus, &[0x12, 1, *page, 4, 0, 0], &[]);
        assert_eq!((data[1], usize::from(u16::from_be_bytes([data[2], data[3]]))), (*page, data.len() - 4));
    }
    assert_eq!(good(&nexus, &[0x12, 1, 0xb0, 0, 255, 0], &[]).len(), 64);
    assert_eq!(good(&nexus, &long(0x9e, 0x10, 0, 255), &[])[..15], {
        let mut expected = [0; 15];
        expected[6..8].copy_from_slice(&[7, 255]);
        expected[10] = 2;
        expected[14] = 0xc0;
        expected
    });
    assert_eq!(good(&nexus, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]), [0, 0, 7, 255, 0, 0, 2, 0]);
    assert_eq!(fails(&nexus, &[0x12, 1, 0x99, 0, 255, 0], &[]), (Key::IllegalRequest, Code::INVALID_FIELD_IN_CDB));
    assert_eq!(good(&nexus, &[0x37, 0, 0x18, 0, 0, 0, 0, 0, 8, 0], &[]), [0, 0x18, 0, 0]);
}

#[test]
fn names_are_equal_on_every_path_and_different_between_disks() {
    let (first, nexus) = disk(2048);
    let other_path = super::bench::join(&first, "iqn.other", 2);
    let name = |nexus| good(nexus, &[0x12, 1, 0x83, 1, 0, 0], &[])[4..16].to_vec();
    let serial = |nexus| good(nexus, &[0x12, 1, 0x80, 1, 0, 0], &[]);
    assert_eq!((name(&nexus), serial(&nexus)), (name(&other_path), serial(&other_path)));
    let (_again, again) = disk(4096);
    assert_eq!(name(&nexus), name(&again), "it is what it is said to be, not what it holds");
    super::bench::add(&first, 1, std::sync::Arc::new(coffer_gateway::MemoryDevice::new(4096)));
    let lun = [0, 1, 0, 0, 0, 0, 0, 0];
    let (_, other) = super::bench::exec_at(&nexus, lun, &[0x12, 1, 0x83, 1, 0, 0], &[]);
    assert_ne!(name(&nexus), other[4..16]);
}

#[test]
fn short_cdbs_read_and_write_too() {
    let (_device, nexus) = disk(2048);
    let block = |byte: u8| [byte; 512];
    good(&nexus, &[0x0a, 0, 0, 3, 1, 0], &block(1));
    good(&nexus, &[0x2a, 0x18, 0, 0, 0, 4, 0, 0, 1, 0], &block(2));
    good(&nexus, &[0xaa, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0], &block(3));
    let expected = [block(1), block(2), block(3)].concat();
    assert_eq!(good(&nexus, &read(3, 3), &[]), expected);
    assert_eq!(good(&nexus, &[0x08, 0, 0, 3, 3, 0], &[]), expected);
    assert_eq!(good(&nexus, &[0x28, 0x18, 0, 0, 0, 3, 0, 0, 3, 0], &[]), expected);
    assert_eq!(good(&nexus, &[0xa8, 0, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0], &[]), expected);
    assert_eq!(good(&nexus, &[0x08, 0, 0, 0, 0, 0], &[]).len(), 256 * 512);
    // Every block is compared with one.
    good(&nexus, &long(0x8f, 6, 4, 1), &block(2));
    assert_eq!(fails(&nexus, &long(0x8f, 6, 4, 2), &block(2)).0, Key::Miscompare);
    // Nothing to compare with: what is sent is ignored.
    good(&nexus, &long(0x8f, 0, 4, 2), &block(9));
}

#[test]
fn stopped_units_wait_for_a_start() {
    let (_device, nexus) = disk(2048);
    good(&nexus, &[0x1b, 0, 0, 0, 0, 0], &[]);
    assert_eq!(fails(&nexus, &read(0, 1), &[]), (Key::NotReady, Code::NOT_READY_START_NEEDED));
    assert_eq!(good(&nexus, &[3, 0, 0, 0, 18, 0], &[])[12..14], [4, 2]);
    good(&nexus, &[0x1b, 0, 0, 0, 1, 0], &[]);
    good(&nexus, &read(0, 1), &[]);
    let eject = exec(&nexus, &[0x1b, 1, 0, 0, 2, 0], &[]).0.sense.unwrap();
    assert_eq!(eject.specifics, Some(Specifics::Field { in_cdb: true, byte: 4, bit: Some(1) }));
}

#[test]
fn a_copy_says_what_became_of_it() {
    let (_device, nexus) = disk(2048);
    good(&nexus, &write(0, 4), &[5; 2048]);
    let naa = good(&nexus, &[0x12, 1, 0x83, 1, 0, 0], &[])[8..16].to_vec();
    let list = |id: u8, usage: u8, to: u16, lba: u64| {
        let mut list = vec![id, usage << 3, 0, 32, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0, 0xe4, 0, 0, 0, 1, 3, 0, 8];
        list.extend(&naa);
        list.resize(48, 0);
        list.extend([2, 0, 0, 24, 0, 0]);
        list.extend(to.to_be_bytes());
        list.extend([0, 0, 0, 4]);
        list.extend(0u64.to_be_bytes());
        list.extend(lba.to_be_bytes());
        list
    };
    let copy = |list: &[u8]| exec(&nexus, &long(0x83, 0, 0, list.len() as u32), list).0;
    let status = |action: u8, id: u8| exec(&nexus, &[0x84, action, id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0], &[]);
    let bad_field = Code::INVALID_FIELD_IN_CDB;
    assert_eq!(status(0, 1).0.sense.unwrap().code, bad_field);
    assert_eq!(copy(&list(1, 0, 0, 100)), Outcome::GOOD);
    assert_eq!(status(0, 1).1, [0, 0, 0, 8, 1, 0, 1, 0, 0, 0, 8, 0]);
    assert_eq!(status(4, 1).0.sense.unwrap().code, bad_field, "nothing failed");
    assert_eq!(good(&nexus, &read(100, 4), &[]), [5; 2048]);
    assert_eq!(copy(&list(2, 2, 0, 200)), Outcome::GOOD);
    assert_eq!(status(0, 2).0.sense.unwrap().code, bad_field, "it was not to be remembered");
    // What fails is a copy that was aborted.
    for (to, lba) in [(1, 0), (0, 2047)] {
        assert_eq!(copy(&list(3, 0, to, lba)).sense.unwrap().key, Key::CopyAborted);
    }
    assert_eq!(status(0, 3).1[4], 2);
    assert_eq!(status(4, 3).1[56], 2);
    assert_eq!(status(4, 3).0.sense.unwrap().code, bad_field, "told once");
    let mut nobody = list(4, 0, 0, 0);
    nobody[24] ^= 1;
    assert_eq!(copy(&nobody).sense.unwrap().code, Code::COPY_TARGET_UNREACHABLE);
    let mut foreign = list(4, 0, 0, 0);
    foreign[16] = 0xe0;
    assert_eq!(copy(&foreign).sense.unwrap().code, Code::UNSUPPORTED_COPY_TARGET);
    let mut stream = list(4, 0, 0, 0);
    stream[48] = 3;
    assert_eq!(copy(&stream).sense.unwrap().code, Code::UNSUPPORTED_COPY_SEGMENT);
    for len in 1..76 {
        assert_eq!(copy(&list(4, 0, 0, 0)[..len]).sense.unwrap().code, Code::PARAMETER_LIST_LENGTH_ERROR, "{len}");
    }
    assert_eq!(copy(&[]), Outcome::GOOD);
    let parameters = status(3, 0).1;
    assert_eq!(parameters[8..12], [0, 16, 0, 64]);
    assert_eq!(parameters[43..], [2, 0x02, 0xe4]);
}
