#!/usr/bin/env python3
"""Checks the known answers of the format, tests/golden/vectors, against an implementation made from
repo/FORMAT.md alone.

    known_answers.py DIRECTORY

Not here: the cut points of streams, which the format leaves to FastCDC's paper. Exit codes: 0 all hold, 1 one does not.
Needs the packages of reader.py and xxhash.
"""

import json
import pathlib
import struct
import sys

import blake3
import xxhash

import sealing


def cut_window(content, seed, smallest, mean, largest):
    """Chunks of one window under aligned-cdc-1: [first block, number of blocks]."""
    chunks, first, mask = [], None, mean // sealing.BLOCK - 1
    count = -(-len(content) // sealing.BLOCK)
    for block in range(count):
        piece = content[block * sealing.BLOCK : (block + 1) * sealing.BLOCK].ljust(sealing.BLOCK, b"\0")
        if not any(piece):
            if first is not None:
                chunks.append([first, block - first])
            first = None
            continue
        first = block if first is None else first
        length = (block + 1 - first) * sealing.BLOCK
        if length >= largest or (length >= smallest and xxhash.xxh3_64_intdigest(piece, seed) & mask == 0):
            chunks.append([first, block + 1 - first])
            first = None
    if first is not None:
        chunks.append([first, count - first])
    return chunks


def check_vectors(directory):
    checks = {"chunker.json": check_chunker, "crypto.json": check_crypto}
    paths = sorted(pathlib.Path(directory).glob("*.json"))
    sealing.require({path.name for path in paths} == set(checks), f"{directory}: other files than {', '.join(checks)}")
    for path in paths:
        print(f"{path.name}: {checks[path.name](json.loads(path.read_text()))} known answers")
    return 0


def check_chunker(known):
    for case in known["disk"]:
        content = bytearray(blake3.blake3(case["label"].encode()).digest(length=case["blocks"] * sealing.BLOCK))
        for first, end in case["repeat"]:
            content[first * sealing.BLOCK : end * sealing.BLOCK] = content[
                first * sealing.BLOCK : (first + 1) * sealing.BLOCK
            ] * (end - first)
        for first, end in case["zero"]:
            content[first * sealing.BLOCK : end * sealing.BLOCK] = bytes((end - first) * sealing.BLOCK)
        sealing.require(blake3.blake3(bytes(content)).hexdigest() == case["blake3"], f"{case['label']}: content")
        cuts = cut_window(bytes(content), int(case["seed"], 16), 16384, 65536, 262144)
        sealing.require(cuts == case["chunks"], f"{case['label']}: boundaries")
    return len(known["disk"])


def check_crypto(known):
    unhex, count = bytes.fromhex, 0

    def same(what, found, due):
        nonlocal count
        count += 1
        sealing.require(found == (unhex(due) if isinstance(found, bytes) else due), f"{what}: {found!r}")

    bundle = known["bundle"]
    keys, writer = sealing.Keys(unhex(bundle["full"])), sealing.Keys(unhex(bundle["writer"]))
    sealing.require(keys.full and not writer.full, "bundle: kinds")
    for one in (keys, writer):
        for name in ("repo", "id_key", "structure_key", "authority"):
            same(name, getattr(one, name), bundle[name])
    same("authority", sealing.short_id(keys.authority), bundle["authority_id"])
    same("writer", writer.public, bundle["writer_public"])
    same("writer", sealing.short_id(writer.public), bundle["writer_id"])
    ((recipient, private),) = keys.private.items()
    same("data key", sealing.public_of(private), bundle["data_public"])
    same("data key", recipient, bundle["recipient_id"])

    ids = known["ids"]
    for case in ids["content"]:
        same("chunk id", keys.identify(1, unhex(case["content"])), case["chunk_id"])
        same("node id", keys.identify(2, unhex(case["content"])), case["node_id"])
    same("workload tag", keys.identify(3, ids["workload"].encode())[:16], ids["workload_tag"])
    same("seed", int.from_bytes(keys.identify(4, b"aligned-cdc-1")[:8], "little"), ids["chunker_seed"])
    gear = blake3.blake3(b"\x04fastcdc-2020", key=keys.id_key).digest(length=2048)
    same("gear", int.from_bytes(gear[:8], "little"), ids["gear_first"])
    same("gear", int.from_bytes(gear[-8:], "little"), ids["gear_last"])
    same("gear", blake3.blake3(gear).digest(), ids["gear_blake3"])

    for case in known["derived"]:
        same("derived key", sealing.hkdf(unhex(case["salt"]), keys.structure_key, unhex(case["info"])), case["key"])
    for case in known["frames"]:
        at = [case[name] for name in ("object", "kind", "offset", "raw_len", "codec")]
        same(
            "frame", sealing.frame_unseal(case["aead"], unhex(case["key"]), *at, unhex(case["frame"])), case["content"]
        )

    case, uid = known["pack_key"], unhex(known["pack_key"]["uid"])
    kem, length, recipient = struct.unpack_from("<HH16s", unhex(case["slot"]))
    sealing.require(kem == 0x0020 and length == 80, "pack key: slot")
    sealed = unhex(case["slot"])[20:]
    key = sealing.pack_key_open(keys.private[recipient], uid, keys.repo, unhex(case["commitment"]), sealed)
    same("pack key", key, case["key"])

    for case in known["objects"]:
        name, kind = case["name"], case["kind"]
        signer, signature, body = sealing.object_open(keys, name, kind, unhex(case["bytes"]))
        public = keys.authority if case["signer"] == "full" else writer.public
        same(name, body, case["body"])
        sealing.require(signer == sealing.short_id(public), f"{name}: signer")
        sealing.record_verify(keys, name, kind, public, signature, body)

    for case in known["slots"]:
        passphrase = case["passphrase"].encode() if "passphrase" in case else None
        key_file = sealing.key_file_decode(case["key_file"].encode()) if "key_file" in case else None
        opened = sealing.slot_open(case["slot"], unhex(case["bytes"]), passphrase, key_file)
        sealing.require(opened is not None and opened.full == (case["bundle"] == "full"), f"slot {case['label']}")
        same("slot", opened.id_key, bundle["id_key"])

    same(
        "descriptor",
        sealing.descriptor_open(keys, unhex(known["descriptor"]["bytes"]))["created"],
        known["descriptor"]["created"],
    )
    return count


if __name__ == "__main__":
    try:
        sys.exit(check_vectors(sys.argv[1]))
    except sealing.Damage as error:
        print(error, file=sys.stderr)
        sys.exit(1)
