use super::*;
use crate::backend::Put;
use crate::backend::faulty::{Faulty, Plan};
use crate::backend::memory::Memory;
use crate::crypto::Aead;
use crate::entropy::Seeded;
use crate::error::Kind;
use crate::id::{ChunkId, NodeId};
use crate::location::Stored;
use crate::seal::{Compressor, Decompressor};
use crate::session::SessionTag;

fn keys() -> Keys {
    Keys::generate(crate::id::RepoId([5; 16]), &Seeded::new(1)).unwrap()
}

fn options(kind: PackKind) -> PackOptions {
    PackOptions { kind, aead: Aead::Aes256Gcm, target_len: 4096, session: SessionTag::default() }
}

/// A pack of three frames: one compressed, one as it is, one of a single byte.
fn small(keys: &Keys, options: PackOptions) -> (FinishedPack, Vec<Vec<u8>>) {
    let mut builder = PackBuilder::new(keys, options, Vec::new(), &Seeded::new(2)).unwrap();
    let raws = vec![vec![7; 300], b"as it is: nothing to gain".to_vec(), vec![1]];
    let mut compressor = Compressor::new(1).unwrap();
    for (n, raw) in (0u8..).zip(&raws) {
        let stored = match options.kind {
            PackKind::Data => Stored::Chunk(ChunkId([n; 32])),
            PackKind::Tree => Stored::Node(NodeId([n; 32])),
        };
        let (codec, bytes) = compressor.compress(raw).unwrap();
        builder.append(stored, codec, u32::try_from(raw.len()).unwrap(), bytes).unwrap();
    }
    (builder.finish().unwrap(), raws)
}

/// A store that holds `bytes` as the object `name` and nothing else.
fn store_of(name: &str, bytes: &[u8]) -> Memory {
    let memory = Memory::default();
    assert_eq!(memory.put(name, &[bytes]).unwrap(), Put::Created);
    memory
}

/// Everything a reader does with a pack: header, contents, each frame. What it read, in order.
fn read_all(memory: &Memory, keys: &Keys, pack: &FinishedPack) -> Result<Vec<(Stored, Vec<u8>)>> {
    let header = PackHeader::fetch(memory, keys, &Certificates::new(keys), pack.kind, pack.uid)?;
    let open = header.open(keys)?;
    let (entries, len) = read_contents(memory, keys, pack.kind, pack.uid)?;
    assert_eq!(len, memory.size(&pack.name)?.unwrap());
    let mut read = Vec::new();
    for entry in entries {
        let mut sealed = vec![0; entry.location.stored_len as usize];
        memory.get_range(&pack.name, u64::from(entry.location.offset), &mut sealed)?;
        let (codec, bytes) = open.open_frame(&entry.location, &mut sealed)?;
        let mut raw = Vec::new();
        Decompressor::new()?.decompress(codec, bytes, entry.location.raw_len, &mut raw)?;
        read.push((entry.stored, raw));
    }
    Ok(read)
}

#[test]
fn what_goes_in_comes_out_in_order_and_the_builder_says_where() {
    for kind in PackKind::ALL {
        for aead in [Aead::Aes256Gcm, Aead::ChaCha20Poly1305] {
            let keys = keys();
            let (pack, raws) = small(&keys, PackOptions { aead, ..options(kind) });
            let memory = store_of(&pack.name, &pack.bytes);
            let read = read_all(&memory, &keys, &pack).unwrap();
            assert_eq!(read.iter().map(|(_, raw)| raw.clone()).collect::<Vec<_>>(), raws);
            let (entries, _) = read_contents(&memory, &keys, kind, pack.uid).unwrap();
            assert_eq!(entries, pack.entries);
            assert_eq!(parse_name(&pack.name), Some((kind, pack.uid)));
        }
    }
}

#[test]
fn every_flipped_bit_is_detected_by_the_part_that_reads_it() {
    for kind in PackKind::ALL {
        let keys = keys();
        let (pack, _) = small(&keys, options(kind));
        let frames = pack.entries[0].location.offset as usize;
        let contents = usize::try_from(pack.entries[2].location.end()).unwrap();
        for bit in 0..pack.bytes.len() * 8 {
            let byte = bit / 8;
            let mut flipped = pack.bytes.clone();
            flipped[byte] ^= 1 << (bit % 8);
            let memory = store_of(&pack.name, &flipped);
            let header = PackHeader::fetch(&memory, &keys, &Certificates::new(&keys), kind, pack.uid);
            let table = read_contents(&memory, &keys, kind, pack.uid);
            let whole = read_all(&memory, &keys, &pack).map_err(|e| e.kind());
            assert_eq!(header.is_err(), byte < frames, "bit {bit} and the header");
            assert_eq!(table.is_err(), byte >= contents, "bit {bit} and the table of contents");
            assert!(matches!(whole, Err(Kind::Corrupt | Kind::Unsupported)), "bit {bit}: {whole:?}");
        }
    }
}

#[test]
fn every_truncation_and_every_extension_is_detected() {
    let keys = keys();
    let (pack, _) = small(&keys, options(PackKind::Data));
    let mut longer = pack.bytes.clone();
    longer.push(0);
    for bytes in (0..pack.bytes.len()).map(|n| pack.bytes[..n].to_vec()).chain([longer]) {
        let memory = store_of(&pack.name, &bytes);
        let table = read_contents(&memory, &keys, pack.kind, pack.uid);
        assert_eq!(table.unwrap_err().kind(), Kind::Corrupt, "{} bytes of {}", bytes.len(), pack.bytes.len());
    }
}

#[test]
fn a_pack_counts_only_as_itself() {
    let keys = keys();
    let (pack, _) = small(&keys, options(PackKind::Data));
    let other = PackUid([9; 16]);
    let memory = store_of(&name(PackKind::Data, other), &pack.bytes);
    let certificates = Certificates::new(&keys);
    let header = PackHeader::fetch(&memory, &keys, &certificates, PackKind::Data, other);
    assert_eq!(header.unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(read_contents(&memory, &keys, PackKind::Data, other).unwrap_err().kind(), Kind::Corrupt);
    // Another repository's pack, under its own name.
    let stranger = Keys::generate(crate::id::RepoId([6; 16]), &Seeded::new(3)).unwrap();
    let verified = PackHeader::verify(&stranger, &Certificates::new(&stranger), PackKind::Data, pack.uid, &pack.bytes);
    assert_eq!(verified.unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn a_writer_lists_its_packs_but_cannot_read_their_content() {
    let full = keys();
    let (writer, certificate) =
        full.export_writer("mover", crate::time::Timestamp::from_seconds(0).unwrap(), &Seeded::new(4)).unwrap();
    let (pack, raws) = small(&writer, options(PackKind::Data));
    let memory = store_of(&pack.name, &pack.bytes);
    assert_eq!(read_contents(&memory, &writer, pack.kind, pack.uid).unwrap().0, pack.entries);
    // Nobody vouches for the writer yet.
    let mut certificates = Certificates::new(&full);
    let unknown = PackHeader::fetch(&memory, &full, &certificates, pack.kind, pack.uid);
    assert_eq!(unknown.unwrap_err().kind(), Kind::Corrupt);

    let (object, body) = (certificate.object_name(), certificate.encode().unwrap());
    let kind = crate::sealed::ObjectKind::Certificate;
    let sealed = crate::sealed::seal(&full, kind, &object, &body, Aead::Aes256Gcm, &Seeded::new(5)).unwrap();
    certificates.admit(&full, &object, &sealed).unwrap();
    let header = PackHeader::fetch(&memory, &full, &certificates, pack.kind, pack.uid).unwrap();
    assert_eq!(header.open(&writer).err().map(|e| e.kind()), Some(Kind::WrongKey));
    let open = header.open(&full).unwrap();
    let second = pack.entries[1].location;
    let mut sealed = pack.bytes[second.offset as usize..][..second.stored_len as usize].to_vec();
    assert_eq!(open.open_frame(&second, &mut sealed).unwrap(), (Codec::Raw, &mut raws[1].clone()[..]));
}

#[test]
fn a_long_table_of_contents_takes_a_second_read_and_a_usual_one_does_not() {
    let keys = keys();
    for (frames, gets) in [(5000u32, 1), (6000, 2)] {
        let mut builder =
            PackBuilder::new(&keys, options(PackKind::Tree), Vec::new(), &Seeded::new(u64::from(frames))).unwrap();
        for n in 0..frames {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_le_bytes());
            builder.append(Stored::Node(NodeId(id)), Codec::Raw, 5, b"bytes").unwrap();
        }
        let pack = builder.finish().unwrap();
        let memory = Faulty::new(store_of(&pack.name, &pack.bytes), Plan::default());
        assert_eq!(read_contents(&memory, &keys, pack.kind, pack.uid).unwrap().0, pack.entries);
        assert_eq!(memory.operations(), gets, "{frames} frames");
    }
}

#[test]
fn a_header_with_many_recipients_is_fetched_whole() {
    let keys = keys();
    let slot = |n: u8| crate::crypto::KeySlot {
        kem: crate::crypto::KEM_X25519,
        recipient: crate::id::RecipientId([n; 16]),
        sealed: vec![n; 80],
    };
    let header = PackHeader {
        kind: PackKind::Data,
        aead: Aead::Aes256Gcm,
        key_epoch: 3,
        uid: PackUid([1; 16]),
        repo: keys.repo(),
        signer: keys.signer().id(),
        commitment: [4; 16],
        slots: (0..5).map(slot).collect(),
    };
    let mut bytes = header.encode().unwrap();
    bytes.extend_from_slice(&keys.signer().sign(&[header::SIGNATURE_DOMAIN, &bytes]));
    let memory = store_of(&name(header.kind, header.uid), &bytes);
    let fetched = PackHeader::fetch(&memory, &keys, &Certificates::new(&keys), header.kind, header.uid).unwrap();
    assert_eq!(fetched, header);
    for n in 0..bytes.len() {
        assert_eq!(PackHeader::decode(&bytes[..n]).unwrap_err().kind(), Kind::Corrupt, "{n} bytes");
    }
    let many = PackHeader { slots: (0..=255).cycle().take(700).map(slot).collect(), ..header };
    assert_eq!(many.encode().unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn unknown_features_are_refused_by_name_and_compatible_ones_are_not() {
    let keys = keys();
    let (mut pack, _) = small(&keys, options(PackKind::Tree));
    let mut with = |at: usize, value: u8| {
        let before = std::mem::replace(&mut pack.bytes[at], value);
        let read = PackHeader::decode(&pack.bytes).map(|read| read.header.uid);
        pack.bytes[at] = before;
        read
    };
    let refused = with(12, 1 << 5).unwrap_err();
    assert_eq!(refused.kind(), Kind::Unsupported);
    assert!(refused.context().contains("feature bit 5"), "{refused}");
    assert_eq!(with(8, 2).unwrap_err().kind(), Kind::Unsupported);
    for later in [10, 16, 20] {
        with(later, 1).unwrap();
    }
}

#[test]
fn the_builder_refuses_what_would_not_read_back() {
    let keys = keys();
    let mut builder = PackBuilder::new(&keys, options(PackKind::Data), Vec::new(), &Seeded::new(6)).unwrap();
    let empty_len = builder.len();
    let chunk = Stored::Chunk(ChunkId([1; 32]));
    for (stored, codec, raw_len, bytes) in [
        (Stored::Node(NodeId([1; 32])), Codec::Raw, 3, &b"abc"[..]),
        (chunk, Codec::Raw, 4, b"abc"),
        (chunk, Codec::Zstd, 3, b"abc"),
        (chunk, Codec::Zstd, 2, b"abc"),
        (chunk, Codec::Raw, 0, b""),
    ] {
        assert_eq!(builder.append(stored, codec, raw_len, bytes).unwrap_err().kind(), Kind::Internal);
    }
    assert_eq!((builder.len(), builder.is_empty()), (empty_len, true));
    assert_eq!(builder.finish().unwrap_err().kind(), Kind::Internal);
}

#[test]
fn a_footer_that_would_pass_four_gibibytes_is_refused() {
    let at = |contents_offset| Footer { contents_offset, entries: 1, aead: Aead::Aes256Gcm, uid: PackUid([0; 16]) };
    let most = u32::MAX - 48 - 16 - 64;
    at(most).encode().unwrap();
    assert_eq!(at(most + 1).encode().unwrap_err().kind(), Kind::Invalid);
}

/// Frozen: the bytes of a tree pack under seeded randomness, so that the layout cannot change unnoticed.
#[test]
fn the_bytes_of_a_known_pack() {
    let mut builder = PackBuilder::new(&keys(), options(PackKind::Tree), Vec::new(), &Seeded::new(2)).unwrap();
    builder.append(Stored::Node(NodeId([1; 32])), Codec::Raw, 5, b"first").unwrap();
    builder.append(Stored::Node(NodeId([2; 32])), Codec::Raw, 6, b"second").unwrap();
    let pack = builder.finish().unwrap();
    assert_eq!(pack.bytes.len(), 192 + (5 + 16) + (6 + 16) + (2 * 48 + 16) + 64);
    assert_eq!(
        blake3::hash(&pack.bytes).to_hex().as_str(),
        "80fa1f227bcd8738d31e888dcff5bd9f54fc6a429226764c32ae4318d5b3278b"
    );
}
