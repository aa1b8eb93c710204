//! How commands end: status and sense, and what errors of devices are as sense. The one file where kinds of errors become SCSI's.
//!
//! Not here: who meets which end. What holds: damage is MEDIUM ERROR and nothing milder; encoding is total: what does not fit the
//! fixed format is said by leaving its valid bit out.

use coffer_gateway::{Error, Kind};

/// SAM-5 status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Good = 0x00,
    /// See the sense.
    CheckCondition = 0x02,
    /// What PRE-FETCH says when everything fits the cache.
    ConditionMet = 0x04,
    /// Try again.
    Busy = 0x08,
    /// Another nexus has reserved it.
    ReservationConflict = 0x18,
    /// Too many tasks.
    TaskSetFull = 0x28,
    /// Another nexus ended it.
    TaskAborted = 0x40,
}

/// SPC-4 sense keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Key {
    /// Nothing is wrong.
    NoSense = 0x0,
    /// It needs time, or somebody's doing.
    NotReady = 0x2,
    /// Bytes cannot be read.
    MediumError = 0x3,
    /// It is broken otherwise.
    HardwareError = 0x4,
    /// The initiator's mistake.
    IllegalRequest = 0x5,
    /// Something changed meanwhile.
    UnitAttention = 0x6,
    /// It is not to be written, or not now.
    DataProtect = 0x7,
    /// A copy ended before its end.
    CopyAborted = 0xa,
    /// The command was stopped.
    AbortedCommand = 0xb,
    /// What was compared differs.
    Miscompare = 0xe,
}

/// Additional sense code and its qualifier, in this order of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u16);

#[allow(missing_docs, reason = "SPC-4 names them")]
impl Code {
    pub const NONE: Code = Code(0x0000);
    pub const SANITIZE_IN_PROGRESS: Code = Code(0x041b);
    pub const NOT_READY_START_NEEDED: Code = Code(0x0402);
    pub const ALUA_STANDBY: Code = Code(0x040b);
    pub const ALUA_UNAVAILABLE: Code = Code(0x040c);
    pub const WRITE_ERROR: Code = Code(0x0c00);
    pub const COPY_TARGET_UNREACHABLE: Code = Code(0x0d02);
    pub const UNRECOVERED_READ_ERROR: Code = Code(0x1100);
    pub const PARAMETER_LIST_LENGTH_ERROR: Code = Code(0x1a00);
    pub const MISCOMPARE_DURING_VERIFY: Code = Code(0x1d00);
    pub const INVALID_OPCODE: Code = Code(0x2000);
    pub const LBA_OUT_OF_RANGE: Code = Code(0x2100);
    pub const INVALID_FIELD_IN_CDB: Code = Code(0x2400);
    pub const LUN_NOT_SUPPORTED: Code = Code(0x2500);
    pub const INVALID_FIELD_IN_PARAMETERS: Code = Code(0x2600);
    pub const RELEASE_OF_RESERVATION: Code = Code(0x2604);
    pub const TOO_MANY_COPY_TARGETS: Code = Code(0x2606);
    pub const UNSUPPORTED_COPY_TARGET: Code = Code(0x2607);
    pub const TOO_MANY_COPY_SEGMENTS: Code = Code(0x2608);
    pub const UNSUPPORTED_COPY_SEGMENT: Code = Code(0x2609);
    pub const COPY_INLINE_DATA_TOO_LONG: Code = Code(0x260b);
    pub const WRITE_PROTECTED: Code = Code(0x2700);
    pub const SOFTWARE_WRITE_PROTECTED: Code = Code(0x2702);
    pub const SPACE_ALLOCATION_FAILED: Code = Code(0x2707);
    pub const POWER_ON: Code = Code(0x2900);
    pub const BUS_DEVICE_RESET: Code = Code(0x2903);
    pub const NEXUS_LOSS: Code = Code(0x2907);
    pub const MODE_PARAMETERS_CHANGED: Code = Code(0x2a01);
    pub const RESERVATIONS_PREEMPTED: Code = Code(0x2a03);
    pub const RESERVATIONS_RELEASED: Code = Code(0x2a04);
    pub const REGISTRATIONS_PREEMPTED: Code = Code(0x2a05);
    pub const ALUA_STATE_CHANGED: Code = Code(0x2a06);
    pub const COMMANDS_CLEARED_BY_ANOTHER: Code = Code(0x2f00);
    pub const SANITIZE_FAILED: Code = Code(0x3103);
    pub const SAVING_NOT_SUPPORTED: Code = Code(0x3900);
    pub const REPORTED_LUNS_CHANGED: Code = Code(0x3f0e);
    pub const INTERNAL_FAILURE: Code = Code(0x4400);
    pub const RESERVATION_INFORMATION_LOST: Code = Code(0x4401);
    pub const INITIATOR_RESPONSE_TIMEOUT: Code = Code(0x4b06);
    pub const INSUFFICIENT_RESOURCES: Code = Code(0x5503);
    pub const INSUFFICIENT_REGISTRATION_RESOURCES: Code = Code(0x5504);
}

/// What a sense key says beyond its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specifics {
    /// Which field is wrong.
    Field {
        /// In the CDB, else in the parameters.
        in_cdb: bool,
        /// Where it begins.
        byte: u16,
        /// Its highest bit, if it does not fill its byte.
        bit: Option<u8>,
    },
    /// How far it is, in 65,536ths.
    Progress(u16),
}

/// Why a command ended as it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// What kind of thing it is.
    pub key: Key,
    /// What it is.
    pub code: Code,
    /// An LBA or an offset, by what the code says.
    pub information: Option<u64>,
    /// What else is known.
    pub specifics: Option<Specifics>,
    /// Whether the initiator asked for the descriptor format.
    pub has_descriptors: bool,
}

impl Sense {
    /// A sense that says no more than its code.
    #[must_use]
    pub fn new(key: Key, code: Code) -> Self {
        Sense { key, code, information: None, specifics: None, has_descriptors: false }
    }

    /// ILLEGAL REQUEST with `code`.
    #[must_use]
    pub fn illegal(code: Code) -> Self {
        Sense::new(Key::IllegalRequest, code)
    }

    /// INVALID FIELD IN CDB at a byte, and the highest bit of the field if it does not fill its byte.
    #[must_use]
    pub fn field(byte: usize, bit: Option<u8>) -> Self {
        let byte = u16::try_from(byte).unwrap_or(u16::MAX);
        Sense {
            specifics: Some(Specifics::Field { in_cdb: true, byte, bit }),
            ..Sense::illegal(Code::INVALID_FIELD_IN_CDB)
        }
    }

    /// INVALID FIELD IN PARAMETER LIST, likewise.
    #[must_use]
    pub fn parameter(byte: usize, bit: Option<u8>) -> Self {
        let byte = u16::try_from(byte).unwrap_or(u16::MAX);
        let specifics = Some(Specifics::Field { in_cdb: false, byte, bit });
        Sense { specifics, ..Sense::illegal(Code::INVALID_FIELD_IN_PARAMETERS) }
    }

    /// The same with `information`.
    #[must_use]
    pub fn at(mut self, information: u64) -> Self {
        self.information = Some(information);
        self
    }

    /// The sense of `error`, which a device gave while blocks from `lba` on were read or written.
    #[must_use]
    pub fn of_error(error: &Error, lba: u64, is_write: bool) -> Self {
        match error.kind() {
            Kind::Corrupt
            | Kind::NotFound
            | Kind::WrongKey
            | Kind::Unavailable
            | Kind::Frozen
            | Kind::Overtaken
            | Kind::Locked => {
                let code = if is_write { Code::WRITE_ERROR } else { Code::UNRECOVERED_READ_ERROR };
                Sense::new(Key::MediumError, code).at(lba)
            }
            Kind::Full => Sense::new(Key::DataProtect, Code::SPACE_ALLOCATION_FAILED),
            Kind::Retained | Kind::Unsupported => Sense::new(Key::DataProtect, Code::WRITE_PROTECTED),
            Kind::Cancelled => Sense::new(Key::AbortedCommand, Code::NONE),
            Kind::Invalid => Sense::illegal(Code::LBA_OUT_OF_RANGE).at(lba),
            Kind::Internal => Sense::new(Key::HardwareError, Code::INTERNAL_FAILURE),
        }
    }

    /// The bytes that travel.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let [asc, ascq] = self.code.0.to_be_bytes();
        let specifics = self.specifics.map(Specifics::bytes);
        if self.has_descriptors {
            let mut out = vec![0x72, self.key as u8, asc, ascq, 0, 0, 0, 0];
            if let Some(information) = self.information {
                out.extend([0x00, 0x0a, 0x80, 0]);
                out.extend(information.to_be_bytes());
            }
            if let Some([a, b, c]) = specifics {
                out.extend([0x02, 0x06, 0, 0, a, b, c, 0]);
            }
            let len = u8::try_from(out.len().saturating_sub(8)).unwrap_or(u8::MAX);
            out.iter_mut().skip(7).take(1).for_each(|place| *place = len);
            return out;
        }
        // An LBA that needs more than 32 bits does not fit, and is not said to be there.
        let information = self.information.and_then(|i| u32::try_from(i).ok());
        let mut out = vec![0x70 | if information.is_some() { 0x80 } else { 0 }, 0, self.key as u8];
        out.extend(information.unwrap_or(0).to_be_bytes());
        out.extend([0x0a, 0, 0, 0, 0, asc, ascq, 0]);
        out.extend(specifics.unwrap_or([0; 3]));
        out
    }
}

impl Specifics {
    fn bytes(self) -> [u8; 3] {
        match self {
            Specifics::Field { in_cdb, byte, bit } => {
                let [high, low] = byte.to_be_bytes();
                let which = if in_cdb { 0x40 } else { 0 };
                [0x80 | which | bit.map_or(0, |bit| 0x08 | (bit & 7)), high, low]
            }
            Specifics::Progress(done) => {
                let [high, low] = done.to_be_bytes();
                [0x80, high, low]
            }
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The status.
    pub status: Status,
    /// With CHECK CONDITION, why.
    pub sense: Option<Sense>,
}

impl Outcome {
    /// Done.
    pub const GOOD: Outcome = Outcome { status: Status::Good, sense: None };
    /// Another nexus has reserved it.
    pub const CONFLICT: Outcome = Outcome { status: Status::ReservationConflict, sense: None };

    /// The same with its sense, if it has any, in descriptor format or not.
    #[must_use]
    pub fn in_format(mut self, has_descriptors: bool) -> Self {
        self.sense = self.sense.map(|sense| Sense { has_descriptors, ..sense });
        self
    }

    /// CHECK CONDITION with `sense`.
    #[must_use]
    pub fn check(sense: Sense) -> Self {
        Outcome { status: Status::CheckCondition, sense: Some(sense) }
    }
}

impl From<Sense> for Outcome {
    fn from(sense: Sense) -> Self {
        Outcome::check(sense)
    }
}
