#!/usr/bin/env python3
"""What a terminal computes, a second time: AES-128 DUKPT, PIN and card blocks, codes.

Written from ANSI X9.24-3:2017, ISO 9564-1 format 4 and docs/terminals.md alone, sharing nothing with the Rust code that it
is held against. The only part that is not here is AES itself (package `cryptography`).

    dukpt.py keys       --bdk HEX --ksn HEX            all keys of one transaction
    dukpt.py keys       --initial-key HEX --ksn HEX
    dukpt.py pin-block  --initial-key HEX --ksn HEX --pin 1234 --pan 4111111111111111 [--random HEX]
    dukpt.py card-data  --initial-key HEX --ksn HEX --pan 4111111111111111 --expiry 3012
    dukpt.py mac        --initial-key HEX --ksn HEX --body HEX
    dukpt.py check      --initial-key HEX --ksn HEX --body HEX --mac HEX   a receipt's code; exit 1 if it is wrong
    dukpt.py next       --counter HEX                  the counter after this one
    dukpt.py self-test                                 the standard's vectors

Everything is printed as one JSON object; bytes are hexadecimal.
"""
import argparse
import json
import os
import sys

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC

PIN_ENCRYPTION = 0x1000
MAC_GENERATION = 0x2000
MAC_VERIFICATION = 0x2001
DATA_ENCRYPTION = 0x3000
KEY_DERIVATION = 0x8000
INITIAL_KEY = 0x8001


def aes_encrypt(key, block):
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return cipher.update(block) + cipher.finalize()


def aes_decrypt(key, block):
    cipher = Cipher(algorithms.AES(key), modes.ECB()).decryptor()
    return cipher.update(block) + cipher.finalize()


def step(key, usage, tail):
    """One derivation: version 1, block 1, usage, AES-128, 128 bits, tail."""
    return aes_encrypt(key, b"\x01\x01" + usage.to_bytes(2, "big") + b"\x00\x02\x00\x80" + tail)


def initial_key(bdk, identifier):
    return step(bdk, INITIAL_KEY, identifier)


def is_counter(counter):
    return 0 < counter < 2**32 and bin(counter).count("1") <= 16


def next_counter(counter):
    counter += 1
    while not is_counter(counter):
        if counter >= 2**32:
            return None
        counter += counter & -counter
    return counter


def transaction_key(initial, ksn):
    identifier, counter = ksn[4:8], int.from_bytes(ksn[8:], "big")
    if len(ksn) != 12 or not is_counter(counter):
        raise ValueError("no counter has more than 16 bits set, or none")
    key, work = initial, 0
    for place in range(31, -1, -1):
        if counter >> place & 1:
            work |= 1 << place
            key = step(key, KEY_DERIVATION, identifier + work.to_bytes(4, "big"))
    return key


def working_key(initial, ksn, usage):
    return step(transaction_key(initial, ksn), usage, ksn[4:12])


def pin_block(key, pin, pan, random):
    """ISO 9564-1 format 4."""
    pin_field = bytes.fromhex(f"4{len(pin):X}{pin}".ljust(16, "A")) + random
    pan_field = bytes.fromhex(f"{len(pan) - 12:X}{pan}".ljust(32, "0"))
    mixed = bytes(a ^ b for a, b in zip(aes_encrypt(key, pin_field), pan_field))
    return aes_encrypt(key, mixed)


def pin_of(key, block, pan):
    pan_field = bytes.fromhex(f"{len(pan) - 12:X}{pan}".ljust(32, "0"))
    field = aes_decrypt(key, bytes(a ^ b for a, b in zip(aes_decrypt(key, block), pan_field))).hex().upper()
    length = int(field[1], 16)
    pin = field[2 : 2 + length]
    if field[0] != "4" or not 4 <= length <= 12 or not pin.isdigit() or field[2 + length : 16].strip("A"):
        raise ValueError("not a format 4 PIN block for this PAN under this key")
    return pin


def card_data(key, pan, expiry):
    return aes_encrypt(key, bytes.fromhex(pan.ljust(20, "F") + expiry + "00000000"))


def mac(key, body):
    code = CMAC(algorithms.AES(key))
    code.update(body)
    return code.finalize()[:8]


def request_mac(initial, ksn, body):
    return mac(working_key(initial, ksn, MAC_GENERATION), body)


def receipt_mac(initial, ksn, body):
    return mac(working_key(initial, ksn, MAC_VERIFICATION), body)


def keys(initial, ksn):
    return {
        "initial_key": initial,
        "transaction_key": transaction_key(initial, ksn),
        "pin_key": working_key(initial, ksn, PIN_ENCRYPTION),
        "mac_generation_key": working_key(initial, ksn, MAC_GENERATION),
        "mac_verification_key": working_key(initial, ksn, MAC_VERIFICATION),
        "data_key": working_key(initial, ksn, DATA_ENCRYPTION),
    }


def self_test():
    """ANSI X9.24-3:2017, supplement "Test vectors"."""
    hexed = bytes.fromhex
    bdk, identifier = hexed("FEDCBA9876543210F1F1F1F1F1F1F1F1"), hexed("1234567890123456")
    initial = initial_key(bdk, identifier)
    assert initial == hexed("1273671EA26AC29AFA4D1084127652A1")
    for counter, expected in [
        (1, "4F21B565BAD9835E112B6465635EAE44"),
        (8, "718EE6CF0B27E53D5F7AF99C4D8146A2"),
        (0x1FFFE, "E21E8C8D347F8561A2BE752DAA85A111"),
        (0x20000, "F7AE9025468A25D37B7249CFFED224C8"),
        (0xFFFF0000, "F6BA59389BD14A9855BE9727E7C52E3C"),
    ]:
        assert transaction_key(initial, identifier + counter.to_bytes(4, "big")) == hexed(expected), hex(counter)
    ksn = identifier + b"\x00\x00\x00\x01"
    random = hexed("2F69ADDE2E9E7ACE")
    key = working_key(initial, ksn, PIN_ENCRYPTION)
    block = pin_block(key, "1234", "4111111111111111", random)
    assert block == hexed("A912150391AB65A67E52883D81CE2D15")
    assert pin_of(key, block, "4111111111111111") == "1234"
    assert request_mac(initial, ksn, b"4012345678909D987") == hexed("A2EB5C1C35809E58")
    assert receipt_mac(initial, ksn, b"4012345678909D987") == hexed("DD4E1895FD9BF53D")
    assert next_counter(0x1FFFE) == 0x20000 and next_counter(0xFFFF0000) is None
    return {"self_test": "passed"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["keys", "pin-block", "card-data", "mac", "check", "next", "self-test"])
    for name in ["bdk", "initial-key", "ksn", "random", "body", "mac"]:
        parser.add_argument(f"--{name}", type=bytes.fromhex)
    for name in ["pin", "pan", "expiry"]:
        parser.add_argument(f"--{name}")
    parser.add_argument("--counter", type=lambda text: int(text, 16))
    given = parser.parse_args()

    if given.what == "self-test":
        return self_test()
    if given.what == "next":
        return {"counter": "" if (n := next_counter(given.counter)) is None else f"{n:08x}"}
    initial, ksn = given.initial_key, given.ksn
    if given.bdk is not None:
        initial = initial_key(given.bdk, ksn[:8])
    if given.what == "keys":
        return keys(initial, ksn)
    if given.what == "pin-block":
        key = working_key(initial, ksn, PIN_ENCRYPTION)
        return {"pin_block": pin_block(key, given.pin, given.pan, given.random or os.urandom(8))}
    if given.what == "card-data":
        return {"card_data": card_data(working_key(initial, ksn, DATA_ENCRYPTION), given.pan, given.expiry)}
    if given.what == "mac":
        return {"mac": request_mac(initial, ksn, given.body)}
    right = receipt_mac(initial, ksn, given.body) == given.mac
    return {"right": right}


if __name__ == "__main__":
    result = main()
    print(json.dumps({name: value.hex() if isinstance(value, bytes) else value for name, value in result.items()}))
    sys.exit(0 if result.get("right", True) else 1)
