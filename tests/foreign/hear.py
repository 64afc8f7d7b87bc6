#!/usr/bin/env python3
"""A foreign terminal that listens: subscribes on Eclipse Paho to what an operator tells it, and prints one JSON object a line.

    hear.py --port 1883 --terminal T1 --password … --mqtt 5 --qos 1 [--hesitant]

Its session is persistent. Ended by SIGTERM, it takes its leave. Hesitant, it acknowledges nothing until it comes again.
"""
import argparse
import json
import signal
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


def say(**fact):
    print(json.dumps(fact), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--terminal", required=True)
    parser.add_argument("--password", required=True)
    parser.add_argument("--mqtt", choices=["3.1.1", "5"], required=True)
    parser.add_argument("--qos", type=int, choices=[0, 1], required=True)
    parser.add_argument("--hesitant", action="store_true")
    given = parser.parse_args()
    five = given.mqtt == "5"
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2, client_id=given.terminal, protocol=mqtt.MQTTv5 if five else mqtt.MQTTv311,
        clean_session=None if five else False, manual_ack=True,
    )  # fmt: skip
    client.username_pw_set(given.terminal, given.password)
    client.reconnect_delay_set(1, 1)

    def on_connect(client, userdata, flags, reason, properties):
        if reason.is_failure:
            sys.exit(f"not let in: {reason}")
        say(connected=True, present=flags.session_present)
        if not flags.session_present:
            client.subscribe(f"c/{given.terminal}", qos=given.qos)

    def on_subscribe(client, userdata, mid, reasons, properties):
        say(subscribed=[reason.value for reason in reasons])

    def on_message(client, userdata, message):
        expiry = getattr(message.properties, "MessageExpiryInterval", None) if five else None
        text = message.payload.decode()
        say(topic=message.topic, qos=message.qos, dup=message.dup, id=message.mid, expiry=expiry, text=text)
        if message.qos > 0 and (message.dup or not given.hesitant):
            client.ack(message.mid, message.qos)

    client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
    signal.signal(signal.SIGTERM, lambda *_: client.disconnect())
    more = {}
    if five:
        more = {"clean_start": False, "properties": Properties(PacketTypes.CONNECT)}
        more["properties"].SessionExpiryInterval = 86400
    client.connect("127.0.0.1", given.port, 30, **more)
    client.loop_forever()


if __name__ == "__main__":
    main()
