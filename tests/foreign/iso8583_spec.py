"""The dialects of config/banks/ as pyiso8583 wants them, written down a second time by hand.

A value is text; of a binary element it is hexadecimal, in capitals.
"""
from iso8583.specs import default_ascii

# Data element: kind, digits of length before it (0: fixed), longest.
SANDBOX = {
    2: ("n", 2, 19), 3: ("n", 0, 6), 4: ("n", 0, 12), 5: ("n", 0, 12), 7: ("n", 0, 10), 11: ("n", 0, 6),
    12: ("n", 0, 6), 13: ("n", 0, 4), 14: ("n", 0, 4), 15: ("n", 0, 4), 18: ("n", 0, 4), 22: ("n", 0, 3),
    24: ("n", 0, 3), 25: ("n", 0, 2), 28: ("an", 0, 9), 30: ("n", 0, 12), 32: ("n", 2, 11), 33: ("n", 2, 11),
    35: ("z", 2, 37), 37: ("an", 0, 12), 38: ("an", 0, 6), 39: ("an", 0, 2), 41: ("ans", 0, 8), 42: ("ans", 0, 15),
    43: ("ans", 0, 40), 44: ("ans", 2, 25), 48: ("ans", 3, 999), 49: ("n", 0, 3), 52: ("b", 0, 8), 53: ("n", 0, 16),
    54: ("an", 3, 120), 55: ("b", 3, 255), 60: ("ans", 3, 999), 62: ("ans", 3, 999), 63: ("ans", 3, 999),
    64: ("b", 0, 8), 70: ("n", 0, 3), 90: ("n", 0, 42), 95: ("an", 0, 42), 102: ("ans", 2, 28), 103: ("ans", 2, 28),
    128: ("b", 0, 8),
}

ASCII_HEX = {
    2: ("n", 2, 19), 3: ("n", 0, 6), 4: ("n", 0, 12), 7: ("n", 0, 10), 11: ("n", 0, 6), 12: ("n", 0, 6),
    13: ("n", 0, 4), 14: ("n", 0, 4), 15: ("n", 0, 4), 18: ("n", 0, 4), 22: ("n", 0, 3), 24: ("n", 0, 3),
    25: ("n", 0, 2), 32: ("n", 2, 11), 33: ("n", 2, 11), 35: ("z", 2, 37), 37: ("an", 0, 12), 38: ("an", 0, 6),
    39: ("an", 0, 2), 41: ("ans", 0, 16), 42: ("ans", 0, 15), 43: ("ans", 0, 40), 48: ("ans", 3, 255), 49: ("n", 0, 3),
    52: ("b", 0, 8), 54: ("an", 3, 120), 60: ("ans", 3, 60), 63: ("ans", 3, 255), 70: ("n", 0, 3), 90: ("n", 0, 42),
    102: ("ans", 2, 28), 128: ("b", 0, 8),
}


def spec(table, bitmap, mti="ascii", digits="ascii", lengths="ascii", binary="b"):
    """A specification: only the data elements of the table are in it."""
    made = {"h": dict(default_ascii["h"])}
    made["t"] = dict(default_ascii["t"], data_enc=mti, max_len=2 if mti == "b" else 4)
    for name in ("p", "1"):
        made[name] = dict(default_ascii[name], data_enc=bitmap, max_len=8 if bitmap == "b" else 16)
    for element, (kind, length, longest) in table.items():
        field = {"data_enc": "ascii", "len_enc": lengths, "len_type": length, "max_len": longest, "desc": kind}
        if lengths == "b" and length:
            field["len_type"] = (length + 1) // 2
            field["len_enc"] = "bcd"
        if kind in "nz" and digits == "b":
            field.update(data_enc="b", len_count="nibbles", left_pad="0")
        if kind == "b":
            field["data_enc"] = binary
            if binary == "ascii":
                field["max_len"] = longest * 2
        made[str(element)] = field
    return made


SPECS = {
    "sandbox": (SANDBOX, spec(SANDBOX, "b")),
    "ascii-hex": (ASCII_HEX, spec(ASCII_HEX, "ascii", binary="ascii")),
    "packed": (SANDBOX, spec(SANDBOX, "b", mti="b", digits="b", lengths="b")),
}
