//! The network block device, both sides: the server that offers exports, and the client that reads what others offer.
//!
//! ```text
//!   proto     every message as bytes, pure          errno    error kinds <-> NBD errors
//!   client    a BlockDevice over a connection       uri      where a server is
//!   server    exports over sockets (async inside, synchronous to its caller)
//!   tls       files and rules of encryption         certificate   whose one is
//! ```
//! Not here: what a device is.

mod certificate;
mod client;
mod errno;
pub mod proto;
mod server;
mod tls;
mod uri;

pub use crate::serving::{Listener, Place, Report};
pub use client::{ClientOptions, NbdClient};
pub use server::{ConnectionReport, Server, ServerOptions};
pub use tls::{Tls, TlsDemand, TlsFiles, check_private, no_psk};
pub use uri::{DEFAULT_PORT, NbdUri, TlsUri};
