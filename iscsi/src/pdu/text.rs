//! Key=value lists, as logins and text requests have them.
//!
//! Not here: what a key means. What holds: pairs end with a zero byte; keys have the letters that the standard gives them; a list
//! is read as a whole or not at all.

/// The longest key, in bytes.
pub const MAX_KEY: usize = 63;

/// The pairs of a data segment; `None` when it is no such list.
#[must_use]
pub fn decode_text(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    // Some initiators pad within the segment.
    for pair in bytes.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()) {
        let (key, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
        let is_letter = |c: char| c.is_ascii_alphanumeric() || ".-+@_#".contains(c);
        if key.is_empty() || key.len() > MAX_KEY || !key.chars().all(is_letter) {
            return None;
        }
        pairs.push((key.to_owned(), value.to_owned()));
    }
    Some(pairs)
}

/// A list as it travels.
#[must_use]
pub fn encode_text<K: AsRef<str>, V: AsRef<str>>(pairs: &[(K, V)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in pairs {
        out.extend(key.as_ref().bytes());
        out.push(b'=');
        out.extend(value.as_ref().bytes());
        out.push(0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_back() {
        let pairs =
            [("TargetName", "iqn.2026-01.test:a=b"), ("X-com.example", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let bytes = encode_text(&pairs);
        assert_eq!(bytes, b"TargetName=iqn.2026-01.test:a=b\0X-com.example=\0");
        assert_eq!(decode_text(&bytes).unwrap(), pairs);
        assert_eq!(decode_text(b"").unwrap(), []);
        assert_eq!(decode_text(b"a=b\0\0\0").unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_list_is_none() {
        let long = format!("{}=x", "k".repeat(64));
        for wrong in [&b"key"[..], b"=v", b"a b=c", b"a=\xff", b"a=b\0c", long.as_bytes()] {
            assert_eq!(decode_text(wrong), None, "{wrong:?}");
        }
    }
}
