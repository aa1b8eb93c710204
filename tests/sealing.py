"""Keys, sealed objects and canonical CBOR of Coffer repositories: sections 2, 3, 4 and 9 of repo/FORMAT.md, and
the pack keys of section 5, made from that text alone.

Not here: which objects there are and what they mean (reader.py). What holds: what the text does not allow is Damage.
"""

import hashlib
import hmac
import re
import struct

import blake3
import zstandard
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

BLOCK = 4096
KIB64 = 65536
MIB64 = 64 << 20


class Damage(Exception):
    """What was read is not what the format says."""


def require(condition, message):
    if not condition:
        raise Damage(message)


# ---- Section 9: canonical CBOR ---------------------------------------------------------------------------------------


def cbor_decode(octets):
    value, rest = _cbor_item(octets, 0, iter(range(1 << 20)))
    require(not rest, "CBOR: bytes after the item")
    return value


def _cbor_item(octets, depth, budget):
    require(next(budget, None) is not None, "CBOR: too many values")
    require(octets, "CBOR: cut short")
    major, low, rest = octets[0] >> 5, octets[0] & 31, octets[1:]
    if major == 7:
        require(low in (20, 21, 22), f"CBOR: simple value or float {low}")
        return {20: False, 21: True, 22: None}[low], rest
    require(major != 6, "CBOR: tag")
    if low < 24:
        count = low
    else:
        require(low < 28, "CBOR: indefinite or reserved length")
        width = 1 << (low - 24)
        require(len(rest) >= width, "CBOR: cut short")
        count, rest = int.from_bytes(rest[:width], "big"), rest[width:]
        require(count >= (24 if width == 1 else 1 << (4 * width)), "CBOR: an integer is not in its shortest form")
    if major == 0:
        return count, rest
    if major == 1:
        return -1 - count, rest
    if major in (2, 3):
        require(len(rest) >= count, "CBOR: cut short")
        raw, rest = rest[:count], rest[count:]
        if major == 2:
            return raw, rest
        try:
            return raw.decode("utf-8"), rest
        except UnicodeDecodeError:
            raise Damage("CBOR: text is not UTF-8") from None
    require(depth < 16, "CBOR: nested too deeply")
    require(count <= len(rest), "CBOR: cut short")
    if major == 4:
        items = []
        for _ in range(count):
            item, rest = _cbor_item(rest, depth + 1, budget)
            items.append(item)
        return items, rest
    pairs, last = {}, None
    for _ in range(count):
        require(rest and rest[0] >> 5 == 3, "CBOR: a key is not text")
        key, after = _cbor_item(rest, depth + 1, iter((0,)))
        spelled = rest[: len(rest) - len(after)]
        require(last is None or last < spelled, "CBOR: keys out of order or twice")
        last = spelled
        pairs[key], rest = _cbor_item(after, depth + 1, budget)
    return pairs, rest


def cbor_encode(value):
    """Only what re-encoding a key slot needs: maps of text to uint, bytes and text."""

    def head(major, count):
        if count < 24:
            return bytes([major << 5 | count])
        width = next(w for w in (0, 1, 2, 3) if count < 1 << (8 << w))
        return bytes([major << 5 | 24 + width]) + count.to_bytes(1 << width, "big")

    if isinstance(value, int):
        return head(0, value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    pairs = sorted((cbor_encode(k), cbor_encode(v)) for k, v in value.items())
    return head(5, len(pairs)) + b"".join(k + v for k, v in pairs)


def fields(what, value, required, optional=(), free=False):
    """Checks names and shapes: a shape is int, str, list, dict, or a number of bytes (0: any number)."""
    require(isinstance(value, dict), f"{what}: not a map")
    shapes = dict(required)
    shapes.update(dict(optional))
    for name in required:
        require(name in value, f"{what}: {name} is missing")
    for name, item in value.items():
        if name not in shapes:
            require(free, f"{what}: unknown key {name}")
            continue
        shape = shapes[name]
        if isinstance(shape, type):
            good = type(item) is shape and (shape is not int or item >= 0)
        else:
            good = isinstance(item, bytes) and (shape == 0 or len(item) == shape)
        require(good, f"{what}: {name} has the wrong shape")
    return value


# ---- Cryptography ----------------------------------------------------------------------------------------------------


def hkdf(salt, ikm, info, length=32):
    return HKDF(hashes.SHA256(), length, salt, info).derive(ikm)


def short_id(public):
    return blake3.blake3(public).digest()[:16]


def public_of(private):
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def verify(what, public, signature, message):
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        raise Damage(f"{what}: the signature does not hold") from None


def aead_open(what, aead, key, nonce, associated, sealed):
    require(aead in (1, 2), f"{what}: unknown cipher {aead}")
    try:
        return (AESGCM if aead == 1 else ChaCha20Poly1305)(key).decrypt(nonce, sealed, associated)
    except InvalidTag:
        raise Damage(f"{what}: the tag does not hold") from None


def frame_unseal(aead, key, name, kind, offset, raw_length, codec, sealed):
    """Section 4.1, but for decompression."""
    what = f"{name} at {offset}"
    require(codec in (0, 1), f"{what}: unknown codec {codec}")
    if codec == 0:
        require(len(sealed) == raw_length + 16, f"{what}: length of a raw frame")
    else:
        require(16 < len(sealed) < raw_length + 16, f"{what}: length of a compressed frame")
    numbers = struct.pack("<BQIIB", kind, offset, len(sealed), raw_length, codec)
    associated = struct.pack("<H", len(name)) + name.encode() + numbers
    return aead_open(what, aead, key, bytes(4) + struct.pack("<Q", offset), associated, sealed)


def frame_open(aead, key, name, kind, offset, raw_length, codec, sealed):
    """Section 4.1."""
    what = f"{name} at {offset}"
    plain = frame_unseal(aead, key, name, kind, offset, raw_length, codec, sealed)
    if codec == 0:
        return plain
    try:
        inflate = zstandard.ZstdDecompressor().decompressobj(read_across_frames=False)
        raw = inflate.decompress(plain)
    except zstandard.ZstdError as error:
        raise Damage(f"{what}: {error}") from None
    require(
        inflate.eof and not inflate.unused_data and len(raw) == raw_length,
        f"{what}: not one zstd frame of the raw length",
    )
    return raw


def hpke_open(private, enc, info, associated, sealed):
    """RFC 9180, base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; the first message."""

    def extract(suite, salt, label, ikm):
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, hashlib.sha256)

    def expand(suite, prk, label, info, length):
        labelled = struct.pack(">H", length) + b"HPKE-v1" + suite + label + info
        return hmac.digest(prk, labelled + b"\x01", hashlib.sha256)[:length]

    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"
    shared = private.exchange(X25519PublicKey.from_public_bytes(enc))
    shared = expand(kem, extract(kem, b"", b"eae_prk", shared), b"shared_secret", enc + public_of(private), 32)
    context = b"\x00" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", info)
    secret = extract(suite, shared, b"secret", b"")
    key, nonce = expand(suite, secret, b"key", context, 32), expand(suite, secret, b"base_nonce", context, 12)
    return aead_open("HPKE", 1, key, nonce, associated, sealed)


# ---- Section 3: keys -------------------------------------------------------------------------------------------------


class Keys:
    """An opened key bundle."""

    def __init__(self, encoded):
        bundle = cbor_decode(encoded)
        require(isinstance(bundle, dict) and bundle.get("kind") in ("full", "writer"), "bundle: kind")
        full = bundle["kind"] == "full"
        own = "authority_seed" if full else "writer_seed"
        fields(
            "bundle",
            bundle,
            {"kind": str, "repo": 16, "id_key": 32, "structure_key": 32, "authority": 32, "data": list, own: 32},
        )
        self.full, self.repo, self.authority = full, bundle["repo"], bundle["authority"]
        self.id_key, self.structure_key = bundle["id_key"], bundle["structure_key"]
        self.private = {}
        require(bundle["data"], "bundle: no data key")
        last = 0
        for entry in bundle["data"]:
            fields("bundle: data", entry, {"epoch": int, "public": 32, **({"private": 32} if full else {})})
            require(isinstance(entry["epoch"], int) and entry["epoch"] > last, "bundle: epochs do not rise")
            last, self.newest = entry["epoch"], None if entry["epoch"] == 1 else short_id(entry["public"])
            if full:
                private = X25519PrivateKey.from_private_bytes(entry["private"])
                require(public_of(private) == entry["public"], "bundle: halves of a data key do not match")
                self.private[short_id(entry["public"])] = private
        self.public = public_of(Ed25519PrivateKey.from_private_bytes(bundle[own]))
        require(not full or self.public == self.authority, "bundle: halves of the authority's key do not match")

    def identify(self, domain, content):
        return blake3.blake3(bytes([domain]) + content, key=self.id_key).digest()


def slot_open(slot, octets, passphrase=None, key_file=None):
    """The bundle in a key slot, or None when the slot is of the other kind or another credential's."""
    what = f"keys/{slot}"
    require(32 < len(octets) <= KIB64, f"{what}: length")
    require(blake3.blake3(octets[:-32]).digest() == octets[-32:], f"{what}: damaged")
    entry = cbor_decode(octets[:-32])
    costs = {"m": int, "t": int, "p": int} if entry.get("kind") == "passphrase" else {}
    shapes = {"v": int, "kind": str, "bundle": str, "label": str, "created": int, "salt": 32, "sealed": 0}
    fields(what, entry, {**shapes, **costs}, {"recipient": 16})
    require(entry["v"] == 1 and entry["kind"] in ("passphrase", "keyfile"), f"{what}: version or kind")
    require(entry["bundle"] in ("full", "writer"), f"{what}: kind of bundle")
    if entry["kind"] == "passphrase" and passphrase is not None:
        require(entry["m"] <= 2 << 20 and entry["t"] <= 16 and entry["p"] <= 16, f"{what}: cost")
        kek = Argon2id(
            salt=entry["salt"], length=32, iterations=entry["t"], lanes=entry["p"], memory_cost=entry["m"]
        ).derive(passphrase)
    elif entry["kind"] == "keyfile" and key_file is not None:
        kek = hkdf(entry["salt"], key_file, b"coffer v1 key file")
    else:
        return None
    associated = (
        b"coffer v1 key slot" + bytes.fromhex(slot) + cbor_encode({k: v for k, v in entry.items() if k != "sealed"})
    )
    try:
        keys = Keys(AESGCM(kek).decrypt(bytes(12), entry["sealed"], associated))
    except InvalidTag:
        return None
    require(keys.full == (entry["bundle"] == "full"), f"{what}: another kind of bundle than it says")
    require(keys.newest == entry.get("recipient"), f"{what}: another data key than it says")
    return keys


def key_file_decode(text):
    match = re.fullmatch(rb"coffer-key-1:([0-9a-f]{64})\n", text)
    require(match, "key file: not `coffer-key-1:` and 64 hex digits")
    return bytes.fromhex(match[1].decode())


def descriptor_open(keys, octets):
    """The body of the descriptor, section 2."""
    require(len(octets) >= 28 + 64, "repo: cut short")
    magic, major, minor, incompat, _, _, length = struct.unpack_from("<8sHHIIII", octets)
    require(magic == b"COFFER\r\n", "repo: magic")
    require(major == 1, f"repo: major version {major}")
    require(incompat == 0, f"repo: unknown incompat bits {incompat:#x}")
    require(len(octets) == 28 + length + 64, "repo: length")
    verify("repo", keys.authority, octets[-64:], b"coffer v1 descriptor" + octets[:-64])
    body = cbor_decode(octets[28:-64])
    newer = minor > 0
    fields(
        "repo",
        body,
        {"repo": 16, "created": int, "authority": 32, "aead": int, "disk": dict, "stream": dict, "fanout": int},
        free=newer,
    )
    sizes = {"algorithm": str, "min": int, "mean": int, "max": int}
    fields("repo: disk", body["disk"], {**sizes, "block": int, "window": int}, free=newer)
    fields("repo: stream", body["stream"], sizes, free=newer)
    require(body["repo"] == keys.repo, "repo: another repository's id than in the key bundle")
    require(body["authority"] == keys.authority, "repo: another authority than in the key bundle")
    require(body["aead"] in (1, 2), f"repo: unknown cipher {body['aead']}")
    require(body["disk"]["algorithm"] == "aligned-cdc-1" and body["disk"]["block"] == BLOCK, "repo: disk chunker")
    require(body["stream"]["algorithm"] == "fastcdc-2020" and body["fanout"] == 256, "repo: stream chunker or fan-out")
    return body


# ---- Section 4: sealed objects ---------------------------------------------------------------------------------------


def object_open(keys, name, kind, octets):
    """The signer, signature and body of a sealed object; nothing is verified but its tag."""
    require(48 + 16 < len(octets) <= MIB64, f"{name}: length")
    magic, version, own_kind, aead, codec, raw, salt = struct.unpack_from("<8sBBBBI32s", octets)
    require(magic == b"CFOBJ\r\n\0" and version == 1 and own_kind == kind, f"{name}: magic, version or kind")
    require(raw <= MIB64, f"{name}: length of the content")
    key = hkdf(salt, keys.structure_key, b"coffer v1 object" + bytes([kind]))
    content = frame_open(aead, key, name, kind, 48, raw, codec, octets[48:])
    require(len(content) >= 80, f"{name}: cut short")
    return content[:16], content[16:80], content[80:]


def record_verify(keys, name, kind, public, signature, body):
    head = b"coffer v1 record" + bytes([kind]) + keys.repo + struct.pack("<H", len(name)) + name.encode()
    verify(name, public, signature, head + body)


# ---- Section 5: pack keys ----


def pack_key_open(private, uid, repo, commitment, sealed):
    """The key of a data pack, from a slot for the owner of `private`."""
    require(len(sealed) == 80, f"pack {uid.hex()}: length of a key slot")
    key = hpke_open(private, sealed[:32], b"coffer v1 pack key", uid + repo, sealed[32:])
    derived = blake3.blake3(key, derive_key_context="coffer v1 pack key commitment").digest()[:16]
    require(derived == commitment, f"pack {uid.hex()}: the key is not the one committed to")
    return key
