//! A device with nexuses, and commands as bytes.

use coffer_gateway::{BlockDevice, Export, MemoryDevice};
use coffer_iscsi::scsi::{
    Code, Device, DeviceOptions, Key, LunMask, LunOptions, Nexus, Outcome, PortOptions, Sense, Status,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// LUN 0, as it is addressed.
pub(crate) const LUN: [u8; 8] = [0; 8];

/// A device of two ports in two groups, without LUNs.
pub(crate) fn device(state: Option<&Path>) -> Arc<Device> {
    let ports = vec![PortOptions { relative: 1, group: 1 }, PortOptions { relative: 2, group: 2 }];
    let options = DeviceOptions {
        iqn: "iqn.2026-01.test:disk".to_owned(),
        ports,
        state: state.map(Path::to_owned),
        report: None,
    };
    Arc::new(Device::new(options).unwrap())
}

/// Shows `below` as a LUN whose identity is its number.
pub(crate) fn add(device: &Device, number: u16, below: Arc<dyn BlockDevice>) {
    let export = Arc::new(Export::new(format!("e{number}"), below));
    device
        .add_lun(
            number,
            LunOptions { export, block_size: None, physical_block_size: None, identity: format!("disk {number}") },
        )
        .unwrap();
}

/// A nexus of an initiator, past its first unit attentions.
pub(crate) fn join(device: &Arc<Device>, initiator: &str, port: u16) -> Arc<Nexus> {
    let nexus = device.join(initiator, [0, 0, 0, 0, 0, 1], port, LunMask::All);
    settle(&nexus);
    nexus
}

/// Takes all attentions of LUN 0.
pub(crate) fn settle(nexus: &Arc<Nexus>) {
    while attention(nexus).is_some() {}
}

/// The next attention of LUN 0.
pub(crate) fn attention(nexus: &Arc<Nexus>) -> Option<Code> {
    let outcome = exec(nexus, &[0; 6], &[]).0;
    outcome.sense.filter(|sense| sense.key == Key::UnitAttention).map(|sense| sense.code)
}

/// A disk of `blocks` blocks of 512 bytes, and a nexus to it.
pub(crate) fn disk(blocks: u64) -> (Arc<Device>, Arc<Nexus>) {
    let device = device(None);
    add(&device, 0, Arc::new(MemoryDevice::new(blocks * 512)));
    let nexus = join(&device, "iqn.a", 1);
    (device, nexus)
}

/// Runs a command at LUN 0.
pub(crate) fn exec(nexus: &Arc<Nexus>, cdb: &[u8], data: &[u8]) -> (Outcome, Vec<u8>) {
    exec_at(nexus, LUN, cdb, data)
}

/// Runs a command as a transport would: first without waiting.
pub(crate) fn exec_at(nexus: &Arc<Nexus>, lun: [u8; 8], cdb: &[u8], data: &[u8]) -> (Outcome, Vec<u8>) {
    let task = match nexus.prepare(lun, cdb) {
        Ok(task) => task,
        Err(outcome) => return (outcome, Vec::new()),
    };
    if let Err(outcome) = task.check_expected(data.len() as u64) {
        return (outcome, Vec::new());
    }
    let mut reply = vec![0xee];
    let outcome = match task.try_run(&mut reply) {
        Some(outcome) => {
            assert_eq!(task.data_out(), 0, "{cdb:x?} was run without its data");
            outcome
        }
        None => {
            let taken = data.len().min(usize::try_from(task.data_out()).unwrap());
            task.run(&data[..taken], &mut reply, &AtomicBool::new(false))
        }
    };
    assert_eq!(reply[0], 0xee, "what was there stays");
    assert!(reply.len() as u64 - 1 <= task.data_in(), "{cdb:x?} gave more than it said");
    assert!(outcome.status == Status::Good || reply.len() == 1, "{cdb:x?} failed with data");
    (outcome, reply.split_off(1))
}

/// Runs a command that has to go well.
pub(crate) fn good(nexus: &Arc<Nexus>, cdb: &[u8], data: &[u8]) -> Vec<u8> {
    let (outcome, reply) = exec(nexus, cdb, data);
    assert_eq!(outcome, Outcome::GOOD, "{cdb:x?}");
    reply
}

/// Runs a command that has to fail with a sense.
pub(crate) fn sense(nexus: &Arc<Nexus>, cdb: &[u8], data: &[u8]) -> Sense {
    let (outcome, _) = exec(nexus, cdb, data);
    assert_eq!(outcome.status, Status::CheckCondition, "{cdb:x?}");
    outcome.sense.unwrap()
}

/// The same, as its key and code.
pub(crate) fn fails(nexus: &Arc<Nexus>, cdb: &[u8], data: &[u8]) -> (Key, Code) {
    let sense = sense(nexus, cdb, data);
    (sense.key, sense.code)
}

/// A CDB of 16 bytes with an LBA at 2 and a count at 10.
pub(crate) fn long(code: u8, flags: u8, lba: u64, count: u32) -> Vec<u8> {
    [&[code, flags][..], &lba.to_be_bytes(), &count.to_be_bytes(), &[0, 0]].concat()
}

/// READ (16).
pub(crate) fn read(lba: u64, count: u32) -> Vec<u8> {
    long(0x88, 0, lba, count)
}

/// WRITE (16).
pub(crate) fn write(lba: u64, count: u32) -> Vec<u8> {
    long(0x8a, 0, lba, count)
}

/// COMPARE AND WRITE.
pub(crate) fn compare(lba: u64, count: u8) -> Vec<u8> {
    long(0x89, 0, lba, count.into())
}

/// The parameters of an UNMAP.
pub(crate) fn ranges(ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut list = Vec::new();
    list.extend((ranges.len() as u16 * 16 + 6).to_be_bytes());
    list.extend((ranges.len() as u16 * 16).to_be_bytes());
    list.extend([0; 4]);
    for (lba, count) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

/// An UNMAP with so many bytes of parameters.
pub(crate) fn unmap(list: &[u8]) -> Vec<u8> {
    let [high, low] = (list.len() as u16).to_be_bytes();
    vec![0x42, 0, 0, 0, 0, 0, 0, high, low, 0]
}

/// PERSISTENT RESERVE OUT, basic.
pub(crate) fn persist(nexus: &Arc<Nexus>, action: u8, kind: u8, key: u64, service_key: u64, flags: u8) -> Outcome {
    let list = [&key.to_be_bytes()[..], &service_key.to_be_bytes(), &[0, 0, 0, 0, flags, 0, 0, 0]].concat();
    exec(nexus, &[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], &list).0
}

/// PERSISTENT RESERVE IN.
pub(crate) fn persisted(nexus: &Arc<Nexus>, action: u8) -> Vec<u8> {
    good(nexus, &[0x5e, action, 0, 0, 0, 0, 0, 0xff, 0xff, 0], &[])
}
