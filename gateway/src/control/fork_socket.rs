//! The socket of a fork that is open: how a command reaches the one process that has the fork, for work that takes long.
//!
//! ```text
//!   a command:  send ---- Errand --->  ForkSocket -> work, on a thread of its own, with a Teller
//!                    <--- Word ...                     tells how it goes; knows when nobody listens any more
//! ```
//! Not here: what an errand does. What holds: the file lies in the fork's folder and goes with its owner, who alone has the fork's lock;
//! callers are asked for as by [`super`]: the owner's user and root; an errand lives as long as whoever asked for it: who hangs up has
//! it cancelled. The folder is reached through a descriptor, since the path of a socket holds 108 bytes and no more.
//!
//! [`Teller`]'s lock is held while a line is sent, against the rule: lines must not mix, and a caller that takes none for 10 s is
//! given up.

use super::errand::{Errand, MAX_LINE, Outcome, Word};
use super::{MODE, PATIENCE, check_owner, line, may_ask};
use crate::door::{Caller, Door};
use crate::serving::Listener;
use crate::{Error, Kind, Result};
use coffer_repo::cancel::Cancel;
use rustix::fs::{Mode, OFlags, open};
use std::io::{self, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The socket's file in the fork's folder.
const FILE: &str = "control";

/// The owner's side; closed by dropping it, which cancels errands under way and waits for them.
pub struct ForkSocket {
    // The order matters: the file goes while the folder's descriptor is there.
    _door: Door,
    _folder: OwnedFd,
}

/// Tells whoever sent an errand how it goes.
pub struct Teller {
    caller: Mutex<Caller>,
    cancel: Cancel,
}

impl Teller {
    /// Tells it. Once nobody listens any more the errand is cancelled.
    pub fn tell(&self, word: &Word) {
        let mut caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        caller.give(PATIENCE);
        if caller.write_all(format!("{}\n", word.encode()).as_bytes()).is_err() {
            self.cancel.cancel();
        }
    }

    /// Set when the errand is to end.
    #[must_use]
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }
}

impl ForkSocket {
    /// Listens in the folder of a fork whose lock the caller has, and lets `work` do errands, several at once. It has to tell something
    /// every now and then, or does not notice that nobody listens.
    pub fn open(
        folder: &Path,
        work: impl Fn(Errand, &Arc<Teller>) -> Result<Outcome> + Send + Sync + 'static,
    ) -> Result<Self> {
        let (descriptor, path) = reach(folder)?;
        let serve = move |caller: &mut Caller| {
            let teller = Arc::new(Teller { caller: Mutex::new(caller.clone()), cancel: Cancel::default() });
            let asked = may_ask(caller).and_then(|()| {
                let line =
                    line(BufReader::new(&mut *caller), MAX_LINE).map_err(|e| Error::io("receiving an errand", e))?;
                Errand::decode(&line)
            });
            teller.tell(&match asked.and_then(|errand| work(errand, &teller)) {
                Ok(outcome) => Word::Done(outcome),
                Err(e) => Word::Failed(e),
            });
        };
        let door = Door::open(&Listener::Unix { path, mode: MODE }, "fork", PATIENCE, Arc::new(serve));
        let door = door.map_err(|e| e.within(folder.display()))?;
        Ok(ForkSocket { _door: door, _folder: descriptor })
    }
}

/// Sends an errand to whoever has the fork in `folder` open, and passes on what is told until it is done. `None` when nobody
/// listens there.
pub fn send(folder: &Path, errand: &Errand, mut tell: impl FnMut(Word)) -> Result<Option<Outcome>> {
    let (_descriptor, path) = reach(folder)?;
    let failed = |e| Error::io("asking whoever has the fork open", e);
    let mut socket = match UnixStream::connect(&path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        socket => socket.map_err(failed)?,
    };
    check_owner(&socket, folder)?;
    socket.write_all(format!("{}\n", errand.encode()).as_bytes()).map_err(failed)?;
    let mut lines = BufReader::new(socket);
    loop {
        let line = line(&mut lines, MAX_LINE).map_err(|e| {
            let text = "whoever has the fork open ended before this was done; nothing that was written to it is lost";
            Error::new(Kind::Unavailable, text).with_source(e)
        })?;
        match Word::decode(&line)? {
            Word::Done(outcome) => return Ok(Some(outcome)),
            Word::Failed(error) => return Err(error),
            word => tell(word),
        }
    }
}

/// The folder, and the socket's path by way of it.
fn reach(folder: &Path) -> Result<(OwnedFd, PathBuf)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let descriptor = open(folder, flags, Mode::empty());
    let descriptor = descriptor.map_err(|e| Error::io(folder.display().to_string(), e.into()))?;
    let path = Path::new("/proc/self/fd").join(descriptor.as_raw_fd().to_string()).join(FILE);
    Ok((descriptor, path))
}

#[cfg(test)]
mod tests {
    use super::super::errand::Stride;
    use super::*;
    use serde_json::json;
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    /// A folder whose path is longer than a socket's may be.
    fn folder() -> (tempfile::TempDir, PathBuf) {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("x".repeat(120));
        std::fs::create_dir(&inner).unwrap();
        (outer, inner)
    }

    fn commit(tag: &str) -> Errand {
        Errand::Commit { tags: vec![tag.to_owned()] }
    }

    /// Tells how it goes until it is cancelled, when asked for `wait`.
    fn work(errand: &Errand, teller: &Teller, ended: &Sender<()>) -> Result<Outcome> {
        let Errand::Commit { tags } = errand else { panic!("not a commit: {errand}") };
        match tags[0].as_str() {
            "wait" => loop {
                teller.tell(&Word::Stride(Stride::default()));
                if let Err(e) = teller.cancel().check() {
                    ended.send(()).unwrap();
                    return Err(e);
                }
                std::thread::sleep(Duration::from_millis(5));
            },
            "fail" => Err(Error::new(Kind::Full, "no room")),
            tag => {
                teller.tell(&Word::Notice("begun".to_owned()));
                Ok(Outcome { object: json!({ "tag": tag }), text: "x\n".repeat(1000) })
            }
        }
    }

    #[test]
    fn an_errand_is_told_of_until_it_is_done_or_nobody_listens() {
        let (_outer, folder) = folder();
        assert!(send(&folder, &commit("a"), |_| ()).unwrap().is_none());
        let (ended, end) = channel();
        let socket = ForkSocket::open(&folder, move |errand, teller| work(&errand, teller, &ended)).unwrap();
        let mut told = Vec::new();
        let outcome = send(&folder, &commit("a"), |word| told.push(word.encode())).unwrap().unwrap();
        assert_eq!((outcome.object, outcome.text.len()), (json!({ "tag": "a" }), 2000));
        assert_eq!(told, [Word::Notice("begun".to_owned()).encode()]);
        let failed = send(&folder, &commit("fail"), |_| ()).unwrap_err();
        assert_eq!((failed.kind(), failed.to_string().as_str()), (Kind::Full, "no room"));

        // Whoever asked goes away.
        let (_descriptor, path) = reach(&folder).unwrap();
        let mut caller = UnixStream::connect(path).unwrap();
        caller.write_all(format!("{}\n", commit("wait").encode()).as_bytes()).unwrap();
        let mut lines = BufReader::new(&caller);
        assert!(matches!(Word::decode(&line(&mut lines, MAX_LINE).unwrap()), Ok(Word::Stride(_))));
        drop(caller);
        end.recv_timeout(Duration::from_secs(20)).unwrap();

        // The owner does.
        let (begun, begins) = channel();
        let asked = std::thread::spawn({
            let folder = folder.clone();
            move || send(&folder, &commit("wait"), |_| begun.send(()).unwrap())
        });
        begins.recv_timeout(Duration::from_secs(20)).unwrap();
        drop(socket);
        let cut = asked.join().unwrap().unwrap_err();
        assert!(matches!(cut.kind(), Kind::Unavailable | Kind::Cancelled), "{cut}");
        end.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(!folder.join(FILE).exists());
    }
}
