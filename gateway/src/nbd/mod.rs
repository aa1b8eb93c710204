//! The network block device, both sides: the server that offers exports, and the client that reads what others offer.
//!
//! ```text
//!   proto     every message as bytes, pure          errno    error kinds <-> NBD errors
//!   client    a BlockDevice over a connection       uri      where a server is
//!   server    exports over sockets (async inside, synchronous to its caller)
//! ```
//! Not here: TLS (a later issue), what a device is.

mod client;
mod errno;
pub mod proto;
mod server;
mod uri;

pub use client::{ClientOptions, NbdClient};
pub use server::{Listener, Report, Server, ServerOptions, Statistics};
pub use uri::{DEFAULT_PORT, NbdUri, Place};
