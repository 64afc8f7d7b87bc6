"""What an operator types about sessions, while mosquitto's clients come and go."""
import contextlib
import json
import os
import subprocess

from installation import sql, until
from test_withdrawal import paho

PAN = "9999910000000008"
PASSWORD = "kanga-kitenge"


def command(broker, *arguments):
    """A command of `wakala`, as `scripts/run` says that it is typed."""
    shell = 'source "$1"; shift; exec wakala "$@"'
    return ["bash", "-c", shell, "-", str(broker.folder / "server/environment"), *arguments]


def typed(broker, *arguments, code=0):
    environment = {**os.environ, **broker.environment, "USER": "asha"}
    environment.pop("SUDO_USER", None)
    done = subprocess.run(
        command(broker, *arguments), capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@contextlib.contextmanager
def subscriber(broker, name, *more):
    address = ["-h", "127.0.0.1", "-p", str(broker.port)]
    client = subprocess.Popen(
        ["mosquitto_sub", *address, "-V", "mqttv5", "-i", name, "-t", f"news/{name}", "-q", "1", *more],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield client
    finally:
        client.kill()
        client.wait()


def listed(broker, *arguments):
    return {each["client"]: each for each in json.loads(typed(broker, "--json", "sessions", "list", *arguments))["sessions"]}


def test_sessions_are_listed_shown_and_ended(broker):
    with subscriber(broker, "shop-1", "-c", "-x", "3600"), subscriber(broker, "shop-2"):
        until(lambda: len(listed(broker, "--connected", "--prefix", "shop-")) == 2, "both are connected")
        kept, clean = (listed(broker)[name] for name in ("shop-1", "shop-2"))
        assert (kept["stored"], kept["expiry_s"], clean["stored"], clean["expiry_s"]) == (True, 3600, False, 0)
        assert kept["connection"]["protocol"] == "MQTT 5" and kept["connection"]["address"].startswith("127.0.0.1:")
        assert list(listed(broker, "--kept", "--prefix", "shop-")) == ["shop-1"]
        assert list(listed(broker, "--prefix", "shop-", "--after", "shop-1")) == ["shop-2"]
        assert list(listed(broker, "--prefix", "shop-", "--limit", "1")) == ["shop-1"]
        assert listed(broker, "--node", "nobody") == {}
        text = typed(broker, "sessions", "list", "--prefix", "shop-")
        assert "2 sessions" in text and "1h" in text and "with the connection" in text and "MQTT 5" in text, text

        shown = json.loads(typed(broker, "--json", "sessions", "show", "shop-1"))
        assert [each["filter"] for each in shown["subscriptions"]] == ["news/shop-1"]
        assert [each["online"] for each in shown["events"]] == [True]
        said = typed(broker, "sessions", "kick", "shop-1", "--why", "a test")
        assert "its connection was ended" in said, said
        typed(broker, "sessions", "kick", "shop-2", "--why", "a test of a clean one")

        def history():
            return json.loads(typed(broker, "--json", "sessions", "events", "shop-1"))

        ended = until(lambda: [each for each in history() if not each["online"]], "the end is known")
        assert ended[-1]["why"] == "an operator ended the connection"
        text = typed(broker, "sessions", "show", "shop-1")
        assert "an operator ended the connection" in text and "asha" in text and "a test" in text, text
    until(lambda: not listed(broker, "--connected", "--prefix", "shop-"), "nobody is connected")
    assert listed(broker, "--away", "--prefix", "shop-").keys() == {"shop-1"}
    refused = typed(broker, "sessions", "kick", "shop-1", "--why", "again", code=1)
    assert "is not connected" in refused, refused
    assert "there is no session" in typed(broker, "sessions", "show", "nobody", code=1)
    recorded = sql("postgres", "select who || ': ' || why from audit.admin_actions order by at_utc", "wakala_open")
    assert ["asha: a test"] in recorded and ["asha: a test of a clean one"] in recorded, recorded


def test_a_client_is_tapped_and_its_secrets_are_not_shown(broker):
    environment = {**os.environ, **broker.environment, "USER": "asha"}
    arguments = ["tap", "tapped", "--for", "60s", "--packets", "12", "--why", "a test"]
    for form in ([], ["--json"]):
        tap = subprocess.Popen(
            command(broker, *form, *arguments), stdout=subprocess.PIPE, text=True, env=environment
        )
        said = tap.stdout.readline()
        assert "waiting for it" in said, said
        for version in ("mqttv311", "mqttv5"):
            done = subprocess.run(
                ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(broker.port), "-V", version, "-i", "tapped", "-u", "somebody",
                 "-P", PASSWORD, "-t", "news/tapped", "-m", PAN, "-q", "1"], check=False, timeout=30,
            )  # fmt: skip
            assert done.returncode == 0
        # CONNECT, CONNACK, PUBLISH, PUBACK, DISCONNECT and the end, twice: as many as were wanted.
        rest = tap.communicate(timeout=30)[0]
        assert tap.returncode == 0
        said += rest
        for secret in (PAN, PASSWORD, "somebody"):
            assert secret not in said, said
        if form:
            lines = [json.loads(line) for line in rest.splitlines()]
            packets = [line["packet"] for line in lines if "packet" in line]
            assert packets == ["CONNECT", "CONNACK", "PUBLISH", "PUBACK", "DISCONNECT", "ENDED"] * 2, packets
            publish = next(line for line in lines if line.get("packet") == "PUBLISH")
            assert (publish["way"], publish["topic"], publish["payload"]["bytes"]) == ("in", "news/tapped", len(PAN))
        else:
            assert "<- CONNECT" in said and "-> PUBACK" in said and "16 bytes #" in said and "a password" in said, said
    recorded = "select who, why, outcome from audit.admin_actions where what = 'tap' and outcome is not null"
    rows = until(lambda: len(rows := sql("postgres", recorded, "wakala_open")) == 2 and rows, "both are recorded")
    assert all(row[:2] == ["asha", "a test"] and row[2].startswith("12 packets shown, 0 lost") for row in rows), rows


def test_a_withdrawal_is_tapped_and_shows_neither_card_nor_pin(wakala):
    card, terminal = wakala.card(), wakala.terminal("TAPPED")
    kept = typed(wakala, "--json", "tap", "TAPPED", "--keep", "--for", "2h", "--why", "a test of a withdrawal")
    trace = str(json.loads(kept)["trace"])
    # Where scripts/secrets looks too.
    seen = wakala.output / "tap.jsonl"
    with open(seen, "w", encoding="utf-8") as out:
        tap = subprocess.Popen(command(wakala, "--json", "tap", "TAPPED", "--for", "60s"), stdout=out)
    try:
        until(lambda: "waiting for it" in seen.read_text(encoding="utf-8"), "the tap has begun")
        assert paho(wakala, terminal, card, 5000)["outcome"] == "APPROVED"
        until(lambda: '"ENDED"' in seen.read_text(encoding="utf-8"), "the terminal has gone")
    finally:
        tap.terminate()
        tap.wait(30)
    text = seen.read_text(encoding="utf-8")
    publishes = [each for line in text.splitlines() if (each := json.loads(line)).get("packet") == "PUBLISH"]
    assert {each["topic"] for each in publishes} == {"q/TAPPED", "r/TAPPED"}, text
    (transaction,) = {each["transaction"] for each in publishes}

    def traced():
        return json.loads(typed(wakala, "--json", "traces", "show", trace))

    until(lambda: traced()["packets"][-1:] and traced()["packets"][-1]["packet"] == "ENDED", "it is stored")
    # What was seen live is what was stored, but for its numbers and digests.
    live = [(each["way"], each["packet"]) for line in text.splitlines() if "packet" in (each := json.loads(line))]
    assert [(each["way"], each["packet"]) for each in traced()["packets"]] == live
    about = [("in", "PUBLISH"), ("out", "PUBACK"), ("out", "PUBLISH"), ("in", "PUBACK")]
    (shown,) = json.loads(typed(wakala, "--json", "txn", "show", transaction))
    assert sorted((each["way"], each["packet"]) for each in shown["traced"]) == sorted(about), shown
    human = typed(wakala, "txn", "show", transaction) + typed(wakala, "traces", "show", trace)
    assert f"trace {trace} · " in human and "q/TAPPED QoS 1" in human, human
    joined = f"select distinct state from audit.traced_packets where transaction = '{transaction}'"
    assert sql("auditor", joined) == [["APPROVED"]]
    typed(wakala, "traces", "stop", trace)
    assert "stopped by asha" in typed(wakala, "traces", "list", "--client", "TAPPED")
    stored = sql("postgres", "select to_jsonb(r)::text from wakala.trace_row r")
    low = (text + human + json.dumps(traced()) + json.dumps(stored)).lower()
    for kind, secret in [*wakala.secrets, ("password", terminal.password)]:
        assert secret.lower() not in low, kind
