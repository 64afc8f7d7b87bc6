"""A client of a few lines that keeps to the standard only as far as a test wants: it need not read, nor acknowledge."""
import queue
import socket
import struct
import threading
import time


def text(value):
    raw = value.encode()
    return struct.pack(">H", len(raw)) + raw


def packet(first, body):
    left, length = len(body), b""
    while True:
        left, low = divmod(left, 128)
        length += bytes([low | (0x80 if left else 0)])
        if not left:
            return bytes([first]) + length + body


class Wire:
    """One connection of MQTT 3.1.1."""

    def __init__(self, port, name, keep=False, timeout=30, keep_alive=60, will=None):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer, self.next_id, self.unacknowledged = b"", 0, []
        flags = (0 if keep else 2) | (4 if will else 0)
        body = text("MQTT") + bytes([4, flags, 0, keep_alive]) + text(name)
        self.send(0x10, body + (text(will) + text("gone") if will else b""))
        first, body = self.receive()
        assert (first, body[1]) == (0x20, 0), "let in"
        self.present = body[0] == 1

    def send(self, first, body=b""):
        self.socket.sendall(packet(first, body))

    def receive(self, timeout=None):
        """The next packet; none at the end of the connection."""
        if timeout is not None:
            self.socket.settimeout(timeout)
        while True:
            whole = self.whole()
            if whole:
                return whole
            more = self.socket.recv(65536)
            if not more:
                return None
            self.buffer += more

    def whole(self):
        length, at = 0, 1
        while at < min(len(self.buffer), 5):
            byte = self.buffer[at]
            length |= (byte & 0x7F) << 7 * (at - 1)
            at += 1
            if byte < 0x80:
                if len(self.buffer) < at + length:
                    return None
                first, body = self.buffer[0], self.buffer[at : at + length]
                self.buffer = self.buffer[at + length :]
                return first, body
        return None

    def id(self):
        self.next_id = self.next_id % 65535 + 1
        return struct.pack(">H", self.next_id)

    def subscribe(self, topic, qos):
        self.send(0x82, self.id() + text(topic) + bytes([qos]))
        first, body = self.receive()
        assert (first, body[2]) == (0x90, qos)

    def publish(self, topic, payload, qos=1):
        """Waits for its PUBACK."""
        if qos == 0:
            return self.send(0x30, text(topic) + payload)
        number = self.id()
        self.send(0x32, text(topic) + number + payload)
        return self.answered(number)

    def answered(self, number, timeout=30):
        assert self.receive(timeout) == (0x40, number), "a PUBACK"

    def message(self, timeout=30, acknowledge=True):
        """The next PUBLISH: whether DUP is set, its payload; none at the end of the connection."""
        found = self.receive(timeout)
        if found is None:
            return None
        first, body = found
        assert first & 0xF0 == 0x30, hex(first)
        at = 2 + struct.unpack(">H", body[:2])[0]
        if first & 6:
            if acknowledge:
                self.send(0x40, body[at : at + 2])
            else:
                self.unacknowledged.append(body[at : at + 2])
            at += 2
        return bool(first & 8), body[at:]

    def ping(self):
        self.send(0xC0)

    def hears_nothing(self, for_seconds):
        end = time.monotonic() + for_seconds
        try:
            found = self.receive(for_seconds)
        except TimeoutError:
            found = "nothing"
        assert found == "nothing", found
        assert time.monotonic() >= end - 0.1

    def cut(self):
        self.socket.close()


class SlowLink:
    """A link of so many bytes a second and so long a way, each direction, that loses nothing: what lies between is queued."""

    def __init__(self, port, bytes_per_second, delay):
        self.port, self.rate, self.delay = port, bytes_per_second, delay
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listens = self.listener.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.port))
            for one, other in [(near, far), (far, near)]:
                threading.Thread(target=self.carry, args=(one, other), daemon=True).start()

    def carry(self, one, other):
        free, on_the_way = time.monotonic(), queue.Queue()
        threading.Thread(target=self.arrive, args=(other, on_the_way), daemon=True).start()
        while True:
            try:
                some = one.recv(256)
            except OSError:
                some = b""
            free = max(free, time.monotonic()) + len(some) / self.rate
            on_the_way.put((free + self.delay, some))
            if not some:
                return
            # As slow as the link: what it has no room for stays with the sender.
            time.sleep(max(0, free - time.monotonic()))

    @staticmethod
    def arrive(other, on_the_way):
        while True:
            at, some = on_the_way.get()
            time.sleep(max(0, at - time.monotonic()))
            try:
                if not some:
                    other.close()
                    return
                other.sendall(some)
            except OSError:
                return

    def close(self):
        self.listener.close()
