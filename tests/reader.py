#!/usr/bin/env python3
"""An independent reader of Coffer repositories, made from repo/FORMAT.md alone.

    reader.py LOCATION (--password-file F | --key-file F) list | digest POINT DISK | cat POINT DISK | check

LOCATION is a directory. `list` prints one JSON object per snapshot that counts, `cat` writes a disk to standard output,
`digest` prints its map ("data OFFSET LENGTH BLAKE3" and "unreadable OFFSET LENGTH", runs cut at windows), `check` opens
every object and every frame. Exit codes: 0 done, 1 damage or another error, 2 wrong use, 3 done but blocks are missing
that could not be read at the source (named on standard error).

This is a second opinion, not a tool: it holds whole objects in memory and knows one kind of store. It shares no code
with the product, is as strict as the text, and never looks at the product's source. It does not cut chunks; that, and
the vectors, are the matter of known_answers.py. Needs the packages blake3, cryptography (with Argon2id) and zstandard.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import stat
import struct
import sys

import blake3

from sealing import (
    BLOCK,
    KIB64,
    Damage,
    cbor_decode,
    descriptor_open,
    fields,
    frame_open,
    hkdf,
    key_file_decode,
    object_open,
    pack_key_open,
    record_verify,
    require,
    short_id,
    slot_open,
    verify,
)

HEX32 = "[0-9a-f]{32}"
UTC = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ"
MOST_PACKS = 64


# ---- Section 5: packs ------------------------------------------------------------------------------------------------


class Pack:
    """A pack whose header, footer and table of contents hold. Frames are opened one by one."""

    def __init__(self, repository, name, octets):
        self.repository, self.name, self.octets = repository, name, octets
        keys = repository.keys
        tree = name.startswith("trees/")
        self.kind, self.uid = 2 if tree else 1, bytes.fromhex(name.split("/")[2])
        require(len(octets) >= 128 + 64 + 64, f"{name}: too short")
        require(len(octets) < 1 << 32, f"{name}: too long")
        magic, major, minor, incompat = struct.unpack_from("<8sHHI", octets)
        kind, aead, slots, epoch = struct.unpack_from("<BBHI", octets, 24)
        uid, repo, signer, commitment = struct.unpack_from("<16s16s16s16s", octets, 32)
        length, reserved = struct.unpack_from("<I28s", octets, 96)
        require(magic == b"CFPACK\r\n" and major == 1, f"{name}: magic or version")
        require(incompat == 0, f"{name}: unknown incompat bits {incompat:#x}")
        require(minor > 0 or not any(reserved), f"{name}: reserved bytes")
        require(kind == self.kind, f"{name}: kind {kind}")
        require(aead in (1, 2), f"{name}: unknown cipher {aead}")
        require(uid == self.uid and repo == keys.repo, f"{name}: another pack's or another repository's header")
        require(192 <= length <= KIB64 and length <= len(octets), f"{name}: length of the header")
        header = octets[:length]
        verify(name, repository.public_key(signer), header[-64:], b"coffer v1 pack header" + header[:-64])
        if tree:
            require(
                slots == 0 and epoch == 0 and not any(commitment) and length == 192, f"{name}: a tree pack has no key"
            )
        self.signer, self.aead, self.header = signer, aead, header
        self._slots(slots, commitment)
        self._contents(length)

    def _slots(self, count, commitment):
        keys, at, end = self.repository.keys, 128, len(self.header) - 64
        self.key = hkdf(self.uid, keys.structure_key, b"coffer v1 tree pack") if self.kind == 2 else None
        for _ in range(count):
            require(at + 20 <= end, f"{self.name}: key slots")
            kem, length, recipient = struct.unpack_from("<HH16s", self.header, at)
            at += 20
            require(at + length <= end, f"{self.name}: key slots")
            if kem == 0x0020 and recipient in keys.private and self.key is None:
                sealed = self.header[at : at + length]
                self.key = pack_key_open(keys.private[recipient], self.uid, keys.repo, commitment, sealed)
            at += length
        require(at == end, f"{self.name}: key slots do not fill the header")

    def _contents(self, header):
        name, octets = self.name, self.octets
        (offset, stored, raw, count, aead, reserved, whole, uid, reserved2, magic) = struct.unpack(
            "<QIIIB3sQ16s8s8s", octets[-64:]
        )
        require(magic == b"CFPEND\r\n" and uid == self.uid and whole == len(octets), f"{name}: footer")
        require(not any(reserved) and not any(reserved2) and aead == self.aead, f"{name}: footer")
        require(
            raw == 48 * count and stored == raw + 16 and offset + stored + 64 == whole and count > 0, f"{name}: footer"
        )
        key = hkdf(self.uid, self.repository.keys.structure_key, b"coffer v1 pack contents")
        contents = frame_open(aead, key, name, 0x80 | self.kind, offset, raw, 0, octets[offset : offset + stored])
        self.entries, expected = {}, header
        self.table = []
        for ident, at, length, plain, kind, reserved in struct.iter_unpack("<32sIIIB3s", contents):
            require(at == expected and kind == self.kind and not any(reserved), f"{name}: table of contents")
            require(plain > 0 and 16 < length <= plain + 16, f"{name}: table of contents")
            self.table.append((ident, at, length, plain))
            self.entries[at] = (ident, length, plain)
            expected = at + length
        require(expected == offset, f"{name}: frames do not end where the table begins")

    def frame(self, ident, offset, stored):
        """The bytes of one frame, id not yet checked; None when no such frame is there."""
        entry = self.entries.get(offset)
        if entry is None or entry[:2] != (ident, stored):
            return None
        require(self.key is not None, f"{self.name}: no key of this bundle opens it")
        raw = entry[2]
        codec = 0 if stored == raw + 16 else 1
        return frame_open(
            self.aead, self.key, self.name, self.kind, offset, raw, codec, self.octets[offset : offset + stored]
        )


# ---- Section 6: disk maps --------------------------------------------------------------------------------------------


class Node:
    """A decoded disk-map node. Entries of a leaf: (first, count, id or None, hint); of an inner node: (slot, id, hint).
    A hint is (pack uid, offset, stored length)."""

    def __init__(self, what, raw, level):
        require(len(raw) >= 8, f"{what}: cut short")
        kind, version, own_level, reserved, count = struct.unpack_from("<BBBBI", raw)
        require(version == 1 and reserved == 0 and count > 0, f"{what}: header")
        require(own_level == level and kind == (1 if level == 0 else 2), f"{what}: type or level")
        self.level, self.entries = level, []
        body = memoryview(raw)[8:]
        size = 37 if level == 0 else 33
        require(len(body) >= size * count, f"{what}: cut short")
        self.identity = raw[: 8 + size * count]
        identity, hints = body[: size * count], body[size * count :]
        (self._leaf if level == 0 else self._inner)(what, count, identity, hints)

    def _leaf(self, what, count, identity, hints):
        require(len(hints) >= 4, f"{what}: cut short")
        packs = int.from_bytes(hints[:4], "little")
        require(len(hints) == 4 + 16 * packs + 10 * count, f"{what}: length")
        table, hints = bytes(hints[4 : 4 + 16 * packs]), hints[4 + 16 * packs :]
        end = 0
        rows = zip(struct.iter_unpack("<HHB32s", identity), struct.iter_unpack("<HII", hints))
        for (first, blocks, kind, ident), (index, offset, stored) in rows:
            require(first >= end and blocks > 0, f"{what}: entries out of order or overlapping")
            end = first + blocks
            if kind == 2:
                require(not any(ident) and index == offset == stored == 0, f"{what}: an unreadable entry names a chunk")
                self.entries.append((first, blocks, None, None))
            else:
                require(kind == 1, f"{what}: type of an entry")
                require(index < packs, f"{what}: index of a pack")
                self.entries.append((first, blocks, ident, (table[16 * index : 16 * index + 16], offset, stored)))

    def _inner(self, what, count, identity, hints):
        require(len(hints) == 28 * count, f"{what}: length")
        last = -1
        rows = zip(struct.iter_unpack("<B32s", identity), struct.iter_unpack("<16sIII", hints))
        for (slot, ident), (uid, offset, stored, raw) in rows:
            require(slot > last, f"{what}: entries out of order")
            last = slot
            require(16 < stored <= raw + 16, f"{what}: lengths of a hint")
            self.entries.append((slot, ident, (uid, offset, stored)))


# ---- The repository --------------------------------------------------------------------------------------------------

NAMES = {
    None: [r"repo", r"features/.+", rf"keys/{HEX32}"],
    1: [r"packs/([0-9a-f]{2})/\1[0-9a-f]{30}"],
    2: [r"trees/([0-9a-f]{2})/\1[0-9a-f]{30}"],
    4: [rf"index/{HEX32}-[0-9a-f]{{16}}"],
    5: [rf"writers/{HEX32}"],
    6: [rf"sessions/{HEX32}-[0-9a-f]{{8}}"],
    7: [rf"snapshots/{HEX32}/{UTC}-{HEX32}/claim"],
    8: [rf"snapshots/{HEX32}/{UTC}-{HEX32}/decision"],
    9: [rf"forgets/{HEX32}"],
    10: [rf"condemned/{HEX32}"],
    11: [rf"moved/{HEX32}/{HEX32}"],
    12: [rf"notes/{HEX32}"],
    14: [r"epochs/[0-9a-f]{8}"],
}
AUTHORITY_ONLY = {5, 9, 10, 12, 14}


def kind_of(name):
    for kind, patterns in NAMES.items():
        if any(re.fullmatch(pattern, name) for pattern in patterns):
            return kind
    raise Damage(f"{name}: not a name of this format")


class Repository:
    """A directory of objects, and the keys that open them."""

    def __init__(self, location, passphrase=None, key_file=None):
        self.root = pathlib.Path(location)
        for feature in self.names("features"):
            require(feature.startswith(("features/rocompat-", "features/compat-")), f"{feature}: unknown feature")
        self.keys = self._unlock(passphrase, key_file)
        self.descriptor = descriptor_open(self.keys, self.get("repo"))
        self.window, self.fanout = self.descriptor["disk"]["window"], self.descriptor["fanout"]
        self.signers, self.packs, self._located, self._moves = {}, {}, None, {}

    # Objects

    def names(self, folder=""):
        found = (str(p.relative_to(self.root)) for p in (self.root / folder).rglob("*") if p.is_file())
        return sorted(name for name in found if not name.startswith("tmp/"))

    def exists(self, name):
        return (self.root / name).is_file()

    def get(self, name):
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            raise Damage(f"{name}: missing") from None

    # Sections 2 and 3

    def _unlock(self, passphrase, key_file):
        damage, opened = [], []
        for name in self.names("keys"):
            kind_of(name)
            try:
                keys = slot_open(name.split("/")[1], self.get(name), passphrase, key_file)
            except Damage as error:
                damage.append(str(error))
                continue
            if keys:
                opened.append(keys)
        if opened:
            # An interrupted rotation leaves two: the newer one has all keys of the older one.
            return max(opened, key=lambda keys: len(keys.private))
        raise Damage("; ".join(damage) or "no key slot opens with this passphrase or key file")

    # Section 4

    def public_key(self, signer):
        if signer == short_id(self.keys.authority):
            return self.keys.authority
        if signer not in self.signers:
            name = f"writers/{signer.hex()}"
            body = fields(name, self.record(name), {"public": 32, "label": str, "created": int})
            require(short_id(body["public"]) == signer, f"{name}: another key's certificate")
            self.signers[signer] = body["public"]
        return self.signers[signer]

    def unseal(self, name):
        """The content of a sealed object, its signer and body."""
        kind = kind_of(name)
        signer, signature, body = object_open(self.keys, name, kind, self.get(name))
        if kind in AUTHORITY_ONLY:
            require(signer == short_id(self.keys.authority), f"{name}: only the authority can sign this")
        record_verify(self.keys, name, kind, self.public_key(signer), signature, body)
        return signer, body

    def record(self, name):
        return cbor_decode(self.unseal(name)[1])

    # Section 5

    def pack(self, name):
        if name not in self.packs:
            if len(self.packs) >= MOST_PACKS:
                self.packs.pop(next(iter(self.packs)))
            self.packs[name] = Pack(self, name, self.get(name))
        return self.packs[name]

    # Section 6

    def fetch(self, kind, ident, hint):
        """A chunk or node by id: from where the hint says, then from where `moved/` says, then the index."""
        folder = "packs" if kind == 1 else "trees"
        reasons = []
        for candidate in self._places(ident, hint):
            uid, offset, stored = candidate
            name = f"{folder}/{uid.hex()[:2]}/{uid.hex()}"
            try:
                raw = self.pack(name).frame(ident, offset, stored)
                require(raw is not None, f"{name} at {offset}: another frame than the hint says")
                content = raw if kind == 1 else Node(f"{name} at {offset}", raw, raw[2] if len(raw) > 2 else 0).identity
                require(
                    self.keys.identify(kind, content) == ident, f"{name} at {offset}: another content than its id says"
                )
                return raw
            except Damage as error:
                reasons.append(str(error))
        raise Damage(f"{'chunk' if kind == 1 else 'node'} {ident.hex()}: " + "; ".join(reasons))

    def _places(self, ident, hint):
        yield hint
        uid = hint[0]
        if uid not in self._moves:
            self._moves[uid] = []
            for name in self.names(f"moved/{uid.hex()}"):
                self._moves[uid] += self.moved(name)
        for short, target, offset, stored in self._moves[uid]:
            if short == ident[:16]:
                yield target, offset, stored
        for uid, offset, stored, _ in self.located().get(ident[:16], []):
            yield uid, offset, stored

    def moved(self, name):
        chunks = fields(name, self.record(name), {"chunks": list})["chunks"]
        for entry in chunks:
            require(
                isinstance(entry, list)
                and len(entry) == 4
                and [type(item) for item in entry] == [bytes, bytes, int, int]
                and len(entry[0]) == len(entry[1]) == 16,
                f"{name}: an entry",
            )
        return chunks

    # Section 7

    def delta(self, name):
        """(superseded names, packs) of an index delta; a pack is (uid, kind, length, signer, entries)."""
        signer, body = self.unseal(name)
        require(name.split("/")[1].split("-")[0] == signer.hex(), f"{name}: another signer than its name says")
        view = memoryview(body)

        def take(count):
            nonlocal view
            require(len(view) >= count, f"{name}: cut short")
            taken, view = bytes(view[:count]), view[count:]
            return taken

        pack_count, superseded_count = struct.unpack("<II", take(8))
        superseded, packs = [], []
        for _ in range(superseded_count):
            text = take(int.from_bytes(take(2), "little")).decode("ascii", "replace")
            require(kind_of(text) == 4, f"{name}: supersedes {text}")
            superseded.append(text)
        for _ in range(pack_count):
            uid, kind, length, owner, count = struct.unpack("<16sBQ16sI", take(45))
            require(kind in (1, 2), f"{name}: kind of a pack")
            entries = list(struct.iter_unpack("<16sIII", take(28 * count)))
            require(
                all(offset + stored <= length for _, offset, stored, _ in entries), f"{name}: an entry outside its pack"
            )
            packs.append((uid, kind, length, owner, entries))
        require(not view, f"{name}: bytes after the end")
        authority = signer == short_id(self.keys.authority)
        owners = [pack[3] for pack in packs] + [bytes.fromhex(text[6:38]) for text in superseded]
        require(authority or all(owner == signer for owner in owners), f"{name}: speaks for another writer")
        return superseded, packs

    def located(self):
        """First 16 bytes of an id -> [(pack uid, offset, stored length, kind)], from the deltas that count."""
        if self._located is None:
            deltas = {name: self.delta(name) for name in self.names("index")}
            gone = {old for superseded, _ in deltas.values() for old in superseded}
            self._located = {}
            for name, (_, packs) in deltas.items():
                for uid, kind, _, _, entries in packs if name not in gone else []:
                    for short, offset, stored, _ in entries:
                        self._located.setdefault(short, []).append((uid, offset, stored, kind))
        return self._located

    # Section 8

    def claim(self, name):
        body = self.record(name)
        common = {
            "v": int,
            "kind": str,
            "time": int,
            "workload": str,
            "tags": list,
            "host": str,
            "user": str,
            "program": str,
            "parents": list,
        }
        require(isinstance(body, dict) and body.get("kind") in ("snapshot", "pin"), f"{name}: kind")
        own = {"purpose": str} if body["kind"] == "pin" else {"disks": list, "stats": dict}
        fields(name, body, {**common, **own}, free=True)
        require(body["v"] == 1, f"{name}: version")
        require(all(isinstance(tag, str) for tag in body["tags"]), f"{name}: tags")
        require(all(isinstance(parent, bytes) and len(parent) == 16 for parent in body["parents"]), f"{name}: parents")
        _, tag, place, _ = name.split("/")
        require(self.keys.identify(3, body["workload"].encode())[:16].hex() == tag, f"{name}: another workload's tag")
        require(utc(body["time"]) == place[:20], f"{name}: another time than its name's")
        if body["kind"] == "pin":
            require(len(body["parents"]) == 1, f"{name}: a pin holds one snapshot")
            return body
        fields(
            f"{name}: stats",
            body["stats"],
            {"read": int, "new_chunks": int, "new_raw": int, "new_stored": int},
            free=True,
        )
        names = set()
        for disk in body["disks"]:
            fields(
                f"{name}: disk",
                disk,
                {"name": str, "size": int, "block": int, "root": 0},
                {"token": str, "platform": dict, "unreadable": int},
                free=True,
            )
            require(disk["name"] not in names, f"{name}: two disks of one name")
            require(disk.get("unreadable") != 0, f"{name}: unreadable is absent when it is 0")
            names.add(disk["name"])
        return body

    def claims(self):
        """All claims: id -> (name, body)."""
        names = [name for name in self.names("snapshots") if kind_of(name) == 7]
        return {bytes.fromhex(name.split("/")[2][21:]): (name, self.claim(name)) for name in names}

    def forgotten(self, ident):
        name = f"forgets/{ident.hex()}"
        if not self.exists(name):
            return False
        fields(name, self.record(name), {"time": int, "tag": 16, "utc": str})
        return True

    def decision(self, name):
        body = fields(name, self.record(name), {"decision": str})
        require(body["decision"] in ("COMMIT", "REVOKE"), f"{name}: decision")
        return body["decision"]

    def snapshots(self):
        """Those that count, by time and id: [(id, body)]."""
        found = []
        for ident, (name, body) in self.claims().items():
            decision = name[: -len("claim")] + "decision"
            if (
                body["kind"] == "snapshot"
                and self.exists(decision)
                and self.decision(decision) == "COMMIT"
                and not self.forgotten(ident)
            ):
                found.append((ident, body))
        return sorted(found, key=lambda pair: (pair[1]["time"], pair[0]))

    def disk(self, point, name):
        found = [(ident, body) for ident, body in self.snapshots() if ident.hex().startswith(point)]
        require(len(found) == 1, f"{point}: {len(found)} snapshots begin so")
        disks = [disk for disk in found[0][1]["disks"] if disk["name"] == name]
        require(disks, f"{point}: no disk {name}")
        return disks[0]

    # Section 6 again: walking

    def walk(self, disk):
        """Yields (offset, length, bytes or None when unreadable) for every entry, in order, cut at the disk's end."""
        root, level = disk["root"], 0
        while self.window * self.fanout**level < disk["size"]:
            level += 1
        if root:
            yield from self._walk(disk["size"], Node(f"root of {disk['name']}", root, level), 0)

    def _walk(self, size, node, base):
        if node.level:
            part = self.window * self.fanout ** (node.level - 1)
            for slot, ident, hint in node.entries:
                at = base + slot * part
                require(slot < self.fanout and at < size, f"node {ident.hex()}: beyond the disk's end")
                raw = self.fetch(2, ident, hint)
                yield from self._walk(size, Node(f"node {ident.hex()}", raw, node.level - 1), at)
            return
        for first, blocks, ident, hint in node.entries:
            at, length = base + first * BLOCK, blocks * BLOCK
            require(first + blocks <= self.window // BLOCK, f"leaf at {base}: beyond its window")
            require(at + length < size + BLOCK, f"leaf at {base}: beyond the disk's end")
            content = None
            if ident is not None:
                content = self.fetch(1, ident, hint)
                require(len(content) == length, f"chunk {ident.hex()}: {len(content)} bytes for {blocks} blocks")
                require(not any(content[max(size - at, 0) :]), f"chunk {ident.hex()}: padded with other than zeroes")
                content = content[: size - at]
            yield at, min(length, size - at), content


def utc(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H-%M-%SZ")


def runs(repository, disk):
    """Merges the entries of a disk into runs of one kind that cross no window: (offset, length, hash or None)."""
    at, length, hasher = 0, 0, None

    def run():
        return (at, length, hasher.hexdigest() if hasher else None)

    for offset, count, content in repository.walk(disk):
        same = (content is None) == (hasher is None) and offset == at + length and offset % repository.window
        if not (length and same):
            if length:
                yield run()
            at, length, hasher = offset, 0, None if content is None else blake3.blake3()
        length += count
        if hasher:
            hasher.update(content)
    if length:
        yield run()


# ---- Commands --------------------------------------------------------------------------------------------------------


def list_points(repository):
    for ident, body in repository.snapshots():
        shown = {
            "id": ident.hex(),
            **{key: body[key] for key in ("time", "workload", "tags", "host", "user", "program")},
        }
        shown["parents"] = [parent.hex() for parent in body["parents"]]
        shown["disks"] = [
            {key: disk[key] for key in ("name", "size", "block", "token", "unreadable") if key in disk}
            for disk in body["disks"]
        ]
        print(json.dumps(shown, sort_keys=True))
    return 0


def digest(repository, point, name):
    for offset, length, known in runs(repository, repository.disk(point, name)):
        print(f"data {offset} {length} {known}" if known else f"unreadable {offset} {length}")
    return 0


def cat(repository, point, name):
    disk, out, at, missing = repository.disk(point, name), sys.stdout.buffer, 0, 0
    sparse = stat.S_ISREG(os.fstat(out.fileno()).st_mode)
    zeroes = bytes(1 << 20)

    def skip(count):
        if sparse:
            out.seek(count, os.SEEK_CUR)
        else:
            while count:
                count -= out.write(zeroes[:count])

    for offset, length, content in repository.walk(disk):
        skip(offset - at)
        if content is None:
            print(f"unreadable at the source: {offset} {length}", file=sys.stderr)
            skip(length)
            missing += length
        else:
            out.write(content)
        at = offset + length
    skip(disk["size"] - at)
    if sparse:
        out.flush()
        out.truncate(disk["size"])
    return 3 if missing else 0


def check(repository):
    """Opens every object, every frame and every map; returns 1 when anything is wrong, having named it all."""
    problems, frames, located = [], 0, {}

    def attempt(step, *arguments):
        try:
            return step(*arguments)
        except Damage as error:
            problems.append(str(error))
            return None

    def check_pack(name):
        nonlocal frames
        pack = repository.pack(name)
        located[name] = pack
        for ident, offset, stored, _ in pack.table:
            if pack.key is None:
                continue
            frames += 1
            raw = pack.frame(ident, offset, stored)
            content = raw if pack.kind == 1 else Node(f"{name} at {offset}", raw, raw[2]).identity
            require(
                repository.keys.identify(pack.kind, content) == ident,
                f"{name} at {offset}: another content than its id says",
            )

    def check_delta(name):
        for uid, kind, length, signer, entries in repository.delta(name)[1]:
            pack_name = f"{'packs' if kind == 1 else 'trees'}/{uid.hex()[:2]}/{uid.hex()}"
            pack = located.get(pack_name)
            if pack is None:
                continue
            require((len(pack.octets), pack.signer) == (length, signer), f"{name}: {pack_name} is another")
            table = sorted((ident[:16], offset, stored, raw) for ident, offset, stored, raw in pack.table)
            require(table == sorted(entries), f"{name}: {pack_name} has another table of contents")

    def check_disk(disk):
        lost = (length for _, length, content in repository.walk(disk) if content is None)
        unreadable = sum(-(-length // BLOCK) * BLOCK for length in lost)
        require(unreadable == disk.get("unreadable", 0), f"disk {disk['name']}: {unreadable} bytes are unreadable")

    def check_shape(name, kind):
        fields(name, repository.record(name), shapes[kind], free=kind == 12)

    def check_epoch(name):
        body = fields(name, repository.record(name), {"epoch": int, "public": 32, "time": int})
        require(body["epoch"] == int(name.split("/")[1], 16) > 1, f"{name}: another epoch's number")

    shapes = {6: {"host": str, "program": str, "workload": str}, 10: {"packs": list}, 12: {"snapshot": 16}}
    names = repository.names()
    kinds = {name: attempt(kind_of, name) for name in names}
    for name in names:
        kind = kinds[name]
        if kind in (1, 2):
            attempt(check_pack, name)
        elif kind == 5:
            attempt(repository.public_key, bytes.fromhex(name.split("/")[1]))
        elif kind == 14:
            attempt(check_epoch, name)
        elif kind in shapes:
            attempt(check_shape, name, kind)
        elif kind == 8:
            attempt(repository.decision, name)
        elif kind == 9:
            attempt(repository.forgotten, bytes.fromhex(name.split("/")[1]))
        elif kind == 11:
            attempt(repository.moved, name)
        elif name.startswith("keys/"):
            attempt(slot_open, name.split("/")[1], repository.get(name))
    for name in names:
        if kinds[name] == 4:
            attempt(check_delta, name)
    attempt(repository.claims)
    points = attempt(repository.snapshots) or []
    for _, body in points if repository.keys.full else []:
        for disk in body["disks"]:
            attempt(check_disk, disk)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(names)} objects, {frames} frames, {len(points)} snapshots, {len(problems)} problems")
    return 1 if problems else 0


def main():
    parser = argparse.ArgumentParser(description="An independent reader of Coffer repositories.")
    parser.add_argument("location")
    credential = parser.add_mutually_exclusive_group(required=True)
    credential.add_argument("--password-file", type=pathlib.Path, help="the passphrase, up to the first newline")
    credential.add_argument("--key-file", type=pathlib.Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    commands.add_parser("check")
    for name in ("cat", "digest"):
        command = commands.add_parser(name)
        command.add_argument("point", help="an id or its beginning")
        command.add_argument("disk")
    options = parser.parse_args()
    if options.password_file:
        repository = Repository(options.location, passphrase=options.password_file.read_bytes().split(b"\n")[0])
    else:
        repository = Repository(options.location, key_file=key_file_decode(options.key_file.read_bytes()))
    if options.command in ("cat", "digest"):
        return {"cat": cat, "digest": digest}[options.command](repository, options.point, options.disk)
    return {"list": list_points, "check": check}[options.command](repository)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Damage as error:
        print(error, file=sys.stderr)
        sys.exit(1)
