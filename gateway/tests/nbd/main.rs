//! NBD against the programs of others, against each other and against clients that mean harm.

#![allow(clippy::cast_possible_truncation, reason = "test data are small")]

mod client;
mod hostile;
mod programs;
mod server;
