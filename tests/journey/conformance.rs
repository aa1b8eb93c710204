//! The whole of libiscsi's conformance suite, what destroys data, sanitizes and needs two paths included, against a fork.
//!
//! ```text
//!   iscsi-test-cu -t ALL  --portal 1-->  target  --LUN 0-->  fork of an empty disk
//!                         --portal 2-->
//!   one test              --portal 1-->          --LUN 1-->  its point, for what is of write-protected disks
//!   five tests                           target  --LUN 0-->  fork that tells of physical blocks of 4096 bytes
//!   Sanitize.Reset alone                 target  --LUN 0-->  fork whose limits make overwriting take as long as the test expects
//! ```
//! Not here: what the answers are made of (`iscsi`'s own tests). What holds: nothing fails but what is in [`FAILS`], nothing is skipped but
//! what is in [`SKIPS`], each with its reason, and all that is there does. What can be passed on another disk, or alone, is passed
//! there: all but what is of [`REMOVABLE`] media.

use crate::iscsi::Served;
use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::{attempt, run};
use std::collections::BTreeMap;

const REMOVABLE: &str = "is of media that can be taken out";
const PHYSICAL: &str =
    "is of disks that tell of physical blocks of several logical ones: it is run against such a fork";

/// Tests that do not apply to a fork, and why.
const SKIPS: &[(&str, &str)] = &[
    ("CompareAndWrite.InvalidDataOutSize", PHYSICAL),
    ("PreventAllow.2ITNexuses", REMOVABLE),
    ("PreventAllow.ColdReset", REMOVABLE),
    ("PreventAllow.Eject", REMOVABLE),
    ("PreventAllow.ITNexusLoss", REMOVABLE),
    ("PreventAllow.LUNReset", REMOVABLE),
    ("PreventAllow.Logout", REMOVABLE),
    ("PreventAllow.Simple", REMOVABLE),
    ("PreventAllow.WarmReset", REMOVABLE),
    ("ReadOnly.ReadOnlySBC", "is of write-protected disks: it is run against the point"),
    ("StartStopUnit.Simple", REMOVABLE),
    ("WriteSame10.InvalidDataOutSize", PHYSICAL),
    ("WriteSame10.UnmapUnaligned", PHYSICAL),
    ("WriteSame16.InvalidDataOutSize", PHYSICAL),
    ("WriteSame16.UnmapUnaligned", PHYSICAL),
];

/// Tests that are wrong themselves, and how. With physical blocks the same goes for GetLBAStatus.UnmapSingle, which asks about LBA i + 1
/// and wants to be told about another one.
const FAILS: &[(&str, &str)] = &[(
    "Sanitize.Reset",
    "finds the disk reserved: Sanitize.Reservations before it took RESERVE(6) on the second path, demanded that SANITIZE meets a \
     conflict, and did not release it; this one sends the same command in the same state and demands that it begins. It is passed alone",
)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Skipped,
    Failed,
    /// The suite ended in its midst.
    None,
}

/// What the suite said of each test, SUITE.TEST. It counts what it skips as passed, so that its own summary says little. A line that
/// begins with [FAILED] and ends in no verdict is one that the test had to expect.
fn verdicts(told: &str) -> BTreeMap<String, Verdict> {
    let mut found = BTreeMap::new();
    for suite in told.split("\nSuite: ").skip(1) {
        let (name, tests) = suite.split_once('\n').unwrap();
        let tests = tests.split("\nRun Summary").next().unwrap();
        for test in format!("\n{tests}").split("\n  Test: ").skip(1) {
            let (test, said) = test.split_once(" ...").unwrap();
            let verdict = |word: &str| said.lines().any(|line| line.starts_with(word));
            let verdict = match (verdict("FAILED"), verdict("passed")) {
                (true, _) => Verdict::Failed,
                (false, true) if said.contains("[SKIPPED]") => Verdict::Skipped,
                (false, true) => Verdict::Passed,
                (false, false) => Verdict::None,
            };
            assert_eq!(found.insert(format!("{name}.{test}"), verdict), None, "{name}.{test} is there twice");
        }
    }
    found
}

/// A fork `lab` of an empty disk.
fn prepared() -> Coffer {
    let coffer = Coffer::new();
    image::make(&coffer.path("empty.raw"), 128 * MIB, &[], 20_701);
    coffer.run(&["backup", "-w", "web", "vda=empty.raw"]);
    coffer.run(&["fork", "create", "lab", "web@latest"]);
    coffer
}

/// Runs these tests, which are all to pass; how many there were.
fn pass(coffer: &Coffer, tests: &str, urls: &[String]) -> usize {
    let mut suite = coffer.outside("iscsi-test-cu");
    let ended = attempt(suite.args(["--dataloss", "-S", "-v", "-t", tests]).args(urls));
    let verdicts = verdicts(&ended.out);
    assert!(verdicts.values().all(|verdict| *verdict == Verdict::Passed), "{ended}");
    verdicts.len()
}

#[test]
fn a_fork_conforms() {
    let coffer = prepared();
    let served = Served::start(&coffer, 2, &["--lun", "0=fork:lab", "--lun", "1=web@latest"]);

    // Each line is ALL.SUITE.TEST, or what such lines are in.
    let listed = run(coffer.outside("iscsi-test-cu").arg("-l"));
    let listed: Vec<&str> = listed.lines().filter_map(|line| line.strip_prefix("ALL.")).collect();
    let listed: Vec<&str> = listed.into_iter().filter(|name| name.contains('.')).collect();
    let mut suite = coffer.outside("iscsi-test-cu");
    suite.args(["--dataloss", "-S", "-v", "-t", "ALL"]).args([served.url(0, 0), served.url(1, 0)]);
    // How it ends says nothing.
    let ended = attempt(&mut suite);
    let verdicts = verdicts(&ended.out);
    let named = |wanted: Verdict| -> Vec<&str> {
        verdicts.iter().filter(|(_, verdict)| **verdict == wanted).map(|(name, _)| name.as_str()).collect()
    };
    println!("{} tests, {} skipped", verdicts.len(), named(Verdict::Skipped).len());
    assert!(
        listed.len() > 200 && listed.iter().all(|name| verdicts.contains_key(*name)),
        "all that there are: {ended}"
    );
    assert_eq!(named(Verdict::None), Vec::<&str>::new(), "{ended}");
    let fails: Vec<&str> = FAILS.iter().map(|(name, _)| *name).collect();
    assert_eq!(named(Verdict::Failed), fails, "{ended}");
    let skips: Vec<&str> = SKIPS.iter().map(|(name, _)| *name).collect();
    assert_eq!(named(Verdict::Skipped), skips, "{ended}");

    assert_eq!(pass(&coffer, "ALL.ReadOnly", &[served.url(0, 1)]), 1);
    assert!(served.server.terminate().status.success());
    coffer.assert_restores("web@latest", "empty.raw");

    let served = Served::start(&coffer, 1, &["--lun", "0=fork:lab", "--physical-block-size", "4096"]);
    let of_physical: usize = ["ALL.*.InvalidDataOutSize", "ALL.*.UnmapUnaligned"]
        .map(|tests| pass(&coffer, tests, &[served.url(0, 0)]))
        .into_iter()
        .sum();
    assert_eq!(of_physical, SKIPS.iter().filter(|(_, why)| *why == PHYSICAL).count());
    assert!(served.server.terminate().status.success());
}

/// Takes a minute of the suite's own sleeping.
#[test]
fn overwriting_goes_on_over_resets() {
    let coffer = prepared();
    // 128 MiB take 32 s; the test looks after 4 s for the last time, and once a minute from then on for the end.
    let served = Served::start(&coffer, 2, &["--lun", "0=fork:lab", "--limit", "0=/4M"]);
    assert_eq!(pass(&coffer, "ALL.Sanitize.Reset", &[served.url(0, 0), served.url(1, 0)]), 1);
    assert!(served.server.terminate().status.success());
}

#[test]
fn the_suites_own_words_are_understood() {
    let told = "skipping non-LU designator: 2\n\nSuite: One\n  Test: Good ...passed    [FAILED] PRIN command: a reset\n\
                \n  Test: Talks ...    [INFO] one\n    two\npassed\n  Test: Skips ...    [SKIPPED] not removable.\npassed\n\
                Suite: Two\n  Test: Bad ...    [FAILED] TESTUNITREADY was good\nFAILED\n    1. t.c:97  - CU_ASSERT(0)\n\
                \x20 Test: At-once ...FAILED\n  Test: Last ...    [FAILED] gone\n\nRun Summary:    passed";
    let expected = [
        ("One.Good", Verdict::Passed),
        ("One.Skips", Verdict::Skipped),
        ("One.Talks", Verdict::Passed),
        ("Two.At-once", Verdict::Failed),
        ("Two.Bad", Verdict::Failed),
        ("Two.Last", Verdict::None),
    ];
    assert_eq!(verdicts(told), expected.map(|(name, verdict)| (name.to_owned(), verdict)).into());
    assert!(SKIPS.is_sorted());
}
