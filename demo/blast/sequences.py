#!/usr/bin/env python3
"""Makes a database of DNA sequences and queries for it, the same bytes from the same seed everywhere.

    sequences.py --seed 1 --sequences 2000 --length 10000 --queries 500 DIRECTORY

Writes database.fa and queries.fa. Each query is a stretch of one of the sequences with about a
tenth of its bases changed, so that a search has something to find. All bytes are drawn from
SHAKE-128 of the seed: no library's random numbers, which may change with its version.
"""
import argparse
import hashlib
import pathlib

BASES = b"ACGT"
FOUR_BASES = [bytes(BASES[byte >> shift & 3] for shift in (6, 4, 2, 0)) for byte in range(256)]
QUERY_LENGTH = 600
COLUMNS = 70


def draw(seed, what, count):
    return hashlib.shake_128(f"godwit {seed} {what}".encode()).digest(count)


def bases(seed, what, count):
    return b"".join(FOUR_BASES[byte] for byte in draw(seed, what, (count + 3) // 4))[:count]


def mutate(stretch, seed, what):
    changed = bytearray(stretch)
    for at, byte in enumerate(draw(seed, what, len(stretch))):
        if byte < 26:  # A tenth of 256; the low bits choose the base.
            changed[at] = BASES[byte & 3]
    return bytes(changed)


def write_record(out, name, sequence):
    out.write(f">{name}\n".encode())
    for at in range(0, len(sequence), COLUMNS):
        out.write(sequence[at:at + COLUMNS] + b"\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--length", type=int, default=10000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("directory", type=pathlib.Path)
    args = parser.parse_args()

    every = [bases(args.seed, f"sequence {i}", args.length) for i in range(args.sequences)]
    with open(args.directory / "database.fa", "wb") as out:
        for i, sequence in enumerate(every):
            write_record(out, f"s{i}", sequence)
    with open(args.directory / "queries.fa", "wb") as out:
        for i in range(args.queries):
            choice = int.from_bytes(draw(args.seed, f"choice {i}", 8), "little")
            sequence = every[choice % len(every)]
            start = choice // len(every) % max(1, len(sequence) - QUERY_LENGTH)
            stretch = sequence[start:start + QUERY_LENGTH]
            write_record(out, f"q{i}", mutate(stretch, args.seed, f"query {i}"))


if __name__ == "__main__":
    main()
