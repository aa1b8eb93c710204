//! Any text as a file name, reversibly as long as it fits.
//!
//! Not here: which names exist. What holds: the result is a valid file name of at most 255 bytes; different texts give
//! different names. `%` is the escape character: `%XX` is a byte of the text, a lone `%` is the empty text. A text too
//! long for a file name is cut and ends in `%~` and 16 hex digits of its hash: still told apart, no longer reversible.

use std::fmt::Write;

/// NAME_MAX of Linux.
const LONGEST: usize = 255;

/// Length of `%~` and 16 hex digits.
const HASH_MARK: usize = 18;

/// The file name that stands for `text`, with `suffix` (plain, short) after it.
pub(crate) fn file_name(text: &str, suffix: &str) -> String {
    let room = LONGEST - suffix.len();
    let mut name = String::with_capacity(text.len() + suffix.len());
    let mut cut = 0;
    for c in text.chars() {
        if name.len() + HASH_MARK <= room {
            cut = name.len();
        }
        push_escaped(&mut name, c, text);
    }
    if text.is_empty() {
        name.push('%');
    }
    if name.len() > room {
        name.truncate(cut);
        push_formatted(&mut name, format_args!("%~{:016x}", hash(text.as_bytes())));
    }
    name.push_str(suffix);
    name
}

fn push_escaped(name: &mut String, c: char, text: &str) {
    let is_dots = matches!(text, "." | "..");
    if is_dots || c.is_control() || matches!(c, '/' | '%') {
        for byte in c.encode_utf8(&mut [0; 4]).bytes() {
            push_formatted(name, format_args!("%{byte:02X}"));
        }
    } else {
        name.push(c);
    }
}

fn push_formatted(name: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = name.write_fmt(arguments);
}

/// FNV-1a, 64 bits: the same in every version of the program, which the standard library's hasher does not promise.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// The inverse, which proves that nothing is lost.
    fn original(name: &str) -> String {
        if name == "%" {
            return String::new();
        }
        let mut bytes = Vec::new();
        let mut rest = name.bytes();
        while let Some(b) = rest.next() {
            if b == b'%' {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
            } else {
                bytes.push(b);
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn ordinary_names_are_left_alone() {
        for plain in ["web01", "Büro 3", ".hidden", "a..b", "db@site", "sda", "日本"] {
            assert_eq!(file_name(plain, ".raw"), format!("{plain}.raw"));
        }
    }

    #[test]
    fn awkward_names_are_valid_and_reversible() {
        let awkward =
            ["", ".", "..", "a/b", "/", "nul\0", "line\nbreak", "%", "100%", "%2F", "\u{7f}", "\u{85}x", "%~", "."];
        for text in awkward {
            let name = file_name(text, "");
            assert!(!name.is_empty() && name != "." && name != "..", "{text:?}");
            assert!(!name.contains('/') && !name.chars().any(char::is_control), "{text:?} -> {name:?}");
            assert_eq!(original(&name), text, "{name:?}");
        }
    }

    #[test]
    fn long_names_fit_and_stay_different() {
        let texts: Vec<String> = (0..60)
            .flat_map(|n| ["a", "é", "/", "日"].map(|c| format!("{}{n}", c.repeat(230 + n))))
            .chain([format!("{}/", "a".repeat(254)), "a".repeat(255), "a".repeat(256)])
            .collect();
        let names: HashSet<String> = texts.iter().map(|t| file_name(t, ".raw")).collect();
        assert_eq!(names.len(), texts.len());
        for name in &names {
            assert!(name.len() <= LONGEST && name.ends_with(".raw"), "{} {name}", name.len());
        }
        assert_eq!(file_name(&"a".repeat(255), ""), "a".repeat(255), "what fits is left alone");
    }
}
