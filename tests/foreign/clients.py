"""Clients of a general broker: Paho's, over TCP, WebSocket and WebSocket with TLS."""
import contextlib
import queue
import socket
import ssl
import threading

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

VERSIONS = {"3.1.1": paho.MQTTv311, "5": paho.MQTTv5}


def properties(kind, **values):
    """Of MQTT 5, by Paho's names."""
    made = Properties(kind)
    for name, value in values.items():
        for each in value if isinstance(value, list) else [value]:
            setattr(made, name, each)
    return made


class Client:
    """One of Paho's, with its own thread, that comes back by itself when its connection ends.

    What it asks for at CONNECT beyond its arguments, are properties of MQTT 5: ReceiveMaximum=2.
    """

    def __init__(
        self, broker, name, version="5", keep=False, will=None, delay=None, will_says=None, by="tcp", keepalive=30,
        manual=False, **asks
    ):  # fmt: skip
        kept = {} if VERSIONS[version] == paho.MQTTv5 else {"clean_session": not keep}
        transport = "tcp" if by == "tcp" else "websockets"
        self.paho = paho.Client(
            paho.CallbackAPIVersion.VERSION2, name, protocol=VERSIONS[version], transport=transport, manual_ack=manual, **kept
        )
        self.heard, self.granted, self.connects, self.ends = queue.Queue(), queue.Queue(), queue.Queue(), queue.Queue()
        self.paho.on_message = lambda client, data, message: self.heard.put(message)
        self.paho.on_subscribe = lambda client, data, mid, codes, properties: self.granted.put(codes)
        self.paho.on_unsubscribe = lambda client, data, mid, codes, properties: self.granted.put(codes)
        self.paho.on_connect = lambda client, data, flags, code, properties: self.connects.put((flags, code, properties))
        self.paho.on_disconnect = lambda client, data, flags, code, properties: self.ends.put((flags, code, properties))
        self.paho.reconnect_delay_set(0.05, 0.2)
        # When it comes back, Paho 2.1.0 sends all that is unacknowledged at once, whatever its window and the receive maximum.
        self.room = threading.Semaphore(15)
        self.paho.on_publish = lambda client, data, mid, code, properties: self.room.release()
        self.version, self.keep, self.keepalive, self.asks = version, keep, keepalive, asks
        self.port = broker.port if by == "tcp" else getattr(broker, by)
        if by == "wss":
            # As browsers do.
            context = ssl.create_default_context(cafile=broker.authority)
            context.set_alpn_protocols(["http/1.1"])
            self.paho.tls_set_context(context)
        if will:
            of_will = {**({"WillDelayInterval": delay} if delay else {}), **(will_says or {})}
            of_will = properties(PacketTypes.WILLMESSAGE, **of_will)
            self.paho.will_set(*will, properties=of_will if version == "5" else None)

    def __enter__(self):
        self.come()
        assert not self.code.is_failure, self.code
        return self

    def __exit__(self, *exc):
        self.paho.disconnect()
        self.paho.loop_stop()

    def come(self):
        """Connects, whatever is answered."""
        more = {}
        if self.version == "5":
            asks = {**({"SessionExpiryInterval": 3600} if self.keep else {}), **self.asks}
            more = {"clean_start": not self.keep, "properties": properties(PacketTypes.CONNECT, **asks)}
        self.paho.connect("127.0.0.1", self.port, keepalive=self.keepalive, **more)
        self.paho.loop_start()
        self.flags, self.code, self.told = self.connects.get(timeout=30)

    def leave(self, **says):
        """Takes leave, in MQTT 5 with these properties."""
        more = {"properties": properties(PacketTypes.DISCONNECT, **says)} if says else {}
        self.paho.disconnect(**more)
        self.paho.loop_stop()

    def cut(self):
        """The link breaks, and nobody takes leave."""
        self.paho.loop_stop()
        with contextlib.suppress(OSError):
            self.paho.socket().close()

    def snap(self):
        """The link breaks under its hands: Paho's thread finds it out."""
        link = self.paho.socket()
        with contextlib.suppress(OSError):
            getattr(link, "_socket", link).shutdown(socket.SHUT_RDWR)

    def subscribe(self, topic, qos=2, identifier=None, **options):
        if self.version == "5":
            named = properties(PacketTypes.SUBSCRIBE, **({"SubscriptionIdentifier": identifier} if identifier else {}))
            self.paho.subscribe(topic, options=SubscribeOptions(qos=qos, **options), properties=named)
        else:
            self.paho.subscribe(topic, qos)
        (code,) = self.granted.get(timeout=30)
        return code.value

    def unsubscribe(self, topic):
        self.paho.unsubscribe(topic)
        return self.granted.get(timeout=30)

    def publish(self, topic, payload, qos=1, retain=False, **says):
        assert self.room.acquire(timeout=30)
        of_it = properties(PacketTypes.PUBLISH, **says) if says else None
        self.paho.publish(topic, payload, qos, retain, properties=of_it).wait_for_publish(30)

    def publish_all(self, topic, payloads, qos):
        """In a thread of its own, that ends when all is acknowledged."""

        def publish():
            for payload in payloads:
                assert self.room.acquire(timeout=60)
                self.paho.publish(topic, payload, qos)
            for _ in range(15):
                assert self.room.acquire(timeout=60), "all is acknowledged"

        thread = threading.Thread(target=publish)
        thread.start()
        return thread

    def is_full(self):
        """It has as many publishes under way as it may."""
        room = self.room.acquire(blocking=False)
        if room:
            self.room.release()
        return not room

    def waits(self):
        """It does not come back by itself: at the second failure Paho 2.1.0 takes what it had released for unsent, and
        publishes it again as new."""
        self.paho.reconnect_delay_set(60, 60)

    def back(self):
        self.paho.loop_stop()
        self.paho.reconnect()
        self.paho.loop_start()

    def hear(self, within=30):
        return self.heard.get(timeout=within)

    def hears_nothing(self, for_seconds=0.5):
        with pytest.raises(queue.Empty):
            self.heard.get(timeout=for_seconds)
