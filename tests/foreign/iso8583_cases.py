#!/usr/bin/env python3
"""Random ISO 8583 messages as pyiso8583 writes and reads them, one JSON object a line.

Each has a dialect and bytes; and `fields` as pyiso8583 reads them, or none if it refuses the bytes. Every third is spoilt.

    iso8583_cases.py --seed 1 --count 300 >tests/vectors/iso8583.jsonl
"""
import argparse
import json
import random

import iso8583

from iso8583_spec import SPECS

DIGITS = "0123456789"
LETTERS = DIGITS + "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz "
PRINTS = "".join(map(chr, range(0x20, 0x7F)))
ALPHABETS = {"n": DIGITS, "z": DIGITS + "=", "an": LETTERS, "ans": PRINTS}


def value(chance, dialect, kind, length, longest):
    count = chance.randint(0, min(longest, 25)) if length else longest
    if kind == "b":
        return bytes(chance.randrange(256) for _ in range(count)).hex().upper()
    # In packed digits pyiso8583 knows no separator but D.
    alphabet = DIGITS if dialect == "packed" and kind == "z" else ALPHABETS[kind]
    return "".join(chance.choice(alphabet) for _ in range(count))


def spoil(chance, message):
    message = bytearray(message)
    at = chance.randrange(len(message))
    match chance.randrange(4):
        case 0:
            del message[at:]
        case 1:
            message.insert(at, chance.randrange(256))
        case 2:
            del message[at]
        case _:
            message[at] ^= 1 << chance.randrange(8)
    return bytes(message)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--count", type=int, default=300)
    arguments = arguments.parse_args()
    chance = random.Random(arguments.seed)
    for number in range(arguments.count):
        dialect = chance.choice(sorted(SPECS))
        table, spec = SPECS[dialect]
        fields = {"t": f"{chance.randrange(10_000):04}"}
        for element in sorted(chance.sample(sorted(table), chance.randint(0, min(12, len(table))))):
            fields[str(element)] = value(chance, dialect, *table[element])
        message = bytes(iso8583.encode(dict(fields), spec)[0])
        spoilt = number % 3 == 0
        if spoilt:
            message = spoil(chance, message)
        try:
            read = {name: text for name, text in iso8583.decode(message, spec)[0].items() if name not in ("p", "1", "h")}
        except (iso8583.DecodeError, KeyError):
            # KeyError: a data element that the dialect does not have.
            read = None
        print(json.dumps({"dialect": dialect, "bytes": message.hex(), "fields": read, "spoilt": spoilt}, sort_keys=True))


if __name__ == "__main__":
    main()
