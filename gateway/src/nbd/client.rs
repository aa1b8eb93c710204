//! A blocking NBD client that is a block device: what any NBD server exports, read and written like a local disk.
//!
//! ```text
//!   NbdClient        cuts requests to what the server takes, keeps to its block size      this file
//!     Connection     many callers, one socket: requests out, replies back to their callers
//!     negotiation    from a fresh socket to an agreement
//!     socket         unix or TCP, TLS, bounded waiting
//! ```
//! Not here: reconnecting (the caller knows whether a run may go on), several connections. What holds: any number of
//! threads may call at once and their requests are in flight together; a server that breaks the protocol, closes or goes
//! silent gives an error to every caller and never a hang (see [`ClientOptions`]); a failed connection stays failed.

mod connection;
mod negotiation;
mod socket;

use super::proto::transmission::{Status, StatusQuery, allocation, command, command_flag};
use super::proto::{Framing, export_flag};
use super::tls;
use super::uri::{NbdUri, TlsUri};
use crate::device::{BlockDevice, Content, Durability, Extent, Zeroing, check_range};
use crate::serving::Place;
use crate::{Error, Kind, Result};
use connection::{Call, Connection, Wanted};
use negotiation::Agreed;
use socket::Socket;
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The metadata context that every server has that has any.
const BASE_ALLOCATION: &str = "base:allocation";
/// Who a server on a socket file has to be.
const LOCAL_NAME: &str = "localhost";
/// The largest zero or trim at once, so that each is answered in bounded time.
const MAX_EFFECT: u64 = 1 << 30;
/// The largest status request without extended headers: a multiple of every block size.
const MAX_COMPACT_STATUS: u64 = u32::MAX as u64 & !0xffff;
/// Bounce buffer for unaligned requests, a multiple of every block size.
const BOUNCE: usize = 1 << 20;

/// How patient a client is and what it asks for.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// For connecting, and again for the whole handshake.
    pub connect_timeout: Duration,
    /// How long a server may be silent while a reply is due, or refuse to take data. `None`: for ever.
    pub reply_timeout: Option<Duration>,
    /// Metadata contexts wanted beside `base:allocation`, such as `qemu:dirty-bitmap:NAME`.
    pub contexts: Vec<String>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            connect_timeout: Duration::from_secs(10),
            reply_timeout: Some(Duration::from_secs(120)),
            contexts: Vec::new(),
        }
    }
}

/// A connected export. The contract is the module's header.
pub struct NbdClient {
    uri: NbdUri,
    agreed: Agreed,
    connection: Connection,
    /// Held through a read-modify-write: two writes into one block of the server must not undo each other.
    unaligned: Mutex<()>,
}

impl NbdClient {
    /// Connects and agrees with the server. Errors name the URI; a missing socket or export is `NotFound`, servers older than fixed
    /// newstyle, and those that want or lack TLS, are `Unsupported`, certificates that do not please `Invalid`, everything
    /// else about the network is `Unavailable`.
    pub fn connect(uri: &NbdUri, options: &ClientOptions) -> Result<NbdClient> {
        let connect = || {
            let socket = Socket::connect(&uri.place, options.connect_timeout)?;
            let contexts = std::iter::once(BASE_ALLOCATION.to_owned()).chain(options.contexts.iter().cloned());
            let contexts = contexts.collect::<Vec<_>>();
            let set = |time| socket.set_timeout(time).map_err(|e| Error::io("bounding the socket's patience", e));
            set(Some(options.connect_timeout))?;
            negotiation::greet(&socket, options.connect_timeout)?;
            let socket = match &uri.tls {
                None => socket,
                Some(tls) => encrypted(socket, &uri.place, tls, options.connect_timeout)?,
            };
            let set = |time| socket.set_timeout(time).map_err(|e| Error::io("bounding the socket's patience", e));
            let agreed = negotiation::negotiate(&socket, &uri.export, &contexts, options.connect_timeout)?;
            set(options.reply_timeout)?;
            Ok((socket, agreed))
        };
        let (socket, agreed) = connect().map_err(|e: Error| e.within(uri))?;
        let connection = Connection::new(socket, agreed.framing);
        Ok(NbdClient { uri: uri.clone(), agreed, connection, unaligned: Mutex::new(()) })
    }

    /// Where this is connected to.
    #[must_use]
    pub fn uri(&self) -> &NbdUri {
        &self.uri
    }

    /// What the server handles best, in bytes.
    #[must_use]
    pub fn preferred_block_size(&self) -> u32 {
        self.agreed.preferred
    }

    /// Whether several connections to this export see each other's writes and share a flush.
    #[must_use]
    pub fn can_multi_conn(&self) -> bool {
        self.can(export_flag::MULTI_CONN)
    }

    /// Whether the server has the metadata context `name`.
    #[must_use]
    pub fn has_context(&self, name: &str) -> bool {
        self.context_id(name).is_some()
    }

    /// What the metadata context `name` says about `range`: consecutive stretches with the context's status bits, from the
    /// range's start on, `max` at most, at least one for a range that is not empty. Equal neighbours are one. `Unsupported`
    /// when the server lacks the context.
    pub fn status(&self, name: &str, range: Range<u64>, max: usize) -> Result<Vec<(Range<u64>, u64)>> {
        check_range(self.size(), range.start, range.end.saturating_sub(range.start))?;
        if range.is_empty() || max == 0 {
            return Ok(Vec::new());
        }
        let Some(id) = self.context_id(name) else {
            let text = format!("{}: the server does not have the metadata context {name}", self.uri);
            return Err(Error::new(Kind::Unsupported, text));
        };
        let mut asked = self.aligned(&range);
        if self.agreed.framing != Framing::Extended {
            asked.end = asked.end.min(asked.start + MAX_COMPACT_STATUS);
        }
        let flags = if max == 1 { command_flag::REQ_ONE } else { 0 };
        let mut extents: Vec<Status> = Vec::new();
        let wanted = Wanted::Extents(id, &mut extents);
        if self.can(export_flag::BLOCK_STATUS_PAYLOAD) && self.agreed.contexts.len() > 1 {
            // Spares the server, and the wire, what the other contexts would say.
            let query = StatusQuery { length: asked.end - asked.start, contexts: vec![id] };
            self.call(command::BLOCK_STATUS, flags, &asked, &query.encode(), wanted)?;
        } else {
            self.call(command::BLOCK_STATUS, flags, &asked, &[], wanted)?;
        }

        let mut found: Vec<(Range<u64>, u64)> = Vec::new();
        let mut at = asked.start;
        for Status { length, flags } in extents {
            let end = at.saturating_add(length);
            let piece = at.max(range.start)..end.min(range.end);
            at = end;
            if piece.is_empty() {
                continue;
            }
            let is_full = found.len() == max;
            match found.last_mut() {
                Some((last, same)) if *same == flags => last.end = piece.end,
                _ if is_full => break,
                _ => found.push((piece, flags)),
            }
        }
        if found.is_empty() {
            let text = format!("{}: the server's block status at offset {} leads nowhere", self.uri, range.start);
            return Err(Error::invalid(text));
        }
        Ok(found)
    }

    /// Whether the connection still holds: what fails on one that does concerns that request alone.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connection.holds()
    }

    /// Says good-bye and closes; later calls fail with `Cancelled`. What was written is durable only after
    /// [`BlockDevice::flush`]. Dropping does the same.
    pub fn disconnect(&self) {
        self.connection.disconnect();
    }

    fn can(&self, flag: u16) -> bool {
        self.agreed.flags & flag != 0
    }

    fn context_id(&self, name: &str) -> Option<u32> {
        self.agreed.contexts.iter().find(|(_, n)| n == name).map(|(id, _)| *id)
    }

    /// The blocks of the server that `range` touches.
    fn aligned(&self, range: &Range<u64>) -> Range<u64> {
        let block = u64::from(self.agreed.minimum);
        let end = range.end.checked_next_multiple_of(block).unwrap_or(range.end);
        range.start - range.start % block..end.min(self.agreed.size)
    }

    fn call(&self, command: u16, flags: u16, range: &Range<u64>, payload: &[u8], wanted: Wanted<'_>) -> Result<()> {
        let call = Call { command, flags, offset: range.start, length: range.end - range.start, payload };
        self.connection.exchange(&call, wanted).map_err(|e| e.within(&self.uri))
    }

    fn check_writable(&self, range: &Range<u64>) -> Result<()> {
        if self.is_read_only() {
            return Err(Error::new(Kind::Unsupported, format!("{}: the export is read-only", self.uri)));
        }
        check_range(self.size(), range.start, range.end.saturating_sub(range.start))
    }

    /// The flag for a forced write, and whether a flush has to do instead.
    fn forced(&self, durability: Durability) -> (u16, bool) {
        match durability {
            Durability::Cached => (0, false),
            Durability::Forced if self.can(export_flag::FUA) => (command_flag::FUA, false),
            Durability::Forced => (0, true),
        }
    }

    /// Writes whole blocks, cut to what the server takes.
    fn write_blocks(&self, offset: u64, bytes: &[u8], flags: u16) -> Result<()> {
        let mut at = offset;
        for piece in bytes.chunks(self.agreed.maximum as usize) {
            let end = at + piece.len() as u64;
            self.call(command::WRITE, flags, &(at..end), piece, Wanted::Nothing)?;
            at = end;
        }
        Ok(())
    }

    /// Writes through the blocks that `bytes` only touch: read, change, write back.
    fn write_unaligned(&self, offset: u64, bytes: &[u8], flags: u16) -> Result<()> {
        let _turn = self.unaligned.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = offset;
        let mut left = bytes;
        let mut bounce = Vec::new();
        while !left.is_empty() {
            let (piece, rest) = left.split_at(left.len().min(BOUNCE));
            let end = at + piece.len() as u64;
            let blocks = self.aligned(&(at..end));
            bounce.resize(usize_of(blocks.end - blocks.start)?, 0);
            self.read_at(blocks.start, &mut bounce)?;
            let from = usize_of(at - blocks.start)?;
            if let Some(place) = bounce.get_mut(from..from + piece.len()) {
                place.copy_from_slice(piece);
            }
            self.write_blocks(blocks.start, &bounce, flags)?;
            (at, left) = (end, rest);
        }
        Ok(())
    }

    fn write_zeroes_as_bytes(&self, range: &Range<u64>, flags: u16) -> Result<()> {
        let zeroes = vec![0; BOUNCE];
        for piece in pieces(range.clone(), BOUNCE as u64) {
            let bytes = zeroes.get(..usize_of(piece.end - piece.start)?).unwrap_or_default();
            match self.aligned(&piece) == piece {
                true => self.write_blocks(piece.start, bytes, flags)?,
                false => self.write_unaligned(piece.start, bytes, flags)?,
            }
        }
        Ok(())
    }
}

impl BlockDevice for NbdClient {
    fn size(&self) -> u64 {
        self.agreed.size
    }

    fn block_size(&self) -> u32 {
        self.agreed.minimum.clamp(512, 4096)
    }

    fn is_read_only(&self) -> bool {
        self.can(export_flag::READ_ONLY)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        check_range(self.size(), offset, out.len() as u64)?;
        let range = offset..offset + out.len() as u64;
        let mut at = offset;
        if self.aligned(&range) == range {
            for piece in out.chunks_mut(self.agreed.maximum as usize) {
                let end = at + piece.len() as u64;
                self.call(command::READ, 0, &(at..end), &[], Wanted::Bytes(piece))?;
                at = end;
            }
            return Ok(());
        }
        let mut bounce = Vec::new();
        for piece in out.chunks_mut(BOUNCE) {
            let end = at + piece.len() as u64;
            let blocks = self.aligned(&(at..end));
            bounce.resize(usize_of(blocks.end - blocks.start)?, 0);
            self.read_at(blocks.start, &mut bounce)?;
            let from = usize_of(at - blocks.start)?;
            if let Some(found) = bounce.get(from..from + piece.len()) {
                piece.copy_from_slice(found);
            }
            at = end;
        }
        Ok(())
    }

    fn try_read_at(&self, _offset: u64, _out: &mut [u8]) -> Result<bool> {
        Ok(false)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        if !self.has_context(BASE_ALLOCATION) {
            check_range(self.size(), range.start, range.end.saturating_sub(range.start))?;
            let whole = (!range.is_empty() && max > 0).then_some(Extent { range, content: Content::Bytes });
            return Ok(whole.into_iter().collect());
        }
        let mut extents: Vec<Extent> = Vec::new();
        for (range, flags) in self.status(BASE_ALLOCATION, range, max)? {
            let content = if flags & allocation::ZERO != 0 { Content::Zero } else { Content::Bytes };
            match extents.last_mut() {
                Some(last) if last.content == content => last.range.end = range.end,
                _ => extents.push(Extent { range, content }),
            }
        }
        Ok(extents)
    }

    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        let range = offset..offset.saturating_add(bytes.len() as u64);
        self.check_writable(&range)?;
        let (flags, wants_flush) = self.forced(durability);
        match self.aligned(&range) == range {
            true => self.write_blocks(offset, bytes, flags)?,
            false => self.write_unaligned(offset, bytes, flags)?,
        }
        if wants_flush { self.flush() } else { Ok(()) }
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.check_writable(&range)?;
        let (mut flags, wants_flush) = self.forced(how.durability);
        let is_aligned = self.aligned(&range) == range;
        if is_aligned && self.can(export_flag::WRITE_ZEROES) && (!how.fast_only || self.can(export_flag::FAST_ZERO)) {
            flags |= if how.may_unmap { 0 } else { command_flag::NO_HOLE };
            flags |= if how.fast_only { command_flag::FAST_ZERO } else { 0 };
            for piece in pieces(range, MAX_EFFECT) {
                self.call(command::WRITE_ZEROES, flags, &piece, &[], Wanted::Nothing)?;
            }
        } else if how.fast_only {
            return Err(Error::new(Kind::Unsupported, format!("{}: the server cannot zero quickly", self.uri)));
        } else {
            self.write_zeroes_as_bytes(&range, flags)?;
        }
        if wants_flush { self.flush() } else { Ok(()) }
    }

    fn trim(&self, range: Range<u64>) -> Result<()> {
        self.check_writable(&range)?;
        let block = u64::from(self.agreed.minimum);
        // Advice: a block that is only touched stays, and so does everything on a server that does not trim.
        let start = range.start.checked_next_multiple_of(block).unwrap_or(range.end);
        let end = if range.end == self.size() { range.end } else { range.end - range.end % block };
        if self.can(export_flag::TRIM) {
            for piece in pieces(start..end, MAX_EFFECT) {
                self.call(command::TRIM, 0, &piece, &[], Wanted::Nothing)?;
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        // A server without FLUSH says that it has no cache that could lose anything.
        if !self.can(export_flag::FLUSH) {
            return Ok(());
        }
        self.call(command::FLUSH, 0, &(0..0), &[], Wanted::Nothing)
    }

    fn compare_and_write(&self, _offset: u64, _expected: &[u8], _new: &[u8]) -> Result<Option<usize>> {
        Err(Error::new(Kind::Unsupported, format!("{}: NBD has no compare-and-write", self.uri)))
    }
}

impl fmt::Debug for NbdClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdClient").field("uri", &self.uri).field("agreed", &self.agreed).finish_non_exhaustive()
    }
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        self.disconnect();
    }
}

/// Asks for TLS and turns it on.
fn encrypted(socket: Socket, place: &Place, tls: &TlsUri, time: Duration) -> Result<Socket> {
    let Some(folder) = &tls.certificates else {
        let text =
            "with TLS the authority of the server has to be known: add tls-certificates=FOLDER, with its ca-cert.pem";
        return Err(Error::invalid(text));
    };
    let config = tls::client(folder)?;
    negotiation::ask_for_tls(&socket, time)?;
    let host = match place {
        Place::Tcp(host, _) => host.as_str(),
        Place::Unix(_) => LOCAL_NAME,
    };
    socket.encrypt(config, tls.hostname.as_deref().unwrap_or(host), time)
}

/// `range` in pieces of at most `step` bytes.
fn pieces(range: Range<u64>, step: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let piece = at..range.end.min(at.saturating_add(step));
        at = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

/// A length that was bounded before.
fn usize_of(len: u64) -> Result<usize> {
    usize::try_from(len).map_err(|_| Error::internal(format!("a buffer of {len} bytes")))
}
