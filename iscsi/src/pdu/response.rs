//! What targets send, encoded.
//!
//! Not here: data segments and digests, which the sender puts behind a header. What holds: reserved fields are zero; every response
//! bears the session's window.

use super::head::{HEAD, Head, NO_TAG};
use super::opcode;

/// The numbers that responses bear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Of the connection's answers.
    pub stat_sn: u32,
    /// The next command that is expected.
    pub exp_cmd_sn: u32,
    /// The last one that may be sent.
    pub max_cmd_sn: u32,
}

/// Why a PDU is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rejection {
    /// Its data were damaged on the way.
    DataDigest = 0x02,
    /// What is missing cannot be had again.
    Snack = 0x03,
    /// It must not come now.
    Protocol = 0x04,
    /// It is unknown.
    Unsupported = 0x05,
    /// Too many for immediate delivery.
    Immediate = 0x06,
    /// The tag is in use.
    TaskInProgress = 0x07,
    /// An acknowledgement of what was not sent.
    Acknowledgement = 0x08,
    /// A field is wrong.
    InvalidField = 0x09,
    /// Too long a text.
    LongOperation = 0x0a,
}

/// How a login step ended: class and detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginStatus(pub u16);

#[allow(missing_docs, reason = "RFC 7143, 11.13.5 names them")]
impl LoginStatus {
    pub const SUCCESS: LoginStatus = LoginStatus(0x0000);
    pub const INITIATOR_ERROR: LoginStatus = LoginStatus(0x0200);
    pub const AUTHENTICATION_FAILED: LoginStatus = LoginStatus(0x0201);
    pub const FORBIDDEN: LoginStatus = LoginStatus(0x0202);
    pub const NOT_FOUND: LoginStatus = LoginStatus(0x0203);
    pub const UNSUPPORTED_VERSION: LoginStatus = LoginStatus(0x0205);
    pub const TOO_MANY_CONNECTIONS: LoginStatus = LoginStatus(0x0206);
    pub const MISSING_PARAMETER: LoginStatus = LoginStatus(0x0207);
    pub const CANNOT_INCLUDE: LoginStatus = LoginStatus(0x0208);
    pub const SESSION_TYPE: LoginStatus = LoginStatus(0x0209);
    pub const NO_SESSION: LoginStatus = LoginStatus(0x020a);
    pub const INVALID_REQUEST: LoginStatus = LoginStatus(0x020b);
    pub const SERVICE_UNAVAILABLE: LoginStatus = LoginStatus(0x0301);
    pub const OUT_OF_RESOURCES: LoginStatus = LoginStatus(0x0302);
}

/// What was expected and what was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residual {
    /// The same.
    #[default]
    None,
    /// So many bytes fewer than expected.
    Under(u32),
    /// So many bytes more, which were not moved.
    Over(u32),
}

impl Residual {
    fn flag(self) -> u8 {
        match self {
            Residual::None => 0,
            Residual::Under(_) => 0x02,
            Residual::Over(_) => 0x04,
        }
    }

    fn count(self) -> u32 {
        match self {
            Residual::None => 0,
            Residual::Under(count) | Residual::Over(count) => count,
        }
    }

    /// Of a command that expected to move `expected` bytes and had `actual` to move.
    #[must_use]
    pub fn of(expected: u64, actual: u64) -> Self {
        let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        match expected.cmp(&actual) {
            std::cmp::Ordering::Equal => Residual::None,
            std::cmp::Ordering::Greater => Residual::Under(count(expected - actual)),
            std::cmp::Ordering::Less => Residual::Over(count(actual - expected)),
        }
    }
}

/// What an asynchronous message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Async {
    /// Please log out within so many seconds.
    Logout(u16),
    /// The target ends this connection; wait and retain in seconds.
    ConnectionEnds(u16, u16, u16),
    /// The target ends all connections of the session.
    SessionEnds(u16, u16),
}

/// A response without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// An answer to a ping, or a ping.
    NopIn {
        /// Of the ping that is answered, or [`NO_TAG`].
        tag: u32,
        /// Of a ping of the target's, or [`NO_TAG`].
        target_tag: u32,
        /// Of the ping that is answered.
        lun: [u8; 8],
    },
    /// A command's end; sense is its data.
    Command {
        /// The command's tag.
        tag: u32,
        /// SAM-5 status.
        status: u8,
        /// How many Data-In or R2T PDUs there were.
        exp_data_sn: u32,
        /// What was left.
        residual: Residual,
    },
    /// The end of a task management function.
    Management {
        /// Its tag.
        tag: u32,
        /// See RFC 7143, 11.6.1.
        response: u8,
    },
    /// A step of a login.
    Login {
        /// Its tag.
        tag: u32,
        /// Second byte: stages, and whether they change.
        flags: u8,
        /// The session's initiator part.
        isid: [u8; 6],
        /// The session's target part.
        tsih: u16,
        /// How it went.
        status: LoginStatus,
    },
    /// An answer to a text request.
    Text {
        /// Its tag.
        tag: u32,
        /// To go on with, or [`NO_TAG`] when all is said.
        target_tag: u32,
        /// There is more of this answer; else, without being the end, it is the initiator who goes on.
        continues: bool,
    },
    /// Data of a read.
    DataIn {
        /// The command's tag.
        tag: u32,
        /// To acknowledge with, or [`NO_TAG`].
        target_tag: u32,
        /// The command's LUN; only where an acknowledgement is asked for.
        lun: [u8; 8],
        /// Last of its burst.
        is_final: bool,
        /// The command's end, when it goes with its last data.
        end: Option<(u8, Residual)>,
        /// Counts up from 0 in each command.
        data_sn: u32,
        /// Where the bytes belong.
        offset: u32,
    },
    /// Farewell.
    Logout {
        /// Its tag.
        tag: u32,
        /// 0 done, 1 no such connection, 2 no recovery here.
        response: u8,
    },
    /// Data are wanted.
    ReadyToTransfer {
        /// Of which command.
        tag: u32,
        /// To send them with.
        target_tag: u32,
        /// The command's LUN.
        lun: [u8; 8],
        /// Counts up from 0 in each command.
        r2t_sn: u32,
        /// From where on.
        offset: u32,
        /// How many bytes.
        length: u32,
    },
    /// What nobody asked about.
    Async(Async),
    /// A PDU was not taken; its header is the data.
    Reject {
        /// Why.
        reason: Rejection,
    },
}

impl Response {
    /// Whether it counts as an answer: whether the next one has another number.
    #[must_use]
    pub fn bears_status(&self) -> bool {
        match self {
            Response::NopIn { tag, .. } => *tag != NO_TAG,
            Response::DataIn { end, .. } => end.is_some(),
            Response::ReadyToTransfer { .. } => false,
            _ => true,
        }
    }

    /// The header, with `data` bytes to follow.
    #[must_use]
    pub fn encode(&self, numbers: Numbers, data: usize) -> Head {
        let mut head = Head([0; HEAD]);
        head.put(1, &[0x80]);
        head.set_data(data);
        head.put(24, &numbers.stat_sn.to_be_bytes());
        head.put(28, &numbers.exp_cmd_sn.to_be_bytes());
        head.put(32, &numbers.max_cmd_sn.to_be_bytes());
        let mut put = |opcode: u8, tag: u32| {
            head.put(0, &[opcode]);
            head.put(16, &tag.to_be_bytes());
        };
        match *self {
            Response::NopIn { tag, target_tag, lun } => {
                put(opcode::NOP_IN, tag);
                head.put(8, &lun);
                head.put(20, &target_tag.to_be_bytes());
            }
            Response::Command { tag, status, exp_data_sn, residual } => {
                put(opcode::RESPONSE, tag);
                head.put(1, &[0x80 | residual.flag(), 0, status]);
                head.put(36, &exp_data_sn.to_be_bytes());
                head.put(44, &residual.count().to_be_bytes());
            }
            Response::Management { tag, response } => {
                put(opcode::MANAGEMENT_RESPONSE, tag);
                head.put(2, &[response]);
            }
            Response::Login { tag, flags, isid, tsih, status } => {
                put(opcode::LOGIN_RESPONSE, tag);
                head.put(1, &[flags, 0, 0]);
                head.put(8, &isid);
                head.put(14, &tsih.to_be_bytes());
                head.put(36, &status.0.to_be_bytes());
            }
            Response::Text { tag, target_tag, continues } => {
                put(opcode::TEXT_RESPONSE, tag);
                let is_final = target_tag == NO_TAG;
                head.put(1, &[if continues { 0x40 } else { 0 } | if is_final { 0x80 } else { 0 }]);
                head.put(20, &target_tag.to_be_bytes());
            }
            Response::DataIn { tag, target_tag, lun, is_final, end, data_sn, offset } => {
                put(opcode::DATA_IN, tag);
                let mut flags = if is_final { 0x80 } else { 0 };
                flags |= if target_tag == NO_TAG { 0 } else { 0x40 };
                if let Some((status, residual)) = end {
                    flags |= 0x01 | residual.flag();
                    head.put(3, &[status]);
                    head.put(44, &residual.count().to_be_bytes());
                } else {
                    // Without a status its number means nothing, and is reserved.
                    head.put(24, &[0; 4]);
                }
                head.put(1, &[flags]);
                head.put(8, &lun);
                head.put(20, &target_tag.to_be_bytes());
                head.put(36, &data_sn.to_be_bytes());
                head.put(40, &offset.to_be_bytes());
            }
            Response::Logout { tag, response } => {
                put(opcode::LOGOUT_RESPONSE, tag);
                head.put(2, &[response]);
            }
            Response::ReadyToTransfer { tag, target_tag, lun, r2t_sn, offset, length } => {
                put(opcode::READY_TO_TRANSFER, tag);
                head.put(8, &lun);
                head.put(20, &target_tag.to_be_bytes());
                head.put(36, &r2t_sn.to_be_bytes());
                head.put(40, &offset.to_be_bytes());
                head.put(44, &length.to_be_bytes());
            }
            Response::Async(what) => {
                put(opcode::ASYNC, NO_TAG);
                let (event, parameters) = match what {
                    Async::Logout(seconds) => (1, [0, 0, seconds]),
                    Async::ConnectionEnds(cid, wait, retain) => (2, [cid, wait, retain]),
                    Async::SessionEnds(wait, retain) => (3, [0, wait, retain]),
                };
                head.put(36, &[event]);
                for (at, parameter) in [38, 40, 42].into_iter().zip(parameters) {
                    head.put(at, &parameter.to_be_bytes());
                }
            }
            Response::Reject { reason } => {
                put(opcode::REJECT, NO_TAG);
                head.put(2, &[reason as u8]);
            }
        }
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: Numbers = Numbers { stat_sn: 0x0a0b_0c0d, exp_cmd_sn: 2, max_cmd_sn: 0x81 };

    fn golden(response: Response, data: usize, due: &[(usize, &[u8])]) {
        let mut head = Head([0; HEAD]);
        head.put(28, &[0, 0, 0, 2, 0, 0, 0, 0x81]);
        due.iter().for_each(|(at, bytes)| head.put(*at, bytes));
        assert_eq!(response.encode(NUMBERS, data), head, "{response:?}");
    }

    #[test]
    fn golden_bytes() {
        let (lun, stat) = ([0, 3, 0, 0, 0, 0, 0, 0], &[0x0au8, 0x0b, 0x0c, 0x0d][..]);
        let none = &[0xff; 4][..];
        golden(
            Response::NopIn { tag: NO_TAG, target_tag: 7, lun },
            5,
            &[(0, &[0x20, 0x80, 0, 0, 0, 0, 0, 5]), (8, &lun), (16, none), (20, &[0, 0, 0, 7]), (24, stat)],
        );
        let residual = Residual::Under(0x200);
        golden(
            Response::Command { tag: 9, status: 2, exp_data_sn: 3, residual },
            20,
            &[
                (0, &[0x21, 0x82, 0, 2, 0, 0, 0, 20]),
                (16, &[0, 0, 0, 9]),
                (24, stat),
                (36, &[0, 0, 0, 3]),
                (44, &[0, 0, 2, 0]),
            ],
        );
        golden(
            Response::Management { tag: 9, response: 5 },
            0,
            &[(0, &[0x22, 0x80, 5]), (16, &[0, 0, 0, 9]), (24, stat)],
        );
        golden(
            Response::Login { tag: 9, flags: 0x87, isid: [1; 6], tsih: 0x0102, status: LoginStatus::NOT_FOUND },
            0,
            &[(0, &[0x23, 0x87]), (8, &[1; 6]), (14, &[1, 2]), (16, &[0, 0, 0, 9]), (24, stat), (36, &[2, 3])],
        );
        golden(
            Response::Text { tag: 9, target_tag: 1, continues: true },
            0,
            &[(0, &[0x24, 0x40]), (16, &[0, 0, 0, 9, 0, 0, 0, 1]), (24, stat)],
        );
        let end = Some((0, Residual::Over(1)));
        golden(
            Response::DataIn { tag: 9, target_tag: NO_TAG, lun: [0; 8], is_final: true, end, data_sn: 1, offset: 512 },
            512,
            &[
                (0, &[0x25, 0x85, 0, 0, 0, 0, 2, 0]),
                (16, &[0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff]),
                (24, stat),
                (36, &[0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 1]),
            ],
        );
        golden(
            Response::DataIn { tag: 9, target_tag: 5, lun, is_final: true, end: None, data_sn: 0, offset: 0 },
            4,
            &[(0, &[0x25, 0xc0, 0, 0, 0, 0, 0, 4]), (8, &lun), (16, &[0, 0, 0, 9, 0, 0, 0, 5])],
        );
        golden(Response::Logout { tag: 9, response: 1 }, 0, &[(0, &[0x26, 0x80, 1]), (16, &[0, 0, 0, 9]), (24, stat)]);
        golden(
            Response::ReadyToTransfer { tag: 9, target_tag: 4, lun, r2t_sn: 1, offset: 256, length: 128 },
            0,
            &[
                (0, &[0x31, 0x80]),
                (8, &lun),
                (16, &[0, 0, 0, 9, 0, 0, 0, 4]),
                (24, stat),
                (36, &[0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 128]),
            ],
        );
        golden(
            Response::Async(Async::Logout(10)),
            0,
            &[(0, &[0x32, 0x80]), (16, none), (24, stat), (36, &[1, 0, 0, 0, 0, 0, 0, 10])],
        );
        golden(
            Response::Reject { reason: Rejection::Protocol },
            48,
            &[(0, &[0x3f, 0x80, 4, 0, 0, 0, 0, 48]), (16, none), (24, stat)],
        );
    }

    #[test]
    fn a_residual_says_which_way() {
        assert_eq!(Residual::of(512, 512), Residual::None);
        assert_eq!(Residual::of(512, 36), Residual::Under(476));
        assert_eq!(Residual::of(0, 1 << 40), Residual::Over(u32::MAX));
    }
}
