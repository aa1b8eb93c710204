//! Which format an image file has: what the caller says, or what its name and its first bytes agree on.
//!
//! Not here: reading an image; qemu does that. What holds: the first bytes of a file are never believed alone. A guest owns
//! the bytes of its raw disk, and one that writes a qcow2 header naming `/etc/shadow` as its backing file would have that
//! file read into its backup. qemu learnt that the hard way; so a format is taken from the bytes only where the file's
//! name, which the guest does not choose, says the same.

use crate::{Error, Result};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// How many bytes of a file's head [`ImageFormat::decide`] wants to see.
pub const HEAD: usize = 512;

/// A format of disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// The disk's bytes and nothing else.
    Raw,
    /// QEMU.
    Qcow2,
    /// VMware.
    Vmdk,
    /// Hyper-V.
    Vhdx,
    /// VirtualBox.
    Vdi,
}

impl ImageFormat {
    /// The format's name, in qemu's spelling too.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Vmdk => "vmdk",
            ImageFormat::Vhdx => "vhdx",
            ImageFormat::Vdi => "vdi",
        }
    }

    /// What the name of a file says; `None` where it says nothing, or that it is raw.
    #[must_use]
    pub fn of_name(path: &Path) -> Option<ImageFormat> {
        match path.extension()?.to_ascii_lowercase().to_str()? {
            "qcow2" | "qcow" => Some(ImageFormat::Qcow2),
            "vmdk" => Some(ImageFormat::Vmdk),
            "vhdx" => Some(ImageFormat::Vhdx),
            "vdi" => Some(ImageFormat::Vdi),
            _ => None,
        }
    }

    /// What the first bytes of a file say; `None` where they say nothing.
    #[must_use]
    pub fn of_head(head: &[u8]) -> Option<ImageFormat> {
        const VDI_SIGNATURE_AT: usize = 64;
        if head.starts_with(b"QFI\xfb") {
            Some(ImageFormat::Qcow2)
        } else if [&b"KDMV"[..], b"COWD", b"# Disk DescriptorFile"].iter().any(|magic| head.starts_with(magic)) {
            Some(ImageFormat::Vmdk)
        } else if head.starts_with(b"vhdxfile") {
            Some(ImageFormat::Vhdx)
        } else if head.get(VDI_SIGNATURE_AT..).is_some_and(|rest| rest.starts_with(&0xbeda_107f_u32.to_le_bytes())) {
            Some(ImageFormat::Vdi)
        } else {
            None
        }
    }

    /// The format of the file at `path` whose first [`HEAD`] bytes are `head`: `asked` if it is given, else what name and bytes
    /// agree on, else `Invalid` with the way out.
    pub fn decide(path: &Path, head: &[u8], asked: Option<ImageFormat>) -> Result<ImageFormat> {
        if let Some(format) = asked {
            return Ok(format);
        }
        match (Self::of_name(path), Self::of_head(head)) {
            (None, None) => Ok(ImageFormat::Raw),
            (Some(named), Some(found)) if named == found => Ok(named),
            (_, Some(found)) => Err(Error::invalid(format!(
                "{} begins like a {found} image but is not named like one, and a guest can write such bytes into its raw \
                 disk; say --format {found} to read it as an image, or --format raw to take its bytes as they are",
                path.display()
            ))),
            (Some(named), None) => Err(Error::invalid(format!(
                "{} is named like a {named} image but does not begin like one; say --format raw if its bytes are the disk",
                path.display()
            ))),
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ImageFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        use ImageFormat::{Qcow2, Raw, Vdi, Vhdx, Vmdk};
        [Raw, Qcow2, Vmdk, Vhdx, Vdi].into_iter().find(|format| format.name() == text).ok_or_else(|| {
            Error::invalid(format!("'{text}' is not an image format: raw, qcow2, vmdk, vhdx or vdi are"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_believed_only_where_the_name_agrees() {
        let qcow2 = b"QFI\xfb\0\0\0\x03".as_slice();
        let plain = [0u8; HEAD];
        for (name, head, want) in [
            ("a.raw", &plain[..], Some(ImageFormat::Raw)),
            ("a", &plain[..], Some(ImageFormat::Raw)),
            ("a", &[], Some(ImageFormat::Raw)),
            ("a.qcow2", qcow2, Some(ImageFormat::Qcow2)),
            ("a.QCOW2", qcow2, Some(ImageFormat::Qcow2)),
            ("a.raw", qcow2, None),
            ("a.img", qcow2, None),
            ("a", qcow2, None),
            ("a.vmdk", qcow2, None),
            ("a.qcow2", &plain[..], None),
        ] {
            assert_eq!(ImageFormat::decide(Path::new(name), head, None).ok(), want, "{name}");
        }
        let asked = ImageFormat::decide(Path::new("a.raw"), qcow2, Some(ImageFormat::Raw)).unwrap();
        assert_eq!(asked, ImageFormat::Raw);
    }
}
