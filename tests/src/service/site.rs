//! Where a service lives: a folder, the daemons that run in it, and the warden that ends them.
//!
//! Not here: which daemons. What holds: a daemon's pid is the warden's before its service is used, and is taken back before
//! the daemon is waited for, so that no other process is ever killed for it.

// A harness speaks by failing.
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::program::{LIMIT, outside};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, Once};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Told: `+PID`, `-PID`, or that the logs are wanted. The folder is the first argument.
const WARDEN: &str = r#"
pids=' ' logs=
while read -r word; do
    case $word in
    +*) pids+="${word#+} " ;;
    -*) pids=${pids/ ${word#-} / } ;;
    logs) logs=wanted ;;
    esac
done
[ "$pids" = ' ' ] || kill -KILL $pids
for _ in {1..100}; do
    if [ "$logs" ]; then
        find "$1" -mindepth 1 -maxdepth 1 ! -name log -exec rm -rf {} + && exit
    else
        rm -rf "$1" && exit
    fi
    sleep 0.1
done 2>/dev/null
"#;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The pipes to all wardens, for the panic hook.
static PIPES: Mutex<Vec<(PathBuf, Arc<Mutex<ChildStdin>>)>> = Mutex::new(Vec::new());

/// A folder with daemons.
pub(super) struct Site {
    folder: PathBuf,
    pipe: Arc<Mutex<ChildStdin>>,
    daemons: Mutex<Vec<(String, Child)>>,
}

/// From the first panic on the logs of all services are kept: a failed test may have to do with any.
fn keep_logs_on_failure() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            before(panic);
            for (folder, pipe) in PIPES.lock().unwrap_or_else(std::sync::PoisonError::into_inner).drain(..) {
                let told = writeln!(pipe.lock().unwrap_or_else(std::sync::PoisonError::into_inner), "logs");
                if told.is_ok() {
                    // By the stream itself: the harness of the tests takes no part in a hook.
                    let _ = writeln!(std::io::stderr(), "logs of a service: {}", folder.join("log").display());
                }
            }
        }));
    });
}

impl Site {
    /// An empty folder, and its warden.
    pub(super) fn new(name: &str) -> Site {
        keep_logs_on_failure();
        let folder = tempfile::Builder::new().prefix(&format!("coffer-{name}.")).tempdir().unwrap().keep();
        std::fs::create_dir(folder.join("log")).unwrap();
        // In a group of its own: who interrupts the tests at a terminal does not interrupt it.
        let mut warden = outside("bash");
        warden.args(["-c", WARDEN, "warden"]).arg(&folder).stdin(Stdio::piped()).process_group(0);
        let mut warden = warden.spawn().unwrap();
        let pipe = Arc::new(Mutex::new(warden.stdin.take().unwrap()));
        PIPES.lock().unwrap().push((folder.clone(), Arc::clone(&pipe)));
        // It ends after this value, when the pipe has closed and all is down: nobody else is there to take its status.
        std::thread::spawn(move || warden.wait());
        Site { folder, pipe, daemons: Mutex::default() }
    }

    /// The folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a daemon, which logs to a file of its name.
    pub(super) fn spawn(&self, name: &str, command: &mut Command) {
        let log = File::create(self.folder.join("log").join(name)).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e} (tests/setup.sh installs it)"));
        writeln!(self.pipe.lock().unwrap(), "+{}", child.id()).unwrap();
        self.daemons.lock().unwrap().push((name.to_owned(), child));
    }

    /// Ends a daemon at once.
    pub(super) fn kill(&self, name: &str) {
        let mut daemons = self.daemons.lock().unwrap();
        let at = daemons.iter().position(|(other, _)| other == name).unwrap();
        let (_, mut child) = daemons.remove(at);
        writeln!(self.pipe.lock().unwrap(), "-{}", child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until `holds`. The end of a daemon before that fails the test, with what it logged last.
    pub(super) fn wait_until(&self, awaited: &str, mut holds: impl FnMut() -> bool) {
        let began = Instant::now();
        while !holds() {
            for (name, child) in self.daemons.lock().unwrap().iter_mut() {
                if let Some(status) = child.try_wait().unwrap() {
                    panic!("{name} ended before {awaited}: {status}\n{}", self.log(name));
                }
            }
            assert!(began.elapsed() < LIMIT, "no {awaited} in {LIMIT:?}: see {}", self.folder.join("log").display());
            sleep(PAUSE);
        }
    }

    /// The end of what a daemon logged.
    fn log(&self, name: &str) -> String {
        const LAST: usize = 4000;
        let log = std::fs::read(self.folder.join("log").join(name)).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(LAST)..]).into_owned()
    }
}
