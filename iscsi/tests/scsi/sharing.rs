//! Several nexuses and LUNs: attentions, reservations, masks, resets, groups of ports, sanitizing.

use super::bench::{
    add, attention, device, disk, exec, exec_at, fails, good, join, persist, persisted, read, settle, write,
};
use coffer_gateway::MemoryDevice;
use coffer_iscsi::scsi::{
    AccessState, Code, Device, Fate, Function, Key, LunMask, ManagementOutcome, Nexus, Outcome, Status,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

const TUR: [u8; 6] = [0; 6];

fn shared() -> (Arc<Device>, [Arc<Nexus>; 3]) {
    let device = device(None);
    add(&device, 0, Arc::new(MemoryDevice::new(64 << 10)));
    let nexuses = [join(&device, "iqn.a", 1), join(&device, "iqn.b", 1), join(&device, "iqn.c", 2)];
    (device, nexuses)
}

#[test]
fn luns_come_and_go_and_everybody_is_told() {
    let device = device(None);
    add(&device, 0, Arc::new(MemoryDevice::new(64 << 10)));
    let nexus = device.join("iqn.a", [1; 6], 1, LunMask::All);
    assert_eq!(attention(&nexus), Some(Code::POWER_ON));
    assert_eq!(attention(&nexus), None);
    // Who comes back has been told, by whichever session.
    device.leave(&nexus);
    let nexus = device.join("iqn.a", [2; 6], 1, LunMask::All);
    assert_eq!(attention(&nexus), None);
    let blind = device.join("iqn.b", [1; 6], 1, LunMask::Only(BTreeSet::from([0])));
    settle(&blind);
    add(&device, 300, Arc::new(MemoryDevice::new(64 << 10)));
    let list = |nexus| good(nexus, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[])[3];
    assert_eq!(attention(&nexus), Some(Code::REPORTED_LUNS_CHANGED));
    assert_eq!((attention(&blind), list(&blind), list(&nexus)), (None, 8, 16));
    let far = [0x41, 0x2c, 0, 0, 0, 0, 0, 0];
    assert_eq!(exec_at(&blind, far, &TUR, &[]).0.sense.unwrap().code, Code::LUN_NOT_SUPPORTED);
    assert_eq!(exec_at(&nexus, far, &read(0, 1), &[]).1.len(), 512);
    // A task that is under way keeps what it has.
    let task = nexus.prepare(far, &read(0, 1)).unwrap();
    device.remove_lun(300).unwrap();
    assert_eq!(task.run(&[], &mut Vec::new(), &AtomicBool::new(false)), Outcome::GOOD);
    assert_eq!(exec_at(&nexus, far, &TUR, &[]).0.sense.unwrap().code, Code::LUN_NOT_SUPPORTED);
    // Who lists them needs not be told.
    assert_eq!((list(&nexus), attention(&nexus)), (8, None));
}

#[test]
fn modes_are_everybodys_and_a_reset_takes_them_back() {
    let (_device, [a, b, _]) = shared();
    // SWP and TAS on, as the control page has them.
    let page = [0, 0, 0, 0, 0x0a, 10, 0, 0x10, 8, 0x40, 0, 0, 0xff, 0xff, 0, 0];
    good(&a, &[0x15, 0x10, 0, 0, 16, 0], &page);
    assert_eq!((attention(&a), attention(&b)), (None, Some(Code::MODE_PARAMETERS_CHANGED)));
    assert_eq!(fails(&b, &write(0, 1), &[0; 512]), (Key::DataProtect, Code::SOFTWARE_WRITE_PROTECTED));
    let (mine, others) = (a.prepare([0; 8], &read(0, 1)).unwrap(), b.prepare([0; 8], &read(0, 1)).unwrap());
    assert_eq!(a.manage([0; 8], Function::LunReset), ManagementOutcome::Done);
    assert_eq!(mine.fate(), Fate::Free, "one's own are the transport's affair");
    assert_eq!(others.fate(), Fate::Told(Outcome { status: Status::TaskAborted, sense: None }));
    for nexus in [&a, &b] {
        assert_eq!((attention(nexus), attention(nexus)), (Some(Code::BUS_DEVICE_RESET), None));
        good(nexus, &write(0, 1), &[0; 512]);
    }
    assert_eq!(a.manage([0, 5, 0, 0, 0, 0, 0, 0], Function::LunReset), ManagementOutcome::NoLun);
    // Without TAS, others' tasks are dropped and an attention says so.
    let others = b.prepare([0; 8], &read(0, 1)).unwrap();
    a.manage([0; 8], Function::ClearTaskSet);
    assert_eq!((others.fate(), attention(&b)), (Fate::Silent, Some(Code::COMMANDS_CLEARED_BY_ANOTHER)));
}

#[test]
fn old_reservations_end_with_their_nexus_and_their_unit() {
    let (device, [a, b, c]) = shared();
    let (reserve, release) = ([0x16, 0, 0, 0, 0, 0], [0x17, 0, 0, 0, 0, 0]);
    good(&a, &reserve, &[]);
    good(&a, &reserve, &[]);
    for cdb in [&reserve[..], &TUR, &read(0, 1), &[0x1a, 0, 0x3f, 0, 255, 0], &[0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0]] {
        assert_eq!(exec(&b, cdb, &[]).0, Outcome::CONFLICT, "{cdb:x?}");
    }
    good(&b, &release, &[]);
    good(&b, &[0x12, 0, 0, 0, 36, 0], &[]);
    assert_eq!(exec(&b, &TUR, &[]).0, Outcome::CONFLICT);
    device.leave(&a);
    good(&b, &reserve, &[]);
    c.manage([0; 8], Function::LunReset);
    settle(&c);
    good(&c, &TUR, &[]);
    // Registrations take their place.
    assert_eq!(persist(&c, 6, 0, 0, 7, 0), Outcome::GOOD);
    settle(&b);
    assert_eq!(exec(&b, &reserve, &[]).0, Outcome::CONFLICT);
    assert_eq!(exec(&c, &reserve, &[]).0, Outcome::CONFLICT);
    assert_eq!(persist(&c, 1, 5, 7, 0, 0), Outcome::GOOD);
    good(&c, &reserve, &[]);
    good(&b, &[0x12, 0, 0, 0, 36, 0], &[]);
}

/// Type, and whether a registered and an unregistered nexus other than the holder may read and write.
const TYPES: [(u8, [bool; 4]); 6] = [
    (1, [true, false, true, false]),
    (3, [false, false, false, false]),
    (5, [true, true, true, false]),
    (6, [true, true, false, false]),
    (7, [true, true, true, false]),
    (8, [true, true, false, false]),
];

#[test]
fn each_type_of_reservation_stops_what_it_says() {
    for (kind, allowed) in TYPES {
        let (_device, [holder, registered, stranger]) = shared();
        assert_eq!(persist(&holder, 0, 0, 0, 1, 0), Outcome::GOOD);
        assert_eq!(persist(&registered, 0, 0, 0, 2, 0), Outcome::GOOD);
        assert_eq!(persist(&holder, 1, kind, 1, 0, 0), Outcome::GOOD);
        let may = |nexus: &Arc<Nexus>| {
            let outcomes = [exec(nexus, &read(0, 1), &[]).0, exec(nexus, &write(0, 1), &[0; 512]).0];
            outcomes.map(|outcome| {
                assert!([Outcome::GOOD, Outcome::CONFLICT].contains(&outcome), "{outcome:?}");
                outcome == Outcome::GOOD
            })
        };
        assert_eq!(may(&holder), [true, true], "{kind}");
        assert_eq!([may(&registered), may(&stranger)].concat(), allowed, "{kind}");
        for nexus in [&registered, &stranger] {
            good(nexus, &TUR, &[]);
            good(nexus, &[0x12, 0, 0, 0, 36, 0], &[]);
            good(nexus, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
        }
        // It outlives the nexus, and is told as it is.
        let key = if kind >= 7 { 0 } else { 1 };
        let reservation = persisted(&stranger, 1);
        assert_eq!((reservation[15], reservation[21]), (key, kind));
        assert_eq!(persisted(&stranger, 3)[4..8], (2u32 * (24 + 28)).to_be_bytes(), "{kind}");
    }
}

#[test]
fn preempting_tells_those_who_lost() {
    let (_device, [a, b, c]) = shared();
    for (nexus, key) in [(&a, 1), (&b, 2), (&c, 3)] {
        assert_eq!(persist(nexus, 6, 0, 0, key, 0), Outcome::GOOD);
    }
    assert_eq!(persist(&a, 1, 3, 1, 0, 0), Outcome::GOOD);
    assert_eq!(persist(&b, 1, 3, 2, 0, 0), Outcome::CONFLICT);
    assert_eq!(persist(&b, 4, 5, 2, 9, 0), Outcome::CONFLICT, "nobody has that key");
    let task = a.prepare([0; 8], &read(0, 1)).unwrap();
    assert_eq!(persist(&b, 5, 5, 2, 1, 0), Outcome::GOOD);
    assert_eq!(task.fate(), Fate::Silent);
    assert_eq!((attention(&a), attention(&a)), (Some(Code::REGISTRATIONS_PREEMPTED), None));
    assert_eq!((attention(&b), attention(&c)), (None, Some(Code::RESERVATIONS_RELEASED)));
    assert_eq!(persisted(&a, 1)[15], 2);
    assert_eq!(persist(&a, 2, 5, 1, 0, 0), Outcome::CONFLICT, "it is not registered any more");
    let wrong = persist(&b, 2, 6, 2, 0, 0).sense.unwrap();
    assert_eq!(wrong.code, Code::RELEASE_OF_RESERVATION);
    assert_eq!(persist(&b, 2, 5, 2, 0, 0), Outcome::GOOD);
    assert_eq!((attention(&b), attention(&c)), (None, Some(Code::RESERVATIONS_RELEASED)));
    assert_eq!(persist(&c, 3, 0, 3, 0, 0), Outcome::GOOD);
    assert_eq!(attention(&b), Some(Code::RESERVATIONS_PREEMPTED));
    assert_eq!(persisted(&c, 0)[4..8], [0; 4]);
}

#[test]
fn reservations_last_where_they_are_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let device = device(Some(folder.path()));
        add(&device, 0, Arc::new(MemoryDevice::new(64 << 10)));
        let nexus = join(&device, "iqn.a", 1);
        (device, nexus)
    };
    let (_device, nexus) = open();
    assert_eq!(persisted(&nexus, 2)[2] & 1, 1, "it can");
    assert_eq!(persist(&nexus, 0, 0, 0, 0xabc, 1), Outcome::GOOD);
    assert_eq!(persist(&nexus, 1, 6, 0xabc, 0, 0), Outcome::GOOD);
    let (_device, nexus) = open();
    assert_eq!(persisted(&nexus, 1)[14..16], [0x0a, 0xbc]);
    assert_eq!(persisted(&nexus, 2)[3] & 1, 1);
    good(&nexus, &write(0, 1), &[0; 512]);
    let stranger = join(&_device, "iqn.b", 1);
    assert_eq!(exec(&stranger, &read(0, 1), &[]).0, Outcome::CONFLICT);
    // No longer: a registration without the bit.
    assert_eq!(persist(&nexus, 6, 0, 0, 0xabc, 0), Outcome::GOOD);
    let (_device, nexus) = open();
    assert_eq!(persisted(&nexus, 1)[4..8], [0; 4]);
    // A folder that cannot be written: the order is not done.
    drop(nexus);
    let (_device, nexus) = open();
    std::fs::remove_dir_all(folder.path()).unwrap();
    std::fs::write(folder.path(), "in the way").unwrap();
    assert_eq!(persist(&nexus, 0, 0, 0, 1, 1).sense.unwrap().code, Code::INTERNAL_FAILURE);
    assert_eq!(persisted(&nexus, 0)[4..8], [0; 4]);
    std::fs::remove_file(folder.path()).unwrap();
    // Without a folder it is refused.
    let (_device, nexus) = disk(100);
    assert_eq!(persist(&nexus, 0, 0, 0, 1, 1).sense.unwrap().code, Code::INVALID_FIELD_IN_PARAMETERS);
}

#[test]
fn a_group_of_ports_can_stand_by() {
    let (device, [a, b, c]) = shared();
    let report = |nexus| good(nexus, &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0], &[]);
    assert_eq!(report(&a)[4..8], [0, 0x0f, 0, 1]);
    device.set_group_state(1, AccessState::Standby).unwrap();
    for nexus in [&a, &b, &c] {
        assert_eq!(attention(nexus), Some(Code::ALUA_STATE_CHANGED));
    }
    assert_eq!(fails(&a, &read(0, 1), &[]), (Key::NotReady, Code::ALUA_STANDBY));
    assert_eq!(fails(&a, &TUR, &[]), (Key::NotReady, Code::ALUA_STANDBY));
    good(&c, &read(0, 1), &[]);
    assert_eq!(persist(&a, 6, 0, 0, 1, 0), Outcome::GOOD);
    // By command, too: everybody else is told.
    good(&a, &[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0], &[0, 0, 0, 0, 0, 0, 0, 1, 3, 0, 0, 2]);
    assert_eq!((attention(&a), attention(&b)), (None, Some(Code::ALUA_STATE_CHANGED)));
    settle(&c);
    good(&a, &read(0, 1), &[]);
    assert_eq!(fails(&c, &read(0, 1), &[]), (Key::NotReady, Code::ALUA_UNAVAILABLE));
    assert_eq!(report(&c)[16..24], [3, 0x0f, 0, 2, 0, 1, 0, 1]);
    assert!(device.set_group_state(9, AccessState::Standby).is_err());
}

/// Waits until the unit is ready again.
fn wait_ready(nexus: &Arc<Nexus>) {
    let end = Instant::now() + Duration::from_secs(60);
    while exec(nexus, &TUR, &[]).0 != Outcome::GOOD {
        assert!(Instant::now() < end, "not ready after a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_disk_is_sanitized() {
    let (_device, nexus) = disk(5000);
    good(&nexus, &write(0, 5000), &[7; 5000 * 512]);
    // Erased: zeroes that take no space.
    good(&nexus, &[0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert_eq!(good(&nexus, &read(0, 5000), &[]), vec![0; 5000 * 512]);
    let status = good(&nexus, &super::bench::long(0x9e, 0x12, 0, 256), &[]);
    assert_eq!((status.len(), status[20]), (24, 1));
    // Overwritten, twice, without waiting for it.
    let list = [0x82, 0, 0, 3, 1, 2, 3];
    good(&nexus, &[0x48, 0x81, 0, 0, 0, 0, 0, 0, 7, 0], &list);
    wait_ready(&nexus);
    let found = good(&nexus, &read(4999, 1), &[]);
    assert_eq!(found, [1, 2, 3].into_iter().cycle().take(512).collect::<Vec<u8>>());
    let bad = (Key::IllegalRequest, Code::INVALID_FIELD_IN_CDB);
    for cdb in
        [[0x48, 0x42, 0, 0, 0, 0, 0, 0, 0, 0], [0x48, 2, 0, 0, 1, 0, 0, 0, 0, 0], [0x48, 3, 0, 0, 0, 0, 0, 0, 0, 0]]
    {
        assert_eq!(fails(&nexus, &cdb, &[]), bad);
    }
    assert_eq!(fails(&nexus, &[0x48, 2, 0, 0, 0, 0, 0, 0, 8, 0], &[0; 8]), bad);
    good(&nexus, &[0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
}
