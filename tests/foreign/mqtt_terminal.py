"""A terminal on Eclipse Paho: connects, subscribes to its receipts, publishes requests, prints what it receives.

usage: mqtt_terminal.py 4|5 HOST PORT NAME PASSWORD|- CA|- CERTIFICATE|- KEY|- RECEIPTS REQUEST...
Prints one line per fact; ends when all requests are acknowledged and so many receipts were received.
"""
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

version, host, port, name, password, ca, certificate, key, receipts, *requests = sys.argv[1:]
v5 = version == "5"
options = {} if v5 else {"clean_session": False}
client = mqtt.Client(
    mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5 if v5 else mqtt.MQTTv311, **options
)
if password != "-":
    client.username_pw_set(name, password)
if ca != "-":
    client.tls_set(ca, certfile=None if certificate == "-" else certificate, keyfile=None if key == "-" else key)

lock = threading.Lock()
received, acknowledged, done = [], [], threading.Event()


def check():
    if len(received) >= int(receipts) and len(acknowledged) >= len(requests):
        done.set()


def on_connect(client, userdata, flags, reason, properties):
    print(f"connected {reason} present={flags.session_present}", flush=True)
    if reason.is_failure:
        done.set()
        return
    client.subscribe(f"r/{name}", qos=1)


def on_subscribe(client, userdata, mid, reasons, properties):
    print("subscribed", *reasons, flush=True)
    for request in requests:
        client.publish(f"q/{name}", request, qos=1)
    check()


def on_publish(client, userdata, mid, reason, properties):
    with lock:
        acknowledged.append(mid)
        print(f"acknowledged {mid}", flush=True)
        check()


def on_message(client, userdata, message):
    with lock:
        received.append(message.payload)
        print(f"receipt {message.topic} qos={message.qos} {message.payload.decode()}", flush=True)
        check()


client.on_connect, client.on_subscribe = on_connect, on_subscribe
client.on_publish, client.on_message = on_publish, on_message
if v5:
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    client.connect(host, int(port), 60, clean_start=False, properties=properties)
else:
    client.connect(host, int(port), 60)
client.loop_start()
ended = done.wait(20)
client.disconnect()
client.loop_stop()
sys.exit(0 if ended else 1)
