//! Thawing against a stand-in for S3 Glacier: what the backend asks and understands, and every way of the command, to the restored byte.
//!
//! Not here: real Glacier, which none of the tests' services has. What holds: nothing is waited for longer than the stand-in is looked
//! at.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use coffer_repo::backend::archive::{Order, Speed, State, Surveyed};
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Put};
use coffer_repo::cancel::Cancel;
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::Snapshot;
use coffer_repo::thaw::{self, Stage, ThawOptions};
use coffer_repo::{Error, Kind};
use coffer_tests::coffer::Coffer;
use coffer_tests::dice::Dice;
use coffer_tests::disk::DiskContent;
use coffer_tests::program::attempt;
use coffer_tests::rig::{Job, at, init_fine, open, open_index, read_disk};
use coffer_tests::scripted::{BUCKET, Fault, Scripted, error};
use coffer_tests::service::Place;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const GLACIER: &str = "GLACIER";
const INTELLIGENT: &str = "INTELLIGENT_TIERING";
/// Looks that no test takes.
const NEVER: u32 = u32::MAX;
/// 2026-11-22, a month before the stand-in's copies end.
const NOW: u64 = 1_795_305_600;

fn place(server: &Scripted) -> Place {
    Place {
        location: format!("s3://{BUCKET}/r"),
        options: vec![format!("endpoint={}", server.endpoint())],
        environment: vec![("AWS_ACCESS_KEY_ID", "key".to_owned()), ("AWS_SECRET_ACCESS_KEY", "secret".to_owned())],
    }
}

fn store(server: &Scripted) -> Arc<dyn Backend> {
    place(server).open()
}

/// Requests so far that begin with this method and have this in them.
fn asked(server: &Scripted, method: &str, part: &str) -> usize {
    let fits = |line: &&String| line.starts_with(method) && line.contains(part);
    server.requests().iter().filter(fits).count()
}

fn says(error: &Error, kind: Kind, words: &[&str]) {
    let text = format!("{error:?}");
    assert!(error.kind() == kind && words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
}

#[test]
fn an_object_freezes_and_is_thawed() {
    let server = Scripted::start();
    let store = store(&server);
    let archive = store.archive().unwrap();
    server.plant("r/packs/00/a", b"0123456789");
    assert_eq!(archive.state("packs/00/a").unwrap(), State::Ready { until: None });
    // Asked for without need.
    archive.thaw("packs/00/a", Order::default()).unwrap();

    server.freeze("r/packs/", GLACIER);
    server.thaw_after(1);
    assert_eq!(archive.state("packs/00/a").unwrap(), State::Frozen);
    says(&store.get("packs/00/a").unwrap_err(), Kind::Frozen, &["coffer thaw", "packs/00/a", "InvalidObjectState"]);
    says(&store.get_range("packs/00/a", 1, &mut [0; 2]).unwrap_err(), Kind::Frozen, &["coffer thaw"]);
    assert_eq!(store.size("packs/00/a").unwrap(), Some(10));
    assert_eq!(asked(&server, "GET", "packs/00/a"), 2, "what is frozen was read again and again");

    for _ in 0..3 {
        archive.thaw("packs/00/a", Order { days: 9, speed: Speed::Bulk }).unwrap();
    }
    assert_eq!(archive.state("packs/00/a").unwrap(), State::Thawing);
    let State::Ready { until: Some(until) } = archive.state("packs/00/a").unwrap() else { panic!("not thawed") };
    assert_eq!(until.to_string(), "2026-12-25T00-00-00Z");
    assert_eq!(store.get("packs/00/a").unwrap(), b"0123456789");
    archive.thaw("packs/00/a", Order::default()).unwrap();
    store.delete("packs/00/a").unwrap();
    says(&archive.state("packs/00/a").unwrap_err(), Kind::NotFound, &["packs/00/a"]);
    says(&archive.thaw("packs/00/a", Order::default()).unwrap_err(), Kind::NotFound, &["packs/00/a"]);
}

#[test]
fn what_intelligent_tiering_archived_comes_back_for_good() {
    let server = Scripted::start();
    let store = store(&server);
    let archive = store.archive().unwrap();
    server.plant("r/packs/00/a", b"x");
    server.freeze("r/packs/", INTELLIGENT);
    assert_eq!(archive.state("packs/00/a").unwrap(), State::Frozen);
    archive.thaw("packs/00/a", Order::default()).unwrap();
    assert_eq!(archive.state("packs/00/a").unwrap(), State::Ready { until: None });
}

#[test]
fn refusals_are_told_with_the_way_out() {
    let server = Scripted::start();
    let store = store(&server);
    let archive = store.archive().unwrap();
    server.plant("r/packs/00/a", b"x");
    server.freeze("r/packs/", GLACIER);
    let refuse = |status, code: &str| {
        server.fail("POST", "restore", Fault::Answer(status, &[], error(code, "says the script")));
        archive.thaw("packs/00/a", Order { days: 1, speed: Speed::Expedited }).unwrap_err()
    };
    says(&refuse(403, "AccessDenied"), Kind::Invalid, &["s3:RestoreObject", "packs/00/a"]);
    says(&refuse(400, "InvalidArgument"), Kind::Invalid, &["expedited"]);
    says(&refuse(503, "GlacierExpeditedRetrievalNotAvailable"), Kind::Unsupported, &["--speed standard"]);
    // Not for want of thawing.
    says(&refuse(403, "InvalidObjectState"), Kind::Unsupported, &["packs/00/a"]);
    assert_eq!(server.unmet(), 0);
    says(&archive.thaw("tmp/x", Order::default()).unwrap_err(), Kind::Invalid, &["tmp/x"]);
}

#[test]
fn rules_of_the_bucket_are_asked_for_once() {
    type Script<'a> = &'a dyn Fn(&Scripted);
    let refuse = |status, code: &'static str| {
        move |server: &Scripted| server.fail("GET", "lifecycle", Fault::Answer(status, &[], error(code, "")))
    };
    let cases: [(Script<'_>, bool); 7] = [
        (&|_| {}, false),
        (&|server| server.rule("GLACIER_IR"), false),
        (&|server| server.rule(GLACIER), true),
        (&|server| server.rule("DEEP_ARCHIVE"), true),
        (&|server| server.rule(INTELLIGENT), true),
        (&refuse(501, "NotImplemented"), false),
        (&refuse(403, "AccessDenied"), true),
    ];
    for (number, (script, expected)) in cases.into_iter().enumerate() {
        let server = Scripted::start();
        script(&server);
        let store = store(&server);
        let archive = store.archive().unwrap();
        assert_eq!([archive.may_freeze().unwrap(), archive.may_freeze().unwrap()], [expected; 2], "{number}");
        assert_eq!(server.requests().len(), 1);
    }
    let server = Scripted::start();
    let cold = place(&server).with("storage-class=DEEP_ARCHIVE").open();
    assert!(cold.archive().unwrap().may_freeze().unwrap());
    assert_eq!(server.requests().len(), 0);
    let anonymous = place(&server).with("anonymous=yes").open();
    assert!(anonymous.archive().is_none() && Memory::default().archive().is_none());
}

#[test]
fn a_survey_of_many_pages_is_complete() {
    let server = Scripted::start();
    (0..2500).for_each(|i| server.plant(&format!("r/packs/{i:05}"), &[0; 3]));
    server.plant("r/packs/not a name", b"x");
    server.freeze("r/packs/01", GLACIER);
    server.freeze("r/packs/012", "GLACIER_IR");
    server.fail("GET", "continuation-token=r/packs/01", Fault::Reset);
    let store = store(&server);
    let (mut all, mut cold) = (0, 0);
    let count = &mut |object: Surveyed| {
        assert_eq!(object.size, 3);
        all += 1;
        cold += usize::from(object.is_cold);
        Ok(())
    };
    store.archive().unwrap().survey("packs/", count).unwrap();
    assert_eq!((all, cold), (2500, 900));
}

/// With a class that freezes only packs are put with it, in one piece and in parts, and one whose answer was lost is known again.
#[test]
fn only_packs_are_put_where_they_freeze() {
    let server = Scripted::start();
    let store = place(&server).with("storage-class=GLACIER").with("part=5M").open();
    let archive = store.archive().unwrap();
    server.fail("PUT", "packs/00/a", Fault::LoseAnswer);
    assert_eq!(store.put("packs/00/a", &[b"frozen", b"bytes"]).unwrap(), Put::Created);
    assert_eq!(store.put("packs/00/b", &[&vec![1; 11 << 20]]).unwrap(), Put::Created);
    assert_eq!(store.put("trees/00/a", &[b"warm"]).unwrap(), Put::Created);
    assert_eq!((store.get("trees/00/a").unwrap(), server.unmet()), (b"warm".to_vec(), 0));
    let states = ["packs/00/a", "packs/00/b", "trees/00/a"].map(|name| archive.state(name).unwrap());
    assert_eq!(states, [State::Frozen, State::Frozen, State::Ready { until: None }]);
}

/// Three points of one disk in packs of their own, and what the last one holds.
fn history(server: &Scripted) -> (Arc<Repository>, Vec<Snapshot>, Vec<Vec<u8>>) {
    let repo = init_fine(store(server), 7).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let index = open_index(&repo, dir.path()).unwrap();
    let mut bytes = vec![0; 3 << 20];
    Dice::new(1).noise(&mut bytes);
    let (mut points, mut contents) = (Vec::new(), Vec::new());
    for day in 0..3 {
        Dice::new(day + 9).noise(&mut bytes[usize::try_from(day).unwrap() << 20..][..200 << 10]);
        let content = DiskContent::from(bytes.clone());
        let parent = points.last().cloned();
        points.push(Job::new("web", NOW + day, vec![("d", &content)]).on(parent).run(&repo, &index).unwrap());
        contents.push(bytes.clone());
    }
    (repo, points, contents)
}

fn options() -> ThawOptions {
    let pause = Duration::from_millis(1);
    ThawOptions { first_pause: pause, longest_pause: 2 * pause, threads: 3, ..ThawOptions::new(at(NOW)) }
}

#[test]
fn a_point_is_looked_at_asked_for_and_waited_for() {
    let server = Scripted::start();
    let (repo, points, contents) = history(&server);
    let cancel = Cancel::default();
    let packs = server.keys("r/packs/");
    let count = packs.len() as u64;
    assert!(count > 4, "{packs:?}");
    let look = |point| thaw::look(&repo, point, options(), &cancel).unwrap();
    let heads = asked(&server, "HEAD", "r/packs/");
    let warm = look(&points[2]);
    assert!(warm.is_ready() && warm.needed.packs == count && warm.frozen.packs == 0, "{warm:?}");
    assert_eq!(asked(&server, "HEAD", "r/packs/"), heads, "warm packs were asked about");

    // The others stay warm, and the first point does not need all of them.
    server.freeze(&packs[0], GLACIER);
    server.freeze(&packs[1], "DEEP_ARCHIVE");
    let report = look(&points[2]);
    assert_eq!((report.needed.packs, report.frozen.packs, report.is_ready()), (count, 2, false));
    assert!(look(&points[0]).needed.packs < count);
    assert_eq!(asked(&server, "POST", "restore"), 0, "looking asked for something");

    // Asked for and not ready; asked for again, and not twice.
    server.thaw_after(NEVER);
    let report = thaw::ask(&repo, &points[2], options(), &cancel).unwrap();
    assert_eq!((report.frozen.packs, report.thawing.packs, report.is_ready()), (2, 0, false));
    let report = thaw::ask(&repo, &points[2], options(), &cancel).unwrap();
    assert_eq!((report.frozen.packs, report.thawing.packs, asked(&server, "POST", "restore")), (0, 2, 2));
    says(&read_disk(&repo, &points[2], "d").unwrap_err(), Kind::Frozen, &["coffer thaw"]);

    // A wait that is stopped asks for nothing anew, and the next one ends.
    let stop = Cancel::default();
    let stopped = thaw::wait(&repo, &points[2], options(), &stop, &mut |_, _| {
        stop.cancel();
        Ok(())
    });
    assert_eq!(stopped.unwrap_err().kind(), Kind::Cancelled);
    server.thaw_after(5);
    let mut told = Vec::new();
    let tell = &mut |report: &thaw::ThawReport, done| {
        told.push((report.thawing.packs, done));
        Ok(())
    };
    let report = thaw::wait(&repo, &points[2], options(), &cancel, tell).unwrap();
    assert!(report.is_ready() && report.until == Some(at(1_798_156_800)), "{report:?}");
    assert_eq!((told, asked(&server, "POST", "restore")), (vec![(2, 0), (2, 1), (2, 2)], 2));
    for (point, content) in points.iter().zip(&contents) {
        let repo = open(store(&server), 8).unwrap();
        assert!(read_disk(&repo, point, "d").unwrap() == *content);
    }
}

#[test]
fn copies_that_end_soon_are_asked_for_again() {
    let server = Scripted::start();
    let (repo, points, _) = history(&server);
    server.freeze("r/packs/", GLACIER);
    let cancel = Cancel::default();
    thaw::ask(&repo, &points[2], options(), &cancel).unwrap();
    thaw::wait(&repo, &points[2], options(), &cancel, &mut |_, _| Ok(())).unwrap();
    let asked_first = asked(&server, "POST", "restore");
    // Of three days two are left, and then one.
    for (days_left, more) in [(2, 0), (1, asked_first)] {
        let options = ThawOptions { now: at(1_798_156_800 - days_left * 86_400), ..options() };
        assert!(thaw::ask(&repo, &points[2], options, &cancel).unwrap().is_ready());
        assert_eq!(asked(&server, "POST", "restore") - asked_first, more, "{days_left}");
    }
}

#[test]
fn frozen_maps_come_first() {
    let server = Scripted::start();
    let (_, points, contents) = history(&server);
    // Maps that nobody remembers.
    let repo = open(store(&server), 8).unwrap();
    server.freeze("r/packs/", GLACIER);
    server.freeze("r/trees/", GLACIER);
    let cancel = Cancel::default();
    let trees = server.keys("r/trees/").len() as u64;
    let report = thaw::look(&repo, &points[2], options(), &cancel).unwrap();
    assert_eq!((report.stage, report.frozen.packs, report.is_ready()), (Stage::Maps, trees, false));
    let mut stages = Vec::new();
    let tell = &mut |report: &thaw::ThawReport, done| {
        stages.extend((done == 0).then_some(report.stage));
        Ok(())
    };
    assert!(thaw::wait(&repo, &points[2], options(), &cancel, tell).unwrap().is_ready());
    assert_eq!(stages, [Stage::Maps, Stage::Packs]);
    assert!(read_disk(&repo, &points[2], "d").unwrap() == contents[2]);
}

#[test]
fn polls_that_fail_in_passing_end_no_wait_and_refusals_do() {
    let server = Scripted::start();
    let (repo, points, _) = history(&server);
    server.thaw_after(NEVER);
    let cancel = Cancel::default();
    // One that the point needs.
    server.freeze("r/packs/", GLACIER);
    thaw::ask(&repo, &points[0], options(), &cancel).unwrap();
    let pack = server.keys("r/packs/").into_iter().find(|key| asked(&server, "POST", key) > 0).unwrap();
    server.freeze("r/packs/", "GLACIER_IR");
    server.freeze(&pack, GLACIER);
    let pack: &'static str = pack.leak();
    let mut tell = |_: &thaw::ThawReport, _| {
        server.fail("HEAD", pack, Fault::Answer(403, &[], String::new()));
        Ok(())
    };
    let refused = thaw::wait(&repo, &points[0], options(), &cancel, &mut tell).unwrap_err();
    says(&refused, Kind::Invalid, &["may not"]);
    // What passes is waited out, if it does not go on and on.
    let mut is_first = true;
    let mut tell = |_: &thaw::ThawReport, _| {
        if std::mem::take(&mut is_first) {
            (0..4)
                .for_each(|_| server.fail("HEAD", pack, Fault::Answer(409, &[("retry-after", "3600")], String::new())));
            server.thaw_after(3);
        }
        Ok(())
    };
    assert!(thaw::wait(&repo, &points[0], options(), &cancel, &mut tell).unwrap().is_ready());
    assert_eq!(server.unmet(), 0);
    server.freeze(pack, GLACIER);
    server.thaw_after(NEVER);
    // The object goes while it is waited for: what is missing is told, and there is nothing to wait for.
    let mut tell = |_: &thaw::ThawReport, done| {
        if done == 0 {
            server.lose(pack);
        }
        Ok(())
    };
    let report = thaw::wait(&repo, &points[0], options(), &cancel, &mut tell).unwrap();
    assert!(report.is_ready() && report.missing.len() == 1 && pack.ends_with(&report.missing[0]), "{report:?}");
}

/// A repository in the stand-in with two points, by the program.
fn coffer(server: &Scripted, place: Place) -> Coffer {
    let coffer = Coffer::new_in(place);
    let mut bytes = vec![0; 4 << 20];
    Dice::new(3).noise(&mut bytes);
    std::fs::write(coffer.path("disk.raw"), &bytes).unwrap();
    coffer.run(&["backup", "-w", "web", "d=disk.raw"]);
    std::fs::copy(coffer.path("disk.raw"), coffer.path("old.raw")).unwrap();
    Dice::new(4).noise(&mut bytes[1 << 20..2 << 20]);
    std::fs::write(coffer.path("disk.raw"), &bytes).unwrap();
    coffer.run(&["backup", "-w", "web", "d=disk.raw"]);
    assert!(server.keys("r/packs/").len() >= 2);
    coffer
}

const RESTORE: [&str; 4] = ["restore", "web@latest", "--to", "out.raw"];

fn packs(report: &Value, what: &str) -> u64 {
    assert!(report[what]["bytes"].is_u64(), "{report}");
    report[what]["packs"].as_u64().unwrap()
}

#[test]
fn a_restore_says_what_is_frozen_and_thaws_it_when_asked() {
    let server = Scripted::start();
    let coffer = coffer(&server, place(&server));
    let before = server.requests().len();
    coffer.assert_restores("web@latest", "disk.raw");
    let asked_for: Vec<String> = server.requests().split_off(before);
    assert_eq!(asked_for.iter().filter(|line| line.contains("lifecycle")).count(), 1);
    assert!(!asked_for.iter().any(|line| line.contains("prefix=r/packs")), "a store without cold tiers was listed");

    server.rule(GLACIER);
    server.freeze("r/packs/", GLACIER);
    server.thaw_after(NEVER);
    let count = server.keys("r/packs/").len();
    let words =
        ["nothing was written", "coffer restore --thaw", "coffer thaw web@", "frozen", "0 (0 B) are being thawed"];
    coffer.fails(&RESTORE, &words);
    assert!(!coffer.path("out.raw").exists());

    let looked = coffer.json(&["thaw", "web@latest", "--dry-run"]);
    assert_eq!(packs(&looked, "needed"), count as u64, "{looked}");
    assert_eq!((packs(&looked, "frozen"), packs(&looked, "thawing")), (count as u64, 0));
    assert_eq!(
        (&looked["is_ready"], &looked["stage"], &looked["disks"]),
        (&json!(false), &json!("packs"), &json!(["d"]))
    );
    assert_eq!(asked(&server, "POST", "restore"), 0);

    let text = coffer.run(&["thaw", "web@latest:d", "--days", "7", "--speed", "bulk"]);
    assert!(text.contains("it was asked for") && asked(&server, "POST", "restore") == count, "{text}");
    let again = coffer.json(&["thaw", "web@latest"]);
    assert_eq!((packs(&again, "frozen"), packs(&again, "thawing")), (0, count as u64));
    coffer.fails(&RESTORE, &["0 (0 B) are frozen"]);

    // Interrupted, and said again.
    let waiting = coffer.start(&["thaw", "web@latest", "--wait"], "goes on when the same is said again");
    waiting.signal(Signal::INT);
    let ended = waiting.wait();
    assert!(ended.status.code() == Some(1) && ended.err.contains("goes on thawing"), "{ended}");
    server.thaw_after(1);
    let done = coffer.json(&["thaw", "web@latest", "--wait"]);
    assert_eq!((&done["is_ready"], &done["ready_until"]), (&json!(true), &json!("2026-12-25T00-00-00Z")), "{done}");
    assert_eq!(asked(&server, "POST", "restore"), count, "something was asked for twice");
    coffer.assert_restores("web@latest", "disk.raw");
}

#[test]
fn a_restore_waits_for_what_is_not_ready() {
    let server = Scripted::start();
    let coffer = coffer(&server, place(&server).with("storage-class=DEEP_ARCHIVE"));
    let packs = server.keys("r/packs/");
    coffer.fails(&RESTORE, &["nothing was written"]);
    // Some are ready, and one is gone on its way already.
    let store = store(&server);
    let archive = store.archive().unwrap();
    let first = packs[0].strip_prefix("r/").unwrap();
    archive.thaw(first, Order::default()).unwrap();
    assert!(matches!(archive.state(first).unwrap(), State::Ready { .. }));
    server.thaw_after(2);
    let ended = attempt(&mut coffer.command(&[&RESTORE[..], &["--thaw", "--thaw-speed", "bulk", "--verify"]].concat()));
    assert!(ended.status.success() && ended.err.contains(&format!("thawing {} packs", packs.len() - 1)), "{ended}");
    coffer.assert_same("disk.raw", "out.raw");
    assert_eq!(asked(&server, "POST", "restore"), packs.len());
}

/// Home is warm, and what old points alone need freezes in a tier of the same bucket.
#[test]
fn what_a_tier_froze_is_thawed_there() {
    let server = Scripted::start();
    let coffer = coffer(&server, place(&server));
    let tier = place(&server);
    let mut add = vec!["tier".to_owned(), "add".to_owned(), "deep".to_owned(), format!("s3://{BUCKET}/cold")];
    for option in tier.options.iter().map(String::as_str).chain(["storage-class=GLACIER"]) {
        add.extend(["--tier-option".to_owned(), option.to_owned()]);
    }
    coffer.run(&add.iter().map(String::as_str).collect::<Vec<_>>());
    coffer.run(&["forget", "web@latest"]);
    coffer.run(&["tier", "move", "deep", "--older-than", "2999-01-01T00-00-00Z"]);
    let cold = server.keys("cold/packs/").len();
    assert!(cold > 0, "{:?}", server.keys(""));
    server.thaw_after(NEVER);

    coffer.fails(&RESTORE, &["nothing was written", &format!("{cold} (")]);
    let text = coffer.run(&["thaw", "web@latest"]);
    assert!(text.contains("it was asked for") && asked(&server, "POST", "restore") == cold, "{text}");
    server.thaw_after(1);
    let done = coffer.json(&["thaw", "web@latest", "--wait"]);
    assert_eq!((&done["is_ready"], packs(&done, "needed") >= cold as u64), (&json!(true), true), "{done}");
    coffer.assert_restores("web@latest", "old.raw");
}

#[test]
fn what_the_store_refuses_and_what_is_gone_is_told() {
    let server = Scripted::start();
    let coffer = coffer(&server, place(&server));
    server.freeze("r/packs/", GLACIER);
    for _ in 0..40 {
        server.fail("POST", "restore", Fault::Answer(403, &[], error("AccessDenied", "no")));
    }
    coffer.fails(&["thaw", "web@latest"], &["s3:RestoreObject"]);
    coffer.fails(&[&RESTORE[..], &["--thaw"]].concat(), &["s3:RestoreObject"]);
    assert!(!coffer.path("out.raw").exists());

    // Without a rule to tell it nobody looks first: reading says it, and what else reads packs says the same.
    let words = ["coffer thaw", "InvalidObjectState"];
    coffer.fails(&RESTORE, &words);
    let verified = attempt(&mut coffer.command(&["verify", "--data", "all"]));
    assert!(verified.status.code() == Some(1) && words.iter().all(|word| verified.out.contains(word)), "{verified}");
    coffer.fails(&["heal"], &["nothing is healed", "coffer thaw"]);
    let copy = attempt(&mut coffer.command_on("other", ["--password-file", "password"], &["init"]));
    assert!(copy.status.success(), "{copy}");
    coffer.fails(&["copy", "--to", "other"], &words);

    let gone = server.keys("r/packs/").remove(0);
    server.lose(&gone);
    let told = coffer.warned(&["thaw", "web@latest", "--dry-run"]);
    assert_eq!(told["missing"], json!([gone.strip_prefix("r/").unwrap()]), "{told}");
    assert!(told["warnings"][0].as_str().unwrap().contains("coffer verify"), "{told}");
}

#[test]
fn a_collection_leaves_what_is_frozen_alone() {
    let server = Scripted::start();
    let coffer = coffer(&server, place(&server));
    server.freeze("r/packs/", GLACIER);
    let count = server.keys("r/packs/").len();
    coffer.run(&["forget", "web@-1"]);
    let told = coffer.json(&["gc", "--repack-below", "99"]);
    assert!(packs(&told, "frozen") > 0, "{told}");
    assert_eq!((&told["damaged"], server.keys("r/packs/").len()), (&json!([]), count), "{told}");
    // Backups go on, and rely on what is frozen.
    let again = coffer.json(&["backup", "-w", "web", "d=disk.raw"]);
    assert_eq!(again["snapshot"]["new_chunks"], 0, "{again}");
    coffer.json(&["thaw", "web@latest", "--wait"]);
    coffer.assert_restores("web@latest", "disk.raw");
}

#[test]
fn wrong_use_is_refused() {
    let coffer = Coffer::new();
    std::fs::write(coffer.path("disk.raw"), vec![7; 1 << 20]).unwrap();
    coffer.run(&["backup", "-w", "web", "disk.raw"]);
    coffer.fails(&["thaw", "web@latest"], &["nothing can be thawed", "S3"]);
    // A store that has no cold tiers has nothing to wait for.
    coffer.run(&[&RESTORE[..], &["--thaw"]].concat());
    for wrong in [
        &["thaw", "web@latest", "--days", "0"][..],
        &["thaw", "web@latest", "--days", "366"],
        &["thaw", "web@latest", "--speed", "fast"],
        &["thaw", "web@latest", "--dry-run", "--wait"],
        &["restore", "web@latest", "--to", "x", "--thaw-days", "3"],
    ] {
        let ended = attempt(&mut coffer.command(wrong));
        assert_eq!(ended.status.code(), Some(2), "{ended}");
    }
}
