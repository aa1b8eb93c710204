//! Outside programs for the tests of this room: run to their end, or served until the test ends. A missing program fails.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Runs a program and gives what it printed; a failure fails the test with what it said.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Byte `at` of every test disk where it is not zero: never zero, different from block to block.
pub(crate) fn byte(at: u64) -> u8 {
    u8::try_from((at / 3 + at / 4096 * 7) % 255 + 1).unwrap()
}

/// The bytes of `range` of a test disk that holds something there.
pub(crate) fn bytes(range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(byte).collect()
}

/// Makes a raw disk of `size` bytes that holds something in `filled` and is sparse elsewhere.
pub(crate) fn raw_disk(path: &Path, size: u64, filled: &[std::ops::Range<u64>]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for range in filled {
        file.write_all_at(&bytes(range.clone()), range.start).unwrap();
    }
}

/// A server that ends with the test.
pub(crate) struct Server {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Server {
    /// Starts `program`, which takes one client after another at `socket`, and waits until it does: that the socket is there
    /// tells only that it was bound.
    pub(crate) fn start(program: &str, arguments: &[&str], socket: &Path) -> Server {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}"));
        let mut server = Server { child, socket: socket.to_owned() };
        let mut patience = 6000;
        while UnixStream::connect(socket).is_err() {
            patience -= 1;
            assert!(patience > 0, "{program} {arguments:?} does not listen");
            if let Some(status) = server.child.try_wait().unwrap() {
                panic!("{program} {arguments:?}: {status}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// Starts nbdkit on a socket in `folder`.
    pub(crate) fn nbdkit(folder: &Path, arguments: &[&str]) -> Server {
        let socket = folder.join("nbdkit.sock");
        let mut all = vec!["--foreground", "--unix", text(&socket)];
        all.extend(arguments);
        Server::start("nbdkit", &all, &socket)
    }

    /// Its address.
    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Ends it now.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A loop device over a file, until the test ends. Needs root.
pub(crate) struct LoopDevice(pub(crate) PathBuf);

impl LoopDevice {
    /// Attaches `file`.
    pub(crate) fn attach(file: &Path, block_size: u32) -> LoopDevice {
        let size = block_size.to_string();
        let name = run("losetup", &["--find", "--show", "--sector-size", &size, text(file)]);
        LoopDevice(PathBuf::from(name.trim()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", text(&self.0)]).status();
    }
}

/// A mount, until the test ends. Needs root.
pub(crate) struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    /// Mounts `device` at `point` with `options`.
    pub(crate) fn mount(device: &Path, point: &'a Path, options: &str) -> Mounted<'a> {
        run("mount", &["-o", options, text(device), text(point)]);
        Mounted(point)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}
