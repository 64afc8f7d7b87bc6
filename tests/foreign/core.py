#!/usr/bin/env python3
"""A bank's core that shares no code with Wakala: ISO 8583 by pyiso8583, in the dialect of config/banks/sandbox.toml.

It keeps accounts and writes what it does to a journal, a JSON object a line, before it answers: booked, declined, repeated,
reversed, reversal_repeated, nothing_to_reverse. It books a request once, takes a booking back once, and declines a request
whose reversal came first. Stop it with SIGTERM or Ctrl-C.

    core.py --port 8583 --journal var/core.jsonl
"""
import argparse
import json
import os
import signal
import socket
import struct
import sys
import threading
import time

import iso8583

from iso8583_spec import SPECS

SPEC = SPECS["sandbox"][1]
# What an answer carries on of what it answers.
CARRIED = ("3", "4", "7", "11", "12", "13", "32", "37", "41", "49")


def luhn(digits):
    doubled = [int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits))]
    return sum(value // 10 + value % 10 for value in doubled) % 10 == 0


def masked(pan):
    return pan[:6] + "*" * (len(pan) - 10) + pan[-4:]


class Core:
    """The accounts and the journal. One message at a time."""

    def __init__(self, journal, balance, swallow):
        self.journal = journal
        self.balance = balance
        self.swallow = swallow
        self.accounts = {}
        self.requests = {}  # (terminal, STAN, transmission time): (state, code, authorisation, PAN, change, RRN)
        self.authorisations = 0
        self.lock = threading.Lock()

    def handle(self, message):
        """The answer, or None for silence."""
        mti = message["t"]
        if mti == "0800":
            answer = {"t": "0810", "39": "00"}
            return {**answer, **{name: message[name] for name in ("7", "11", "70") if name in message}}
        with self.lock:
            judge = {"0200": self.request, "0420": self.reversal, "0421": self.reversal}.get(mti)
            if judge is None:
                return None
            what, code, authorisation, booked = judge(message)
            self.write(message, what, code, booked)
            if mti == "0200" and self.swallow > 0:
                self.swallow -= 1
                return None
        answer = {"t": mti[:2] + ("10" if mti == "0200" else "30"), "39": code}
        answer.update({name: message[name] for name in CARRIED if name in message})
        if authorisation:
            answer["38"] = authorisation
        return answer

    def request(self, message):
        identity = (message["41"], message["11"], message["7"])
        past = self.requests.get(identity)
        if past is not None:
            state, code, authorisation = past[:3]
            if state == "forbidden":
                return "declined", "94", None, 0
            if state == "reversed":
                return "repeated", "94", None, 0
            return "repeated", code, authorisation, 0
        pan, amount, kind = message.get("2", ""), int(message.get("4", "0")), message.get("3", "")[:2]
        held = self.accounts.get(pan, self.balance)
        code = "00"
        if not 12 <= len(pan) <= 19 or not luhn(pan):
            code = "14"
        elif amount <= 0:
            code = "30"
        elif kind not in ("01", "21"):
            code = "12"
        elif kind == "01" and held < amount:
            code = "51"
        if code != "00":
            self.requests[identity] = ("declined", code, None)
            return "declined", code, None, 0
        change = amount if kind == "21" else -amount
        self.accounts[pan] = held + change
        self.authorisations += 1
        authorisation = f"F{self.authorisations:05}"
        self.requests[identity] = ("booked", "00", authorisation, pan, change, message.get("37"))
        return "booked", "00", authorisation, amount

    def reversal(self, message):
        original = message.get("90", "")
        identity = (message["41"], original[4:10], original[10:20])
        past = self.requests.get(identity)
        if past is None:
            self.requests[identity] = ("forbidden", "94", None)
            return "nothing_to_reverse", "25", None, 0
        if past[0] == "reversed":
            return "reversal_repeated", "00", None, 0
        if past[0] != "booked" or message.get("37") != past[5]:
            return "nothing_to_reverse", "25", None, 0
        pan, change = past[3:5]
        self.accounts[pan] -= change
        self.requests[identity] = ("reversed", "94", None)
        return "reversed", "00", None, -abs(change)

    def write(self, message, what, code, booked):
        line = {
            "at": int(time.time() * 1000),
            "what": what,
            "mti": message["t"],
            "processing": message.get("3", "")[:2],
            "rrn": message.get("37", ""),
            "stan": message.get("11", ""),
            "terminal": message.get("41", "").rstrip(),
            "agent": message.get("42", "").rstrip(),
            "amount": int(message.get("4", "0")),
            "currency": message.get("49", ""),
            "card": masked(message.get("2", "")),
            "code": code,
            "booked": booked,
        }
        self.journal.write(json.dumps(line) + "\n")
        self.journal.flush()


def exactly(link, count):
    """So many bytes, or None when the link ended."""
    taken = b""
    while len(taken) < count:
        more = link.recv(count - len(taken))
        if not more:
            return None
        taken += more
    return taken


def serve(core, link):
    with link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while True:
                length = exactly(link, 2)
                taken = length and exactly(link, struct.unpack(">H", length)[0])
                if taken is None:
                    return
                answer = core.handle(iso8583.decode(taken, SPEC)[0])
                if answer is not None:
                    written = bytes(iso8583.encode(answer, SPEC)[0])
                    link.sendall(struct.pack(">H", len(written)) + written)
        except (OSError, iso8583.DecodeError, KeyError, ValueError) as error:
            # Not the message itself: there is a card in it.
            print(f"core.py: a link ended: {type(error).__name__}", file=sys.stderr)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--port", type=int, default=8583, help="on 127.0.0.1; 0 takes a free one, printed first")
    arguments.add_argument("--journal", required=True, help="a file that does not exist yet")
    arguments.add_argument("--balance", type=int, default=5_000_000_000, help="of each account at first, minor units")
    arguments.add_argument("--swallow", type=int, default=0, metavar="N", help="book the first N requests, never answer")
    arguments = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with open(arguments.journal, "x", encoding="ascii") as journal, socket.create_server(("127.0.0.1", arguments.port)) as listener:
        core = Core(journal, arguments.balance, arguments.swallow)
        print(listener.getsockname()[1], flush=True)
        try:
            while True:
                link, _ = listener.accept()
                threading.Thread(target=serve, args=(core, link), daemon=True).start()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
