//! The iSCSI protocol over real sockets, driven by an initiator of these tests' own and by outside programs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "test data are small")]
#![allow(clippy::disallowed_methods, reason = "a test is a program: it may read its environment")]
#![allow(clippy::print_stdout, reason = "seeds are told, so that a failure can be repeated")]

mod bench;
mod chap;
mod commands;
mod hostile;
mod initiator;
mod login;
mod management;
mod patience;
mod programs;
mod recovery;
mod sessions;
