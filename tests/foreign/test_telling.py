"""A program of the bank tells terminals something over HTTP, with nothing but Python's own library, and asks what became of it.

    scripts/test foreign
"""
import json
import ssl
import threading
import time
import urllib.error
import urllib.request

import pytest

from installation import sql, until
from test_messages import hearing, left


@pytest.fixture(name="program", scope="module")
def program_with_a_token(wakala):
    drawn = wakala.wakala("told", "token", "portal")
    wakala.keep("key", drawn["token"].removeprefix("wakala-"))
    file = wakala.folder / "telling.tokens"
    file.write_text(file.read_text(encoding="ascii") + drawn["line"] + "\n", encoding="ascii")
    program = Program(wakala, drawn["token"])
    until(lambda: program.ask("/messages?key=none")[0] == 404, "the token is in force")
    return program


class Program:
    def __init__(self, wakala, token):
        self.wakala, self.token = wakala, token
        self.secured = ssl.create_default_context(cafile=wakala.folder / "ca.pem")

    def ask(self, path, body=None, key=None, tls=False):
        """The status and what was said; nothing when nobody answered."""
        plain, https = self.wakala.telling
        address = f"https://localhost:{https}" if tls else f"http://127.0.0.1:{plain}"
        headers = {"Authorization": f"Bearer {self.token}", **({"Idempotency-Key": key} if key else {})}
        request = urllib.request.Request(address + path, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10, context=self.secured if tls else None) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except (OSError, ValueError):
            return None, None


def has_session(terminal):
    with hearing(terminal, "5", 1) as heard:
        assert heard()["connected"] and heard() == {"subscribed": [1]}


def test_a_portal_tells_a_shop_over_https(wakala, program):
    terminal = wakala.terminal("PORTAL")
    has_session(terminal)
    to = f"/terminals/{terminal.name}/messages?class=configuration&expires=2h"
    status, told = program.ask(to, "Ada: 50 000".encode(), key="fees-1", tls=True)
    assert (status, told["asked_by"], told["became"], told["queue"]["connected"]) == (201, "portal", {"waiting": 1}, False)
    status, again = program.ask(to, "Ada: 50 000".encode(), key="fees-1", tls=True)
    assert (status, again["id"], again["repeated"]) == (200, told["id"], True)
    with hearing(terminal, "5", 1) as heard:
        assert heard() == {"connected": True, "present": True}
        assert heard()["text"] == "Ada: 50 000"
        left(terminal)
    status, said = program.ask(f"/messages/{told['id']}")
    assert (status, [copy["became"] for copy in said["copies"]]) == (200, ["delivered"])
    shown = wakala.wakala("told", "show", "fees-1")
    assert shown == said
    (listed,) = wakala.wakala("told", "list", "--terminal", terminal.name)
    assert listed == said
    # An operator's keys are his own.
    typed = ["terminals", "tell", terminal.name, "typed", "--key", "fees-1"]
    first, second = wakala.wakala(*typed), wakala.wakala(*typed)
    assert (first["repeated"], second["repeated"], first["id"]) == (False, True, second["id"]) and first["id"] != told["id"]
    wakala.wakala("terminals", "tell", terminal.name, "else", "--key", "fees-1", fails="under this key something else was told")
    assert [each["asked_by"].split(" ")[0] for each in wakala.wakala("told", "list", "--terminal", terminal.name)] == [
        "operator", "portal",
    ]  # fmt: skip


def test_a_portal_that_asks_until_it_is_answered_tells_everything_once_though_the_node_is_killed(wakala, program):
    terminal = wakala.terminal("STUBBORN")
    has_session(terminal)
    count, statuses = 60, []

    def ask():
        for nth in range(count):
            while True:
                status, _ = program.ask(f"/terminals/{terminal.name}/messages", str(nth).encode(), key=f"stubborn-{nth}")
                if status in (200, 201):
                    statuses.append(status)
                    break
                assert status in (None, 503), status
                time.sleep(0.02)

    asking = threading.Thread(target=ask)
    asking.start()
    for killed_at in (15, 35):
        until(lambda at=killed_at: len(statuses) >= at or not asking.is_alive(), "it asks")
        wakala.kill_node()
        wakala.start_node()
    asking.join(60)
    assert len(statuses) == count
    with hearing(terminal, "3.1.1", 1) as heard:
        assert heard() == {"connected": True, "present": True}
        assert [heard()["text"] for _ in range(count)] == [str(nth) for nth in range(count)]
        left(terminal)
    became = f"select became, count(*) from audit.messages_told where terminal = '{terminal.name}' group by became"
    assert sql("postgres", became) == [["delivered", str(count)]]
