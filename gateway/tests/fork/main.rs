//! Forks: layers on media that lose what disks lose, forks in folders of a repository's, commits and hydrations.

#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "test data are small")]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![allow(clippy::print_stdout, reason = "seeds are told, so that a failure can be repeated")]

mod chance;
mod commit;
mod erased;
mod folder;
mod handed;
mod hydration;
mod layer;
mod lossy;
mod model;
mod rig;
