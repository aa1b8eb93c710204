//! The fuzz driver: every decoder of untrusted bytes or text, fed with mutated inputs that it accepts. None panics,
//! none allocates out of proportion to its input, and what is accepted is written again as it was, where the format
//! promises one spelling.
//!
//! Not here: coverage guidance (cargo-fuzz, where there is a nightly compiler). What holds: everything follows from the
//! seed; work is bounded by a count. More rounds: `COFFER_FUZZ_ROUNDS`; other mutations: `COFFER_FUZZ_SEED`.

#![allow(unsafe_code, reason = "the trait of allocators is unsafe; this one counts and passes calls on unchanged")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test is a program: it may read its environment")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "seeds are told, so that a failure can be repeated")]

use coffer_gateway::control::{Addition, Answer, ExportReport, Question};
use coffer_gateway::fork::{ForkHeader, Waypoint};
use coffer_gateway::nbd::proto::handshake::{self, Go, Info, MetaQuery};
use coffer_gateway::nbd::proto::transmission::{self, Reply, Request, StatusQuery};
use coffer_gateway::nbd::proto::{Framing, MAX_STRING};
use coffer_iscsi::pdu::{self, HEAD, Head, opcode};
use coffer_mover::image_format::ImageFormat;
use coffer_mover::location::{Location, SourceSpec};
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, check_name, check_prefix, list_sorted};
use coffer_repo::cbor::Value;
use coffer_repo::certificate::Certificate;
use coffer_repo::crypto::{Codec, KeySlot};
use coffer_repo::descriptor::Descriptor;
use coffer_repo::disk_map::{self, Hint, Node};
use coffer_repo::epoch::Epoch;
use coffer_repo::features;
use coffer_repo::fork_key::WrappedForkKey;
use coffer_repo::id::{PackUid, RecipientId, RecordId, RepoId, SlotId, SnapshotId, WorkloadTag};
use coffer_repo::index_delta::{self, IndexDelta};
use coffer_repo::key_slot::{self, Credential};
use coffer_repo::location::{IndexKey, PackKind};
use coffer_repo::moved::{self, Moved, Relocated};
use coffer_repo::note::{Note, Remark};
use coffer_repo::pack::contents::{self, FOOTER_LEN};
use coffer_repo::pack::{self, Footer, PackHeader};
use coffer_repo::parity::{self, Parity};
use coffer_repo::point::PointName;
use coffer_repo::repository::Repository;
use coffer_repo::retention::Stretch;
use coffer_repo::seal::{Compressor, Decompressor};
use coffer_repo::sealed::{ObjectKind, Unverified};
use coffer_repo::snapshot::{Claim, ClaimName, Condemned, Copied, Decision, Forget, Origin};
use coffer_repo::tier::{Tier, TierName};
use coffer_repo::time::Timestamp;
use coffer_repo::verified::{Level, Proof, Verified};
use coffer_tests::dice::Dice;
use coffer_tests::golden::{Golden, open};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const ROUNDS: u64 = 20_000;
const SEED: u64 = 5;

thread_local! {
    /// Bytes that this thread has asked for, given back or not.
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counted.
struct Counted;

// SAFETY: every call goes to the system's allocator with the arguments it came with.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no counter any more.
        let _ = ALLOCATED.try_with(|n| n.set(n.get().saturating_add(layout.size())));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// What a decoder made of an input.
enum Outcome {
    Refused,
    Accepted,
    /// Accepted, and written again as something else.
    Respelt,
}

type Decode<'a> = dyn Fn(&[u8]) -> Outcome + 'a;

/// A decoder with inputs that it accepts.
struct Decoder<'a> {
    name: &'static str,
    inputs: Vec<Vec<u8>>,
    /// Bytes it may allocate whatever its input: what it decompresses into, say.
    allowance: usize,
    decode: Box<Decode<'a>>,
}

impl<'a> Decoder<'a> {
    fn new(name: &'static str, inputs: Vec<Vec<u8>>, decode: impl Fn(&[u8]) -> Outcome + 'a) -> Self {
        Decoder { name, inputs, allowance: 64 << 10, decode: Box::new(decode) }
    }

    /// A decoder of text.
    fn text(name: &'static str, inputs: &[&str], decode: impl Fn(&str) -> Outcome + 'a) -> Self {
        let inputs = inputs.iter().map(|text| text.as_bytes().to_vec()).collect();
        Decoder::new(name, inputs, move |bytes| decode(&String::from_utf8_lossy(bytes)))
    }

    /// Runs mutated inputs through it. An error says what it did to which bytes.
    fn drive(&self, seed: u64, rounds: u64) -> Result<(), String> {
        let mut dice = Dice::new(seed);
        let (mut accepted, mut refused) = (0, 0);
        for input in &self.inputs {
            if !matches!(self.run(input)?, Outcome::Accepted) {
                return Err(self.complain("does not accept", input));
            }
        }
        for _ in 0..rounds {
            let mut bytes = self.inputs[dice.index(self.inputs.len())].clone();
            for _ in 0..1 + dice.below(4) {
                mutate(&mut bytes, &self.inputs, &mut dice);
            }
            match self.run(&bytes)? {
                Outcome::Refused => refused += 1,
                Outcome::Accepted => accepted += 1,
                Outcome::Respelt => return Err(self.complain("writes otherwise", &bytes)),
            }
        }
        println!("{}: {accepted} accepted, {refused} refused", self.name);
        if refused == 0 { Err(format!("{} refuses nothing", self.name)) } else { Ok(()) }
    }

    fn run(&self, bytes: &[u8]) -> Result<Outcome, String> {
        let before = ALLOCATED.get();
        // A panic comes first: printing its backtrace allocates what no decoder would.
        let outcome =
            catch_unwind(AssertUnwindSafe(|| (self.decode)(bytes))).map_err(|_| self.complain("panics at", bytes))?;
        let allocated = ALLOCATED.get() - before;
        if allocated > self.allowance + 256 * bytes.len() {
            return Err(self.complain(&format!("allocates {allocated} bytes for"), bytes));
        }
        Ok(outcome)
    }

    fn complain(&self, what: &str, bytes: &[u8]) -> String {
        let hex: String = bytes.iter().take(2000).map(|b| format!("{b:02x}")).collect();
        format!("{} {what} these {} bytes: {hex}", self.name, bytes.len())
    }
}

/// One change: a flipped bit, a telling byte or number, a cut, more bytes, a repetition, or a piece of another input.
fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], dice: &mut Dice) {
    const NUMBERS: [u64; 10] = [0, 1, 0x7f, 0x80, 0xff, 0xffff, 1 << 20, 0x7fff_ffff, 0xffff_ffff, u64::MAX];
    if bytes.is_empty() {
        bytes.push(0);
    }
    let at = dice.index(bytes.len());
    match dice.below(8) {
        0 | 1 => bytes[at] ^= 1 << dice.below(8),
        2 => bytes[at] = u8::try_from(dice.below(256)).unwrap(),
        3 => bytes.truncate(at),
        4 => {
            let mut more = vec![0; 1 + dice.index(40)];
            dice.noise(&mut more);
            bytes.splice(at..at, more);
        }
        5 => {
            let number = NUMBERS[dice.index(NUMBERS.len())];
            let width = [1, 2, 4, 8][dice.index(4)];
            let big_endian = number.to_be_bytes();
            let spelt = if dice.once_in(2) { &number.to_le_bytes()[..width] } else { &big_endian[8 - width..] };
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&spelt[..end - at]);
        }
        6 => {
            let piece = bytes[dice.range(bytes.len(), 64)].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => {
            let other = &others[dice.index(others.len())];
            let piece = other[dice.range(other.len(), 64)].to_vec();
            let end = (at + dice.index(64)).min(bytes.len());
            bytes.splice(at..end, piece);
        }
    }
}

/// Accepted or refused, where nothing is written.
fn read_only<T, E>(decoded: Result<T, E>) -> Outcome {
    if decoded.is_ok() { Outcome::Accepted } else { Outcome::Refused }
}

/// Accepted only if it is written as the very same bytes.
fn one_spelling<T, E>(bytes: &[u8], decoded: Result<T, E>, encode: impl Fn(&T) -> Vec<u8>) -> Outcome {
    match decoded {
        Ok(value) if encode(&value) == bytes => Outcome::Accepted,
        Ok(_) => Outcome::Respelt,
        Err(_) => Outcome::Refused,
    }
}

/// Accepted only if what it is written as is read as the same again; unknown parts may get lost.
fn one_meaning<T: PartialEq, E>(
    decoded: Result<T, E>,
    encode: impl Fn(&T) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) -> Outcome {
    match decoded {
        Ok(value) if decode(&encode(&value)).is_ok_and(|again| again == value) => Outcome::Accepted,
        Ok(_) => Outcome::Respelt,
        Err(_) => Outcome::Refused,
    }
}

/// The frozen repository as a source of inputs.
struct Corpus {
    memory: Memory,
    repo: Arc<Repository>,
    key_file: String,
}

impl Corpus {
    fn new() -> Self {
        let golden = Golden::new("v1-aes");
        let memory = golden.memory();
        let repo = open(&golden, Arc::new(memory.clone_state()), "password").unwrap();
        repo.points().unwrap();
        let key_file = std::fs::read_to_string(golden.dir().join("key")).unwrap();
        Corpus { memory, repo, key_file }
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        list_sorted(&self.memory, prefix).unwrap().into_iter().map(|o| o.name).collect()
    }

    fn objects(&self, prefix: &str) -> Vec<Vec<u8>> {
        self.names(prefix).iter().map(|name| self.memory.get(name).unwrap()).collect()
    }

    fn bodies(&self, kind: ObjectKind, prefix: &str, end: &str) -> Vec<Vec<u8>> {
        let names = self.names(prefix);
        names.iter().filter(|n| n.ends_with(end)).map(|n| self.repo.get_record(kind, n).unwrap().body).collect()
    }

    /// Kind, uid, table of contents and length of each pack.
    fn packs(&self) -> Vec<(PackKind, PackUid, Vec<contents::Entry>, u64)> {
        let names = PackKind::ALL.into_iter().flat_map(|kind| self.names(kind.prefix()));
        names
            .map(|name| {
                let (kind, uid) = pack::parse_name(&name).unwrap();
                let (entries, len) = pack::read_contents(&self.memory, self.repo.keys(), kind, uid).unwrap();
                (kind, uid, entries, len)
            })
            .collect()
    }

    /// Raw bytes of all stored nodes, and of the roots in claims.
    fn nodes(&self) -> Vec<Vec<u8>> {
        let mut nodes: Vec<Vec<u8>> = Vec::new();
        for (kind, uid, entries, _) in self.packs().into_iter().filter(|(kind, ..)| *kind == PackKind::Tree) {
            let pack = self.repo.open_pack(kind, uid).unwrap();
            for at in entries.iter().map(|e| e.location) {
                let mut sealed = vec![0; at.stored_len as usize];
                self.memory.get_range(&pack::name(kind, uid), at.offset.into(), &mut sealed).unwrap();
                let (codec, packed) = pack.open_frame(&at, &mut sealed).unwrap();
                let mut raw = Vec::new();
                Decompressor::new().unwrap().decompress(codec, packed, at.raw_len, &mut raw).unwrap();
                nodes.push(raw);
            }
        }
        let points = self.repo.points().unwrap().snapshots;
        let roots = points.iter().flat_map(|s| &s.disks).map(|d| d.root.clone()).filter(|root| !root.is_empty());
        nodes.extend(roots);
        nodes
    }
}

/// Decoders of the repository's objects.
fn objects(corpus: &Corpus) -> Vec<Decoder<'_>> {
    let keys = corpus.repo.keys();
    let window = corpus.repo.geometry().window;
    let unsigned = |bytes: Vec<u8>| bytes[..bytes.len() - 64].to_vec();
    let key_file = Credential::from_key_file(&corpus.key_file).unwrap();
    let with_digest = |bytes: &[u8]| [bytes, blake3::hash(bytes).as_bytes()].concat();
    let mut claims = corpus.bodies(ObjectKind::Claim, "snapshots/", "/claim");
    let origin = Origin { repo: RepoId([3; 16]), snapshot: SnapshotId([4; 16]) };
    let copied = Some(Copied { origin, begun: Timestamp::from_seconds(5).unwrap() });
    let copies = claims.iter().map(|claim| Claim { copied, ..Claim::decode(claim).unwrap() }.encode().unwrap());
    claims.extend(copies.collect::<Vec<_>>());
    let cbor: Vec<Vec<u8>> = [
        claims.clone(),
        corpus.bodies(ObjectKind::Note, "notes/", ""),
        corpus.bodies(ObjectKind::Moved, "moved/", ""),
        corpus.bodies(ObjectKind::Session, "sessions/", ""),
    ]
    .concat();
    let id = SnapshotId([7; 16]);
    let sealed = corpus.names("forgets/").remove(0);
    let protect = Remark::Protect { reason: Some("the last good one".into()) };
    let unprotect = Remark::Unprotect { ends: vec![RecordId([1; 16]), RecordId([2; 16])] };
    let time = Some(Timestamp::from_seconds(1_795_226_400).unwrap());
    let notes = [protect, unprotect].map(|remark| Note { snapshot: id, time, remark }.encode().unwrap());
    let notes = [corpus.bodies(ObjectKind::Note, Note::PREFIX, ""), notes.into()].concat();
    let options = vec![("storage-class".to_owned(), "GLACIER".to_owned())];
    let tier = Tier { url: "s3://bucket/cold".into(), options, added: Timestamp::from_seconds(9).unwrap() };
    let epoch = Epoch { number: 2, public: keys.data_key().1, time: Timestamp::from_seconds(1).unwrap() };
    vec![
        // Signed again, so that mutations get behind the signature.
        Decoder::new("descriptor", vec![unsigned(corpus.memory.get("repo").unwrap())], move |bytes| {
            let signature = keys.signer().sign(&[b"coffer v1 descriptor", bytes]);
            let signed = [bytes, &signature].concat();
            let _ = Descriptor::check_format(bytes);
            read_only(Descriptor::decode(keys, &signed))
        }),
        // With a digest that holds; a key file costs nothing to try, unlike a passphrase at a mutated cost.
        Decoder::new(
            "key slot",
            corpus.objects("keys/").into_iter().map(|slot| slot[..slot.len() - 32].to_vec()).collect(),
            move |bytes| {
                let slot = with_digest(bytes);
                let _ = key_slot::summarise(SlotId([1; 16]), bytes);
                let _ = key_slot::open_slot(SlotId([1; 16]), &slot, &key_file);
                read_only(key_slot::summarise(SlotId([1; 16]), &slot))
            },
        ),
        Decoder::new("sealed object", vec![corpus.memory.get(&sealed).unwrap()], move |bytes| {
            read_only(Unverified::open(keys, ObjectKind::Forget, &sealed, bytes))
        }),
        Decoder::new("claim", claims, |bytes| {
            one_meaning(Claim::decode(bytes), |claim| claim.encode().unwrap(), Claim::decode)
        }),
        Decoder::new("decision", corpus.bodies(ObjectKind::Decision, "snapshots/", "/decision"), |bytes| {
            one_meaning(Decision::decode(bytes), |decision| decision.encode().unwrap(), Decision::decode)
        }),
        Decoder::new("forget", corpus.bodies(ObjectKind::Forget, "forgets/", ""), move |bytes| {
            let decode = |bytes: &[u8]| Forget::decode(id, bytes);
            one_meaning(decode(bytes), |forget| forget.encode().unwrap(), decode)
        }),
        Decoder::new("condemned", corpus.bodies(ObjectKind::Condemned, "condemned/", ""), |bytes| {
            one_meaning(Condemned::decode(bytes), |condemned| condemned.encode().unwrap(), Condemned::decode)
        }),
        Decoder {
            // The tables of the code are made when they are first needed.
            allowance: 20 << 20,
            ..Decoder::new("parity", vec![parity_object()], |object| {
                // Of the pack, the first half is left: four shards of six are to be restored.
                let repair = |parity: Parity<'_>| parity.repair(PARITY_OF[..PARITY_OF.len() / 2].to_vec());
                match Parity::decode(PackKind::Data, PARITY_PACK, object) {
                    Ok(parity) => read_only(repair(parity).map(|repaired| assert_eq!(repaired.bytes, PARITY_OF))),
                    Err(_) => Outcome::Refused,
                }
            })
        },
        Decoder::new("verified record", verified_bodies(), |bytes| {
            one_meaning(Verified::decode(bytes), |verified| verified.encode().unwrap(), Verified::decode)
        }),
        Decoder::new("fork header", vec![fork_header()], |bytes| {
            one_meaning(ForkHeader::decode(bytes), |header| header.encode().unwrap(), ForkHeader::decode)
        }),
        Decoder::new("waypoint", vec![waypoint()], |bytes| {
            one_meaning(Waypoint::decode(bytes), |waypoint| waypoint.encode().unwrap(), Waypoint::decode)
        }),
        Decoder::new("moved record", moved_bodies(), |bytes| {
            one_meaning(Moved::decode(bytes), |moved| moved.encode().unwrap(), Moved::decode)
        }),
        Decoder::new("note", notes, |bytes| {
            one_meaning(Note::decode(bytes), |note| note.encode().unwrap(), Note::decode)
        }),
        Decoder::new("epoch", vec![epoch.encode().unwrap()], |bytes| {
            one_meaning(Epoch::decode(2, bytes), |epoch| epoch.encode().unwrap(), |bytes| Epoch::decode(2, bytes))
        }),
        Decoder::new("tier", vec![tier.encode().unwrap()], |bytes| {
            one_meaning(Tier::decode(bytes), |tier| tier.encode().unwrap(), Tier::decode)
        }),
        Decoder::new("certificate", corpus.bodies(ObjectKind::Certificate, "writers/", ""), |bytes| {
            one_meaning(Certificate::decode(bytes), |certificate| certificate.encode().unwrap(), Certificate::decode)
        }),
        Decoder::new("index delta", corpus.bodies(ObjectKind::IndexDelta, "index/", ""), |bytes| {
            one_spelling(bytes, IndexDelta::decode(bytes), |delta| delta.encode().unwrap())
        }),
        Decoder::new("disk-map node", corpus.nodes(), move |bytes| {
            let _ = disk_map::identity(bytes);
            let decode = |bytes: &[u8]| Node::decode(bytes, window);
            one_meaning(decode(bytes), |node| node.encode().unwrap(), decode)
        }),
        Decoder::new("CBOR", cbor, |bytes| one_spelling(bytes, Value::decode(bytes), |value| value.encode().unwrap())),
    ]
}

/// Decoders of what packs are made of.
fn packs(corpus: &Corpus) -> Vec<Decoder<'_>> {
    let headers = PackKind::ALL.into_iter().flat_map(|kind| corpus.objects(kind.prefix())).map(|pack| {
        let len = PackHeader::len_of(&pack).unwrap();
        pack[..len].to_vec()
    });
    let headers: Vec<Vec<u8>> = headers.collect();
    let slots = headers.iter().filter(|h| h.len() > 200).map(|h| h[128..h.len() - 64].to_vec()).collect();
    let (kind, uid, entries, len) = corpus.packs().remove(0);
    let object = corpus.memory.get(&pack::name(kind, uid)).unwrap();
    let footer_bytes = *object.last_chunk::<FOOTER_LEN>().unwrap();
    let footer = Footer::decode(&footer_bytes, uid, len).unwrap();
    let mut text = vec![b'x'; 50_000];
    Dice::new(1).noise(&mut text[20_000..]);
    let compressed = Compressor::new(1).unwrap().compress(&text).unwrap().1.to_vec();
    let raw_len = u32::try_from(text.len()).unwrap();
    vec![
        Decoder::new("pack header", headers, |bytes| {
            let again = |header: &PackHeader| [header.encode().unwrap(), vec![0; 64]].concat();
            let decode = |bytes: &[u8]| PackHeader::decode(bytes).map(|signed| signed.header);
            one_meaning(decode(bytes), again, decode)
        }),
        Decoder::new("pack key slot", slots, |bytes| {
            let again = |(slot, rest): &(KeySlot, Vec<u8>)| {
                let mut out = Vec::new();
                slot.encode(&mut out).unwrap();
                [out, rest.clone()].concat()
            };
            one_spelling(bytes, KeySlot::decode(bytes).map(|(slot, rest)| (slot, rest.to_vec())), again)
        }),
        Decoder::new("pack footer", vec![footer_bytes.to_vec()], move |bytes| match bytes.first_chunk() {
            Some(footer) => one_spelling(footer, Footer::decode(footer, uid, len), |f| f.encode().unwrap().to_vec()),
            None => Outcome::Refused,
        }),
        Decoder::new("table of contents", vec![contents::encode(&entries)], move |bytes| {
            one_spelling(bytes, contents::decode(bytes, kind, &footer), |entries| contents::encode(entries))
        }),
        Decoder {
            // What it decompresses into, and the state of zstd.
            allowance: 1 << 20,
            ..Decoder::new("compressed chunk", vec![compressed], move |bytes| {
                let mut out = Vec::new();
                read_only(Decompressor::new().unwrap().decompress(Codec::Zstd, bytes, raw_len, &mut out))
            })
        },
    ]
}

/// Decoders of names and of what people type.
fn texts(corpus: &Corpus) -> Vec<Decoder<'_>> {
    let points = corpus.repo.points().unwrap().snapshots;
    let point = points[0].id().to_string();
    let names = corpus.names("");
    let of = |prefix: &str| -> Vec<Vec<u8>> {
        names.iter().filter(|n| n.starts_with(prefix)).map(|n| n.clone().into_bytes()).collect()
    };
    let as_text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let spelt = |bytes: &[u8], name: Option<String>| one_spelling(bytes, name.ok_or(()), |n| n.clone().into_bytes());
    vec![
        Decoder::text(
            "POINT",
            &["web@latest", "web@-1:root", "web@2026-11-21T02-00-00Z:big", &point, "web@latest:root/part1/etc/passwd"],
            move |text| {
                let name = PointName::parse(text);
                if let Ok(name) = &name
                    && let Ok(snapshot) = name.find(&points)
                {
                    let _ = name.find_disk(snapshot);
                }
                read_only(name)
            },
        ),
        Decoder::text("location", &["-", "a/b.raw", "nbd://h:1/x", "nbd+unix:///e?socket=/s", "./a:b"], move |text| {
            one_meaning(text.parse::<Location>(), |l| l.to_string().into_bytes(), |b| as_text(b).parse())
        }),
        Decoder::text("source", &["root=a.raw", "./x=y", "nbd://h/d", "d=nbd+unix:///e?socket=/s", "-"], |text| {
            read_only(text.parse::<SourceSpec>())
        }),
        Decoder::text("time", &["2026-11-21T02-00-00Z", "1970-01-01T00-00-00Z"], |text| {
            one_spelling(text.as_bytes(), text.parse::<Timestamp>(), |time| time.to_string().into_bytes())
        }),
        Decoder::text("length of time", &["2y5m7d3h", "1h", "36m"], move |text| {
            one_meaning(text.parse::<Stretch>(), |length| length.to_string().into_bytes(), |b| as_text(b).parse())
        }),
        Decoder::text("key file", &[&corpus.key_file], |text| read_only(Credential::from_key_file(text))),
        Decoder::text("feature", &["features/compat-a", "features/rocompat-b"], |text| {
            read_only(features::access_with(text))
        }),
        Decoder::text("object name", &["repo", "packs/00/0123", "a/b/c"], |text| {
            let _ = check_prefix(text);
            read_only(check_name(text))
        }),
        Decoder::new("name of a claim", of("snapshots/"), move |bytes| {
            let name = |text: &str| {
                let (name, part) = ClaimName::parse(text)?;
                Some(if part == coffer_repo::snapshot::ClaimPart::Claim { name.claim() } else { name.decision() })
            };
            spelt(bytes, name(&as_text(bytes)))
        }),
        Decoder::new("name of a pack", [of("packs/"), of("trees/")].concat(), move |bytes| {
            spelt(bytes, pack::parse_name(&as_text(bytes)).map(|(kind, uid)| pack::name(kind, uid)))
        }),
        Decoder::text("name of an epoch", &[&Epoch::name(2)], move |text| {
            spelt(text.as_bytes(), Epoch::parse_name(text).map(Epoch::name))
        }),
        Decoder::text("name of a tier", &["tiers/cold", "tier/000102030405060708090a0b0c0d0e0f/deep-1"], move |text| {
            let mark = TierName::of_mark(text).map(|(repo, name)| name.mark(repo));
            spelt(text.as_bytes(), TierName::of_object(text).map(|name| name.object()).or(mark))
        }),
        Decoder::new("name of an index delta", of("index/"), move |bytes| {
            spelt(bytes, index_delta::parse_name(&as_text(bytes)).map(|(signer, seq)| index_delta::name(signer, seq)))
        }),
        Decoder::text("name of a moved record", &[&moved::name(PackUid([7; 16]), RecordId([8; 16]))], move |text| {
            spelt(text.as_bytes(), moved::parse_name(text).map(|(pack, record)| moved::name(pack, record)))
        }),
        Decoder::new("name of a forget", of("forgets/"), move |bytes| {
            spelt(bytes, Forget::parse(&as_text(bytes)).map(Forget::name))
        }),
        Decoder::new("name of a note", of(Note::PREFIX), move |bytes| {
            spelt(bytes, Note::parse(&as_text(bytes)).map(Note::name))
        }),
        Decoder::new("head of an image", vec![b"QFI\xfb\0\0\0\x03".to_vec(), b"KDMV\x01\0\0\0".to_vec()], |bytes| {
            read_only(ImageFormat::of_head(bytes).ok_or(()))
        }),
    ]
}

fn fork_header() -> Vec<u8> {
    let time = Timestamp::from_seconds(1_795_226_400).unwrap();
    let claim = |id| ClaimName { tag: WorkloadTag([1; 16]), time, id: SnapshotId([id; 16]) };
    let key = WrappedForkKey { recipient: RecipientId([4; 16]), sealed: vec![5; 80] };
    let header = ForkHeader {
        repo: RepoId([3; 16]),
        point: claim(1),
        workload: "web".into(),
        disk: "vda".into(),
        size: 1 << 40,
        block_size: 512,
        created: time,
        pin: claim(2),
        ending: Some(claim(3)),
        handed_to: Some("/dev/vg/web".into()),
        keys: [(2, key.clone()), (3, key)].into(),
    };
    header.encode().unwrap()
}

fn waypoint() -> Vec<u8> {
    let (target, base) = ("/dev/vg/web".to_owned(), "a point".to_owned());
    let waypoint = Waypoint { sequence: 7, target, base, size: 100 << 20, region: 1 << 18, copied: vec![0x5a; 50] };
    waypoint.encode().unwrap()
}

/// Bodies of verified records: no frozen repository has any.
fn verified_bodies() -> Vec<Vec<u8>> {
    let proof = |level, n: u8| Proof {
        time: Timestamp::from_seconds(1_795_226_400).unwrap(),
        level,
        packs: (0..n).map(|i| PackUid([i; 16])).collect(),
        points: (0..n).map(|i| SnapshotId([i; 16])).collect(),
    };
    let full = Verified {
        proofs: vec![proof(Level::Data, 9), proof(Level::Structure, 2)],
        superseded: vec![RecordId([4; 16]), RecordId([5; 16])],
    };
    [Verified::default(), full].map(|verified| verified.encode().unwrap()).to_vec()
}

const PARITY_PACK: PackUid = PackUid([6; 16]);
/// Stands for a pack of six shards.
const PARITY_OF: [u8; 6000] = [0x5a; 6000];

fn parity_object() -> Vec<u8> {
    parity::encode(PackKind::Data, PARITY_PACK, &PARITY_OF).unwrap()
}

/// Bodies of moved records: no frozen repository has any.
fn moved_bodies() -> Vec<Vec<u8>> {
    let line = |n: u8| Relocated {
        key: IndexKey([n; 16]),
        to: Hint { pack: PackUid([n ^ 1; 16]), offset: 292 + u32::from(n) * 70_000, stored_len: 20_000 },
    };
    [0, 1, 20].map(|n| Moved { lines: (0..n).map(line).collect() }.encode().unwrap()).to_vec()
}

/// Decoders of what iSCSI initiators send.
fn iscsi() -> Vec<Decoder<'static>> {
    let request = |opcode: u8, flags: u8, ahs: &[u8]| {
        let mut head = Head::new(opcode);
        head.put(1, &[flags]);
        head.put(4, &[u8::try_from(ahs.len() / 4).unwrap()]);
        head.put(16, &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
        [&head.0, ahs].concat()
    };
    let long_cdb = [0, 5, 1, 0, 0xaa, 0xbb, 0xcc, 0xdd, 0, 5, 2, 0, 0, 0, 2, 0];
    let requests = vec![
        request(opcode::NOP_OUT, 0x80, &[]),
        request(opcode::COMMAND, 0xc1, &long_cdb),
        request(opcode::MANAGEMENT | 0x40, 0x81, &[]),
        request(opcode::LOGIN | 0x40, 0x87, &[]),
        request(opcode::TEXT, 0x40, &[]),
        request(opcode::DATA_OUT, 0x80, &[]),
        request(opcode::LOGOUT, 0x80, &[]),
        request(opcode::SNACK, 0x83, &[]),
    ];
    let text = vec![pdu::encode_text(&[("InitiatorName", "iqn.x"), ("MaxBurstLength", "0x8000"), ("X-a.b", "")])];
    vec![
        Decoder::new("iSCSI request", requests, |bytes| {
            let Some(head) = Head::of(bytes) else { return Outcome::Refused };
            let ahs = head.lengths().ahs;
            match bytes.get(HEAD..HEAD + ahs) {
                Some(ahs) => read_only(pdu::Request::decode(&head, ahs)),
                None => Outcome::Refused,
            }
        }),
        Decoder::new("iSCSI text", text, |bytes| {
            let decode = |bytes: &[u8]| pdu::decode_text(bytes).ok_or(());
            one_meaning(decode(bytes), |pairs| pdu::encode_text(pairs), decode)
        }),
    ]
}

/// Decoders of the NBD protocol, both directions.
fn nbd() -> Vec<Decoder<'static>> {
    let go = Go { name: "disk".into(), infos: vec![3, 0] };
    let query = MetaQuery { name: "disk".into(), queries: vec!["base:allocation".into(), "qemu:".into()] };
    let infos = [
        Info::Export { size: 1 << 40, flags: 0x5ff },
        Info::BlockSize { minimum: 1, preferred: 4096, maximum: 32 << 20 },
        Info::Name("disk".into()),
        Info::Description("of a machine".into()),
    ];
    let query_of_status = StatusQuery { length: 1 << 33, contexts: vec![1, 7] };
    let statuses = [transmission::Status { length: 4096, flags: 0 }, transmission::Status { length: 65_536, flags: 3 }];
    let mut option_reply = Vec::new();
    handshake::encode_option_reply(7, 3, b"x", &mut option_reply);
    let mut decoders = vec![
        Decoder::new("NBD greeting", vec![handshake::encode_greeting(3)], |bytes| {
            with_head(bytes, |head| {
                one_spelling(head, handshake::decode_greeting(head), |f| handshake::encode_greeting(*f))
            })
        }),
        Decoder::new("NBD option", vec![handshake::encode_option(7, b"")], |bytes| {
            with_head(bytes, |head| read_only(handshake::decode_option_header(head)))
        }),
        Decoder::new("NBD reply to an option", vec![option_reply], |bytes| {
            with_head(bytes, |head| read_only(handshake::decode_option_reply_header(head)))
        }),
        Decoder::new("NBD GO", vec![go.encode()], |bytes| one_spelling(bytes, Go::decode(bytes), Go::encode)),
        Decoder::new("NBD metadata contexts", vec![query.encode()], |bytes| {
            one_spelling(bytes, MetaQuery::decode(bytes), MetaQuery::encode)
        }),
        Decoder::new("NBD metadata context", vec![handshake::encode_meta_context(1, "base:allocation")], |bytes| {
            let again = |(id, name): &(u32, String)| handshake::encode_meta_context(*id, name);
            one_spelling(bytes, handshake::decode_meta_context(bytes), again)
        }),
        Decoder::new("NBD information", infos.iter().map(Info::encode).collect(), |bytes| {
            one_meaning(Info::decode(bytes), Info::encode, Info::decode)
        }),
        Decoder::new("NBD hole", vec![transmission::encode_hole(1 << 30, 4096).to_vec()], |bytes| {
            let again = |(offset, len): &(u64, u32)| transmission::encode_hole(*offset, *len).to_vec();
            one_spelling(bytes, transmission::decode_hole(bytes), again)
        }),
        Decoder::new("NBD block status query", vec![query_of_status.encode()], |bytes| {
            one_spelling(bytes, StatusQuery::decode(bytes), StatusQuery::encode)
        }),
        Decoder::new("NBD error", vec![transmission::encode_error(5, "the device failed")], |bytes| {
            read_only(transmission::decode_error(bytes))
        }),
    ];
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let (kind, status) = transmission::encode_status(framing, 1, &statuses);
        decoders.push(Decoder::new("NBD block status", vec![status], move |bytes| {
            read_only(transmission::decode_status(kind, bytes))
        }));
        let request = Request { flags: 1, command: 1, cookie: 9, offset: 4096, length: 512 };
        let mut encoded = Vec::new();
        request.encode(framing, &mut encoded).unwrap();
        decoders.push(Decoder::new("NBD request", vec![encoded], move |bytes| match Request::decode(framing, bytes) {
            Ok(Some(request)) => one_spelling(&bytes[..Request::wire_len(framing)], Ok::<_, ()>(request), |request| {
                let mut out = Vec::new();
                request.encode(framing, &mut out).unwrap();
                out
            }),
            Ok(None) | Err(_) => Outcome::Refused,
        }));
        let mut reply = vec![0; Reply::wire_len(framing)];
        let head = transmission::ChunkHead { framing, flags: 1, kind: 1, cookie: 9, offset: 4096 };
        match framing {
            Framing::Simple => reply = Reply::encode_simple(5, 9).to_vec(),
            Framing::Structured | Framing::Extended => Reply::encode_chunk(head, 512, &mut reply),
        }
        decoders.push(Decoder::new("NBD reply", vec![reply], move |bytes| match Reply::decode(framing, bytes) {
            Ok(Some((_, len))) if len <= bytes.len() => Outcome::Accepted,
            Ok(Some(_)) => Outcome::Respelt,
            Ok(None) | Err(_) => Outcome::Refused,
        }));
    }
    decoders
}

/// Decodes a message of a fixed length that `bytes` begin with.
fn with_head<const N: usize>(bytes: &[u8], decode: impl Fn(&[u8; N]) -> Outcome) -> Outcome {
    bytes.first_chunk().map_or(Outcome::Refused, decode)
}

fn drive_all(decoders: Vec<Decoder<'_>>) {
    let number = |variable: &str, otherwise: u64| std::env::var(variable).map_or(otherwise, |n| n.parse().unwrap());
    let (seed, rounds) = (number("COFFER_FUZZ_SEED", SEED), number("COFFER_FUZZ_ROUNDS", ROUNDS));
    println!("COFFER_FUZZ_SEED={seed} COFFER_FUZZ_ROUNDS={rounds}");
    for decoder in decoders {
        decoder.drive(seed, rounds).unwrap_or_else(|why| panic!("{why}"));
    }
}

#[test]
fn objects_of_a_repository() {
    drive_all(objects(&Corpus::new()));
}

#[test]
fn parts_of_packs() {
    drive_all(packs(&Corpus::new()));
}

#[test]
fn names_and_what_people_type() {
    drive_all(texts(&Corpus::new()));
}

/// Decoders of the control socket of gateways, both directions.
fn control() -> Vec<Decoder<'static>> {
    let addition = Addition {
        export: "vda=web@latest:vda".into(),
        allow: vec!["uid:0".into(), "10.0.0.0/8".into()],
        limit: Some("2000/100M".into()),
    };
    let questions =
        [Question::Add(addition), Question::List, Question::Remove { name: "vda".into(), disconnect: true }];
    let questions = questions.iter().map(|question| question.encode().into_bytes()).collect();
    let answers = [
        Answer::Done("vda is removed".into()),
        Answer::Exports(vec![ExportReport { name: "vda".into(), ..ExportReport::default() }]),
        Answer::Failed(coffer_repo::Error::not_found("there is none")),
    ];
    let answers = answers.iter().map(|answer| answer.encode().into_bytes()).collect();
    vec![
        Decoder::new("question to a gateway", questions, |bytes| {
            one_meaning(Question::decode(bytes), |question| question.encode().into_bytes(), Question::decode)
        }),
        Decoder::new("answer of a gateway", answers, |bytes| read_only(Answer::decode(bytes))),
    ]
}

#[test]
fn messages_of_gateways() {
    drive_all(control());
}

#[test]
fn requests_of_iscsi() {
    drive_all(iscsi());
}

#[test]
fn messages_of_nbd() {
    const { assert!(MAX_STRING <= 64 << 10) };
    drive_all(nbd());
}

/// The guard of the driver: it notices a panic, a wild allocation, a second spelling, and a decoder that takes
/// everything.
#[test]
fn the_driver_notices() {
    let input = || vec![b"CFOBJ\r\n\0 input".to_vec()];
    let bad = |what: &str, decode: fn(&[u8]) -> Outcome| {
        let why = Decoder::new("a bad decoder", input(), decode).drive(1, 500).unwrap_err();
        assert!(why.contains(what), "{why}");
    };
    bad("panics", |bytes| if bytes[3] == b'B' { Outcome::Accepted } else { Outcome::Refused });
    bad("allocates", |bytes| read_only(if bytes.len() == 14 { Ok(()) } else { Err(vec![1u8; 1 << 24]) }));
    bad("writes otherwise", |bytes| one_spelling(bytes, Ok::<_, ()>(()), |()| b"CFOBJ\r\n\0 input".to_vec()));
    bad("refuses nothing", |_| Outcome::Accepted);
    bad("does not accept", |_| Outcome::Refused);
}
