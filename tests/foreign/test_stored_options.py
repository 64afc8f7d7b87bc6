"""What MQTT 5 lets a client say with a subscription and with a message is stored, and outlives kill -9 of the node.

Each client has two subscriptions that overlap: to what is its own, with No Local and Retain As Published, and to what is
both's, without. Each has an identifier.
"""
import pytest

from clients import Client

OWN, BOTH = 1, 268_435_455
# Where, at which QoS, whether RETAIN is set, whether it arrives so, and for which subscriptions.
MESSAGES = [
    ("own/only", 1, True, True, [OWN]),
    ("other/both", 2, True, False, [BOTH]),
    ("own/both", 2, False, False, [OWN, BOTH]),
]
CLIENTS = ["waits", "is late", "is there", "speaks"]


@pytest.fixture(scope="module")
def restarted(broker):
    """A broker that was killed after clients had subscribed and left, and after messages for one of them."""
    for name in CLIENTS:
        with Client(broker, name, keep=True) as client:
            client.subscribe(f"{name}/own/+", identifier=OWN, noLocal=True, retainAsPublished=True)
            client.subscribe(f"{name}/+/both", identifier=BOTH)
    with Client(broker, "publishes") as publishes:
        publish(publishes, "waits")
        publishes.publish("nobody's yet", "kept", 2, retain=True, MessageExpiryInterval=3600, **says(9))
    broker.kill_node()
    broker.start_node()
    yield broker
    # What they leave is nobody else's to hear or to count.
    for name in CLIENTS:
        with Client(broker, name):
            pass
    with Client(broker, "clears") as clears:
        for topic in ["nobody's yet", *(f"{name}/{topic}" for name in CLIENTS for topic, *_ in MESSAGES)]:
            clears.publish(topic, b"", retain=True)


def says(n):
    """Properties that are no other message's."""
    return {
        "UserProperty": [("a", "2"), (f"of {n}", "3"), ("a", "1")],
        "PayloadFormatIndicator": 1,
        "ContentType": f"text/{n}",
        "ResponseTopic": f"answers/{n}",
        "CorrelationData": bytes([0, n, 255]),
    }


def publish(client, place):
    for n, (topic, qos, retain, _, _) in enumerate(MESSAGES):
        client.publish(f"{place}/{topic}", str(n), qos, retain, MessageExpiryInterval=3600, **says(n))


def hears_all(client, place):
    """All messages, in whatever order the topics come, with RETAIN, identifiers and properties as they should be."""
    heard = sorted((client.hear() for _ in MESSAGES), key=lambda message: message.payload)
    assert [(message.topic, message.payload, message.qos) for message in heard] == [
        (f"{place}/{topic}", str(n).encode(), qos) for n, (topic, qos, *_) in enumerate(MESSAGES)
    ]
    assert [message.retain for message in heard] == [retain for _, _, _, retain, _ in MESSAGES]
    assert [identifiers(message) for message in heard] == [numbers for *_, numbers in MESSAGES]
    for n, message in enumerate(heard):
        said_all(message, says(n))
    client.hears_nothing()


def identifiers(message):
    return sorted(getattr(message.properties, "SubscriptionIdentifier", []))


def said_all(message, wanted):
    assert {name: getattr(message.properties, name, None) for name in wanted} == wanted
    assert 3000 < getattr(message.properties, "MessageExpiryInterval", 0) <= 3600


def test_what_waited_is_as_it_was_published_and_addressed(restarted):
    with Client(restarted, "waits", keep=True) as waits:
        assert waits.flags.session_present
        hears_all(waits, "waits")


def test_what_comes_before_its_client_does_is_addressed_by_what_was_stored(restarted):
    with Client(restarted, "publishes") as publishes:
        publish(publishes, "is late")
    with Client(restarted, "is late", keep=True) as late:
        hears_all(late, "is late")


def test_subscriptions_that_are_resumed_have_their_options_and_identifiers(restarted):
    with Client(restarted, "is there", keep=True) as there, Client(restarted, "publishes") as publishes:
        assert there.flags.session_present
        publish(publishes, "is there")
        hears_all(there, "is there")


def test_who_wanted_no_local_messages_does_not_hear_its_own(restarted):
    with Client(restarted, "speaks", keep=True) as speaks:
        assert speaks.flags.session_present
        publish(speaks, "speaks")
        heard = sorted((speaks.hear() for _ in range(2)), key=lambda message: message.topic)
        assert [(message.topic, identifiers(message)) for message in heard] == [
            ("speaks/other/both", [BOTH]),
            ("speaks/own/both", [BOTH]),
        ]
        speaks.hears_nothing()


def test_what_is_retained_is_as_it_was_published(restarted):
    with Client(restarted, "comes later") as later:
        later.subscribe("nobody's yet", identifier=3)
        message = later.hear()
        assert (message.payload, message.qos, message.retain, identifiers(message)) == (b"kept", 2, True, [3])
        said_all(message, says(9))
        later.hears_nothing()
