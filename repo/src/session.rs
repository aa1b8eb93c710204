//! The record of a process that writes or holds pins: an economy for collectors and never a safety argument.
//!
//! ```text
//!   sessions/<id>-<beat>     a new beat every [`BEAT`] replaces the last one; gone when the process ends well
//! ```
//! A collector leaves packs of a session alone whose last beat is recent: their uids end in the session's tag. The janitor
//! leaves pins alone whose session beats.
//!
//! Not here: anything that a reader or a commit looks at. What holds: a session that cannot be written or removed fails
//! nothing; one whose process died stays behind, and the janitor removes it; one thread for a process, however many
//! backups and pins it has.

use crate::cbor::Map;
use crate::entropy::{Entropy, fresh};
use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, RecordId};
use crate::repository::Repository;
use crate::sealed::ObjectKind;
use crate::snapshot::Identity;
use crate::time::Timestamp;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Prefix of all sessions.
pub(crate) const PREFIX: &str = "sessions/";
/// Time between two beats.
const BEAT: Duration = Duration::from_secs(60);
/// A session whose last beat is older, in seconds, counts as ended: several beats may be lost to a slow store.
pub(crate) const FRESH: u64 = 600;

/// What the uids of a session's packs end in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionTag(pub [u8; 8]);

impl SessionTag {
    fn of(id: RecordId) -> Self {
        let [tag @ .., _, _, _, _, _, _, _, _] = id.0;
        SessionTag(tag)
    }

    /// A new random uid with this tag.
    pub fn draw(self, entropy: &dyn Entropy) -> Result<PackUid> {
        let [a, b, c, d, e, f, g, h] = fresh::<8>(entropy)?;
        let SessionTag([i, j, k, l, m, n, o, p]) = self;
        Ok(PackUid([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]))
    }

    /// The tag of a pack.
    #[must_use]
    pub fn of_pack(uid: PackUid) -> Self {
        let [_, _, _, _, _, _, _, _, tag @ ..] = uid.0;
        SessionTag(tag)
    }
}

/// A running session.
#[derive(Debug)]
pub(crate) struct Session {
    id: RecordId,
    stop: Option<Sender<()>>,
    heart: Option<JoinHandle<()>>,
}

impl Session {
    /// Announces this process; a store that cannot be written is left alone. `now` is what the beats count from.
    pub(crate) fn begin(repo: &Arc<Repository>, identity: &Identity, now: Timestamp) -> Result<Self> {
        let id = RecordId(fresh(repo.entropy())?);
        let mut pulse = Pulse { repo: Arc::downgrade(repo), id, identity: identity.clone(), now, beat: None };
        pulse.beat(Duration::ZERO);
        let (stop, stopped) = bounded::<()>(0);
        let begun = Instant::now();
        let heart = std::thread::Builder::new()
            .name("heartbeat".into())
            .spawn(move || {
                while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                    pulse.beat(begun.elapsed());
                }
                pulse.end();
            })
            .map_err(|e| Error::new(Kind::Unavailable, "starting a thread").with_source(e))?;
        Ok(Session { id, stop: Some(stop), heart: Some(heart) })
    }

    pub(crate) fn id(&self) -> RecordId {
        self.id
    }

    pub(crate) fn tag(&self) -> SessionTag {
        SessionTag::of(self.id)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(heart) = self.heart.take() {
            let _ = heart.join();
        }
    }
}

/// What writes the beats.
struct Pulse {
    /// Weak: the repository's own last reference may be let go of while the heart beats.
    repo: Weak<Repository>,
    id: RecordId,
    identity: Identity,
    now: Timestamp,
    /// Number of the last beat.
    beat: Option<u32>,
}

impl Pulse {
    fn beat(&mut self, since: Duration) {
        let Some(repo) = self.repo.upgrade() else { return };
        let next = self.beat.map_or(0, |beat| beat.saturating_add(1));
        let put = || -> Result<()> {
            let body = Map::new()
                .with("host", self.identity.host.as_str())
                .with("program", self.identity.program.as_str())
                .with("time", self.now.seconds().saturating_add(since.as_secs()))
                .encode()?;
            let _ = repo.put_record(ObjectKind::Session, &name(self.id, next), &body)?;
            Ok(())
        };
        // The new one first: at no time does a running session look like none.
        if put().is_ok()
            && let Some(last) = self.beat.replace(next)
        {
            let _ = repo.backend().delete(&name(self.id, last));
        }
    }

    fn end(&self) {
        if let (Some(repo), Some(beat)) = (self.repo.upgrade(), self.beat) {
            let _ = repo.backend().delete(&name(self.id, beat));
        }
    }
}

fn name(id: RecordId, beat: u32) -> String {
    format!("{PREFIX}{id}-{beat:08x}")
}

/// Id of the session and number of the beat of an object's name.
fn parse_name(object: &str) -> Option<(RecordId, u32)> {
    let (id, beat) = object.strip_prefix(PREFIX)?.split_once('-')?;
    let parsed = (id.parse().ok()?, u32::from_str_radix(beat, 16).ok()?);
    (name(parsed.0, parsed.1) == object).then_some(parsed)
}

/// The sessions of a store.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// Those that beat.
    pub(crate) running: BTreeMap<SessionTag, RecordId>,
    /// Objects of the others, and of beats that were replaced.
    pub(crate) ended: Vec<String>,
}

impl Sessions {
    /// Lists the sessions and reads their last beats. One that cannot be read counts as ended, one whose beat went away between
    /// listing and reading as running: it has just beaten again, or has just ended and is gone the next time.
    pub(crate) fn list(repo: &Repository, now: Timestamp) -> Result<Self> {
        let mut beats: BTreeMap<RecordId, BTreeSet<u32>> = BTreeMap::new();
        repo.backend().list(PREFIX, &mut |object| {
            if let Some((id, beat)) = parse_name(&object.name) {
                beats.entry(id).or_default().insert(beat);
            }
            Ok(())
        })?;
        let mut sessions = Sessions::default();
        for (id, mut beats) in beats {
            let Some(beat) = beats.pop_last() else { continue };
            sessions.ended.extend(beats.into_iter().map(|old| name(id, old)));
            let record = repo.get_record(ObjectKind::Session, &name(id, beat));
            let time = record.and_then(|r| Map::decode(&r.body)?.opt_uint("time"));
            match time {
                Ok(Some(time)) if time.saturating_add(FRESH) >= now.seconds() => {
                    sessions.running.insert(SessionTag::of(id), id);
                }
                Err(e) if e.kind() == Kind::NotFound => {
                    sessions.running.insert(SessionTag::of(id), id);
                }
                Err(e) if e.kind() == Kind::Unavailable => return Err(e),
                _ => sessions.ended.push(name(id, beat)),
            }
        }
        Ok(sessions)
    }
}
