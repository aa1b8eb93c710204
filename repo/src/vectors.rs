//! Known answers: the RFCs' own, and the frozen vectors of the format in `tests/golden/vectors/crypto.json`, which a program
//! made that shares no code with this one.

use crate::certificate::Certificates;
use crate::chunker::{DiskParams, StreamParams};
use crate::crypto::{
    Aead, Codec, DataPrivate, DataPublic, FrameAt, FrameKey, KeySlot, PackKey, PublicKey, Secret, Signer, hkdf,
    open_with, seal_to,
};
use crate::descriptor::Descriptor;
use crate::entropy::Entropy;
use crate::error::{Error, Result};
use crate::features::Access;
use crate::id::{PackUid, RepoId, SignerId, SlotId};
use crate::key_slot::{Credential, PassphraseCost, SlotKind, SlotOptions, open_slot, seal_slot, summarise};
use crate::keys::Keys;
use crate::sealed::{self, ObjectKind};
use crate::time::Timestamp;
use serde_json::Value;
use std::sync::Mutex;
use zeroize::Zeroizing;

/// Gives these bytes out once, then fails.
pub(crate) struct Scripted(Mutex<Vec<u8>>);

impl Scripted {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Scripted(Mutex::new(bytes.to_vec()))
    }
}

impl Entropy for Scripted {
    fn fill(&self, out: &mut [u8]) -> Result<()> {
        let mut left = self.0.lock().unwrap();
        if left.len() < out.len() {
            return Err(Error::internal("the script has no more randomness"));
        }
        out.copy_from_slice(&left[..out.len()]);
        left.drain(..out.len());
        Ok(())
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |c: u8| u8::try_from(char::from(c).to_digit(16).unwrap()).unwrap();
    assert_eq!(text.len() % 2, 0);
    text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn hex_of<const N: usize>(text: &str) -> [u8; N] {
    hex(text).try_into().unwrap()
}

fn golden() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/vectors/crypto.json")).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key}"))
}

fn bytes(value: &Value, key: &str) -> Vec<u8> {
    hex(text(value, key))
}

fn fixed<const N: usize>(value: &Value, key: &str) -> [u8; N] {
    hex_of(text(value, key))
}

fn number<T: TryFrom<u64, Error: std::fmt::Debug>>(value: &Value, key: &str) -> T {
    T::try_from(value[key].as_u64().unwrap_or_else(|| panic!("{key}"))).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let list = value[key].as_array().unwrap();
    assert!(!list.is_empty());
    list
}

fn keys(kind: &str) -> Keys {
    Keys::decode(&bytes(&golden()["bundle"], kind)).unwrap()
}

fn created() -> Timestamp {
    Timestamp::from_seconds(1_795_226_400).unwrap()
}

#[test]
fn rfc_5869_hkdf_sha256() {
    // Appendix A.1 has 22 bytes of key material where ours is always 32, so the check is by A.1's construction: HKDF of 32
    // bytes of 0x0b, computed with another implementation, and the parts of info laid end to end.
    let ikm = Secret::new([0x0b; 32]);
    let salt = hex("000102030405060708090a0b0c");
    let whole = hkdf(&salt, &ikm, &[&hex("f0f1f2f3f4f5f6f7f8f9")]).unwrap();
    let parts = hkdf(&salt, &ikm, &[&hex("f0f1f2f3"), &hex("f4f5f6f7f8f9")]).unwrap();
    assert_eq!(whole.expose(), parts.expose());
    assert_eq!(whole.expose(), &hex_of::<32>("d4100799f26a09615a72af3e58fa3841a2ff20d5ace3fb392e562e207fe6b718"));
}

#[test]
fn rfc_8032_ed25519() {
    for (seed, public, message, signature) in [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24\
             655141438e7a100b",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28d\
             c027beceea1ec40a",
        ),
    ] {
        let signer = Signer::from_seed(Secret::new(hex_of(seed))).unwrap();
        assert_eq!(signer.public().as_bytes(), &hex_of::<32>(public));
        let message = hex(message);
        let (first, second) = message.split_at(message.len() / 2);
        assert_eq!(signer.sign(&[first, second]), hex_of::<64>(signature));
        signer.public().verify(&[&message], &hex(signature)).unwrap();
        for bit in 0..512 {
            let mut forged = hex(signature);
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(signer.public().verify(&[&message], &forged).is_err(), "bit {bit}");
        }
        assert!(signer.public().verify(&[&message, b"x"], &hex(signature)).is_err());
        assert!(signer.public().verify(&[&message], &hex(signature)[..63]).is_err());
    }
}

/// The RFC's published vectors, mode base, KEM 0x0020, KDF 0x0001, AEAD 0x0002.
#[test]
fn rfc_9180_hpke() {
    let info = hex("4f6465206f6e2061204772656369616e2055726e");
    let plain = b"Beauty is truth, truth beauty";
    let private =
        DataPrivate::new(Secret::new(hex_of("497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d")));
    let public = DataPublic::new(hex_of("430f4b9859665145a6b1ba274024487bd66f03a2dd577d7753c68d7d7d00c00c"));
    assert_eq!(private.public().unwrap(), public);
    let ephemeral = hex("2cd7c601cefb3d42a62b04b7a9041494c06c7843818e0ce28a8f704ae7ab20f9");
    let sealed = seal_to(&public, &info, b"Count-0", plain, &Scripted::new(&ephemeral)).unwrap();
    let due = "6c93e09869df3402d7bf231bf540fadd35cd56be14f97178f0954db94b7fc256\
               e5d84cd531cfb583096e7cfa9641bd3079cf3a91cda813c52deb5f512be9931980a41de125a925cdad859d5b7a";
    assert_eq!(sealed, hex(due));
    assert_eq!(open_with(&private, &info, b"Count-0", &sealed).unwrap().as_slice(), plain);
}

#[test]
fn golden_bundles() {
    let golden = &golden()["bundle"];
    for kind in ["full", "writer"] {
        let keys = keys(kind);
        assert_eq!(keys.is_full(), kind == "full");
        assert_eq!(keys.encode().unwrap().as_slice(), bytes(golden, kind));
        assert_eq!(keys.repo(), RepoId(fixed(golden, "repo")));
        assert_eq!(keys.authority(), PublicKey::new(fixed(golden, "authority")));
        assert_eq!(keys.authority().signer_id(), SignerId(fixed(golden, "authority_id")));
        let (epoch, public) = keys.data_key();
        assert_eq!((epoch, &public), (1, &DataPublic::new(fixed(golden, "data_public"))));
        assert_eq!(public.recipient_id().0, fixed(golden, "recipient_id"));
        assert_eq!(keys.data_private(public.recipient_id()).is_some(), keys.is_full());
    }
    assert_eq!(keys("writer").signer().public(), PublicKey::new(fixed(golden, "writer_public")));
    assert_eq!(keys("writer").signer().id(), SignerId(fixed(golden, "writer_id")));
}

#[test]
fn golden_ids() {
    let golden = &golden()["ids"];
    let keys = keys("full");
    let key = keys.id_key();
    for case in list(golden, "content") {
        let content = bytes(case, "content");
        assert_eq!(key.chunk_id(&content).0, fixed(case, "chunk_id"));
        assert_eq!(key.node_id(&content).0, fixed(case, "node_id"));
    }
    assert_eq!(key.workload_tag(text(golden, "workload")).0, fixed(golden, "workload_tag"));
    assert_eq!(key.chunker_seed(), number::<u64>(golden, "chunker_seed"));
    let gear = key.gear_table();
    assert_eq!((gear[0], gear[255]), (number(golden, "gear_first"), number(golden, "gear_last")));
    let stored: Vec<u8> = gear.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    assert_eq!(blake3::hash(&stored).as_bytes(), &fixed(golden, "gear_blake3"));
}

/// Derived keys are compared by what they open: they do not leave [`Keys`].
#[test]
fn golden_derived_keys() {
    let golden = golden();
    let [object, tree, contents] = list(&golden, "derived") else { panic!("three keys") };
    let keys = keys("full");
    let at = FrameAt { object: "x", kind: 7, offset: 48, raw_len: 5, codec: Codec::Raw };
    let opens = |case: &Value, key: FrameKey| {
        let mut frame = Vec::new();
        let known = FrameKey::new(Aead::Aes256Gcm, &Secret::new(fixed(case, "key"))).unwrap();
        known.seal_append(at, b"known", &mut frame).unwrap();
        key.open_in_place(at, &mut frame).unwrap();
    };
    opens(object, keys.object_key(7, &fixed(object, "salt"), Aead::Aes256Gcm).unwrap());
    opens(tree, keys.tree_pack_key(PackUid(fixed(tree, "salt")), Aead::Aes256Gcm).unwrap());
    opens(contents, keys.contents_key(PackUid(fixed(contents, "salt")), Aead::Aes256Gcm).unwrap());
}

#[test]
fn golden_frames() {
    for case in list(&golden(), "frames") {
        let key =
            FrameKey::new(Aead::from_byte(number(case, "aead")).unwrap(), &Secret::new(fixed(case, "key"))).unwrap();
        let (content, frame) = (bytes(case, "content"), bytes(case, "frame"));
        let raw_len = number(case, "raw_len");
        let codec = Codec::of(u32::try_from(frame.len()).unwrap(), raw_len).unwrap();
        assert_eq!(codec.byte(), number::<u8>(case, "codec"));
        let (kind, offset) = (number(case, "kind"), number(case, "offset"));
        let at = FrameAt { object: text(case, "object"), kind, offset, raw_len, codec };
        let mut sealed = Vec::new();
        key.seal_append(at, &content, &mut sealed).unwrap();
        assert_eq!(sealed, frame);
        assert_eq!(key.open_in_place(at, &mut sealed).unwrap(), content);
    }
}

#[test]
fn golden_pack_key() {
    let golden = &golden()["pack_key"];
    let (uid, keys) = (PackUid(fixed(golden, "uid")), keys("full"));
    // A fresh pack key is the first thing drawn, the ephemeral key of its slot the second.
    let entropy = Scripted::new(&[bytes(golden, "key"), bytes(golden, "ephemeral")].concat());
    let key = PackKey::generate(&entropy).unwrap();
    assert_eq!(key.commitment(), fixed(golden, "commitment"));
    let slot = key.wrap(&keys.data_key().1, uid, keys.repo(), &entropy).unwrap();
    let mut encoded = Vec::new();
    slot.encode(&mut encoded).unwrap();
    assert_eq!(encoded, bytes(golden, "slot"));
    assert_eq!(KeySlot::decode(&encoded).unwrap(), (slot.clone(), &[][..]));
    let opened = keys.open_pack_key(uid, &[slot], &key.commitment()).unwrap();
    assert_eq!(opened.secret().expose(), &fixed(golden, "key"));
}

#[test]
fn golden_objects() {
    let golden = golden();
    let full = keys("full");
    let mut certificates = Certificates::new(&full);
    let objects = list(&golden, "objects");
    certificates.admit(&full, text(&objects[0], "name"), &bytes(&objects[0], "bytes")).unwrap();
    for case in objects {
        let kind = match number::<u8>(case, "kind") {
            4 => ObjectKind::IndexDelta,
            5 => ObjectKind::Certificate,
            7 => ObjectKind::Claim,
            other => panic!("kind {other}"),
        };
        let (name, stored, body) = (text(case, "name"), bytes(case, "bytes"), bytes(case, "body"));
        let signer = keys(text(case, "signer"));
        let record = sealed::open(&full, &certificates, kind, name, &stored).unwrap();
        assert_eq!((record.signer, record.body), (signer.signer().id(), body.clone()));
        let aead = Aead::from_byte(number(case, "aead")).unwrap();
        let sealed = sealed::seal(&signer, kind, name, &body, aead, &Scripted::new(&bytes(case, "salt"))).unwrap();
        if number::<u8>(case, "codec") == Codec::Raw.byte() {
            assert_eq!(sealed, stored);
        } else {
            // What zstd makes of it depends on zstd's version; what comes out does not.
            assert_eq!(sealed::open(&full, &certificates, kind, name, &sealed).unwrap().body, body);
        }
    }
}

#[test]
fn golden_slots() {
    for case in list(&golden(), "slots") {
        let (slot, stored) = (SlotId(fixed(case, "slot")), bytes(case, "bytes"));
        let label = text(case, "label").to_owned();
        let (credential, cost, kind) = match case["passphrase"].as_str() {
            Some(passphrase) => {
                let (memory_kib, passes, lanes) =
                    (number(case, "memory_kib"), number(case, "passes"), number(case, "lanes"));
                let cost = PassphraseCost { memory_kib, passes, lanes };
                (Credential::Passphrase(Zeroizing::new(passphrase.to_owned())), cost, SlotKind::Passphrase(cost))
            }
            None => {
                let credential = Credential::from_key_file(text(case, "key_file")).unwrap();
                (credential, PassphraseCost::default(), SlotKind::KeyFile)
            }
        };
        let bundle = keys(text(case, "bundle"));
        let opened = open_slot(slot, &stored, &credential).unwrap();
        assert_eq!(opened.encode().unwrap(), bundle.encode().unwrap());
        let summary = summarise(slot, &stored).unwrap();
        assert_eq!((&summary.kind, &summary.label, summary.created), (&kind, &label, created()));
        assert_eq!(summary.full, bundle.is_full());
        let options = SlotOptions { label, created: created(), cost };
        let entropy = Scripted::new(&bytes(case, "salt"));
        assert_eq!(seal_slot(&bundle, &credential, slot, &options, &entropy).unwrap(), stored);
    }
}

#[test]
fn golden_descriptor() {
    let golden = &golden()["descriptor"];
    let descriptor = Descriptor {
        created: created(),
        aead: Aead::from_byte(number(golden, "aead")).unwrap(),
        disk: DiskParams::default(),
        stream: StreamParams::default(),
    };
    let stored = bytes(golden, "bytes");
    assert_eq!(descriptor.encode(&keys("full")).unwrap(), stored);
    assert_eq!(Descriptor::decode(&keys("writer"), &stored).unwrap(), (descriptor, Access::ReadWrite));
}
