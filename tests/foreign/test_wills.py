"""Wills (3.1.2.5, 3.1.3.2): when they are sent, and as what. What becomes of one whose node died is test_broker.py's."""
import pytest

from clients import VERSIONS, Client

SAYS = {
    "PayloadFormatIndicator": 0,
    "MessageExpiryInterval": 3600,
    "ContentType": "text/plain",
    "ResponseTopic": "wills/answers",
    "CorrelationData": b"\x00\x01\xff",
    "UserProperty": [("b", "1"), ("a", "2"), ("b", "")],
}


def falls(broker, name, **how):
    """A client with a will, whose link breaks."""
    client = Client(broker, name, will=(f"wills/{name}", "gone", 1), **how).__enter__()
    client.cut()


def test_a_will_waits_for_its_delay_and_not_longer(broker):
    with Client(broker, "heir of delays") as heir:
        heir.subscribe("wills/+")
        falls(broker, "delayed", keep=True, delay=3)
        falls(broker, "at once", keep=True)
        assert heir.hear().topic == "wills/at once"
        heir.hears_nothing(1)
        assert heir.hear().topic == "wills/delayed"
        heir.hears_nothing()


def test_a_will_does_not_wait_for_longer_than_its_session(broker):
    with Client(broker, "heir of sessions") as heir:
        heir.subscribe("wills/+")
        falls(broker, "brief", SessionExpiryInterval=2, delay=3600)
        heir.hears_nothing(1)
        assert heir.hear().topic == "wills/brief"


@pytest.mark.parametrize("delay", [None, 3600])
@pytest.mark.parametrize("goes_on", [True, False])
def test_a_will_is_sent_when_another_connection_takes_its_place_unless_the_session_goes_on_within_its_delay(
    broker, goes_on, delay
):  # fmt: skip
    name = f"taken-{goes_on}-{delay}"
    with Client(broker, f"heir of {name}") as heir:
        heir.subscribe(f"wills/{name}")
        first = Client(broker, name, keep=True, will=(f"wills/{name}", "taken over", 1), delay=delay).__enter__()
        # It does not come back and take the place again.
        first.waits()
        with Client(broker, name, keep=goes_on) as second:
            assert second.flags.session_present == goes_on
            if goes_on and delay:
                heir.hears_nothing(1.5)
            else:
                assert heir.hear().payload == b"taken over"
        first.paho.loop_stop()
        heir.hears_nothing()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_will_is_the_message_that_its_client_left(broker, version):
    topic = f"wills/whole/{version}"
    with Client(broker, f"heir of all {version}") as heir:
        heir.subscribe(topic, retainAsPublished=True)
        says = {"will_says": SAYS} if version == "5" else {}
        client = Client(broker, f"whole-{version}", version, keep=True, will=(topic, b"\x00all of it\xff", 2, True), **says)
        client.__enter__().cut()
        heard = [heir.hear()]
        with Client(broker, f"comes later {version}") as later:
            later.subscribe(topic)
            heard.append(later.hear())
            later.publish(topic, "", retain=True)
        for message in heard:
            assert (message.payload, message.qos, message.retain) == (b"\x00all of it\xff", 2, True)
            of_it = message.properties
            if version == "5":
                assert SAYS["MessageExpiryInterval"] - 60 < of_it.MessageExpiryInterval <= SAYS["MessageExpiryInterval"]
                of_it.MessageExpiryInterval = SAYS["MessageExpiryInterval"]
                assert {name: getattr(of_it, name) for name in SAYS} == SAYS
            else:
                assert of_it.isEmpty()
