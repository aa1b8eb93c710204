//! The iSCSI target.
//!
//! ```text
//!   scsi    what a disk is for an initiator: commands in, data and sense out
//! ```
//! Not here: block devices, which are the gateway's. What holds: `scsi` knows nothing of iSCSI.

pub mod scsi;
