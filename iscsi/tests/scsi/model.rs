//! Random reads and writes of all kinds against plain bytes, with blocks of 512 and 4096 bytes.

use super::bench::{add, compare, device, fails, good, join, long, ranges, read, unmap, write};
use coffer_gateway::MemoryDevice;
use coffer_iscsi::scsi::{Code, Key};
use proptest::prelude::*;
use std::sync::Arc;

const BLOCKS: u64 = 300;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u32, u8),
    WriteVerify(u64, u32, u8),
    Atomic(u64, u32, u8),
    Or(u64, u32, u8),
    Same(u64, u32, u8, bool),
    Unmap(Vec<(u64, u32)>),
    Compare(u64, u8, u8, bool),
    Verify(u64, u32, bool),
    Copy(u64, u64, u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = || (0..BLOCKS, 1..40u32).prop_map(|(lba, count)| (lba, count.min((BLOCKS - lba) as u32)));
    let step = prop_oneof![
        (at(), any::<u8>()).prop_map(|((l, c), b)| Step::Write(l, c, b)),
        (at(), any::<u8>()).prop_map(|((l, c), b)| Step::WriteVerify(l, c, b)),
        (at(), any::<u8>()).prop_map(|((l, c), b)| Step::Atomic(l, c.min(32), b)),
        (at(), any::<u8>()).prop_map(|((l, c), b)| Step::Or(l, c, b)),
        (at(), 0..3u8, any::<bool>()).prop_map(|((l, c), b, unmap)| Step::Same(l, c, b, unmap)),
        prop::collection::vec(at(), 0..4).prop_map(Step::Unmap),
        (at(), any::<u8>(), any::<bool>()).prop_map(|((l, c), b, hit)| Step::Compare(l, c.min(32) as u8, b, hit)),
        (at(), any::<bool>()).prop_map(|((l, c), hit)| Step::Verify(l, c, hit)),
        (at(), at()).prop_map(|((a, n), (b, m))| Step::Copy(a, b, n.min(m) as u16)),
    ];
    prop::collection::vec(step, 1..30)
}

/// Bytes that differ from block to block.
fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| seed.wrapping_add((i / 512) as u8).wrapping_mul(1 + (i % 3) as u8)).collect()
}

/// The parameters of a copy within LUN 0, whose NAA name is `naa`.
fn copy_list(naa: &[u8], from: u64, to: u64, count: u16) -> Vec<u8> {
    let mut target = vec![0xe4, 0, 0, 0, 1, 3, 0, 8];
    target.extend(naa);
    target.resize(32, 0);
    let mut list = vec![1, 0x10, 0, 32, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    list.extend(target);
    list.extend([2, 0, 0, 24, 0, 0, 0, 0, 0, 0]);
    list.extend(count.to_be_bytes());
    list.extend(from.to_be_bytes());
    list.extend(to.to_be_bytes());
    list
}

fn run(steps: Vec<Step>, size: usize) -> Result<(), TestCaseError> {
    let device = device(None);
    let memory = MemoryDevice::new(BLOCKS * size as u64);
    add(&device, 0, Arc::new(if size == 4096 { memory.with_large_blocks() } else { memory }));
    let nexus = join(&device, "iqn.a", 1);
    let naa = good(&nexus, &[0x12, 1, 0x83, 0, 255, 0], &[])[8..16].to_vec();
    let mut model = vec![0u8; BLOCKS as usize * size];
    let place = |lba: u64, count: u32| lba as usize * size..(lba as usize + count as usize) * size;
    for step in steps {
        match step {
            Step::Write(lba, count, seed) => {
                let data = bytes(seed, count as usize * size);
                good(&nexus, &write(lba, count), &data);
                model[place(lba, count)].copy_from_slice(&data);
            }
            Step::WriteVerify(lba, count, seed) => {
                let data = bytes(seed, count as usize * size);
                good(&nexus, &long(0x8e, 2, lba, count), &data);
                model[place(lba, count)].copy_from_slice(&data);
            }
            Step::Atomic(lba, count, seed) => {
                let data = bytes(seed, count as usize * size);
                let [.., high, low] = count.to_be_bytes();
                let cdb = [&[0x9c, 0][..], &lba.to_be_bytes(), &[0, 0, high, low, 0, 0]].concat();
                good(&nexus, &cdb, &data);
                model[place(lba, count)].copy_from_slice(&data);
            }
            Step::Or(lba, count, seed) => {
                let data = bytes(seed, count as usize * size);
                good(&nexus, &long(0x8b, 0, lba, count), &data);
                model[place(lba, count)].iter_mut().zip(&data).for_each(|(a, b)| *a |= b);
            }
            Step::Same(lba, count, seed, may_unmap) => {
                let data = vec![seed; size];
                good(&nexus, &long(0x93, if may_unmap { 8 } else { 0 }, lba, count), &data);
                // What is unmapped reads as zeroes whatever was sent.
                model[place(lba, count)].fill(if may_unmap { 0 } else { seed });
            }
            Step::Unmap(list) => {
                let data = ranges(&list);
                good(&nexus, &unmap(&data), &data);
                list.iter().for_each(|(lba, count)| model[place(*lba, *count)].fill(0));
            }
            Step::Compare(lba, count, seed, hit) => {
                let mut expected = model[place(lba, count.into())].to_vec();
                let new = bytes(seed, expected.len());
                if hit {
                    good(&nexus, &compare(lba, count), &[expected, new.clone()].concat());
                    model[place(lba, count.into())].copy_from_slice(&new);
                } else {
                    let at = expected.len() - 27;
                    expected[at] ^= 1;
                    let sense = super::bench::sense(&nexus, &compare(lba, count), &[expected, new].concat());
                    prop_assert_eq!((sense.key, sense.information), (Key::Miscompare, Some(at as u64)));
                }
            }
            Step::Verify(lba, count, hit) => {
                let mut data = model[place(lba, count)].to_vec();
                good(&nexus, &long(0x8f, 0, lba, count), &[]);
                if hit {
                    good(&nexus, &long(0x8f, 2, lba, count), &data);
                } else {
                    *data.last_mut().unwrap() ^= 1;
                    let failed = fails(&nexus, &long(0x8f, 2, lba, count), &data);
                    prop_assert_eq!(failed, (Key::Miscompare, Code::MISCOMPARE_DURING_VERIFY));
                }
            }
            Step::Copy(from, to, count) => {
                let list = copy_list(&naa, from, to, count);
                let len = (list.len() as u32).to_be_bytes();
                let overlap = from.abs_diff(to) < count.into() && from != to;
                if !overlap {
                    let cdb = [&[0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &len, &[0, 0]].concat();
                    good(&nexus, &cdb, &list);
                    let taken = model[place(from, count.into())].to_vec();
                    model[place(to, count.into())].copy_from_slice(&taken);
                }
            }
        }
    }
    let found = good(&nexus, &read(0, BLOCKS as u32), &[]);
    prop_assert!(found == model);
    check_status(&good(&nexus, &long(0x9e, 0x12, 0, 65_536), &[]), &model, size)
}

/// What is said to be unmapped is zero, and everything is said something of.
fn check_status(status: &[u8], model: &[u8], size: usize) -> Result<(), TestCaseError> {
    let mut next = 0;
    for stretch in status[8..].chunks(16) {
        let lba = u64::from_be_bytes(stretch[..8].try_into().unwrap()) as usize;
        let count = u32::from_be_bytes(stretch[8..12].try_into().unwrap()) as usize;
        prop_assert_eq!(lba, next);
        next = lba + count;
        if stretch[12] == 1 {
            prop_assert!(model[lba * size..next * size].iter().all(|byte| *byte == 0));
        }
    }
    prop_assert_eq!(next as u64, BLOCKS);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn small_blocks_behave_like_an_array(steps in steps()) {
        run(steps, 512)?;
    }

    #[test]
    fn large_blocks_behave_like_an_array(steps in steps()) {
        run(steps, 4096)?;
    }
}
