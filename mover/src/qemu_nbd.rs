//! A private `qemu-nbd` that serves one image file to this process, and `qemu-img create` for new ones.
//!
//! ```text
//!   NbdClient --- unix socket in a folder of mode 0700 --- qemu-nbd (child) --- image, its backing chain
//! ```
//!
//! Not here: which format an image has, and NBD. What holds: the child serves one client and ends when that client leaves, so
//! it does not outlive this process; dropping the value ends it at once; what it said on standard error is kept for messages;
//! paths are handed over as absolute ones, since qemu takes `json:...` and `nbd:...` for something else.

use crate::image_format::ImageFormat;
use crate::{Error, Kind, Result};
use coffer_gateway::nbd::{ClientOptions, NbdClient, NbdUri, Place};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a child may take to open an image or to close it. It flushes before it closes, so this is short.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a child is looked at meanwhile.
const GLANCE: Duration = Duration::from_millis(5);

/// How much of a child's standard error a message shows.
const LAST_WORDS: u64 = 2048;

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Backup.
    Reading,
    /// Restore.
    Writing,
}

/// A running child.
pub(crate) struct QemuNbd {
    child: Child,
    errors: Errors,
    /// Holds the socket and the child's standard error; goes away with the value.
    _folder: TempDir,
}

/// What a child says on standard error.
#[derive(Clone)]
pub(crate) struct Errors(PathBuf);

impl Errors {
    /// The end of it, as a clause for a message; empty if there is nothing.
    pub(crate) fn clause(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.0)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
            let mut bytes = Vec::new();
            file.take(LAST_WORDS).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim().replace('\n', "; "))
        };
        match read() {
            Ok(text) if !text.is_empty() => format!(" ({text})"),
            _ => String::new(),
        }
    }
}

impl QemuNbd {
    /// Serves `image` on a private socket below `scratch` and connects to it.
    pub(crate) fn start(
        image: &Path,
        format: ImageFormat,
        purpose: Purpose,
        scratch: &Path,
    ) -> Result<(QemuNbd, NbdClient)> {
        // The folder is of mode 0700 from its first moment.
        let folder = tempfile::Builder::new()
            .prefix("coffer-")
            .tempdir_in(scratch)
            .map_err(|e| Error::io(format!("making a private folder in {}", scratch.display()), e))?;
        let socket = folder.path().join("nbd");
        let errors = Errors(folder.path().join("stderr"));
        let stderr = File::create(&errors.0).map_err(|e| Error::io("making a file for qemu-nbd's messages", e))?;
        let mut command = Command::new("qemu-nbd");
        command.arg(format!("--format={format}")).arg("--shared=1").arg("--socket").arg(&socket);
        match purpose {
            Purpose::Reading => command.arg("--read-only"),
            Purpose::Writing => command.args(["--discard=unmap", "--cache=writeback"]),
        };
        command.arg(absolute(image)?).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        // In a group of its own: a Ctrl-C is for this process, which ends the child in order.
        command.process_group(0);
        let child = command.spawn().map_err(|e| cannot_run("qemu-nbd", e))?;
        let mut qemu = QemuNbd { child, errors, _folder: folder };
        let client = qemu.connect(&NbdUri { place: Place::Unix(socket), export: String::new(), tls: None })?;
        Ok((qemu, client))
    }

    /// What the child says.
    pub(crate) fn errors(&self) -> &Errors {
        &self.errors
    }

    /// Connects as soon as the child listens. Each attempt is a whole connection: a probe would be the one client that the
    /// child waits for.
    fn connect(&mut self, uri: &NbdUri) -> Result<NbdClient> {
        let start = Instant::now();
        loop {
            let error = match NbdClient::connect(uri, &ClientOptions::default()) {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            if let Some(status) = self.status()? {
                return Err(Error::new(
                    Kind::Unavailable,
                    format!("qemu-nbd cannot open the image: {status}{}", self.errors.clause()),
                ));
            }
            if start.elapsed() > PATIENCE {
                let context = format!("qemu-nbd does not serve the image{}", self.errors.clause());
                return Err(error.within(context));
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Waits for the child, whose client has left, and sees that it closed the image well.
    pub(crate) fn finish(mut self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            match self.status()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    let context = format!("qemu-nbd failed: {status}{}", self.errors.clause());
                    return Err(Error::new(Kind::Unavailable, context));
                }
                None => std::thread::sleep(GLANCE),
            }
        }
        Err(Error::new(Kind::Unavailable, format!("qemu-nbd does not end{}", self.errors.clause())))
    }

    fn status(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().map_err(|e| Error::io("waiting for qemu-nbd", e))
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        // Both fail only for a child that was waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes an empty image that reads as `size` zeroes, over whatever `image` was.
pub(crate) fn create_image(image: &Path, format: ImageFormat, size: u64, preallocate: bool) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", format.name()]);
    if preallocate {
        command.args(["-o", "preallocation=falloc"]);
    }
    let output = command
        .arg(absolute(image)?)
        .arg(size.to_string())
        .stdin(Stdio::null())
        .output()
        .map_err(|e| cannot_run("qemu-img", e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Error::new(Kind::Unavailable, format!("qemu-img cannot create {}: {said}", image.display())))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io(format!("finding where {} lies", path.display()), e))
}

fn cannot_run(program: &str, error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        let context = format!(
            "{program} is not installed; it comes with the package qemu-utils (Debian, Ubuntu), qemu-img (Fedora, RHEL) or \
             qemu-tools (SUSE)"
        );
        return Error::new(Kind::Unsupported, context);
    }
    Error::io(format!("starting {program}"), error)
}
