"""A stranger's node, a foreign core, foreign terminals: all that remember a withdrawal agree about it.

    scripts/test foreign
"""
import argparse
import json
import os
import signal
import subprocess
import sys

import pytest

import dukpt
import terminal as maker
from installation import HERE, sql, until

wire = maker.generated()


def asked(wakala, terminal, card, amount, pin=None, flash=None, **more):
    """A terminal of Paho's that has just been switched on, as a process."""
    flash = flash or wakala.folder / f"{terminal.name}.{os.urandom(4).hex()}.flash"
    options = {
        "port": terminal.listener["mqtt"], "terminal": terminal.name, "initial-key": terminal.initial_key.hex(),
        "key-id": terminal.key_id.hex(), "pan": card.pan, "amount": amount, "pin": pin or card.pin, "flash": flash, **more,
    }  # fmt: skip
    if terminal.password:
        options["password"] = terminal.password
    if not flash.exists():
        options["counter"] = f"{terminal.next_counter():x}"
    command = [sys.executable, HERE / "terminal.py"]
    for name, value in options.items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.flash = flash
    return process


def answered(wakala, process):
    try:
        said, wrong = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 0, wrong
    remember_block(wakala, process.flash.read_bytes())
    receipt = json.loads(said)
    assert receipt["authentic"]
    return receipt


def paho(wakala, *request, **more):
    return answered(wakala, asked(wakala, *request, **more))


def remember_block(wakala, payload):
    request = wire.Request.FromString(wire.Envelope.FromString(payload).body)
    if request.card.pin_block:
        wakala.keep("pin-block", request.card.pin_block.hex())


def envelope(wakala, terminal, card, amount, key=None):
    """What a terminal would publish, for those who publish by other means."""
    given = argparse.Namespace(
        key_id=terminal.key_id, counter=terminal.next_counter(), initial_key=terminal.initial_key, pan=card.pan,
        expiry="4012", pin=card.pin, amount=amount, currency=834, deposit=False, key=key,
    )  # fmt: skip
    payload = maker.envelope(wire, given)
    remember_block(wakala, payload)
    return payload


class Mosquitto:
    """A terminal that is two programs: one publishes, the other hears. They come one after the other."""

    def __init__(self, wakala, terminal, version):
        self.wakala, self.terminal = wakala, terminal
        self.common = ["-h", "localhost", "-i", terminal.name, "-q", "1", "-c", "-V", version]
        if version == "mqttv5":
            self.common += ["-x", "86400"]
        if terminal.password:
            self.common += ["-p", str(terminal.listener["mqtt"]), "-u", terminal.name, "-P", terminal.password]
        else:
            at = wakala.folder
            self.common += ["-p", str(terminal.listener["mqtts"]), "--cafile", at / "ca.pem"]
            self.common += ["--cert", at / "terminal.pem", "--key", at / "terminal.key"]
        self.run("mosquitto_sub", "-t", terminal.topics[1], "-E")

    def run(self, program, *more, **options):
        command = [program, *self.common, *more]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False, **options)
        assert done.returncode == 0, f"{program}: {done.stderr.decode()}"
        return done.stdout

    def ask(self, payload):
        self.run("mosquitto_pub", "-t", self.terminal.topics[0], "-s", input=payload)

    def hear(self):
        """The next receipt that is none of PENDING, and its bytes."""
        while True:
            line = self.run("mosquitto_sub", "-t", self.terminal.topics[1], "-C", "1", "-W", "40", "-F", "%t %x")
            topic, hexed = line.decode().split()
            assert topic == self.terminal.topics[1]
            came = wire.ReceiptEnvelope.FromString(bytes.fromhex(hexed))
            receipt = wire.Receipt.FromString(came.body)
            if receipt.outcome != wire.PENDING:
                return receipt, came

    def authentic(self, payload, came):
        ksn = wire.Envelope.FromString(payload).ksn
        return dukpt.receipt_mac(self.terminal.initial_key, ksn, came.body) == came.mac


def agree(wakala, terminal, card, receipt, amount, envelope_hex):
    """The core, the switch, the auditor and the terminal tell one story."""
    masked = f"{card.pan[:6]}******{card.pan[-4:]}"
    shop = (receipt["outcome"], receipt["code"], receipt["kind"], receipt["amount"], receipt["currency"])
    assert shop == ("APPROVED", "00", "WITHDRAWAL", amount, 834)
    assert (receipt["terminal"], receipt["agent"], receipt["card"]) == (terminal.name, "A1", masked)
    rrn, authorisation = receipt["rrn"], receipt["authorisation"]

    (core,) = [line for line in wakala.booked() if line["rrn"] == rrn]
    assert (core["what"], core["booked"], core["amount"], core["code"]) == ("booked", amount, amount, "00")
    assert (core["currency"], core["card"], core["terminal"], core["agent"]) == ("834", masked, terminal.name, "A1")

    def delivered():
        (shown,) = wakala.wakala("txn", "show", rrn)
        (kept,) = [kept for kept in shown["receipts"] if kept["stage"] == "receipt"]
        return kept["delivered_at"] and (shown, kept)

    shown, kept = until(delivered, "the terminal's PUBACK is stored")
    assert (shown["state"], shown["amount"], shown["currency"], shown["card"]) == ("APPROVED", amount, "TZS", masked)
    assert (shown["rrn"], shown["stan"], shown["authorisation"]) == (rrn, core["stan"], authorisation)
    assert [entry["phase"] for entry in shown["entries"]] == ["pending", "posted"]
    assert kept["envelope"] == envelope_hex

    transaction = shown["transaction"]
    units = f"{amount // 100}.{amount % 100:02}"
    query = f"select amount, rrn, stan, authorisation, state, card from audit.transactions where transaction = '{transaction}'"
    assert sql("auditor", query) == [[units, rrn, core["stan"], authorisation, "APPROVED", masked]]
    query = f"select phase, debit, credit, account from audit.journal where transaction = '{transaction}' order by entry, line"
    lines = sql("auditor", query)
    for phase in ["pending", "posted"]:
        of_phase = [line for line in lines if line[0] == phase]
        assert sorted(debit or f"-{credit}" for _, debit, credit, _ in of_phase) == [f"-{units}", units], lines
        assert any(account == "float:A1:TZS" for *_, account in of_phase), lines
    balanced(wakala)


def balanced(wakala):
    assert wakala.wakala("ledger", "verify")["ledger"] == "balanced"


@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_paho_withdraws(wakala, version):
    terminal, card = wakala.terminal(f"PAHO-{version[0]}"), wakala.card()
    receipt = paho(wakala, terminal, card, 5_000_000, mqtt=version)
    agree(wakala, terminal, card, receipt, 5_000_000, receipt["bytes"])


@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
def test_mosquitto_withdraws(wakala, version):
    terminal, card = wakala.terminal(f"MOSQ-{version[-1]}"), wakala.card()
    mosquitto = Mosquitto(wakala, terminal, version)
    payload = envelope(wakala, terminal, card, 1_234_567)
    mosquitto.ask(payload)
    receipt, came = mosquitto.hear()
    assert mosquitto.authentic(payload, came)
    told = as_told(receipt)
    agree(wakala, terminal, card, told, 1_234_567, came.SerializeToString().hex())


def as_told(receipt):
    named = {name: getattr(receipt, name) for name in ["code", "amount", "currency", "rrn", "authorisation", "card"]}
    whose = {"terminal": receipt.terminal, "agent": receipt.agent}
    return {**named, **whose, "outcome": wire.Outcome.Name(receipt.outcome), "kind": wire.Kind.Name(receipt.kind)}


def test_a_certificate_is_enough(wakala):
    terminal = wakala.terminal("PAPERS", "--certificate", wakala.folder / "terminal.pem")
    card, at = wakala.card(), wakala.folder
    assert terminal.password is None
    papers = {"ca": at / "ca.pem", "certificate": at / "terminal.pem", "private-key": at / "terminal.key"}
    receipt = paho(wakala, terminal, card, 700_00, mqtt="5", port=terminal.listener["mqtts"], host="localhost", **papers)
    agree(wakala, terminal, card, receipt, 700_00, receipt["bytes"])
    mosquitto = Mosquitto(wakala, terminal, "mqttv311")
    payload = envelope(wakala, terminal, card, 800_00)
    mosquitto.ask(payload)
    receipt, came = mosquitto.hear()
    assert mosquitto.authentic(payload, came)
    agree(wakala, terminal, card, as_told(receipt), 800_00, came.SerializeToString().hex())


def test_the_same_bytes_have_the_same_receipt(wakala):
    terminal, card = wakala.terminal("AGAIN"), wakala.card()
    flash = wakala.folder / "again.flash"
    first = paho(wakala, terminal, card, 300_00, flash=flash)
    assert first["outcome"] == "APPROVED"
    again = [paho(wakala, terminal, card, 300_00, flash=flash, mqtt=version) for version in ["3.1.1", "5"]]
    assert [one["bytes"] for one in again] == [first["bytes"]] * 2
    assert [line["what"] for line in wakala.booked() if line["terminal"] == "AGAIN"] == ["booked"]


def test_a_key_that_was_used_is_no_key(wakala):
    terminal, card = wakala.terminal("TWICE"), wakala.card()
    key = os.urandom(16)
    assert paho(wakala, terminal, card, 400_00, key=key.hex())["outcome"] == "APPROVED"
    other = paho(wakala, terminal, card, 900_00, key=key.hex())
    assert (other["outcome"], other["code"], other["text"]) == ("REFUSED", "94", "key used before")
    assert [line["booked"] for line in wakala.booked() if line["terminal"] == "TWICE"] == [400_00]
    balanced(wakala)


def test_the_third_wrong_pin_blocks_it(wakala):
    terminal, card = wakala.terminal("WRONG"), wakala.card()
    pins = [card.wrong_pin] * 3 + [card.pin]
    codes = [paho(wakala, terminal, card, 100_00, pin=pin)["code"] for pin in pins]
    assert codes == ["55", "55", "55", "75"]
    assert not [line for line in wakala.booked() if line["terminal"] == "WRONG"]
    wakala.wakala("cards", "clear-tries", given=f"{card.pan}\n")
    assert paho(wakala, terminal, card, 100_00)["code"] == "00"


def test_garbage_is_answered(wakala):
    terminal = wakala.terminal("GARBAGE")
    mosquitto = Mosquitto(wakala, terminal, "mqttv311")
    mosquitto.ask(b"\xff\x00 this is no request")
    receipt, _ = mosquitto.hear()
    assert (receipt.outcome, receipt.code, receipt.text) == (wire.REFUSED, "30", "not a request")


def test_a_deposit_is_taken_from_the_float(wakala):
    terminal, card = wakala.terminal("DEPOSIT"), wakala.card()
    free = "select free from audit.agent_float where agent = 'A1'"
    before = sql("auditor", free)
    receipt = paho(wakala, terminal, card, 50_000_00, deposit=True)
    assert (receipt["outcome"], receipt["kind"]) == ("APPROVED", "DEPOSIT")
    assert float(before[0][0]) - float(sql("auditor", free)[0][0]) == 50_000


def test_a_node_that_dies_before_the_receipt_gives_it_afterwards(wakala):
    terminal, card = wakala.terminal("DEATH"), wakala.card()
    # A core that hears and does not answer, so that the node dies with the request on its way.
    os.kill(wakala.core.pid, signal.SIGSTOP)
    try:
        process = asked(wakala, terminal, card, 600_00)
        query = "select count(*) from audit.transactions where terminal = 'DEATH' and sent_at_utc is not null"
        until(lambda: sql("auditor", query) == [["1"]], "the request is decided")
        wakala.kill_node()
    finally:
        os.kill(wakala.core.pid, signal.SIGCONT)
    wakala.start_node()
    # Paho connects again by itself, or is given what waited for it.
    receipt = answered(wakala, process)
    # What became of the request that was on its way, nobody can know: it is taken back.
    assert receipt["outcome"] == "REVERSED"
    query = "select rrn, state from audit.transactions where terminal = 'DEATH'"
    assert sql("auditor", query) == [[receipt["rrn"], "REVERSED"]]
    until(lambda: sum(line["booked"] for line in wakala.booked() if line["terminal"] == "DEATH") == 0, "nothing is booked")
    again = paho(wakala, terminal, card, 600_00, flash=process.flash)
    assert again["bytes"] == receipt["bytes"]
    assert paho(wakala, terminal, card, 600_00)["outcome"] == "APPROVED"
    balanced(wakala)


def test_the_auditor_reads_the_audit_and_nothing_else(wakala):
    assert sql("auditor", "select sum(balance) from audit.trial_balance") in ([["0.00"]], [["0"]])
    for query in ["select pvv from wakala.card", "select sealed from wakala.key_block", "delete from ledger.entry"]:
        with pytest.raises(RuntimeError, match="permission denied"):
            sql("auditor", query)
