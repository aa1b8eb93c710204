//! SCSI: what exports are for an initiator. Knows nothing of the transport that brings its commands.
//!
//! ```text
//!   Device   its LUNs, ports and nexuses                Nexus   one initiator port through one target port
//!      \__ Lun   an export as a disk                       |__ Seat   what that nexus has at one LUN
//!                                 \______________________________/
//!   Nexus::prepare(lun, cdb) -> Task -> try_run | run -> Outcome: status and sense
//! ```
//! Not here: PDUs, sessions, queues of tasks. What holds: `prepare`, `try_run` and `manage` never wait for storage; `run` may,
//! and looks at its `stop` between steps.

mod device;
mod lun;
mod nexus;
mod seat;
mod sense;
mod task;

pub use device::{Device, DeviceOptions, LunMask, PortOptions, Report};
pub use lun::LunOptions;
pub use nexus::{Function, ManagementOutcome, Nexus};
pub use sense::{Code, Key, Outcome, Sense, Status};
pub use task::{Fate, Task, Traffic};
