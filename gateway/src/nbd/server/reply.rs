//! Replies as a server frames them, straight into the buffer that is sent.
//!
//! Not here: what a reply says. What holds: the data of a read are read into their place behind the header, never copied in
//! from elsewhere; long runs of zeroes become holes where the client can take them; a read that fails leaves an error and
//! none of its bytes.

use super::super::proto::Framing;
use super::super::proto::transmission::{
    ChunkHead, OFFSET_DATA_PREFIX, Reply, Request, Status, chunk, command_flag, encode_error, encode_hole,
    encode_status,
};
use crate::Result;
use crate::serving::Buffer;
use std::ops::Range;

/// Zeroes are looked for in steps of this many bytes.
const GRAIN: usize = 4096;
/// A shorter run of zeroes among other bytes is not worth a chunk of its own.
const MIN_HOLE: usize = 32 << 10;

/// Appends "done".
pub(super) fn ok(framing: Framing, request: &Request, out: &mut Buffer) {
    match framing {
        Framing::Simple => out.extend(&Reply::encode_simple(0, request.cookie)),
        Framing::Structured | Framing::Extended => last_chunk(framing, request, chunk::NONE, &[], out),
    }
}

/// Appends an error.
pub(super) fn error(framing: Framing, request: &Request, error: u32, message: &str, out: &mut Buffer) {
    match framing {
        Framing::Simple => out.extend(&Reply::encode_simple(error, request.cookie)),
        Framing::Structured | Framing::Extended => {
            last_chunk(framing, request, chunk::ERROR, &encode_error(error, message), out);
        }
    }
}

/// Appends the extents of metadata contexts, by their ids; at least one.
pub(super) fn statuses(framing: Framing, request: &Request, contexts: &[(u32, Vec<Status>)], out: &mut Buffer) {
    for (i, (id, extents)) in contexts.iter().enumerate() {
        let (kind, payload) = encode_status(framing, *id, extents);
        let flags = if i + 1 == contexts.len() { chunk::FLAG_DONE } else { 0 };
        put_chunk(framing, request, (flags, kind), &payload, out);
    }
}

/// Appends the reply to a read whose data `fill` puts into place. When `fill` fails or says `false`, nothing is appended.
pub(super) fn data(
    framing: Framing,
    request: &Request,
    len: usize,
    out: &mut Buffer,
    fill: impl FnOnce(&mut [u8]) -> Result<bool>,
) -> Result<bool> {
    let start = out.len();
    let prefix = data_prefix(framing);
    let place = out.grow(prefix + len).get_mut(prefix..).unwrap_or_default();
    match fill(place) {
        Ok(true) => {}
        refused => {
            out.truncate(start);
            return refused;
        }
    }
    if framing == Framing::Simple {
        out.part(start..start + prefix).copy_from_slice(&Reply::encode_simple(0, request.cookie));
        return Ok(true);
    }
    let runs = match runs(place) {
        runs if runs.len() > 1 && request.flags & command_flag::DF != 0 => vec![Run { range: 0..len, is_hole: false }],
        runs => runs,
    };
    frame(framing, request, start, &runs, out);
    Ok(true)
}

/// Bytes before the data of a read.
fn data_prefix(framing: Framing) -> usize {
    match framing {
        Framing::Simple => Reply::SIMPLE_LEN,
        Framing::Structured | Framing::Extended => Reply::wire_len(framing) + OFFSET_DATA_PREFIX,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    range: Range<usize>,
    is_hole: bool,
}

/// Cuts `data` into holes and others. A hole has [`MIN_HOLE`] bytes or is all there is.
fn runs(data: &[u8]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = 0;
    for grain in data.chunks(GRAIN) {
        let end = at + grain.len();
        let is_hole = is_zero(grain);
        match runs.last_mut() {
            Some(last) if last.is_hole == is_hole => last.range.end = end,
            _ => {
                dissolve_short_hole(&mut runs);
                match runs.last_mut() {
                    Some(last) if last.is_hole == is_hole => last.range.end = end,
                    _ => runs.push(Run { range: at..end, is_hole }),
                }
            }
        }
        at = end;
    }
    if runs.len() > 1 {
        dissolve_short_hole(&mut runs);
    }
    runs
}

/// Makes the last run part of the data around it if it is a hole that is too short.
fn dissolve_short_hole(runs: &mut Vec<Run>) {
    let Some(last) = runs.last() else { return };
    if !last.is_hole || last.range.len() >= MIN_HOLE {
        return;
    }
    let Range { start, end } = last.range.clone();
    runs.pop();
    match runs.last_mut() {
        Some(before) => before.range.end = end,
        None => runs.push(Run { range: start..end, is_hole: false }),
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|b| *b == 0) && bytes.chunks(256).all(|c| c.iter().fold(0, |all, b| all | b) == 0)
}

/// Puts headers before the runs of data that lie behind the first header's place at `start`, moving data down over holes. A
/// header never reaches data that is still to be moved: a hole is longer than its own chunk and the next header together.
fn frame(framing: Framing, request: &Request, start: usize, runs: &[Run], out: &mut Buffer) {
    let prefix = data_prefix(framing);
    let header = Reply::wire_len(framing);
    let data = start + prefix;
    let mut to = start;
    for (i, Run { range, is_hole }) in runs.iter().enumerate() {
        let flags = if i + 1 == runs.len() { chunk::FLAG_DONE } else { 0 };
        let kind = if *is_hole { chunk::OFFSET_HOLE } else { chunk::OFFSET_DATA };
        let head = ChunkHead { framing, flags, kind, cookie: request.cookie, offset: request.offset };
        let offset = request.offset + range.start as u64;
        if *is_hole {
            let hole = encode_hole(offset, u32::try_from(range.len()).unwrap_or(u32::MAX));
            Reply::encode_chunk(head, hole.len(), out.part(to..to + header));
            to += header;
            out.part(to..to + hole.len()).copy_from_slice(&hole);
            to += hole.len();
        } else {
            Reply::encode_chunk(head, OFFSET_DATA_PREFIX + range.len(), out.part(to..to + header));
            out.part(to + header..to + prefix).copy_from_slice(&offset.to_be_bytes());
            to += prefix;
            if to != data + range.start {
                out.move_down(data + range.start..data + range.end, to);
            }
            to += range.len();
        }
    }
    out.truncate(to);
}

fn last_chunk(framing: Framing, request: &Request, kind: u16, payload: &[u8], out: &mut Buffer) {
    put_chunk(framing, request, (chunk::FLAG_DONE, kind), payload, out);
}

fn put_chunk(framing: Framing, request: &Request, (flags, kind): (u16, u16), payload: &[u8], out: &mut Buffer) {
    let head = ChunkHead { framing, flags, kind, cookie: request.cookie, offset: request.offset };
    Reply::encode_chunk(head, payload.len(), out.grow(Reply::wire_len(framing)));
    out.extend(payload);
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test data are small")]
mod tests {
    use super::*;
    use crate::Error;
    use crate::nbd::proto::transmission::{command, decode_hole};
    use proptest::prelude::*;

    fn request(flags: u16, length: usize) -> Request {
        Request { flags, command: command::READ, cookie: 77, offset: 1 << 33, length: length as u64 }
    }

    /// What a client makes of the reply: the data, and how many chunks there were.
    fn decoded(framing: Framing, mut bytes: &[u8], len: usize) -> (Vec<u8>, usize) {
        let mut data = vec![0xee; len];
        let mut chunks = 0;
        loop {
            let (reply, n) = Reply::decode(framing, bytes).unwrap().unwrap();
            bytes = &bytes[n..];
            chunks += 1;
            match reply {
                Reply::Simple { error, .. } => {
                    assert_eq!((error, bytes.len()), (0, len));
                    return (bytes.to_vec(), chunks);
                }
                Reply::Chunk { flags, kind, cookie, length, .. } => {
                    assert_eq!(cookie, 77);
                    let (payload, rest) = bytes.split_at(length as usize);
                    let at = |p: &[u8]| (u64::from_be_bytes(p[..8].try_into().unwrap()) - (1 << 33)) as usize;
                    match kind {
                        chunk::OFFSET_DATA => {
                            data[at(payload)..at(payload) + payload.len() - 8].copy_from_slice(&payload[8..])
                        }
                        chunk::OFFSET_HOLE => {
                            let n = decode_hole(payload).unwrap().1 as usize;
                            data[at(payload)..at(payload) + n].fill(0);
                        }
                        other => panic!("chunk type {other}"),
                    }
                    bytes = rest;
                    if flags & chunk::FLAG_DONE != 0 {
                        assert!(bytes.is_empty());
                        return (data, chunks);
                    }
                }
            }
        }
    }

    fn reply(framing: Framing, flags: u16, bytes: &[u8]) -> Vec<u8> {
        let mut out = Buffer::default();
        out.extend(b"before");
        let request = request(flags, bytes.len());
        let filled = data(framing, &request, bytes.len(), &mut out, |place| {
            place.copy_from_slice(bytes);
            Ok(true)
        });
        assert!(filled.unwrap());
        out.filled()[6..].to_vec()
    }

    proptest! {
        #[test]
        fn a_client_gets_the_bytes_back(pattern in prop::collection::vec((any::<bool>(), 1usize..100_000), 1..8), df: bool) {
            let mut bytes = Vec::new();
            for (is_zero, len) in pattern {
                bytes.resize(bytes.len() + len, if is_zero { 0 } else { 5 });
            }
            let flags = if df { command_flag::DF } else { 0 };
            for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
                let wire = reply(framing, flags, &bytes);
                let (found, chunks) = decoded(framing, &wire, bytes.len());
                prop_assert!(found == bytes);
                prop_assert!(!df || chunks == 1);
            }
        }
    }

    #[test]
    fn zeroes_are_not_sent() {
        let mut bytes = vec![0; 1 << 20];
        assert_eq!(reply(Framing::Structured, command_flag::DF, &bytes).len(), 20 + 12);
        assert_eq!(reply(Framing::Structured, 0, &bytes[..512]).len(), 20 + 12);
        bytes[500_000] = 1;
        assert_eq!(reply(Framing::Extended, 0, &bytes).len(), (32 + 12) * 2 + 32 + 8 + GRAIN);
        assert!(reply(Framing::Extended, command_flag::DF, &bytes).len() > 1 << 20);
    }

    #[test]
    fn a_short_hole_is_not_worth_a_chunk() {
        let mut bytes = vec![1; 64 << 10];
        bytes[8192..8192 + MIN_HOLE - GRAIN].fill(0);
        assert_eq!(runs(&bytes).len(), 1);
        bytes[8192..8192 + MIN_HOLE].fill(0);
        assert_eq!(runs(&bytes).len(), 3);
        let short = vec![0; GRAIN];
        assert_eq!(runs(&[&short[..], &[1; 10]].concat()), [Run { range: 0..GRAIN + 10, is_hole: false }]);
    }

    #[test]
    fn a_failed_read_leaves_nothing() {
        let mut out = Buffer::default();
        let failed = data(Framing::Structured, &request(0, 10), 10, &mut out, |_| Err(Error::corrupt("x")));
        assert!(failed.is_err() && out.is_empty());
        assert!(!data(Framing::Simple, &request(0, 10), 10, &mut out, |_| Ok(false)).unwrap() && out.is_empty());
    }
}
