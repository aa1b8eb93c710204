//! The mount through a real kernel: needs `/dev/fuse` and root. What is missing fails; nothing is skipped.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of this is test code, though clippy only takes #[test] for it"
)]

mod bytes_device;
mod mount;
mod repository;
