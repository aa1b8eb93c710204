//! The state of the model: what lies in the store, and what each process remembers. Bytes and bit sets, so that tens of
//! millions of states are hashed and compared quickly.
//!
//! Not here: who does what ([`super::protocol`]). What holds: nothing in it is a time, and no process sees more of the
//! store than the step it takes lists.

use std::fmt;
use std::hash::{Hash, Hasher};

/// Chunks that every snapshot needs.
pub(crate) const CHUNKS: u8 = 2;
/// Most packs there can ever be.
pub(crate) const PACKS: usize = 7;
/// Claims: the snapshot that was there before, one for each writer, a pin.
pub(crate) const CLAIMS: u8 = 4;
/// The claim that is a pin.
pub(crate) const PIN: u8 = 3;
/// No pack, no claim.
pub(crate) const NONE: u8 = 15;

/// A set of small numbers: packs, chunks or claims.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Set(pub(crate) u8);

impl Set {
    pub(crate) const EMPTY: Set = Set(0);

    pub(crate) fn of(number: u8) -> Set {
        if number < 8 { Set(1 << number) } else { Set::EMPTY }
    }

    pub(crate) fn has(self, number: u8) -> bool {
        !self.and(Set::of(number)).is_empty()
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn len(self) -> u32 {
        self.0.count_ones()
    }

    pub(crate) fn and(self, other: Set) -> Set {
        Set(self.0 & other.0)
    }

    pub(crate) fn or(self, other: Set) -> Set {
        Set(self.0 | other.0)
    }

    pub(crate) fn less(self, other: Set) -> Set {
        Set(self.0 & !other.0)
    }

    pub(crate) fn is_within(self, other: Set) -> bool {
        self.less(other).is_empty()
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = u8> {
        (0..8).filter(move |number| self.has(*number))
    }

    /// The same with two numbers changing places.
    pub(crate) fn swapped(self, a: u8, b: u8) -> Set {
        let differ = (self.0 >> a ^ self.0 >> b) & 1;
        Set(self.0 ^ (differ << a | differ << b))
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl FromIterator<u8> for Set {
    fn from_iter<I: IntoIterator<Item = u8>>(numbers: I) -> Set {
        numbers.into_iter().fold(Set::EMPTY, |set, number| set.or(Set::of(number)))
    }
}

/// The objects about one claim, and, in [`Claim::TOLD`] and [`Claim::ENDED`], what was promised about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim {
    pub(crate) flags: u8,
    /// The pack that the map says a chunk lies in.
    pub(crate) hint: [u8; CHUNKS as usize],
}

impl Claim {
    /// `claim` exists.
    pub(crate) const CLAIM: u8 = 1;
    /// `decision` says COMMIT.
    pub(crate) const COMMIT: u8 = 2;
    /// `decision` says REVOKE.
    pub(crate) const REVOKE: u8 = 4;
    /// `forgets/<id>` exists.
    pub(crate) const FORGET: u8 = 8;
    /// The writer was told that it is committed; the reader that its pin holds.
    pub(crate) const TOLD: u8 = 16;
    /// Somebody ended it, so that nothing is promised any more.
    pub(crate) const ENDED: u8 = 32;
    /// `intent` exists: its writer is about to commit it. Only where puts replace what is there.
    pub(crate) const INTENT: u8 = 64;
    /// `revoke` exists: somebody is about to revoke it. Only where puts replace what is there.
    pub(crate) const REVOKING: u8 = 128;

    pub(crate) const ABSENT: Claim = Claim { flags: 0, hint: [NONE; CHUNKS as usize] };

    pub(crate) fn is(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether its chunks were promised to stay.
    pub(crate) fn counts(self) -> bool {
        self.is(Self::TOLD) && !self.is(Self::ENDED)
    }
}

/// What a writer remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Writer {
    /// Position in its program.
    pub(crate) at: u8,
    /// The claim whose subtrees it took unread.
    pub(crate) parent: u8,
    /// The pack that it relies on for a chunk; none for a chunk in a subtree of the parent.
    pub(crate) relied: [u8; CHUNKS as usize],
    /// Chunks whose pack its last check found condemned or gone.
    pub(crate) lost: Set,
}

impl Writer {
    pub(crate) fn at(at: u8) -> Writer {
        Writer { at, parent: NONE, relied: [NONE; CHUNKS as usize], lost: Set::EMPTY }
    }
}

/// What a collector remembers, and its record in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Collector {
    /// Position in its program.
    pub(crate) at: u8,
    /// The packs that its `condemned/<id>` names. Empty: no such object.
    pub(crate) record: Set,
    /// Claims that its list of forgets named.
    pub(crate) forgotten: Set,
    /// Claims that its list of claims showed, those revoked left out.
    pub(crate) roots: Set,
    /// Whether a root is left. Each root reaches all chunks.
    pub(crate) live: bool,
    /// Packs that its list of condemned records named.
    pub(crate) condemned: Set,
    /// Packs that it listed.
    pub(crate) packs: Set,
    /// Packs that it is going to delete.
    pub(crate) doomed: Set,
    /// The pack that its moved records send to, for each chunk.
    pub(crate) target: [u8; CHUNKS as usize],
}

/// Where those are that decide about a writer's claim in its stead, on a store whose puts replace what is there: how many
/// steps of their programs each has behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Deciders {
    /// Of who completes a commit.
    pub(crate) helper: u8,
    /// Of who revokes.
    pub(crate) revoker: u8,
}

/// All of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct State {
    /// Packs in the store.
    pub(crate) present: Set,
    /// Packs that were ever put.
    pub(crate) ever: Set,
    /// The packs that hold, or held, a chunk.
    pub(crate) holders: [Set; CHUNKS as usize],
    pub(crate) claims: [Claim; CLAIMS as usize],
    /// The snapshot that the pin holds.
    pub(crate) pinned: u8,
    pub(crate) writers: [Writer; 2],
    /// For the claim of each writer.
    pub(crate) deciders: [Deciders; 2],
    pub(crate) collectors: [Collector; 3],
    /// For a chunk and a pack: where moved records about the pack send.
    pub(crate) moved: [[Set; PACKS]; CHUNKS as usize],
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b] = self.holders;
        state.write_u64(u64::from_le_bytes([self.present.0, self.ever.0, a.0, b.0, self.pinned, 0, 0, 0]));
        for Claim { flags, hint: [a, b] } in self.claims {
            state.write_u32(u32::from_le_bytes([flags, a, b, 0]));
        }
        for Writer { at, parent, relied: [a, b], lost } in self.writers {
            state.write_u64(u64::from_le_bytes([at, parent, a, b, lost.0, 0, 0, 0]));
        }
        for Collector { at, record, forgotten, roots, live, condemned, packs, doomed, target: [a, b] } in
            self.collectors
        {
            let sets = [at, record.0, forgotten.0, roots.0, u8::from(live), condemned.0, packs.0, doomed.0];
            state.write_u64(u64::from_le_bytes(sets));
            state.write_u16(u16::from_le_bytes([a, b]));
        }
        for Deciders { helper, revoker } in self.deciders {
            state.write_u16(u16::from_le_bytes([helper, revoker]));
        }
        for chunk in self.moved {
            state.write_u64(u64::from_le_bytes(std::array::from_fn(|pack| chunk.get(pack).map_or(0, |set| set.0))));
        }
    }
}

impl State {
    pub(crate) fn claim(&self, claim: u8) -> Claim {
        self.claims.get(usize::from(claim)).copied().unwrap_or(Claim::ABSENT)
    }

    pub(crate) fn claim_mut(&mut self, claim: u8) -> &mut Claim {
        &mut self.claims[usize::from(claim)]
    }

    pub(crate) fn holders(&self, chunk: u8) -> Set {
        self.holders[usize::from(chunk)]
    }

    /// What a pack holds, or held.
    pub(crate) fn contents(&self, pack: u8) -> Set {
        (0..CHUNKS).filter(|chunk| self.holders(*chunk).has(pack)).collect()
    }

    /// What all visible records condemn.
    pub(crate) fn condemned(&self) -> Set {
        self.collectors.iter().fold(Set::EMPTY, |all, collector| all.or(collector.record))
    }

    /// The map of a snapshot, or of the one that a pin holds.
    pub(crate) fn hint(&self, claim: u8) -> [u8; CHUNKS as usize] {
        self.claim(if claim == PIN { self.pinned } else { claim }).hint
    }

    /// Whether an unforgotten pin names this snapshot.
    pub(crate) fn is_pinned(&self, snapshot: u8) -> bool {
        let pin = self.claim(PIN);
        self.pinned == snapshot && pin.is(Claim::CLAIM) && !pin.is(Claim::FORGET | Claim::REVOKE)
    }

    /// Whether collectors and readers may still follow this snapshot's map.
    pub(crate) fn is_map_live(&self, snapshot: u8) -> bool {
        let claim = self.claim(snapshot);
        claim.is(Claim::CLAIM) && !claim.is(Claim::REVOKE) && (!claim.is(Claim::FORGET) || self.is_pinned(snapshot))
    }

    /// All packs that moved records lead to from `packs`, these included. `ends`: where nobody goes on.
    pub(crate) fn trail(&self, chunk: u8, packs: Set, ends: Set) -> Set {
        let moved = &self.moved[usize::from(chunk)];
        let (mut seen, mut front) = (Set::EMPTY, packs);
        while !front.is_empty() {
            seen = seen.or(front);
            let next = front.less(ends).iter().fold(Set::EMPTY, |set, pack| set.or(moved[usize::from(pack)]));
            front = next.less(seen);
        }
        seen
    }

    /// Whether every chunk lies in some pack.
    pub(crate) fn keeps_all(&self) -> bool {
        (0..CHUNKS).all(|chunk| !self.present.and(self.holders(chunk)).is_empty())
    }

    /// Whether the claim's map, with moved records and without an index, leads to every chunk.
    pub(crate) fn leads_to_all(&self, claim: u8) -> bool {
        let there = |chunk| self.present.and(self.holders(chunk));
        (0..CHUNKS)
            .zip(self.hint(claim))
            .all(|(chunk, hint)| !self.trail(chunk, Set::of(hint), self.present).and(there(chunk)).is_empty())
    }

    /// The claims whose chunks were promised to stay and whose objects are as that needs; `None` when those are not.
    pub(crate) fn counting(&self) -> Option<Set> {
        let counting: Set = (0..CLAIMS).filter(|claim| self.claim(*claim).counts()).collect();
        let whole = counting.iter().all(|claim| match claim {
            PIN => self.claim(self.pinned).is(Claim::CLAIM),
            _ => self.claim(claim).is(Claim::CLAIM) && self.claim(claim).is(Claim::COMMIT),
        });
        whole.then_some(counting)
    }
}
