//! Coffer's iSCSI target: no kernel module and no other daemon.
//!
//! ```text
//!   server    portals, targets, sessions: RFC 7143 over sockets        IscsiServer and what lies below it
//!     pdu     every PDU as bytes, pure
//!   scsi      what a disk is for an initiator: commands in, data and sense out
//! ```
//! Not here: block devices, which are the gateway's. What holds: `scsi` knows nothing of iSCSI, and the rest nothing of what
//! commands mean; an initiator can neither crash the target nor make it use more memory than its options say.

mod connection;
mod conversation;
mod desk;
mod gathering;
mod job;
mod login;
mod memory;
pub mod pdu;
pub mod scsi;
mod sender;
mod server;
mod session;
mod target;

pub use login::{Algorithm, Allowance, Chap, Credentials, Secret, Terms};
pub use server::{DEFAULT_PORT, IscsiServer, PortalOptions, ServerOptions, SessionReport, ports};
pub use target::{Guest, TargetOptions};
