//! A collector: copies, condemns, lists, decides, deletes; and what it drops of moved records.
//!
//! Not here: the order of the steps, which is data ([`super::protocol::COLLECTOR`]). What holds: it condemns any packs,
//! fresh ones too, and copies whatever ever was: neither choice is a safety argument. Each root reaches every chunk.

use super::protocol::{Action, CollectorStep, Flaw, Protocol};
use super::store::{CHUNKS, CLAIMS, Claim, Collector, NONE, PACKS, PIN, Set, State};
use super::writer::put_pack;

fn step(protocol: &Protocol, at: u8) -> CollectorStep {
    protocol.collector.get(usize::from(at)).copied().unwrap_or(CollectorStep::Done)
}

fn position(protocol: &Protocol, wanted: CollectorStep) -> u8 {
    (0..).find(|at| [wanted, CollectorStep::Done].contains(&step(protocol, *at))).unwrap_or(0)
}

/// Whether no such step is left.
fn is_past(protocol: &Protocol, at: u8, wanted: impl Fn(&CollectorStep) -> bool) -> bool {
    !protocol.collector.iter().skip(usize::from(at)).any(wanted)
}

fn knows_roots(protocol: &Protocol, at: u8) -> bool {
    is_past(protocol, at, |step| matches!(step, CollectorStep::ListForgets | CollectorStep::ListClaims(_)))
}

fn knows_packs(protocol: &Protocol, at: u8) -> bool {
    is_past(protocol, at, |step| matches!(step, CollectorStep::ListCondemned | CollectorStep::ListPacks))
}

/// What a collector may do next.
pub(crate) fn offer(protocol: &Protocol, state: &State, collector: u8, actions: &mut Vec<Action>) {
    let mut me = state.collectors[usize::from(collector)];
    offer_purge(protocol, state, collector, actions);
    if step(protocol, me.at) == CollectorStep::Repack {
        if protocol.next_copy(state).is_some() {
            actions.extend((1..1 << CHUNKS).map(|chunks| Action::Repack { collector, chunks: Set(chunks) }));
        }
        me.at += 1;
    }
    match step(protocol, me.at) {
        CollectorStep::Condemn => {
            let choices = (1..=state.present.0).map(Set);
            let choices = choices.filter(|packs| packs.is_within(state.present) && packs.len() <= protocol.condemns);
            actions.extend(choices.map(|packs| Action::Condemn { collector, packs }));
        }
        CollectorStep::Delete => {
            actions.extend(me.doomed.iter().map(|pack| Action::Delete { collector, pack }));
        }
        CollectorStep::Done => {}
        _ => {
            let listed = after_list(protocol, state, me);
            if !decides(protocol, me.at) {
                actions.push(Action::List { collector, target: [0; CHUNKS as usize] });
                return;
            }
            let targets = |chunk| match kept(state, &listed, chunk) {
                Set::EMPTY => vec![NONE],
                kept => kept.iter().collect(),
            };
            for a in targets(0) {
                actions.extend(targets(1).into_iter().map(|b| Action::List { collector, target: [a, b] }));
            }
        }
    }
}

fn offer_purge(protocol: &Protocol, state: &State, collector: u8, actions: &mut Vec<Action>) {
    let record = state.collectors[usize::from(collector)].record;
    let is_due = if protocol.is(Flaw::RecordPurgedByOldList) {
        let mut lists = state.collectors.iter().map(|other| other.packs).filter(|packs| !packs.is_empty());
        lists.any(|packs| packs.and(record).is_empty())
    } else {
        protocol.is(Flaw::RecordPurgedEarly) || record.and(state.present).is_empty()
    };
    if is_due && !record.is_empty() {
        actions.push(Action::Purge { record: collector });
    }
}

pub(crate) fn repack(protocol: &Protocol, state: &mut State, collector: u8, chunks: Set) {
    if let Some(pack) = protocol.next_copy(state) {
        put_pack(state, pack, chunks);
    }
    state.collectors[usize::from(collector)].at += 1;
}

pub(crate) fn condemn(protocol: &Protocol, state: &mut State, collector: u8, packs: Set) {
    let me = &mut state.collectors[usize::from(collector)];
    me.record = packs;
    me.at = position(protocol, CollectorStep::Condemn) + 1;
    judge_the_unneeded(protocol, me);
}

/// One listing; the last one decides.
pub(crate) fn list(protocol: &Protocol, state: &mut State, collector: u8, target: [u8; CHUNKS as usize]) {
    let mut me = state.collectors[usize::from(collector)];
    if step(protocol, me.at) == CollectorStep::Repack {
        me.at += 1;
    }
    let at = me.at;
    me = after_list(protocol, state, me);
    me.at += 1;
    if knows_roots(protocol, me.at) && !knows_roots(protocol, at) {
        me.live = !me.roots.less(me.forgotten).is_empty();
        (me.roots, me.forgotten) = (Set::EMPTY, Set::EMPTY);
    }
    judge_the_unneeded(protocol, &mut me);
    if decides(protocol, at) && me.at <= at + 1 {
        let goes =
            |pack: &u8| !me.live || state.contents(*pack).iter().all(|chunk| !kept(state, &me, chunk).is_empty());
        me.doomed = me.record.and(me.packs).iter().filter(goes).collect();
        me.target = target;
        me.condemned = Set::EMPTY;
        if !protocol.is(Flaw::RecordPurgedByOldList) {
            me.packs = Set::EMPTY;
        }
        if !protocol.is(Flaw::CollectorMovesNothing) {
            for pack in me.doomed.iter() {
                for chunk in state.contents(pack).iter() {
                    let moved = &mut state.moved[usize::from(chunk)][usize::from(pack)];
                    *moved = moved.or(Set::of(target[usize::from(chunk)]));
                }
            }
        }
    }
    state.collectors[usize::from(collector)] = me;
}

/// Where a collector may believe that a chunk stays.
fn kept(state: &State, me: &Collector, chunk: u8) -> Set {
    me.packs.and(state.holders(chunk)).less(me.condemned)
}

/// Whether the list at `at` is the last that it takes to decide.
fn decides(protocol: &Protocol, at: u8) -> bool {
    knows_packs(protocol, at + 1) && !knows_packs(protocol, at)
}

/// What it knows once it has listed.
fn after_list(protocol: &Protocol, state: &State, mut me: Collector) -> Collector {
    match step(protocol, me.at) {
        CollectorStep::ListForgets => {
            me.forgotten = (0..CLAIMS).filter(|claim| state.claim(*claim).is(Claim::FORGET)).collect();
        }
        CollectorStep::ListClaims(page) => {
            let roots: Set = page.iter().filter(|claim| is_root(protocol, state, *claim)).collect();
            me.roots = me.roots.or(roots.less(me.forgotten));
        }
        CollectorStep::ListCondemned => {
            let others = if protocol.is(Flaw::CondemnedCopyTrusted) { Set::EMPTY } else { state.condemned() };
            me.condemned = me.record.or(others);
            if protocol.is(Flaw::LateRecordAdopted) {
                me.record = me.condemned;
            }
        }
        CollectorStep::ListPacks => me.packs = state.present,
        CollectorStep::SeeTargets => {
            let gone = if protocol.is(Flaw::TargetsTombstonesOnly) { Set::EMPTY } else { Set(!state.present.0) };
            let lost = state.condemned().or(gone);
            let is_led_astray = |chunk| lost.has(me.target[usize::from(chunk)]);
            me.doomed = me.doomed.iter().filter(|pack| !state.contents(*pack).iter().any(is_led_astray)).collect();
        }
        _ => {}
    }
    me
}

fn is_root(protocol: &Protocol, state: &State, claim: u8) -> bool {
    let object = state.claim(claim);
    let is_left_out = protocol.is(Flaw::UndecidedIgnored) && claim != PIN && !object.is(Claim::COMMIT);
    // A pin on a claim that was swept holds nothing: its check fails.
    let holds = claim != PIN || state.claim(state.pinned).is(Claim::CLAIM);
    let is_hasty = protocol.is(Flaw::RevokeTrustedAlone) && object.is(Claim::REVOKING);
    object.is(Claim::CLAIM) && !object.is(Claim::REVOKE) && holds && !is_left_out && !is_hasty
}

/// Where there is no root, nothing else need be listed.
fn judge_the_unneeded(protocol: &Protocol, me: &mut Collector) {
    let is_condemned = is_past(protocol, me.at, |step| *step == CollectorStep::Condemn);
    let delete = position(protocol, CollectorStep::Delete);
    if is_condemned
        && knows_roots(protocol, me.at)
        && !me.live
        && me.at < delete
        && !protocol.is(Flaw::LateRecordAdopted)
    {
        me.doomed = me.record;
        me.at = delete;
    }
}

pub(crate) fn delete(state: &mut State, collector: u8, pack: u8) {
    state.present = state.present.less(Set::of(pack));
    let me = &mut state.collectors[usize::from(collector)];
    me.doomed = me.doomed.less(Set::of(pack));
}

/// Ends collectors that have nothing left to do, and lets them forget what they need no more.
pub(crate) fn settle(protocol: &Protocol, state: &mut State) {
    let (delete, done) = (position(protocol, CollectorStep::Delete), position(protocol, CollectorStep::Done));
    for collector in 0..protocol.collectors {
        let me = &mut state.collectors[usize::from(collector)];
        me.doomed = me.doomed.and(state.present);
        let has_condemned = is_past(protocol, me.at, |step| *step == CollectorStep::Condemn);
        let may_adopt = protocol.is(Flaw::LateRecordAdopted) || protocol.flaw.is_some_and(purges_wrongly);
        let is_vain = !may_adopt && has_condemned && me.record.and(state.present).is_empty();
        let decided = has_condemned && knows_packs(protocol, me.at);
        if is_vain || (decided && me.doomed.is_empty()) {
            *me = Collector { at: done, record: me.record, packs: me.packs, ..Collector::default() };
        } else if me.at == delete {
            *me =
                Collector { at: delete, record: me.record, doomed: me.doomed, packs: me.packs, ..Collector::default() };
        }
        if !protocol.is(Flaw::RecordPurgedByOldList) && me.at >= delete {
            me.packs = Set::EMPTY;
        }
    }
}

/// Whether a pack exists that somebody condemned who is not done.
pub(crate) fn is_any_at_work(protocol: &Protocol, state: &State) -> bool {
    let done = position(protocol, CollectorStep::Done);
    state.collectors.iter().any(|other| other.at != done && !other.record.and(state.present).is_empty())
}

fn purges_wrongly(flaw: Flaw) -> bool {
    matches!(flaw, Flaw::RecordPurgedEarly | Flaw::RecordPurgedByOldList)
}

/// Drops the moved records that no live map leads to, the moment they may be dropped.
pub(crate) fn drop_moved(protocol: &Protocol, state: &mut State) {
    let ends = if protocol.is(Flaw::MovedDroppedBehindPresent) { state.present } else { Set::EMPTY };
    for chunk in 0..CHUNKS {
        let maps = (0..PIN).filter(|snapshot| state.is_map_live(*snapshot));
        let hints = maps.map(|snapshot| state.claim(snapshot).hint[usize::from(chunk)]).collect();
        let mut used = state.trail(chunk, hints, ends);
        if protocol.is(Flaw::MovedDroppedBehindPresent) {
            used = used.or(state.present);
        }
        for pack in (0..).take(PACKS).filter(|pack| !used.has(*pack)) {
            state.moved[usize::from(chunk)][usize::from(pack)] = Set::EMPTY;
        }
    }
}
