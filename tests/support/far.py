"""Publishes what hosts that are not there would: `far.py HOSTS BANS` their presence and their snapshots, with so
many bans each, to the broker on this machine."""

import json
import subprocess
import sys
import time

HOSTS, BANS = int(sys.argv[1]), int(sys.argv[2])
PUB = ["mosquitto_pub", "-h", "127.0.0.1", "-u", "fail2ban", "-P", "fail2ban", "-q", "1", "-r", "-s", "-t"]


def fnv(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def publish(topic, message):
    payload = json.dumps(message, separators=(",", ":")).encode()
    subprocess.run([*PUB, f"blacklist/{topic}"], input=payload, check=True)
    return len(payload)


now = int(time.time())
size = parts_published = 0
for host in range(HOSTS):
    name = f"far{host}"
    parts = 1
    while BANS * 44 / parts > 12 * 1024:
        parts *= 2
    bans = [[] for _ in range(parts)]
    for n in range(BANS):
        number = host * BANS + n
        ip = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        bans[fnv(ip) % parts].append(["sshd", ip, now, 86400])
    size += publish(f"host/{name}", {"v": 1, "state": "online", "version": "1.0.0", "jails": ["sshd"], "bans": BANS})
    for part in range(parts):
        size += publish(f"state/{name}/{part}", {"v": 1, "host": name, "stamp": now * 1000, "part": part,
                                                 "parts": parts, "bans": bans[part], "unbans": []})
        parts_published += 1
print(f"{HOSTS} hosts, {HOSTS * BANS} bans, {parts_published} parts, {size} bytes")
