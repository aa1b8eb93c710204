//! Any bytes at all: every opcode with every length of CDB and parameters, and random ones from a seed. Nothing panics, nothing
//! hangs, replies stay within what was said, and afterwards the disk still answers.

use super::bench::{add, device, exec, exec_at, good, join, settle};
use coffer_gateway::MemoryDevice;
use coffer_iscsi::scsi::{Function, Nexus};
use std::sync::Arc;

/// The next number of a sequence that a seed decides (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.roll() as u8).collect()
    }
}

/// Commands that are there, as REPORT SUPPORTED OPERATION CODES has them: opcode, action, length.
fn commands(nexus: &Arc<Nexus>) -> Vec<(u8, u8, usize)> {
    let all = good(nexus, &[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0], &[]);
    all[4..].chunks(8).map(|d| (d[0], d[3], usize::from(d[7]))).collect()
}

#[test]
fn cut_anywhere_every_command_is_refused_or_done() {
    let device = device(None);
    add(&device, 0, Arc::new(MemoryDevice::new(64 << 10)));
    let nexus = join(&device, "iqn.a", 1);
    for (code, action, len) in commands(&nexus) {
        let mut cdb = vec![0; len];
        cdb[0] = code;
        cdb[1] = action;
        for cut in 0..len {
            let (outcome, reply) = exec(&nexus, &cdb[..cut], &[]);
            assert!(outcome.sense.is_some() && reply.is_empty(), "{code:x} {cut}");
        }
        // Where lengths of lists are, by group; cut short of it, and not.
        for list in [0u8, 1, 7, 8, 15, 16, 23, 24, 28, 44, 48, 76, 255] {
            let mut cdb = cdb.clone();
            match code >> 5 {
                0 => cdb[4] = list,
                1 | 2 => cdb[8] = list,
                4 => cdb[13] = list,
                _ => cdb[9] = list,
            }
            for filling in [0u8, 1, 0xff] {
                for have in [usize::from(list), usize::from(list).saturating_sub(1), 0] {
                    exec(&nexus, &cdb, &vec![filling; have]);
                }
            }
        }
    }
    // Somebody may have stopped the unit.
    settle(&nexus);
    good(&nexus, &[0x1b, 0, 0, 0, 1, 0], &[]);
    good(&nexus, &[0; 6], &[]);
}

#[test]
fn noise_breaks_nothing() {
    for seed in 0..8 {
        let mut dice = Dice(seed);
        let device = device(None);
        add(&device, 0, Arc::new(MemoryDevice::new(100 * 512)));
        add(&device, 1, Arc::new(MemoryDevice::new(100 * 4096).with_large_blocks()));
        add(&device, 2, Arc::new(MemoryDevice::new(100 * 512).into_read_only()));
        let nexuses = [join(&device, "iqn.a", 1), join(&device, "iqn.b", 2)];
        let known = commands(&nexuses[0]);
        for _ in 0..6000 {
            let nexus = &nexuses[dice.below(2) as usize];
            let lun = [0, dice.below(4) as u8, 0, 0, 0, 0, 0, 0];
            let mut cdb = dice.bytes(16);
            if dice.below(8) != 0 {
                let (code, action, len) = known[dice.below(known.len() as u64) as usize];
                // Mostly zeroes, so that much is accepted; sanitizing takes its time.
                cdb = cdb.iter().map(|b| if b % 3 == 0 { b % 32 } else { 0 }).collect();
                cdb.truncate(len);
                cdb[0] = if code == 0x48 { 0 } else { code };
                cdb[1] = (cdb[1] & 0xe0) | action;
            }
            let len = dice.below(120) as usize;
            let mut data = dice.bytes(len);
            if dice.below(2) == 0 {
                data.iter_mut().for_each(|b| *b = if *b % 4 == 0 { *b % 8 } else { 0 });
            }
            if let Ok(task) = nexus.prepare(lun, &cdb)
                && task.data_out() > 0
                && dice.below(2) == 0
            {
                data.resize(usize::try_from(task.data_out()).unwrap_or(0).min(1 << 20), 0);
            }
            exec_at(nexus, lun, &cdb, &data);
            if dice.below(500) == 0 {
                nexus.manage(lun, Function::LunReset);
            }
        }
        let nexus = join(&device, "iqn.c", 1);
        let inquiry = good(&nexus, &[0x12, 0, 0, 0, 96, 0], &[]);
        assert_eq!(inquiry.len(), 96);
    }
}
