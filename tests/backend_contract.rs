//! Runs the contract of storage over every implementation of the repository room.

use coffer_repo::backend::Backend;
use coffer_repo::backend::cached::{CacheOptions, Cached, Intake};
use coffer_repo::backend::faulty::{Faulty, Plan};
use coffer_repo::backend::local::Local;
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::tiered::{TierSource, Tiered};
use coffer_tests::contract;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

#[test]
fn local_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let made = AtomicU32::new(0);
    contract::run(&|| {
        let number = made.fetch_add(1, Ordering::Relaxed);
        Arc::new(Local::create(&folder.path().join(number.to_string())).unwrap())
    });
}

#[test]
fn memory_keeps_the_contract() {
    contract::run(&|| Arc::new(Memory::default()));
}

#[test]
fn a_store_behind_a_disk_cache_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let made = AtomicU32::new(0);
    contract::run(&|| {
        let folder = folder.path().join(made.fetch_add(1, Ordering::Relaxed).to_string());
        let options = CacheOptions { folder, budget_bytes: 100 << 20, intake: Intake::Keep };
        Arc::new(Cached::new(Arc::new(Memory::default()), options, |e| panic!("{e:?}")).unwrap())
    });
}

/// One tier, in memory.
struct OneTier(Arc<Memory>);

impl TierSource for OneTier {
    fn names(&self) -> coffer_repo::Result<Vec<String>> {
        Ok(vec!["cold".to_owned()])
    }

    fn open(&self, _: &str) -> coffer_repo::Result<Arc<dyn Backend>> {
        Ok(Arc::clone(&self.0) as _)
    }
}

#[test]
fn a_store_with_a_cold_tier_keeps_the_contract() {
    contract::run(&|| Arc::new(Tiered::new(Arc::new(Memory::default()), Box::new(OneTier(Arc::default())))));
}

#[test]
fn a_faulty_store_without_faults_keeps_the_contract() {
    contract::run(&|| Arc::new(Faulty::new(Memory::default(), Plan::default())));
}

#[test]
fn the_suite_catches_a_store_that_breaks_the_contract() {
    let seed = 0xc0ffe4;
    let sound = Plan { seed, ..Plan::default() };
    let broken = [
        Plan { flip: 20, ..sound.clone() },
        Plan { truncate: 20, ..sound.clone() },
        Plan { fail_after: 20, ..sound.clone() },
        Plan { listing_delay: 3, ..sound },
    ];
    for plan in broken {
        let breach = catch_unwind(|| contract::run(&|| Arc::new(Faulty::new(Memory::default(), plan.clone()))));
        assert!(breach.is_err(), "not caught: {plan:?}");
    }
}
