//! Every PDU of RFC 7143 as bytes, for a target: requests in, responses out. Pure.
//!
//! ```text
//!   48 bytes of header | AHS x 4 | [CRC32C] | data segment, padded to 4 | [CRC32C]
//!   head         what every header has: opcode, lengths, tags
//!   request      what initiators send, decoded
//!   response     what targets send, encoded
//!   text         key=value lists in data segments
//!   digest       CRC32C
//! ```
//! Not here: sockets, sessions, what a PDU does. What holds: decoding never panics, allocates at most for an extended CDB, and
//! takes nothing that a length does not cover.

mod digest;
mod head;
mod request;
mod response;
mod text;

pub use digest::{DIGEST, Digest};
pub use head::{HEAD, Head, Lengths, NO_TAG, padded};
pub use request::{
    Attribute, Cdb, Command, DataOut, Flaw, Login, Logout, Management, NopOut, Request, Snack, SnackKind, Text,
};
pub use response::{Async, LoginStatus, Numbers, Rejection, Residual, Response};
pub use text::{MAX_KEY, decode_text, encode_text};

/// The first byte of a header, without the bit for immediate delivery.
#[allow(missing_docs, reason = "RFC 7143 names them")]
pub mod opcode {
    pub const NOP_OUT: u8 = 0x00;
    pub const COMMAND: u8 = 0x01;
    pub const MANAGEMENT: u8 = 0x02;
    pub const LOGIN: u8 = 0x03;
    pub const TEXT: u8 = 0x04;
    pub const DATA_OUT: u8 = 0x05;
    pub const LOGOUT: u8 = 0x06;
    pub const SNACK: u8 = 0x10;
    pub const NOP_IN: u8 = 0x20;
    pub const RESPONSE: u8 = 0x21;
    pub const MANAGEMENT_RESPONSE: u8 = 0x22;
    pub const LOGIN_RESPONSE: u8 = 0x23;
    pub const TEXT_RESPONSE: u8 = 0x24;
    pub const DATA_IN: u8 = 0x25;
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    pub const READY_TO_TRANSFER: u8 = 0x31;
    pub const ASYNC: u8 = 0x32;
    pub const REJECT: u8 = 0x3f;
}
