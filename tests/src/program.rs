//! Outside programs and our own as child processes: run to their end, or running until the test ends.
//!
//! Not here: what is asked of them. What holds: nothing outlives its [`Running`], whatever the test does; a program that is
//! missing, or that does not end within [`LIMIT`], fails the test and is named; what a program printed is part of every failure.

// A harness speaks by failing.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long any program may take. Far more than any needs on a loaded machine: it ends what would never end.
pub const LIMIT: Duration = Duration::from_secs(300);
/// Between two looks at a program.
const PAUSE: Duration = Duration::from_millis(5);

/// The Debian packages of the outside programs: all that a test names by [`outside`].
const PACKAGES: &[(&str, &str)] = &[
    ("bash", "bash"),
    ("ceph", "ceph-common"),
    ("ceph-authtool", "ceph-common"),
    ("ceph-mgr", "ceph-mgr"),
    ("ceph-mon", "ceph-mon"),
    ("ceph-osd", "ceph-osd"),
    ("cmp", "diffutils"),
    ("cp", "coreutils"),
    ("debugfs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("faketime", "faketime"),
    ("fio", "fio"),
    ("iscsi-readcapacity16", "libiscsi-bin"),
    ("iscsi-test-cu", "libiscsi-bin"),
    ("losetup", "mount"),
    ("mke2fs", "e2fsprogs"),
    ("monmaptool", "ceph-base"),
    ("mount", "mount"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdkit", "nbdkit"),
    ("node", "nodejs"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("radosgw", "radosgw"),
    ("radosgw-admin", "ceph-common"),
    ("umount", "mount"),
];

/// A command that runs an outside program, without input.
#[must_use]
pub fn outside(program: &str) -> Command {
    assert!(PACKAGES.iter().any(|(known, _)| *known == program), "{program} has no line in PACKAGES");
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Runs a program to its end and gives what it printed. Any other end than success fails the test.
pub fn run(command: &mut Command) -> String {
    let ended = attempt(command);
    assert!(ended.status.success(), "{ended}");
    ended.out
}

/// Runs a program to its end, whatever that is.
pub fn attempt(command: &mut Command) -> Ended {
    Running::start(command).wait()
}

/// A program that ended.
#[derive(Debug)]
pub struct Ended {
    what: String,
    /// How.
    pub status: ExitStatus,
    /// What it printed.
    pub out: String,
    /// What it said on standard error.
    pub err: String,
    /// The most memory it was seen to hold, in bytes.
    pub peak_memory: u64,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ended { what, status, out, err, .. } = self;
        write!(f, "{what}: {status}\n--- standard output\n{out}\n--- standard error\n{err}")
    }
}

/// A program that is running. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    // Files rather than pipes: nobody has to read them for the program to go on.
    out: File,
    err: File,
    peak_memory: u64,
}

impl Running {
    /// Starts it. Its output is kept; its input is the command's.
    pub fn start(command: &mut Command) -> Running {
        let what = format!("{command:?}");
        let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let child = command.stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap()).spawn();
        let child = child.unwrap_or_else(|e| {
            let program = command.get_program();
            match PACKAGES.iter().find(|(known, _)| *known == program) {
                Some((_, package)) if e.kind() == ErrorKind::NotFound => {
                    panic!("{program:?} is missing: install the Debian package {package} (tests/setup.sh does)")
                }
                _ => panic!("{what}: {e}"),
            }
        });
        Running { what, child, out, err, peak_memory: 0 }
    }

    /// What it has printed so far.
    pub fn out(&self) -> String {
        contents(&self.out)
    }

    /// What it has said on standard error so far.
    pub fn err(&self) -> String {
        contents(&self.err)
    }

    /// The memory that it holds now, in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let now = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        now.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    }

    /// Waits until `holds`, while the program runs. Its end before that fails the test.
    pub fn wait_until(&mut self, awaited: &str, mut holds: impl FnMut(&Running) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            self.look();
            let status = self.child.try_wait().unwrap();
            let (out, err) = (self.out(), self.err());
            assert_eq!(status, None, "{} ended before {awaited}\n{out}\n{err}", self.what);
            assert!(began.elapsed() < LIMIT, "{}: no {awaited} in {LIMIT:?}\n{out}\n{err}", self.what);
            sleep(PAUSE);
        }
    }

    /// Waits for its end.
    #[must_use]
    pub fn wait(mut self) -> Ended {
        let began = Instant::now();
        let status = loop {
            self.look();
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < LIMIT, "{} did not end in {LIMIT:?}\n{}\n{}", self.what, self.out(), self.err());
            sleep(PAUSE);
        };
        let (out, err, peak_memory) = (self.out(), self.err(), self.peak_memory);
        Ended { what: self.what.clone(), status, out, err, peak_memory }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    #[must_use]
    pub fn terminate(mut self) -> Ended {
        self.look();
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    /// Ends it at once (SIGKILL). It must be running still.
    pub fn kill(mut self) {
        let status = self.child.try_wait().unwrap();
        assert_eq!(status, None, "{} ended before it could be killed\n{}", self.what, self.err());
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it at once (SIGKILL). How it had ended by itself, if it had.
    pub fn kill_unless_ended(mut self) -> Option<Ended> {
        self.child.kill().unwrap();
        let ended = self.wait();
        (ended.status.signal() != Some(rustix::process::Signal::KILL.as_raw())).then_some(ended)
    }

    /// Notes how much memory it has held so far. One that has ended holds none.
    fn look(&mut self) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        if let Some(peak) = status.lines().find_map(|line| line.strip_prefix("VmHWM:")) {
            let kib: u64 = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
            self.peak_memory = self.peak_memory.max(kib << 10);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, and been waited for, already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All of a file that somebody else writes to, whose position must not move.
fn contents(file: &File) -> String {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
