//! Commands as their CDBs say them. Pure: bytes in, a command or a sense out.
//!
//! Not here: LUNs and their limits; which commands there are ([`super::opcodes`]). What holds: nothing panics on any bytes;
//! a field that asks for what this device never does is refused by byte and bit; bits that mean nothing are ignored, but for
//! those of SANITIZE, which nobody should meet by mistake.

use super::field::{be16, be24, be32, be64, byte, has};
use super::opcodes::{self, Opcode};
use super::sense::{Code, Sense};

/// A stretch of logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) lba: u64,
    pub(super) count: u64,
}

/// What VERIFY compares the medium with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// Nothing: it has to be readable.
    None,
    /// Bytes for all of it.
    All,
    /// One block, again and again.
    One,
}

/// Mode pages that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ModeSense {
    /// MODE SENSE (10).
    pub(super) is_ten: bool,
    pub(super) has_descriptor: bool,
    /// The block descriptor may have long LBAs.
    pub(super) has_long_lbas: bool,
    /// 0 current, 1 changeable, 2 default, 3 saved.
    pub(super) control: u8,
    pub(super) page: u8,
    pub(super) subpage: u8,
    pub(super) room: u32,
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    TestUnitReady,
    RequestSense { has_descriptors: bool, room: u32 },
    Inquiry { page: Option<u8>, room: u32 },
    ReportLuns { select: u8, room: u32 },
    ReadCapacity10,
    ReadCapacity16 { room: u32 },
    GetLbaStatus { lba: u64, room: u32 },
    Read(Blocks),
    Write { blocks: Blocks, is_forced: bool },
    WriteVerify { blocks: Blocks, is_compared: bool },
    Verify { blocks: Blocks, comparison: Comparison },
    OrWrite(Blocks),
    WriteAtomic(Blocks),
    CompareAndWrite(Blocks),
    WriteSame { blocks: Blocks, may_unmap: bool, has_data: bool },
    Unmap { list: u32 },
    Prefetch(Blocks),
    SynchronizeCache(Blocks),
    ModeSense(ModeSense),
    ModeSelect { is_ten: bool, is_saved: bool, list: u32 },
    StartStop { power: u8, is_start: bool, is_flushed: bool },
    SendDiagnostic,
    PreventRemoval { is_prevented: bool },
    ReadDefects { is_twelve: bool, lists: u8, room: u32 },
    Reserve,
    Release,
    PersistIn { action: u8, room: u32 },
    PersistOut { action: u8, scope: u8, kind: u8, list: u32 },
    ReportGroups { is_extended: bool, room: u32 },
    SetGroups { list: u32 },
    ReportOpcodes { has_timeouts: bool, options: u8, code: u8, action: u16, room: u32 },
    ReportManagement { is_extended: bool, room: u32 },
    ExtendedCopy { list: u32 },
    ReceiveCopy { action: u8, id: u8, room: u32 },
    SanitizeOverwrite { is_immediate: bool, may_exit: bool, list: u32 },
    SanitizeErase { is_immediate: bool, may_exit: bool },
    SanitizeByKey { is_immediate: bool, may_exit: bool },
    SanitizeExit,
}

impl Command {
    /// Bytes of parameters that it takes.
    pub(super) fn list_len(&self) -> u32 {
        match *self {
            Command::Unmap { list }
            | Command::ModeSelect { list, .. }
            | Command::PersistOut { list, .. }
            | Command::SetGroups { list }
            | Command::ExtendedCopy { list }
            | Command::SanitizeOverwrite { list, .. } => list,
            _ => 0,
        }
    }

    /// Bytes that it has room for in its reply, but for READ.
    pub(super) fn room(&self) -> u32 {
        match *self {
            Command::RequestSense { room, .. }
            | Command::Inquiry { room, .. }
            | Command::ReportLuns { room, .. }
            | Command::ReadCapacity16 { room }
            | Command::GetLbaStatus { room, .. }
            | Command::ModeSense(ModeSense { room, .. })
            | Command::ReadDefects { room, .. }
            | Command::PersistIn { room, .. }
            | Command::ReportGroups { room, .. }
            | Command::ReportOpcodes { room, .. }
            | Command::ReportManagement { room, .. }
            | Command::ReceiveCopy { room, .. } => room,
            Command::ReadCapacity10 => 8,
            _ => 0,
        }
    }

    /// The blocks that it is about, if it names a stretch of them.
    pub(super) fn blocks(&self) -> Option<Blocks> {
        match *self {
            Command::Read(blocks)
            | Command::Write { blocks, .. }
            | Command::WriteVerify { blocks, .. }
            | Command::Verify { blocks, .. }
            | Command::OrWrite(blocks)
            | Command::WriteAtomic(blocks)
            | Command::CompareAndWrite(blocks)
            | Command::WriteSame { blocks, .. }
            | Command::Prefetch(blocks)
            | Command::SynchronizeCache(blocks) => Some(blocks),
            Command::GetLbaStatus { lba, .. } => Some(Blocks { lba, count: 1 }),
            _ => None,
        }
    }
}

/// The command that `cdb` is.
pub(super) fn decode(cdb: &[u8]) -> Result<(Command, &'static Opcode), Sense> {
    let code = byte(cdb, 0);
    if cdb.is_empty() {
        return Err(Sense::illegal(Code::INVALID_OPCODE));
    }
    let action = u16::from(byte(cdb, 1) & 0x1f);
    let Some(opcode) = opcodes::find(code, action) else {
        return Err(match opcodes::has_actions(code) {
            true => Sense::field(1, Some(4)),
            false => Sense::illegal(Code::INVALID_OPCODE),
        });
    };
    let len = opcode.usage.len();
    if cdb.len() < len {
        return Err(Sense::field(cdb.len(), None));
    }
    // Nobody gets contingent allegiance here.
    if has(cdb, len - 1, 0x04) {
        return Err(Sense::field(len - 1, Some(2)));
    }
    Ok((command(code, cdb)?, opcode))
}

fn command(code: u8, cdb: &[u8]) -> Result<Command, Sense> {
    Ok(match code {
        0x00 => Command::TestUnitReady,
        0x03 => Command::RequestSense { has_descriptors: has(cdb, 1, 1), room: byte(cdb, 4).into() },
        0x08 => Command::Read(six(cdb)),
        0x0a => Command::Write { blocks: six(cdb), is_forced: false },
        0x12 => inquiry(cdb)?,
        0x15 | 0x55 => mode_select(cdb, code == 0x55)?,
        0x16 | 0x17 | 0x56 | 0x57 => reserve(cdb, code)?,
        0x1a | 0x5a => mode_sense(cdb, code == 0x5a),
        0x1b => start_stop(cdb)?,
        0x1d => match byte(cdb, 1) & 0xf7 == 0x04 || byte(cdb, 1) & 0xf3 == 0 {
            true if be16(cdb, 3) == 0 => Command::SendDiagnostic,
            true => return Err(Sense::field(3, None)),
            false => return Err(Sense::field(1, Some(7))),
        },
        0x1e => Command::PreventRemoval { is_prevented: has(cdb, 4, 0x03) },
        0x25 => Command::ReadCapacity10,
        0x28 | 0x88 | 0xa8 => Command::Read(blocks(cdb, code, Flags::Forced)?),
        0x2a | 0x8a | 0xaa => {
            Command::Write { blocks: blocks(cdb, code, Flags::Forced)?, is_forced: has(cdb, 1, 0x08) }
        }
        0x2e | 0x8e | 0xae => {
            let blocks = blocks(cdb, code, Flags::Compared)?;
            let is_compared = match comparison(cdb)? {
                Comparison::None => false,
                Comparison::All => true,
                Comparison::One => return Err(Sense::field(1, Some(2))),
            };
            Command::WriteVerify { blocks, is_compared }
        }
        0x2f | 0x8f | 0xaf => {
            Command::Verify { blocks: blocks(cdb, code, Flags::Compared)?, comparison: comparison(cdb)? }
        }
        0x34 | 0x90 => Command::Prefetch(stretch(cdb, code)),
        0x35 | 0x91 => Command::SynchronizeCache(stretch(cdb, code)),
        0x37 => Command::ReadDefects { is_twelve: false, lists: byte(cdb, 2), room: be16(cdb, 7).into() },
        0xb7 => Command::ReadDefects { is_twelve: true, lists: byte(cdb, 1), room: be32(cdb, 6) },
        0x41 | 0x93 => write_same(cdb, code)?,
        0x42 if has(cdb, 1, 1) => return Err(Sense::field(1, Some(0))),
        0x42 => Command::Unmap { list: be16(cdb, 7).into() },
        0x48 => sanitize(cdb)?,
        0x5e => Command::PersistIn { action: byte(cdb, 1) & 0x1f, room: be16(cdb, 7).into() },
        0x5f => Command::PersistOut {
            action: byte(cdb, 1) & 0x1f,
            scope: byte(cdb, 2) >> 4,
            kind: byte(cdb, 2) & 0x0f,
            list: be32(cdb, 5),
        },
        0x83 => Command::ExtendedCopy { list: be32(cdb, 10) },
        0x84 => Command::ReceiveCopy { action: byte(cdb, 1) & 0x1f, id: byte(cdb, 2), room: be32(cdb, 10) },
        0x89 => {
            unprotected(cdb)?;
            Command::CompareAndWrite(Blocks { lba: be64(cdb, 2), count: byte(cdb, 13).into() })
        }
        0x8b => Command::OrWrite(blocks(cdb, code, Flags::Forced)?),
        0x9c => {
            unprotected(cdb)?;
            if be16(cdb, 10) != 0 {
                return Err(Sense::field(10, None));
            }
            Command::WriteAtomic(Blocks { lba: be64(cdb, 2), count: be16(cdb, 12).into() })
        }
        0x9e if byte(cdb, 1) & 0x1f == 0x10 => Command::ReadCapacity16 { room: be32(cdb, 10) },
        0x9e => Command::GetLbaStatus { lba: be64(cdb, 2), room: be32(cdb, 10) },
        0xa0 => Command::ReportLuns { select: byte(cdb, 2), room: be32(cdb, 6) },
        0xa3 => maintenance_in(cdb)?,
        0xa4 => Command::SetGroups { list: be32(cdb, 6) },
        _ => return Err(Sense::illegal(Code::INVALID_OPCODE)),
    })
}

/// The blocks of READ (6) and WRITE (6), where a count of 0 is 256.
fn six(cdb: &[u8]) -> Blocks {
    let count = match byte(cdb, 4) {
        0 => 256,
        count => count.into(),
    };
    Blocks { lba: u64::from(be24(cdb, 1) & 0x001f_ffff), count }
}

/// The blocks of CDBs of 10, 12 and 16 bytes.
fn stretch(cdb: &[u8], code: u8) -> Blocks {
    match code >> 5 {
        4 => Blocks { lba: be64(cdb, 2), count: be32(cdb, 10).into() },
        5 => Blocks { lba: be32(cdb, 2).into(), count: be32(cdb, 6).into() },
        _ => Blocks { lba: be32(cdb, 2).into(), count: be16(cdb, 7).into() },
    }
}

/// What byte 1 has beside protection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flags {
    /// DPO and FUA.
    Forced,
    /// DPO and BYTCHK.
    Compared,
}

/// The same, where no protection may be asked for.
fn blocks(cdb: &[u8], code: u8, flags: Flags) -> Result<Blocks, Sense> {
    unprotected(cdb)?;
    // FUA_NV and RARC, which are not done here.
    let unknown = if flags == Flags::Forced { 0x07 } else { 0x09 };
    match byte(cdb, 1) & unknown {
        0 => Ok(stretch(cdb, code)),
        bits => Err(Sense::field(1, Some(7u8.saturating_sub(bits.leading_zeros().try_into().unwrap_or(0))))),
    }
}

/// There is no protection information.
fn unprotected(cdb: &[u8]) -> Result<(), Sense> {
    if has(cdb, 1, 0xe0) { Err(Sense::field(1, Some(7))) } else { Ok(()) }
}

fn comparison(cdb: &[u8]) -> Result<Comparison, Sense> {
    match (byte(cdb, 1) >> 1) & 3 {
        0 => Ok(Comparison::None),
        1 => Ok(Comparison::All),
        3 => Ok(Comparison::One),
        _ => Err(Sense::field(1, Some(2))),
    }
}

fn inquiry(cdb: &[u8]) -> Result<Command, Sense> {
    let page = has(cdb, 1, 1).then(|| byte(cdb, 2));
    if has(cdb, 1, 2) {
        return Err(Sense::field(1, Some(1)));
    }
    if page.is_none() && byte(cdb, 2) != 0 {
        return Err(Sense::field(2, None));
    }
    Ok(Command::Inquiry { page, room: be16(cdb, 3).into() })
}

fn mode_select(cdb: &[u8], is_ten: bool) -> Result<Command, Sense> {
    let list = if is_ten { be16(cdb, 7) } else { byte(cdb, 4).into() };
    if list != 0 && !has(cdb, 1, 0x10) {
        return Err(Sense::field(1, Some(4)));
    }
    Ok(Command::ModeSelect { is_ten, is_saved: has(cdb, 1, 0x01), list: list.into() })
}

fn mode_sense(cdb: &[u8], is_ten: bool) -> Command {
    Command::ModeSense(ModeSense {
        is_ten,
        has_descriptor: !has(cdb, 1, 0x08),
        has_long_lbas: is_ten && has(cdb, 1, 0x10),
        control: byte(cdb, 2) >> 6,
        page: byte(cdb, 2) & 0x3f,
        subpage: byte(cdb, 3),
        room: if is_ten { be16(cdb, 7).into() } else { byte(cdb, 4).into() },
    })
}

/// Third parties and extents are of the past.
fn reserve(cdb: &[u8], code: u8) -> Result<Command, Sense> {
    if has(cdb, 1, 0x11) {
        return Err(Sense::field(1, Some(if has(cdb, 1, 0x10) { 4 } else { 0 })));
    }
    Ok(if code & 1 == 0 { Command::Reserve } else { Command::Release })
}

fn start_stop(cdb: &[u8]) -> Result<Command, Sense> {
    let power = byte(cdb, 4) >> 4;
    // There is nothing to load or to eject.
    if power == 0 && has(cdb, 4, 0x02) {
        return Err(Sense::field(4, Some(1)));
    }
    match power {
        // Idle, standby and their timers make no difference here, and are not refused for that.
        0 | 1 | 2 | 3 | 7 | 10 | 11 => {}
        _ => return Err(Sense::field(4, Some(7))),
    }
    Ok(Command::StartStop { power, is_start: has(cdb, 4, 0x01), is_flushed: !has(cdb, 4, 0x04) })
}

fn write_same(cdb: &[u8], code: u8) -> Result<Command, Sense> {
    unprotected(cdb)?;
    // Nothing can be anchored, and each block is the same as the others.
    for (mask, bit) in [(0x10, 4), (0x04, 2), (0x02, 1)] {
        if has(cdb, 1, mask) {
            return Err(Sense::field(1, Some(bit)));
        }
    }
    let is_dataless = code == 0x93 && has(cdb, 1, 0x01);
    if code == 0x41 && has(cdb, 1, 0x01) {
        return Err(Sense::field(1, Some(0)));
    }
    Ok(Command::WriteSame { blocks: stretch(cdb, code), may_unmap: has(cdb, 1, 0x08), has_data: !is_dataless })
}

fn sanitize(cdb: &[u8]) -> Result<Command, Sense> {
    if has(cdb, 1, 0x40) {
        return Err(Sense::field(1, Some(6)));
    }
    if let Some(at) = (2..7).find(|at| byte(cdb, *at) != 0) {
        return Err(Sense::field(at, None));
    }
    let (is_immediate, may_exit, list) = (has(cdb, 1, 0x80), has(cdb, 1, 0x20), be16(cdb, 7));
    match byte(cdb, 1) & 0x1f {
        0x01 if list < 5 => Err(Sense::field(7, None)),
        0x01 => Ok(Command::SanitizeOverwrite { is_immediate, may_exit, list: list.into() }),
        _ if list != 0 => Err(Sense::field(7, None)),
        0x02 => Ok(Command::SanitizeErase { is_immediate, may_exit }),
        0x03 => Ok(Command::SanitizeByKey { is_immediate, may_exit }),
        _ => Ok(Command::SanitizeExit),
    }
}

fn maintenance_in(cdb: &[u8]) -> Result<Command, Sense> {
    let room = be32(cdb, 6);
    Ok(match byte(cdb, 1) & 0x1f {
        0x0a => match byte(cdb, 1) >> 5 {
            0 => Command::ReportGroups { is_extended: false, room },
            1 => Command::ReportGroups { is_extended: true, room },
            _ => return Err(Sense::field(1, Some(7))),
        },
        0x0c => {
            let options = byte(cdb, 2) & 0x07;
            if options > 3 {
                return Err(Sense::field(2, Some(2)));
            }
            let (has_timeouts, code, action) = (has(cdb, 2, 0x80), byte(cdb, 3), be16(cdb, 4));
            Command::ReportOpcodes { has_timeouts, options, code, action, room }
        }
        _ => Command::ReportManagement { is_extended: has(cdb, 2, 0x80), room },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read10(flags: u8) -> [u8; 10] {
        [0x28, flags, 0, 0, 1, 0, 0, 0, 3, 0]
    }

    #[test]
    fn a_command_is_read() {
        let (command, _) = decode(&read10(0x18)).unwrap();
        assert_eq!(command, Command::Read(Blocks { lba: 256, count: 3 }));
        let (command, _) = decode(&[0x08, 0xff, 0, 2, 0, 0]).unwrap();
        assert_eq!(command, Command::Read(Blocks { lba: 0x001f_0002, count: 256 }));
        // Transports hand over 16 bytes whatever the length is.
        assert!(decode(&[0; 16]).is_ok());
    }

    #[test]
    fn what_is_refused_is_named() {
        assert_eq!(decode(&read10(0x20)).unwrap_err(), Sense::field(1, Some(7)));
        assert_eq!(decode(&read10(0x02)).unwrap_err(), Sense::field(1, Some(1)));
        assert_eq!(decode(&read10(0x04)).unwrap_err(), Sense::field(1, Some(2)));
        assert_eq!(decode(&[0x28; 9]).unwrap_err(), Sense::field(9, None));
        assert_eq!(decode(&[]).unwrap_err(), Sense::illegal(Code::INVALID_OPCODE));
        assert_eq!(decode(&[0x04, 0, 0, 0, 0, 0]).unwrap_err(), Sense::illegal(Code::INVALID_OPCODE));
        assert_eq!(decode(&[0x5e, 7, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap_err(), Sense::field(1, Some(4)));
        assert_eq!(decode(&[0, 0, 0, 0, 0, 4]).unwrap_err(), Sense::field(5, Some(2)));
    }

    #[test]
    fn every_bit_that_is_said_to_be_used_is_refused_at_most_by_its_field() {
        for row in opcodes::OPCODES {
            for at in 1..row.usage.len() {
                for bit in 0..8 {
                    let mut cdb: Vec<u8> = vec![0; row.usage.len()];
                    cdb[0] = row.code;
                    cdb[1] = row.action.map_or(0, |a| u8::try_from(a).unwrap());
                    cdb[at] |= 1 << bit;
                    if let Err(sense) = decode(&cdb) {
                        assert!(
                            [Code::INVALID_FIELD_IN_CDB, Code::INVALID_OPCODE].contains(&sense.code),
                            "{cdb:x?} {sense:?}"
                        );
                    }
                }
            }
        }
    }
}
