//! A writer: upload, claim, check, decision.
//!
//! Not here: the order of the steps, which is data ([`super::protocol::WRITER`]). What holds: it may take for stored
//! whatever was ever stored, so that its index may be as old as can be; a check that fails leaves the claim undecided.

use super::protocol::{Action, Flaw, Protocol, Register, WriterStep};
use super::store::{CHUNKS, CLAIMS, Claim, NONE, Set, State, Writer};

fn step(protocol: &Protocol, at: u8) -> WriterStep {
    protocol.writer.get(usize::from(at)).copied().unwrap_or(WriterStep::Done)
}

fn position(protocol: &Protocol, wanted: &[WriterStep]) -> u8 {
    (0..).find(|at| wanted.contains(&step(protocol, *at)) || step(protocol, *at) == WriterStep::Done).unwrap_or(0)
}

/// What a writer may do next.
pub(crate) fn offer(protocol: &Protocol, state: &State, writer: u8, actions: &mut Vec<Action>) {
    let me = &state.writers[usize::from(writer)];
    match step(protocol, me.at) {
        WriterStep::Upload => {
            actions.extend((1..1 << CHUNKS).map(|chunks| Action::Upload { writer, chunks: Set(chunks) }));
            offer_claims(protocol, state, writer, actions);
        }
        WriterStep::Claim => offer_claims(protocol, state, writer, actions),
        WriterStep::Decide | WriterStep::Intend | WriterStep::SeeRevoke => actions.push(Action::Decide { writer }),
        WriterStep::Done => {}
        _ => match me.lost.iter().next() {
            None => actions.push(Action::Check { writer }),
            Some(chunk) => {
                // Perhaps condemned since it was chosen: the next check says what it is worth. Once for each chunk.
                let relied = me.relied[usize::from(chunk)];
                if relied == state.claim(1 + writer).hint[usize::from(chunk)] {
                    let others = state.present.and(state.holders(chunk)).less(Set::of(relied));
                    actions.extend(others.iter().map(|by| Action::Replace { writer, chunk, by }));
                }
                if protocol.uploads_again && !state.ever.has(protocol.second(writer)) {
                    actions.push(Action::UploadAgain { writer });
                }
            }
        },
    }
}

/// A chunk that was uploaded lies there; any other lies where it ever lay, or where the map of a parent says.
fn offer_claims(protocol: &Protocol, state: &State, writer: u8, actions: &mut Vec<Action>) {
    let own = Set::of(protocol.own(writer));
    let stored = |chunk| match own.and(state.holders(chunk)) {
        Set::EMPTY => state.ever.and(state.holders(chunk)),
        own => own,
    };
    for a in stored(0).iter() {
        for b in stored(1).iter() {
            actions.push(Action::PutClaim { writer, hint: [a, b], from_parent: Set::EMPTY, parent: NONE });
        }
    }
    // A parent that is forgotten or gone by now would fail the check.
    let parents = (0..CLAIMS).filter(|claim| {
        let claim = state.claim(*claim);
        claim.is(Claim::TOLD) && (!protocol.is_merged || claim.is(Claim::CLAIM) && !claim.is(Claim::FORGET))
    });
    for parent in parents {
        let [a, b] = state.hint(parent);
        if a == NONE {
            continue;
        }
        let (has_a, has_b) = (!own.and(state.holders(0)).is_empty(), !own.and(state.holders(1)).is_empty());
        if !has_a && !has_b {
            actions.push(Action::PutClaim { writer, hint: [a, b], from_parent: Set(3), parent });
        }
        if !has_a {
            let hints = stored(1).iter().map(|other| [a, other]);
            actions.extend(hints.map(|hint| Action::PutClaim { writer, hint, from_parent: Set(1), parent }));
        }
        if !has_b {
            let hints = stored(0).iter().map(|other| [other, b]);
            actions.extend(hints.map(|hint| Action::PutClaim { writer, hint, from_parent: Set(2), parent }));
        }
    }
}

pub(crate) fn upload(protocol: &Protocol, state: &mut State, writer: u8, chunks: Set) {
    put_pack(state, protocol.own(writer), chunks);
    state.writers[usize::from(writer)].at += 1;
}

/// PUTs a pack.
pub(crate) fn put_pack(state: &mut State, pack: u8, chunks: Set) {
    state.present = state.present.or(Set::of(pack));
    state.ever = state.ever.or(Set::of(pack));
    for chunk in chunks.iter() {
        let holders = &mut state.holders[usize::from(chunk)];
        *holders = holders.or(Set::of(pack));
    }
}

pub(crate) fn put_claim(
    protocol: &Protocol,
    state: &mut State,
    writer: u8,
    hint: [u8; CHUNKS as usize],
    from_parent: Set,
    parent: u8,
) {
    *state.claim_mut(1 + writer) = Claim { flags: Claim::CLAIM, hint };
    let mut me = Writer { parent, relied: hint, ..Writer::at(position(protocol, &[WriterStep::Claim]) + 1) };
    from_parent.iter().for_each(|chunk| me.relied[usize::from(chunk)] = NONE);
    state.writers[usize::from(writer)] = me;
}

pub(crate) fn check(protocol: &Protocol, state: &mut State, writer: u8) {
    let mut me = state.writers[usize::from(writer)];
    let parent = state.claim(me.parent);
    let (condemned, gone) = (state.condemned(), Set(!state.present.0));
    let (is_parent_lost, lost) = match step(protocol, me.at) {
        WriterStep::CheckParent => (parent.is(Claim::FORGET) || !parent.is(Claim::CLAIM), Set::EMPTY),
        WriterStep::ListForgets => (parent.is(Claim::FORGET), Set::EMPTY),
        WriterStep::SeeParent => (!parent.is(Claim::CLAIM), Set::EMPTY),
        WriterStep::CheckPacks => (false, condemned.or(gone)),
        WriterStep::ListCondemned => (false, condemned),
        _ => (false, gone),
    };
    let exempt = if protocol.is(Flaw::OwnPacksUnchecked) { Set::of(protocol.own(writer)) } else { Set::EMPTY };
    me.lost = (0..CHUNKS).zip(me.relied).filter(|(_, on)| lost.less(exempt).has(*on)).map(|(chunk, _)| chunk).collect();
    if is_parent_lost {
        me.at = position(protocol, &[WriterStep::Done]);
    } else if me.lost.is_empty() {
        me.at += 1;
    }
    state.writers[usize::from(writer)] = me;
}

/// PUTs a moved record for the hint, and checks the packs again.
pub(crate) fn replace(protocol: &Protocol, state: &mut State, writer: u8, chunk: u8, by: u8) {
    let hint = state.claim(1 + writer).hint[usize::from(chunk)];
    if !protocol.is(Flaw::WriterMovesNothing) {
        let moved = &mut state.moved[usize::from(chunk)][usize::from(hint)];
        *moved = moved.or(Set::of(by));
    }
    let me = &mut state.writers[usize::from(writer)];
    me.relied[usize::from(chunk)] = by;
    me.lost = me.lost.less(Set::of(chunk));
    if protocol.is(Flaw::ReplacementUnchecked) && me.lost.is_empty() {
        me.at = position(protocol, &[WriterStep::Decide]);
    } else {
        me.at = position(protocol, &[WriterStep::CheckPacks, WriterStep::ListCondemned, WriterStep::SeePacks]);
    }
}

pub(crate) fn upload_again(protocol: &Protocol, state: &mut State, writer: u8) {
    let lost = state.writers[usize::from(writer)].lost;
    put_pack(state, protocol.second(writer), lost);
    lost.iter().for_each(|chunk| replace(protocol, state, writer, chunk, protocol.second(writer)));
}

/// A step of those that decide.
pub(crate) fn decide(protocol: &Protocol, state: &mut State, writer: u8) {
    let at = state.writers[usize::from(writer)].at;
    let claim = state.claim_mut(1 + writer);
    let mut is_over = false;
    match (step(protocol, at), protocol.register) {
        (WriterStep::Intend, _) => claim.flags |= Claim::INTENT,
        (WriterStep::SeeRevoke, _) => is_over = claim.is(Claim::REVOKING),
        (_, Register::Overwritten) => claim.flags |= Claim::COMMIT | Claim::TOLD,
        (_, Register::WrittenOnce) => {
            if !claim.is(Claim::REVOKE) || protocol.is(Flaw::DecisionOverwritten) {
                claim.flags = claim.flags & !Claim::REVOKE | Claim::COMMIT | Claim::TOLD;
            }
        }
    }
    let done = position(protocol, &[WriterStep::Done]);
    state.writers[usize::from(writer)].at = if is_over { done } else { at + 1 };
}

/// Passes over checks that have nothing to look at, and ends writers that can do nothing that counts any more.
pub(crate) fn settle(protocol: &Protocol, state: &mut State) {
    for writer in 0..protocol.writers {
        // Only where the dead are forgotten: its claim was revoked.
        let is_dead = state.claim(1 + writer).flags == Claim::ENDED;
        let me = &mut state.writers[usize::from(writer)];
        loop {
            let is_idle = match step(protocol, me.at) {
                WriterStep::CheckParent | WriterStep::ListForgets | WriterStep::SeeParent => me.parent == NONE,
                WriterStep::CheckPacks | WriterStep::ListCondemned | WriterStep::SeePacks => {
                    me.relied == [NONE; CHUNKS as usize]
                }
                _ => false,
            };
            if !is_idle {
                break;
            }
            me.at += 1;
        }
        let done = position(protocol, &[WriterStep::Done]);
        if is_dead || me.at == done {
            *me = Writer::at(done);
        }
    }
}
