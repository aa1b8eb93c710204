//! QEMU's monitor, by which a running machine's disks are exchanged.
//!
//! Not here: what is asked. What holds: a command that QEMU refuses, or does not answer, fails the test; events are passed over.

// A harness speaks by failing.
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::program::LIMIT;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A monitor of QEMU's, connected.
pub struct Qmp {
    out: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to the monitor at `socket`, once it listens.
    #[must_use]
    pub fn connect(socket: &Path) -> Qmp {
        let out = patiently("the monitor", || UnixStream::connect(socket).ok());
        out.set_read_timeout(Some(LIMIT)).unwrap();
        let lines = BufReader::new(out.try_clone().unwrap());
        let mut qmp = Qmp { out, lines };
        assert!(qmp.line().get("QMP").is_some());
        qmp.execute("qmp_capabilities", json!({}));
        qmp
    }

    /// Has QEMU do something. What it returned.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.out, "{request}").unwrap();
        loop {
            let mut line = self.line();
            assert!(line.get("error").is_none(), "{request}: {line}");
            if let Some(returned) = line.get_mut("return") {
                return returned.take();
            }
        }
    }

    /// Waits until the block jobs are as `is_so` wants them.
    pub fn wait_for_jobs(&mut self, awaited: &str, is_so: impl Fn(&[Value]) -> bool) {
        patiently(awaited, || is_so(self.execute("query-block-jobs", json!({})).as_array().unwrap()).then_some(()));
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).unwrap() > 0, "QEMU has closed its monitor");
        serde_json::from_str(&line).unwrap()
    }
}

/// Tries until there is something.
fn patiently<T>(awaited: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(began.elapsed() < LIMIT, "no {awaited} in {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
