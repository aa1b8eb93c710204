//! What a session and a connection are agreed to be: every key of RFC 7143 but those of authentication.
//!
//! ```text
//!   key=value of the initiator -> Terms::answer -> key=value of the target, and the terms are changed
//! ```
//! Not here: who may log in ([`super`]), CHAP ([`super::chap`]). Pure. What holds: the target proposes nothing by itself, so that one
//! answer settles each key; a key that was settled is not settled again; what is not offered has the standard's default.

use std::collections::BTreeSet;

/// Bounds of lengths, in bytes.
const LENGTH: std::ops::RangeInclusive<u32> = 512..=0x00ff_ffff;
/// Keys that are remembered as settled: more have no meaning.
const MAX_SETTLED: usize = 64;

/// What the target allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Connections of a session.
    pub max_connections: u16,
    /// 0 or 1.
    pub error_recovery_level: u8,
    /// The most data without being asked for, in bytes.
    pub first_burst: u32,
    /// The most data of one request for them, in bytes.
    pub max_burst: u32,
    /// Requests for data of one command at once.
    pub max_outstanding_r2t: u16,
    /// The longest data segment that is received, in bytes.
    pub max_segment: u32,
}

/// What was agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Connections of the session.
    pub max_connections: u16,
    /// 0: what is damaged ends the connection. 1: it is sent again.
    pub error_recovery_level: u8,
    /// No data but immediate ones come without being asked for.
    pub initial_r2t: bool,
    /// Data may come with the command.
    pub immediate_data: bool,
    /// The most data without being asked for, in bytes.
    pub first_burst: u32,
    /// The most data of one request, or of one sequence of a read, in bytes.
    pub max_burst: u32,
    /// Requests for data of one command at once.
    pub max_outstanding_r2t: u16,
    /// The longest data segment that the initiator receives on this connection, in bytes.
    pub max_segment: u32,
    /// Headers have a digest on this connection.
    pub header_digest: bool,
    /// Data have one.
    pub data_digest: bool,
}

impl Default for Terms {
    /// The standard's.
    fn default() -> Self {
        Terms {
            max_connections: 1,
            error_recovery_level: 0,
            initial_r2t: true,
            immediate_data: true,
            first_burst: 65_536,
            max_burst: 262_144,
            max_outstanding_r2t: 1,
            max_segment: 8192,
            header_digest: false,
            data_digest: false,
        }
    }
}

/// What kind of login asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Circumstances {
    /// A discovery session.
    pub is_discovery: bool,
    /// The first connection of its session.
    pub is_leading: bool,
}

/// A negotiation under way.
#[derive(Debug)]
pub(super) struct Negotiation {
    /// What is agreed so far.
    pub terms: Terms,
    allowance: Allowance,
    settled: BTreeSet<String>,
    has_declared: bool,
}

/// A key came twice, or there are too many: the login ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Repeated;

/// What may be answered besides values.
const REJECT: &str = "Reject";
const IRRELEVANT: &str = "Irrelevant";
const NOT_UNDERSTOOD: &str = "NotUnderstood";

impl Negotiation {
    /// One that nothing was said in yet. A further connection begins with the `terms` of its session.
    #[must_use]
    pub(super) fn new(allowance: Allowance, terms: Terms) -> Self {
        let terms = Terms { max_segment: 8192, header_digest: false, data_digest: false, ..terms };
        Negotiation { terms, allowance, settled: BTreeSet::new(), has_declared: false }
    }

    /// What the target says of itself, once.
    pub(super) fn declaration(&mut self) -> Option<(String, String)> {
        let is_due = !std::mem::replace(&mut self.has_declared, true);
        is_due.then(|| ("MaxRecvDataSegmentLength".to_owned(), self.allowance.max_segment.to_string()))
    }

    /// Settles a key; `Some` is the answer.
    pub(super) fn answer(
        &mut self,
        key: &str,
        value: &str,
        circumstances: Circumstances,
    ) -> Result<Option<String>, Repeated> {
        if self.settled.len() >= MAX_SETTLED || !self.settled.insert(key.to_owned()) {
            return Err(Repeated);
        }
        Ok(self.settle(key, value, circumstances))
    }

    fn settle(
        &mut self,
        key: &str,
        value: &str,
        Circumstances { is_discovery, is_leading }: Circumstances,
    ) -> Option<String> {
        let (terms, own) = (&mut self.terms, self.allowance);
        let reject = || Some(REJECT.to_owned());
        match key {
            "HeaderDigest" | "DataDigest" => {
                let choice = value.split(',').find(|choice| matches!(*choice, "CRC32C" | "None"));
                let Some(choice) = choice else { return reject() };
                let is_on = choice == "CRC32C";
                if key == "HeaderDigest" {
                    terms.header_digest = is_on;
                } else {
                    terms.data_digest = is_on;
                }
                return Some(choice.to_owned());
            }
            "MaxRecvDataSegmentLength" => {
                let Some(length) = number(value).filter(|n| LENGTH.contains(n)) else { return reject() };
                terms.max_segment = length;
                return None;
            }
            "OFMarker" | "IFMarker" => return Some("No".to_owned()),
            "OFMarkInt" | "IFMarkInt" => return reject(),
            "TaskReporting" => {
                let has_plain = value.split(',').any(|choice| choice == "RFC3720");
                return Some(if has_plain { "RFC3720" } else { REJECT }.to_owned());
            }
            "iSCSIProtocolLevel" => {
                let Some(level) = number(value).filter(|n| *n <= 31) else { return reject() };
                return Some(level.min(1).to_string());
            }
            "InitiatorAlias" | "NodeArchitecture" => return None,
            "MaxConnections"
            | "InitialR2T"
            | "ImmediateData"
            | "MaxBurstLength"
            | "FirstBurstLength"
            | "DefaultTime2Wait"
            | "DefaultTime2Retain"
            | "MaxOutstandingR2T"
            | "DataPDUInOrder"
            | "DataSequenceInOrder"
            | "ErrorRecoveryLevel" => {}
            _ => return Some(NOT_UNDERSTOOD.to_owned()),
        }
        // The rest is the session's, and settled by its first connection.
        if !is_leading {
            return reject();
        }
        let is_of_discovery = matches!(key, "DefaultTime2Wait" | "DefaultTime2Retain" | "ErrorRecoveryLevel");
        if is_discovery && !is_of_discovery {
            return Some(IRRELEVANT.to_owned());
        }
        let agreed = match key {
            "InitialR2T" => {
                let Some(yes) = boolean(value) else { return reject() };
                terms.initial_r2t = yes;
                return Some(word(yes));
            }
            "ImmediateData" => {
                let Some(yes) = boolean(value) else { return reject() };
                terms.immediate_data = yes;
                return Some(word(yes));
            }
            "DataPDUInOrder" | "DataSequenceInOrder" => {
                return boolean(value).map_or_else(reject, |_| Some(word(true)));
            }
            "MaxConnections" => within(value, 1, u16::MAX).map(|n| {
                terms.max_connections = n.min(own.max_connections.max(1));
                terms.max_connections.into()
            }),
            "MaxOutstandingR2T" => within(value, 1, u16::MAX).map(|n| {
                terms.max_outstanding_r2t = n.min(own.max_outstanding_r2t.max(1));
                terms.max_outstanding_r2t.into()
            }),
            "ErrorRecoveryLevel" => within(value, 0, 2).map(|n| {
                let level = u8::try_from(n).unwrap_or(0).min(own.error_recovery_level);
                terms.error_recovery_level = if is_discovery { 0 } else { level };
                terms.error_recovery_level.into()
            }),
            "MaxBurstLength" => number(value).filter(|n| LENGTH.contains(n)).map(|n| {
                terms.max_burst = n.min(own.max_burst);
                terms.max_burst
            }),
            "FirstBurstLength" => number(value).filter(|n| LENGTH.contains(n)).map(|n| {
                terms.first_burst = n.min(own.first_burst).min(terms.max_burst);
                terms.first_burst
            }),
            // Of the two waits the longer one; nothing is retained, since a session dies with its last connection.
            "DefaultTime2Wait" => within(value, 0, 3600).map(u32::from),
            _ => within(value, 0, 3600).map(|_| 0),
        };
        agreed.map(|n| n.to_string()).or_else(reject)
    }
}

/// The pairs in the order in which they are settled: the burst that bounds another one first.
#[must_use]
pub(super) fn in_order(mut pairs: Vec<(String, String)>) -> Vec<(String, String)> {
    pairs.sort_by_key(|(key, _)| key != "MaxBurstLength");
    pairs
}

fn word(yes: bool) -> String {
    if yes { "Yes" } else { "No" }.to_owned()
}

fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

/// A number, decimal or with `0x`.
fn number(value: &str) -> Option<u32> {
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit()) && !text.is_empty();
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16).ok().filter(|_| digits(hex)),
        None => value.parse().ok().filter(|_| digits(value)),
    }
}

fn within(value: &str, low: u16, high: u16) -> Option<u16> {
    number(value).and_then(|n| u16::try_from(n).ok()).filter(|n| (low..=high).contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Allowance = Allowance {
        max_connections: 4,
        error_recovery_level: 1,
        first_burst: 262_144,
        max_burst: 1 << 20,
        max_outstanding_r2t: 8,
        max_segment: 262_144,
    };
    const LEADING: Circumstances = Circumstances { is_discovery: false, is_leading: true };

    fn said(key: &str, value: &str, circumstances: Circumstances) -> (Option<String>, Terms) {
        let mut negotiation = Negotiation::new(OWN, Terms::default());
        let answer = negotiation.answer(key, value, circumstances).unwrap();
        (answer, negotiation.terms)
    }

    #[test]
    fn every_key_is_answered_as_the_standard_has_it() {
        for (key, value, due) in [
            ("HeaderDigest", "CRC32C,None", "CRC32C"),
            ("HeaderDigest", "None,CRC32C", "None"),
            ("DataDigest", "SHA9,CRC32C", "CRC32C"),
            ("DataDigest", "SHA9", "Reject"),
            ("MaxConnections", "8", "4"),
            ("MaxConnections", "1", "1"),
            ("MaxConnections", "0", "Reject"),
            ("MaxConnections", "65536", "Reject"),
            ("InitialR2T", "No", "No"),
            ("InitialR2T", "Yes", "Yes"),
            ("InitialR2T", "yes", "Reject"),
            ("ImmediateData", "No", "No"),
            ("MaxBurstLength", "16776192", "1048576"),
            ("MaxBurstLength", "0x8000", "32768"),
            ("MaxBurstLength", "511", "Reject"),
            ("MaxBurstLength", "16777216", "Reject"),
            ("MaxBurstLength", "-1", "Reject"),
            ("MaxBurstLength", "+600", "Reject"),
            ("FirstBurstLength", "65536", "65536"),
            ("FirstBurstLength", "1048576", "262144"),
            ("DefaultTime2Wait", "2", "2"),
            ("DefaultTime2Wait", "3601", "Reject"),
            ("DefaultTime2Retain", "20", "0"),
            ("MaxOutstandingR2T", "16", "8"),
            ("DataPDUInOrder", "No", "Yes"),
            ("DataSequenceInOrder", "Yes", "Yes"),
            ("DataSequenceInOrder", "Maybe", "Reject"),
            ("ErrorRecoveryLevel", "2", "1"),
            ("ErrorRecoveryLevel", "3", "Reject"),
            ("OFMarker", "Yes", "No"),
            ("IFMarker", "No", "No"),
            ("IFMarkInt", "2048~8192", "Reject"),
            ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
            ("TaskReporting", "FastAbort", "Reject"),
            ("iSCSIProtocolLevel", "2", "1"),
            ("iSCSIProtocolLevel", "0", "0"),
            ("X-com.example.sharks", "7", "NotUnderstood"),
            ("RDMAExtensions", "Yes", "NotUnderstood"),
        ] {
            assert_eq!(said(key, value, LEADING).0.as_deref(), Some(due), "{key}={value}");
        }
        for silent in ["InitiatorAlias", "NodeArchitecture"] {
            assert_eq!(said(silent, "x", LEADING).0, None);
        }
        assert_eq!(said("MaxRecvDataSegmentLength", "4096", LEADING).0, None);
        assert_eq!(said("MaxRecvDataSegmentLength", "4096", LEADING).1.max_segment, 4096);
        assert_eq!(said("MaxRecvDataSegmentLength", "0", LEADING).0.as_deref(), Some("Reject"));
    }

    #[test]
    fn what_is_the_sessions_is_settled_by_its_first_connection_and_not_for_discovery() {
        let further = Circumstances { is_leading: false, ..LEADING };
        assert_eq!(said("MaxBurstLength", "512", further), (Some("Reject".into()), Terms::default()));
        assert_eq!(said("HeaderDigest", "CRC32C", further).0.as_deref(), Some("CRC32C"));
        let discovery = Circumstances { is_discovery: true, ..LEADING };
        assert_eq!(said("FirstBurstLength", "512", discovery).0.as_deref(), Some("Irrelevant"));
        assert_eq!(said("ErrorRecoveryLevel", "1", discovery).0.as_deref(), Some("0"));
    }

    #[test]
    fn a_key_is_settled_once_and_bursts_fit_each_other() {
        let mut negotiation = Negotiation::new(OWN, Terms::default());
        let pairs =
            [("FirstBurstLength", "262144"), ("MaxBurstLength", "4096")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        for (key, value) in in_order(pairs.into()) {
            negotiation.answer(&key, &value, LEADING).unwrap();
        }
        assert_eq!((negotiation.terms.max_burst, negotiation.terms.first_burst), (4096, 4096));
        assert_eq!(negotiation.answer("MaxBurstLength", "512", LEADING), Err(Repeated));
        for i in 0..100 {
            if negotiation.answer(&format!("X-{i}"), "", LEADING).is_err() {
                assert_eq!(i, MAX_SETTLED - 2);
                break;
            }
        }
        assert_eq!(negotiation.declaration().unwrap().1, "262144");
        assert_eq!(negotiation.declaration(), None);
    }
}
