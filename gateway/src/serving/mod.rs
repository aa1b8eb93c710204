//! What every server of disks is made of: sockets on event loops, storage on a few threads, memory that is shared out.
//!
//! ```text
//!   hall           event loops, listening sockets, seats; deals out whoever comes
//!     listener     a socket file, a port, or a socket that was handed over
//!   connections    who is there, for whoever asks; orders to rest or to leave
//!   pool           threads that wait for storage, connections taking turns
//!     returns      outcomes on their way back to a connection
//!   budget         memory that connections share
//!   input, buffer  bytes that came, bytes on their way out
//!   counters       what a server did so far
//!   vigil          staying awake a moment for a client that sends one request at a time
//!   reports        what is told, at a bounded rate
//! ```
//! Not here: any protocol. The NBD server and the iSCSI target are built of this. What holds: each part bounds what it holds, and
//! says so in its header.

mod budget;
mod buffer;
mod connections;
mod counters;
mod hall;
mod input;
mod listener;
mod pool;
mod reports;
mod returns;
mod vigil;

pub use budget::{Budget, Grant, Wait};
pub use buffer::{Buffer, Output};
pub use connections::{Connections, Order, Visit};
pub use counters::{Counters, Statistics};
pub use hall::{Accepted, Hall, HallOptions, Host, Stopped, Stream};
pub use input::{INPUT, Input};
pub use listener::{Listener, Listening, ListeningSocket, Place, SocketFile, tuned, tuned_local};
pub use pool::{Job, Pool, SWIFT};
pub use reports::{Report, Reports};
pub use returns::Returns;
pub use vigil::Vigil;
