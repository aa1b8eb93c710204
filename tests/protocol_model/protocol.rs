//! The protocol as programs: what a writer and a collector do, step by step, what others do at any time, and the flaws
//! that the controls build in.
//!
//! Not here: the steps themselves ([`super::writer`], [`super::collector`], [`super::others`]). What holds: a step is
//! one PUT, LIST, look at existence or DELETE, but for those that the header of `protocol_model.rs` takes together;
//! every process may stop for good after each.

use super::canonical;
use super::store::{CHUNKS, CLAIMS, Claim, Collector, NONE, PACKS, PIN, Set, State, Writer};
use super::{collector, others, writer};
use stateright::{Model, Property};

/// A step of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriterStep {
    /// PUT a pack of its own, or none.
    Upload,
    /// PUT the claim.
    Claim,
    /// `ListForgets` and `SeeParent`.
    CheckParent,
    /// `ListCondemned` and `SeePacks`.
    CheckPacks,
    /// LIST forgets: the parent is not among them.
    ListForgets,
    /// The parent's claim exists.
    SeeParent,
    /// LIST condemned: no pack that is relied on is among them.
    ListCondemned,
    /// Each pack that is relied on exists.
    SeePacks,
    /// PUT the intent to commit. Only where puts replace what is there, as `SeeRevoke`.
    Intend,
    /// Nobody has put that he is about to revoke.
    SeeRevoke,
    /// PUT the decision, if absent.
    Decide,
    /// No step.
    Done,
}

/// A step of a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CollectorStep {
    /// PUT a pack with chunks of others, or none.
    Repack,
    /// PUT the condemned record.
    Condemn,
    /// LIST forgets.
    ListForgets,
    /// LIST claims and decisions: those of this page.
    ListClaims(Set),
    /// LIST condemned.
    ListCondemned,
    /// LIST packs. With the last of these lists the collector decides what goes, and PUTs the moved records.
    ListPacks,
    /// LIST condemned once more, then see that the packs exist to which the moved records send; what is sent elsewhere
    /// stays.
    SeeTargets,
    /// DELETE packs, one at a time.
    Delete,
    /// No step.
    Done,
}

/// What a claim's decision is put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    /// Of several puts the first counts, and the others are told.
    WrittenOnce,
    /// Of several puts the last counts, and nobody is told.
    Overwritten,
}

/// A step of those who decide about a writer's claim in its stead, where puts replace what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeciderStep {
    /// Its writer has put the intent.
    SeeIntent,
    /// Its writer has not.
    SeeNoIntent,
    /// Nobody has put that he is about to revoke.
    SeeNoRevoke,
    /// PUT that it is about to be revoked.
    PutRevoke,
    /// PUT the decision COMMIT.
    Commit,
    /// PUT the decision REVOKE.
    Revoke,
}

/// Completes the commit of a writer that seems to have died in it.
pub(crate) const HELPER: &[DeciderStep] = &[DeciderStep::SeeIntent, DeciderStep::SeeNoRevoke, DeciderStep::Commit];
/// Revokes what a writer that seems to be dead has not begun to commit.
pub(crate) const REVOKER: &[DeciderStep] = &[DeciderStep::PutRevoke, DeciderStep::SeeNoIntent, DeciderStep::Revoke];

/// What the protocol must not do. Each is a negative control: with it the checker has to find a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A writer does not check its own packs.
    OwnPacksUnchecked,
    /// A writer adds a moved record and does not check the packs again.
    ReplacementUnchecked,
    /// A writer adds no moved record for a hint into a condemned pack.
    WriterMovesNothing,
    /// The decision is a plain PUT.
    DecisionOverwritten,
    /// A collector takes a copy in a pack that another one condemned for a surviving one.
    CondemnedCopyTrusted,
    /// A collector also deletes packs of records that it saw only in its lists.
    LateRecordAdopted,
    /// Undecided claims are no roots.
    UndecidedIgnored,
    /// A collector writes no moved records.
    CollectorMovesNothing,
    /// A collector looks for tombstones of the packs to which it sends, but not whether they exist.
    TargetsTombstonesOnly,
    /// Of moved records those are kept that maps lead to by way of packs that are gone, not by way of those about to
    /// go.
    MovedDroppedBehindPresent,
    /// A condemned record is purged while its packs exist.
    RecordPurgedEarly,
    /// A condemned record is purged when its packs are not in a list of packs that was made before the record was read.
    RecordPurgedByOldList,
    /// A claim is swept while a collector may be listing claims, page by page.
    ClaimSweptAmidLists,
    /// A REVOKE is swept.
    RevokeSwept,
    /// A forget is swept before its claim.
    ForgetSweptFirst,
    /// The claim of a forgotten snapshot is swept although a pin names it.
    PinnedClaimSwept,
    /// A pin ends by REVOKE instead of by a forget.
    PinRevoked,
    /// A reader does not check that what it pinned is unforgotten.
    PinUnchecked,
    /// What somebody is about to revoke counts as revoked.
    RevokeTrustedAlone,
    /// A `revoke` is swept with the claim.
    RevokingSwept,
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Upload { writer: u8, chunks: Set },
    PutClaim { writer: u8, hint: [u8; CHUNKS as usize], from_parent: Set, parent: u8 },
    Check { writer: u8 },
    Replace { writer: u8, chunk: u8, by: u8 },
    UploadAgain { writer: u8 },
    Decide { writer: u8 },
    Repack { collector: u8, chunks: Set },
    Condemn { collector: u8, packs: Set },
    List { collector: u8, target: [u8; CHUNKS as usize] },
    Delete { collector: u8, pack: u8 },
    Purge { record: u8 },
    Revoke { claim: u8 },
    Help { claim: u8 },
    Undo { claim: u8 },
    Forget { claim: u8 },
    SweepClaim { claim: u8 },
    SweepForget { claim: u8 },
    SweepRevoke { claim: u8 },
    PutPin { of: u8 },
    CheckPin,
}

pub(crate) const WRITER: &[WriterStep] = {
    use WriterStep::{CheckPacks, CheckParent, Claim, Decide, Done, Upload};
    &[Upload, Claim, CheckParent, CheckPacks, Decide, Done]
};

/// Where puts replace what is there.
pub(crate) const CAREFUL_WRITER: &[WriterStep] = {
    use WriterStep::{CheckPacks, CheckParent, Claim, Decide, Done, Intend, SeeRevoke, Upload};
    &[Upload, Claim, CheckParent, CheckPacks, Intend, SeeRevoke, Decide, Done]
};

pub(crate) const COLLECTOR: &[CollectorStep] = {
    use CollectorStep::{Condemn, Delete, Done, ListClaims, ListCondemned, ListForgets, ListPacks, Repack, SeeTargets};
    &[
        Repack,
        Condemn,
        ListForgets,
        ListClaims(CHILDREN),
        ListClaims(PARENTS),
        ListCondemned,
        ListPacks,
        SeeTargets,
        Delete,
        Done,
    ]
};

/// A page with the writers' claims.
const CHILDREN: Set = Set(6);
/// A page with those that were there before.
const PARENTS: Set = Set(9);

/// A protocol within bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Protocol {
    pub(crate) writers: u8,
    pub(crate) collectors: u8,
    /// Whether a reader pins a snapshot.
    pub(crate) pin: bool,
    /// Whether a writer uploads again, once, what its check found lost.
    pub(crate) uploads_again: bool,
    /// Packs that collectors make of others, in all.
    pub(crate) copies: u8,
    /// Packs that a record names, at most.
    pub(crate) condemns: u32,
    pub(crate) writer: &'static [WriterStep],
    pub(crate) collector: &'static [CollectorStep],
    pub(crate) register: Register,
    pub(crate) helper: &'static [DeciderStep],
    pub(crate) revoker: &'static [DeciderStep],
    pub(crate) flaw: Option<Flaw>,
    /// Whether states that nobody can tell apart are taken for one ([`canonical`]).
    pub(crate) is_merged: bool,
}

impl Protocol {
    /// The design, with one copy, records of two packs and a pin.
    pub(crate) fn new(writers: u8, collectors: u8) -> Self {
        Protocol {
            writers,
            collectors,
            pin: true,
            uploads_again: false,
            copies: 1,
            condemns: 2,
            writer: WRITER,
            collector: COLLECTOR,
            register: Register::WrittenOnce,
            helper: HELPER,
            revoker: REVOKER,
            flaw: None,
            is_merged: true,
        }
    }

    /// The same on a store whose puts replace what is there.
    pub(crate) fn overwriting(self) -> Self {
        Protocol { register: Register::Overwritten, writer: CAREFUL_WRITER, ..self }
    }

    pub(crate) fn is(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// A writer's own pack.
    pub(crate) fn own(&self, writer: u8) -> u8 {
        1 + writer
    }

    /// The pack with what a writer uploads again.
    pub(crate) fn second(&self, writer: u8) -> u8 {
        1 + self.writers + writer
    }

    /// The next pack that a collector may make.
    pub(crate) fn next_copy(&self, state: &State) -> Option<u8> {
        let first = 1 + self.writers * if self.uploads_again { 2 } else { 1 };
        (first..first + self.copies).find(|pack| !state.ever.has(*pack))
    }

    fn take(&self, state: &mut State, action: Action) {
        match action {
            Action::Upload { writer, chunks } => writer::upload(self, state, writer, chunks),
            Action::PutClaim { writer, hint, from_parent, parent } => {
                writer::put_claim(self, state, writer, hint, from_parent, parent);
            }
            Action::Check { writer } => writer::check(self, state, writer),
            Action::Replace { writer, chunk, by } => writer::replace(self, state, writer, chunk, by),
            Action::UploadAgain { writer } => writer::upload_again(self, state, writer),
            Action::Decide { writer } => writer::decide(self, state, writer),
            Action::Repack { collector, chunks } => collector::repack(self, state, collector, chunks),
            Action::Condemn { collector, packs } => collector::condemn(self, state, collector, packs),
            Action::List { collector, target } => collector::list(self, state, collector, target),
            Action::Delete { collector, pack } => collector::delete(state, collector, pack),
            Action::Purge { record } => state.collectors[usize::from(record)].record = Set::EMPTY,
            other => others::take(self, state, other),
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    /// One committed snapshot, both of whose chunks lie in pack 0.
    fn init_states(&self) -> Vec<State> {
        let mut claims = [Claim::ABSENT; CLAIMS as usize];
        claims[0] = Claim { flags: Claim::CLAIM | Claim::COMMIT | Claim::TOLD, hint: [0; CHUNKS as usize] };
        vec![State {
            present: Set::of(0),
            ever: Set::of(0),
            holders: [Set::of(0); CHUNKS as usize],
            claims,
            pinned: NONE,
            writers: [Writer::at(0); 2],
            deciders: Default::default(),
            collectors: [Collector::default(); 3],
            moved: [[Set::EMPTY; PACKS]; CHUNKS as usize],
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        (0..self.writers).for_each(|writer| writer::offer(self, state, writer, actions));
        (0..self.collectors).for_each(|collector| collector::offer(self, state, collector, actions));
        others::offer(self, state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        self.take(&mut next, action);
        if self.is_merged {
            canonical::forget_the_dead(&mut next, self.register == Register::WrittenOnce);
        }
        writer::settle(self, &mut next);
        collector::settle(self, &mut next);
        collector::drop_moved(self, &mut next);
        if self.is_merged {
            let twins = match (self.writers, self.uploads_again) {
                (2, false) => &[(1, 2)][..],
                (2, true) => &[(1, 2), (3, 4)],
                _ => &[],
            };
            next = canonical::representative(next, usize::from(self.collectors), twins);
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let always = |name, holds: fn(&Protocol, &State) -> bool| Property::always(name, holds);
        let sometimes = |name, happens: fn(&Protocol, &State) -> bool| Property::sometimes(name, happens);
        let mut properties = vec![
            always(KEPT, |_, state| state.counting().is_some_and(|counting| counting.is_empty() || state.keeps_all())),
            always(FOUND, |_, state| {
                state.counting().is_some_and(|counting| counting.iter().all(|claim| state.leads_to_all(claim)))
            }),
            sometimes("a snapshot is committed", |_, state| state.claim(1).counts()),
            sometimes("a pack that nobody needs goes", |protocol, state| {
                let own = protocol.own(0);
                !state.claim(1).is(Claim::TOLD) && state.ever.has(own) && !state.present.has(own)
            }),
            sometimes("a tombstone goes", |protocol, state| {
                let collector = &state.collectors[0];
                protocol.collector[usize::from(collector.at)] == CollectorStep::Done && collector.record.is_empty()
            }),
            sometimes("a commit outlives the snapshot it shares a pack with", |_, state| {
                state.claim(1).counts() && state.claim(1).hint == [0, 0] && !state.claim(0).is(Claim::CLAIM)
            }),
        ];
        if self.copies > 0 {
            properties.push(sometimes("a pack goes whose chunks live on", |_, state| {
                state.claim(0).counts() && !state.present.has(0)
            }));
            properties.push(sometimes("a commit is led on from a pack that went", |_, state| {
                state.claim(1).counts() && state.claim(1).hint.iter().all(|pack| !state.present.has(*pack))
            }));
        }
        if self.pin {
            properties.push(sometimes("a pin outlives what it pins", |_, state| {
                state.claim(PIN).counts() && state.claim(state.pinned).is(Claim::FORGET)
            }));
        }
        if self.register == Register::Overwritten {
            properties.insert(
                0,
                always(AGREED, |_, state| {
                    let is_split = |c: &Claim| c.is(Claim::COMMIT) && c.is(Claim::REVOKE) && !c.is(Claim::ENDED);
                    !state.claims.iter().any(is_split)
                }),
            );
            properties.push(sometimes("a commit is completed by others", |protocol, state| {
                state.claim(1).counts() && protocol.writer[usize::from(state.writers[0].at)] == WriterStep::SeeRevoke
            }));
            properties.push(sometimes("a commit that is revoked at the same time is neither", |_, state| {
                let claim = state.claim(1);
                claim.is(Claim::INTENT) && claim.is(Claim::REVOKING) && !claim.is(Claim::COMMIT | Claim::REVOKE)
            }));
        }
        if self.uploads_again {
            properties.push(sometimes("a writer uploads again and commits", |protocol, state| {
                state.claim(1).counts() && state.ever.has(protocol.second(0))
            }));
        }
        properties
    }
}

/// Each chunk of what counts lies somewhere.
pub(crate) const KEPT: &str = "what counts is kept";
/// Nobody replaces a decision by the other one, but for what was forgotten and swept.
pub(crate) const AGREED: &str = "who decides about a claim decides the same";
/// Hints and moved records lead to each chunk of what counts.
pub(crate) const FOUND: &str = "what counts is found";
