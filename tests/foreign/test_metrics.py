"""What a node counts: right by Prometheus' own parser, and by the law that no copy of a message goes away unseen.

    scripts/test foreign
"""
import contextlib
import http.client
import json
import os
import random
import re
import socket
import subprocess
import threading
import time
import urllib.request

import pytest
import yaml
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from clients import Client
from installation import ROOT, VAR, Node, free_port, sql, until
from mqtt_wire import Wire, packet, text

NEWER = "application/openmetrics-text; version=1.0.0"
DATABASE = "wakala_metrics"


def fetch(node, path="/metrics", accept=None):
    request = urllib.request.Request(f"http://127.0.0.1:{node.admin}{path}", headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def samples(node):
    """By name and labels."""
    families = text_string_to_metric_families(fetch(node)[1])
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def value(node, name, **labels):
    return samples(node)[name, frozenset(labels.items())]


def conservation(node):
    return json.loads(fetch(node, "/status")[1])["conservation"]


@pytest.fixture(scope="module")
def bounded(tmp_path_factory):
    """A general broker with little room, whose housekeeping is quick."""
    folder, port = tmp_path_factory.mktemp("bounded"), free_port()
    profile = (ROOT / "config/open.toml").read_text(encoding="utf-8")
    profile = profile.replace("[open]", '[open]\nqueue_max = 20\nsys_every = "200ms"')
    profile = profile.replace("[sessions]", '[sessions]\nexpire_every = "300ms"\ndirect_max = 20')
    profile += '\n[metrics]\nsum_up_every = "200ms"\n'
    (folder / "bounded.toml").write_text(profile, encoding="utf-8")
    arguments = ["--config", folder / "bounded.toml", "--port", str(port)]
    node = Node(folder, VAR / "foreign-bounded", DATABASE, *arguments)
    node.port, node.ws, node.wss, node.authority = port, None, None, None
    try:
        node.start_node(first=True)
        yield node
    finally:
        node.close()


def test_a_browser_sees_the_node_at_a_glance_and_needs_nothing_else(bounded):
    with urllib.request.urlopen(f"http://127.0.0.1:{bounded.admin}/", timeout=10) as answer:
        kind, policy, page = answer.headers["Content-Type"], answer.headers["Content-Security-Policy"], answer.read().decode()
    assert kind == "text/html; charset=utf-8" and "default-src 'none'" in policy
    status = json.loads(fetch(bounded, "/status")[1])
    assert f"<h1>{status['node']}</h1>" in page and status["version"] in page
    assert all(branch in page for branch in status["actors"])
    # No script, and what it leads to is there.
    assert not re.search("<script|https?://|src=", page)
    links = re.findall('href="([^"]*)"', page)
    assert links and all(fetch(bounded, "/" + link)[1] for link in links)


def test_prometheus_own_parsers_read_both_formats(bounded):
    with Client(bounded, "seen") as seen:
        seen.subscribe("seen/#")
        for qos in [0, 1, 2]:
            seen.publish(f"seen/{qos}", "x", qos)
            seen.hear()
        kind, page = fetch(bounded)
        assert kind.startswith("text/plain; version=0.0.4")
        families = list(text_string_to_metric_families(page))
        names = [family.name for family in families]
        assert len(names) == len(set(names)) > 50
        for family in families:
            assert family.documentation and family.type in ("counter", "gauge", "histogram"), family
            assert family.type != "counter" or all(sample.name.endswith("_total") for sample in family.samples), family
        kind, page = fetch(bounded, accept=f"{NEWER};q=0.9, text/plain;q=0.5")
        assert kind.startswith(NEWER) and page.endswith("# EOF\n")
        assert [family.name for family in openmetrics.text_string_to_metric_families(page)] == names
        found = samples(bounded)
    assert found["wakala_sessions_connected", frozenset()] >= 1
    for qos in ["0", "1", "2"]:
        for direction in ["received", "sent"]:
            assert found["wakala_publishes_total", frozenset({("direction", direction), ("qos", qos)})] >= 1
    assert found["wakala_packets_total", frozenset({("direction", "sent"), ("type", "connack")})] >= 1
    assert found["wakala_packet_bytes_total", frozenset({("direction", "received"), ("type", "connect")})] >= 12
    assert found["process_resident_memory_bytes", frozenset()] > 1e6
    assert found["wakala_database_up", frozenset()] == 1


def test_alerts_ask_for_what_there_is(bounded):
    families = list(text_string_to_metric_families(fetch(bounded)[1]))
    there = {sample.name for family in families for sample in family.samples}
    # What has no sample here: no core, no TLS, no partition.
    there |= {family.name + ("_total" if family.type == "counter" else "") for family in families}
    rules = [rule for group in yaml.safe_load((ROOT / "config/alerts.yaml").read_text())["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    for rule in rules:
        assert rule["annotations"]["summary"] and rule["labels"]["severity"] in ("page", "ticket")
        asked = set(re.findall(r"\b(?:wakala|process)_\w+", rule["expr"]))
        assert asked and asked <= there, f"{rule['alert']}: {asked - there}"


def balanced(node, within=30):
    """Waits until it is quiet; gives what it then says."""

    def quiet():
        first = conservation(node)
        time.sleep(0.3)
        second = conservation(node)
        return first == second and first["direct"]["balance"] == 0 and second

    last = until(quiet, f"all is accounted for: {conservation(node)}", within=within, every=0.3)
    assert last["stored"]["balance"] == 0
    return last


@contextlib.contextmanager
def looking(node, wrong):
    """Stored copies are accounted for at every moment, not when it is quiet only."""
    over = threading.Event()

    def look():
        while not over.is_set():
            with contextlib.suppress(OSError, ValueError, KeyError, http.client.HTTPException):
                stored = conservation(node).get("stored")
                if stored and stored["balance"] != 0:
                    wrong.append(stored)
            time.sleep(0.02)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def leave(broker, name, topic, qos):
    """Somebody who subscribed, and is away."""
    with Client(broker, name, keep=True) as away:
        away.subscribe(topic, qos)


def test_pain_16_every_copy_of_a_message_is_accounted_for_whatever_breaks(bounded):
    """Silent drops and counters that nobody could make sense of: emqx #11657, #10719, #3961."""
    wrong = []
    before = balanced(bounded)
    with looking(bounded, wrong), contextlib.ExitStack() as stack:
        enter = stack.enter_context
        # To subscribers that are there, at each QoS, overlapping and shared.
        live = enter(Client(bounded, "live"))
        live.subscribe("law/#")
        live.subscribe("law/+", 1)
        kept = enter(Client(bounded, "kept", keep=True))
        kept.subscribe("law/#")
        members = [enter(Client(bounded, f"member-{n}", keep=n == 0)) for n in range(2)]
        for member in members:
            member.subscribe("$share/team/law/#")
        speaks = enter(Client(bounded, "speaks"))
        for n in range(30):
            speaks.publish("law/all", str(n), n % 3)
        for listener in (live, kept):
            for _ in range(30):
                listener.hear()
        first = balanced(bounded)
        gone = first["direct"]["delivered"] - before["direct"]["delivered"]
        assert gone + first["stored"]["delivered"] - before["stored"]["delivered"] == 90
        # Nobody hears it, and it has no right to: neither is lost without a word.
        of = {name: value(bounded, name) for name in ("wakala_messages_unmatched_total", "wakala_publishes_refused_total")}
        for qos in (0, 1):
            speaks.publish("nobody/hears", "x", qos)
            speaks.publish("$SYS/mine", "x", qos)
        until(lambda: all(value(bounded, name) == was + 2 for name, was in of.items()), "both are counted")
        # Away: at QoS 0 it is lost, above it waits, and 20 are the most that wait.
        leave(bounded, "away", "away/#", 2)
        for n in range(30):
            speaks.publish("away/1", str(n), 1)
            speaks.publish("away/0", str(n), 0)
        second = balanced(bounded)
        assert second["direct"]["refused"]["away"] - first["direct"]["refused"]["away"] == 30
        assert second["stored"]["refused"]["full"] - first["stored"]["refused"]["full"] == 10
        assert second["stored"]["waiting"] - first["stored"]["waiting"] == 20
        # Its time is over while it waits; one whose session is over takes what waits along.
        leave(bounded, "late", "late/#", 1)
        for n in range(5):
            speaks.publish("late/1", str(n), 1, MessageExpiryInterval=1)
        until(lambda: conservation(bounded)["stored"]["expired"] - second["stored"]["expired"] == 5, "they expired", within=30)
        with Client(bounded, "away"):
            pass
        third = balanced(bounded)
        assert third["stored"]["refused"]["session_over"] - second["stored"]["refused"]["session_over"] == 20
        # Too slow: it reads nothing, and goes without a word.
        slow = Client(bounded, "slow").__enter__()
        slow.subscribe("slow/#", 0)
        slow.paho.loop_stop()
        for _ in range(400):
            speaks.publish("slow/x", b"x" * 60_000, 0)
        until(lambda: conservation(bounded)["direct"]["waiting"] > 0, "some wait in memory", within=30)
        full = conservation(bounded)["direct"]["refused"]["full"]
        assert full > 0, "and there is no room for more"
        slow.paho.socket().close()
        until(lambda: value(bounded, "wakala_direct_copies_refused_total", reason="connection_over") > 0, "it is gone")
        balanced(bounded)
        kill_in_the_middle(bounded, stack, speaks)
    assert not wrong, wrong[:3]
    last = balanced(bounded)
    rows = sql("postgres", "select count(*) from wakala.message", DATABASE)
    assert rows == [[str(last["stored"]["waiting"])]]
    found = samples(bounded)
    for of in ["direct", "stored", "requests", "receipts"]:
        assert found["wakala_conservation_balance", frozenset({("of", of)})] == 0
    status = subprocess.run(
        [bounded_program(), "status", "--set", f"admin.address=127.0.0.1:{bounded.admin}"],
        capture_output=True, text=True, check=True, timeout=30,
    ).stdout
    assert re.search(r"copies, stored · \d+ addressed = \d+ delivered \+ \d+ expired \+ \d+ refused", status), status
    assert "OFF BY" not in status


def kill_in_the_middle(node, stack, speaks):
    """kill -9 while one publishes, two hear, and one is away."""
    leave(node, "sleeps", "middle/#", 1)
    hears = stack.enter_context(Client(node, "hears", keep=True))
    hears.subscribe("middle/#", 2)
    writer = stack.enter_context(Client(node, "writes", keep=True))
    for each in (hears, writer, speaks):
        each.waits()
    publishing = writer.publish_all("middle/x", [str(n) for n in range(400)], 1)
    time.sleep(random.random() * 0.3)
    node.kill_node()
    node.start_node()
    stored = conservation(node)["stored"]
    assert stored["balance"] == 0, "before anybody is back"
    writer.back()
    hears.back()
    publishing.join(60)
    assert not publishing.is_alive()
    settled = balanced(node)
    assert settled["stored"]["refused"]["full"] > 0, "who sleeps has no more room"


def test_the_law_notices_what_nobody_counted(bounded):
    """A count that cannot be wrong shows nothing."""
    balanced(bounded)
    sql("postgres", "insert into wakala.tally values ('addressed', 1)", DATABASE)
    assert conservation(bounded)["stored"]["balance"] == 1
    assert value(bounded, "wakala_conservation_balance", of="stored") == 1
    sql("postgres", "insert into wakala.tally values ('delivered', 1)", DATABASE)
    balanced(bounded)


# How many packets, and how many bytes they have with their headers.
PACKETS = {
    "received": {
        "connect": (5, 123), "disconnect": (3, 6), "pingreq": (1, 2), "puback": (2, 8), "pubcomp": (1, 4),
        "publish": (5, 110), "pubrec": (1, 4), "pubrel": (1, 4), "subscribe": (2, 27), "unsubscribe": (1, 12),
    },
    "sent": {
        "connack": (5, 21), "pingresp": (1, 2), "puback": (3, 12), "pubcomp": (1, 4), "publish": (4, 90),
        "pubrec": (1, 4), "pubrel": (1, 4), "suback": (2, 10), "unsuback": (1, 4),
    },
}
# What else is counted.
COUNTED = {
    "connections_ended_early_total reason=unread": 1,
    "connections_total transport=plain": 6,
    "connects_accepted_total": 4,
    "connects_refused_total reason=authentication_method": 1,
    "connects_waited_total result=opened": 3,
    "direct_copies_addressed_total": 3,
    "direct_copies_delivered_total": 3,
    "durable_latency_seconds_count what=publish": 2,
    "messages_published_total": 6,
    "messages_unmatched_total": 2,
    "opening_commits_total": 3,
    "publish_payload_bytes_total direction=received": 51,
    "publish_payload_bytes_total direction=sent": 43,
    "publishes_total direction=received,qos=0": 1,
    "publishes_total direction=received,qos=1": 3,
    "publishes_total direction=received,qos=2": 1,
    "publishes_total direction=sent,qos=0": 1,
    "publishes_total direction=sent,qos=1": 2,
    "publishes_total direction=sent,qos=2": 1,
    # Topic, payload and who published it.
    "retained_bytes": 21,
    "retained_messages": 1,
    "sessions_kept": 1,
    "stored_copies_addressed_total": 1,
    "stored_copies_delivered_total": 1,
    "subscriptions": 1,
    "wills_sent_total": 1,
}
DONE = COUNTED | {
    f"packet{what}_total direction={way},type={kind}": counts[nth]
    for way, kinds in PACKETS.items()
    for kind, counts in kinds.items()
    for nth, what in enumerate(["s", "_bytes"])
}


def moved(node, before):
    """By how much what is counted is more than before; not how long anything took, in how many commits, nor what the process takes."""
    timed = re.compile("process_|wakala_uptime|.*_seconds_(sum|bucket)|wakala_commit_")
    difference = {key: now - before.get(key, 0) for key, now in samples(node).items() if not timed.match(key[0])}
    written = {}
    for (name, labels), more in difference.items():
        if more:
            words = ",".join(f"{label}={text}" for label, text in sorted(labels))
            written[f"{name.removeprefix('wakala_')} {words}".strip()] = more
    return written


def test_what_a_client_does_moves_what_counts_it_and_by_how_much(bounded):
    """All that moves, and nothing else."""
    balanced(bounded)
    before = samples(bounded)
    hears, kept = Wire(bounded.port, "listener"), Wire(bounded.port, "sleeper", keep=True)
    speaks = Wire(bounded.port, "speaker", will="gone/x")
    hears.subscribe("here/#", 2)
    kept.subscribe("there/#", 1)
    kept.send(0xE0)
    assert kept.receive() is None
    # At each QoS, from one who speaks to one who hears.
    for qos, payload in enumerate([b"at most once", b"at least once"]):
        speaks.publish("here/x", payload, qos)
        assert hears.message() == (False, payload)
    speaks.send(0x34, text("here/x") + b"\0\x07" + b"exactly once")
    assert speaks.receive() == (0x50, b"\0\x07")
    speaks.send(0x62, b"\0\x07")
    assert speaks.receive() == (0x70, b"\0\x07")
    first, body = hears.receive()
    number = body[8:10]
    assert (first, body[10:]) == (0x34, b"exactly once")
    hears.send(0x50, number)
    assert hears.receive() == (0x62, number)
    hears.send(0x70, number)
    # Retained where nobody hears it, and kept for one who is away.
    speaks.send(0x33, text("gone/y") + b"\0\x08" + b"retained")
    speaks.answered(b"\0\x08")
    speaks.publish("there/x", b"stored")
    kept = Wire(bounded.port, "sleeper", keep=True)
    assert kept.present and kept.message() == (False, b"stored")
    hears.send(0xA2, hears.id() + text("here/#"))
    assert hears.receive()[0] == 0xB0
    speaks.ping()
    assert speaks.receive() == (0xD0, b"")
    # Two who are not let in: one who wants to be authenticated in a way that is not known here, and one who speaks something else.
    for what, answer in [
        (packet(0x10, text("MQTT") + b"\x05\x02\0\x3c" + b"\x06\x15" + text("way") + text("odd")), b"\x20\x03\0\x8c\0"),
        (b"GET / HTTP/1.1\r\n\r\n", b""),
    ]:
        with socket.create_connection(("127.0.0.1", bounded.port), timeout=10) as stranger:
            stranger.sendall(what)
            assert stranger.recv(100) == answer
    for each in (hears, kept):
        each.send(0xE0)
        assert each.receive() is None
    speaks.cut()
    until(lambda: value(bounded, "wakala_wills_sent_total") == before["wakala_wills_sent_total", frozenset()] + 1, "its will is sent")
    balanced(bounded)
    # Sums of what is stored are made now and then.
    with contextlib.suppress(AssertionError):
        until(lambda: moved(bounded, before) == DONE, "all is counted", within=5)
    assert moved(bounded, before) == DONE
    with Client(bounded, "clears") as clears:
        clears.publish("gone/y", "", retain=True)


def mosquitto_sub(node, *arguments):
    command = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(node.port), "-v", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return dict(line.split(" ", 1) if not line.startswith("$SYS/broker/retained") else line.rsplit(" ", 1)
                for line in done.stdout.splitlines())


def test_sys_says_what_users_of_mosquitto_look_for(bounded):
    with Client(bounded, "keeps one") as keeps:
        keeps.publish("sys/kept", "x", retain=True)
        until(lambda: mosquitto_sub(bounded, "-t", "$SYS/#", "-W", "1").get("$SYS/broker/retained messages/count") == "1",
              "it is up to date", within=20)
        said = mosquitto_sub(bounded, "-t", "$SYS/#", "-W", "2")
        assert said["$SYS/broker/version"].startswith("wakala version ")
        assert re.fullmatch(r"\d+ seconds", said["$SYS/broker/uptime"])
        for topic in ["clients/connected", "clients/total", "clients/maximum", "messages/received", "messages/sent",
                      "publish/messages/received", "publish/messages/sent", "publish/bytes/received", "bytes/received",
                      "bytes/sent", "subscriptions/count"]:
            assert int(said[f"$SYS/broker/{topic}"]) >= 1, topic
        assert int(said["$SYS/broker/store/messages/count"]) >= 0
        for minutes in [1, 5, 15]:
            assert float(said[f"$SYS/broker/load/messages/received/{minutes}min"]) > 0
        # [MQTT-4.7.2-1]
        for beyond in ["#", "+/broker/#", "+/broker/version"]:
            heard = mosquitto_sub(bounded, "-t", beyond, "-W", "1")
            assert not any(topic.startswith("$SYS") for topic in heard), beyond
        keeps.subscribe("$SYS/broker/version")
        assert keeps.hear().retain
        result = keeps.paho.publish("$SYS/broker/version", "mine", 1)
        result.wait_for_publish(10)
        keeps.hears_nothing()
        keeps.publish("sys/kept", "", retain=True)


def bounded_program():
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    return f"{target}/debug/wakala"
