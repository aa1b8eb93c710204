//! A layer where something particular is the matter: no space, failed syncs, many at once, damage, size.

use crate::chance::{Chance, seeds};
use crate::rig::{KEEP, Rig, UNMAP, contents};
use coffer_gateway::fork::{BootId, FileMedium, Layer, Media};
use coffer_gateway::{BlockDevice, Content, Durability, Extent, Kind, MemoryDevice};
use coffer_repo::entropy::{Seeded, System};
use coffer_repo::fork_key::ForkKey;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::scope;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// A layer on files in `folder`, made unless it is there.
fn on_files(folder: &Path, size: u64) -> Layer {
    let key = ForkKey::generate(&Seeded::new(1)).unwrap();
    let is_new = !folder.join("data").exists();
    let medium = |name: &str| {
        let path = folder.join(name);
        Arc::new(if is_new { FileMedium::create(&path) } else { FileMedium::open(&path) }.unwrap())
    };
    let media = Media { data: medium("data"), journals: [medium("journal-a"), medium("journal-b")] };
    if is_new {
        Layer::create(&media, &key, size, BootId([1; 16]), &System).unwrap();
    }
    let base = Arc::new(MemoryDevice::new(size).into_read_only());
    Layer::open(base, media, &key, BootId([1; 16]), Arc::new(System)).unwrap()
}

#[test]
fn a_full_disk_is_an_error_of_the_write_that_lacks_space_and_of_no_flush() {
    let mut rig = Rig::new(&vec![0; 8 << 20], 1);
    let layer = rig.open();
    rig.plant.limit_space(1 << 20);
    let (mut written, mut at) = (Vec::new(), 0);
    let chance = Chance::new(1);
    loop {
        let bytes = chance.bytes(4096);
        // Every second block: nothing is taken ahead for these.
        match layer.write_at(at, &bytes, Durability::Cached) {
            Ok(()) => written.push((at, bytes)),
            Err(e) => {
                assert_eq!(e.kind(), Kind::Full, "{e:?}");
                break;
            }
        }
        if written.len() % 50 == 0 {
            layer.flush().unwrap();
        }
        at += 8192;
    }
    assert!(written.len() > 100, "{}", written.len());
    for _ in 0..2000 {
        layer.write_at(0, &written[0].1, Durability::Cached).unwrap();
        layer.flush().unwrap();
    }
    rig.cut(Some(layer), &chance);
    let layer = rig.open();
    let check = |layer: &Layer, written: &[(u64, Vec<u8>)]| {
        for (at, bytes) in written {
            let mut found = vec![0; 4096];
            layer.read_at(*at, &mut found).unwrap();
            assert!(found == *bytes, "block at {at}");
        }
    };
    check(&layer, &written);
    assert_eq!(layer.write_at(at, &[1; 4096], Durability::Cached).unwrap_err().kind(), Kind::Full);
    // Space that is given back can be had again.
    let (first, _) = written.remove(0);
    layer.trim(first..first + 4096).unwrap();
    layer.flush().unwrap();
    layer.write_at(at, &[1; 4096], Durability::Cached).unwrap();
    check(&layer, &written);
}

#[test]
fn a_failed_sync_fails_the_fork_and_reads_go_on() {
    let mut rig = Rig::new(&vec![0; 1 << 20], 1);
    let layer = rig.open();
    layer.write_at(0, &[1; 8192], Durability::Cached).unwrap();
    layer.flush().unwrap();
    // More than go into the journal.
    layer.write_at(8192, &vec![2; 70 * 4096], Durability::Cached).unwrap();
    rig.plant.fail_syncs(true);
    assert_eq!(layer.flush().unwrap_err().kind(), Kind::Unavailable);
    rig.plant.fail_syncs(false);
    let mut byte = [0];
    for what in [
        layer.flush(),
        layer.write_at(0, &[3], Durability::Cached),
        layer.trim(0..4096),
        layer.zero(0..10, UNMAP),
        layer.compare_and_write(0, &[1], &[3]).map(drop),
    ] {
        assert!(what.unwrap_err().to_string().contains("open it again"));
    }
    layer.read_at(8192, &mut byte).unwrap();
    assert_eq!(byte, [2]);
    // On the same boot: what the cache still shows is not believed.
    rig.kill(Some(layer));
    let found = contents(&rig.open());
    assert!(found[..8192] == [1; 8192] && found[8192..].iter().all(|b| *b == 0), "what was flushed, and no more");
}

#[test]
fn a_sync_that_fails_while_a_fork_is_opened_has_it_distrusted() {
    let mut rig = Rig::new(&vec![0; 1 << 20], 1);
    let layer = rig.open();
    layer.write_at(0, &[1; 4096], Durability::Cached).unwrap();
    rig.kill(Some(layer));
    rig.plant.fail_syncs(true);
    assert!(rig.try_open().is_err());
    rig.plant.fail_syncs(false);
    assert!(contents(&rig.open()).iter().all(|b| *b == 0));
}

#[test]
fn a_small_flush_is_one_sync_a_large_one_two_and_an_idle_one_none() {
    let rig = Rig::new(&vec![0; 4 << 20], 1);
    let layer = rig.open();
    let syncs_of = |what: &dyn Fn()| {
        let before = rig.plant.syncs();
        what();
        rig.plant.syncs() - before
    };
    let write = |blocks: usize| layer.write_at(0, &vec![1; blocks * 4096], Durability::Cached).unwrap();
    let flush = || layer.flush().unwrap();
    write(64);
    assert_eq!(syncs_of(&flush), 1);
    assert_eq!(syncs_of(&flush), 0);
    write(65);
    assert_eq!(syncs_of(&flush), 2);
    assert_eq!(syncs_of(&|| layer.write_at(512, &[5; 512], Durability::Forced).unwrap()), 1);
    assert_eq!(syncs_of(&flush), 0);
    let exchange = || assert_eq!(layer.compare_and_write(512, &[5; 512], &[6; 512]).unwrap(), None);
    assert_eq!(syncs_of(&exchange), 1);
    layer.trim(0..4096).unwrap();
    assert_eq!(syncs_of(&flush), 1);
}

/// A client that keeps changing what is its own and flushes every time: one sync a flush, that of the data, and a journal that says
/// nothing; what it flushed outlives a power cut, and what another forced or zeroed in between does, too.
#[test]
fn what_is_ours_is_flushed_in_the_data_alone() {
    let chance = Chance::new(3);
    let mut rig = Rig::new(&vec![0; 1 << 20], 1);
    let mut layer = rig.open();
    layer.write_at(0, &vec![1; 64 << 10], Durability::Cached).unwrap();
    layer.flush().unwrap();
    let flush_one = |rig: &Rig, layer: &Layer, number: u8| {
        layer.write_at(u64::from(number % 16) * 4096, &[number; 4096], Durability::Cached).unwrap();
        let before = (rig.plant.syncs(), rig.journals.each_ref().map(|j| j.bytes()));
        layer.flush().unwrap();
        (rig.plant.syncs() - before.0, rig.journals.each_ref().map(|j| j.bytes()) == before.1)
    };
    // At first it may be a client that touches something new next time.
    let first: Vec<_> = (0..5).map(|number| flush_one(&rig, &layer, number)).collect();
    assert_eq!(first, [(1, false), (1, false), (1, false), (1, false), (2, false)]);
    assert!((5..100).all(|number| flush_one(&rig, &layer, number) == (1, true)));
    let disturbances: [&dyn Fn(&Layer); 3] = [
        &|layer| layer.write_at(4096, &[200; 4096], Durability::Forced).unwrap(),
        &|layer| layer.zero(4096..8192, UNMAP).unwrap(),
        &|layer| layer.write_at(512 << 10, &[201; 4096], Durability::Cached).unwrap(),
    ];
    for (number, disturb) in (100u8..).zip(disturbances) {
        disturb(&layer);
        let (syncs, is_silent) = flush_one(&rig, &layer, number);
        assert!(syncs == 1 && !is_silent, "the journal has something to say again");
        let expected = contents(&layer);
        rig.cut(Some(layer), &chance);
        layer = rig.open();
        assert!(contents(&layer) == expected);
        (0..20).for_each(|_| assert!(flush_one(&rig, &layer, number).0 <= 2));
    }
}

#[test]
fn a_long_journal_begins_anew_and_loses_nothing() {
    let chance = Chance::new(1);
    let mut rig = Rig::new(&chance.bytes(2 << 20), 1);
    let mut expected = contents(&*rig.base);
    let layer = rig.open();
    // Each takes 4 KiB of the journal: twice around.
    for _ in 0..9000 {
        let at = chance.below(512) * 4096;
        let bytes = chance.bytes(16);
        layer.write_at(at as u64, &bytes, Durability::Forced).unwrap();
        expected[at..at + 16].copy_from_slice(&bytes);
    }
    for journal in &rig.journals {
        assert!(journal.taken() < 20 * MIB, "{}", journal.taken());
    }
    rig.cut(Some(layer), &chance);
    assert!(contents(&rig.open()) == expected);
}

#[test]
fn damaged_and_cut_off_journals_give_the_right_bytes_or_an_error() {
    for seed in seeds(6) {
        println!("seed {seed}");
        let chance = Chance::new(seed);
        let mut rig = Rig::new(&chance.bytes(2 << 20), seed);
        let layer = rig.open();
        for _ in 0..60 {
            let range = chance.range(2 << 20, 30_000);
            let durability = [Durability::Cached, Durability::Forced][chance.below(2)];
            layer.write_at(range.start as u64, &chance.bytes(range.len()), durability).unwrap();
            if chance.below(9) == 0 {
                layer.zero(range.start as u64..range.end as u64, UNMAP).unwrap();
                layer.flush().unwrap();
            }
        }
        let expected = contents(&layer);
        rig.restart(layer);
        let mut refused = 0;
        for _ in 0..150 {
            let harmed = rig.copy();
            let journal = &harmed.journals[chance.below(2)];
            let used = journal.bytes().iter().rposition(|b| *b != 0).unwrap_or_default() + 600;
            match chance.below(3) {
                0 => journal.harm(|bytes| bytes.truncate(chance.below(used))),
                1 => journal.harm(|bytes| {
                    let at = chance.below(used.min(bytes.len()));
                    bytes[at] ^= 1 << chance.below(8);
                }),
                _ => journal.harm(|bytes| {
                    let at = chance.below(used) / 512 * 512;
                    bytes[at..at + 512].fill(0);
                }),
            }
            match harmed.try_open() {
                Ok(layer) => assert!(contents(&layer) == expected, "damage was not seen"),
                Err(e) => {
                    // A flip in the version number cannot be told from a newer version.
                    assert!(matches!(e.kind(), Kind::Corrupt | Kind::Unsupported), "{e:?}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 20, "{refused}");
        let harmed = rig.copy();
        harmed.data.harm(|bytes| bytes.truncate(4096));
        assert_eq!(harmed.try_open().err().map(|e| e.kind()), Some(Kind::Corrupt));
    }
}

#[test]
fn many_at_once_see_whole_blocks_and_each_others_writes() {
    const BLOCKS: u64 = 300;
    let rig = Rig::new(&vec![0; BLOCKS as usize * 4096], 1);
    let layer = rig.open();
    // A block holds one number over and over, whoever wrote it.
    let number_of = |block: &[u8]| {
        let (words, _) = block.as_chunks::<8>();
        assert!(words.iter().all(|w| *w == words[0]), "half a write");
        u64::from_le_bytes(words[0])
    };
    let is_over = AtomicBool::new(false);
    let last = scope(|scope| {
        for reader in 0..2 {
            let (layer, is_over) = (&layer, &is_over);
            scope.spawn(move || {
                let chance = Chance::new(100 + reader);
                while !is_over.load(Ordering::Relaxed) {
                    let range = chance.range(BLOCKS as usize, 90);
                    let mut bytes = vec![0; range.len() * 4096];
                    let done = match chance.below(2) {
                        0 => layer.read_at(range.start as u64 * 4096, &mut bytes).map(|()| true),
                        _ => layer.try_read_at(range.start as u64 * 4096, &mut bytes),
                    };
                    if done.unwrap() {
                        for block in bytes.chunks(4096) {
                            number_of(block);
                        }
                    }
                }
            });
        }
        let writers: Vec<_> = (1..=4)
            .map(|writer| {
                let layer = &layer;
                scope.spawn(move || {
                    let chance = Chance::new(writer);
                    let mut last = Vec::new();
                    for round in 0..1500u64 {
                        let range = chance.range(BLOCKS as usize - 4, 70);
                        let number = (writer << 32 | round).to_le_bytes();
                        let bytes = number.repeat(range.len() * 512);
                        match chance.below(20) {
                            0 => layer.flush().unwrap(),
                            1 => layer.trim(range.start as u64 * 4096..range.end as u64 * 4096).unwrap(),
                            2 => {
                                layer.write_at(range.start as u64 * 4096, &bytes[..4096], Durability::Forced).unwrap();
                            }
                            _ => layer.write_at(range.start as u64 * 4096, &bytes, Durability::Cached).unwrap(),
                        }
                        // Blocks of its own: counted up by compare and write, beside whoever else has that region.
                        let own = (BLOCKS - writer) * 4096;
                        let (old, new) = (round.to_le_bytes().repeat(512), (round + 1).to_le_bytes().repeat(512));
                        assert_eq!(layer.compare_and_write(own, &old, &new).unwrap(), None);
                        last = new;
                    }
                    last
                })
            })
            .collect();
        let last: Vec<Vec<u8>> = writers.into_iter().map(|w| w.join().unwrap()).collect();
        is_over.store(true, Ordering::Relaxed);
        last
    });
    let expected = contents(&layer);
    for (writer, last) in (1..).zip(last) {
        let own = (BLOCKS - writer) as usize * 4096;
        assert!(expected[own..own + 4096] == last[..]);
    }
    layer.flush().unwrap();
    let mut rig = rig;
    rig.cut(Some(layer), &Chance::new(7));
    assert!(contents(&rig.open()) == expected);
}

#[test]
fn one_of_many_wins_each_compare_and_write() {
    let rig = Rig::new(&[0; 8192], 1);
    let layer = rig.open();
    scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    loop {
                        let mut now = [0; 8];
                        layer.read_at(4092, &mut now).unwrap();
                        let next = (u64::from_le_bytes(now) + 1).to_le_bytes();
                        if layer.compare_and_write(4092, &now, &next).unwrap().is_none() {
                            break;
                        }
                    }
                }
            });
        }
    });
    let mut now = [0; 8];
    layer.read_at(4092, &mut now).unwrap();
    assert_eq!(u64::from_le_bytes(now), 800);
}

#[test]
fn trimmed_space_is_given_back_once_the_trim_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let layer = on_files(folder.path(), 40 * MIB + 100);
    let taken = || std::fs::metadata(folder.path().join("data")).unwrap().blocks() * 512;
    layer.write_at(0, &vec![1; 40 << 20], Durability::Cached).unwrap();
    layer.flush().unwrap();
    assert!(taken() >= 40 * MIB);
    layer.trim(MIB..31 * MIB).unwrap();
    assert!(taken() >= 40 * MIB, "the zeroes are not durable yet");
    layer.flush().unwrap();
    assert!(taken() <= 12 * MIB, "{}", taken());
    // What may not be unmapped stays.
    layer.zero(0..MIB, KEEP).unwrap();
    layer.flush().unwrap();
    assert!(taken() >= 9 * MIB);
    // A write between the trim and the flush stays where it is.
    layer.trim(32 * MIB..33 * MIB).unwrap();
    layer.write_at(32 * MIB + 4096, &[5; 4096], Durability::Cached).unwrap();
    layer.flush().unwrap();
    drop(layer);
    let layer = on_files(folder.path(), 40 * MIB + 100);
    let mut bytes = vec![9; 40 << 20];
    layer.read_at(0, &mut bytes).unwrap();
    for (range, byte) in [(0..31, 0), (31..32, 1), (33..40, 1)] {
        let range = range.start << 20..range.end << 20;
        assert!(bytes[range.clone()].iter().all(|b| *b == byte), "{range:?}");
    }
    assert!(bytes[(32 << 20) + 4096..(32 << 20) + 8192] == [5; 4096]);
    assert_eq!(layer.own_bytes(), 8 * MIB + 4096);
}

#[test]
fn a_hole_is_not_punched_for_a_zero_that_came_during_the_flush() {
    for seed in 0..60 {
        let mut rig = Rig::new(&vec![0; 4 << 20], 1);
        let layer = Arc::new(rig.open());
        layer.write_at(0, &vec![1; 70 * 4096], Durability::Cached).unwrap();
        layer.flush().unwrap();
        layer.trim(0..4096).unwrap();
        layer.write_at(0, &vec![2; 70 * 4096], Durability::Cached).unwrap();
        // The data is synced, then the journal; and then it is zeroed once more, which nobody flushes.
        let beside = Arc::clone(&layer);
        rig.plant.after_sync(1, move || beside.trim(0..4096).unwrap());
        layer.flush().unwrap();
        assert!(contents(&*layer)[..4096] == [0; 4096]);
        rig.cut(Arc::into_inner(layer), &Chance::new(seed));
        let found = contents(&rig.open());
        for sector in found[..4096].chunks(512) {
            assert!(sector == [0; 512] || sector == [2; 512], "seed {seed}: neither of what was written");
        }
    }
}

#[test]
fn what_lies_on_the_disk_is_not_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let layer = on_files(folder.path(), MIB);
    let secret = b"in a fork, too, it is nobody's business ".repeat(200);
    layer.write_at(4096, &secret, Durability::Cached).unwrap();
    layer.write_at(90_000, &secret, Durability::Forced).unwrap();
    layer.compare_and_write(0, &[0; 512], &secret[..512]).unwrap();
    layer.close().unwrap();
    for name in ["data", "journal-a", "journal-b"] {
        let bytes = std::fs::read(folder.path().join(name)).unwrap();
        assert!(!bytes.windows(16).any(|w| w == b"nobody's busines"), "{name}");
    }
}

#[test]
fn a_disk_that_ends_within_a_block_works_to_its_last_byte() {
    let mut rig = Rig::new(&[7; 4096 + 700], 1);
    let layer = rig.open();
    assert_eq!(layer.size(), 4796);
    layer.write_at(4790, &[1; 6], Durability::Forced).unwrap();
    assert_eq!(layer.write_at(4790, &[1; 7], Durability::Cached).unwrap_err().kind(), Kind::Invalid);
    layer.compare_and_write(4795, &[1], &[2]).unwrap();
    rig.cut(Some(layer), &Chance::new(1));
    let layer = rig.open();
    let found = contents(&layer);
    assert!(found[..4790].iter().all(|b| *b == 7) && found[4790..] == [1, 1, 1, 1, 1, 2]);
    layer.trim(4096..4796).unwrap();
    assert_eq!(
        layer.extents(0..4796, 9).unwrap(),
        [Extent { range: 0..4096, content: Content::Bytes }, Extent { range: 4096..4796, content: Content::Zero }]
    );
    assert!(contents(&layer)[4096..].iter().all(|b| *b == 0));
}

#[test]
fn a_huge_disk_costs_what_is_used_of_it() {
    const SIZE: u64 = 4 << 40;
    let folder = tempfile::tempdir().unwrap();
    let layer = on_files(folder.path(), SIZE);
    layer.write_at(SIZE - 4096, &[1; 4096], Durability::Cached).unwrap();
    layer.trim(0..SIZE / 2).unwrap();
    layer.flush().unwrap();
    drop(layer);
    let layer = on_files(folder.path(), SIZE);
    let mut bytes = [0; 8192];
    layer.read_at(SIZE - 8192, &mut bytes).unwrap();
    assert!(bytes[..4096] == [0; 4096] && bytes[4096..] == [1; 4096]);
    let extents = layer.extents(SIZE / 2..SIZE, 9).unwrap();
    assert_eq!(extents.last().unwrap(), &Extent { range: SIZE - 4096..SIZE, content: Content::Bytes });
    let taken: u64 = ["data", "journal-a", "journal-b"]
        .iter()
        .map(|name| std::fs::metadata(folder.path().join(name)).unwrap().blocks() * 512)
        .sum();
    assert!(taken < 8 * MIB, "{taken}");
}

#[test]
fn depths_count_layers_from_the_top() {
    let mut base = vec![7; 64 << 10];
    base[32 << 10..48 << 10].fill(0);
    let mut rig = Rig::new(&base, 1);
    let stack = rig.try_open_stack().unwrap();
    stack.write_at(0, &[1; 8192], Durability::Cached).unwrap();
    stack.zero(16384..20480, UNMAP).unwrap();
    rig.freeze(&stack).unwrap();
    stack.write_at(4096, &[2; 4096], Durability::Cached).unwrap();
    stack.write_at(40 << 10, &[3; 512], Durability::Cached).unwrap();
    let all = stack.depths(0..64 << 10, 99).unwrap();
    let k = |from: u64, to: u64, depth| (from << 10..to << 10, depth);
    let due = [
        k(0, 4, 2),
        k(4, 8, 1),
        k(8, 16, 3),
        k(16, 20, 2),
        k(20, 32, 3),
        k(32, 40, 0),
        k(40, 44, 1),
        k(44, 48, 0),
        k(48, 64, 3),
    ];
    assert_eq!(all, due);
    assert_eq!(stack.depths(2048..64 << 10, 2).unwrap(), [(2048..4096, 2), k(4, 8, 1)]);
    rig.settle(&stack, false).unwrap();
    assert_eq!(stack.depths(0..16 << 10, 9).unwrap(), [k(0, 4, 2), k(4, 8, 1), k(8, 16, 2)]);
}

#[test]
fn a_layer_that_failed_below_the_top_ends_writes_to_all() {
    let mut rig = Rig::new(&[7; 64 << 10], 1);
    let stack = rig.try_open_stack().unwrap();
    stack.write_at(0, &[1; 4096], Durability::Cached).unwrap();
    rig.freeze(&stack).unwrap();
    rig.plant.fail_syncs(true);
    assert!(stack.flush().is_err());
    rig.plant.fail_syncs(false);
    assert_eq!(stack.write_at(8192, &[2; 4096], Durability::Cached).unwrap_err().kind(), Kind::Unavailable);
    assert!(stack.flush().is_err() && stack.check().is_err());
    let mut bytes = [0; 4096];
    stack.read_at(8192, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 4096]);
}

/// A compare-and-write whose sync takes for ever: whoever freezes the disk meanwhile waits for it, and nobody else does.
#[test]
fn the_barrier_passes_while_a_compare_and_write_waits_for_its_sync() {
    let mut rig = Rig::new(&[7; 8 << 20], 1);
    let stack = rig.try_open_stack().unwrap();
    let (has_begun, begun) = channel();
    let (end, may_end) = channel();
    rig.plant.after_sync(0, move || {
        has_begun.send(()).unwrap();
        // Or the test has failed.
        let _ = may_end.recv();
    });
    let patience = Instant::now() + Duration::from_secs(60);
    scope(|scope| {
        let end = end;
        let exchange = scope.spawn(|| stack.compare_and_write(4096, &[7; 8192], &[1; 8192]));
        begun.recv().unwrap();
        // Its neighbour, in the same region: this one waits for it, but not in the barrier's way.
        let neighbour = scope.spawn(|| stack.write_at(16384, &[2; 512], Durability::Cached));
        let freeze = scope.spawn(|| rig.freeze(&stack));
        while stack.frozen().is_empty() {
            assert!(Instant::now() < patience, "the barrier waits for the sync");
            std::thread::yield_now();
        }
        stack.write_at(20480, &[3; 4096], Durability::Cached).unwrap();
        stack.write_at(4 << 20, &[4; 600], Durability::Forced).unwrap();
        let again = stack.compare_and_write(6 << 20, &[7; 512], &[5; 512]).unwrap();
        let mut byte = [0];
        stack.read_at(6 << 20, &mut byte).unwrap();
        assert_eq!((again, byte), (None, [5]));
        assert!(!exchange.is_finished() && !freeze.is_finished(), "frozen is what holds still");
        end.send(()).unwrap();
        assert_eq!(exchange.join().unwrap().unwrap(), None);
        neighbour.join().unwrap().unwrap();
        freeze.join().unwrap().unwrap();
    });
    let frozen = contents(&*stack.frozen().pop().unwrap());
    assert!(frozen[4096..12288] == [1; 8192], "it had compared before the barrier");
    assert!(frozen[20480..24576] == [7; 4096] && frozen[4 << 20] == 7 && frozen[6 << 20] == 7);
    let expect = |found: &[u8]| {
        assert!(found[4096..12288] == [1; 8192] && found[16384..16896] == [2; 512] && found[20480..24576] == [3; 4096]);
        assert!(found[4 << 20..][..600] == [4; 600] && found[6 << 20..][..512] == [5; 512]);
    };
    expect(&contents(&stack));
    rig.kill(Some(stack));
    expect(&contents(&rig.try_open_stack().unwrap()));
}

/// The power goes while it waits: it is there whole or not at all, whatever was written to another layer since.
#[test]
fn a_compare_and_write_that_the_barrier_overtook_is_whole_after_a_power_cut() {
    for seed in seeds(40) {
        let chance = Chance::new(seed);
        let mut rig = Rig::new(&[7; 1 << 20], seed);
        let stack = rig.try_open_stack().unwrap();
        let (has_begun, begun) = channel();
        let (end, may_end) = channel();
        rig.plant.after_sync(0, move || {
            has_begun.send(()).unwrap();
            // Or the test has failed.
            let _ = may_end.recv();
        });
        let plant = Arc::clone(&rig.plant);
        scope(|scope| {
            let end = end;
            let exchange = scope.spawn(|| stack.compare_and_write(4000, &[7; 9000], &[1; 9000]));
            begun.recv().unwrap();
            let freeze = scope.spawn(|| rig.freeze(&stack));
            while stack.frozen().is_empty() {
                std::thread::yield_now();
            }
            stack.write_at(8192, &[2; 4096], Durability::Forced).unwrap();
            // It dies after none, one or both of its last steps.
            plant.cut_after(chance.below(3));
            end.send(()).unwrap();
            let _ = exchange.join().unwrap();
            freeze.join().unwrap().unwrap();
        });
        rig.cut(Some(stack), &chance);
        let mut found = contents(&rig.try_open_stack().unwrap());
        assert!(found[8192..12288] == [2; 4096], "seed {seed}: what was forced is there");
        found.drain(8192..12288);
        let (whole, none) = (found[4000..8904] == [1; 4904], found[4000..8904] == [7; 4904]);
        assert!(whole || none, "seed {seed}: half of it is there");
    }
}
