//! Coffer's harness: what the tests of this folder share. See `ARCHITECTURE.md`.

pub mod contract;
pub mod dice;
pub mod disk;
pub mod golden;
pub mod rig;
