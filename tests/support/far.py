"""Plays hosts that are not there, with so many bans each.

far.py leave BROKER HOSTS BANS   publishes their presence and their snapshots, and ends
far.py stay BROKER HOSTS BANS    keeps each of them connected: it hears all that the fleet says, publishes its
                                 snapshot again every five to ten minutes, and on every connection"""

import json
import random
import selectors
import socket
import struct
import sys
import time

MODE, BROKER, HOSTS, BANS = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
STARTED = int(time.time())


def fnv(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def string(text):
    return struct.pack(">H", len(text)) + text.encode()


def packet(kind, body):
    size, left = b"", len(body)
    while True:
        left, digit = left >> 7, left & 0x7F
        size += bytes([digit | (0x80 if left else 0)])
        if not left:
            return bytes([kind]) + size + body


class Host:
    def __init__(self, number):
        self.name, self.link = f"far{number}", None
        parts = 1
        while BANS * 44 / parts > 12 * 1024:
            parts *= 2
        self.bans = [[] for _ in range(parts)]
        for n in range(number * BANS, (number + 1) * BANS):
            ip = f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"
            self.bans[fnv(ip) % parts].append(["sshd", ip, STARTED, 86400])

    def connect(self, topics):
        """A session that outlives its connection, as a daemon's."""
        link = socket.create_connection((BROKER, 1883), timeout=20)
        link.sendall(packet(0x10, string("MQTT") + b"\x04\xc0\x00\x3c" + string(f"f2bmqtt-{self.name}")
                            + string("fail2ban") * 2))
        assert link.recv(4, socket.MSG_WAITALL)[3] == 0
        self.link, self.read = link, bytearray()
        for topic in topics:
            link.sendall(packet(0x82, b"\x00\x01" + string(topic) + b"\x01"))
        return self.publish()

    def publish(self):
        """All that it has to say. Answers how many bytes that is."""
        messages = [(f"host/{self.name}", {"v": 1, "state": "online", "version": "1.0.0", "jails": ["sshd"], "bans": BANS})]
        for part, bans in enumerate(self.bans):
            messages.append((f"state/{self.name}/{part}", {
                "v": 1, "host": self.name, "stamp": time.time_ns() // 1_000_000, "part": part,
                "parts": len(self.bans), "bans": bans, "unbans": []}))
        self.next, size = time.monotonic() + random.uniform(300, 600), 0
        for topic, message in messages:
            payload = json.dumps(message, separators=(",", ":")).encode()
            self.link.sendall(packet(0x33, string(f"f2bmqtt/blacklist/{topic}") + b"\x00\x02" + payload))
            size += len(payload)
        return size

    def hear(self):
        """Acknowledges what has come."""
        data = self.link.recv(1 << 20)
        if not data:
            raise ConnectionError
        self.read += data
        at, answers = 0, b""
        while True:
            length, shift, body = 0, 0, at + 1
            while body < len(self.read):
                length |= (self.read[body] & 0x7F) << shift
                body, shift, more = body + 1, shift + 7, self.read[body] & 0x80
                if not more:
                    break
            else:
                break
            if len(self.read) < body + length:
                break
            if self.read[at] & 0xF6 == 0x32:
                topic = int.from_bytes(self.read[body:body + 2])
                answers += b"\x40\x02" + self.read[body + 2 + topic:body + 4 + topic]
            at = body + length
        del self.read[:at]
        if answers:
            self.link.sendall(answers)


def stay(hosts):
    selector = selectors.DefaultSelector()
    alive = time.monotonic()
    while True:
        for host in hosts:
            if host.link is None:
                try:
                    host.connect(["blacklist/#", "f2bmqtt/blacklist/host/#", "f2bmqtt/blacklist/state/#"])
                    selector.register(host.link, selectors.EVENT_READ, host)
                except OSError:
                    host.link = None
                    time.sleep(0.1)
                    break
        now = time.monotonic()
        beat, alive = (True, now) if now - alive > 20 else (False, alive)
        ready = [key.data for key, _ in selector.select(0.2)]
        for host in hosts:
            try:
                if host in ready:
                    host.hear()
                if host.link and host.next < now:
                    host.publish()
                if host.link and beat:
                    host.link.sendall(b"\xc0\x00")
            except OSError:
                selector.unregister(host.link)
                host.link.close()
                host.link = None


hosts = [Host(number) for number in range(HOSTS)]
if MODE == "stay":
    stay(hosts)
size = 0
for host in hosts:
    size += host.connect([])
    answered = 0
    while answered < 1 + len(host.bans):
        host.link.recv(4, socket.MSG_WAITALL)
        answered += 1
    host.link.sendall(b"\xe0\x00")
    host.link.close()
print(f"{HOSTS} hosts, {HOSTS * BANS} bans, {sum(len(host.bans) for host in hosts)} parts, {size} bytes")
