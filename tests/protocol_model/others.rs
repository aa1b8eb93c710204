//! What others do, at any time: the janitor revokes or completes a commit, people forget, readers pin, anybody sweeps what is dead.
//!
//! Not here: writers and collectors. What holds: the conditions under which something is swept stay true once they are,
//! so that it does not matter how long before the sweep they were looked at.

use super::collector;
use super::protocol::{Action, DeciderStep, Flaw, Protocol, Register};
use super::store::{CLAIMS, Claim, NONE, PIN, State};

/// What may happen next.
pub(crate) fn offer(protocol: &Protocol, state: &State, actions: &mut Vec<Action>) {
    for claim in 0..CLAIMS {
        let object = state.claim(claim);
        if object.is(Claim::CLAIM) {
            offer_ends(protocol, state, claim, actions);
        }
        let is_swept = !object.is(Claim::CLAIM);
        if object.is(Claim::FORGET) && (is_swept || protocol.is(Flaw::ForgetSweptFirst)) {
            actions.push(Action::SweepForget { claim });
        }
        let is_swept_too = protocol.is(Flaw::RevokeSwept) || protocol.is(Flaw::RevokingSwept);
        if object.is(Claim::REVOKE) && is_swept && is_swept_too {
            actions.push(Action::SweepRevoke { claim });
        }
    }
    if protocol.register == Register::Overwritten {
        (1..=protocol.writers).for_each(|claim| offer_decisions(protocol, state, claim, actions));
    }
    if protocol.pin && state.pinned == NONE {
        let snapshots = (0..PIN).filter(|of| state.claim(*of).is(Claim::TOLD) && state.claim(*of).is(Claim::CLAIM));
        actions.extend(snapshots.map(|of| Action::PutPin { of }));
    }
    let pin = state.claim(PIN);
    let pinned = state.claim(state.pinned);
    let passes = (pinned.is(Claim::CLAIM) && !pinned.is(Claim::FORGET)) || protocol.is(Flaw::PinUnchecked);
    if pin.is(Claim::CLAIM) && !pin.is(Claim::TOLD | Claim::FORGET | Claim::REVOKE) && passes {
        actions.push(Action::CheckPin);
    }
}

/// What those may do next who decide about a writer's claim in its stead. They begin with a claim that they see, and go on
/// whatever becomes of it.
fn offer_decisions(protocol: &Protocol, state: &State, claim: u8, actions: &mut Vec<Action>) {
    let object = state.claim(claim);
    let at = state.deciders[usize::from(claim - 1)];
    let may = |program: &[DeciderStep], at: u8| match program.get(usize::from(at)) {
        _ if at == 0 && (!object.is(Claim::CLAIM) || object.is(Claim::REVOKE)) => false,
        Some(DeciderStep::SeeIntent) => object.is(Claim::INTENT),
        Some(DeciderStep::SeeNoIntent) => !object.is(Claim::INTENT),
        Some(DeciderStep::SeeNoRevoke) => !object.is(Claim::REVOKING),
        Some(_) => true,
        None => false,
    };
    if may(protocol.helper, at.helper) {
        actions.push(Action::Help { claim });
    }
    if may(protocol.revoker, at.revoker) {
        actions.push(Action::Undo { claim });
    }
}

/// The next step of who decides about a claim: what he looked for was so.
fn decide(state: &mut State, claim: u8, step: Option<&DeciderStep>) {
    let object = state.claim_mut(claim);
    match step {
        Some(DeciderStep::PutRevoke) => object.flags |= Claim::REVOKING,
        // Whoever lists it may rely on it from now on.
        Some(DeciderStep::Commit) => object.flags |= Claim::COMMIT | Claim::TOLD,
        Some(DeciderStep::Revoke) => object.flags |= Claim::REVOKE,
        _ => {}
    }
}

/// How a claim that exists may end.
fn offer_ends(protocol: &Protocol, state: &State, claim: u8, actions: &mut Vec<Action>) {
    let object = state.claim(claim);
    let is_pin = claim == PIN;
    let is_register = protocol.register == Register::WrittenOnce;
    if is_register
        && !is_pin
        && !object.is(Claim::REVOKE)
        && (!object.is(Claim::COMMIT) || protocol.is(Flaw::DecisionOverwritten))
    {
        actions.push(Action::Revoke { claim });
    }
    let is_known = is_pin || object.is(Claim::TOLD);
    if is_known && !object.is(Claim::FORGET | Claim::REVOKE) {
        actions.push(Action::Forget { claim });
    }
    let is_held = !is_pin && state.is_pinned(claim) && !protocol.is(Flaw::PinnedClaimSwept);
    let is_quiet = protocol.is(Flaw::ClaimSweptAmidLists) || !collector::is_any_at_work(protocol, state);
    if object.is(Claim::FORGET | Claim::REVOKE) && !is_held && is_quiet {
        actions.push(Action::SweepClaim { claim });
    }
}

pub(crate) fn take(protocol: &Protocol, state: &mut State, action: Action) {
    match action {
        Action::Revoke { claim } => {
            let object = state.claim_mut(claim);
            object.flags = object.flags & !Claim::COMMIT | Claim::REVOKE;
        }
        Action::Help { claim } => {
            let at = &mut state.deciders[usize::from(claim - 1)].helper;
            let step = protocol.helper.get(usize::from(*at));
            *at += 1;
            decide(state, claim, step);
        }
        Action::Undo { claim } => {
            let at = &mut state.deciders[usize::from(claim - 1)].revoker;
            let step = protocol.revoker.get(usize::from(*at));
            *at += 1;
            decide(state, claim, step);
        }
        Action::Forget { claim } => {
            let by_revoke = claim == PIN && protocol.is(Flaw::PinRevoked);
            let tombstone = if by_revoke { Claim::REVOKE } else { Claim::FORGET };
            state.claim_mut(claim).flags |= Claim::ENDED | tombstone;
        }
        Action::SweepClaim { claim } => state.claim_mut(claim).flags &= !Claim::CLAIM,
        // What is left of a commit goes with its forget.
        Action::SweepForget { claim } => {
            state.claim_mut(claim).flags &= !(Claim::FORGET | Claim::INTENT | Claim::REVOKING);
        }
        Action::SweepRevoke { claim } => {
            let swept = if protocol.is(Flaw::RevokingSwept) { Claim::REVOKING } else { Claim::REVOKE };
            state.claim_mut(claim).flags &= !swept;
        }
        Action::PutPin { of } => {
            state.pinned = of;
            state.claim_mut(PIN).flags = Claim::CLAIM;
        }
        Action::CheckPin => state.claim_mut(PIN).flags |= Claim::TOLD,
        _ => {}
    }
}
