//! Vital product data: pages that INQUIRY gives on request.
//!
//! ```text
//!   00 which   80 serial   83 names   85 management   86 extended   87 mode policy   88 ports   8f third-party copies
//!   b0 limits   b1 characteristics   b2 provisioning
//! ```
//! Not here: what the limits limit. What holds: page 00 names the others; the names of the disk come first in page 83, so that
//! whoever has little room gets them.

use super::copy;
use super::field::{count16, put};
use super::lun::Lun;
use super::nexus::Nexus;
use super::provisioning::MAX_RANGES;
use super::sense::Sense;

const PAGES: [u8; 11] = [0x00, 0x80, 0x83, 0x85, 0x86, 0x87, 0x88, 0x8f, 0xb0, 0xb1, 0xb2];

/// Whom a name names.
#[derive(Clone, Copy)]
enum Of {
    Lun = 0x00,
    Port = 0x10,
    Target = 0x20,
}

/// What a name is written in.
#[derive(Clone, Copy)]
enum In {
    Binary = 1,
    Ascii = 2,
    Utf8 = 3,
}

/// Types of names.
const VENDORS: u8 = 1;
const NAA: u8 = 3;
const RELATIVE_PORT: u8 = 4;
const PORT_GROUP: u8 = 5;
const SCSI_NAME: u8 = 8;
/// Protocol iSCSI, in the high half, and that it is told.
const ISCSI: u8 = 0x50;
const HAS_PROTOCOL: u8 = 0x80;

/// The reply for a page.
pub(super) fn page(lun: &Lun, nexus: &Nexus, code: u8) -> Result<Vec<u8>, Sense> {
    let body = match code {
        0x00 => PAGES.to_vec(),
        0x80 => lun.identity.serial().into_bytes(),
        0x83 => names(lun, nexus),
        // There is no network address to manage anything at.
        0x85 => Vec::new(),
        0x86 => extended(),
        // Every page is one for all nexuses.
        0x87 => vec![0x3f, 0xff, 0, 0],
        0x88 => ports(nexus),
        0x8f => copy::supported(),
        0xb0 => limits(lun),
        0xb1 => characteristics(lun),
        0xb2 => provisioning(lun),
        _ => return Err(Sense::field(2, None)),
    };
    let [high, low] = count16(body.len());
    Ok([&[0, code, high, low][..], &body].concat())
}

/// A designation descriptor.
fn name(of: Of, written: In, kind: u8, value: &[u8]) -> Vec<u8> {
    let of_transport = if matches!(of, Of::Lun) { (0, 0) } else { (ISCSI, HAS_PROTOCOL) };
    let [.., len] = value.len().to_be_bytes();
    [&[of_transport.0 | written as u8, of_transport.1 | of as u8 | kind, 0, len][..], value].concat()
}

/// Text with the NUL and the padding that SCSI names have.
fn scsi_name(text: &str) -> Vec<u8> {
    let mut out = text.as_bytes().to_vec();
    out.resize((text.len() / 4 + 1).saturating_mul(4), 0);
    out
}

/// The name of a target port: of the target, and of the port's group.
fn port_name(iqn: &str, group: u16) -> Vec<u8> {
    scsi_name(&format!("{iqn},t,0x{group:04x}"))
}

fn names(lun: &Lun, nexus: &Nexus) -> Vec<u8> {
    let [high, low] = nexus.party.port.to_be_bytes();
    let [group_high, group_low] = nexus.group().to_be_bytes();
    let iqn = &nexus.device.iqn;
    [
        name(Of::Lun, In::Binary, NAA, &lun.identity.naa()),
        name(Of::Lun, In::Ascii, VENDORS, &lun.identity.vendor_name()),
        name(Of::Lun, In::Utf8, SCSI_NAME, &scsi_name(&lun.identity.naa_text())),
        name(Of::Port, In::Binary, RELATIVE_PORT, &[0, 0, high, low]),
        name(Of::Port, In::Binary, PORT_GROUP, &[0, 0, group_high, group_low]),
        name(Of::Port, In::Utf8, SCSI_NAME, &port_name(iqn, nexus.group())),
        name(Of::Target, In::Utf8, SCSI_NAME, &scsi_name(iqn)),
    ]
    .concat()
}

/// The names of a LUN alone, as third-party copies call it: code set, type, value.
pub(super) fn lun_names(lun: &Lun) -> [(u8, u8, Vec<u8>); 2] {
    [
        (In::Binary as u8, NAA, lun.identity.naa().to_vec()),
        (In::Ascii as u8, VENDORS, lun.identity.vendor_name().to_vec()),
    ]
}

fn extended() -> Vec<u8> {
    let mut out = vec![0; 60];
    // Simple, ordered and head-of-queue tasks; unit attentions say what they are about as far as sense can (UASK_SUP).
    put(&mut out, 1, &[0x27]);
    // There is a volatile cache (V_SUP).
    put(&mut out, 2, &[0x01]);
    out
}

fn ports(nexus: &Nexus) -> Vec<u8> {
    let device = &nexus.device;
    let port = |port: &super::device::PortOptions| {
        let names = name(Of::Port, In::Utf8, SCSI_NAME, &port_name(&device.iqn, port.group));
        let [high, low] = port.relative.to_be_bytes();
        let [len_high, len_low] = count16(names.len());
        [&[0, 0, high, low, 0, 0, 0, 0, 0, 0, len_high, len_low][..], &names].concat()
    };
    device.ports.iter().flat_map(port).collect()
}

/// A count of four bytes; what is more is all ones.
fn long(count: u64) -> [u8; 4] {
    u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes()
}

fn limits(lun: &Lun) -> Vec<u8> {
    let medium = &lun.medium;
    let mut out = vec![0; 0x3c];
    let [.., compare] = medium.max_compare().to_be_bytes();
    let grain = medium.grain();
    put(&mut out, 1, &[compare]);
    put(&mut out, 2, &u16::try_from(grain).unwrap_or(1).to_be_bytes());
    put(&mut out, 4, &long(medium.max_transfer()));
    // A MiB is as fast as it gets.
    put(&mut out, 8, &long((1 << 20) / u64::from(medium.block_size())));
    if !medium.is_read_only() {
        // As many blocks as one likes, in so many ranges, best in the grain of forks; WRITE SAME has no limit (0).
        put(&mut out, 16, &[0xff; 4]);
        put(&mut out, 20, &long(MAX_RANGES as u64));
        put(&mut out, 24, &long(grain));
        put(&mut out, 28, &0x8000_0000_u32.to_be_bytes());
        put(&mut out, 40, &long(medium.max_atomic()));
    }
    out
}

fn characteristics(lun: &Lun) -> Vec<u8> {
    let mut out = vec![0; 0x3c];
    // Nothing rotates.
    put(&mut out, 0, &[0, 1]);
    // What was erased can be read, as zeroes, without being written first: by blocks (WABEREQ 01b) and by key (WACEREQ 01b).
    let by_blocks = if lun.medium.is_read_only() { 0 } else { 0x40 };
    let by_key = if lun.medium.has_key() { 0x10 } else { 0 };
    put(&mut out, 3, &[by_blocks | by_key]);
    // VERIFY reads unmapped blocks as zeroes (VBULS).
    put(&mut out, 4, &[0x02]);
    out
}

fn provisioning(lun: &Lun) -> Vec<u8> {
    match lun.medium.is_read_only() {
        true => vec![0; 4],
        // UNMAP, both WRITE SAME (LBPU, LBPWS, LBPWS10), zeroes afterwards (LBPRZ); thin.
        false => vec![0, 0xe4, 0x02, 0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_padded_and_told_whose_they_are() {
        assert_eq!(name(Of::Lun, In::Binary, NAA, &[1, 2]), [0x01, 0x03, 0, 2, 1, 2]);
        assert_eq!(name(Of::Port, In::Binary, RELATIVE_PORT, &[0, 0, 0, 1]), [0x51, 0x94, 0, 4, 0, 0, 0, 1]);
        assert_eq!(scsi_name("abcd"), b"abcd\0\0\0\0");
        assert_eq!(scsi_name("abc"), b"abc\0");
    }
}
