//! Coffer's harness: what the tests of this folder share. See `ARCHITECTURE.md`.

pub mod audit;
pub mod below;
pub mod coffer;
pub mod contract;
pub mod counting;
pub mod dice;
pub mod disk;
pub mod distant;
pub mod golden;
pub mod http;
pub mod image;
pub mod kernel;
pub mod nbd;
pub mod program;
pub mod proxy;
pub mod qmp;
pub mod rig;
pub mod scripted;
pub mod service;
pub mod simulation;
pub mod stage;
pub mod weak;
