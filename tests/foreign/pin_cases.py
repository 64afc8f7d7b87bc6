#!/usr/bin/env python3
"""Random cases for what src/pin computes, one JSON object a line: what went in, and what others make of it.

DUKPT, blocks and codes by dukpt.py; PVV, IBM 3624 offset, check values and, a second time, the PIN block by psec.

    pin_cases.py --seed 1 --count 2000
"""
import argparse
import json
import random
import warnings

warnings.filterwarnings("ignore")  # TripleDES is deprecated in `cryptography`; PVVs are made with it all the same.

import psec  # noqa: E402

import dukpt  # noqa: E402


def counter(chance):
    """Mostly any; some at the edges."""
    if chance.random() < 0.1:
        return chance.choice([1, 2, 0xFFFF, 0x10000, 0x1FFFE, 0x20000, 0x20001, 0xFFFE8000, 0xFFFF0000])
    bits = chance.sample(range(32), chance.randint(1, 16))
    return sum(1 << bit for bit in bits)


def digits(chance, count):
    return "".join(chance.choice("0123456789") for _ in range(count))


def pan(chance):
    body = digits(chance, chance.randint(11, 18))
    total = sum(int(d) if i % 2 else sum(divmod(2 * int(d), 10)) for i, d in enumerate(reversed(body)))
    return body + str(-total % 10)


def table(chance):
    ten = list("0123456789")
    rest = chance.sample(ten, 6)
    whole = ten + rest
    chance.shuffle(whole)
    return "".join(whole)


def case(chance):
    bdk, identifier = chance.randbytes(16), chance.randbytes(8)
    ksn = identifier + counter(chance).to_bytes(4, "big")
    pin, number = digits(chance, chance.randint(4, 12)), pan(chance)
    expiry = f"{chance.randrange(100):02}{chance.randint(1, 12):02}"
    salt, body = chance.randbytes(8), chance.randbytes(chance.randint(0, 200))
    pvk, pvki, decimals = chance.randbytes(16), chance.randrange(10), table(chance)
    initial = dukpt.initial_key(bdk, identifier)
    made = dukpt.keys(initial, ksn)
    block = dukpt.pin_block(made["pin_key"], pin, number, salt)
    assert psec.pinblock.decipher_pinblock_iso_4(made["pin_key"], block, number) == pin, "psec reads another PIN"
    padded = number[:16]
    return {
        "bdk": bdk, "ksn": ksn, "pin": pin, "pan": number, "expiry": expiry, "random": salt, "body": body,
        "pvk": pvk, "pvki": pvki, "table": decimals, "validation": padded,
        **made,
        "pin_block": block,
        "card_data": dukpt.card_data(made["data_key"], number, expiry),
        "request_mac": dukpt.request_mac(initial, ksn, body),
        "receipt_mac": dukpt.receipt_mac(initial, ksn, body),
        "next_counter": dukpt.next_counter(int.from_bytes(ksn[8:], "big")),
        "pvv": psec.pin.generate_visa_pvv(pvk, str(pvki), pin[:4], number),
        "offset": psec.pin.generate_ibm3624_offset(pvk, decimals, pin, padded, 0, len(padded), "F"),
        "pvk_check": psec.des.generate_kcv(pvk, 3),
        "bdk_legacy_check": psec.aes.encrypt_aes_ecb(bdk, bytes(16))[:3],
        "bdk_check": dukpt.mac(bdk, bytes(16))[:3],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    for _ in range(given.count):
        made = case(chance)
        print(json.dumps({name: value.hex() if isinstance(value, bytes) else value for name, value in made.items()}))


if __name__ == "__main__":
    main()
