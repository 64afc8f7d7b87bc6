"""Two nodes go from an older program to a newer one, or are restarted, one after the other, while clients are at work (scripts/upgrade).

    upgrade.py FOLDER OLDER NEWER
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

from clients import Client
from installation import ROOT, free_port, postgres, sql, until

DATABASE = "wakala_upgrade"
# Of each pair, one every so often: it takes longer than the upgrade.
MESSAGES, EVERY = 2000, 0.02


class Program:
    """A node, and what it runs."""

    def __init__(self, folder, name):
        self.folder, self.name, self.process = folder, name, None
        self.port, self.admin = free_port(), free_port()
        self.environment = {
            **os.environ,
            "WAKALA_CONFIG": str(ROOT / "config/open.toml"),
            "WAKALA_DATABASE__URL": postgres("url", "--role", "service", "--database", DATABASE),
            "WAKALA_DATABASE__OWNER_URL": postgres("url", "--role", "owner", "--database", DATABASE),
            "WAKALA_KEYS__MASTER": f'{{file="{folder}/master.key"}}',
            "WAKALA_NODE__NAME": name,
            "WAKALA_LISTENER__PLAIN": f"127.0.0.1:{self.port}",
            "WAKALA_ADMIN__ADDRESS": f"127.0.0.1:{self.admin}",
        }

    def run(self, wakala, *command):
        subprocess.run([wakala, *command], env=self.environment, check=True, capture_output=True, timeout=60)

    def start(self, wakala):
        with open(self.folder / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen([wakala, "run"], env=self.environment, stdout=log, stderr=log)
        until(self.is_ready, f"{self.name} is ready")

    def is_ready(self):
        assert self.process.poll() is None, f"{self.name} ended; see {self.folder}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=5) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def stop(self):
        """As systemd does."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, f"{self.name} did not stop in order; see {self.folder}"


class Moves(Client):
    """A client that goes to the other node when its own stops, and stays there."""

    def __init__(self, at, other, *arguments):
        super().__init__(at, *arguments, keep=True)
        self.ports, self.moves = [other.port, at.port], 0
        self.waits()
        self.paho.on_disconnect = self.ended
        self.leaves, self.there = False, threading.Event()
        self.there.set()

    def ended(self, *told):
        self.there.clear()
        if not self.leaves:
            # Outside Paho's own thread, which ends with its connection.
            threading.Thread(target=self.move).start()

    def move(self):
        self.paho.loop_stop()
        self.port = self.ports[self.moves % 2]
        self.moves += 1
        self.come()
        self.there.set()

    def __exit__(self, *exc):
        self.leaves = True
        super().__exit__(*exc)


class Pair:
    """One speaks, the other listens."""

    def __init__(self, at, other, version, qos, messages):
        self.messages, self.name, self.qos = messages, f"{at.name}-{version}-{qos}", qos
        self.listens = Moves(at, other, f"listens-{self.name}", version).__enter__()
        self.speaks = Moves(at, other, f"speaks-{self.name}", version).__enter__()
        assert self.listens.subscribe(f"said/{self.name}", qos) == qos
        self.speaking = self.speaks.publish_all(f"said/{self.name}", self.paced(), qos)

    def paced(self):
        for n in range(self.messages):
            time.sleep(EVERY)
            # Before its CONNACK Paho 2.1.0 sends what is new ahead of what it sends again.
            assert self.speaks.there.wait(60)
            yield str(n)

    def heard(self):
        return [int(message.payload) for message in list(self.listens.heard.queue)]

    def figures(self):
        heard = self.heard()
        first = list(dict.fromkeys(heard))
        return {
            "messages": self.messages,
            "lost": self.messages - len(first),
            "repeated": len(heard) - len(first),
            "out of order": sum(later < earlier for earlier, later in zip(first, first[1:])),
            "moves": self.listens.moves + self.speaks.moves,
        }

    def leave(self):
        for client in (self.listens, self.speaks):
            client.__exit__()


def say(text):
    print(f"{time.strftime('%T')} {text}", file=sys.stderr)


def upgrade(folder, older, newer, messages=MESSAGES):
    sql("postgres", f"drop database if exists {DATABASE} with (force)", "postgres")
    sql("postgres", f"create database {DATABASE} owner wakala_owner", "postgres")
    sql("postgres", f"grant connect on database {DATABASE} to wakala_service, wakala_auditor", "postgres")
    nodes = [Program(folder, f"open-{n}") for n in range(2)]
    nodes[0].run(older, "keys", "master", str(folder / "master.key"))
    nodes[0].run(older, "migrate")
    pairs = []
    try:
        for node in nodes:
            node.start(older)
        say("two nodes of the older program")
        for node, other in (nodes, nodes[::-1]):
            pairs += [Pair(node, other, version, qos, messages) for version in ("3.1.1", "5") for qos in (1, 2)]
        time.sleep(3)
        nodes[0].run(newer, "migrate")
        say("migrated")
        for node in nodes:
            time.sleep(3)
            node.stop()
            say(f"{node.name} stopped")
            time.sleep(2)
            node.start(newer)
            say(f"{node.name} is the newer program")
        for pair in pairs:
            pair.speaking.join(180)
            assert not pair.speaking.is_alive(), f"{pair.name}: all is acknowledged"
        until(lambda: all(len(set(pair.heard())) == messages for pair in pairs), "all is heard")
    finally:
        figures = {}
        for qos in (1, 2):
            of = [pair.figures() for pair in pairs if pair.qos == qos]
            figures[f"QoS {qos}"] = {name: sum(each[name] for each in of) for name in (of[0] if of else [])}
        print(json.dumps(figures))
        for pair in pairs:
            pair.leave()
        for node in nodes:
            if node.process and node.process.poll() is None:
                node.stop()
    lost = sum(of["lost"] + of["out of order"] for of in figures.values()) + figures["QoS 2"]["repeated"]
    return 0 if lost == 0 else 1


if __name__ == "__main__":
    folder, *programs = map(pathlib.Path, sys.argv[1:])
    sys.exit(upgrade(folder, *map(str, programs)))
