//! Commit and collection as a model that is gone through state by state: whatever writers, collectors, readers, the
//! janitor and people who forget do, in any order, what was promised stays readable (ARCHITECTURE.md, "Why collecting
//! is safe").
//!
//! Not here: the implementation, which the other proofs drive; damage and hostile objects; stores whose lists lag
//! behind.
//!
//! The model: an object store in which each PUT, LIST, look at existence and DELETE is one step. Two chunks, both
//! needed by every snapshot; at first one committed snapshot whose chunks lie in one pack. Each writer uploads a pack
//! with some chunks and takes the others from any pack that ever held them, or unread from a parent, which is a
//! snapshot or a pin; what its check finds lost it looks for elsewhere, and where told so uploads again. Collectors
//! condemn what they like, fresh packs too. Any claim that is undecided may be revoked, any snapshot and any pin
//! forgotten, what is dead swept, at any time. A reader pins any snapshot. Two things always hold: each chunk of what
//! counts lies in some pack; and hints and moved records lead to it, without an index. A snapshot counts from its
//! writer being told so until it is forgotten, a pin from its check until its forget.
//!
//! On a store whose puts replace what is there a decision takes two looks more: the writer puts an *intent*, sees that nobody
//! is about to revoke, and puts COMMIT; who revokes puts a *revoke*, sees no intent, and puts REVOKE; who finds an intent and
//! then no revoke puts COMMIT in the writer's stead. Both at once leave the claim undecided, and a root. There two things more
//! hold: nobody replaces a decision by the other one; and what somebody completes counts from then on.
//!
//! Bounds: the numbers of writers, collectors, copies, and packs in a record stand in each test. A writer writes one
//! snapshot and looks elsewhere once for each chunk; a collector runs once; there is one pin. `COFFER_MODEL=large` goes
//! further, by hand.
//!
//! A crash needs no step: a process that takes no more steps has crashed, and what always holds is looked at after
//! every step. A process that starts again is another process.
//!
//! Steps taken together, and states taken for one, with reasons (`every_step_on_its_own` takes the first and the last
//! two apart, within smaller bounds):
//! - *Forgets and the parent's existence; condemned records and existence of packs.* "Exists and has no tombstone"
//!   never becomes true again once it is false, since tombstones go last. If both looks succeed, both would have at the
//!   time of the first.
//! - *LIST moved is no step; a moved record goes the moment no live map leads to it.* Whoever lists moved, forgets and
//!   claims, in this order and while a pack that he condemned exists, finds a record unused only if it was unused when
//!   he listed the claims: what counted then was listed, since nothing is swept meanwhile, and so was each record on
//!   its way, since a record is put before the pack that it leads to is condemned (`SeeTargets`).
//! - *The last of a collector's lists and its moved records.* Only the droppers above see these, and a record helps
//!   whoever follows it: what it could hide shows when the collector stops before its lists, since lists change
//!   nothing.
//! - *Purging, sweeping and their conditions.* A condition that holds once holds for good; who would see the object
//!   between the two has a check that fails either way, or is a collector whose list of forgets has the claim.
//! - *Claims are listed in two pages, the writers' first.* Lists of stores are not taken at one moment. The other pages
//!   of a collector are used one object at a time, so that it does not matter at which moment each was seen.
//! - Names of chunks, writers and collectors mean nothing ([`canonical`]).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test is a program: it may read its environment")]
#![allow(clippy::print_stdout, reason = "state counts and traces are told")]

#[path = "protocol_model/canonical.rs"]
mod canonical;
#[path = "protocol_model/collector.rs"]
mod collector;
#[path = "protocol_model/others.rs"]
mod others;
#[path = "protocol_model/protocol.rs"]
mod protocol;
#[path = "protocol_model/store.rs"]
mod store;
#[path = "protocol_model/writer.rs"]
mod writer;

use protocol::{AGREED, CollectorStep, DeciderStep, FOUND, Flaw, KEPT, Protocol, WriterStep};
use stateright::{Checker, Expectation, HasDiscoveries, Model};
use store::Set;

/// Goes through all states: what must hold always holds, and what should happen sometimes happens.
fn exhaust(name: &str, protocol: Protocol) {
    let checker = protocol.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    println!("{name}: {} states, at most {} steps", checker.unique_state_count(), checker.max_depth());
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        match property.expectation {
            Expectation::Always => {
                let trace = found.map(|path| path.into_actions());
                assert!(trace.is_none(), "{name}: it is not always so that {}: {trace:#?}", property.name);
            }
            _ => assert!(found.is_some(), "{name}: it never happens that {}", property.name),
        }
    }
}

/// A flawed protocol must break `promise`, or the checker proves nothing.
fn refute(name: &str, promise: &'static str, protocol: Protocol) {
    let protocol = Protocol { is_merged: false, ..protocol };
    let checker = protocol.checker().finish_when(HasDiscoveries::AllOf([promise].into())).spawn_bfs().join();
    let trace = checker.discovery(promise).map(|path| path.into_actions());
    let trace = trace.unwrap_or_else(|| panic!("{name}: still it is always so that {promise}"));
    println!("{name}: after {} steps it is not so that {promise}", trace.len());
    trace.iter().for_each(|action| println!("    {action:?}"));
}

/// Bounds in which most flaws show.
fn small(writers: u8, collectors: u8) -> Protocol {
    Protocol { pin: false, copies: 0, ..Protocol::new(writers, collectors) }
}

fn flawed(flaw: Flaw, bounds: Protocol) -> Protocol {
    Protocol { flaw: Some(flaw), ..bounds }
}

#[test]
fn one_writer_and_two_collectors_lose_nothing() {
    exhaust("1 writer, 2 collectors, a pin, a copy", Protocol::new(1, 2));
}

#[test]
fn two_writers_and_one_collector_lose_nothing() {
    exhaust("2 writers, 1 collector, a pin", Protocol { copies: 0, ..Protocol::new(2, 1) });
    exhaust("2 writers, 1 collector, a copy", Protocol { pin: false, ..Protocol::new(2, 1) });
}

/// Stores without put-if-absent, whose listings are strong.
#[test]
fn stores_that_overwrite_lose_nothing() {
    exhaust("overwriting: 1 writer, 2 collectors", small(1, 2).overwriting());
    exhaust("overwriting: 1 writer, 1 collector, a pin, a copy", Protocol::new(1, 1).overwriting());
}

#[test]
fn decisions_with_flaws_are_found_out() {
    use DeciderStep::{Commit, PutRevoke, Revoke, SeeIntent, SeeNoIntent, SeeNoRevoke};
    use WriterStep::{CheckPacks, CheckParent, Claim, Decide, Done, Intend, SeeRevoke, Upload};
    let sound = || small(1, 1).overwriting();
    for promise in [KEPT, AGREED] {
        let with = |writer| Protocol { writer, ..sound() };
        refute("no intent", promise, with(&[Upload, Claim, CheckParent, CheckPacks, Decide, Done]));
        let unseen = &[Upload, Claim, CheckParent, CheckPacks, Intend, Decide, Done];
        refute("a revoke not looked for", promise, with(unseen));
        let early = &[Upload, Claim, CheckParent, CheckPacks, SeeRevoke, Intend, Decide, Done];
        refute("a revoke looked for before the intent is put", promise, with(early));
        let revoker = |revoker| Protocol { revoker, ..sound() };
        refute("an intent not looked for", promise, revoker(&[PutRevoke, Revoke]));
        refute("an intent looked for before the revoke is put", promise, revoker(&[SeeNoIntent, PutRevoke, Revoke]));
        let helper = |helper| Protocol { helper, ..sound() };
        refute("a commit completed whatever was revoked", promise, helper(&[SeeIntent, Commit]));
        refute("a revoke looked for before the intent is seen", promise, helper(&[SeeNoRevoke, SeeIntent, Commit]));
        refute("a revoke swept with its claim", promise, flawed(Flaw::RevokingSwept, sound()));
    }
    refute("a revoke trusted on its own", KEPT, flawed(Flaw::RevokeTrustedAlone, sound()));
    let unchecked =
        Protocol { writer: &[Upload, Claim, Intend, SeeRevoke, CheckParent, CheckPacks, Decide, Done], ..sound() };
    refute("an intent put before the check", KEPT, unchecked);
}

#[test]
fn a_writer_that_uploads_again_loses_nothing() {
    let bounds = Protocol { uploads_again: true, condemns: 4, ..Protocol::new(1, 1) };
    exhaust("1 writer that uploads again, 1 collector, a pin, a copy, records of 4 packs", bounds);
}

#[test]
fn larger_bounds_lose_nothing() {
    if std::env::var("COFFER_MODEL").as_deref() != Ok("large") {
        println!("COFFER_MODEL=large goes through larger bounds");
        return;
    }
    exhaust("2 writers, 1 collector, a pin, a copy", Protocol::new(2, 1));
    let no_pin = |bounds| Protocol { pin: false, ..bounds };
    let again = Protocol { copies: 2, uploads_again: true, ..Protocol::new(1, 2) };
    exhaust("1 writer that uploads again, 2 collectors, 2 copies", no_pin(again));
    exhaust("1 writer, 3 collectors, a copy", no_pin(Protocol::new(1, 3)));
    exhaust("2 writers, 2 collectors", small(2, 2));
    exhaust("overwriting: 2 writers, 1 collector", small(2, 1).overwriting());
    exhaust("overwriting: 1 writer, 2 collectors, a pin, a copy", Protocol::new(1, 2).overwriting());
}

/// Nothing is taken together, and claims are listed one by one, in both orders.
#[test]
fn every_step_on_its_own() {
    use CollectorStep::{Condemn, Delete, Done, ListClaims, ListCondemned, ListForgets, ListPacks, Repack, SeeTargets};
    let writer = {
        use WriterStep::{Claim, Decide, Done, ListCondemned, ListForgets, SeePacks, SeeParent, Upload};
        &[Upload, Claim, ListForgets, SeeParent, ListCondemned, SeePacks, Decide, Done]
    };
    let [first, second, _, pin] = [0, 1, 2, store::PIN].map(|claim| ListClaims(Set::of(claim)));
    let before = [Repack, Condemn, ListForgets];
    let after = [ListCondemned, ListPacks, SeeTargets, Delete, Done];
    for (name, pages) in [("upwards", [first, second, pin]), ("downwards", [pin, second, first])] {
        let collector = [&before[..], &pages, &after].concat().leak();
        let alone = Protocol { writer, collector, is_merged: false, ..Protocol::new(1, 1) };
        exhaust(&format!("1 writer, 1 collector, a pin, claims one by one {name}"), Protocol { copies: 0, ..alone });
        exhaust(&format!("1 writer, 1 collector, a copy, claims one by one {name}"), Protocol { pin: false, ..alone });
    }
}

#[test]
fn writers_with_flaws_are_found_out() {
    use WriterStep::{
        CheckPacks, CheckParent, Claim, Decide, Done, ListCondemned, ListForgets, SeePacks, SeeParent, Upload,
    };
    let with = |writer| Protocol { writer, ..small(1, 1) };
    refute("no check", KEPT, with(&[Upload, Claim, Decide, Done]));
    refute("packs unchecked", KEPT, with(&[Upload, Claim, CheckParent, Decide, Done]));
    refute("the parent unchecked", KEPT, with(&[Upload, Claim, CheckPacks, Decide, Done]));
    let packs_first = &[Upload, Claim, CheckParent, SeePacks, ListCondemned, Decide, Done];
    refute("existence of packs before tombstones", KEPT, with(packs_first));
    let parent_first = &[Upload, Claim, SeeParent, ListForgets, CheckPacks, Decide, Done];
    refute("existence of the parent before tombstones", KEPT, with(parent_first));
    refute("only reused chunks checked", KEPT, flawed(Flaw::OwnPacksUnchecked, small(1, 1)));
    refute("the decision a plain PUT", KEPT, flawed(Flaw::DecisionOverwritten, small(1, 1)));
    let copied = Protocol { copies: 1, ..small(1, 1) };
    refute("no moved record for a condemned hint", FOUND, flawed(Flaw::WriterMovesNothing, copied));
    refute("no check after a moved record", FOUND, flawed(Flaw::ReplacementUnchecked, copied));
}

#[test]
fn collectors_with_flaws_are_found_out() {
    use CollectorStep::{Condemn, Delete, Done, ListClaims, ListCondemned, ListForgets, ListPacks, Repack, SeeTargets};
    const ALL: CollectorStep = ListClaims(Set(15));
    let with = |collector| Protocol { collector, ..small(1, 1) };
    let early = &[Repack, ListForgets, ALL, Condemn, ListCondemned, ListPacks, SeeTargets, Delete, Done];
    refute("lists before condemning", KEPT, with(early));
    let claims_first = &[Repack, Condemn, ALL, ListForgets, ListCondemned, ListPacks, SeeTargets, Delete, Done];
    refute("claims listed before forgets", KEPT, with(claims_first));
    refute("undecided claims ignored", KEPT, flawed(Flaw::UndecidedIgnored, small(1, 1)));
    refute("a record adopted after the claims were listed", KEPT, flawed(Flaw::LateRecordAdopted, small(1, 2)));

    // Without SeeTargets, which alone would find these out.
    let blind = |collector, copies| Protocol { collector, copies, ..small(0, 2) };
    let packs_first = &[Repack, Condemn, ListForgets, ALL, ListPacks, ListCondemned, Delete, Done];
    refute("packs listed before condemned records", KEPT, blind(packs_first, 1));
    let trusting = &[Repack, Condemn, ListForgets, ALL, ListCondemned, ListPacks, Delete, Done];
    refute("a condemned copy trusted", KEPT, flawed(Flaw::CondemnedCopyTrusted, blind(trusting, 1)));

    refute("targets of moved records not seen again", FOUND, blind(trusting, 2));
    let pair = Protocol { copies: 2, ..small(0, 2) };
    refute("targets of moved records: tombstones only", FOUND, flawed(Flaw::TargetsTombstonesOnly, pair));
    refute("moved records dropped behind a present pack", FOUND, flawed(Flaw::MovedDroppedBehindPresent, pair));
    let copied = Protocol { copies: 1, ..small(0, 1) };
    refute("no moved records", FOUND, flawed(Flaw::CollectorMovesNothing, copied));
}

#[test]
fn sweepers_and_pins_with_flaws_are_found_out() {
    refute("a condemned record purged before its packs", KEPT, flawed(Flaw::RecordPurgedEarly, small(1, 1)));
    refute("a condemned record purged by an old list", FOUND, flawed(Flaw::RecordPurgedByOldList, small(1, 2)));
    refute("a claim swept amid a collector's lists", KEPT, flawed(Flaw::ClaimSweptAmidLists, small(1, 1)));
    refute("a REVOKE swept", KEPT, flawed(Flaw::RevokeSwept, small(1, 1)));
    refute("a forget swept before its claim", KEPT, flawed(Flaw::ForgetSweptFirst, small(1, 1)));
    let pinned = |writers| Protocol { pin: true, ..small(writers, 1) };
    refute("a pinned claim swept", KEPT, flawed(Flaw::PinnedClaimSwept, pinned(0)));
    refute("a pin ended by REVOKE", KEPT, flawed(Flaw::PinRevoked, pinned(1)));
    refute("a pin unchecked", KEPT, flawed(Flaw::PinUnchecked, pinned(0)));
}
