//! Mode pages: caching, control, informational exceptions; what of them can be changed, and the parameters that carry them.
//!
//! ```text
//!   now       what is in force       MODE SELECT changes it; a reset or a restart makes it what is saved
//!   saved     what outlives both     MODE SELECT with SP; the defaults until then
//! ```
//! Not here: what the settings do, files ([`super::kept`]). What holds: what cannot be changed is refused and never silently dropped; a
//! list that is refused changes nothing; where nothing can be saved nobody is told that it was. Pure: no LUN.

use super::cdb::ModeSense;
use super::field::{be16, be24, be32, be64, byte, count16, count32, has, put};
use super::sense::{Code, Sense};
use std::fmt::Write as _;

/// The file that has saved modes begins with this.
pub(super) const TITLE: &str = "coffer modes 1";

/// What can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Modes {
    /// Writes may sit in a volatile cache (WCE).
    pub(super) has_write_cache: bool,
    /// Sense has descriptors (D_SENSE).
    pub(super) has_descriptor_sense: bool,
    /// Nobody may write (SWP).
    pub(super) is_write_protected: bool,
    /// Tasks that another nexus ends are told so (TAS).
    pub(super) is_abort_told: bool,
}

impl Default for Modes {
    fn default() -> Self {
        Modes { has_write_cache: true, has_descriptor_sense: false, is_write_protected: false, is_abort_told: false }
    }
}

impl Modes {
    /// As lines of a file.
    pub(super) fn encode(self) -> String {
        let Modes { has_write_cache, has_descriptor_sense, is_write_protected, is_abort_told } = self;
        let mut out = String::new();
        for (word, is_set) in [
            ("write-cache", has_write_cache),
            ("descriptor-sense", has_descriptor_sense),
            ("write-protected", is_write_protected),
            ("aborts-told", is_abort_told),
        ] {
            // Writing to a string does not fail.
            let _ = writeln!(out, "{word} {}", u8::from(is_set));
        }
        out
    }

    /// What the lines say; what they do not name has its default.
    pub(super) fn decode(lines: &str) -> Option<Self> {
        let mut modes = Modes::default();
        for line in lines.lines() {
            let (word, value) = line.split_once(' ')?;
            let place = match word {
                "write-cache" => &mut modes.has_write_cache,
                "descriptor-sense" => &mut modes.has_descriptor_sense,
                "write-protected" => &mut modes.is_write_protected,
                "aborts-told" => &mut modes.is_abort_told,
                _ => return None,
            };
            *place = match value {
                "0" => false,
                "1" => true,
                _ => return None,
            };
        }
        Some(modes)
    }
}

/// A disk's modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) now: Modes,
    /// `None` where nothing can be saved.
    pub(super) saved: Option<Modes>,
}

impl Settings {
    /// What a reset makes of them.
    pub(super) fn reset(self) -> Self {
        Settings { now: self.saved.unwrap_or_default(), ..self }
    }
}

/// What the parameters say of the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) block_size: u32,
    pub(super) count: u64,
    pub(super) is_read_only: bool,
}

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const EXCEPTIONS: u8 = 0x1c;
const ALL: u8 = 0x3f;
const PAGES: [u8; 3] = [CACHING, CONTROL, EXCEPTIONS];

/// A page as `modes` have it.
fn page(code: u8, modes: Modes) -> Vec<u8> {
    let bit = |is_set: bool, mask: u8| if is_set { mask } else { 0 };
    let mut out = vec![0; if code == CACHING { 20 } else { 12 }];
    let len = u8::try_from(out.len().saturating_sub(2)).unwrap_or(0);
    put(&mut out, 0, &[code, len]);
    match code {
        CACHING => put(&mut out, 2, &[bit(modes.has_write_cache, 0x04)]),
        CONTROL => {
            put(&mut out, 2, &[bit(modes.has_descriptor_sense, 0x04)]);
            // Tasks are reordered without restriction, and are told BUSY for no fixed time.
            put(&mut out, 3, &[0x10, bit(modes.is_write_protected, 0x08), bit(modes.is_abort_told, 0x40)]);
            put(&mut out, 8, &[0xff, 0xff]);
        }
        // Nothing is ever predicted (DEXCPT).
        _ => put(&mut out, 2, &[0x08]),
    }
    out
}

/// The bits of a page that can be changed.
fn changeable(code: u8) -> Vec<u8> {
    let all =
        Modes { has_write_cache: true, has_descriptor_sense: true, is_write_protected: true, is_abort_told: true };
    let none =
        Modes { has_write_cache: false, has_descriptor_sense: false, is_write_protected: false, is_abort_told: false };
    let mut mask: Vec<u8> = page(code, all).iter().zip(page(code, none)).map(|(a, b)| a ^ b).collect();
    put(&mut mask, 0, &page(code, none)[..2]);
    mask
}

/// The answer to MODE SENSE.
pub(super) fn sense(asked: ModeSense, settings: Settings, geometry: Geometry) -> Result<Vec<u8>, Sense> {
    let Settings { now: modes, saved } = settings;
    let of_saved = match (asked.control, saved) {
        (3, None) => return Err(Sense::illegal(Code::SAVING_NOT_SUPPORTED)),
        (_, saved) => saved.unwrap_or_default(),
    };
    let wanted: Vec<u8> = PAGES.into_iter().filter(|code| asked.page == ALL || asked.page == *code).collect();
    if wanted.is_empty() {
        return Err(Sense::field(2, Some(5)));
    }
    if asked.subpage != 0 && !(asked.page == ALL && asked.subpage == 0xff) {
        return Err(Sense::field(3, None));
    }
    let pages = wanted.into_iter().flat_map(|code| {
        let mut page = match asked.control {
            1 => changeable(code),
            2 => page(code, Modes::default()),
            3 => page(code, of_saved),
            _ => page(code, modes),
        };
        // It can be saved (PS).
        if saved.is_some() {
            put(&mut page, 0, &[code | 0x80]);
        }
        page
    });
    let descriptor = match (asked.has_descriptor, asked.has_long_lbas) {
        (false, _) => Vec::new(),
        (true, true) => [&geometry.count.to_be_bytes()[..], &[0; 4], &geometry.block_size.to_be_bytes()].concat(),
        (true, false) => {
            let count = u32::try_from(geometry.count).unwrap_or(u32::MAX);
            [count.to_be_bytes(), geometry.block_size.to_be_bytes()].concat()
        }
    };
    // DPO and FUA are understood.
    let specific = 0x10 | if geometry.is_read_only || modes.is_write_protected { 0x80 } else { 0 };
    let descriptor_len = descriptor.len();
    let body: Vec<u8> = descriptor.into_iter().chain(pages).collect();
    let header = if asked.is_ten {
        let [high, low] = count16(body.len().saturating_add(6));
        let [long_high, long_low] = count16(descriptor_len);
        vec![high, low, 0, specific, u8::from(asked.has_long_lbas && asked.has_descriptor), 0, long_high, long_low]
    } else {
        let [.., len] = count32(body.len().saturating_add(3));
        let [.., descriptor_len] = count32(descriptor_len);
        vec![len, 0, specific, descriptor_len]
    };
    Ok([header, body].concat())
}

/// What `modes` become by the parameters of MODE SELECT.
pub(super) fn select(is_ten: bool, list: &[u8], modes: Modes, geometry: Geometry) -> Result<Modes, Sense> {
    let too_short = Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR);
    if list.is_empty() {
        return Ok(modes);
    }
    let header = if is_ten { 8 } else { 4 };
    if list.len() < header {
        return Err(too_short);
    }
    let descriptor: usize = if is_ten { be16(list, 6).into() } else { byte(list, 3).into() };
    let mut at = header.saturating_add(descriptor);
    if list.len() < at {
        return Err(too_short);
    }
    let is_long = is_ten && has(list, 4, 1);
    let (count, size) = match (descriptor, is_long) {
        (0, _) => (0, geometry.block_size),
        (8, false) => (be32(list, header).into(), be24(list, header + 5)),
        (16, true) => (be64(list, header), be32(list, header + 12)),
        _ => return Err(Sense::parameter(header - 1, None)),
    };
    let is_count_kept = [0, geometry.count, u32::MAX.into(), u64::MAX].contains(&count);
    if size != geometry.block_size || !is_count_kept {
        return Err(Sense::parameter(header, None));
    }
    let mut next = modes;
    while at < list.len() {
        let code = byte(list, at) & 0x7f;
        if !PAGES.contains(&code) {
            return Err(Sense::parameter(at, Some(6)));
        }
        let (now, mask) = (page(code, modes), changeable(code));
        let Some(wanted) = list.get(at..at.saturating_add(now.len())) else { return Err(too_short) };
        if byte(wanted, 1) != byte(&now, 1) {
            return Err(Sense::parameter(at + 1, None));
        }
        for i in 2..now.len() {
            let refused = (byte(wanted, i) ^ byte(&now, i)) & !byte(&mask, i);
            if refused != 0 {
                let bit = u8::try_from(refused.ilog2()).ok();
                return Err(Sense::parameter(at + i, bit));
            }
        }
        match code {
            CACHING => next.has_write_cache = has(wanted, 2, 0x04),
            CONTROL => {
                next.has_descriptor_sense = has(wanted, 2, 0x04);
                next.is_write_protected = has(wanted, 4, 0x08);
                next.is_abort_told = has(wanted, 5, 0x40);
            }
            _ => {}
        }
        at += now.len();
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Geometry = Geometry { block_size: 512, count: 2048, is_read_only: false };

    fn asked(is_ten: bool, control: u8, page: u8) -> ModeSense {
        let has_descriptor = true;
        ModeSense { is_ten, has_descriptor, has_long_lbas: false, control, page, subpage: 0, room: 255 }
    }

    #[test]
    fn what_is_sensed_can_be_selected_again_and_its_changeable_bits_change() {
        for is_ten in [false, true] {
            let data = sense(asked(is_ten, 0, ALL), Settings::default(), DISK).unwrap();
            assert_eq!(select(is_ten, &data, Modes::default(), DISK), Ok(Modes::default()));
            let mask = sense(asked(is_ten, 1, ALL), Settings::default(), DISK).unwrap();
            let header = if is_ten { 16 } else { 12 };
            for at in header..data.len() {
                for bit in 0..8 {
                    let mut list = data.clone();
                    list[at] ^= 1 << bit;
                    let is_page_head = [0, 1, 20, 21, 32, 33].contains(&(at - header));
                    let changed = select(is_ten, &list, Modes::default(), DISK);
                    let is_reserved = is_page_head && bit == 7 && [0, 20, 32].contains(&(at - header));
                    match changed {
                        Ok(modes) => assert!(
                            is_reserved || (!is_page_head && mask[at] & (1 << bit) != 0 && modes != Modes::default()),
                            "{at} {bit}"
                        ),
                        Err(_) => assert!(is_page_head || mask[at] & (1 << bit) == 0, "{at} {bit}"),
                    }
                }
            }
            for len in 1..data.len() {
                let cut = select(is_ten, &data[..len], Modes::default(), DISK);
                let is_whole = [header, header + 20, header + 32].contains(&len);
                assert_eq!(cut.is_ok(), is_whole, "{len}: {cut:?}");
            }
        }
    }

    #[test]
    fn the_header_says_who_may_write() {
        let protected = Modes { is_write_protected: true, ..Modes::default() };
        let settings = |now| Settings { now, saved: None };
        let specific = |modes, disk| sense(asked(false, 0, CONTROL), settings(modes), disk).unwrap()[2];
        assert_eq!(specific(Modes::default(), DISK), 0x10);
        assert_eq!(specific(protected, DISK), 0x90);
        assert_eq!(specific(Modes::default(), Geometry { is_read_only: true, ..DISK }), 0x90);
        assert_eq!(
            sense(asked(false, 3, ALL), settings(protected), DISK).unwrap_err().code,
            Code::SAVING_NOT_SUPPORTED
        );
        assert!(sense(asked(false, 0, 0x01), settings(protected), DISK).is_err());
    }

    #[test]
    fn what_is_saved_is_told_apart_from_what_is_in_force() {
        let protected = Modes { is_write_protected: true, ..Modes::default() };
        let settings = Settings { now: Modes::default(), saved: Some(protected) };
        let control = |control| sense(asked(false, control, CONTROL), settings, DISK).unwrap()[12..].to_vec();
        assert_eq!(control(0)[..6], [0x8a, 10, 0, 0x10, 0, 0]);
        assert_eq!(control(3)[..6], [0x8a, 10, 0, 0x10, 8, 0]);
        assert_eq!(control(1)[0], 0x8a);
        assert_eq!(settings.reset().now, protected);
        assert_eq!(Settings { saved: None, now: protected }.reset().now, Modes::default());
    }

    #[test]
    fn lines_say_modes_and_else_nothing() {
        for bits in 0..16 {
            let bit = |mask| bits & mask != 0;
            let modes = Modes {
                has_write_cache: bit(1),
                has_descriptor_sense: bit(2),
                is_write_protected: bit(4),
                is_abort_told: bit(8),
            };
            assert_eq!(Modes::decode(&modes.encode()), Some(modes));
        }
        assert_eq!(Modes::decode(""), Some(Modes::default()));
        for wrong in ["write-cache", "write-cache 2", "cache 1", "\n"] {
            assert_eq!(Modes::decode(wrong), None, "{wrong:?}");
        }
    }
}
