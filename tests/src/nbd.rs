//! Network block devices of outside programs: a server to back up from, and a client's view of an export.
//!
//! Not here: what is served or expected. What holds: a server ends with its value.

// A harness speaks by failing.
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::image;
use crate::program::{Running, outside, run};
use serde_json::Value;
use std::ops::Range;
use std::process::Command;
use tempfile::TempDir;

/// An nbdkit server on a socket of its own. One whose client is killed may die of it (nbdkit 1.32 asserts that it still has
/// its socket): it is no use after that.
pub struct NbdKit {
    _running: Running,
    _folder: TempDir,
    /// Where its export is.
    pub uri: String,
}

impl NbdKit {
    /// Starts it with these filters, plugin and parameters, and waits until it listens.
    #[must_use]
    pub fn start(arguments: &[&str]) -> NbdKit {
        let folder = TempDir::new().unwrap();
        let (socket, ready) = (folder.path().join("socket"), folder.path().join("pid"));
        let mut command = outside("nbdkit");
        command
            .args(["--foreground", "--readonly", "--unix"])
            .arg(&socket)
            .arg("--pidfile")
            .arg(&ready)
            .args(arguments);
        let mut running = Running::start(&mut command);
        // Written once it accepts connections, which the socket's being there does not tell.
        running.wait_until("its pid file", |_| ready.exists());
        NbdKit { _running: running, _folder: folder, uri: format!("nbd+unix:///?socket={}", socket.display()) }
    }
}

/// Which bytes of an export `nbdinfo`, run by this command, sees data in; all else must be holes that read as zero.
pub fn data(nbdinfo: &mut Command, uri: &str) -> Vec<Range<u64>> {
    let map: Vec<Value> = serde_json::from_str(&run(nbdinfo.args(["--map", "--json", uri]))).unwrap();
    let mut found = Vec::new();
    for extent in map {
        let field = |name: &str| extent[name].as_u64().unwrap();
        match field("type") {
            0 => image::join(&mut found, field("offset")..field("offset") + field("length")),
            3 => {}
            other => panic!("neither data nor a hole that reads as zero: {other}"),
        }
    }
    found
}
