//! What initiators send, decoded.
//!
//! Not here: data segments, and whether a request may come now. What holds: a request that is decoded has no field that its kind
//! forbids outright; what is wrong with one that is not is said by the reason to reject it with.

use super::head::{Head, NO_TAG};
use super::opcode;
use super::response::Rejection;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A ping, or the answer to one.
    NopOut(NopOut),
    /// A SCSI command.
    Command(Command),
    /// A task management function.
    Management(Management),
    /// A step of a login.
    Login(Login),
    /// A text request.
    Text(Text),
    /// Data of a command.
    DataOut(DataOut),
    /// Farewell.
    Logout(Logout),
    /// Something is missing.
    Snack(Snack),
}

/// Why a header is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flaw(pub Rejection);

/// A ping, or the answer to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopOut {
    /// Whether to answer, and with which tag; [`NO_TAG`] for no answer.
    pub tag: u32,
    /// The ping that it answers, or [`NO_TAG`].
    pub target_tag: u32,
    /// Of the ping that it answers.
    pub lun: [u8; 8],
}

/// How a task stands to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// In any order.
    Simple,
    /// After all that came before it, and before all that come after it.
    Ordered,
    /// Before all that did not begin yet.
    Head,
}

/// A SCSI command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its tag.
    pub tag: u32,
    /// To which LUN.
    pub lun: [u8; 8],
    /// No unsolicited data follow.
    pub is_final: bool,
    /// Expects to read.
    pub reads: bool,
    /// Expects to write.
    pub writes: bool,
    /// How it stands to others.
    pub attribute: Attribute,
    /// Expected data transfer length, in bytes.
    pub expected: u32,
    /// 16 bytes, or more with an extended one.
    pub cdb: Cdb,
}

/// A command descriptor block; short ones need no memory of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cdb {
    /// What the header holds.
    Short([u8; 16]),
    /// With an additional segment.
    Long(Box<[u8]>),
}

impl Cdb {
    /// All of it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Cdb::Short(bytes) => bytes,
            Cdb::Long(bytes) => bytes,
        }
    }
}

/// A task management function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Management {
    /// Its own tag.
    pub tag: u32,
    /// Which; see RFC 7143, 11.5.1.
    pub function: u8,
    /// At which LUN.
    pub lun: [u8; 8],
    /// Which task.
    pub referenced: u32,
    /// That task's command number.
    pub referenced_sn: u32,
}

/// A step of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Login {
    /// Its tag; the same in all steps.
    pub tag: u32,
    /// Wants to go on to `next`.
    pub transits: bool,
    /// The text goes on in the next request.
    pub continues: bool,
    /// Current stage.
    pub stage: u8,
    /// Next stage, with `transits`.
    pub next: u8,
    /// The lowest version that the initiator speaks.
    pub version_min: u8,
    /// The session's initiator part.
    pub isid: [u8; 6],
    /// The session's target part; 0 for a new session.
    pub tsih: u16,
    /// The connection.
    pub cid: u16,
    /// The first command's number.
    pub cmd_sn: u32,
}

/// A text request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// Its tag.
    pub tag: u32,
    /// Of the answer that it wants more of.
    pub target_tag: u32,
    /// The text goes on in the next request.
    pub continues: bool,
    /// No more text follows.
    pub is_final: bool,
}

/// Data of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOut {
    /// Of which command.
    pub tag: u32,
    /// Asked for by this; [`NO_TAG`] for unsolicited data.
    pub target_tag: u32,
    /// Last of its burst.
    pub is_final: bool,
    /// Counts up from 0 in each burst.
    pub data_sn: u32,
    /// Where the bytes belong.
    pub offset: u32,
}

/// Farewell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logout {
    /// Its tag.
    pub tag: u32,
    /// 0 the session, 1 a connection, 2 a connection for its recovery.
    pub reason: u8,
    /// Which connection.
    pub cid: u16,
}

/// What is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnackKind {
    /// Data of a read, or R2Ts of a write.
    Data,
    /// Answers.
    Status,
    /// Nothing: data up to here have arrived.
    Acknowledgement,
    /// All data of a read anew, with segments of another size.
    Resegment,
}

/// Something is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snack {
    /// What.
    pub kind: SnackKind,
    /// Of which command.
    pub tag: u32,
    /// Of the acknowledgement that was asked for.
    pub target_tag: u32,
    /// The first that is missing.
    pub first: u32,
    /// How many; 0 for all from there on.
    pub count: u32,
}

impl Request {
    /// Decodes a header and its additional segments.
    pub fn decode(head: &Head, ahs: &[u8]) -> Result<Request, Flaw> {
        let code = head.opcode();
        if !ahs.is_empty() && code != opcode::COMMAND {
            return Err(Flaw(Rejection::InvalidField));
        }
        let tag = head.tag();
        Ok(match code {
            opcode::NOP_OUT => {
                let nop = NopOut { tag, target_tag: head.u32(20), lun: head.lun() };
                // Without an answer to wait for it must not take a place among commands.
                if (tag == NO_TAG && !head.is_immediate()) || (tag != NO_TAG && nop.target_tag != NO_TAG) {
                    return Err(Flaw(Rejection::Protocol));
                }
                Request::NopOut(nop)
            }
            opcode::COMMAND => Request::Command(command(head, ahs)?),
            opcode::MANAGEMENT => Request::Management(Management {
                tag,
                function: head.flags() & 0x7f,
                lun: head.lun(),
                referenced: head.u32(20),
                referenced_sn: head.u32(32),
            }),
            opcode::LOGIN => {
                let flags = head.flags();
                Request::Login(Login {
                    tag,
                    transits: flags & 0x80 != 0,
                    continues: flags & 0x40 != 0,
                    stage: flags >> 2 & 3,
                    next: flags & 3,
                    version_min: head.u8(3),
                    isid: head.bytes(8),
                    tsih: head.u16(14),
                    cid: head.u16(20),
                    cmd_sn: head.u32(24),
                })
            }
            opcode::TEXT => {
                let continues = head.flags() & 0x40 != 0;
                if continues && head.is_final() {
                    return Err(Flaw(Rejection::InvalidField));
                }
                Request::Text(Text { tag, target_tag: head.u32(20), continues, is_final: head.is_final() })
            }
            opcode::DATA_OUT => Request::DataOut(DataOut {
                tag,
                target_tag: head.u32(20),
                is_final: head.is_final(),
                data_sn: head.u32(36),
                offset: head.u32(40),
            }),
            opcode::LOGOUT => Request::Logout(Logout { tag, reason: head.flags() & 0x7f, cid: head.u16(20) }),
            opcode::SNACK => {
                let kind = match head.flags() & 0x0f {
                    0 => SnackKind::Data,
                    1 => SnackKind::Status,
                    2 => SnackKind::Acknowledgement,
                    3 => SnackKind::Resegment,
                    _ => return Err(Flaw(Rejection::InvalidField)),
                };
                Request::Snack(Snack { kind, tag, target_tag: head.u32(20), first: head.u32(40), count: head.u32(44) })
            }
            _ => return Err(Flaw(Rejection::Unsupported)),
        })
    }
}

fn command(head: &Head, ahs: &[u8]) -> Result<Command, Flaw> {
    let wrong = Flaw(Rejection::InvalidField);
    let flags = head.flags();
    let attribute = match flags & 7 {
        0 | 1 => Attribute::Simple,
        2 => Attribute::Ordered,
        3 => Attribute::Head,
        // ACA is not there, and no disk claims it.
        _ => return Err(wrong),
    };
    let mut cdb = Cdb::Short(head.bytes(32));
    let mut rest = ahs;
    while !rest.is_empty() {
        let ([high, low, kind], after) = rest.split_first_chunk().ok_or(wrong)?;
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let value = after.get(..len).ok_or(wrong)?;
        match (kind & 0x3f, &cdb) {
            // The first byte of the value is reserved.
            (1, Cdb::Short(start)) if len > 1 => {
                let all = [start.as_slice(), value.get(1..).unwrap_or_default()].concat();
                cdb = Cdb::Long(all.into());
            }
            // The length of a bidirectional command's read: those are refused by what they are.
            (2, _) if len == 5 => {}
            _ => return Err(wrong),
        }
        rest = after.get((3 + len).next_multiple_of(4) - 3..).unwrap_or_default();
    }
    let (is_final, reads, writes) = (flags & 0x80 != 0, flags & 0x40 != 0, flags & 0x20 != 0);
    // Only writes have data to follow.
    if !is_final && !writes {
        return Err(wrong);
    }
    let expected = head.u32(20);
    Ok(Command { tag: head.tag(), lun: head.lun(), is_final, reads, writes, attribute, expected, cdb })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(opcode: u8, flags: u8) -> Head {
        let mut head = Head::new(opcode);
        head.put(1, &[flags]);
        head.put(16, &[0, 0, 0, 9]);
        head
    }

    #[test]
    fn a_command_has_its_fields() {
        let mut head = head(opcode::COMMAND, 0xa2);
        head.put(8, &[0, 3, 0, 0, 0, 0, 0, 0]);
        head.put(20, &4096u32.to_be_bytes());
        head.put(32, &[0x2a, 0, 0, 0, 0, 1, 0, 0, 8]);
        let Ok(Request::Command(command)) = Request::decode(&head, &[]) else { panic!("{head:?}") };
        assert_eq!((command.tag, command.lun[1], command.expected), (9, 3, 4096));
        assert!(command.is_final && command.writes && !command.reads);
        assert_eq!(command.attribute, Attribute::Ordered);
        assert_eq!(command.cdb.bytes()[..2], [0x2a, 0]);
    }

    #[test]
    fn additional_segments_are_looked_into_and_never_beyond() {
        let head = head(opcode::COMMAND, 0xc1);
        let long = [0, 5, 1, 0, 0xaa, 0xbb, 0xcc, 0xdd, 0, 5, 2, 0, 0, 0, 2, 0];
        let Ok(Request::Command(command)) = Request::decode(&head, &long) else { panic!() };
        assert_eq!(command.cdb.bytes()[16..], [0xaa, 0xbb, 0xcc, 0xdd]);
        for wrong in [
            &[0u8, 5, 1, 0][..],
            &[0, 0, 1, 0],
            &[0, 5, 7, 0, 0, 0, 0, 0],
            &[0xff, 0xff, 1, 0],
            &[0, 4, 2, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(Request::decode(&head, wrong), Err(Flaw(Rejection::InvalidField)), "{wrong:?}");
        }
        let twice = [0, 2, 1, 0, 1, 0, 0, 0, 0, 2, 1, 0, 1, 0, 0, 0];
        assert!(Request::decode(&head, &twice).is_err());
        let nop = super::tests::head(opcode::NOP_OUT, 0x80);
        assert!(Request::decode(&nop, &[0, 2, 1, 0]).is_err());
    }

    #[test]
    fn what_is_forbidden_is_rejected_for_its_reason() {
        for (opcode, flags, reason) in [
            (0x07, 0x80, Rejection::Unsupported),
            (0x1c, 0x80, Rejection::Unsupported),
            (0x3f, 0x80, Rejection::Unsupported),
            (opcode::COMMAND, 0x41, Rejection::InvalidField),
            (opcode::COMMAND, 0x84, Rejection::InvalidField),
            (opcode::TEXT, 0xc0, Rejection::InvalidField),
            (opcode::SNACK, 0x84, Rejection::InvalidField),
            (opcode::NOP_OUT, 0x80, Rejection::Protocol),
        ] {
            assert_eq!(Request::decode(&head(opcode, flags), &[]), Err(Flaw(reason)), "{opcode:#x}");
        }
    }

    #[test]
    fn the_others_have_their_fields() {
        let mut login = head(opcode::LOGIN | 0x40, 0x87);
        login.put(8, &[0x80, 1, 2, 3, 4, 5, 0, 6]);
        login.put(20, &[0, 7]);
        login.put(24, &[0, 0, 1, 0]);
        let due = Login {
            tag: 9,
            transits: true,
            continues: false,
            stage: 1,
            next: 3,
            version_min: 0,
            isid: [0x80, 1, 2, 3, 4, 5],
            tsih: 6,
            cid: 7,
            cmd_sn: 256,
        };
        assert_eq!(Request::decode(&login, &[]), Ok(Request::Login(due)));
        let mut data = head(opcode::DATA_OUT, 0x80);
        data.put(20, &[0, 0, 0, 1]);
        data.put(36, &[0, 0, 0, 2, 0, 0, 0, 3]);
        let due = DataOut { tag: 9, target_tag: 1, is_final: true, data_sn: 2, offset: 3 };
        assert_eq!(Request::decode(&data, &[]), Ok(Request::DataOut(due)));
        let mut snack = head(opcode::SNACK, 0x81);
        snack.put(40, &[0, 0, 0, 4, 0, 0, 0, 5]);
        let due = Snack { kind: SnackKind::Status, tag: 9, target_tag: 0, first: 4, count: 5 };
        assert_eq!(Request::decode(&snack, &[]), Ok(Request::Snack(due)));
        let mut logout = head(opcode::LOGOUT, 0x81);
        logout.put(20, &[0, 2]);
        assert_eq!(Request::decode(&logout, &[]), Ok(Request::Logout(Logout { tag: 9, reason: 1, cid: 2 })));
        let mut abort = head(opcode::MANAGEMENT | 0x40, 0x81);
        abort.put(20, &[0, 0, 0, 8]);
        abort.put(32, &[0, 0, 0, 7]);
        let due = Management { tag: 9, function: 1, lun: [0; 8], referenced: 8, referenced_sn: 7 };
        assert_eq!(Request::decode(&abort, &[]), Ok(Request::Management(due)));
    }
}
