#!/usr/bin/env python3
"""The generated part of the benchmarks' disk images; the same arguments give the same bytes.

payload.py SEED photos  FOLDER LABEL FIRST LAST   photographs: 1 to 4 MiB each, a JFIF header, an incompressible body
payload.py SEED log     FILE LABEL BYTES          appends so many bytes of log lines
payload.py SEED db      FILE LABEL PAGES          a database of slotted pages of 8 KiB
payload.py SEED rewrite FILE LABEL PERMILLE       rewrites that share of its pages in place

Needs openssl for the photographs. Not here: file systems and packages, which dataset.sh makes.
"""

import hashlib
import os
import random
import struct
import subprocess
import sys

PAGE = 8192
WORDS = [
    verb + noun
    for verb in "get put open close read write flush commit start stop retry accept drop route".split()
    for noun in "Session Request Page Table Index User Token Block Volume Lease Queue Worker".split()
]
LINE = "2026-%02d-%02dT%02d:%02d:%02dZ host%d app[%d]: %s id=%08x user=%d dur=%.3fms status=%d path=/v1/%s/%d\n"


def photo(path, label):
    """Writes one photograph; the body is a key stream, which openssl makes faster than Python's generator could."""
    key = hashlib.sha256(label.encode()).hexdigest()[:32]
    size = 1 << 20 | int(key[:6], 16) % (3 << 20)
    cipher = ["openssl", "enc", "-aes-128-ctr", "-nosalt", "-iv", "0" * 32, "-K", key]
    body = subprocess.run(cipher, input=bytes(size), capture_output=True, check=True).stdout
    with open(path, "wb") as file:
        file.write(b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0" + body)


def log(path, dice, size):
    """Appends `size` bytes of log lines, to within a line."""
    now = 1_750_000_000 + dice.randrange(10**6)
    with open(path, "a", encoding="ascii") as file:
        while size > 0:
            now += dice.randrange(3)
            line = LINE % (
                1 + now // 2592000 % 12, 1 + now // 86400 % 28, now // 3600 % 24, now // 60 % 60, now % 60,
                dice.randrange(4), 1000 + dice.randrange(60), dice.choice(WORDS), dice.getrandbits(32),
                dice.randrange(5000), dice.random() * 300, dice.choice((200, 200, 200, 200, 304, 404, 500)),
                dice.choice(WORDS).lower(), dice.randrange(100000),
            )  # fmt: skip
            file.write(line)
            size -= len(line)


def page(dice, number, generation):
    """One page: a header, slots, and rows with numbers, words and a random column."""
    rows, used = [], 64
    while used < 7700:
        words = ("%s %s %s" % (dice.choice(WORDS), dice.choice(WORDS), dice.choice(WORDS))).encode().ljust(48, b" ")
        row = struct.pack("<IQ", dice.getrandbits(24), dice.getrandbits(40)) + words + dice.randbytes(24)
        rows.append(row)
        used += len(row) + 4
    head = struct.pack("<QQIIII", 0xDB01, number, generation, len(rows), used, 0) + bytes(32)
    slots = b"".join(struct.pack("<HH", 64 + i * 84, 84) for i in range(len(rows)))
    body = b"".join(rows)
    return (head + slots).ljust(PAGE - len(body), b"\0") + body


def main():
    seed, command, path, label, *numbers = sys.argv[1:]
    numbers = [int(number) for number in numbers]
    dice = random.Random(f"{seed}/{label}")
    if command == "photos":
        first, last = numbers
        for number in range(first, last + 1):
            photo(os.path.join(path, f"IMG_{number:05d}.jpg"), f"{seed}/{label}/{number}")
    elif command == "log":
        log(path, dice, *numbers)
    elif command == "db":
        with open(path, "wb") as file:
            for number in range(*numbers):
                file.write(page(dice, number, 0))
    elif command == "rewrite":
        pages = os.path.getsize(path) // PAGE
        with open(path, "r+b") as file:
            for number in sorted(dice.sample(range(pages), pages * numbers[0] // 1000)):
                file.seek(number * PAGE)
                file.write(page(dice, number, 1))
    else:
        sys.exit(__doc__)


main()
