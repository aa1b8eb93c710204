//! The control socket of a gateway: how a command on the same machine adds, lists and removes exports of a running process.
//!
//! ```text
//!   control        a gateway's socket, from both sides                    this file
//!     message      what is said                                           pure
//!     fork_socket  the socket of a fork that is open, from both sides     for work that takes long
//!     errand       what is said                                           pure
//! ```
//! Not here: what is done. What holds: the socket's file is its user's alone, and whoever calls is asked the kernel for: only the
//! user that the gateway runs as, and root, are answered; a question is one line of bounded length within 10 seconds.

mod errand;
pub mod fork_socket;
mod message;

pub use errand::{Errand, HydrationWish, Outcome, Stride, Word};
pub use message::{Addition, Answer, ExportReport, MAX_ANSWER, MAX_QUESTION, Question};

use crate::door::{Caller, Door};
use crate::serving::Listener;
use crate::{Error, Kind, Result};
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// For a question, and then for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of the socket's file.
const MODE: u32 = 0o600;

/// The gateway's side; closed by dropping it.
pub struct ControlServer {
    _door: Door,
}

impl ControlServer {
    /// Listens at `path`, and lets `answer` answer questions, several at once. A socket that somebody listens on is `Locked`.
    pub fn start(path: &Path, answer: impl Fn(Question) -> Answer + Send + Sync + 'static) -> Result<Self> {
        let listener = Listener::Unix { path: path.to_owned(), mode: MODE };
        let serve = move |caller: &mut Caller| {
            let reply = match question(caller) {
                Ok(question) => answer(question),
                Err(e) => Answer::Failed(e),
            };
            caller.give(PATIENCE);
            // A caller that hung up does not wait for an answer.
            let _ = caller.write_all(format!("{}\n", reply.encode()).as_bytes());
        };
        Ok(ControlServer { _door: Door::open(&listener, "control", PATIENCE, Arc::new(serve))? })
    }
}

/// Refuses everybody but the user that this runs as, and root.
fn may_ask(caller: &Caller) -> Result<()> {
    let own = geteuid().as_raw();
    match caller.user() {
        Some(user) if user == own || user == 0 => Ok(()),
        _ => Err(Error::new(Kind::Retained, "only the user that the gateway runs as may control it")),
    }
}

/// Refuses to talk to somebody else's process.
fn check_owner(socket: &UnixStream, place: &Path) -> Result<()> {
    let failed = |e: rustix::io::Errno| Error::io(format!("asking who listens at {}", place.display()), e.into());
    let (owner, own) = (socket_peercred(socket).map_err(failed)?.uid.as_raw(), geteuid().as_raw());
    if owner != own && owner != 0 && own != 0 {
        let text = format!("{}: somebody else's process listens there (user {owner})", place.display());
        return Err(Error::new(Kind::Retained, text));
    }
    Ok(())
}

/// Reads a question of somebody who may ask.
fn question(caller: &mut Caller) -> Result<Question> {
    may_ask(caller)?;
    let line = line(BufReader::new(caller), MAX_QUESTION).map_err(|e| Error::io("receiving a question", e))?;
    Question::decode(&line)
}

/// Reads a line of at most `max` bytes.
fn line(from: impl BufRead, max: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    from.take(max as u64 + 1).read_until(b'\n', &mut line)?;
    match line.pop() {
        Some(b'\n') => Ok(line),
        _ if line.len() >= max => Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {max} bytes"))),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Asks the gateway that listens at `path`, and waits for its answer, which takes as long as what is asked for. What the gateway
/// could not do is an error like any; `NotFound` when there is no gateway.
pub fn ask(path: &Path, question: &Question) -> Result<Answer> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            let why = "no gateway listens there; 'coffer serve --config FILE' starts one";
            Error::not_found(format!("{}: {why}", path.display())).with_source(e)
        }
        _ => Error::io(format!("asking the gateway at {}", path.display()), e),
    };
    let mut socket = UnixStream::connect(path).map_err(failed)?;
    check_owner(&socket, path)?;
    let asked = socket.write_all(format!("{}\n", question.encode()).as_bytes());
    let line = asked.and_then(|()| line(BufReader::new(&socket), MAX_ANSWER)).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            let text = format!("the gateway at {} ended before it answered", path.display());
            Error::new(Kind::Unavailable, text).with_source(e)
        }
        _ => failed(e),
    })?;
    match Answer::decode(&line)? {
        Answer::Failed(e) => Err(e),
        answer => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway() -> (tempfile::TempDir, std::path::PathBuf, ControlServer) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let answer = |question: Question| match question {
            Question::List | Question::Targets | Question::Sessions => Answer::Exports(vec![ExportReport::default()]),
            Question::Add(addition) => Answer::Done(addition.export),
            Question::Remove { name, .. } => Answer::Failed(Error::not_found(name)),
        };
        let server = ControlServer::start(&path, answer).unwrap();
        (folder, path, server)
    }

    #[test]
    fn a_question_is_answered_and_a_failure_is_an_error() {
        use std::os::unix::fs::PermissionsExt;
        let (_folder, path, server) = gateway();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(ask(&path, &Question::List), Ok(Answer::Exports(list)) if list.len() == 1));
        let addition = Addition { export: "x".repeat(50_000), ..Addition::default() };
        assert!(matches!(ask(&path, &Question::Add(addition)), Ok(Answer::Done(text)) if text.len() == 50_000));
        let removed = ask(&path, &Question::Remove { name: "vda".into(), disconnect: false }).unwrap_err();
        assert_eq!((removed.kind(), removed.to_string().as_str()), (Kind::NotFound, "vda"));
        assert_eq!(ControlServer::start(&path, |_| Answer::Done(String::new())).err().unwrap().kind(), Kind::Locked);
        drop(server);
        let gone = ask(&path, &Question::List).unwrap_err();
        assert!(gone.kind() == Kind::NotFound && gone.to_string().contains("coffer serve"), "{gone}");
    }

    #[test]
    fn callers_that_say_nothing_or_too_much_harm_nobody() {
        let (_folder, path, server) = gateway();
        let silent: Vec<UnixStream> = (0..10).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let mut flood = UnixStream::connect(&path).unwrap();
        // It stops listening at some point, which is an error here.
        let _ = flood.write_all(&vec![b'x'; 1 << 20]);
        let mut noise = UnixStream::connect(&path).unwrap();
        noise.write_all(b"\xff\x00{\n").unwrap();
        let reply = line(BufReader::new(&noise), MAX_ANSWER).unwrap();
        assert!(matches!(Answer::decode(&reply), Ok(Answer::Failed(e)) if e.kind() == Kind::Invalid));
        assert!(matches!(ask(&path, &Question::List), Ok(Answer::Exports(_))));
        // Hangs up on the silent ones, instead of waiting for them.
        drop(server);
        drop(silent);
        assert!(!path.exists());
    }
}
