//! Initiator ports as persistent reservations name them: TransportIDs of iSCSI. Pure.
//!
//! Not here: who is registered. What holds: decoding never panics; a name that was encoded is decoded to itself.

use super::field::{be16, byte, count16};
use super::sense::{Code, Sense};

/// Format 01b (name and session), protocol iSCSI.
const ISCSI_PORT: u8 = 0x45;
/// Bytes of the longest name, its separator and session included.
const MAX_NAME: usize = 223 + 5 + 12;

/// The name of an initiator port: "iqn...,i,0x" and the session's identifier.
pub(super) fn port_name(initiator: &str, isid: [u8; 6]) -> String {
    format!("{initiator},i,0x{}", super::identity::hex(&isid))
}

/// The TransportID of a port.
pub(super) fn encode(name: &str) -> Vec<u8> {
    // A NUL at least, and a multiple of four.
    let len = (name.len() / 4 + 1).saturating_mul(4).max(20);
    let [high, low] = count16(len);
    let mut out = vec![ISCSI_PORT, 0, high, low];
    out.extend(name.bytes());
    out.resize(len.saturating_add(4), 0);
    out
}

/// The port that the TransportID at the beginning of `bytes` names, and its length. `at` is where it lies in the parameters.
pub(super) fn decode(bytes: &[u8], at: usize) -> Result<(String, usize), Sense> {
    if bytes.len() < 4 {
        return Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR));
    }
    if byte(bytes, 0) != ISCSI_PORT {
        return Err(Sense::parameter(at, Some(7)));
    }
    let len = usize::from(be16(bytes, 2));
    let Some(text) = bytes.get(4..len.saturating_add(4)) else {
        return Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR));
    };
    let name = text.split(|b| *b == 0).next().unwrap_or_default();
    let is_name = len >= 20 && len.is_multiple_of(4) && name.len() < len && name.len() <= MAX_NAME;
    let name = std::str::from_utf8(name).ok().filter(|_| is_name);
    let name = name.filter(|name| !name.chars().any(|c| c.is_control() || c.is_whitespace()));
    // Initiators write the session's digits as they like.
    let parts = name.and_then(|name| name.rsplit_once(",i,0x"));
    match parts {
        Some((device, isid))
            if !device.is_empty() && isid.len() == 12 && isid.bytes().all(|b| b.is_ascii_hexdigit()) =>
        {
            Ok((format!("{},i,0x{}", device.to_lowercase(), isid.to_lowercase()), len.saturating_add(4)))
        }
        _ => Err(Sense::parameter(at.saturating_add(4), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_back() {
        for initiator in ["iqn.a", "iqn.1993-08.org.debian:01:abc", &"x".repeat(223)] {
            let name = port_name(initiator, [0, 2, 0x3d, 0, 0, 0xab]);
            let bytes = encode(&name);
            assert!(bytes.len() >= 24 && bytes.len().is_multiple_of(4));
            assert_eq!(decode(&bytes, 0), Ok((name, bytes.len())));
            for len in 0..bytes.len() {
                assert!(decode(&bytes[..len], 0).is_err());
            }
        }
        assert!(decode(&encode("iqn.a,i,0x12"), 0).is_err() && decode(&encode(",i,0x000000000000"), 0).is_err());
    }
}
