"""Speaks MQTT 3.1.1 byte by byte, as no honest program would.

hostile.py send BROKER          publishes what standard input says, a line each: `retain topic hex-of-the-payload`
hostile.py flood BROKER WHAT S RATE
                                publishes bans of random addresses, or networks, by one host for S seconds, at most
                                RATE a second, and prints how many it got rid of, and how many a second
hostile.py serve PORT           is a broker: to each that comes it says the next thing that is no MQTT, then it ends
"""

import os
import random
import socket
import struct
import sys
import time


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack(">H", len(data)) + data


def packet(kind, body, length=None):
    left, size = len(body) if length is None else length, b""
    while True:
        left, digit = left >> 7, left & 0x7F
        size += bytes([digit | (0x80 if left else 0)])
        if not left:
            return bytes([kind]) + size + body


def publish(topic, payload, retain=0, identifier=0):
    body = string(topic) + (struct.pack(">H", identifier) if identifier else b"") + payload
    return packet(0x30 | retain | (2 if identifier else 0), body)


def connect(broker, name):
    link = socket.create_connection((broker, 1883), timeout=20)
    flags = 0xC2  # a user, a password, a clean session
    link.sendall(packet(0x10, string("MQTT") + bytes([4, flags, 0, 0]) + string(name) + string("fail2ban") * 2))
    answer = link.recv(4)
    assert answer == b"\x20\x02\x00\x00", answer
    return link


def send(broker):
    link = connect(broker, "hostile")
    for line in sys.stdin:
        retain, topic, payload = line.split(" ")
        link.sendall(publish(topic, bytes.fromhex(payload.strip()), int(retain), 1))
        answer = link.recv(4, socket.MSG_WAITALL)
        assert answer == b"\x40\x02\x00\x01", (topic, answer)


def flood(broker, what, seconds, rate):
    link = connect(broker, "flood")
    bits = "/24" if what == "networks" else ""
    form = '{"action":"ban","ipmset":"sshd","ip":"%d.%d.%d.%d%s","bantime":600,"host":"flood","restored":0,"failures":3}'
    random.seed(1)
    one = lambda: publish("blacklist/ban", (form % (random.randint(11, 126), *random.randbytes(3), bits)).encode())
    batches = [b"".join(one() for _ in range(500)) for _ in range(100)]
    start, sent = time.monotonic(), 0
    while (passed := time.monotonic() - start) < seconds:
        if sent > passed * rate:
            time.sleep(0.002)
            continue
        link.sendall(batches[sent // 500 % len(batches)])
        sent += 500
    print(sent, round(sent / passed))


def serve(port):
    ban = b'{"action":"ban","ipmset":"sshd","ip":"198.18.66.6","bantime":600,"host":"x","restored":0,"failures":3}'
    whole = publish("blacklist/ban", ban)
    tricks = [
        packet(0x30, string("blacklist/ban") + ban, len(ban)),  # shorter than it is: the rest is read as packets
        packet(0x30, string("blacklist/ban") + ban, 100_000),  # longer than what ever comes
        packet(0x30, struct.pack(">H", 65535) + b"blacklist/ban" + ban),  # the topic is longer than all of it
        packet(0x30, b"\x00"),
        b"\x30\xff\xff\xff\xff\xff",  # a length without end
        packet(0x30, b"", 268_435_455),
        packet(0x36, string("blacklist/ban") + struct.pack(">H", 1) + ban),  # QoS 3
        publish(b"blacklist/\xff\xfe", ban),  # a topic that is no text
        packet(0x00, b""), packet(0xF0, b""), packet(0x10, b"x"), packet(0x90, b"\x00"), packet(0x40, b""),
        packet(0x40, b"\xff\xff") * 500,  # acknowledges what was never sent
        whole * 200 + packet(0x20, b"\x00\x00"),
        os.urandom(4096),
    ]
    server = socket.create_server(("", port))
    server.settimeout(300)
    for trick in tricks:
        client, _ = server.accept()
        client.settimeout(3)
        try:
            client.recv(4096)
            client.sendall(b"\x20\x02\x00\x00" + trick)
            while client.recv(4096):
                pass
        except OSError:
            pass
        client.close()
    print("all tried")


mode, *rest = sys.argv[1:]
if mode == "serve":
    serve(int(rest[0]))
elif mode == "send":
    send(rest[0])
else:
    flood(rest[0], rest[1], float(rest[2]), float(rest[3]))
