#!/usr/bin/env python3
"""A foreign terminal: Eclipse Paho and an independent DUKPT, written from docs/terminals.md alone.

    terminal.py --terminal T1 --password … --initial-key HEX --key-id HEX --counter HEX \\
                --pan 4111111111111111 --expiry 3012 --pin 1234 --amount 5000000 [--flash FILE]

Asks for a withdrawal (with --deposit: a deposit), prints the receipt as one JSON object, and exits 0 when it is final and its
code is right, whatever it says. With --flash it remembers the request before it sends it: started again with the same
file it repeats the same bytes, as after a loss of power.
"""
import argparse
import importlib
import json
import os
import pathlib
import queue
import ssl
import sys
import tempfile
import time

import paho.mqtt.client as mqtt
from grpc_tools import protoc

import dukpt

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"


def generated():
    """The messages, generated from the file that terminal makers get."""
    with tempfile.TemporaryDirectory() as folder:
        if protoc.main(["protoc", f"-I{PROTO}", f"--python_out={folder}", "wakala.proto"]) != 0:
            raise SystemExit("proto/wakala.proto does not compile")
        sys.path.insert(0, folder)
        return importlib.import_module("wakala_pb2")


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--ca", help="the server's CA certificate; connects by TLS")
    parser.add_argument("--mqtt", choices=["3.1.1", "5"], default="3.1.1")
    parser.add_argument("--terminal", required=True)
    parser.add_argument("--password")
    parser.add_argument("--certificate", help="the terminal's own, in place of a password; with --private-key")
    parser.add_argument("--private-key")
    parser.add_argument("--initial-key", type=bytes.fromhex, required=True)
    parser.add_argument("--key-id", type=bytes.fromhex, required=True, help="initial key identifier, 8 bytes")
    parser.add_argument("--counter", type=lambda text: int(text, 16), default=1, help="of the KSN, hexadecimal")
    parser.add_argument("--pan", required=True)
    parser.add_argument("--expiry", default="4012", help="YYMM")
    parser.add_argument("--pin", default="")
    parser.add_argument("--amount", type=int, required=True, help="in minor units")
    parser.add_argument("--currency", type=int, default=834)
    parser.add_argument("--deposit", action="store_true")
    parser.add_argument("--key", type=bytes.fromhex, help="the request's, 16 bytes; drawn when there is none")
    parser.add_argument("--flash", type=pathlib.Path)
    parser.add_argument("--times", type=int, default=1, help="publish the same bytes so often")
    parser.add_argument("--wait", type=float, default=60, help="seconds for the final receipt")
    return parser.parse_args()


def envelope(wire, given):
    """The bytes to publish, the request's key and its KSN."""
    if not dukpt.is_counter(given.counter):
        raise SystemExit("this counter is none: more than 16 bits set")
    ksn = given.key_id + given.counter.to_bytes(4, "big")
    data_key = dukpt.working_key(given.initial_key, ksn, dukpt.DATA_ENCRYPTION)
    request = wire.Request(
        key=given.key or os.urandom(16),
        kind=wire.DEPOSIT if given.deposit else wire.WITHDRAWAL,
        amount=given.amount,
        currency=given.currency,
        card=wire.Card(data=dukpt.card_data(data_key, given.pan, given.expiry)),
        made_at=int(time.time()),
    )
    if not given.deposit:
        pin_key = dukpt.working_key(given.initial_key, ksn, dukpt.PIN_ENCRYPTION)
        request.card.pin_block = dukpt.pin_block(pin_key, given.pin, given.pan, os.urandom(8))
    body = request.SerializeToString()
    code = dukpt.request_mac(given.initial_key, ksn, body)
    return wire.Envelope(body=body, ksn=ksn, mac=code).SerializeToString()


def stored(wire, given):
    """Stored before it is sent for the first time; read back when there is one already."""
    if given.flash and given.flash.exists():
        return given.flash.read_bytes()
    payload = envelope(wire, given)
    if given.flash:
        with open(given.flash, "wb") as flash:
            flash.write(payload)
            flash.flush()
            os.fsync(flash.fileno())
    return payload


def connected(given, heard):
    """A client with a persistent session that hears its receipts."""
    version = mqtt.MQTTv5 if given.mqtt == "5" else mqtt.MQTTv311
    more = {} if given.mqtt == "5" else {"clean_session": False}
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, given.terminal, protocol=version, **more)
    if given.password:
        client.username_pw_set(given.terminal, given.password)
    if given.ca:
        client.tls_set(given.ca, given.certificate, given.private_key, tls_version=ssl.PROTOCOL_TLS_CLIENT)
    subscribed = queue.Queue()

    def on_connect(client, _userdata, flags, reason, _properties):
        if reason.is_failure:
            subscribed.put(f"CONNACK: {reason}")
        elif flags.session_present:
            subscribed.put(None)
        else:
            client.subscribe(f"r/{given.terminal}", qos=1)

    def on_subscribe(_client, _userdata, _mid, reasons, _properties):
        subscribed.put(f"SUBACK: {reasons[0]}" if reasons[0].is_failure else None)

    client.on_connect = on_connect
    client.on_subscribe = on_subscribe
    client.on_message = lambda _client, _userdata, message: heard.put((message.topic, message.payload))
    if given.mqtt == "5":
        properties = mqtt.Properties(mqtt.PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 24 * 3600
        client.connect(given.host, given.port, keepalive=300, clean_start=False, properties=properties)
    else:
        client.connect(given.host, given.port, keepalive=300)
    client.loop_start()
    refused = subscribed.get(timeout=given.wait)
    if refused:
        raise SystemExit(refused)
    return client


def receipt_for(wire, given, payload, heard):
    """Waits for the final receipt of this request; notices and copies of others pass by."""
    sent = wire.Envelope.FromString(payload)
    key = wire.Request.FromString(sent.body).key
    until, notices = time.monotonic() + given.wait, 0
    while True:
        try:
            topic, bytes_ = heard.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise SystemExit(f"no final receipt within {given.wait} s ({notices} notices)") from None
        came = wire.ReceiptEnvelope.FromString(bytes_)
        receipt = wire.Receipt.FromString(came.body)
        if topic != f"r/{given.terminal}" or receipt.key != key:
            continue
        authentic = dukpt.receipt_mac(given.initial_key, sent.ksn, came.body) == came.mac
        if receipt.outcome == wire.PENDING:
            notices += 1
            continue
        return receipt, authentic, bytes_


def main():
    given = parsed()
    wire = generated()
    heard = queue.Queue()
    payload = stored(wire, given)
    client = connected(given, heard)
    began = time.monotonic()
    for _ in range(given.times):
        client.publish(f"q/{given.terminal}", payload, qos=1).wait_for_publish(given.wait)
    receipt, authentic, bytes_ = receipt_for(wire, given, payload, heard)
    seconds = time.monotonic() - began
    time.sleep(0.2)  # Paho acknowledges when its callback has run; the PUBACK must be out before the connection ends
    client.disconnect()
    client.loop_stop()
    print(
        json.dumps(
            {
                "outcome": wire.Outcome.Name(receipt.outcome),
                "code": receipt.code,
                "text": receipt.text,
                "kind": wire.Kind.Name(receipt.kind),
                "amount": receipt.amount,
                "currency": receipt.currency,
                "rrn": receipt.rrn,
                "authorisation": receipt.authorisation,
                "card": receipt.card,
                "at": receipt.at,
                "terminal": receipt.terminal,
                "agent": receipt.agent,
                "key": receipt.key.hex(),
                "authentic": authentic,
                "seconds": round(seconds, 3),
                "bytes": bytes_.hex(),
            }
        )
    )
    return 0 if authentic else 1


if __name__ == "__main__":
    sys.exit(main())
