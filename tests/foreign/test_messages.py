"""What an operator tells a terminal, heard by foreign terminals: while they are there, while they are away, and after kill -9.

    scripts/test foreign
"""
import contextlib
import json
import subprocess
import sys

import pytest

from installation import HERE, sql, until

VERSIONS = ["3.1.1", "5"]


def session(terminal, wanted):
    query = f"select connected from wakala.session where client_id = '{terminal.name}'"
    until(lambda: sql("postgres", query) == [[wanted]], f"{terminal.name} is connected: {wanted}")


def left(terminal):
    """That the node knows of nothing more to be sent."""
    query = f"select count(*) from wakala.message where client_id = '{terminal.name}'"
    until(lambda: sql("postgres", query) == [["0"]], f"all was delivered to {terminal.name}")


@contextlib.contextmanager
def hearing(terminal, version, qos, *more):
    """A terminal of Paho's that listens; gives its next line."""
    command = [sys.executable, HERE / "hear.py", "--port", str(terminal.listener["mqtt"]), "--terminal", terminal.name]
    command += ["--password", terminal.password, "--mqtt", version, "--qos", str(qos), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield lambda: json.loads(process.stdout.readline())
        process.terminate()
        said, _ = process.communicate(timeout=30)
        assert (process.returncode, said) == (0, ""), "it heard more than it should"
    finally:
        process.kill()
    session(terminal, "f")


@pytest.mark.parametrize("granted", [0, 1])
@pytest.mark.parametrize("version", VERSIONS)
def test_paho_is_told(wakala, version, granted):
    terminal = wakala.terminal(f"TOLD-{version[0]}-{granted}")
    wakala.wakala("terminals", "tell", terminal.name, "x", fails="has left no session")
    with hearing(terminal, version, granted) as heard:
        assert heard() == {"connected": True, "present": False}
        assert heard() == {"subscribed": [granted]}
        for qos in [0, 1]:
            told = wakala.wakala("terminals", "tell", terminal.name, f"at {qos}", "--qos", qos)
            assert (told["waiting"], told["connected"], told["connected_here"]) == (1, True, True)
            message = heard()
            lesser = min(qos, granted)
            assert message == {
                "topic": f"c/{terminal.name}", "qos": lesser, "dup": False, "id": told["seq"] if lesser else 0,
                "expiry": None, "text": f"at {qos}",
            }  # fmt: skip
            left(terminal)
    wakala.wakala("terminals", "tell", terminal.name, "x", "--qos", "0", fails="is not connected, and at QoS 0")
    file = wakala.folder / f"{terminal.name}.txt"
    file.write_text("from a file", encoding="ascii")
    for nth, words in enumerate([["first", "--expires", "2h"], ["over", "--expires", "1s"], ["--file", file]], 1):
        told = wakala.wakala("terminals", "tell", terminal.name, *words)
        assert told["connected"] is False and told["waiting"] in (nth, nth - 1)
    query = f"select count(*) from wakala.message where client_id = '{terminal.name}' and expires_at < now()"
    until(lambda: sql("postgres", query) == [["1"]], "the second message expires")
    wakala.kill_node()
    wakala.start_node()
    with hearing(terminal, version, granted) as heard:
        assert heard() == {"connected": True, "present": True}
        first, third = heard(), heard()
        assert (first["text"], third["text"]) == ("first", "from a file")
        assert first["qos"] == third["qos"] == granted
        assert third["expiry"] is None
        assert 6000 < first["expiry"] <= 7200 if version == "5" else first["expiry"] is None
        query = f"select count(*) from wakala.message where client_id = '{terminal.name}' and expires_at is not null"
        until(lambda: sql("postgres", query) in ([["1"]], [["0"]]), "the first is acknowledged")


@pytest.mark.parametrize("version", VERSIONS)
def test_paho_hears_it_again_after_kill_9(wakala, version):
    terminal = wakala.terminal(f"HESITANT-{version[0]}")
    with hearing(terminal, version, 1, "--hesitant") as heard:
        assert heard() == {"connected": True, "present": False}
        assert heard() == {"subscribed": [1]}
        for text in ["one", "two"]:
            wakala.wakala("terminals", "tell", terminal.name, text)
        before = [heard(), heard()]
        assert [(message["text"], message["dup"]) for message in before] == [("one", False), ("two", False)]
        wakala.kill_node()
        wakala.start_node()
        assert heard() == {"connected": True, "present": True}
        assert [heard(), heard()] == [{**message, "dup": True} for message in before], "the same identifiers, and DUP"
        left(terminal)


@contextlib.contextmanager
def told(terminal, command):
    """A mosquitto_sub that leaves when all it was told is acknowledged; gives its next line.

    Not by its own `-C`: it closes at once then, and where a packet of the node's is still unread its kernel resets the
    connection and drops the last PUBACK (RFC 1122 §4.2.2.13; Nagle's rule had it wait). The message would come again.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield lambda: process.stdout.readline().rstrip("\n")
            left(terminal)
            process.terminate()
            said, _ = process.communicate(timeout=30)
            assert (process.returncode, said) == (0, ""), "it heard more than it should"
        finally:
            process.kill()


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
def test_mosquitto_is_told(wakala, version, qos):
    terminal = wakala.terminal(f"MOSQUITTO-{version[-1]}-{qos}")
    command = ["mosquitto_sub", "-h", "localhost", "-p", str(terminal.listener["mqtt"]), "-i", terminal.name, "-c", "-V", version]
    command += ["-u", terminal.name, "-P", terminal.password, "-q", str(qos), "-t", f"c/{terminal.name}"]
    if version == "mqttv5":
        command += ["-x", "86400"]
    subprocess.run([*command, "-E"], check=True, timeout=60)
    session(terminal, "f")
    for text in ["one", "two"]:
        wakala.wakala("terminals", "tell", terminal.name, text)
    wakala.kill_node()
    wakala.start_node()
    with told(terminal, [*command, "-W", "60", "-F", "%t %q %p"]) as heard:
        assert [heard(), heard()] == [f"c/{terminal.name} {qos} {text}" for text in ["one", "two"]]
        for asked in [0, 1]:
            wakala.wakala("terminals", "tell", terminal.name, f"at {asked}", "--qos", asked)
            assert heard() == f"c/{terminal.name} {min(qos, asked)} at {asked}"
    session(terminal, "f")


def test_what_is_refused_leaves_nothing(wakala):
    terminal = wakala.terminal("REFUSED")
    tell = ["terminals", "tell", terminal.name]
    wakala.wakala("terminals", "tell", "NOBODY", "x", fails="there is no terminal NOBODY")
    with hearing(terminal, "5", 1) as heard:
        assert [heard(), heard()] == [{"connected": True, "present": False}, {"subscribed": [1]}]
    large = wakala.folder / "large.bin"
    large.write_bytes(b"x" * 70_000)
    wakala.wakala(*tell, "--file", large, fails="sessions.packet_bytes_max")
    wakala.wakala("--set", "sessions.messages_max=1", *tell, "y")
    wakala.wakala("--set", "sessions.messages_max=1", *tell, "z", fails="1 messages wait for REFUSED already")
    wakala.wakala(*tell, fails="required")
    wakala.wakala(*tell, "x", "--expires", "10ms", fails="a time from 1s")
    with hearing(terminal, "5", 1) as heard:
        assert heard()["present"] and heard()["text"] == "y"
        left(terminal)
