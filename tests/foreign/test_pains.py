"""What users of other brokers suffer from, where it takes a whole node to see that ours do not: docs/pains.md."""
import contextlib
import itertools
import os
import pathlib
import signal
import threading
import time

import pytest

from installation import VAR, Node, free_port, sql, until
from mqtt_wire import SlowLink, Wire

DATABASE = "wakala_open"


def resident(pid):
    """In MiB."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    raise RuntimeError("no VmRSS")


def test_pain_02_a_restored_session_is_routed_to_before_it_reconnects(broker):
    """rmqtt #477: between the restart and the reconnect, publishes were acknowledged and dropped."""
    said, numbers = [], itertools.count(1)

    def dies():
        broker.kill_node()
        broker.start_node()

    def publishes():
        speaks = Wire(broker.port, "speaks in the gap")
        said.append(f"message {next(numbers)}".encode())
        speaks.publish("gap/all", said[-1])
        speaks.cut()

    def hears():
        """Comes back, and hears what was said; the last of it stays unacknowledged."""
        listens = Wire(broker.port, "away in the gap", keep=True)
        assert listens.present
        heard = []
        while said[-1] not in heard:
            _, payload = listens.message(timeout=60, acknowledge=False)
            # What it acknowledged before may come again: that may not have been stored.
            if payload not in heard:
                heard.append(payload)
        assert heard[-len(said) :] == said, f"of {said} it heard {heard}"
        for number in listens.unacknowledged[:-1]:
            listens.send(0x40, number)
        del said[:-1]
        return listens

    first = Wire(broker.port, "away in the gap", keep=True)
    assert not first.present
    first.subscribe("gap/#", 1)
    dies()  # connected, and nothing said
    publishes()
    hears().cut()
    publishes()
    dies()  # away, with something queued and something in flight before
    publishes()
    connected = hears()
    publishes()
    dies()  # connected, while something is on its way
    connected.cut()
    dies()  # and again before anybody comes
    publishes()
    last = hears()
    last.send(0xA2, last.id() + b"\x00\x05gap/#")
    last.cut()


def test_pain_03_two_clients_of_one_name_fight_and_nothing_is_lost_nor_wedged(broker):
    """emqx #6396, hivemq-ce #310, VerneMQ 2.2.0: messages of the moment of the takeover were dropped, or the session hung."""
    Wire(broker.port, "twin", keep=True).subscribe("fight/#", 1)
    heard, takeovers, over = [], [0, 0], threading.Event()

    def fight(which):
        while not over.is_set():
            with contextlib.suppress(OSError):
                wire = Wire(broker.port, "twin", keep=True)
                takeovers[which] += 1
                while not over.is_set():
                    message = wire.message(timeout=5)
                    if message is None:
                        break
                    heard.append(message[1])
                wire.cut()
            time.sleep(0.01)

    fighters = [threading.Thread(target=fight, args=(which,)) for which in range(2)]
    for fighter in fighters:
        fighter.start()
    said = [str(n).encode() for n in range(600)]
    try:
        speaks = Wire(broker.port, "speaks to twins")
        for payload in said:
            speaks.publish("fight/x", payload)
            time.sleep(0.005)
        until(lambda: len(set(heard)) == len(said), f"of {len(said)} all are heard", within=60)
    finally:
        over.set()
        for fighter in fighters:
            fighter.join(60)
    assert min(takeovers) >= 5, f"they took over from each other {takeovers} times"
    assert not any(fighter.is_alive() for fighter in fighters), "wedged"
    once_more = Wire(broker.port, "twin", keep=True)
    assert once_more.present
    speaks.publish("fight/x", b"and at the end")
    until(lambda: once_more.message(timeout=10)[1] == b"and at the end", "the last one hears", within=30)


@pytest.mark.parametrize("qos", [0, 1])
def test_pain_08_one_that_does_not_read_harms_nobody(broker, qos):
    """mochi #95, #340, emqx #860, #11657, vernemq #1814: the broker hung, died, or ran out of memory."""
    topic, payload, count = f"heavy/{qos}", bytes(64 * 1024), 1500
    slow = [Wire(broker.port, f"does not read {qos} {n}", keep=n == 0) for n in range(3)]
    for wire in slow:
        wire.subscribe(topic, qos)
    quick = [Wire(broker.port, f"reads {qos} {n}") for n in range(3)]
    counted = [0] * len(quick)

    def read(which):
        with contextlib.suppress(OSError):
            while quick[which].message(timeout=60):
                counted[which] += 1

    for which, wire in enumerate(quick):
        wire.subscribe(topic, qos)
        threading.Thread(target=read, args=(which,), daemon=True).start()
    before = most = resident(broker.node_pid())
    speaks = Wire(broker.port, f"says much {qos}")
    for n in range(count):
        speaks.publish(topic, payload, qos)
        if qos == 0 and n % 16 == 0:
            # At QoS 0 nobody holds it back but those that read.
            until(lambda n=n: min(counted) >= n - 16, "who reads is kept up with", within=60, every=0.01)
        if n % 100 == 0:
            most = max(most, resident(broker.node_pid()))
    until(lambda: min(counted) == count, f"who reads hears all: {counted}", within=120)
    most = max(most, resident(broker.node_pid()))
    # 94 MiB were for each of those that did not read. They share what may wait for each: twice sessions.direct_bytes_max.
    assert most - before < 48, f"from {before} to {most} MiB"
    for wire in [*slow, *quick]:
        wire.cut()
    end = Wire(broker.port, f"does not read {qos} 0")
    assert not end.present, "a clean session takes the queue away"


def test_pain_14_on_a_slow_link_nothing_is_sent_twice(broker):
    """mosquitto #62: 30 kB at 1 kB/s were sent again every 20 s; nodemcu #1329: up to 19 copies."""
    link = SlowLink(broker.port, bytes_per_second=4000, delay=0.5)
    slow = Wire(link.listens, "on 2G")
    slow.subscribe("slow/#", 1)
    speaks = Wire(broker.port, "talks to 2G")
    said = [str(n).encode() + bytes(6000) for n in range(8)]
    for payload in said:
        speaks.publish("slow/x", payload)
    all_said = time.monotonic()
    heard = [slow.message(acknowledge=False) for _ in said]
    assert heard == [(False, payload) for payload in said], "each once, in order"
    # Nothing is acknowledged, and the link is alive: it is not for the server to lose patience so soon [MQTT-4.4.0-1].
    # Somebody who sent again after 20 s would have been heard here well before the end.
    while time.monotonic() < all_said + 30:
        slow.ping()
        assert slow.receive(10) == (0xD0, b""), "and nothing else"
        time.sleep(1)
    link.close()


class Second(Node):
    """Another node on the broker's database."""

    def __init__(self, folder, broker):
        # It makes no database of its own.
        self.folder, self.output = folder, VAR / "foreign-second"
        self.output.mkdir(parents=True, exist_ok=True)
        self.admin, self.port, self.script, self.own_postgres = free_port(), free_port(), None, 0
        self.arguments = [*broker.arguments[:-2], "--port", str(self.port)]
        self.environment = {
            "WAKALA_VAR": str(folder),
            "WAKALA_ADMIN__ADDRESS": f"127.0.0.1:{self.admin}",
            "WAKALA_NODE__NAME": "open-2",
        }


@contextlib.contextmanager
def standing_still(pids):
    """Postgres answers these no more: nothing is refused, and no connection breaks."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def backends():
    """Postgres' processes for the nodes."""
    query = "select pid from pg_stat_activity where application_name = 'wakala' and datname = current_database()"
    return {int(pid) for (pid,) in sql("postgres", query, DATABASE)}


def test_pain_06_a_node_without_the_database_stops_acknowledging_and_the_other_goes_on(broker, tmp_path):
    """emqx #11157, #3664: two halves of a cluster both said yes, and did not find together again."""
    keeps = Wire(broker.port, "in two halves", keep=True)
    keeps.subscribe("half/#", 1)
    keeps.cut()
    of_first = backends()
    second = Second(tmp_path, broker)
    try:
        second.start_node()
        one, two = Wire(broker.port, "at one"), Wire(second.port, "at two")
        with standing_still(of_first):
            number = one.id()
            one.send(0x32, b"\x00\x06half/x" + number + b"to nobody")
            two.publish("half/x", b"to all")
            one.hears_nothing(3)
            # The session belongs to who can ask the database, and that one serves it.
            keeps = Wire(second.port, "in two halves", keep=True)
            assert keeps.present
            assert keeps.message()[1] == b"to all"
        one.answered(number, timeout=60)
        keeps.cut()
        keeps = Wire(second.port, "in two halves", keep=True)
        until(lambda: keeps.message()[1] == b"to nobody", "what was acknowledged late is there", within=60)
        keeps.send(0xE0)
    finally:
        second.close()


def test_pain_09_a_node_that_stood_still_takes_nobody_for_silent(broker):
    """emqx #2671: in an overload wills were sent of clients that were there. More of them than one look at the sockets finds."""
    hears = Wire(broker.port, "hears of wills")
    hears.subscribe("wills/#", 0)
    clients, pid = [], broker.node_pid()

    def beat():
        for client in clients:
            client.send(0xC0)
            client.beats += 1

    for n in range(2600):
        clients.append(Wire(broker.port, f"beats-{n}", keep_alive=4, will="wills/sent"))
        clients[-1].beats = 0
        if n % 500 == 499:
            beat()
    beat()
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(7):
            time.sleep(1)
            beat()
    finally:
        os.kill(pid, signal.SIGCONT)
    for client in clients:
        assert [client.receive() for _ in range(client.beats)] == [(0xD0, b"")] * client.beats, "a PINGRESP each"
    hears.hears_nothing(0.5)
    for client in clients:
        client.send(0xE0)
        client.cut()
