//! The commands that there are: what is used of their CDBs, and under which circumstances they are let through.
//!
//! Not here: what they do; what the circumstances are. What holds: a command that is not in the table is none, so what REPORT
//! SUPPORTED OPERATION CODES says is what is true. The length of `usage` is the CDB's.

/// What a command is for persistent reservations of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Always let through, or decides by itself.
    Free,
    /// Let through by reservations that are exclusive for writing.
    Reads,
    /// Stopped by every kind.
    Writes,
}

/// Let through although another nexus has reserved the LUN in the old way.
const OLD: u8 = 1;
/// Let through in the standby state of the port's group.
const STANDBY: u8 = 2;
/// In the unavailable state, too.
const UNAVAILABLE: u8 = 4;
/// Let through while the medium is being sanitized, or that failed.
const SANITIZING: u8 = 8;
/// Let through while the unit is stopped.
const STOPPED: u8 = 16;
/// Changes the medium.
const CHANGES: u8 = 32;
/// There only where the medium has a key that can be thrown away.
const KEYED: u8 = 64;
/// Let through although reservations were lost: it replaces them.
const REPLACES: u8 = 128;

/// Of commands that only ask who is there.
const ALWAYS: u8 = OLD | STANDBY | UNAVAILABLE | SANITIZING | STOPPED;

/// A command.
#[derive(Debug)]
pub(super) struct Opcode {
    pub(super) code: u8,
    pub(super) action: Option<u16>,
    pub(super) access: Access,
    circumstances: u8,
    /// Seconds: as it usually takes, 0 for less than one; after which an initiator may give it up, 0 for no opinion.
    pub(super) seconds: (u32, u32),
    /// The bits of the CDB that mean something; the opcode and the service action themselves.
    pub(super) usage: &'static [u8],
}

impl Opcode {
    pub(super) fn is_let_through_old_reservations(&self) -> bool {
        self.circumstances & OLD != 0
    }

    pub(super) fn works_in_standby(&self) -> bool {
        self.circumstances & STANDBY != 0
    }

    pub(super) fn works_when_unavailable(&self) -> bool {
        self.circumstances & UNAVAILABLE != 0
    }

    pub(super) fn works_while_sanitizing(&self) -> bool {
        self.circumstances & SANITIZING != 0
    }

    pub(super) fn works_when_stopped(&self) -> bool {
        self.circumstances & STOPPED != 0
    }

    pub(super) fn changes_medium(&self) -> bool {
        self.circumstances & CHANGES != 0
    }

    pub(super) fn needs_key(&self) -> bool {
        self.circumstances & KEYED != 0
    }

    pub(super) fn works_without_reservations(&self) -> bool {
        // As when the port is unavailable: who asks who is there has to be answered.
        self.circumstances & (UNAVAILABLE | REPLACES) != 0
    }
}

const fn row(code: u8, access: Access, circumstances: u8, usage: &'static [u8]) -> Opcode {
    Opcode { code, action: None, access, circumstances, seconds: (0, 60), usage }
}

const fn service(code: u8, action: u16, access: Access, circumstances: u8, usage: &'static [u8]) -> Opcode {
    Opcode { code, action: Some(action), access, circumstances, seconds: (0, 60), usage }
}

/// Takes as long as the medium is large.
const fn long(opcode: Opcode) -> Opcode {
    Opcode { seconds: (60, 86_400), ..opcode }
}

use Access::{Free, Reads, Writes};

/// All of them; those that come often first.
pub(super) static OPCODES: &[Opcode] = &[
    // READ, WRITE (10) and (16).
    row(0x28, Reads, 0, &[0x28, 0xf8, 0xff, 0xff, 0xff, 0xff, 0x00, 0xff, 0xff, 0x04]),
    row(0x2a, Writes, CHANGES, &[0x2a, 0xf8, 0xff, 0xff, 0xff, 0xff, 0x00, 0xff, 0xff, 0x04]),
    row(0x88, Reads, 0, &[0x88, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x04]),
    row(0x8a, Writes, CHANGES, &[0x8a, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x04]),
    // SYNCHRONIZE CACHE (10), (16).
    row(0x35, Writes, 0, &[0x35, 0x02, 0xff, 0xff, 0xff, 0xff, 0x00, 0xff, 0xff, 0x04]),
    row(0x91, Writes, 0, &[0x91, 0x02, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x04]),
    // TEST UNIT READY, REQUEST SENSE.
    row(0x00, Free, 0, &[0x00, 0, 0, 0, 0, 0x04]),
    row(0x03, Free, ALWAYS, &[0x03, 0x01, 0, 0, 0xff, 0x04]),
    // READ, WRITE (6).
    row(0x08, Reads, 0, &[0x08, 0x1f, 0xff, 0xff, 0xff, 0x04]),
    row(0x0a, Writes, CHANGES, &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0x04]),
    // INQUIRY.
    row(0x12, Free, ALWAYS, &[0x12, 0x01, 0xff, 0xff, 0xff, 0x04]),
    // MODE SELECT, MODE SENSE (6).
    row(0x15, Writes, STANDBY | STOPPED, &[0x15, 0x11, 0, 0, 0xff, 0x04]),
    row(0x1a, Reads, STANDBY | SANITIZING | STOPPED, &[0x1a, 0x08, 0xff, 0xff, 0xff, 0x04]),
    // RESERVE, RELEASE (6).
    row(0x16, Free, STOPPED, &[0x16, 0, 0, 0, 0, 0x04]),
    row(0x17, Free, OLD | STOPPED, &[0x17, 0, 0, 0, 0, 0x04]),
    // START STOP UNIT, SEND DIAGNOSTIC, PREVENT ALLOW MEDIUM REMOVAL.
    row(0x1b, Free, STOPPED, &[0x1b, 0x01, 0, 0x0f, 0xf7, 0x04]),
    row(0x1d, Writes, STANDBY | STOPPED, &[0x1d, 0x04, 0, 0, 0, 0x04]),
    row(0x1e, Free, STOPPED, &[0x1e, 0, 0, 0, 0x03, 0x04]),
    // READ CAPACITY (10).
    row(0x25, Free, OLD | SANITIZING, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0x04]),
    // WRITE AND VERIFY, VERIFY, PRE-FETCH (10).
    row(0x2e, Writes, CHANGES, &[0x2e, 0xf2, 0xff, 0xff, 0xff, 0xff, 0x00, 0xff, 0xff, 0x04]),
    row(0x2f, Reads, 0, &[0x2f, 0xf6, 0xff, 0xff, 0xff, 0xff, 0x00, 0xff, 0xff, 0x04]),
    row(0x34, Reads, 0, &[0x34, 0x02, 0xff, 0xff, 0xff, 0xff, 0x00, 0xff, 0xff, 0x04]),
    // READ DEFECT DATA (10).
    row(0x37, Reads, 0, &[0x37, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0x04]),
    // WRITE SAME (10), UNMAP.
    long(row(0x41, Writes, CHANGES, &[0x41, 0xf8, 0xff, 0xff, 0xff, 0xff, 0x00, 0xff, 0xff, 0x04])),
    long(row(0x42, Writes, CHANGES, &[0x42, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04])),
    // SANITIZE: OVERWRITE, BLOCK ERASE, CRYPTOGRAPHIC ERASE, EXIT FAILURE MODE.
    long(service(0x48, 0x01, Writes, CHANGES | SANITIZING, &[0x48, 0xa1, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04])),
    long(service(0x48, 0x02, Writes, CHANGES | SANITIZING, &[0x48, 0xa2, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04])),
    service(0x48, 0x03, Writes, CHANGES | SANITIZING | KEYED, &[0x48, 0xa3, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04]),
    service(0x48, 0x1f, Writes, CHANGES | SANITIZING, &[0x48, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04]),
    // MODE SELECT, MODE SENSE (10).
    row(0x55, Writes, STANDBY | STOPPED, &[0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04]),
    row(0x5a, Reads, STANDBY | SANITIZING | STOPPED, &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0x04]),
    // RESERVE, RELEASE (10).
    row(0x56, Free, STOPPED, &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0x04]),
    row(0x57, Free, OLD | STOPPED, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0x04]),
    // PERSISTENT RESERVE IN: READ KEYS, READ RESERVATION, REPORT CAPABILITIES, READ FULL STATUS.
    service(0x5e, 0x00, Free, STANDBY | STOPPED | SANITIZING, &[0x5e, 0x00, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04]),
    service(0x5e, 0x01, Free, STANDBY | STOPPED | SANITIZING, &[0x5e, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04]),
    service(0x5e, 0x02, Free, STANDBY | STOPPED | SANITIZING, &[0x5e, 0x02, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04]),
    service(0x5e, 0x03, Free, STANDBY | STOPPED | SANITIZING, &[0x5e, 0x03, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04]),
    // PERSISTENT RESERVE OUT: REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT AND ABORT, REGISTER AND IGNORE EXISTING KEY,
    // REGISTER AND MOVE, REPLACE LOST RESERVATION.
    service(0x5f, 0x00, Free, STANDBY | STOPPED | SANITIZING, &[0x5f, 0x00, 0xff, 0, 0, 255, 255, 255, 255, 0x04]),
    service(0x5f, 0x01, Free, STANDBY | STOPPED | SANITIZING, &[0x5f, 0x01, 0xff, 0, 0, 255, 255, 255, 255, 0x04]),
    service(0x5f, 0x02, Free, STANDBY | STOPPED | SANITIZING, &[0x5f, 0x02, 0xff, 0, 0, 255, 255, 255, 255, 0x04]),
    service(0x5f, 0x03, Free, STANDBY | STOPPED | SANITIZING, &[0x5f, 0x03, 0xff, 0, 0, 255, 255, 255, 255, 0x04]),
    service(0x5f, 0x04, Free, STANDBY | STOPPED | SANITIZING, &[0x5f, 0x04, 0xff, 0, 0, 255, 255, 255, 255, 0x04]),
    service(0x5f, 0x05, Free, STANDBY | STOPPED | SANITIZING, &[0x5f, 0x05, 0xff, 0, 0, 255, 255, 255, 255, 0x04]),
    service(0x5f, 0x06, Free, STANDBY | STOPPED | SANITIZING, &[0x5f, 0x06, 0xff, 0, 0, 255, 255, 255, 255, 0x04]),
    service(0x5f, 0x07, Free, STANDBY | STOPPED | SANITIZING, &[0x5f, 0x07, 0xff, 0, 0, 255, 255, 255, 255, 0x04]),
    service(
        0x5f,
        0x08,
        Free,
        STANDBY | STOPPED | SANITIZING | REPLACES,
        &[0x5f, 0x08, 0xff, 0, 0, 255, 255, 255, 255, 0x04],
    ),
    // EXTENDED COPY (LID1). Who may read and write what is decided for each segment.
    long(service(0x83, 0x00, Writes, 0, &[0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0x04])),
    // RECEIVE COPY STATUS (LID1), RECEIVE COPY OPERATING PARAMETERS, RECEIVE COPY FAILURE DETAILS (LID1).
    service(0x84, 0x00, Reads, STOPPED, &[0x84, 0x00, 255, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0x04]),
    service(0x84, 0x03, Reads, STOPPED, &[0x84, 0x03, 255, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0x04]),
    service(0x84, 0x04, Reads, STOPPED, &[0x84, 0x04, 255, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0x04]),
    // COMPARE AND WRITE, ORWRITE, WRITE AND VERIFY, VERIFY, PRE-FETCH, WRITE SAME, WRITE ATOMIC (16).
    row(0x89, Writes, CHANGES, &[0x89, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 255, 0, 0x04]),
    row(0x8b, Writes, CHANGES, &[0x8b, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x04]),
    row(0x8e, Writes, CHANGES, &[0x8e, 0xf2, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x04]),
    row(0x8f, Reads, 0, &[0x8f, 0xf6, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x04]),
    row(0x90, Reads, 0, &[0x90, 0x02, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x04]),
    long(row(
        0x93,
        Writes,
        CHANGES,
        &[0x93, 0xf9, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x04],
    )),
    row(0x9c, Writes, CHANGES, &[0x9c, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 255, 255, 0, 0x04]),
    // READ CAPACITY (16), GET LBA STATUS.
    service(0x9e, 0x10, Free, OLD | SANITIZING, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0x04]),
    service(0x9e, 0x12, Reads, 0, &[0x9e, 0x12, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x04]),
    // REPORT LUNS.
    row(0xa0, Free, ALWAYS, &[0xa0, 0, 0xff, 0, 0, 0, 255, 255, 255, 255, 0, 0x04]),
    // REPORT TARGET PORT GROUPS, REPORT SUPPORTED OPERATION CODES, REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
    service(0xa3, 0x0a, Free, ALWAYS & !OLD, &[0xa3, 0xea, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0x04]),
    service(
        0xa3,
        0x0c,
        Reads,
        STANDBY | SANITIZING | STOPPED,
        &[0xa3, 0x0c, 0x87, 255, 255, 255, 255, 255, 255, 255, 0, 0x04],
    ),
    service(
        0xa3,
        0x0d,
        Reads,
        STANDBY | SANITIZING | STOPPED,
        &[0xa3, 0x0d, 0x80, 0, 0, 0, 255, 255, 255, 255, 0, 0x04],
    ),
    // SET TARGET PORT GROUPS.
    service(
        0xa4,
        0x0a,
        Writes,
        STANDBY | UNAVAILABLE | STOPPED,
        &[0xa4, 0x0a, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0x04],
    ),
    // READ, WRITE, WRITE AND VERIFY, VERIFY (12).
    row(0xa8, Reads, 0, &[0xa8, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x04]),
    row(0xaa, Writes, CHANGES, &[0xaa, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x04]),
    row(0xae, Writes, CHANGES, &[0xae, 0xf2, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x04]),
    row(0xaf, Reads, 0, &[0xaf, 0xf6, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x04]),
    // READ DEFECT DATA (12).
    row(0xb7, Reads, 0, &[0xb7, 0x1f, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x04]),
];

/// Whether `code` has service actions.
pub(super) fn has_actions(code: u8) -> bool {
    OPCODES.iter().any(|row| row.code == code && row.action.is_some())
}

/// The command of `code`, with `action` where the code has any.
pub(super) fn find(code: u8, action: u16) -> Option<&'static Opcode> {
    OPCODES.iter().find(|row| row.code == code && row.action.is_none_or(|a| a == action))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_command_is_there_once_and_its_length_is_its_groups() {
        let mut seen = BTreeSet::new();
        for row in OPCODES {
            assert!(seen.insert((row.code, row.action)), "{:#x} {:?}", row.code, row.action);
            assert_eq!(row.usage.first(), Some(&row.code));
            let len = match row.code >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                5 => 12,
                _ => panic!("{:#x}", row.code),
            };
            assert_eq!(row.usage.len(), len, "{:#x}", row.code);
            if let Some(action) = row.action {
                assert_eq!(u16::from(row.usage[1]) & 0x1f & action, action, "{:#x}", row.code);
            }
        }
        let codes: BTreeSet<u8> = OPCODES.iter().map(|row| row.code).collect();
        for code in codes {
            let kinds: BTreeSet<bool> = OPCODES.iter().filter(|r| r.code == code).map(|r| r.action.is_some()).collect();
            assert_eq!(kinds.len(), 1, "{code:#x}");
        }
    }
}
