//! A stage for one test: a folder, an environment without anything of the machine's, and the program.

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};

/// A folder with the environment of a user who lives there.
pub(crate) struct Stage {
    folder: tempfile::TempDir,
}

/// What a run of the program left.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// A program that runs until it is told to stop.
pub(crate) struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Stage {
    /// An empty one.
    pub(crate) fn new() -> Stage {
        Stage { folder: tempfile::tempdir().unwrap() }
    }

    /// One with a repository `r`, opened by the key file `key`, both named by the environment.
    pub(crate) fn with_repository() -> Stage {
        let stage = Stage::new();
        stage.ok(&["init", "--new-key-file", "key"]);
        stage
    }

    /// The folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Reads a file.
    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// The program, within the folder and its environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.outside(env!("CARGO_BIN_EXE_coffer"), arguments)
    }

    /// Another program, in the same place.
    pub(crate) fn outside(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.folder.path())
            .env("COFFER_REPOSITORY", "r")
            .stdin(Stdio::null());
        // Only once it is there: before, `init` makes it.
        if self.path("key").exists() {
            command.env("COFFER_KEY_FILE", "key");
        }
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        finish(&mut self.command(arguments))
    }

    /// Runs it; it must succeed. What it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let run = self.run(arguments);
        assert_eq!(run.code, 0, "{arguments:?}: {run:?}");
        run.text()
    }

    /// Runs it with `--json`; it must end with `code`. The object it printed.
    pub(crate) fn json(&self, code: i32, arguments: &[&str]) -> Value {
        let run = self.run(&[arguments, &["--json"]].concat());
        assert_eq!(run.code, code, "{arguments:?}: {run:?}");
        let object: Value = serde_json::from_slice(&run.stdout).unwrap();
        assert!(object["warnings"].is_array(), "{object}");
        object
    }

    /// Runs it; it must end with `code` and say `says` in its last line on standard error, and nothing on standard output.
    pub(crate) fn fails(&self, code: i32, says: &str, arguments: &[&str]) {
        let run = self.run(arguments);
        assert_eq!(run.code, code, "{arguments:?}: {run:?}");
        assert!(run.stderr.contains(says), "{arguments:?} does not say '{says}': {run:?}");
        assert!(run.stdout.is_empty(), "{arguments:?}: {run:?}");
    }

    /// Starts it and lets it run.
    pub(crate) fn start(&self, arguments: &[&str], stdin: Stdio) -> Running {
        let child = self.command(arguments).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Running::of(child)
    }

    /// Every file of the repository and what it holds.
    pub(crate) fn objects(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut objects = BTreeMap::new();
        collect(&self.path("r"), &mut objects);
        objects
    }

    /// Backs up `disk.raw`, which then holds `bytes`, as the latest point of `web`.
    pub(crate) fn back_up(&self, bytes: &[u8]) -> Value {
        self.write("disk.raw", bytes);
        self.json(0, &["backup", "-w", "web", "disk.raw"])
    }
}

impl Run {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }
}

impl Running {
    /// A child whose standard error is a pipe.
    pub(crate) fn of(mut child: Child) -> Running {
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Running { child, stderr }
    }

    /// The process.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits until it says a line with `text` on standard error, and gives that line.
    pub(crate) fn line_with(&mut self, text: &str) -> String {
        let mut heard = String::new();
        loop {
            let start = heard.len();
            assert_ne!(self.stderr.read_line(&mut heard).unwrap(), 0, "it ended without saying '{text}': {heard}");
            if heard[start..].contains(text) {
                return heard[start..].trim_end().to_owned();
            }
        }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    /// A test that failed leaves no process.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end.
pub(crate) fn finish(command: &mut Command) -> Run {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let code = status.code().unwrap_or_else(|| panic!("{command:?}: {status}"));
    Run { code, stdout, stderr: String::from_utf8(stderr).unwrap() }
}

/// Bytes that do not compress and differ by `seed`.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| word()).take(len).collect()
}

/// A disk: noise, a hole, noise, and a length that is no multiple of a block.
pub(crate) fn disk(seed: u64) -> Vec<u8> {
    [noise(seed, 1 << 20), vec![0; 1 << 20], noise(seed + 1, (1 << 20) + 512)].concat()
}

fn collect(folder: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, into);
        } else {
            into.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
}
