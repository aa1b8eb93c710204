//! What the program takes from the machine around it: variables, clock, names of host and user. Libraries read none of this.
//!
//! Not here: what the values mean ([`crate::settings`]). What holds: this is the only file that reads variables or the clock.
#![allow(clippy::disallowed_methods)] // The one place of the program that may.

use coffer_gateway::fork::BootId;
use coffer_repo::id::RecordId;
use coffer_repo::key_slot::{PassphraseCost, SlotOptions};
use coffer_repo::snapshot::Identity;
use coffer_repo::time::Timestamp;
use coffer_repo::{Error, Result};
use std::path::PathBuf;
use std::time::SystemTime;
use zeroize::Zeroizing;

/// The variables that count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    /// `COFFER_REPOSITORY`.
    pub(crate) repository: Option<String>,
    /// `COFFER_OPTIONS`.
    pub(crate) options: Option<String>,
    /// `COFFER_PASSWORD_FILE`.
    pub(crate) password_file: Option<PathBuf>,
    /// `COFFER_KEY_FILE`.
    pub(crate) key_file: Option<PathBuf>,
    /// Where programs keep what they can make again: `XDG_CACHE_HOME`, or `HOME/.cache`.
    pub(crate) caches: Option<PathBuf>,
    /// Where forks are kept: `COFFER_STATE`, or `coffer` in `XDG_STATE_HOME` or `HOME/.local/state`.
    pub(crate) state: Option<PathBuf>,
    /// Where programs look for their configuration: `XDG_CONFIG_HOME`, or `HOME/.config`.
    pub(crate) configurations: Option<PathBuf>,
}

impl Environment {
    /// Reads them. An empty variable counts as one that is not set.
    pub(crate) fn read() -> Environment {
        let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // A relative XDG path is to be ignored, says its specification.
        let xdg = |name: &str, below: &str| {
            path(name).filter(|p| p.is_absolute()).or_else(|| path("HOME").map(|home| home.join(below)))
        };
        Environment {
            repository: path("COFFER_REPOSITORY").map(|p| p.to_string_lossy().into_owned()),
            options: path("COFFER_OPTIONS").map(|p| p.to_string_lossy().into_owned()),
            password_file: path("COFFER_PASSWORD_FILE"),
            key_file: path("COFFER_KEY_FILE"),
            caches: xdg("XDG_CACHE_HOME", ".cache"),
            state: path("COFFER_STATE").or_else(|| xdg("XDG_STATE_HOME", ".local/state").map(|p| p.join("coffer"))),
            configurations: xdg("XDG_CONFIG_HOME", ".config"),
        }
    }
}

/// A variable that may hold a secret of an object store.
pub(crate) fn secret(name: &str) -> Option<Zeroizing<String>> {
    std::env::var(name).ok().map(Zeroizing::new)
}

/// The minute of the day, by the machine's clock and its time zone.
pub(crate) fn minute() -> u16 {
    let time = jiff::Zoned::now();
    u16::from(time.hour().unsigned_abs()) * 60 + u16::from(time.minute().unsigned_abs())
}

/// How many sockets a service manager hands to this process (`LISTEN_FDS`); `None` when it does not mean this process
/// (`LISTEN_PID`), or says nothing that makes sense.
pub(crate) fn handed_sockets() -> Option<u16> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let count = number("LISTEN_FDS").filter(|_| number("LISTEN_PID") == Some(std::process::id()))?;
    u16::try_from(count).ok().filter(|count| *count > 0)
}

/// Lets this process have as many files and sockets open as the machine allows it: a thousand clients need more than the usual 1,024.
pub(crate) fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // With fewer, some clients are turned away, which is told then.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// A folder for short-lived private things.
pub(crate) fn scratch() -> PathBuf {
    std::env::temp_dir()
}

/// Which start of the machine this is.
pub(crate) fn boot() -> Result<BootId> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let id: RecordId = text.trim().replace('-', "").parse().map_err(|e: Error| e.within(path))?;
    Ok(BootId(id.0))
}

/// How many threads run at once here.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get())
}

/// The time, by the machine's clock.
pub(crate) fn now() -> Result<Timestamp> {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|e| Error::invalid("the machine's clock stands before 1970; set it first").with_source(e))?;
    Timestamp::from_seconds(since.as_secs())
}

/// Who runs this program, as far as the machine tells.
pub(crate) fn identity() -> Identity {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let uid = rustix::process::geteuid().as_raw();
    Identity {
        host: match host.trim() {
            "" => "unknown".to_owned(),
            host => host.to_owned(),
        },
        user: account(&accounts, uid).unwrap_or_else(|| format!("uid {uid}")),
        program: concat!("coffer ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// What goes with a key slot that is made now; its label is the user's name if none was given.
pub(crate) fn slot_options(label: Option<String>) -> Result<SlotOptions> {
    let label = label.unwrap_or_else(|| {
        let Identity { user, host, .. } = identity();
        format!("{user}@{host}")
    });
    Ok(SlotOptions { label, created: now()?, cost: PassphraseCost::default() })
}

/// The name of the account `uid` in the text of `/etc/passwd`.
fn account(accounts: &str, uid: u32) -> Option<String> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_number() {
        let accounts = "root:x:0:0:root:/root:/bin/bash\nbroken\nweb:x:1000:1000::/home/web:/bin/sh\n";
        assert_eq!(account(accounts, 1000).as_deref(), Some("web"));
        assert_eq!(account(accounts, 0).as_deref(), Some("root"));
        assert_eq!(account(accounts, 7), None);
    }
}
