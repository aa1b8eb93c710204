//! What a disk says of itself: standard INQUIRY data, capacity, defects.
//!
//! Not here: vital product data ([`super::vpd`]). What holds: what is claimed is done; the medium is not asked.

use super::field::{ascii, put};
use super::lun::Lun;
use super::medium::Medium;
use super::nexus::Nexus;
use super::sense::Sense;
use super::vpd;

/// Vendor identification.
pub(super) const VENDOR: &str = "COFFER";
/// Bytes of standard data: up to the end of the version descriptors.
const STANDARD: usize = 96;
/// No such LUN, and none that could be.
const ABSENT: u8 = 0x7f;

/// SAM-5, SPC-4, SBC-3, iSCSI, without a claim to a revision.
const VERSIONS: [u16; 4] = [0x00a0, 0x0460, 0x04c0, 0x0960];

/// The reply to INQUIRY.
pub(super) fn answer(lun: &Lun, nexus: &Nexus, page: Option<u8>) -> Result<Vec<u8>, Sense> {
    match page {
        None => Ok(standard(0, if lun.medium.is_read_only() { "POINT" } else { "DISK" })),
        Some(page) => vpd::page(lun, nexus, page),
    }
}

/// The reply where there is no LUN.
pub(super) fn without_lun(page: Option<u8>) -> Vec<u8> {
    match page {
        None => standard(ABSENT, ""),
        Some(page) => vec![ABSENT, page, 0, 0],
    }
}

fn standard(kind: u8, product: &str) -> Vec<u8> {
    let mut out = vec![0; STANDARD];
    // Version 6 is SPC-4; LUNs are addressed as SAM says (HISUP), format 2.
    put(&mut out, 0, &[kind, 0, 6, 0x12]);
    let [.., rest] = STANDARD.saturating_sub(5).to_be_bytes();
    // Ports groups both ways (TPGS), third-party copies (3PC); several ports (MULTIP); commands are queued (CMDQUE).
    put(&mut out, 4, &[rest, 0x38, 0x10, 0x02]);
    put(&mut out, 8, &ascii(VENDOR, 8));
    put(&mut out, 16, &ascii(product, 16));
    put(&mut out, 32, &ascii(concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR")), 4));
    for (i, version) in VERSIONS.into_iter().enumerate() {
        put(&mut out, 58 + 2 * i, &version.to_be_bytes());
    }
    out
}

/// The reply to READ CAPACITY (10).
pub(super) fn capacity10(medium: &Medium) -> Vec<u8> {
    // All ones: ask for the long one.
    let last = u32::try_from(medium.count().saturating_sub(1)).unwrap_or(u32::MAX);
    [last.to_be_bytes(), medium.block_size().to_be_bytes()].concat()
}

/// The reply to READ CAPACITY (16).
pub(super) fn capacity16(medium: &Medium) -> Vec<u8> {
    let mut out = vec![0; 32];
    put(&mut out, 0, &medium.count().saturating_sub(1).to_be_bytes());
    put(&mut out, 8, &medium.block_size().to_be_bytes());
    // Each block is a physical one unless somebody wanted otherwise; the grain at which it is best to write is told by the block limits.
    put(&mut out, 13, &[medium.physical_exponent()]);
    // Blocks can be unmapped and then read as zeroes (LBPME, LBPRZ).
    put(&mut out, 14, &[if medium.is_read_only() { 0 } else { 0xc0 }]);
    out
}

/// The reply to READ DEFECT DATA: there are none, in the format that was asked for.
pub(super) fn defects(is_twelve: bool, lists: u8) -> Vec<u8> {
    let mut out = vec![0, lists & 0x1f, 0, 0];
    if is_twelve {
        out.extend([0; 4]);
    }
    out
}
