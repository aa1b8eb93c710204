//! The object-store backend against a store that fails by script: every failure that issue 6 names, the bounds of what is
//! repeated and held, and that no secret is ever told.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use coffer_repo::backend::address::{Address, parse_option};
use coffer_repo::backend::object::ObjectStore;
use coffer_repo::backend::secrets::Secrets;
use coffer_repo::backend::{Backend, Given, Put, list_sorted};
use coffer_repo::entropy::Seeded;
use coffer_repo::{Error, Kind};
use coffer_tests::contract;
use coffer_tests::scripted::{BUCKET, Fault, Scripted, error};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECRET: &str = "hunter2-secret";

/// Opens the store below a prefix; options besides.
fn open_at(server: &Scripted, prefix: &str, options: &[&str]) -> ObjectStore {
    let endpoint = format!("endpoint={}", server.endpoint());
    let options =
        options.iter().chain([&endpoint.as_str()]).map(|text| parse_option(text).unwrap()).collect::<Vec<_>>();
    let Address::Object(address) = Address::parse(&format!("s3://{BUCKET}{prefix}"), &options).unwrap() else {
        panic!("a folder")
    };
    let secrets = format!("AWS_ACCESS_KEY_ID=COFFERKEY\nAWS_SECRET_ACCESS_KEY={SECRET}");
    let secrets = Secrets::parse(address.scheme(), &secrets).unwrap();
    let given = Given { secrets, entropy: Arc::new(Seeded::new(7)), minute: Arc::new(|| 0) };
    ObjectStore::open(&address, &given).unwrap()
}

fn open(server: &Scripted) -> ObjectStore {
    open_at(server, "/p", &[])
}

fn xml(status: u16, code: &'static str) -> Fault {
    Fault::Answer(status, &[("date", "Sun, 22 Nov 2026 12:00:00 GMT")], error(code, "says the script"))
}

/// Sees that an error is of that kind, says these words, and tells no secret.
fn says(error: &Error, kind: Kind, words: &[&str]) {
    let text = format!("{error:?}");
    assert_eq!(error.kind(), kind, "{text}");
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text}");
    assert!(!text.contains(SECRET) && !text.contains("Signature=") && !text.contains("x-amz"), "{text}");
}

#[test]
fn it_keeps_the_contract() {
    let server = Scripted::start();
    let made = Cell::new(0);
    contract::run(&|| {
        made.set(made.get() + 1);
        Arc::new(open_at(&server, &format!("/{}", made.get()), &[]))
    });
}

#[test]
fn what_passes_is_tried_again() {
    let server = Scripted::start();
    let store = open(&server);
    let faults = [
        xml(503, "SlowDown"),
        xml(500, "InternalError"),
        xml(429, "TooManyRequests"),
        Fault::Answer(502, &[], "<html>bad gateway</html>".into()),
        Fault::Reset,
    ];
    for (number, fault) in faults.iter().enumerate() {
        let name = format!("packs/{number}");
        server.fail("PUT", "packs/", fault.clone());
        assert_eq!(store.put(&name, &[b"abc", b"def"]).unwrap(), Put::Created, "{fault:?}");
        server.fail("GET", "packs/", fault.clone());
        assert_eq!(store.get(&name).unwrap(), b"abcdef", "{fault:?}");
        server.fail("HEAD", "packs/", fault.clone());
        assert_eq!(store.size(&name).unwrap(), Some(6), "{fault:?}");
        server.fail("GET", "list-type", fault.clone());
        assert_eq!(list_sorted(&store, "packs/").unwrap().len(), 1, "{fault:?}");
        server.fail("DELETE", "packs/", fault.clone());
        store.delete(&name).unwrap();
        assert_eq!(server.unmet(), 0, "{fault:?}");
    }
}

#[test]
fn retry_after_is_waited_for_and_patience_ends() {
    let server = Scripted::start();
    let store = open_at(&server, "/p", &["patience=3"]);
    server.plant("p/a", b"x");
    assert_eq!(store.get("a").unwrap(), b"x");
    let begun = Instant::now();
    server.fail("GET", "p/a", Fault::Answer(503, &[("retry-after", "1")], error("SlowDown", "later")));
    assert_eq!(store.get("a").unwrap(), b"x");
    assert!(begun.elapsed() >= Duration::from_secs(1), "the store asked for a second");

    let before = server.requests().len();
    server.fail("GET", "p/a", Fault::Answer(503, &[("retry-after", "3600")], error("SlowDown", "much later")));
    says(&store.get("a").unwrap_err(), Kind::Unavailable, &["slower", "SlowDown", "'a'"]);
    assert_eq!(server.requests().len() - before, 1);

    (0..100).for_each(|_| server.fail("GET", "p/a", xml(503, "SlowDown")));
    says(&store.get("a").unwrap_err(), Kind::Unavailable, &["slower", "more attempts"]);
    assert!(server.unmet() > 50, "it went on and on");
}

#[test]
fn what_never_passes_is_told_at_once_with_the_way_out() {
    let server = Scripted::start();
    let store = open(&server);
    let refusals: &[(u16, &'static str, Kind, &[&str])] = &[
        (403, "InvalidAccessKeyId", Kind::Invalid, &["credentials", "InvalidAccessKeyId"]),
        (403, "SignatureDoesNotMatch", Kind::Invalid, &["credentials"]),
        (403, "AccessDenied", Kind::Invalid, &["may not"]),
        (403, "RequestTimeTooSkewed", Kind::Invalid, &["clock", "22 Nov 2026 12:00:00"]),
        (400, "AuthorizationHeaderMalformed", Kind::Invalid, &["region"]),
        (301, "PermanentRedirect", Kind::Invalid, &["region", "endpoint"]),
        (404, "NoSuchBucket", Kind::Invalid, &["no such bucket"]),
        (403, "QuotaExceeded", Kind::Full, &["quota"]),
        (507, "InsufficientStorage", Kind::Full, &["quota"]),
    ];
    for (status, code, kind, words) in refusals {
        server.fail("PUT", "p/x", xml(*status, code));
        says(&store.put("x", &[b"x"]).unwrap_err(), *kind, words);
        server.fail("GET", "p/x", xml(*status, code));
        says(&store.get("x").unwrap_err(), *kind, words);
        server.fail("GET", "list-type", xml(*status, code));
        says(&list_sorted(&store, "").unwrap_err(), *kind, words);
    }
    assert_eq!((server.unmet(), server.requests().len()), (0, 3 * refusals.len()), "something was tried again");
}

#[test]
fn a_missing_bucket_is_no_missing_object() {
    let server = Scripted::start();
    let endpoint = parse_option(&format!("endpoint={}", server.endpoint())).unwrap();
    let Address::Object(address) = Address::parse("s3://elsewhere/p", &[endpoint]).unwrap() else { panic!("a folder") };
    let secrets = Secrets::parse(address.scheme(), "AWS_ACCESS_KEY_ID=k\nAWS_SECRET_ACCESS_KEY=s").unwrap();
    let given = Given { secrets, entropy: Arc::new(Seeded::new(7)), minute: Arc::new(|| 0) };
    let store = ObjectStore::open(&address, &given).unwrap();
    for error in [
        store.size("repo").unwrap_err(),
        store.get("repo").unwrap_err(),
        store.get_range("repo", 0, &mut [0]).unwrap_err(),
        store.put("repo", &[b"x"]).unwrap_err(),
        list_sorted(&store, "").unwrap_err(),
    ] {
        says(&error, Kind::Invalid, &["no such bucket", "s3://elsewhere/p"]);
    }
}

#[test]
fn nobody_at_the_address_is_told_soon() {
    let server = Scripted::start();
    let store = open(&server);
    drop(server);
    says(&store.get("repo").unwrap_err(), Kind::Unavailable, &["cannot be reached", "endpoint"]);
}

#[test]
fn a_put_whose_answer_was_lost_knows_its_own_bytes() {
    let server = Scripted::start();
    let store = open_at(&server, "/p", &["part=5M"]);
    server.fail("PUT", "p/claim", Fault::LoseAnswer);
    assert_eq!(store.put("claim", &[b"mine"]).unwrap(), Put::Created);
    assert_eq!(store.put("claim", &[b"mine"]).unwrap(), Put::Exists);

    // Lost before it was carried out, and somebody else was quicker.
    server.plant("p/decision", b"theirs");
    server.fail("PUT", "p/decision", Fault::Reset);
    assert_eq!(store.put("decision", &[b"mine"]).unwrap(), Put::Exists);
    assert_eq!(store.get("decision").unwrap(), b"theirs");

    // The same for an upload of several parts, at its completion.
    let large = vec![7; 20 << 20];
    server.fail("POST", "uploadId", Fault::LoseAnswer);
    assert_eq!(store.put("packs/large", &[&large]).unwrap(), Put::Created);
    assert!(store.get("packs/large").unwrap() == large);
    assert_eq!(server.unmet(), 0);
}

#[test]
fn large_objects_go_in_parts_and_lose_none() {
    let server = Scripted::start();
    let store = open_at(&server, "/p", &["part=5M"]);
    let large: Vec<u8> = (0..30u32 << 20).map(|i| (i.wrapping_mul(31) >> 7).to_le_bytes()[0]).collect();
    let (head, tail) = large.split_at(12_345_678);
    server.fail("PUT", "partNumber=2", xml(503, "SlowDown"));
    server.fail("PUT", "partNumber=3", Fault::Reset);
    server.fail("PUT", "partNumber=4", Fault::LoseAnswer);
    server.fail("POST", "uploads", xml(500, "InternalError"));
    assert_eq!(store.put("packs/large", &[head, tail]).unwrap(), Put::Created);
    assert_eq!(server.unmet(), 0);
    assert!(store.get("packs/large").unwrap() == large);
    assert_eq!(store.put("packs/large", &[&large[1..]]).unwrap(), Put::Exists);
    assert!(store.get("packs/large").unwrap() == large);

    // What says 200 and an error in its body did not succeed.
    server.fail("POST", "uploadId", Fault::Answer(200, &[], error("InternalError", "later")));
    assert_eq!(store.put("packs/other", &[&large]).unwrap(), Put::Created);
    assert!(store.get("packs/other").unwrap() == large);
}

#[test]
fn broken_bodies_are_read_again_or_are_errors() {
    let server = Scripted::start();
    let store = open_at(&server, "/p", &["patience=2"]);
    let content: Vec<u8> = (0..100_000u32).map(|i| i.to_le_bytes()[0]).collect();
    server.plant("p/a", &content);
    for fault in [Fault::CutBody(1000), Fault::CutBody(0), Fault::ShortRange(10)] {
        server.fail("GET", "p/a", fault.clone());
        let mut out = vec![0; 50_000];
        store.get_range("a", 1000, &mut out).unwrap();
        assert!(out == content[1000..51_000], "{fault:?}");
    }
    server.fail("GET", "p/a", Fault::CutBody(99_999));
    assert!(store.get("a").unwrap() == content);
    assert_eq!(server.unmet(), 0);

    // Always: the connection's fault is no damage, and an answer that is whole and short is not the object.
    (0..200).for_each(|_| server.fail("GET", "p/a", Fault::CutBody(5)));
    says(&store.get("a").unwrap_err(), Kind::Unavailable, &["connection", "'a'"]);
}

#[test]
fn what_is_gone_or_shorter_behind_our_back_is_told() {
    let server = Scripted::start();
    let store = open(&server);
    server.plant("p/a", b"0123456789");
    let mut out = [0; 4];
    store.get_range("a", 6, &mut out).unwrap();
    server.plant("p/a", b"01234567");
    says(&store.get_range("a", 6, &mut out).unwrap_err(), Kind::Corrupt, &["'a'"]);
    server.plant("p/a", b"");
    says(&store.get_range("a", 6, &mut out).unwrap_err(), Kind::Corrupt, &["'a'"]);
    store.delete("a").unwrap();
    says(&store.get_range("a", 6, &mut out).unwrap_err(), Kind::NotFound, &["'a'"]);
}

#[test]
fn a_server_that_ignores_ranges_gives_no_wrong_bytes() {
    let server = Scripted::start();
    let store = open_at(&server, "/p", &["patience=1"]);
    server.plant("p/a", b"0123456789");
    (0..100).for_each(|_| server.fail("GET", "p/a", Fault::Answer(200, &[], "0123".into())));
    assert!(store.get_range("a", 4, &mut [0; 4]).is_err());
}

#[test]
fn a_late_read_is_asked_for_twice() {
    let server = Scripted::start();
    let store = open(&server);
    server.plant("p/a", b"0123456789");
    let mut out = [0; 4];
    // On a busy machine reads are late by themselves, and use up what may be asked for twice: then once more.
    let was_asked_twice = (0..20).any(|_| {
        (0..40).for_each(|_| store.get_range("a", 0, &mut out).unwrap());
        let before = server.requests().len();
        server.fail("GET", "p/a", Fault::Late(Duration::from_secs(2)));
        store.get_range("a", 2, &mut out).unwrap();
        assert_eq!(&out, b"2345");
        server.requests().len() - before == 2
    });
    assert!(was_asked_twice);

    let patient = open_at(&server, "/p", &["hedge=off"]);
    (0..40).for_each(|_| patient.get_range("a", 0, &mut out).unwrap());
    let before = server.requests().len();
    server.fail("GET", "p/a", Fault::Late(Duration::from_millis(300)));
    patient.get_range("a", 2, &mut out).unwrap();
    assert_eq!(server.requests().len() - before, 1);
}

#[test]
fn requests_are_counted_and_as_few_as_can_be() {
    let server = Scripted::start();
    let store = open(&server);
    assert_eq!(store.put("a", &[b"0123456789"]).unwrap(), Put::Created);
    store.get("a").unwrap();
    store.get_range("a", 1, &mut [0; 3]).unwrap();
    store.get_suffix("a", 3).unwrap();
    store.size("a").unwrap();
    store.delete("a").unwrap();
    let counts = store.requests();
    // One of the GETs asks once whether the bucket has object lock, which decides how objects are deleted.
    assert_eq!((counts["PUT"], counts["GET"], counts["HEAD"], counts["DELETE"]), (1, 4, 1, 1), "{counts:?}");
}

#[test]
fn listings_of_many_pages_are_complete_and_may_stop() {
    let server = Scripted::start();
    let store = open(&server);
    (0..2500).for_each(|i| server.plant(&format!("p/packs/{i:05}"), &[0; 3]));
    server.plant("p/not a name", b"x");
    server.plant("p/packs/tmp dir/x", b"x");
    server.fail("GET", "continuation-token=p/packs/01", xml(503, "SlowDown"));
    let listed = list_sorted(&store, "").unwrap();
    assert_eq!((listed.len(), listed[7].name.as_str(), listed[7].size), (2500, "packs/00007", 3));
    let before = server.requests().len();
    let mut seen = 0;
    let stopped = store.list("packs/", &mut |_| {
        seen += 1;
        Err(Error::new(Kind::Cancelled, "enough"))
    });
    assert_eq!((stopped.unwrap_err().kind(), seen), (Kind::Cancelled, 1));
    assert!(server.requests().len() - before <= 12, "all pages were fetched");
}

#[test]
fn limits_are_kept() {
    let server = Scripted::start();
    let store = open_at(&server, "/p", &["upload=1M", "download=00:00-00:01=1M"]);
    let content = vec![1; 3 << 20];
    let begun = Instant::now();
    assert_eq!(store.put("a", &[&content]).unwrap(), Put::Created);
    // A quarter of a second may go at once, and the last piece is not waited for.
    assert!(begun.elapsed() >= Duration::from_millis(1500), "up: {:?}", begun.elapsed());
    let begun = Instant::now();
    assert!(store.get("a").unwrap() == content);
    assert!(begun.elapsed() >= Duration::from_millis(1500), "down: {:?}", begun.elapsed());
}
