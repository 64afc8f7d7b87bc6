"""A node that is full or stops says where else its clients may go, and there their sessions go on."""
import contextlib
import json

import pytest

from clients import Client
from installation import ROOT, VAR, Node, free_port, until
from test_operators import listed, typed

USE_ANOTHER_SERVER = 0x9C
SERVER_UNAVAILABLE = 0x88


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two nodes on one database. The first has room for two clients, and names the second."""
    nodes, ports = [], [free_port(), free_port()]
    for n, port in enumerate(ports):
        environment = {"WAKALA_NODE__NAME": f"open-{n}"}
        if n == 0:
            elsewhere = f'["127.0.0.1:{ports[1]}"]'
            environment |= {"WAKALA_LISTENER__CONNECTIONS_MAX": "2", "WAKALA_LISTENER__ELSEWHERE": elsewhere}
        profile = ["--config", ROOT / "config/open.toml", "--port", str(port)]
        folder = tmp_path_factory.mktemp(f"open-{n}")
        node = Node(folder, VAR / f"foreign-open-{n}", "wakala_elsewhere", *profile, **environment)
        node.port = port
        nodes.append(node)
    with contextlib.ExitStack() as stack:
        for node in nodes:
            stack.callback(node.close)
            node.start_node(first=True)
        yield nodes


def test_who_finds_no_room_is_sent_to_another_node(two):
    first, second = two
    with Client(first, "one"), Client(first, "two") as client:
        late = Client(first, "late")
        late.come()
        late.leave()
        assert late.code.value == USE_ANOTHER_SERVER
        assert late.told.ServerReference == f"127.0.0.1:{second.port}"
        older = Client(first, "older", "3.1.1")
        older.come()
        older.leave()
        assert older.code.value == SERVER_UNAVAILABLE, "MQTT 3.1.1 has no words for it"
        # Who is there already is no further one.
        with Client(first, "one"):
            client.subscribe("there is room for those who are there")


def test_a_node_is_emptied_before_it_is_stopped_and_may_be_filled_again(two):
    first, second = two
    with Client(first, "stays", keep=True) as client:
        client.subscribe("emptied", 1)
        emptied = json.loads(typed(first, "--json", "evacuate", "--per-second", "10"))
        assert emptied == {"sessions": 0, "done": True, "sent": 1}
        flags, code, told = client.ends.get(timeout=30)
        assert flags.is_disconnect_packet_from_server and code.value == USE_ANOTHER_SERVER
        assert told.ServerReference == f"127.0.0.1:{second.port}"
        # It comes back by itself, and hears the same.
        _, code, told = client.connects.get(timeout=30)
        assert (code.value, told.ServerReference) == (USE_ANOTHER_SERVER, f"127.0.0.1:{second.port}")
    assert not first.is_ready() and second.is_ready()
    assert "sending clients elsewhere · 0 here" in typed(first, "status")
    with Client(second, "stays", keep=True) as client:
        assert client.flags.session_present
        client.publish("emptied", "here")
        assert client.hear().payload == b"here"
    typed(first, "evacuate", "--call-off")
    assert first.is_ready() and "nothing was done" in typed(first, "evacuate", "--call-off", code=1)
    with Client(first, "stays", keep=True) as client, Client(first, "goes") as other:
        said = typed(first, "evacuate", "--down-to", "1")
        assert "1 client is here" in said, said
        assert first.is_ready()
        # Whoever was sent away comes back by itself, and may.
        assert sorted(bool(each.ends.qsize()) for each in (client, other)) == [False, True]
        until(lambda: len(listed(first, "--connected")) == 2, "the door is open")


def test_who_is_there_when_a_node_stops_goes_on_at_another(two):
    first, second = two
    with Client(first, "moves", keep=True, manual=True) as moves, Client(first, "ends", "3.1.1", keep=True) as ends:
        for client in [moves, ends]:
            client.subscribe("moving/#", 1)
            client.waits()
        ends.publish("moving/out", "not acknowledged")
        assert moves.hear().payload == b"not acknowledged"
        first.stop_node()
        flags, code, told = moves.ends.get(timeout=30)
        assert flags.is_disconnect_packet_from_server and code.value == USE_ANOTHER_SERVER
        assert told.ServerReference == f"127.0.0.1:{second.port}"
        flags, _, _ = ends.ends.get(timeout=30)
        assert not flags.is_disconnect_packet_from_server, "its connection ends, and that is all"
    with Client(second, "moves", keep=True) as moved:
        assert moved.flags.session_present
        again = moved.hear()
        assert (again.payload, again.dup) == (b"not acknowledged", True)
        moved.publish("moving/in", "its subscription came along")
        assert moved.hear().payload == b"its subscription came along"
