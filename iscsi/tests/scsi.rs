//! The SCSI device as an initiator meets it, without a transport: commands by their bytes, what they do and how they fail.
//!
//! ```text
//!   bench      a device with nexuses, and commands as bytes
//!   commands   each by what it is for           model    random reads and writes against plain bytes
//!   errors     sense for each thing that can go wrong    noise    any bytes at all, cut anywhere
//!   sharing    nexuses and LUNs: attentions, reservations, masks, resets
//!   erased     sanitizing: its ways, its pace       kept     what outlives a restart: reservations, modes, port groups
//! ```
//! Not here: units of it, which have their tests beside them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "test data are small")]

#[path = "scsi/bench.rs"]
mod bench;
#[path = "scsi/commands.rs"]
mod commands;
#[path = "scsi/erased.rs"]
mod erased;
#[path = "scsi/errors.rs"]
mod errors;
#[path = "scsi/kept.rs"]
mod kept;
#[path = "scsi/model.rs"]
mod model;
#[path = "scsi/noise.rs"]
mod noise;
#[path = "scsi/sharing.rs"]
mod sharing;
