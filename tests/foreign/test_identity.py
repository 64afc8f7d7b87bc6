"""Who may connect to a general broker that is not open to anybody: Paho's clients, with tokens that Python's own hmac has signed,
and with a hook that is Python's own HTTP server.

    pytest tests/foreign/test_identity.py
"""
import base64
import hashlib
import hmac
import http.server
import json
import threading
import time

import pytest

from clients import VERSIONS, Client
from installation import ROOT, VAR, Node, free_port

SECRET = b"a secret of two and thirty bytes"


class Hook(http.server.BaseHTTPRequestHandler):
    """Lets in whose password is his user name backwards."""

    asked: list[dict] = []

    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(question)
        allowed = question["password"] == (question["username"] or "")[::-1]
        answer = {"result": "allow", "publish": ["up/%u/%c"], "subscribe": ["down/%c/#"]} if allowed else {"result": "deny"}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "secret").write_bytes(SECRET + b"\n")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = free_port()
    environment = {
        "WAKALA_OPEN__ANONYMOUS": "false",
        "WAKALA_OPEN__GUESTS": "true",
        "WAKALA_LISTENER__HOOK__URL": f"http://127.0.0.1:{server.server_port}/who",
        "WAKALA_LISTENER__JWT__SECRET": str(folder / "secret"),
        "WAKALA_LISTENER__JWT__ALGORITHMS": '["HS256"]',
        "WAKALA_LISTENER__JWT__LEEWAY": "0s",
    }
    profile = ["--config", ROOT / "config/open.toml", "--port", str(port)]
    node = Node(folder, VAR / "foreign-guarded", "wakala_guarded", *profile, **environment)
    node.port = port
    try:
        node.start_node(first=True)
        yield node
    finally:
        node.close()
        server.shutdown()


def token(name, seconds, secret=SECRET, alg="HS256", **claims):
    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    header = {"typ": "JWT", "alg": alg}
    claims = {"sub": name, "exp": int(time.time()) + seconds, **claims}
    signed = b".".join(part(json.dumps(each).encode()) for each in [header, claims])
    return (signed + b"." + part(hmac.new(secret, signed, hashlib.sha256).digest())).decode()


def come(node, name, version, user, password):
    """A client, whatever it was told."""
    client = Client(node, name, version)
    if user is not None:
        client.paho.username_pw_set(user, password)
    client.come()
    return client


@pytest.mark.parametrize("version", VERSIONS)
def test_a_hook_says_who_comes_in_and_which_topics_are_his(guarded, version):
    name = f"hooked-{version}"
    client = come(guarded, name, version, "asha", "ahsa")
    assert not client.code.is_failure
    assert Hook.asked[-1] == {
        "client": name,
        "username": "asha",
        "password": "ahsa",
        "address": "127.0.0.1",
        "certificate": None,
        "protocol": version,
    }
    refused = 0x87 if version == "5" else 0x80
    granted = [client.subscribe(topic, 1) for topic in [f"down/{name}/#", "down/#", "#", f"up/asha/{name}"]]
    assert granted == [1, refused, refused, refused]
    client.publish(f"up/asha/{name}", b"x", 1)
    client.leave()
    asked = len(Hook.asked)
    for user, password in [("asha", "wrong"), ("asha", "wrong"), (None, None)]:
        turned_away = come(guarded, name, version, user, password)
        assert turned_away.code.value == 0x86, turned_away.code
        turned_away.paho.loop_stop()
    assert len(Hook.asked) == asked + 2, "a refusal is remembered"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_token_says_who_comes_in_and_until_when(guarded, version):
    name = f"bearer-{version}"
    asked = len(Hook.asked)
    client = come(guarded, name, version, "whoever", token(name, 4, subscribe=["news/+"]))
    assert not client.code.is_failure
    client.paho.reconnect_delay_set(60, 60)
    assert client.subscribe("news/+", 1) == 1
    assert client.subscribe("news/#", 1) == (0x87 if version == "5" else 0x80)
    began = time.time()
    _, code, _ = client.ends.get(timeout=30)
    assert time.time() - began < 10
    if version == "5":
        assert code.value == 0xA0, code
    client.paho.loop_stop()
    for wrong in [
        token(name, -1),
        token(name, 60, secret=b"another secret of 32 bytes or so"),
        token(name, 60, alg="none"),
        token("somebody-else", 60),
        token(name, 60, aud="another broker"),
    ]:
        turned_away = come(guarded, name, version, "whoever", wrong)
        assert turned_away.code.is_failure, wrong
        turned_away.paho.loop_stop()
    assert len(Hook.asked) == asked, "the hook judges no tokens"
