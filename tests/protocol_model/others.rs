//! What others do, at any time: the janitor revokes, people forget, readers pin, anybody sweeps what is dead.
//!
//! Not here: writers and collectors. What holds: the conditions under which something is swept stay true once they are,
//! so that it does not matter how long before the sweep they were looked at.

use super::collector;
use super::protocol::{Action, Flaw, Protocol};
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
        if object.is(Claim::REVOKE) && is_swept && protocol.is(Flaw::RevokeSwept) {
            actions.push(Action::SweepRevoke { claim });
        }
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

/// How a claim that exists may end.
fn offer_ends(protocol: &Protocol, state: &State, claim: u8, actions: &mut Vec<Action>) {
    let object = state.claim(claim);
    let is_pin = claim == PIN;
    if !is_pin && !object.is(Claim::REVOKE) && (!object.is(Claim::COMMIT) || protocol.is(Flaw::DecisionOverwritten)) {
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
        Action::Forget { claim } => {
            let by_revoke = claim == PIN && protocol.is(Flaw::PinRevoked);
            let tombstone = if by_revoke { Claim::REVOKE } else { Claim::FORGET };
            state.claim_mut(claim).flags |= Claim::ENDED | tombstone;
        }
        Action::SweepClaim { claim } => state.claim_mut(claim).flags &= !Claim::CLAIM,
        Action::SweepForget { claim } => state.claim_mut(claim).flags &= !Claim::FORGET,
        Action::SweepRevoke { claim } => state.claim_mut(claim).flags &= !Claim::REVOKE,
        Action::PutPin { of } => {
            state.pinned = of;
            state.claim_mut(PIN).flags = Claim::CLAIM;
        }
        Action::CheckPin => state.claim_mut(PIN).flags |= Claim::TOLD,
        _ => {}
    }
}
