//! SCSI: what exports are for an initiator. Knows nothing of the transport that brings its commands.
//!
//! ```text
//!   Device   its LUNs, ports and nexuses                Nexus   one initiator port through one target port
//!      \__ Lun   an export as a disk                       |__ Seat   what that nexus has at one LUN
//!           \__ Medium   its blocks   \____________________/
//!
//!   Nexus::prepare(lun, cdb) -> Task -> check_expected -> try_run | run -> fate, Outcome: status and sense
//!             |                  \__ task.rs: who does which command
//!             \__ cdb, opcodes: what the bytes say; reservations, sanitize, alua: whether it may be
//! ```
//! Not here: PDUs, sessions, queues of tasks. What holds: `prepare`, `try_run` and `manage` never wait for storage; `run` may,
//! and looks at its `stop` between steps. All bytes of initiators are read by pure functions that refuse or understand, and never
//! panic. By SAM-5, SPC-4 and SBC-3, and SBC-4 for atomic writes.

mod alua;
mod cdb;
mod copy;
mod device;
mod field;
mod identity;
mod inquiry;
mod kept;
mod lun;
mod medium;
mod mode;
mod nexus;
mod opcodes;
mod persistent;
mod provisioning;
mod reservations;
mod retained;
mod sanitize;
mod seat;
mod sense;
mod supported;
mod task;
mod transfer;
mod transport_id;
mod vpd;

pub use alua::AccessState;
pub use device::{Device, DeviceOptions, LunMask, PortOptions, Report};
pub use lun::{LunOptions, LunReport};
pub use nexus::{Function, ManagementOutcome, Nexus};
pub use sense::{Code, Key, Outcome, Sense, Specifics, Status};
pub use task::{Fate, Task, Traffic};
