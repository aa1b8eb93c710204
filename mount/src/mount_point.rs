//! Attaching to a directory and detaching from it: `mount(2)` where we may, `fusermount3` where we may not.
//!
//! Not here: talking to the kernel once mounted. fuser can mount by itself, but unmounts by path alone when it ends: after
//! a detach in use it would take away whatever was mounted at that directory since. What holds: only a mount of ours is
//! ever unmounted, which the device number of its root tells; nothing here asks the mounted file system anything, so a
//! dead one cannot hang us.

use crate::{Error, Kind, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::ffi::CString;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The kernel's door.
const DEVICE: &str = "/dev/fuse";

/// The program that may mount and unmount for everybody.
const HELPER: &str = "fusermount3";

/// What `mount` and `df` show as source, and as `fuse.` type.
const NAME: &str = "coffer";

/// How a stopped mount left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// Nothing was open; the mount is gone.
    Clean,
    /// Something was open: the directory is free again, open files go on working, and the session ends with the last one.
    InUse,
}

/// A directory with our mount on it.
#[derive(Clone, Debug)]
pub(crate) struct MountPoint {
    directory: PathBuf,
    device: (u32, u32),
}

impl MountPoint {
    /// Mounts on `directory` and returns the connection to the kernel. `NotFound` without the directory, `Invalid` when
    /// it is something else, `Locked` when something is mounted there. What lies in the directory is hidden meanwhile.
    pub(crate) fn attach(directory: &Path, allow_other: bool) -> Result<(OwnedFd, MountPoint)> {
        let shown = directory.display();
        let directory = directory.canonicalize().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::not_found(format!("mount point {shown} does not exist: create the directory first"))
                    .with_source(e)
            }
            _ => Error::io(format!("looking at mount point {shown}"), e),
        })?;
        let found = look(&directory, StatxFlags::empty())?;
        if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Err(Error::new(
                Kind::Locked,
                format!(
                    "mount point {shown} is in use: something is mounted there; `{HELPER} -u {shown}` ends a FUSE mount"
                ),
            ));
        }
        if FileType::from_raw_mode(look(&directory, StatxFlags::TYPE)?.stx_mode.into()) != FileType::Directory {
            return Err(Error::invalid(format!("mount point {shown} is not a directory")));
        }
        let connection = match mount_directly(&directory, allow_other)? {
            Some(connection) => connection,
            None => mount_by_helper(&directory, allow_other)?,
        };
        let root = look(&directory, StatxFlags::empty())?;
        Ok((connection, MountPoint { device: (root.stx_dev_major, root.stx_dev_minor), directory }))
    }

    /// Lets the kernel read ahead up to `kib` KiB of a file that is read in order. FUSE itself cannot ask for more than the
    /// kernel's 128; more is set in sysfs, which only root may do, so that for other users it stays as it is.
    pub(crate) fn set_read_ahead(&self, kib: u32) {
        let (major, minor) = self.device;
        let _ = std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string());
    }

    /// Unmounts, at once if nothing is open, else as soon as nothing is. Unmounting what is unmounted already is `Clean`.
    pub(crate) fn detach(&self) -> Result<Detached> {
        if !self.is_attached()? {
            return Ok(Detached::Clean);
        }
        match rustix::mount::unmount(&self.directory, UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(Detached::Clean),
            Err(Errno::BUSY) => {
                let lazily = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
                rustix::mount::unmount(&self.directory, lazily).map_err(|e| self.failed(e.into()))?;
                Ok(Detached::InUse)
            }
            Err(Errno::PERM) => self.detach_by_helper(),
            Err(e) => Err(self.failed(e.into())),
        }
    }

    fn detach_by_helper(&self) -> Result<Detached> {
        if self.run_helper(&["-u"])?.is_ok() {
            return Ok(Detached::Clean);
        }
        // The helper does not say why in words a program could rely on; in use is the only reason that lazy helps against.
        match self.run_helper(&["-u", "-z"])? {
            Ok(()) => Ok(Detached::InUse),
            Err(text) => Err(self.failed(std::io::Error::other(text))),
        }
    }

    /// Runs the helper on our directory; `Err` inside is what it said when it refused.
    fn run_helper(&self, arguments: &[&str]) -> Result<std::result::Result<(), String>> {
        let output = Command::new(HELPER).args(arguments).arg("--").arg(&self.directory).stdin(Stdio::null()).output();
        let output = output.map_err(helper_missing)?;
        if output.status.success() { Ok(Ok(())) } else { Ok(Err(said(&output.stderr))) }
    }

    /// Whether what lies at the directory is still our mount.
    pub(crate) fn is_attached(&self) -> Result<bool> {
        let found = match look(&self.directory, StatxFlags::empty()) {
            Ok(found) => found,
            Err(e) if e.kind() == Kind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
            && (found.stx_dev_major, found.stx_dev_minor) == self.device)
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::io(format!("unmounting {}", self.directory.display()), source)
    }
}

/// What the kernel itself knows of `path`, without asking the file system it lies on.
fn look(path: &Path, mask: StatxFlags) -> Result<Statx> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::statx(CWD, path, flags, mask)
        .map_err(|e| Error::io(format!("looking at mount point {}", path.display()), e.into()))
}

/// Mounts as root would; `None` when we may not.
fn mount_directly(directory: &Path, allow_other: bool) -> Result<Option<OwnedFd>> {
    let device = match rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(device) => device,
        Err(Errno::ACCESS | Errno::PERM) => return Ok(None),
        Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
            return Err(Error::new(Kind::Unsupported, format!("this kernel has no {DEVICE}: try `modprobe fuse`")));
        }
        Err(e) => return Err(Error::io(format!("opening {DEVICE}"), e.into())),
    };
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let fd = device.as_raw_fd();
    let mut options = format!("fd={fd},rootmode=40000,user_id={uid},group_id={gid},default_permissions");
    if allow_other {
        options.push_str(",allow_other");
    }
    let options = CString::new(options).map_err(|_| Error::internal("mount options with a zero byte"))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match rustix::mount::mount(NAME, directory, format!("fuse.{NAME}"), flags, options.as_c_str()) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::PERM) => Ok(None),
        Err(e) => Err(Error::io(format!("mounting on {}", directory.display()), e.into())),
    }
}

/// Mounts by the setuid helper, which hands back the connection over a socket: its standard input.
fn mount_by_helper(directory: &Path, allow_other: bool) -> Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| Error::io("making a socket pair", e))?;
    let mut options = format!("ro,nosuid,nodev,noexec,default_permissions,fsname={NAME},subtype={NAME}");
    if allow_other {
        options.push_str(",allow_other");
    }
    let child = Command::new(HELPER)
        .args(["-o", &options, "--"])
        .arg(directory)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(helper_missing)?;
    let connection = receive_descriptor(&ours)?;
    let output = child.wait_with_output().map_err(|e| Error::io(format!("waiting for {HELPER}"), e))?;
    match connection {
        Some(connection) if output.status.success() => Ok(connection),
        _ => {
            let said = said(&output.stderr);
            Err(Error::invalid(format!("{HELPER} does not mount on {}: {said}", directory.display())))
        }
    }
}

/// The descriptor that the other side sends, or `None` when it ends without one.
fn receive_descriptor(socket: &UnixStream) -> Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    });
    received.map_err(|e| Error::io(format!("waiting for {HELPER}"), e.into()))?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

fn helper_missing(source: std::io::Error) -> Error {
    let context = format!("running {HELPER}, which mounts for users other than root (package fuse3)");
    Error::new(Kind::Unsupported, context).with_source(source)
}

/// What a program said on its standard error, as one line.
fn said(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
