//! How much memory, and how much of a network, reading may take, as arguments.
//!
//! Not here: what the memory is for ([`coffer_repo::reader`]).

use coffer_repo::reader::ReaderOptions;
use std::num::NonZeroU64;

/// The budgets of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub(crate) struct Budgets {
    /// Memory for chunks that were read, as in 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    pub(crate) cache_size: u64,

    /// Memory for reading ahead of those who read in order
    #[arg(long, value_name = "SIZE", default_value = "48M", value_parser = parse_size)]
    pub(crate) readahead: u64,
}

impl Default for Budgets {
    /// As on the command line.
    fn default() -> Self {
        Budgets { cache_size: 64 << 20, readahead: 48 << 20 }
    }
}

impl Budgets {
    /// As the reader takes them.
    pub(crate) fn reader_options(self) -> ReaderOptions {
        ReaderOptions { cache_bytes: self.cache_size, readahead_bytes: self.readahead, ..ReaderOptions::default() }
    }
}

/// Parses a number of bytes: digits and perhaps one of K, M, G, T, also written KiB and so on, which count in 1024s.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(split).unwrap_or((text, ""));
    let shift = match unit.strip_suffix("iB").filter(|prefix| !prefix.is_empty()).unwrap_or(unit) {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(format!("'{unit}' is not one of K, M, G, T")),
    };
    let number: u64 = digits.parse().map_err(|_| "not a size such as 64M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "more bytes than can be counted".to_owned())
}

/// Parses a number of bytes a second, which is not zero.
pub(crate) fn parse_rate(text: &str) -> Result<NonZeroU64, String> {
    NonZeroU64::new(parse_size(text)?).ok_or_else(|| "at no bytes a second it never ends".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_counted_in_1024s() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("3k", 3 << 10),
            ("64M", 64 << 20),
            ("2G", 2 << 30),
            ("2GiB", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "M", "1.5G", "-1", "1MB", "5iB", "99999999T", "\u{b5}"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
