"""A node that a stranger set up: by scripts/run --server-only and the commands of `wakala`, and nothing else.

The bank core is foreign (core.py), the check values and PVVs are psec's, the terminals' keys are held against dukpt.py.
"""
import contextlib
import json
import os
import pathlib
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psec

import dukpt

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
VAR = pathlib.Path(os.environ.get("WAKALA_VAR", ROOT / "var"))
DATABASE = "wakala_foreign"
BDK_ID = "5A5AF001"
AGENT = "A1"
# What an agent may owe the bank, in minor units.
CREDIT_LINE = 100_000_000_00


# Below those that the kernel gives to outgoing connections: none sits on a port when its node starts, or starts again.
PORTS = random.sample(range(10_000, 20_000), 10_000)


def free_port():
    """A port that nobody listens on, and that was not given before."""
    while True:
        port = PORTS.pop()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def postgres(*command):
    done = subprocess.run([ROOT / "scripts/postgres", *command], check=True, capture_output=True, text=True, timeout=180)
    return done.stdout.strip()


def sql(role, query, database=DATABASE):
    """The rows, each a list of texts."""
    url = postgres("url", "--role", role, "--database", database)
    command = ["psql", "--no-psqlrc", "-qAt", "-F", "\x1f", "-v", "ON_ERROR_STOP=1", "-c", query, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return [line.split("\x1f") for line in done.stdout.splitlines()]


def until(true, what, within=60.0, every=0.1):
    end = time.monotonic() + within
    while not (found := true()):
        assert time.monotonic() < end, f"{what}: not within {within} s"
        time.sleep(every)
    return found


def children(pid):
    with contextlib.suppress(OSError):
        return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def name_of(pid):
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def papers(at):
    """Certificates: an authority, the server's under it, and a terminal's that nobody signed but itself."""

    def openssl(*command):
        subprocess.run(["openssl", *command], check=True, capture_output=True, timeout=60)

    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    openssl(*new, "-keyout", at / "ca.key", "-out", at / "ca.pem", "-subj", "/CN=an authority")
    openssl(
        *new, "-keyout", at / "server.key", "-out", at / "server.pem", "-subj", "/CN=wakala",
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
        "-CA", at / "ca.pem", "-CAkey", at / "ca.key",
    )  # fmt: skip
    openssl(*new, "-keyout", at / "terminal.key", "-out", at / "terminal.pem", "-subj", "/CN=a terminal")


class Card:
    """One that the bank knows, and its holder."""

    count = 0

    def __init__(self):
        Card.count += 1
        body = f"999991{secrets.randbelow(1000):03}{Card.count:06}"
        digits = [int(digit) * (2 - at % 2) for at, digit in enumerate(body)]
        self.pan = f"{body}{-sum(digit // 10 + digit % 10 for digit in digits) % 10}"
        # Long, so that whoever searches for it finds nothing by chance. Its first four digits are drawn to differ from
        # those of the wrong one, and are all that a PVV looks at.
        self.pin = "".join(secrets.choice("0123456789") for _ in range(12))
        self.wrong_pin = f"{(int(self.pin[:4]) + 1234) % 10000:04}{self.pin[4:]}"


class Terminal:
    """What its maker is given: by `terminals enrol` and `keys initial-key`."""

    def __init__(self, enrolled, injected):
        self.name = enrolled["client_id"]
        self.password = enrolled["password"]
        self.topics = enrolled["publish"], enrolled["subscribe"]
        self.listener = {url.split("://")[0]: int(url.rsplit(":", 1)[1]) for url in enrolled["listener"]}
        self.key_id = bytes.fromhex(enrolled["initial_key_id"])
        self.initial_key = bytes.fromhex(injected["initial_key"])
        assert enrolled["first_ksn"] == injected["first_ksn"] == f"{enrolled['initial_key_id']}00000001"
        self.counter = 0

    def next_counter(self):
        self.counter = dukpt.next_counter(self.counter)
        return self.counter


class Node:
    """One that scripts/run --server-only starts, with its private Postgres."""

    def __init__(self, folder, output, database, *arguments, **environment):
        self.folder, self.output, self.arguments = folder, output, ["--database", database, *arguments]
        self.output.mkdir(parents=True, exist_ok=True)
        self.admin = free_port()
        self.environment = {"WAKALA_VAR": str(folder), "WAKALA_ADMIN__ADDRESS": f"127.0.0.1:{self.admin}", **environment}
        self.script = None
        self.own_postgres = subprocess.run(
            [ROOT / "scripts/postgres", "status"], capture_output=True, check=False, timeout=60
        ).returncode
        postgres("start")
        sql("postgres", f"drop database if exists {database} with (force)", "postgres")

    def start_node(self, first=False):
        command = [ROOT / "scripts/run", "--server-only", *self.arguments]
        with open(self.output / "node.log", "ab") as log:
            environment = {**os.environ, **self.environment}
            self.script = subprocess.Popen(command, stderr=log, stdout=log, env=environment, start_new_session=True)
        # The script builds first.
        until(self.is_ready, "the node is ready", within=300 if first else 60)

    def is_ready(self):
        assert self.script.poll() is None, f"scripts/run ended; see {self.output / 'node.log'}"
        with contextlib.suppress(OSError, urllib.error.URLError):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=5) as answer:
                return answer.status == 200
        return False

    def node_pid(self):
        (pid,) = [child for child in children(self.script.pid) if name_of(child) == "wakala"]
        return pid

    def kill_node(self):
        """kill -9, as the kernel does when memory is short."""
        os.kill(self.node_pid(), signal.SIGKILL)
        assert self.script.wait(60) == 137
        self.script = None

    def stop_node(self):
        """Ctrl-C."""
        os.killpg(self.script.pid, signal.SIGINT)
        assert self.script.wait(60) == 0
        self.script = None

    def close(self):
        try:
            if self.script and self.script.poll() is None:
                self.script.terminate()
                try:
                    self.script.wait(60)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self.script.pid, signal.SIGKILL)
        finally:
            if self.own_postgres != 0:
                postgres("stop")


class Installation(Node):
    """Everything that runs at a bank, and the folder where it keeps its things."""

    def __init__(self, folder):
        output = VAR / "foreign"
        shutil.rmtree(output, ignore_errors=True)
        super().__init__(folder, output, DATABASE, "--config", folder / "wakala.toml")
        self.journal = self.output / "core.jsonl"
        self.secrets = []
        self.core = None
        self.terminals = 0
        # http and https.
        self.telling = free_port(), free_port()

    def set_up(self):
        papers(self.folder)
        (self.folder / "telling.tokens").write_text("# nobody yet\n", encoding="ascii")
        core_port = self.start_core()
        (self.folder / "wakala.toml").write_text(self.configuration(core_port), encoding="utf-8")
        self.start_node(first=True)
        self.make_keys()
        self.wakala("ledger", "floor", AGENT, f"-{CREDIT_LINE}", fails="no account")
        # A node reads its keys when it starts.
        self.stop_node()
        self.start_node()

    def configuration(self, core_port):
        return f"""
[node]
sandbox = true
[admin]
address = "127.0.0.1:{self.admin}"
[listener]
plain = "127.0.0.1:{free_port()}"
[listener.tls]
address = "127.0.0.1:{free_port()}"
[listener.tls.files]
certificate = "{self.folder}/server.pem"
key = "{self.folder}/server.key"
[telling.http]
plain = "127.0.0.1:{self.telling[0]}"
tls = "127.0.0.1:{self.telling[1]}"
tokens = "telling.tokens"
[cores.bank]
dialect = "{ROOT}/config/banks/sandbox.toml"
address = "127.0.0.1:{core_port}"
backoff_min = "100ms"
backoff_max = "1s"
[partitions]
lease = "2s"
renew = "500ms"
answer_patience = "5s"
reversal_first = "500ms"
reversal_max = "2s"
"""

    def start_core(self):
        self.core = subprocess.Popen(
            [sys.executable, HERE / "core.py", "--port", "0", "--journal", self.journal], stdout=subprocess.PIPE, text=True
        )
        return int(self.core.stdout.readline())

    def close(self):
        try:
            super().close()
        finally:
            if self.core:
                self.core.send_signal(signal.SIGCONT)
                self.core.terminate()
                self.core.wait(10)

    def wakala(self, *command, given="", fails=None):
        """A command in another shell, as scripts/run tells to."""
        line = 'source "$0" && exec wakala --json "$@"'
        done = subprocess.run(
            ["bash", "-c", line, self.folder / "server/environment", *map(str, command)],
            input=given, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if fails is not None:
            assert done.returncode != 0 and fails in done.stderr, done.stderr
            return None
        assert done.returncode == 0, f"wakala {' '.join(map(str, command))}: {done.stderr}"
        return json.loads(done.stdout)

    def make_keys(self):
        """As custodians do: components on standard input, check values that were made elsewhere."""
        self.keep("key", (self.folder / "server/master.key").read_text(encoding="ascii").strip())
        self.wakala("keys", "master", self.folder / "server/master.key", fails="exists")
        self.wakala("keys", "generate", "card-token")
        self.wakala("keys", "generate", "card-seal")
        self.bdk, self.pvk = self.imported(f"bdk-{BDK_ID}"), self.imported("pvk-1")
        known = {key["name"]: key["sandbox"] for key in self.wakala("keys", "list")}
        assert known == dict.fromkeys([f"bdk-{BDK_ID}", "card-seal", "card-token", "pvk-1"], True)

    def imported(self, name):
        parts = [secrets.token_bytes(16) for _ in range(2)]
        key = bytes(a ^ b for a, b in zip(*parts))
        check = psec.des.generate_kcv(key, 3) if name.startswith("pvk") else dukpt.mac(key, bytes(16))[:3]
        lines = "".join(f"{part.hex()}\n" for part in parts)
        self.wakala("keys", "import", name, "--check", "000000", given=lines, fails="nothing was stored")
        self.wakala("keys", "import", name, "--check", check.hex(), given=lines)
        for part in [*parts, key]:
            self.keep("key", part.hex())
        return key

    def card(self):
        card = Card()
        pvv = psec.pin.generate_visa_pvv(self.pvk, "1", card.pin[:4], card.pan)
        assert psec.pin.generate_visa_pvv(self.pvk, "1", card.wrong_pin[:4], card.pan) != pvv, "one in 10,000"
        self.wakala("cards", "import", "-", given=f"{card.pan};1;{pvv}\n")
        self.keep("pan", card.pan)
        self.keep("pin", card.pin)
        self.keep("pin", card.wrong_pin)
        return card

    def terminal(self, name, *more):
        """Enrolled, its key injected, its agent's credit line set."""
        self.terminals += 1
        key_id = f"{BDK_ID}{self.terminals:08X}"
        enrolled = self.wakala("terminals", "enrol", name, "--agent", AGENT, "--core", "bank", "--key-id", key_id, *more)
        injected = self.wakala("keys", "initial-key", "--bdk", f"bdk-{BDK_ID}", "--id", key_id)
        terminal = Terminal(enrolled, injected)
        assert terminal.initial_key == dukpt.initial_key(self.bdk, terminal.key_id)
        self.wakala("ledger", "floor", AGENT, f"-{CREDIT_LINE}")
        self.keep("key", terminal.initial_key.hex())
        return terminal

    def keep(self, kind, value):
        """For scripts/secrets, which looks for it in all that Wakala wrote."""
        self.secrets.append((kind, value))

    def write_secrets(self):
        folder = VAR / "secrets"
        folder.mkdir(mode=0o700, exist_ok=True)
        lines = "".join(f"{kind} {value}\n" for kind, value in self.secrets)
        (folder / "foreign.txt").write_text(lines, encoding="ascii")

    def booked(self):
        """The core's own journal."""
        return [json.loads(line) for line in self.journal.read_text(encoding="ascii").splitlines()]
