"""A general broker: what clients of Paho's tell each other, and what kill -9 of the node does to it.

    scripts/test foreign
    KILLS=100 … pytest tests/foreign/test_broker.py -k kill_9     as often as that
"""
import contextlib
import os
import random
import time

import pytest
from paho.mqtt.subscribeoptions import SubscribeOptions

from clients import VERSIONS, Client
from installation import sql, until

KILLS = int(os.environ.get("KILLS", "3"))
MESSAGES = 1000


@pytest.mark.parametrize("version", VERSIONS)
def test_each_qos_and_wildcards(broker, version):
    with Client(broker, f"listens-{version}", version) as listens, Client(broker, f"speaks-{version}", version) as speaks:
        assert listens.subscribe(f"{version}/+/#") == 2
        assert listens.subscribe("test/nosubscribe") == 0x80
        for qos in [0, 1, 2]:
            speaks.publish(f"{version}/a/{qos}", f"at {qos}", qos)
            message = listens.hear()
            assert (message.topic, message.payload, message.qos) == (f"{version}/a/{qos}", f"at {qos}".encode(), qos)
            assert not message.retain and not message.dup
        speaks.publish(f"{version}", "too short for the filter")
        speaks.publish(f"{version}/a", "and this is not")
        assert listens.hear().payload == b"and this is not"


def test_retained_messages_outlive_the_node(broker):
    with Client(broker, "keeps") as keeps:
        keeps.publish("kept/1", "old", retain=True)
        keeps.publish("kept/1", "new", retain=True)
        keeps.publish("kept/2", "gone", retain=True)
        keeps.publish("kept/2", "", retain=True)
    broker.kill_node()
    broker.start_node()
    with Client(broker, "comes later") as later:
        later.subscribe("kept/#")
        message = later.hear()
        assert (message.topic, message.payload, message.retain) == ("kept/1", b"new", True)
        later.hears_nothing()
        later.subscribe("kept/#", retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        later.hears_nothing()
        later.publish("kept/1", "", retain=True)
        assert not later.hear().retain, "it came as it was published, to a subscription that was there"


def test_a_shared_subscription_has_each_message_once(broker):
    with contextlib.ExitStack() as stack:
        members = [stack.enter_context(Client(broker, f"member-{n}")) for n in range(3)]
        for member in members:
            member.subscribe("$share/team/work/#")
        with Client(broker, "gives work") as gives:
            for n in range(30):
                gives.publish(f"work/{n}", str(n))
        until(lambda: sum(member.heard.qsize() for member in members) == 30, "all was heard", within=10)
        assert all(member.heard.qsize() == 10 for member in members), "in turn"


def test_a_will_is_sent_unless_its_client_takes_leave_or_comes_back_in_time(broker):
    with Client(broker, "heir") as heir:
        heir.subscribe("will/#")
        with Client(broker, "leaves", will=("will/leaves", "x", 1)):
            pass
        dies = Client(broker, "dies", will=("will/dies", "x", 2)).__enter__()
        dies.cut()
        assert heir.hear().topic == "will/dies"
        late = Client(broker, "late", keep=True, will=("will/late", "x", 1), delay=2).__enter__()
        late.cut()
        time.sleep(0.5)
        with Client(broker, "late", keep=True) as back:
            assert back.flags.session_present
            heir.hears_nothing(3)


def test_a_will_whose_node_died_is_sent_when_it_starts_again(broker):
    with Client(broker, "heir of nodes", keep=True) as heir:
        heir.subscribe("node/will")
        dies = Client(broker, "with the node", will=("node/will", "after the node", 1)).__enter__()
        dies.paho.loop_stop()
        broker.kill_node()
        broker.start_node()
        assert heir.hear().payload == b"after the node"
    assert sql("postgres", "select count(*) from wakala.will", "wakala_open") == [["0"]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [1, 2])
def test_kill_9_loses_nothing_and_at_qos_2_repeats_nothing(broker, version, qos):
    rounds = max(1, KILLS * 2 // 4 if qos == 2 else KILLS // 4)
    for nth in range(rounds):
        name = f"{version}-{qos}-{nth}"
        with Client(broker, f"sub-{name}", version, keep=True) as subscriber:
            subscriber.subscribe(f"sent/{name}", qos)
            with Client(broker, f"pub-{name}", version, keep=True) as publisher:
                subscriber.waits()
                publisher.waits()
                publishing = publisher.publish_all(f"sent/{name}", [str(n) for n in range(MESSAGES)], qos)
                time.sleep(random.random() * 0.4)
                assert publishing.is_alive(), "it dies in the middle"
                broker.kill_node()
                broker.start_node()
                publisher.back()
                subscriber.back()
                publishing.join(120)
                assert not publishing.is_alive()
            until(lambda: subscriber.heard.qsize() >= MESSAGES, "all is heard", within=60)
            time.sleep(0.3)
            heard = [int(message.payload) for message in subscriber.heard.queue]
            assert set(heard) == set(range(MESSAGES)), f"lost: {set(range(MESSAGES)) - set(heard)}"
            first = list(dict.fromkeys(heard))
            assert first == sorted(first), "in order"
            if qos == 2:
                assert len(heard) == MESSAGES, "each once"
    left = "select (select count(*) from wakala.message), (select count(*) from wakala.received)"
    until(lambda: sql("postgres", left, "wakala_open") == [["0", "0"]], "nothing is left behind")
