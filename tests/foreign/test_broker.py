"""A general broker: what clients of Paho's tell each other, and what kill -9 of the node does to it.

    scripts/test foreign
    scripts/kills 100        only kill -9, as often as that, with figures at the end
"""
import contextlib
import json
import os
import random
import time

import pytest
from paho.mqtt.subscribeoptions import SubscribeOptions

from clients import VERSIONS, Client
from installation import sql, until

KILLS = int(os.environ.get("KILLS", "4"))
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


def test_pain_15_a_will_whose_node_died_is_sent_when_it_starts_again(broker):
    with Client(broker, "heir of nodes", keep=True) as heir:
        heir.subscribe("node/will")
        dies = Client(broker, "with the node", will=("node/will", "after the node", 1)).__enter__()
        dies.paho.loop_stop()
        broker.kill_node()
        broker.start_node()
        assert heir.hear().payload == b"after the node"
    assert sql("postgres", "select count(*) from wakala.will", "wakala_open") == [["0"]]


class Kill:
    """A run: 1,000 messages from one client that stays to another, and kill -9 of the node in the middle."""

    def __init__(self, nth, version, qos):
        self.name, self.version, self.qos = f"{nth}-{version}-{qos}", version, qos
        self.topic, self.heard, self.killed_at = f"sent/{self.name}", [], None

    def run(self, broker):
        with Client(broker, f"sub-{self.name}", self.version, keep=True) as subscriber:
            subscriber.subscribe(self.topic, self.qos)
            with Client(broker, f"pub-{self.name}", self.version, keep=True) as publisher:
                subscriber.waits()
                publisher.waits()
                publishing = publisher.publish_all(self.topic, [str(n) for n in range(MESSAGES)], self.qos)
                time.sleep(random.random() * 0.4)
                assert publishing.is_alive(), "it dies in the middle"
                self.killed_at = subscriber.heard.qsize()
                broker.kill_node()
                broker.start_node()
                publisher.back()
                subscriber.back()
                publishing.join(120)
                assert not publishing.is_alive()
            try:
                until(lambda: len(set(self.numbers(subscriber))) == MESSAGES, "all is heard", within=60)
                # What comes twice comes late.
                time.sleep(0.3)
            finally:
                self.heard = self.numbers(subscriber)

    @staticmethod
    def numbers(subscriber):
        return [int(message.payload) for message in list(subscriber.heard.queue)]

    @staticmethod
    def around(first):
        """What came next to what is out of order."""
        turns = [n for n, (earlier, later) in enumerate(zip(first, first[1:])) if later < earlier]
        return [first[max(0, n - 20) : n + 20] for n in turns[:3]]

    def figures(self):
        first = list(dict.fromkeys(self.heard))
        return {
            "run": self.name,
            "qos": self.qos,
            "messages": MESSAGES,
            "heard before the kill": self.killed_at,
            "lost": MESSAGES - len(first),
            "repeated": len(self.heard) - len(first),
            "out of order": sum(later < earlier for earlier, later in zip(first, first[1:])),
            "around": self.around(first),
        }


def keeps_its_word(figures):
    return figures["lost"] == figures["out of order"] == 0 and (figures["qos"] == 1 or figures["repeated"] == 0)


@pytest.mark.parametrize("nth", range(KILLS))
def test_pain_01_kill_9_loses_nothing_and_at_qos_2_repeats_nothing(broker, nth):
    kill = Kill(nth, *[("3.1.1", 1), ("3.1.1", 2), ("5", 1), ("5", 2)][nth % 4])
    try:
        kill.run(broker)
    finally:
        figures = kill.figures()
        with open(broker.output / "kills.jsonl", "a", encoding="ascii") as journal:
            journal.write(json.dumps(figures) + "\n")
    assert keeps_its_word(figures), figures
    own = f"where client_id in ('pub-{kill.name}', 'sub-{kill.name}')"
    left = f"select (select count(*) from wakala.message {own}), (select count(*) from wakala.received {own})"
    until(lambda: sql("postgres", left, "wakala_open") == [["0", "0"]], "nothing is left behind")
