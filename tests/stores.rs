//! Real object stores, and the product on them: the contract of storage, journeys of the command, kills, faults of the network,
//! and what goes wrong for want of rights, names or a clock.
//!
//! Not here: what one store's backend does with scripted answers (`repo`). What holds: the stores are started by this binary, one
//! of each kind, and end with it; each test has buckets of its own; seeds are fixed. Needs root, as journeys do.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "what was seen is told, not asserted")]

#[path = "stores/contract.rs"]
mod contract;
#[path = "stores/faults.rs"]
mod faults;
#[path = "stores/journey.rs"]
mod journey;
#[path = "stores/kills.rs"]
mod kills;
#[path = "stores/locks.rs"]
mod locks;
#[path = "stores/refused.rs"]
mod refused;
