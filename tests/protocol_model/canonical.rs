//! States that nobody can tell apart, taken for one.
//!
//! Not here: the protocol. What holds, each for a reason that is given where it is done: no process and no property
//! distinguishes the state that goes in from the one that comes out. The controls do not use this file, since their
//! flaws may distinguish them.

use super::store::{CHUNKS, Claim, Collector, PIN, Set, State};

/// The pin's snapshot once the pin is over.
const OVER: u8 = 14;

/// Takes out of the records of claims what can matter to nobody. `is_register`: who decides second is told so by the store.
pub(crate) fn forget_the_dead(state: &mut State, is_register: bool) {
    for claim in &mut state.claims {
        // A revoked claim is no root, its writer has lost the register, and REVOKE stays for good. Of a forgotten claim
        // that was swept, decision and forget are left or not: whoever lists forgets first and claims second misses the
        // claim either way.
        let is_lost = is_register && claim.is(Claim::REVOKE);
        if is_lost || (claim.is(Claim::FORGET) && !claim.is(Claim::CLAIM)) {
            *claim = Claim { flags: Claim::ENDED, ..Claim::ABSENT };
        }
    }
    if state.claim(PIN).flags == Claim::ENDED {
        state.pinned = OVER;
    }
    for snapshot in 0..PIN {
        // It can gain no pin that holds and no child that commits: both checks would see the forget.
        if state.claim(snapshot).is(Claim::FORGET) && !state.is_map_live(snapshot) {
            state.claim_mut(snapshot).hint = Claim::ABSENT.hint;
        }
    }
    let there: Set = (0..=PIN).filter(|claim| state.claim(*claim).is(Claim::CLAIM)).collect();
    for collector in &mut state.collectors {
        collector.forgotten = collector.forgotten.and(there);
    }
}

/// The smallest of all states that differ by the names of chunks, writers or collectors alone. `collectors`: how many
/// run. `twins`: packs of the first writer, each with that of the second; none where there is one writer.
pub(crate) fn representative(state: State, collectors: usize, twins: &[(u8, u8)]) -> State {
    let mut images = [state; 4];
    if !twins.is_empty() {
        swap_writers(&mut images[1], twins);
        images[3] = images[1];
    }
    swap_chunks(&mut images[2]);
    swap_chunks(&mut images[3]);
    images.iter_mut().for_each(|image| image.collectors[..collectors].sort_unstable());
    images.into_iter().min().unwrap_or(state)
}

fn swap_chunks(state: &mut State) {
    state.holders.swap(0, 1);
    state.moved.swap(0, 1);
    state.claims.iter_mut().for_each(|claim| claim.hint.swap(0, 1));
    for writer in &mut state.writers {
        writer.relied.swap(0, 1);
        writer.lost = writer.lost.swapped(0, CHUNKS - 1);
    }
    state.collectors.iter_mut().for_each(|collector| collector.target.swap(0, 1));
}

fn swap_writers(state: &mut State, twins: &[(u8, u8)]) {
    let claim = |claim: &mut u8| {
        *claim = match *claim {
            1 => 2,
            2 => 1,
            other => other,
        }
    };
    state.writers.swap(0, 1);
    state.deciders.swap(0, 1);
    state.claims.swap(1, 2);
    claim(&mut state.pinned);
    state.writers.iter_mut().for_each(|writer| claim(&mut writer.parent));
    for collector in &mut state.collectors {
        collector.forgotten = collector.forgotten.swapped(1, 2);
        collector.roots = collector.roots.swapped(1, 2);
    }
    twins.iter().for_each(|(first, second)| rename(state, *first, *second));
}

/// Two packs change names.
fn rename(state: &mut State, a: u8, b: u8) {
    let set = |packs: &mut Set| *packs = packs.swapped(a, b);
    let one = |pack: &mut u8| {
        *pack = match *pack {
            pack if pack == a => b,
            pack if pack == b => a,
            pack => pack,
        }
    };
    set(&mut state.present);
    set(&mut state.ever);
    state.holders.iter_mut().for_each(set);
    for chunk in &mut state.moved {
        chunk.swap(usize::from(a), usize::from(b));
        chunk.iter_mut().for_each(set);
    }
    state.claims.iter_mut().flat_map(|claim| &mut claim.hint).for_each(one);
    state.writers.iter_mut().flat_map(|writer| &mut writer.relied).for_each(one);
    for collector in &mut state.collectors {
        collector.target.iter_mut().for_each(one);
        let Collector { record, condemned, packs, doomed, .. } = collector;
        [record, condemned, packs, doomed].into_iter().for_each(set);
    }
}
