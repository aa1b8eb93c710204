//! What outlives a restart: a device is made again on the same folder.

use super::bench::{add, attention, device, exec, fails, good, join, persist, persisted, read, settle, write};
use coffer_gateway::{Kind, MemoryDevice};
use coffer_iscsi::scsi::{AccessState, Code, Device, DeviceOptions, Key, LunOptions, Nexus, Outcome, PortOptions};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

const TUR: [u8; 6] = [0; 6];
/// Sense for whatever is refused because reservations were lost.
const LOST: (Key, Code) = (Key::HardwareError, Code::RESERVATION_INFORMATION_LOST);

/// A device that began just now, with its one disk.
fn started(state: &TempDir) -> (Arc<Device>, Arc<Nexus>, Arc<Nexus>) {
    let device = device(Some(state.path()));
    add(&device, 0, Arc::new(MemoryDevice::new(64 << 10)));
    let (a, b) = (join(&device, "iqn.a", 1), join(&device, "iqn.b", 1));
    (device, a, b)
}

/// The file whose name begins so.
fn file(state: &TempDir, start: &str) -> Option<PathBuf> {
    let mut files = fs::read_dir(state.path()).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(start))
}

fn spoil(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[30] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// MODE SENSE (6) of the control page without descriptors: its bytes from the page's begin on.
fn control(nexus: &Arc<Nexus>, which: u8) -> Vec<u8> {
    good(nexus, &[0x1a, 0x08, which << 6 | 0x0a, 0, 255, 0], &[])[4..].to_vec()
}

/// MODE SELECT (6) of the control page: SWP as it is said.
fn select(nexus: &Arc<Nexus>, save: u8, swp: bool) -> Outcome {
    let page = [0, 0, 0, 0, 0x0a, 10, 0, 0x10, u8::from(swp) << 3, 0, 0, 0, 0xff, 0xff, 0, 0];
    exec(nexus, &[0x15, 0x10 | save, 0, 0, 16, 0], &page).0
}

#[test]
fn lost_reservations_are_replaced_before_anything_else_is_done() {
    let state = tempfile::tempdir().unwrap();
    {
        let (_device, a, _) = started(&state);
        assert_eq!(persist(&a, 0, 0, 0, 7, 1), Outcome::GOOD);
        assert_eq!(persist(&a, 1, 3, 7, 0, 0), Outcome::GOOD);
        // Nothing is lost, so nothing is replaced.
        let refused = persist(&a, 8, 3, 0, 9, 0).sense.unwrap();
        assert_eq!((refused.key, refused.code), (Key::IllegalRequest, Code::INVALID_FIELD_IN_CDB));
    }
    {
        // As it was.
        let (_device, a, b) = started(&state);
        good(&a, &write(0, 1), &[1; 512]);
        assert_eq!(exec(&b, &read(0, 1), &[]).0, Outcome::CONFLICT);
    }
    let kept = file(&state, "reservations-").unwrap();
    spoil(&kept);
    {
        let (device, a, b) = started(&state);
        for nexus in [&a, &b] {
            for cdb in [&TUR[..], &read(0, 1), &[0x16, 0, 0, 0, 0, 0], &[0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0]] {
                assert_eq!(fails(nexus, cdb, &[]), LOST, "{cdb:x?}");
            }
            assert_eq!(fails(nexus, &write(0, 1), &[1; 512]), LOST);
            for action in [0, 1, 3, 6] {
                assert_eq!(persist(nexus, action, 1, 0, 7, 0).sense.map(|s| (s.key, s.code)), Some(LOST), "{action}");
            }
            // Who is there is told.
            good(nexus, &[0x12, 0, 0, 0, 36, 0], &[]);
            good(nexus, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]);
        }
        assert!(device.reports()[0].reservation.as_ref().unwrap().contains("lost"));
        // It stays lost over a reset, and while replacements are wrong.
        a.manage([0; 8], coffer_iscsi::scsi::Function::LunReset);
        settle(&a);
        settle(&b);
        assert_eq!(persist(&a, 8, 3, 1, 9, 1).sense.unwrap().code, Code::INVALID_FIELD_IN_PARAMETERS);
        assert_eq!(fails(&a, &TUR, &[]), LOST);
        assert_eq!(persist(&a, 8, 3, 0, 9, 1), Outcome::GOOD);
        assert_eq!((attention(&a), attention(&b)), (None, Some(Code::RESERVATIONS_PREEMPTED)));
        assert_eq!(persisted(&a, 0)[4..], [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9]);
        good(&a, &write(0, 1), &[2; 512]);
        assert_eq!(exec(&b, &read(0, 1), &[]).0, Outcome::CONFLICT);
        assert!(device.reports()[0].reservation.as_ref().unwrap().contains("exclusive access"));
        assert_eq!(persisted(&a, 2)[2] & 0x80, 0x80, "it says that it can do this (RLR_C)");
    }
    {
        let (_device, a, b) = started(&state);
        good(&a, &TUR, &[]);
        assert_eq!(exec(&b, &read(0, 1), &[]).0, Outcome::CONFLICT);
    }
    // Replaced by something that does not last, the damaged file is gone.
    spoil(&kept);
    {
        let (_device, a, _) = started(&state);
        assert_eq!(persist(&a, 8, 5, 0, 9, 0), Outcome::GOOD);
        assert_eq!(file(&state, "reservations-"), None);
    }
    let (_device, _, b) = started(&state);
    good(&b, &write(0, 1), &[3; 512]);
}

#[test]
fn saved_modes_are_there_after_resets_and_restarts() {
    let state = tempfile::tempdir().unwrap();
    {
        let (_device, a, b) = started(&state);
        // The page can be saved (PS); nothing was yet.
        assert_eq!((control(&a, 0)[0], control(&a, 3)[4] & 8), (0x8a, 0));
        assert_eq!(select(&a, 0, true), Outcome::GOOD);
        assert_eq!((control(&a, 0)[4] & 8, control(&a, 3)[4] & 8), (8, 0), "in force, and not saved");
        assert_eq!(attention(&b), Some(Code::MODE_PARAMETERS_CHANGED));
    }
    {
        let (_device, a, b) = started(&state);
        assert_eq!(control(&a, 0)[4] & 8, 0);
        assert_eq!(select(&a, 1, true), Outcome::GOOD);
        assert_eq!(attention(&b), Some(Code::MODE_PARAMETERS_CHANGED));
        assert_eq!(select(&a, 0, false), Outcome::GOOD);
        assert_eq!((control(&a, 0)[4] & 8, control(&a, 3)[4] & 8, control(&a, 2)[4] & 8), (0, 8, 0));
        a.manage([0; 8], coffer_iscsi::scsi::Function::LunReset);
        settle(&a);
        assert_eq!(control(&a, 0)[4] & 8, 8);
    }
    let (_device, a, _) = started(&state);
    assert_eq!((control(&a, 0)[4] & 8, control(&a, 3)[4] & 8), (8, 8));
    assert_eq!(fails(&a, &write(0, 1), &[1; 512]), (Key::DataProtect, Code::SOFTWARE_WRITE_PROTECTED));
    assert_eq!(select(&a, 1, false), Outcome::GOOD);
    good(&a, &write(0, 1), &[1; 512]);

    // What cannot be kept is not set either.
    let path = file(&state, "modes-").unwrap();
    let gone = state.path().with_extension("away");
    fs::rename(state.path(), &gone).unwrap();
    fs::write(state.path(), "in the way").unwrap();
    assert_eq!(select(&a, 1, true).sense.unwrap().code, Code::INTERNAL_FAILURE);
    good(&a, &write(0, 1), &[1; 512]);
    fs::remove_file(state.path()).unwrap();
    fs::rename(&gone, state.path()).unwrap();

    // Damage is named, with the way out.
    spoil(&path);
    let again = device(Some(state.path()));
    let export = Arc::new(coffer_gateway::Export::new("e", Arc::new(MemoryDevice::new(64 << 10))));
    let identity = "disk 0".to_owned();
    let options = LunOptions { export, block_size: None, physical_block_size: None, identity };
    let error = again.add_lun(0, options).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.context().contains(path.to_str().unwrap()) && error.context().contains("delete it"), "{error}");
}

#[test]
fn without_a_place_nothing_is_saved_and_nobody_is_told_so() {
    let device = device(None);
    add(&device, 0, Arc::new(MemoryDevice::new(64 << 10)));
    let nexus = join(&device, "iqn.a", 1);
    assert_eq!(control(&nexus, 0)[0], 0x0a);
    let invalid = (Key::IllegalRequest, Code::INVALID_FIELD_IN_CDB);
    assert_eq!(select(&nexus, 1, true).sense.map(|s| (s.key, s.code)), Some(invalid));
    assert_eq!(control(&nexus, 0)[4] & 8, 0);
    let saved = fails(&nexus, &[0x1a, 0x08, 0xca, 0, 255, 0], &[]);
    assert_eq!(saved, (Key::IllegalRequest, Code::SAVING_NOT_SUPPORTED));
}

#[test]
fn port_groups_are_as_they_were_left() {
    let state = tempfile::tempdir().unwrap();
    {
        let (device, a, _) = started(&state);
        // SET TARGET PORT GROUPS: the first one standby.
        good(&a, &[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], &[0, 0, 0, 0, 2, 0, 0, 1]);
        device.set_group_state(2, AccessState::NonOptimized).unwrap();
    }
    let (device, a, _) = started(&state);
    let report = |nexus| good(nexus, &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]);
    let groups = report(&a);
    assert_eq!((groups[4] & 0xf, groups[16] & 0xf), (2, 1), "{groups:?}");
    assert_eq!(fails(&a, &read(0, 1), &[]), (Key::NotReady, Code::ALUA_STANDBY));
    device.set_group_state(1, AccessState::Optimized).unwrap();
    settle(&a);
    good(&a, &read(0, 1), &[]);
    drop((device, a));
    spoil(&file(&state, "port-groups-").unwrap());
    let ports = vec![PortOptions { relative: 1, group: 1 }];
    let options = DeviceOptions {
        iqn: "iqn.2026-01.test:disk".to_owned(),
        ports,
        state: Some(state.path().to_owned()),
        report: None,
    };
    let error = Device::new(options).unwrap_err();
    assert!(error.kind() == Kind::Corrupt && error.context().contains("delete it"), "{error}");
}
