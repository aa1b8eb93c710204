//! NBD against the programs of others, against each other and against clients that mean harm.

#![allow(clippy::cast_possible_truncation, reason = "test data are small")]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod client;
mod hostile;
mod programs;
mod server;
