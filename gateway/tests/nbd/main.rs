//! NBD against the programs of others, against each other and against clients that mean harm.

#![allow(clippy::disallowed_methods, reason = "a test is a program: it may read its environment")]
#![allow(clippy::cast_possible_truncation, reason = "test data are small")]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod certificates;
mod client;
mod hostile;
mod memory;
mod programs;
mod server;
mod sharing;
mod tls;
