//! EXTENDED COPY (LID1): blocks from one LUN of this device to another, without a way through the initiator.
//!
//! ```text
//!   parameters -> Plan (pure) -> segments, one after the other -> what became of it, by list identifier
//! ```
//! Not here: streams, inline data, other devices. What holds: a plan is understood whole before anything is done; who copies may read
//! the one and write the other; memory is one step. Segments that overlap within one disk are copied as by hand, from their start.

use super::cdb::Blocks;
use super::field::{be16, be32, be64, byte, count16, count32, has, put};
use super::lun::Lun;
use super::medium::{STEP, check_stop};
use super::nexus::Nexus;
use super::opcodes::Access;
use super::seat::Seat;
use super::sense::{Code, Key, Outcome, Sense};
use super::transfer::durability;
use super::vpd;
use coffer_gateway::Zeroing;
use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

const HEADER: usize = 16;
/// Identification descriptor, and its length.
const IDENTIFICATION: u8 = 0xe4;
const TARGET: usize = 32;
/// Block to block, and its length.
const BLOCKS: u8 = 0x02;
const SEGMENT: usize = 28;
const MAX_TARGETS: u16 = 16;
const MAX_SEGMENTS: u16 = 64;
/// Bytes of all descriptors.
const MAX_DESCRIPTORS: usize = MAX_TARGETS as usize * TARGET + MAX_SEGMENTS as usize * SEGMENT;
/// Results that a nexus may ask for later.
const MAX_HELD: usize = 16;
/// Copies of one nexus at a time are bounded by its tasks; this is what is told.
const CONCURRENT: u8 = 255;

/// Who is copied from or to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    code_set: u8,
    kind: u8,
    name: Vec<u8>,
}

/// Blocks from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    from: u16,
    to: u16,
    count: u16,
    /// The count is of the destination's blocks (DC).
    is_counted_there: bool,
    from_lba: u64,
    to_lba: u64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    id: u8,
    /// What becomes of it is remembered.
    is_held: bool,
    targets: Vec<Target>,
    segments: Vec<Segment>,
}

/// What became of a copy.
#[derive(Clone, Copy, Debug)]
struct Copied {
    id: u8,
    is_running: bool,
    segments: u16,
    bytes: u64,
    failure: Option<Sense>,
}

/// What became of a nexus's copies.
#[derive(Debug, Default)]
pub(super) struct Copies(Mutex<VecDeque<Copied>>);

impl Copies {
    fn put(&self, copied: Copied) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| other.id != copied.id);
        if all.len() == MAX_HELD {
            all.pop_front();
        }
        all.push_back(copied);
    }

    fn get(&self, id: u8) -> Option<Copied> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().find(|copied| copied.id == id).copied()
    }

    fn drop(&self, id: u8) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|copied| copied.id != id);
    }
}

/// That a parameter list is not longer than any can be.
pub(super) fn check_list(list: u32) -> Result<(), Sense> {
    match usize::try_from(list) {
        Ok(0) => Ok(()),
        Ok(len) if (HEADER..=HEADER + MAX_DESCRIPTORS).contains(&len) => Ok(()),
        _ => Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR)),
    }
}

fn plan(list: &[u8]) -> Result<Plan, Sense> {
    let too_short = Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR);
    if list.len() < HEADER {
        return Err(too_short);
    }
    let len = |at| usize::try_from(be32(list, at)).unwrap_or(usize::MAX);
    let (targets_len, segments_len) = (usize::from(be16(list, 2)), len(8));
    if len(12) != 0 {
        return Err(Sense::illegal(Code::COPY_INLINE_DATA_TOO_LONG));
    }
    let segments_at = HEADER.saturating_add(targets_len);
    let end = segments_at.saturating_add(segments_len);
    let (Some(targets), Some(segments)) = (list.get(HEADER..segments_at), list.get(segments_at..end)) else {
        return Err(too_short);
    };
    if targets_len.saturating_add(segments_len) > MAX_DESCRIPTORS || !targets_len.is_multiple_of(TARGET) {
        return Err(too_short);
    }
    if targets_len / TARGET > MAX_TARGETS.into() {
        return Err(Sense::illegal(Code::TOO_MANY_COPY_TARGETS));
    }
    let targets =
        targets.chunks(TARGET).enumerate().map(|(i, d)| target(d, HEADER + i * TARGET)).collect::<Result<_, _>>()?;
    // Descriptors of other types have other lengths.
    let mut found = Vec::new();
    for (i, descriptor) in segments.chunks(SEGMENT).enumerate() {
        if found.len() == usize::from(MAX_SEGMENTS) {
            return Err(Sense::illegal(Code::TOO_MANY_COPY_SEGMENTS));
        }
        found.push(segment(descriptor, segments_at + i * SEGMENT)?);
    }
    let is_held = match (byte(list, 1) >> 3) & 3 {
        0 => true,
        2 => false,
        3 if byte(list, 0) == 0 => false,
        _ => return Err(Sense::parameter(1, Some(4))),
    };
    Ok(Plan { id: byte(list, 0), is_held, targets, segments: found })
}

fn target(descriptor: &[u8], at: usize) -> Result<Target, Sense> {
    if byte(descriptor, 0) != IDENTIFICATION {
        return Err(Sense::illegal(Code::UNSUPPORTED_COPY_TARGET));
    }
    // Of a disk. How a LUN would be addressed, and that there is nobody, SPC-4 knows no more.
    if byte(descriptor, 1) & 0x1f != 0 {
        return Err(Sense::parameter(at + 1, Some(4)));
    }
    let name = descriptor.get(8..8 + usize::from(byte(descriptor, 7)).min(20)).unwrap_or_default().to_vec();
    Ok(Target { code_set: byte(descriptor, 4) & 0x0f, kind: byte(descriptor, 5) & 0x3f, name })
}

fn segment(descriptor: &[u8], at: usize) -> Result<Segment, Sense> {
    if byte(descriptor, 0) != BLOCKS {
        return Err(Sense::illegal(Code::UNSUPPORTED_COPY_SEGMENT));
    }
    if usize::from(be16(descriptor, 2)) != SEGMENT - 4 || descriptor.len() != SEGMENT {
        return Err(Sense::parameter(at + 2, None));
    }
    Ok(Segment {
        from: be16(descriptor, 4),
        to: be16(descriptor, 6),
        count: be16(descriptor, 10),
        is_counted_there: has(descriptor, 1, 0x02),
        from_lba: be64(descriptor, 12),
        to_lba: be64(descriptor, 20),
    })
}

/// Copies as the parameters say.
pub(super) fn run(nexus: &Nexus, seat: &Seat, list: &[u8], stop: &AtomicBool) -> Result<(), Outcome> {
    if list.is_empty() {
        return Ok(());
    }
    let plan = plan(list)?;
    let mut copied = Copied { id: plan.id, is_running: true, segments: 0, bytes: 0, failure: None };
    if plan.is_held {
        if nexus.copies.get(plan.id).is_some_and(|other| other.is_running) {
            return Err(Sense::parameter(0, None).into());
        }
        nexus.copies.put(copied);
    }
    let luns: Vec<Option<Arc<Lun>>> = plan.targets.iter().map(|target| find(nexus, seat, target)).collect();
    for segment in &plan.segments {
        match copy(nexus, &luns, *segment, stop) {
            Ok(bytes) => {
                copied.segments += 1;
                copied.bytes += bytes;
            }
            Err(sense) => {
                copied.failure = Some(sense);
                break;
            }
        }
    }
    copied.is_running = false;
    if plan.is_held {
        nexus.copies.put(copied);
    }
    copied.failure.map_or(Ok(()), |sense| Err(sense.into()))
}

/// The LUN that a target is, among those that the nexus sees; the one that the command came to is looked at first.
fn find(nexus: &Nexus, seat: &Seat, target: &Target) -> Option<Arc<Lun>> {
    let is_it = |lun: &Lun| {
        let is_named = |(set, kind, name): &(u8, u8, Vec<u8>)| {
            (*set, *kind) == (target.code_set, target.kind) && *name == target.name
        };
        vpd::lun_names(lun).iter().any(is_named)
    };
    if is_it(&seat.lun) {
        return Some(Arc::clone(&seat.lun));
    }
    nexus.seats().values().map(|seat| &seat.lun).find(|lun| is_it(lun)).cloned()
}

/// Why a segment failed.
fn aborted(code: Code) -> Sense {
    Sense::new(Key::CopyAborted, code)
}

/// Copies a segment, and says how many bytes that were.
fn copy(nexus: &Nexus, luns: &[Option<Arc<Lun>>], segment: Segment, stop: &AtomicBool) -> Result<u64, Sense> {
    let lun = |index: u16| luns.get(usize::from(index)).and_then(Option::as_ref);
    let (Some(from), Some(to)) = (lun(segment.from), lun(segment.to)) else {
        return Err(aborted(Code::COPY_TARGET_UNREACHABLE));
    };
    let of_cause = |sense: Sense| aborted(sense.code);
    let is_free = from.check_reserved(&nexus.party, nexus.number, Access::Reads)
        && to.check_reserved(&nexus.party, nexus.number, Access::Writes);
    if !is_free {
        return Err(aborted(Code::NONE));
    }
    to.check_writable().map_err(of_cause)?;
    if let Some(sense) = from.unreadiness().or_else(|| to.unreadiness()) {
        return Err(of_cause(sense));
    }
    let counted = if segment.is_counted_there { to } else { from };
    let len = counted.medium.bytes(segment.count.into());
    let range = |lun: &Lun, lba: u64| {
        let size = u64::from(lun.medium.block_size());
        let blocks = Blocks { lba, count: len / size };
        let is_whole = len.is_multiple_of(size) && lun.medium.check(blocks).is_ok();
        is_whole.then(|| lun.medium.range(blocks)).ok_or(aborted(Code::NONE))
    };
    let (source, target) = (range(from, segment.from_lba)?, range(to, segment.to_lba)?);
    let durability = durability(to, false);
    let mut buffer = vec![0; STEP.min(usize::try_from(len).unwrap_or(STEP))];
    let mut done = 0;
    while done < len {
        check_stop(stop)?;
        let at = source.start + done;
        let (stretch, is_zero) = from.medium.content(at, source.end).map_err(of_cause)?;
        let there = target.start + done;
        if is_zero {
            let how = Zeroing { may_unmap: true, fast_only: false, durability };
            let zeroed = stretch.end - stretch.start;
            to.medium.zero(there..there + zeroed, how, stop).map_err(of_cause)?;
            done += zeroed;
            continue;
        }
        let step = buffer.len().min(usize::try_from(stretch.end - at).unwrap_or(usize::MAX));
        let part = buffer.get_mut(..step).unwrap_or_default();
        from.medium.read(at, part).map_err(of_cause)?;
        to.medium.write(there, part, durability).map_err(of_cause)?;
        done += step as u64;
    }
    Ok(len)
}

/// The reply to RECEIVE COPY RESULTS: status, operating parameters, or details of a failure.
pub(super) fn report(copies: &Copies, action: u8, id: u8) -> Result<Vec<u8>, Sense> {
    if action == 0x03 {
        return Ok(parameters());
    }
    let copied = copies.get(id).ok_or(Sense::field(2, None))?;
    if action == 0x00 {
        let status = match (copied.is_running, copied.failure) {
            (true, _) => 0,
            (false, None) => 1,
            (false, Some(_)) => 2,
        };
        let [high, low] = copied.segments.to_be_bytes();
        // In KiB (1) where bytes (0) would not fit.
        let (unit, count) = match u32::try_from(copied.bytes) {
            Ok(bytes) => (0, bytes),
            Err(_) => (1, u32::try_from(copied.bytes >> 10).unwrap_or(u32::MAX)),
        };
        return Ok([&[0, 0, 0, 8, status, high, low, unit][..], &count.to_be_bytes()].concat());
    }
    let failure = copied.failure.filter(|_| !copied.is_running).ok_or(Sense::field(2, None))?;
    // Told once.
    copies.drop(id);
    let sense = failure.encode();
    let mut out = vec![0; 60];
    put(&mut out, 0, &count32(sense.len() + 56));
    put(&mut out, 56, &[super::sense::Status::CheckCondition as u8]);
    put(&mut out, 58, &count16(sense.len()));
    out.extend(sense);
    Ok(out)
}

fn parameters() -> Vec<u8> {
    let mut out = vec![0; 44];
    // List identifiers may be left out (SNLID).
    put(&mut out, 4, &[1]);
    put(&mut out, 8, &MAX_TARGETS.to_be_bytes());
    put(&mut out, 10, &MAX_SEGMENTS.to_be_bytes());
    put(&mut out, 12, &count32(MAX_DESCRIPTORS));
    // A segment has as many blocks as two bytes can say, of 4096 bytes at most; nothing inline, nothing held.
    put(&mut out, 16, &(u32::from(u16::MAX) * 4096).to_be_bytes());
    put(&mut out, 34, &[0, CONCURRENT, CONCURRENT, 9]);
    put(&mut out, 43, &[2]);
    out.extend([BLOCKS, IDENTIFICATION]);
    let len = count32(out.len() - 4);
    put(&mut out, 0, &len);
    out
}

/// The descriptors of the vital product data: commands, parameters, descriptor types.
pub(super) fn supported() -> Vec<u8> {
    let commands = [0x83, 1, 0x00, 0x84, 3, 0x00, 0x03, 0x04];
    let mut limits = vec![0; 28];
    put(&mut limits, 4, &MAX_TARGETS.to_be_bytes());
    put(&mut limits, 6, &MAX_SEGMENTS.to_be_bytes());
    put(&mut limits, 8, &count32(MAX_DESCRIPTORS));
    let described = |kind: u16, body: &[u8]| {
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(4), 0);
        [&kind.to_be_bytes()[..], &count16(body.len()), &body].concat()
    };
    let counted = |list: &[u8]| [&[u8::try_from(list.len()).unwrap_or(0)][..], list].concat();
    [
        described(0x0001, &counted(&commands)),
        described(0x0004, &limits),
        described(0x0008, &counted(&[BLOCKS, IDENTIFICATION])),
    ]
    .concat()
}
