//! The whole of libiscsi's conformance suite, what destroys data, sanitizes and needs two paths included, against a fork.
//!
//! ```text
//!   iscsi-test-cu -t ALL  --portal 1-->  target  --LUN 0-->  fork of an empty disk
//!                         --portal 2-->          --LUN 1-->  its point: the one test of write-protected disks
//! ```
//! Not here: what the answers are made of (`iscsi`'s own tests). What holds: nothing fails but what is in [`FAILS`], nothing is skipped but
//! what is in [`SKIPS`], each with its reason, and all that is there does.

use crate::iscsi::Served;
use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::{attempt, run};
use std::collections::BTreeMap;

const REMOVABLE: &str = "is of media that can be taken out";
const CRYPTO: &str = "has a part for CRYPTOGRAPHIC ERASE: a fork reads through keys that its point needs too";
const PHYSICAL: &str = "is of disks that tell of physical blocks of several logical ones";

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
    ("Sanitize.CryptoErase", CRYPTO),
    ("Sanitize.Readonly", CRYPTO),
    ("Sanitize.Reservations", CRYPTO),
    ("StartStopUnit.Simple", REMOVABLE),
    ("WriteSame10.InvalidDataOutSize", PHYSICAL),
    ("WriteSame10.UnmapUnaligned", PHYSICAL),
    ("WriteSame16.InvalidDataOutSize", PHYSICAL),
    ("WriteSame16.UnmapUnaligned", PHYSICAL),
];

/// Tests that are wrong themselves, and how.
const FAILS: &[(&str, &str)] = &[(
    "Sanitize.Reset",
    "finds the disk reserved: Sanitize.Reservations before it took RESERVE(6) on the second path and did not release it. With one \
     path it expects a sanitize to be under way 5 s after it began, which no standard demands, and a fork's is over at once",
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

#[test]
fn a_fork_conforms() {
    let coffer = Coffer::new();
    image::make(&coffer.path("empty.raw"), 128 * MIB, &[], 20_701);
    coffer.run(&["backup", "-w", "web", "vda=empty.raw"]);
    coffer.run(&["fork", "create", "lab", "web@latest"]);
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

    let mut suite = coffer.outside("iscsi-test-cu");
    let ended = attempt(suite.args(["--dataloss", "-v", "-t", "ALL.ReadOnly"]).arg(served.url(0, 1)));
    let expected = BTreeMap::from([("ReadOnly.ReadOnlySBC".to_owned(), Verdict::Passed)]);
    assert_eq!(self::verdicts(&ended.out), expected, "{ended}");
    assert!(served.server.terminate().status.success());
    coffer.assert_restores("web@latest", "empty.raw");
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
