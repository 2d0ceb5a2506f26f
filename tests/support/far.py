"""Simulates HOSTS hosts with BANS bans each.

far.py leave BROKER HOSTS BANS   publishes their presences and snapshots, and ends
far.py stay BROKER HOSTS BANS    keeps the hosts connected: each receives all messages of the fleet, and publishes its
                                 snapshot on each connection and every five to ten minutes"""

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


def encode_string(text):
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
        shard_count = 1
        while BANS * 44 / shard_count > 12 * 1024:
            shard_count *= 2
        self.bans = [[] for _ in range(shard_count)]
        for n in range(number * BANS, (number + 1) * BANS):
            ip = f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"
            self.bans[fnv(ip) % shard_count].append(["sshd", ip, STARTED, 86400])

    def connect(self, topics):
        """Connects with a persistent session, as a daemon does."""
        link = socket.create_connection((BROKER, 1883), timeout=20)
        link.sendall(packet(0x10, encode_string("MQTT") + b"\x04\xc0\x00\x3c" + encode_string(f"f2bmqtt-{self.name}")
                            + encode_string("fail2ban") * 2))
        assert link.recv(4, socket.MSG_WAITALL)[3] == 0
        self.link, self.read = link, bytearray()
        for topic in topics:
            link.sendall(packet(0x82, b"\x00\x01" + encode_string(topic) + b"\x01"))
        return self.publish()

    def publish(self):
        """Publishes the presence and the snapshot. Returns the size of the payloads in bytes."""
        messages = [(f"host/{self.name}", {"v": 1, "state": "online", "version": "1.0.0", "jails": ["sshd"], "bans": BANS})]
        for index, bans in enumerate(self.bans):
            messages.append((f"state/{self.name}/{index}", {
                "v": 1, "host": self.name, "stamp": time.time_ns() // 1_000_000, "part": index,
                "parts": len(self.bans), "bans": bans, "unbans": []}))
        self.next, size = time.monotonic() + random.uniform(300, 600), 0
        for topic, message in messages:
            payload = json.dumps(message, separators=(",", ":")).encode()
            self.link.sendall(packet(0x33, encode_string(f"f2bmqtt/blacklist/{topic}") + b"\x00\x02" + payload))
            size += len(payload)
        return size

    def acknowledge(self):
        """Acknowledges the received messages."""
        data = self.link.recv(1 << 20)
        if not data:
            raise ConnectionError
        self.read += data
        at, acks = 0, b""
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
                acks += b"\x40\x02" + self.read[body + 2 + topic:body + 4 + topic]
            at = body + length
        del self.read[:at]
        if acks:
            self.link.sendall(acks)


def stay(hosts):
    selector = selectors.DefaultSelector()
    pinged_at = time.monotonic()
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
        must_ping, pinged_at = (True, now) if now - pinged_at > 20 else (False, pinged_at)
        readable = [key.data for key, _ in selector.select(0.2)]
        for host in hosts:
            try:
                if host in readable:
                    host.acknowledge()
                if host.link and host.next < now:
                    host.publish()
                if host.link and must_ping:
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
    acknowledged = 0
    while acknowledged < 1 + len(host.bans):
        host.link.recv(4, socket.MSG_WAITALL)
        acknowledged += 1
    host.link.sendall(b"\xe0\x00")
    host.link.close()
print(f"{HOSTS} hosts, {HOSTS * BANS} bans, {sum(len(host.bans) for host in hosts)} parts, {size} bytes")
