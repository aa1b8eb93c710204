//! The coffer command as its users meet it: the real program over folders of a test's own. Outside programs (qemu-img, nbdkit,
//! libiscsi's, script, setsid) have to be installed; one that is missing fails its test.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod copies;
mod doors;
mod gateway;
mod inspection;
mod keys;
mod misuse;
mod points;
mod probe;
mod stage;
mod target;
mod tiers;
