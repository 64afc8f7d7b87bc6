"""MQTT in WebSocket, as Paho speaks it: with TLS and without, and with a link that breaks.

    pytest tests/foreign/test_websocket.py
"""
import time

import pytest

from clients import VERSIONS, Client
from installation import until

MESSAGES = 1000


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("by", ["ws", "wss"])
def test_who_comes_by_websocket_and_who_comes_by_tcp_hear_each_other(broker, by, version):
    with Client(broker, f"page-{by}-{version}", version, by=by) as page, Client(broker, f"tcp-{by}-{version}", version) as tcp:
        for client in [page, tcp]:
            assert client.subscribe(f"{by}/{version}/+") == 2
        for speaker in [page, tcp]:
            # In frames of each of the three lengths that there are.
            for qos, length in enumerate([100, 10_000, 200_000]):
                payload = b"x" * length
                speaker.publish(f"{by}/{version}/{qos}", payload, qos)
                for listener in [page, tcp]:
                    message = listener.hear()
                    assert (message.topic, message.payload, message.qos) == (f"{by}/{version}/{qos}", payload, qos)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("by", ["ws", "wss"])
@pytest.mark.parametrize("qos", [1, 2])
def test_a_websocket_that_breaks_in_the_middle_loses_nothing_that_was_promised(broker, by, version, qos):
    name = f"{by}-{version}-{qos}"
    with Client(broker, f"sub-{name}", version, keep=True, by=by) as subscriber:
        subscriber.subscribe(f"broken/{name}", qos)
        with Client(broker, f"pub-{name}", version, keep=True, by=by) as publisher:
            subscriber.waits()
            publisher.waits()
            publishing = publisher.publish_all(f"broken/{name}", [str(n) for n in range(MESSAGES)], qos)
            until(lambda: subscriber.heard.qsize() > 20, "some are heard", every=0.005)
            for client in [publisher, subscriber]:
                client.snap()
            # Paho 2.1.0 would send what is published meanwhile before CONNECT.
            until(publisher.is_full, "it waits for acknowledgements")
            assert publishing.is_alive(), "it broke in the middle"
            for client in [publisher, subscriber]:
                client.back()
            publishing.join(120)
            assert not publishing.is_alive()
            until(lambda: subscriber.heard.qsize() >= MESSAGES, "all is heard")
            time.sleep(0.3)
            heard = [int(subscriber.hear().payload) for _ in range(subscriber.heard.qsize())]
            assert set(heard) == set(range(MESSAGES)), f"lost: {set(range(MESSAGES)) - set(heard)}"
            first = list(dict.fromkeys(heard))
            assert first == sorted(first), "in order"
            if qos == 2:
                assert len(heard) == MESSAGES, "each once"
            # What nobody promised anything for goes its way again too.
            publisher.paho.publish(f"broken/{name}", "at QoS 0", 0)
            assert subscriber.hear().payload == b"at QoS 0"


def test_a_will_is_sent_when_a_websocket_breaks(broker):
    with Client(broker, "heir of pages", by="wss") as heir:
        heir.subscribe("page/will")
        Client(broker, "a page", by="ws", will=("page/will", "gone", 1)).__enter__().cut()
        assert heir.hear().payload == b"gone"
