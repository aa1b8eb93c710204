//! All requests but commands: pings, text, task management, logout, and what was lost on the way.
//!
//! What holds: task management waits for nothing: a task is forgotten at once, and what storage still does for it is nobody's affair
//! any more; an answer that does not fit one PDU goes on where the initiator asks for more.

use super::{Desk, Ending};
use crate::pdu::{
    Head, Logout, Management, NO_TAG, NopOut, Rejection, Request, Response, Snack, SnackKind, Text, decode_text,
    encode_text,
};
use crate::scsi::{Function, ManagementOutcome};
use crate::sender::Addressee;
use std::time::{Duration, Instant};

/// A text request, over all its PDUs.
const MAX_TEXT: usize = 64 << 10;

/// What is being said beside commands.
#[derive(Default)]
pub(super) struct Talk {
    /// A text request that goes on, and the tag that it goes on with.
    asked: Option<(u32, Vec<u8>)>,
    /// What is left of a text answer, and the tag to ask for it with.
    rest: Option<(u32, Vec<u8>)>,
    /// The ping that is not answered, and since when.
    ping: Option<(u32, Instant)>,
}

/// What came of a task management function; RFC 7143, 11.6.1.
mod managed {
    pub(super) const DONE: u8 = 0;
    pub(super) const NO_TASK: u8 = 1;
    pub(super) const NO_LUN: u8 = 2;
    pub(super) const NO_REASSIGNMENT: u8 = 4;
    pub(super) const NOT_SUPPORTED: u8 = 5;
}

impl Desk {
    /// Something whose turn has come.
    pub(super) fn take_control(&mut self, head: &Head, request: Request, text: Vec<u8>) {
        match request {
            Request::NopOut(nop) => {
                let echo = text.get(..text.len().min(self.sender.max_segment)).unwrap_or_default();
                let response = Response::NopIn { tag: nop.tag, target_tag: NO_TAG, lun: nop.lun };
                self.respond(&response, echo);
            }
            Request::Text(request) => self.take_text(&request, &text),
            Request::Management(management) => {
                let response = self.manage(&management);
                self.respond(&Response::Management { tag: management.tag, response }, &[]);
            }
            Request::Logout(logout) => self.take_logout(&logout),
            // They have no place in the order.
            Request::Command(_) | Request::Login(_) | Request::DataOut(_) | Request::Snack(_) => {
                self.violated(head, Rejection::Protocol);
            }
        }
    }

    /// The answer to a ping of ours.
    pub(super) fn take_pong(&mut self, nop: &NopOut) {
        if self.talk.ping.is_some_and(|(tag, _)| tag == nop.target_tag) {
            self.talk.ping = None;
        }
    }

    /// Asks whether the initiator is still there, if it was not asked already; how long it has not answered.
    pub(crate) fn ping(&mut self, now: Instant) -> Duration {
        if let Some((_, since)) = self.talk.ping {
            return now.saturating_duration_since(since);
        }
        let target_tag = self.target_tag();
        self.respond(&Response::NopIn { tag: NO_TAG, target_tag, lun: [0; 8] }, &[]);
        self.talk.ping = Some((target_tag, now));
        Duration::ZERO
    }

    /// The initiator is there.
    pub(crate) fn is_alive(&mut self) {
        self.talk.ping = None;
    }

    fn take_text(&mut self, request: &Text, text: &[u8]) {
        let goes_on = |tag: u32| tag == request.target_tag;
        let (asked, rest) = (self.talk.asked.take(), self.talk.rest.take());
        let mut asked = match (asked, rest) {
            _ if request.target_tag == NO_TAG => Vec::new(),
            (Some((tag, asked)), _) if goes_on(tag) => asked,
            (_, Some((tag, rest))) if goes_on(tag) => return self.say(request.tag, rest),
            _ => return self.reject_text(request),
        };
        asked.extend_from_slice(text);
        if asked.len() > MAX_TEXT {
            self.ending = Ending::Now;
            return;
        }
        if request.continues {
            let target_tag = self.target_tag();
            self.talk.asked = Some((target_tag, asked));
            return self.respond(&Response::Text { tag: request.tag, target_tag, continues: false }, &[]);
        }
        let Some(asked) = decode_text(&asked) else { return self.reject_text(request) };
        let mut answer: Vec<(String, String)> = Vec::new();
        for (key, value) in asked {
            match key.as_str() {
                "SendTargets" => answer.extend(self.services.targets_for(&self.session, &self.visit, &value)),
                "MaxRecvDataSegmentLength" => match value.parse::<usize>() {
                    Ok(length) if (512..1 << 24).contains(&length) => {
                        self.sender.max_segment = length;
                        answer.push((key, self.services.options.allowance.max_segment.to_string()));
                    }
                    _ => answer.push((key, "Reject".to_owned())),
                },
                "InitiatorAlias" | "NodeArchitecture" => {}
                // These are settled by the login, and stay.
                "HeaderDigest"
                | "DataDigest"
                | "MaxConnections"
                | "InitialR2T"
                | "ImmediateData"
                | "MaxBurstLength"
                | "FirstBurstLength"
                | "DefaultTime2Wait"
                | "DefaultTime2Retain"
                | "MaxOutstandingR2T"
                | "DataPDUInOrder"
                | "DataSequenceInOrder"
                | "ErrorRecoveryLevel"
                | "SessionType"
                | "InitiatorName"
                | "TargetName"
                | "AuthMethod"
                | "TaskReporting"
                | "iSCSIProtocolLevel" => {
                    answer.push((key, "Reject".to_owned()));
                }
                _ => answer.push((key, "NotUnderstood".to_owned())),
            }
        }
        self.say(request.tag, encode_text(&answer));
    }

    /// Answers with text, as much as fits.
    fn say(&mut self, tag: u32, mut text: Vec<u8>) {
        let rest = text.split_off(text.len().min(self.sender.max_segment));
        let continues = !rest.is_empty();
        let mut target_tag = NO_TAG;
        if continues {
            target_tag = self.target_tag();
            self.talk.rest = Some((target_tag, rest));
        }
        self.respond(&Response::Text { tag, target_tag, continues }, &text);
    }

    fn reject_text(&mut self, request: &Text) {
        let mut head = Head::new(crate::pdu::opcode::TEXT);
        head.put(16, &request.tag.to_be_bytes());
        head.put(20, &request.target_tag.to_be_bytes());
        self.reject(&head, Rejection::Protocol);
    }

    fn manage(&mut self, management: &Management) -> u8 {
        let Some(disks) = &self.session.disks else { return managed::NOT_SUPPORTED };
        let (nexus, target) = (disks.nexus.clone(), disks.target.clone());
        let own = self.visit.id();
        let lun = management.lun;
        let all_here = |desk: &mut Desk, lun| {
            let forgotten = desk.session.abort_all(own, lun);
            forgotten.into_iter().for_each(|ticket| desk.forget(ticket));
        };
        let function = match management.function {
            1 => {
                let (ticket, is_known) = self.session.abort(own, management.referenced, management.referenced_sn);
                ticket.into_iter().for_each(|ticket| self.forget(ticket));
                return match is_known {
                    true if nexus.manage(lun, Function::AbortTask) == ManagementOutcome::NoLun => managed::NO_LUN,
                    true => managed::DONE,
                    false => managed::NO_TASK,
                };
            }
            2 => Function::AbortTaskSet,
            4 => Function::ClearTaskSet,
            5 => Function::LunReset,
            6 => Function::TargetWarmReset,
            7 => Function::TargetColdReset,
            8 => return managed::NO_REASSIGNMENT,
            _ => return managed::NOT_SUPPORTED,
        };
        if nexus.manage(lun, function) == ManagementOutcome::NoLun {
            return managed::NO_LUN;
        }
        match function {
            Function::TargetWarmReset => all_here(self, None),
            Function::TargetColdReset => {
                all_here(self, None);
                target.end_sessions(own);
                self.ending = Ending::Flush;
            }
            _ => all_here(self, Some(lun)),
        }
        managed::DONE
    }

    fn take_logout(&mut self, logout: &Logout) {
        let response = match logout.reason {
            0 => {
                self.session.end(Some(self.visit.id()));
                self.ending = Ending::Flush;
                0
            }
            1 if logout.cid == self.cid => {
                self.ending = Ending::Flush;
                0
            }
            1 => u8::from(!self.session.close_connection(logout.cid)),
            _ => 2,
        };
        if self.ending == Ending::Flush {
            // Their answers would come behind the farewell.
            self.abandon();
            self.exchanges.clear();
        }
        self.respond(&Response::Logout { tag: logout.tag, response }, &[]);
    }

    pub(super) fn take_snack(&mut self, head: &Head, snack: &Snack) {
        let window = self.session.window();
        let Snack { kind, tag, target_tag, first, count } = *snack;
        let is_done = self.may_recover()
            && match kind {
                SnackKind::Status => self.sender.repeat_answers(window, first, count),
                SnackKind::Acknowledgement => self.sender.acknowledge_data(tag, first),
                SnackKind::Resegment => {
                    let to = Addressee { tag, lun: head.lun(), expected: u32::MAX };
                    self.sender.cut_again(window, to, target_tag)
                }
                SnackKind::Data => {
                    self.repeat_requests(tag, first, count) || self.sender.repeat_data(window, tag, first, count)
                }
            };
        if !is_done {
            let reason = match kind {
                SnackKind::Acknowledgement => Rejection::Acknowledgement,
                _ => Rejection::Snack,
            };
            self.reject(head, reason);
        }
    }

    /// Asks for data once more; whether there was anything to ask for.
    fn repeat_requests(&mut self, tag: u32, first: u32, count: u32) -> bool {
        let Some(exchange) = self.exchanges.get(&tag) else { return false };
        let last = if count == 0 { u32::MAX } else { first.saturating_add(count - 1) };
        let lun = exchange.command.lun;
        let open = exchange.gathering.open_requests(first).filter(|burst| burst.r2t_sn <= last);
        let again: Vec<Response> = open
            .map(|burst| Response::ReadyToTransfer {
                tag,
                target_tag: burst.target_tag,
                lun,
                r2t_sn: burst.r2t_sn,
                offset: burst.range.start,
                length: burst.range.end - burst.range.start,
            })
            .collect();
        again.iter().for_each(|response| self.respond(response, &[]));
        !again.is_empty()
    }
}
