//! What is known about one frame, as spooled: which maps need it, which packs hold it, where it was moved.
//!
//! Not here: where mentions come from. What holds: keys of chunks and nodes never meet, being keyed hashes over different
//! domains; a moved line is a hint, followed and not believed.

use crate::cursor::Cursor;
use crate::error::{Error, Result};
use crate::id::PackUid;
use crate::location::{IndexKey, Location};
use crate::spool::Spooled;

/// One thing that is known about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mention {
    /// A map that counts looks for it here.
    Needed { key: IndexKey, at: Location },
    /// A pack of the batch that is being judged holds it here.
    Held { key: IndexKey, at: Location },
    /// Who looks for it in `from` is sent here.
    Moved { key: IndexKey, from: PackUid, to: PackUid, offset: u32, stored_len: u32 },
}

impl Spooled for Mention {
    fn key(&self) -> IndexKey {
        match self {
            Mention::Needed { key, .. } | Mention::Held { key, .. } | Mention::Moved { key, .. } => *key,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key().0);
        match self {
            Mention::Needed { at, .. } => encode_place(1, at, out),
            Mention::Held { at, .. } => encode_place(2, at, out),
            Mention::Moved { from, to, offset, stored_len, .. } => {
                let at = Location { pack: *to, offset: *offset, stored_len: *stored_len, raw_len: 0 };
                encode_place(3, &at, out);
                out.extend_from_slice(&from.0);
            }
        }
    }

    fn decode(at: &mut Cursor<'_>) -> Result<Self> {
        let key = IndexKey(at.array()?);
        let [kind] = at.array()?;
        let pack = PackUid(at.array()?);
        let place = Location { pack, offset: at.u32()?, stored_len: at.u32()?, raw_len: at.u32()? };
        match kind {
            1 => Ok(Mention::Needed { key, at: place }),
            2 => Ok(Mention::Held { key, at: place }),
            3 => {
                let Location { pack: to, offset, stored_len, .. } = place;
                Ok(Mention::Moved { key, from: PackUid(at.array()?), to, offset, stored_len })
            }
            other => Err(Error::internal(format!("a mention of kind {other}"))),
        }
    }
}

fn encode_place(kind: u8, at: &Location, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(&at.pack.0);
    for field in [at.offset, at.stored_len, at.raw_len] {
        out.extend_from_slice(&field.to_le_bytes());
    }
}

/// Where maps look for the frame of these mentions, each place once.
pub(super) fn needed(group: &[Mention]) -> Vec<Location> {
    let mut places: Vec<Location> = Vec::new();
    for mention in group {
        if let Mention::Needed { at, .. } = mention
            && !places.iter().any(|p| place_of(p) == place_of(at))
        {
            places.push(*at);
        }
    }
    places
}

/// Where somebody ends up who looks for the frame at `from` and follows moved lines from packs that are gone: every place in a
/// pack that exists, the nearest first. Nothing when it is lost.
pub(super) fn follow(group: &[Mention], from: Location, exists: &dyn Fn(PackUid) -> bool) -> Vec<Location> {
    let mut found = trail(group, from, exists);
    found.retain(|at| exists(at.pack));
    found
}

/// The one of those places that counts, the same for whoever asks, so that of several copies the others become garbage: one that
/// a map names itself, if there is such a one, or else the one that most maps lead to.
pub(super) fn lead(group: &[Mention], from: Location, exists: &dyn Fn(PackUid) -> bool) -> Option<Location> {
    let found = follow(group, from, exists);
    if found.len() < 2 {
        return found.first().copied();
    }
    let needed = needed(group);
    let rank = |place: &Location| {
        let is_it = |at: &Location| place_of(at) == place_of(place);
        let led = needed.iter().filter(|from| follow(group, **from, exists).iter().any(is_it)).count();
        (!needed.iter().any(is_it), std::cmp::Reverse(led), place_of(place))
    };
    found.into_iter().min_by_key(rank)
}

/// What tells places apart.
pub(super) fn place_of(at: &Location) -> (PackUid, u32) {
    (at.pack, at.offset)
}

/// All places on the way, breadth first, each pack once.
fn trail(group: &[Mention], from: Location, exists: &dyn Fn(PackUid) -> bool) -> Vec<Location> {
    let mut trail = vec![from];
    let mut next = 0;
    while let Some(at) = trail.get(next).copied() {
        next += 1;
        if exists(at.pack) {
            continue;
        }
        for mention in group {
            if let Mention::Moved { from, to, offset, stored_len, .. } = mention
                && *from == at.pack
                && !trail.iter().any(|seen| seen.pack == *to)
            {
                trail.push(Location { pack: *to, offset: *offset, stored_len: *stored_len, raw_len: at.raw_len });
            }
        }
    }
    trail
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pack: u8, offset: u32) -> Location {
        Location { pack: PackUid([pack; 16]), offset, stored_len: 20, raw_len: 4096 }
    }

    fn moved(from: u8, to: u8) -> Mention {
        let (from, to) = (PackUid([from; 16]), PackUid([to; 16]));
        Mention::Moved { key: IndexKey([1; 16]), from, to, offset: 7, stored_len: 20 }
    }

    #[test]
    fn mentions_round_trip() {
        let key = IndexKey([9; 16]);
        for mention in [Mention::Needed { key, at: at(1, 2) }, Mention::Held { key, at: at(3, 4) }, moved(5, 6)] {
            let mut bytes = Vec::new();
            mention.encode(&mut bytes);
            let mut cursor = Cursor::new(&bytes, "a mention");
            assert_eq!(Mention::decode(&mut cursor).unwrap(), mention);
            cursor.end().unwrap();
        }
    }

    #[test]
    fn chains_are_followed_and_circles_end() {
        let group = [moved(1, 2), moved(2, 3), moved(2, 1), moved(1, 4), moved(4, 4)];
        let follow = |alive: &[u8]| -> Vec<u8> {
            let exists = |uid: PackUid| alive.contains(&uid.0[0]);
            follow(&group, at(1, 0), &exists).iter().map(|l| l.pack.0[0]).collect()
        };
        assert_eq!(follow(&[1, 2, 3]), [1]);
        assert_eq!(follow(&[3]), [3]);
        assert_eq!(follow(&[2, 3, 4]), [2, 4]);
        let lead = |alive: &[u8]| lead(&group, at(1, 0), &|uid| alive.contains(&uid.0[0])).map(|l| l.pack.0[0]);
        assert_eq!((lead(&[1, 2]), lead(&[4, 3]), lead(&[])), (Some(1), Some(3), None));
        let named = [&group[..], &[Mention::Needed { key: IndexKey([1; 16]), at: at(4, 7) }]].concat();
        let exists = |uid: PackUid| [3, 4].contains(&uid.0[0]);
        assert_eq!(super::lead(&named, at(1, 0), &exists).map(|l| l.pack.0[0]), Some(4));
        assert_eq!(follow(&[]), [0; 0]);
    }
}
