"""What every broker must do for every client: the ground of Eclipse Paho's interoperability suite, as cases of our own.

Some of that ground is in test_broker.py: each QoS, wildcards and what may not be subscribed to; wills and their delay;
shared subscriptions; retained messages that outlive the node.
"""
import subprocess
import time

import pytest
from paho.mqtt.packettypes import PacketTypes

from clients import VERSIONS, Client, properties
from installation import sql, until

both = pytest.mark.parametrize("version", VERSIONS)


@both
def test_retained_messages_are_for_who_comes_later_until_they_are_cleared(broker, version):
    place = f"retained/{version}"
    with Client(broker, "retains", version) as retains:
        for qos in [0, 1, 2]:
            retains.publish(f"{place}/{qos}", f"at {qos}", qos, retain=True)
        retains.subscribe(f"{place}/+")
        found = sorted((retains.hear() for _ in range(3)), key=lambda message: message.topic)
        assert [(m.topic, m.payload, m.qos, m.retain) for m in found] == [
            (f"{place}/{qos}", f"at {qos}".encode(), qos, True) for qos in [0, 1, 2]
        ]
        for qos in [0, 1, 2]:
            retains.publish(f"{place}/{qos}", b"", qos, retain=True)
            assert not retains.hear().retain, "to who is there it is a message like any other"
        with Client(broker, "comes too late", version) as later:
            later.subscribe(f"{place}/+")
            later.hears_nothing()


@both
def test_a_client_without_a_name_is_given_one(broker, version):
    with Client(broker, "", version) as nameless:
        assert not nameless.flags.session_present
        if version == "5":
            assert nameless.told.AssignedClientIdentifier
    # Paho itself refuses to leave its name out here.
    nameless = Client(broker, "x", version, keep=True)
    nameless.paho._client_id = b""
    nameless.come()
    if version == "5":
        assert nameless.told.AssignedClientIdentifier, "so that it can come back"
    else:
        assert nameless.paho._client_id, "it was refused [MQTT-3.1.3-8], and Paho came again with a name that it drew"
    nameless.leave()


@both
def test_messages_wait_for_who_is_away(broker, version):
    name = f"away {version}"
    with Client(broker, name, version, keep=True) as away:
        away.subscribe(f"wait/{version}/#")
    with Client(broker, "meanwhile", version) as meanwhile:
        for qos in [1, 2]:
            meanwhile.publish(f"wait/{version}/{qos}", "x", qos)
    with Client(broker, name, version, keep=True) as back:
        assert back.flags.session_present
        assert [(message.topic, message.qos) for message in (back.hear(), back.hear())] == [
            (f"wait/{version}/{qos}", qos) for qos in [1, 2]
        ]
    with Client(broker, name, version) as clean:
        assert not clean.flags.session_present


@both
def test_subscriptions_that_overlap_give_one_message_at_the_higher_qos(broker, version):
    with Client(broker, f"overlaps {version}", version) as overlaps:
        overlaps.subscribe(f"over/{version}/#", 2)
        overlaps.subscribe(f"over/{version}/+", 1)
        overlaps.publish(f"over/{version}/lap", "x", 2)
        assert overlaps.hear().qos == 2
        overlaps.hears_nothing()


@both
def test_who_is_silent_for_too_long_is_gone_and_who_pings_is_not(broker, version):
    with Client(broker, "mourner", version) as mourner:
        mourner.subscribe(f"silent/{version}/+")
        with Client(broker, f"pings {version}", version, keepalive=1, will=(f"silent/{version}/pings", "", 1)):
            silent = Client(broker, f"silent {version}", version, keepalive=1, will=(f"silent/{version}/silent", "", 1))
            with silent:
                silent.paho.loop_stop()
                assert mourner.hear(10).topic == f"silent/{version}/silent"
            mourner.hears_nothing(2)


@both
def test_what_was_not_acknowledged_comes_again_after_a_reconnect_and_qos_2_does_not_twice(broker, version):
    name = f"forgets {version}"
    with Client(broker, name, version, keep=True, manual=True) as forgets:
        forgets.subscribe(f"again/{version}/+")
        with Client(broker, "once", version) as once:
            for qos in [1, 2]:
                once.publish(f"again/{version}/{qos}", "x", qos)
        assert [(forgets.hear().qos, forgets.paho.is_connected()) for _ in range(2)] == [(1, True), (2, True)]
        forgets.cut()
        forgets.back()
        message = forgets.hear()
        assert (message.qos, message.dup) == (1, True)
        forgets.paho.ack(message.mid, message.qos)
        forgets.hears_nothing()
    with Client(broker, name, version, keep=True) as done:
        done.hears_nothing()


@both
def test_a_wildcard_at_the_beginning_does_not_match_topics_that_begin_with_a_dollar(broker, version):
    with Client(broker, f"all {version}", version) as everything:
        for wildcard in ["#", "+/x"]:
            everything.subscribe(wildcard)
        everything.paho.publish("$internal/x", "not for everybody", 1)
        everything.hears_nothing()
        with Client(broker, "plain", version) as plain:
            plain.publish(f"visible {version}/x", "for everybody")
        found = set()
        while f"visible {version}/x" not in found:
            found.add(everything.hear().topic)
        assert not any(topic.startswith("$") for topic in found)


@both
def test_who_unsubscribes_hears_no_more(broker, version):
    with Client(broker, f"unsubscribes {version}", version) as client:
        for topic in ["a", "b", "c"]:
            client.subscribe(f"un/{version}/{topic}")
        codes = client.unsubscribe([f"un/{version}/a", f"un/{version}/never"])
        if version == "5":
            assert [code.value for code in codes] == [0, 0x11], "the second was no subscription"
        for topic in ["a", "b", "c"]:
            client.publish(f"un/{version}/{topic}", "x")
        assert [client.hear().topic for _ in range(2)] == [f"un/{version}/b", f"un/{version}/c"]
        client.hears_nothing()


def test_a_session_ends_when_its_client_said(broker):
    def is_gone():
        # What is in force when it comes back is what was stored when it went.
        connected = "select count(*) from wakala.session where client_id = 'expires' and connected"
        until(lambda: sql("postgres", connected, "wakala_open") == [["0"]], "its end is stored")

    def comes_back(**asks):
        with Client(broker, "expires", keep=True, **asks) as back:
            present = back.flags.session_present
        is_gone()
        return present

    def session(leaves=None, **asks):
        with Client(broker, "expires", **asks) as client:
            client.subscribe("expires")
            client.leave(**(leaves or {}))
        is_gone()

    session(SessionExpiryInterval=0)
    assert not comes_back(SessionExpiryInterval=0), "with its connection"
    session(SessionExpiryInterval=3)
    time.sleep(0.5)
    assert comes_back(SessionExpiryInterval=3)
    time.sleep(4.5)
    assert not comes_back(SessionExpiryInterval=0), "after three seconds"
    session(SessionExpiryInterval=1, leaves={"SessionExpiryInterval": 30})
    time.sleep(2.5)
    assert comes_back(SessionExpiryInterval=30), "it changed its mind at DISCONNECT"
    session(SessionExpiryInterval=30, leaves={"SessionExpiryInterval": 0})
    assert not comes_back(SessionExpiryInterval=0), "and again"


@pytest.mark.parametrize("utf8", [0, 1])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_messages_properties_arrive_as_they_were_sent(broker, qos, utf8):
    says = {
        "UserProperty": [("a", "2"), ("c", "3"), ("a", "1")],
        "PayloadFormatIndicator": utf8,
        "ContentType": "text/plain",
        "ResponseTopic": "answers/here",
        "CorrelationData": b"\x00334",
    }
    with Client(broker, "describes") as client:
        client.subscribe("described")
        client.publish("described", "x", qos, **says)
        message = client.hear()
        assert message.qos == qos
        assert {name: getattr(message.properties, name) for name in says} == says


def test_a_request_is_answered_where_it_says(broker):
    with Client(broker, "asks") as asks, Client(broker, "answers") as answers:
        asks.subscribe("service/asks/answer")
        answers.subscribe("service/ask")
        asks.publish("service/ask", "what?", ResponseTopic="service/asks/answer", CorrelationData=b"1")
        request = answers.hear().properties
        answers.publish(request.ResponseTopic, "that", CorrelationData=request.CorrelationData)
        answer = asks.hear()
        assert (answer.payload, answer.properties.CorrelationData) == (b"that", b"1")


def test_a_message_expires_while_it_waits(broker):
    with Client(broker, "late reader", keep=True) as reader:
        reader.subscribe("news")
    with Client(broker, "newspaper") as newspaper:
        for qos in [1, 2]:
            newspaper.publish("news", "old", qos, MessageExpiryInterval=1)
            newspaper.publish("news", "fresh", qos, MessageExpiryInterval=60)
    time.sleep(2.5)
    with Client(broker, "late reader", keep=True) as reader:
        found = [reader.hear(), reader.hear()]
        assert [message.payload for message in found] == [b"fresh", b"fresh"]
        assert all(50 < message.properties.MessageExpiryInterval < 60 for message in found), "what is left of it"
        reader.hears_nothing()


def test_options_of_a_subscription(broker):
    with Client(broker, "chooses") as client, Client(broker, "other") as other:
        for each in [client, other]:
            each.subscribe("options/local", noLocal=True)
        client.publish("options/local", "x")
        assert other.hear().payload == b"x"
        client.hears_nothing()
        client.subscribe("options/as it was", retainAsPublished=True)
        other.subscribe("options/as it was")
        for retain in [False, True]:
            client.publish("options/as it was", "x", retain=retain)
            assert (client.hear().retain, other.hear().retain) == (retain, False)
        client.publish("options/as it was", b"", retain=True)


def test_what_is_retained_is_sent_at_each_subscribing_at_the_first_or_never(broker):
    with Client(broker, "handles") as client:
        client.publish("handling/x", "kept", retain=True)
        for handling, expected in enumerate([[1, 1], [1, 0], [0, 0]]):
            for count in expected:
                client.subscribe("handling/+", retainHandling=handling)
                for _ in range(count):
                    assert client.hear().retain
                client.hears_nothing(0.3)
            client.unsubscribe("handling/+")
        client.publish("handling/x", b"", retain=True)


def test_a_message_says_which_subscriptions_it_is_for(broker):
    with Client(broker, "numbers") as numbers, Client(broker, "numbers too") as too:
        numbers.subscribe("numbered/#", identifier=456_789)
        too.subscribe("numbered/x", identifier=2)
        too.subscribe("numbered/+", identifier=268_435_455)
        numbers.publish("numbered/x", "x")
        assert numbers.hear().properties.SubscriptionIdentifier == [456_789]
        assert set(too.hear().properties.SubscriptionIdentifier) == {2, 268_435_455}
        too.hears_nothing()


def test_a_clients_topic_alias_lasts_as_long_as_its_connection(broker):
    with Client(broker, "short", keep=True) as short:
        assert short.told.TopicAliasMaximum == 10
        short.subscribe("a long topic")
        short.publish("a long topic", "1", TopicAlias=10)
        short.publish("", "2", TopicAlias=10)
        assert [(m.topic, m.payload) for m in (short.hear(), short.hear())] == [("a long topic", b"1"), ("a long topic", b"2")]
    for topic, alias in [("", 10), ("another topic", 11)]:
        with Client(broker, "short", keep=True) as short:
            short.waits()
            short.paho.publish(topic, "nowhere", properties=properties(PacketTypes.PUBLISH, TopicAlias=alias))
            flags, code, _ = short.ends.get(timeout=10)
            assert flags.is_disconnect_packet_from_server
            assert code.value == {10: 0x82, 11: 0x94}[alias]


@pytest.mark.parametrize("allowed", [0, 1])
def test_the_servers_topic_alias_is_used_where_the_client_allows_it(broker, allowed):
    with Client(broker, "hears aliases", **({"TopicAliasMaximum": allowed} if allowed else {})) as client:
        client.subscribe("also a long topic")
        for qos in [0, 1, 2]:
            client.publish("also a long topic", "x", qos)
        found = [client.hear() for _ in range(3)]
        topics = ["also a long topic", "", ""] if allowed else ["also a long topic"] * 3
        assert [message.topic for message in found] == topics
        assert [getattr(message.properties, "TopicAlias", None) for message in found] == [allowed or None] * 3


def test_a_message_that_is_too_large_for_a_client_is_not_for_it(broker):
    with Client(broker, "small", MaximumPacketSize=64) as small:
        small.subscribe("sizes")
        for length in [32, 64, 33]:
            small.publish("sizes", "." * length)
        assert [len(small.hear().payload) for _ in range(2)] == [32, 33]


def test_the_server_has_the_last_word_on_the_keep_alive(broker):
    with Client(broker, "sleeps long", keepalive=120) as long:
        assert long.told.ServerKeepAlive == 60
    with Client(broker, "sleeps short", keepalive=20) as short:
        assert not hasattr(short.told, "ServerKeepAlive")


def test_the_server_keeps_to_the_clients_receive_maximum(broker):
    with Client(broker, "two at a time", manual=True, ReceiveMaximum=2) as two:
        two.subscribe("window", 1)
        for n in range(4):
            two.publish("window", str(n))
        first, second = two.hear(), two.hear()
        two.hears_nothing(1)
        two.paho.ack(first.mid, 1)
        third = two.hear()
        two.hears_nothing()
        for message in [second, third]:
            two.paho.ack(message.mid, 1)
        assert [m.payload for m in (first, second, third, two.hear())] == [b"0", b"1", b"2", b"3"]


def test_a_client_that_exceeds_the_servers_receive_maximum_is_told_and_gone(broker):
    many = Client(broker, "too many")
    many.paho.max_inflight_messages_set(100)
    with many:
        assert many.told.ReceiveMaximum == 20
        many.waits()
        # What the server answers is not read, so nothing is released.
        many.paho.loop_stop()
        for n in range(21):
            many.paho.publish("window/2", str(n), 2)
        many.paho.loop_start()
        _, code, _ = many.ends.get(timeout=10)
        assert code.value == 0x93


def test_mosquittos_clients_hear_what_pahos_say(broker):
    with Client(broker, "says") as says:
        for version in ["mqttv311", "mqttv5"]:
            says.publish(f"kept for {version}", "by Paho", retain=True)
            where = ["-h", "127.0.0.1", "-p", str(broker.port), "-V", version, "-t", f"kept for {version}"]
            heard = subprocess.run(
                ["mosquitto_sub", *where, "-q", "2", "-C", "1", "-W", "20"], capture_output=True, timeout=30, check=True
            )
            assert heard.stdout == b"by Paho\n"
            says.subscribe(f"kept for {version}")
            says.hear()
            subprocess.run(["mosquitto_pub", *where, "-q", "2", "-m", "by mosquitto"], timeout=30, check=True)
            assert says.hear().payload == b"by mosquitto"
