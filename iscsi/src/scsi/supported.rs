//! What this device can do, by command: REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT FUNCTIONS.
//!
//! Not here: the table ([`super::opcodes`]).

use super::field::{count16, count32};
use super::opcodes::{OPCODES, Opcode, find, has_actions};
use super::sense::Sense;

/// ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET RESET.
const MANAGEMENT: u8 = 0x80 | 0x40 | 0x10 | 0x08 | 0x02;

/// What REPORT SUPPORTED OPERATION CODES asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) has_timeouts: bool,
    /// All (0), one without service actions (1), one with (2), one of either (3).
    pub(super) options: u8,
    pub(super) code: u8,
    pub(super) action: u16,
}

/// The commands that a disk has; `has_key`: a key that can be thrown away.
pub(super) fn opcodes(question: Question, has_key: bool) -> Result<Vec<u8>, Sense> {
    let Question { has_timeouts, options, code, action } = question;
    let is_there = |opcode: &&Opcode| has_key || !opcode.needs_key();
    if options == 0 {
        let all: Vec<u8> = OPCODES.iter().filter(is_there).flat_map(|opcode| in_list(opcode, has_timeouts)).collect();
        return Ok([&count32(all.len())[..], &all].concat());
    }
    let opcode = match (options, has_actions(code)) {
        (1, true) => return Err(Sense::field(2, Some(2))),
        (2, false) if find(code, 0).is_some() => return Err(Sense::field(2, Some(2))),
        (3, false) if action != 0 => None,
        _ => find(code, action),
    };
    // 1: there is none; 3: there is, as the standard has it.
    let Some(opcode) = opcode.filter(is_there) else { return Ok(vec![0, 1, 0, 0]) };
    let [high, low] = count16(opcode.usage.len());
    let support = if has_timeouts { 0x83 } else { 0x03 };
    let mut out = [&[0, support, high, low][..], opcode.usage].concat();
    if has_timeouts {
        out.extend(timeouts(opcode));
    }
    Ok(out)
}

fn in_list(opcode: &Opcode, has_timeouts: bool) -> Vec<u8> {
    let [action_high, action_low] = opcode.action.unwrap_or(0).to_be_bytes();
    let [high, low] = count16(opcode.usage.len());
    let flags = u8::from(has_timeouts) << 1 | u8::from(opcode.action.is_some());
    let mut out = vec![opcode.code, 0, action_high, action_low, 0, flags, high, low];
    if has_timeouts {
        out.extend(timeouts(opcode));
    }
    out
}

fn timeouts(opcode: &Opcode) -> Vec<u8> {
    let (nominal, recommended) = opcode.seconds;
    [&[0, 0x0a, 0, 0][..], &nominal.to_be_bytes(), &recommended.to_be_bytes()].concat()
}

/// Task management functions; extended without timeouts, which they do not need.
pub(super) fn management(is_extended: bool) -> Vec<u8> {
    match is_extended {
        false => vec![MANAGEMENT, 0, 0, 0],
        true => [&[MANAGEMENT, 0, 0, 0x0c][..], &[0; 12]].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opcodes(has_timeouts: bool, options: u8, code: u8, action: u16) -> Result<Vec<u8>, Sense> {
        super::opcodes(Question { has_timeouts, options, code, action }, true)
    }

    #[test]
    fn one_is_found_as_it_is_asked_for() {
        assert_eq!(opcodes(false, 1, 0x28, 0).unwrap()[..5], [0, 3, 0, 10, 0x28]);
        assert!(opcodes(false, 2, 0x28, 0).is_err() && opcodes(false, 1, 0x5e, 0).is_err());
        assert_eq!(opcodes(true, 2, 0x5e, 1).unwrap().len(), 4 + 10 + 12);
        assert_eq!(opcodes(false, 3, 0x5e, 9).unwrap(), [0, 1, 0, 0]);
        assert_eq!(opcodes(false, 3, 0x28, 1).unwrap(), [0, 1, 0, 0]);
        assert_eq!(opcodes(false, 1, 0xff, 0).unwrap(), [0, 1, 0, 0]);
        assert_eq!(opcodes(true, 0, 0, 0).unwrap().len(), 4 + 20 * OPCODES.len());
        assert_eq!(management(true).len(), 16);
    }

    #[test]
    fn what_needs_a_key_is_there_where_one_is() {
        let erase = Question { has_timeouts: false, options: 2, code: 0x48, action: 3 };
        assert_eq!(super::opcodes(erase, false).unwrap(), [0, 1, 0, 0]);
        assert_eq!(super::opcodes(erase, true).unwrap()[..5], [0, 3, 0, 10, 0x48]);
        let all = Question { options: 0, ..erase };
        let [without, with] = [false, true].map(|has_key| super::opcodes(all, has_key).unwrap().len());
        assert_eq!(with - without, 8);
    }
}
