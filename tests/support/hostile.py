"""An attacker that creates MQTT 3.1.1 packets byte by byte.

hostile.py send BROKER          publishes the messages on standard input, one per line: `RETAIN TOPIC HEX-PAYLOAD`
hostile.py flood BROKER WHAT S RATE
                                publishes bans of random addresses or networks in the name of one host for S seconds, at
                                most RATE per second; prints how many, and how many per second
hostile.py pour PORT WHAT S RATE
                                is a broker that sends the same messages to its first client, and after half of the time
                                a snapshot of the host b with one ban
hostile.py serve PORT           is a broker that sends each new client the next violation of the protocol
"""

import os
import random
import socket
import struct
import sys
import threading
import time


def encode_string(text):
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
    body = encode_string(topic) + (struct.pack(">H", identifier) if identifier else b"") + payload
    return packet(0x30 | retain | (2 if identifier else 0), body)


def connect(broker, name):
    link = socket.create_connection((broker, 1883), timeout=20)
    flags = 0xC2  # a user, a password, a clean session
    head = encode_string("MQTT") + bytes([4, flags, 0, 0])
    link.sendall(packet(0x10, head + encode_string(name) + encode_string("fail2ban") * 2))
    connack = link.recv(4)
    assert connack == b"\x20\x02\x00\x00", connack
    return link


def send(broker):
    link = connect(broker, "hostile")
    for line in sys.stdin:
        retain, topic, payload = line.split(" ")
        link.sendall(publish(topic, bytes.fromhex(payload.strip()), int(retain), 1))
        puback = link.recv(4, socket.MSG_WAITALL)
        assert puback == b"\x40\x02\x00\x01", (topic, puback)


def ban(address, host):
    form = '{"action":"ban","ipmset":"sshd","ip":"%s","bantime":600,"host":"%s","restored":0,"failures":3}'
    return publish("blacklist/ban", (form % (address, host)).encode())


def prepare_batches(what):
    bits = "/24" if what == "networks" else ""
    random.seed(1)

    def random_ban():
        return ban("%d.%d.%d.%d" % (random.randint(11, 126), *random.randbytes(3)) + bits, "flood")

    return [b"".join(random_ban() for _ in range(500)) for _ in range(100)]


def send_batches(link, prepared, seconds, rate, midway_message=b""):
    start, sent = time.monotonic(), 0
    while (passed := time.monotonic() - start) < seconds:
        if sent > passed * rate:
            time.sleep(0.002)
            continue
        link.sendall(prepared[sent // 500 % len(prepared)])
        sent += 500
        if midway_message and passed > seconds / 2:
            link.sendall(midway_message)
            midway_message = b""
    print(sent, round(sent / passed))


def flood(broker, what, seconds, rate):
    prepared = prepare_batches(what)
    send_batches(connect(broker, "flood"), prepared, seconds, rate)


def read(stream):
    """Returns the first byte and the body of the next packet, or None at the end."""
    kind = stream.read(1)
    if not kind:
        return None
    length = shift = 0
    while True:
        digit = stream.read(1)[0]
        length, shift = length | (digit & 0x7F) << shift, shift + 7
        if digit < 0x80:
            return kind[0], stream.read(length)


def respond(client, subscribed):
    """Replies to each CONNECT, SUBSCRIBE, PUBLISH and PINGREQ as a broker does."""
    stream = client.makefile("rb")
    while received := read(stream):
        kind, body = received
        if kind >> 4 == 1:
            client.sendall(b"\x20\x02\x00\x00")
        elif kind >> 4 == 8:
            topics, left = 0, body[2:]
            while left:
                left, topics = left[3 + struct.unpack(">H", left[:2])[0] :], topics + 1
            client.sendall(packet(0x90, body[:2] + b"\x01" * topics))
            subscribed.set()
        elif kind & 0xF6 == 0x32:
            at = 2 + struct.unpack(">H", body[:2])[0]
            client.sendall(b"\x40\x02" + body[at : at + 2])
        elif kind >> 4 == 12:
            client.sendall(b"\xd0\x00")


def pour(port, what, seconds, rate):
    prepared = prepare_batches(what)
    server = socket.create_server(("", port))
    client, _ = server.accept()
    subscribed = threading.Event()
    threading.Thread(target=respond, args=(client, subscribed), daemon=True).start()
    subscribed.wait()
    form = '{"v":1,"host":"b","stamp":%d,"part":0,"parts":1,"bans":[["sshd","192.0.2.3",%d,600]],"unbans":[]}'
    honest_shard = publish("f2bmqtt/blacklist/state/b/0", (form % (time.time() * 1000, time.time())).encode())
    send_batches(client, prepared, seconds, rate, honest_shard)


def serve(port):
    text = b'{"action":"ban","ipmset":"sshd","ip":"198.18.66.6","bantime":600,"host":"x","restored":0,"failures":3}'
    valid_message = publish("blacklist/ban", text)
    violations = [
        packet(0x30, encode_string("blacklist/ban") + text, len(text)),  # too short: the rest looks like packets
        packet(0x30, encode_string("blacklist/ban") + text, 100_000),  # a length that is too long
        packet(0x30, struct.pack(">H", 65535) + b"blacklist/ban" + text),  # the topic is longer than the packet
        packet(0x30, b"\x00"),
        b"\x30\xff\xff\xff\xff\xff",  # a length without end
        packet(0x30, b"", 268_435_455),
        packet(0x36, encode_string("blacklist/ban") + struct.pack(">H", 1) + text),  # QoS 3
        publish(b"blacklist/\xff\xfe", text),  # a topic that is not UTF-8
        packet(0x00, b""), packet(0xF0, b""), packet(0x10, b"x"), packet(0x90, b"\x00"), packet(0x40, b""),
        packet(0x40, b"\xff\xff") * 500,  # acknowledgements of messages that were not sent
        valid_message * 200 + packet(0x20, b"\x00\x00"),
        os.urandom(4096),
    ]
    server = socket.create_server(("", port))
    server.settimeout(300)
    for violation in violations:
        client, _ = server.accept()
        client.settimeout(3)
        try:
            client.recv(4096)
            client.sendall(b"\x20\x02\x00\x00" + violation)
            while client.recv(4096):
                pass
        except OSError:
            pass
        client.close()
    print("all tried")


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    if mode == "serve":
        serve(int(rest[0]))
    elif mode == "send":
        send(rest[0])
    else:
        {"flood": flood, "pour": lambda port, *how: pour(int(port), *how)}[mode](
            rest[0], rest[1], float(rest[2]), float(rest[3])
        )
