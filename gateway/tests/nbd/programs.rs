//! Outside programs for the tests of this crate: NBD servers of others, and commands whose output counts.
//!
//! What holds: a server ends with the test that started it; a program that is missing or fails is a failed test.

use coffer_gateway::nbd::NbdUri;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running server of somebody else.
pub(crate) struct Server {
    child: Child,
    /// Its unix socket, default export.
    pub(crate) uri: NbdUri,
}

impl Server {
    /// Starts `program`, which is told by `arguments` to listen at `socket`, and waits until it does.
    pub(crate) fn start(program: &str, arguments: &[&str], socket: &Path) -> Server {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{program} is needed for this test: {e}"));
        let mut patience = 2000;
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{program} {arguments:?} ended with {status}");
            }
            patience -= 1;
            assert!(patience > 0, "{program} {arguments:?} does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        let uri = format!("nbd+unix:///?socket={}", socket.display()).parse().unwrap();
        Server { child, uri }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end; its output, or a panic with everything it said.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program} is needed for this test: {e}"));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?} ended with {}:\n{}{}",
        output.status,
        said(&output.stdout),
        said(&output.stderr)
    );
    said(&output.stdout)
}
