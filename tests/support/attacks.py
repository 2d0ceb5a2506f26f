"""Attacks on a fleet over MQTT, by a client that may publish any message, and by a broker.

attacks.py ATTACK [NAME=VALUE...]    runs an attack: the function `attack_ATTACK`
attacks.py state                     prints a host's bans and stored records, one per line, and numbers of its daemon
attacks.py show                      runs the commands that show the fleet, and checks their output

Options: full=1 makes an attack large enough to fill the daemon's tables; victim=IP is an address that honest hosts ban,
and next=IP one that they will ban; key=KEY signs each message, or with every=2 each second one.
"""

import hashlib
import hmac
import json
import pathlib
import pickle
import random
import re
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time

import hostile
from hostile import packet, encode_string

HUB = "10.213.77.11"
HONEST = ("a", "b")
HOSTS = ("evil", *HONEST)
DAY = 86_400_000
options = {"full": "", "victim": "192.0.2.1", "next": "192.0.2.2", "key": "", "every": "1", "jail": "sshd"}


def now():
    return int(time.time() * 1000)


def signed(topic, text):
    digest = hmac.new(options["key"].encode(), topic.encode() + b"\n" + text[:-1], hashlib.sha256).hexdigest()
    return text[:-1] + b',"sig":"%s"}' % digest.encode()


class Client:
    """A client that waits for the acknowledgements after every 400 messages."""

    def __init__(self, name="evil", clean=True):
        self.link = socket.create_connection((HUB, 1883), timeout=60)
        self.stream = self.link.makefile("rb")
        flags = 0xC2 if clean else 0xC0  # a user and a password
        head = encode_string("MQTT") + bytes([4, flags, 0, 0])
        self.link.sendall(packet(0x10, head + encode_string(name) + encode_string("fail2ban") * 2))
        kind, answer = self.read()
        assert (kind, answer[1]) == (0x20, 0), answer
        self.had_session = answer[0] == 1
        self.count = self.waiting = 0

    def publish(self, topic, message, retain=0):
        text = message.encode() if isinstance(message, str) else message
        if isinstance(text, dict):
            text = json.dumps(text, separators=(",", ":")).encode()
        self.count += 1
        if options["key"] and text and self.count % int(options["every"]) == 0:
            text = signed(topic, text)
        self.link.sendall(hostile.publish(topic, text, retain, self.count % 60_000 + 1))
        self.waiting += 1
        if self.waiting == 400:
            self.wait()

    def read(self):
        if received := hostile.read(self.stream):
            return received
        raise ConnectionResetError

    def wait(self):
        while self.waiting:
            self.waiting -= self.read()[0] == 0x40

    def subscribe(self, *filters):
        self.link.sendall(packet(0x82, b"\0\1" + b"".join(encode_string(entry) + b"\1" for entry in filters)))
        while (received := self.read())[0] != 0x90:
            pass
        return received[1][2:]

    def close(self):
        self.wait()
        self.link.sendall(b"\xe0\0")
        self.link.close()


def event(address, host="evil", action="ban", **more):
    form = dict(action=action, ipmset=options["jail"], ip=address, bantime=600, host=host, restored=0, failures=3)
    return {**form, **more}


def detected(address, host="evil", stamp=None, **more):
    stamp = now() if stamp is None else stamp
    return event(address, host, **{"time": now() // 1000, "stamp": stamp, "reason": "detected", **more})


def expired_ban(address, host="evil", **more):
    """A ban that has expired: hosts store the claim for a while, and do not import the ban."""
    return detected(address, host, **{"time": 1, "bantime": 1, **more})


def fleet_unban(address, maker="evil", created_at=None, **more):
    created_at = now() if created_at is None else created_at
    unban = dict(action="unban", stamp=created_at, time=created_at // 1000, reason="fleet")
    unban |= dict(id=f"{maker}-{created_at}", jails="*")
    return event(address, maker, **{**unban, **more})


def shard(host, stamp, index=0, count=1, bans=(), unbans=()):
    return dict(v=1, host=host, stamp=stamp, part=index, parts=count, bans=list(bans), unbans=list(unbans))


def shard_entry(address, jail="sshd", start=None, bantime=-1):
    return [jail, address, now() // 1000 if start is None else start, bantime]


def presence(*jails):
    return {"v": 1, "state": "online", "jails": list(jails)}


def shard_topic(host, index=0):
    return f"f2bmqtt/blacklist/state/{host}/{index}"


def partition(addresses, count):
    """Addresses by their shard: FNV-1a of their text."""
    of = [[] for _ in range(count)]
    for address in addresses:
        value = 0xCBF29CE484222325
        for byte in address.encode():
            value = (value ^ byte) * 0x100000001B3 & (1 << 64) - 1
        of[value % count].append(address)
    return of


def addresses(count, first=11):
    return [f"{first}.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(count)]


def outside_messages():
    """Messages on topics that are not theirs."""
    victim, wrong = options["victim"], "198.51.100.%d"
    topics = "ban x/ban x/y/z blacklist2/ban blacklis/ban Blacklist/ban /blacklist/ban x/blacklist/ban f2bmqtt/ban".split()
    topics += "f2bmqtt/blacklist/ban f2bmqtt/blacklist/unban f2bmqtt/blacklist/x/y/0 homeassistant/status".split()
    topics += "homeassistant/f2bmqtt/evil/ban $share/fleet/blacklist/ban $share/fleet/blacklist/# f2bmqtt/blacklist".split()
    for topic in topics:
        for host in HOSTS:
            yield topic, detected(wrong % 1, host)
            yield topic, event(wrong % 2, host)
            yield topic, detected(victim, host, action="unban", stamp=now() + 1_000)
        yield topic, fleet_unban(victim)
    branches = "state/%s/0 x/state/%s/0 blacklist/state/%s/0 f2bmqtt/state/%s/0 f2bmqtt/other/state/%s/0"
    branches += " f2bmqtt/blacklist2/state/%s/0 f2bmqtt/blacklist/x/state/%s/0 f2bmqtt/blacklist/state/%s/00"
    branches += " f2bmqtt/blacklist/state/%s/1 f2bmqtt/blacklist/state/%s f2bmqtt/blacklist/host/%s"
    for host in HOSTS:
        valid_shard = shard(host, now() + 1_000, bans=[shard_entry(wrong % 3)], unbans=[["*", victim, f"evil-{now()}"]])
        for branch in branches.split():
            yield branch % host, valid_shard
        yield shard_topic("evil2" if host == "evil" else "evil"), valid_shard
        yield f"f2bmqtt/other/host/{host}", presence("sshd", "x")
        yield f"host/{host}", presence("sshd", "x")


def attack_introduce():
    """Invented hosts become known, so that daemons subscribe to their shards."""
    client = Client()
    for host in ("evil", *(f"evil{n}" for n in range(2, 8))):
        client.publish(shard_topic(host), shard(host, 1, 0, 2), 1)
        client.publish(f"f2bmqtt/blacklist/host/{host}", presence("sshd"))
    client.close()
    time.sleep(8)
    client = Client()
    for host in ("evil", *(f"evil{n}" for n in range(2, 8))):
        client.publish(shard_topic(host), b"", 1)
    client.close()


def attack_outside():
    for retain in (0, 1):
        client = Client()
        for topic, message in outside_messages():
            if topic[0] != "$" and "#" not in topic:  # the broker would close the connection
                client.publish(topic, message, retain)
        if retain:
            for topic in {topic for topic, _ in outside_messages() if topic[0] != "$"}:
                client.publish(topic, b"", 1) if "#" not in topic else None
        client.close()


def attack_takeover():
    """Adds subscriptions to the sessions of guessed client IDs, and publishes on these topics."""
    for name in ("f2bmqtt", "f2bmqtt-a", "f2bmqtt-b", "f2bmqtt-a-", "a"):
        client = Client(name, clean=False)
        assert not client.had_session, name
        client.subscribe("#", "ban", "x/#", "+/+/+", "$share/fleet/blacklist/#")
        client.close()
    attack_outside()
    for name in ("f2bmqtt", "f2bmqtt-a", "f2bmqtt-b", "f2bmqtt-a-", "a"):
        Client(name).close()


def attack_cpu():
    """A large snapshot, then many small old shards; in the names of an invented host and of honest ones."""
    for host, count in (("evil", 99_000 if options["full"] else 20_000), ("b", 500), ("a", 500)):
        stamp = now()
        client = Client()
        client.publish(f"f2bmqtt/blacklist/host/{host}", presence("sshd")) if host == "evil" else None
        for index, some in enumerate(partition(addresses(count), 512)):
            bans = [shard_entry(address, "x") for address in some]
            client.publish(shard_topic(host, index), shard(host, stamp, index, 512, bans))
        for old in range(1, 300):
            client.publish(shard_topic(host), shard(host, old))
        client.publish(shard_topic(host), shard(host, now() + 1_000))
        client.close()


def attack_jail_flood():
    """Bans of many addresses in many jails, as events, and a snapshot that lists other ones."""
    client = Client()
    for n in range(480):
        client.publish("blacklist/ban", expired_ban(f"12.0.0.{n % 250}", "evil2", ipmset=f"q{n}", stamp=5, bantime=-1))
    for index, some in enumerate(partition(addresses(99_000 if options["full"] else 20_000), 16)):
        bans = [shard_entry(address, "x", 1) for address in some]
        client.publish(shard_topic("evil2", index), shard("evil2", 10, index, 16, bans))
    for stamp in range(11, 40):
        client.publish(shard_topic("evil2"), shard("evil2", stamp, 0, 16))
    for n in range(20_000 if options["full"] else 5_000):
        client.publish("blacklist/ban", event("198.51.100.9", ipmset="nowhere", host=f"old{n % 3}"))
        client.publish("blacklist/ban", event("198.51.100.9", ipmset="nowhere", restored=1))
        client.publish(shard_topic("evil4"), shard("evil4", now() + n, bans=[shard_entry("198.51.100.9", f"x{n % 99}")]))
    for host in ("evil2", "evil4"):
        client.publish(shard_topic(host), shard(host, now() + 60_000))
    client.close()


def attack_own():
    """Bans in the names of honest hosts: in many jails, and of addresses that these hosts import."""
    client = Client()
    for n in range(20_000 if options["full"] else 3_000):
        for host in HONEST:
            client.publish("blacklist/ban", expired_ban("10.9.9.9", host, ipmset="j" * 110 + f"{n:08}", bantime=-1))
            if n < 1_500:
                client.publish("blacklist/ban", expired_ban(f"10.8.{n >> 8}.{n & 255}", host))
    client.publish("blacklist/ban", detected(options["victim"], "a"))
    client.close()


def attack_unbans():
    """Fleet unbans of addresses without a ban, by many hosts, as events and in snapshots."""
    client, sent = Client(), 0
    each = 1_900 if options["full"] else 200
    for maker in [f"u{n}" for n in range(9)] + list(HONEST):
        for _ in range(each):
            address = f"10.{sent >> 16}.{sent >> 8 & 255}.{sent & 255}"
            client.publish("blacklist/unban", fleet_unban(address, maker, now() - sent))
            sent += 1
    for maker in ("v1", *HONEST):
        created_at = now() - 60_000
        unbans = [["*", address, f"{maker}-{created_at + n}"] for n, address in enumerate(addresses(each, 10))]
        client.publish(shard_topic("evil5"), shard("evil5", now(), unbans=unbans))
    client.publish(shard_topic("evil5"), shard("evil5", now() + 1_000))
    client.close()


def attack_hosts():
    """Invented hosts in events, snapshots and presences."""
    client = Client()
    for n in range(1_100):
        host = f"fake{n:04}"
        client.publish("blacklist/ban", expired_ban(f"11.0.{n >> 8}.{n & 255}", host))
        if options["full"] or n % 4 == 0:
            client.publish(f"f2bmqtt/blacklist/host/p{host}", presence("sshd"))
            expired = shard_entry("11.1.1.1", start=1, bantime=1)
            client.publish(shard_topic(f"s{host}"), shard(f"s{host}", now(), bans=[expired]))
    client.close()


def attack_crowd():
    """Claims of many hosts on the address that an honest host is about to ban."""
    client = Client()
    for n in range(300):
        client.publish("blacklist/ban", expired_ban(options["next"], f"crowd{n}"))
        expired = shard_entry(options["next"], start=1, bantime=1)
        client.publish(shard_topic(f"crowds{n}"), shard(f"crowds{n}", now(), bans=[expired]))
    client.close()


def attack_retain(clear=False):
    """More retained presences of invented hosts than the broker delivers at once."""
    client = Client()
    for n in range(1_500):
        client.publish(f"f2bmqtt/blacklist/host/aaa{n:05}", b"" if clear else presence(), 1)
    client.close()


def attack_retain_clear():
    attack_retain(True)


def attack_presence(clear=False):
    """Presences with very many jails."""
    client = Client()
    for host in ("zz0", "zz1", "zz2", *HONEST[1:]):
        jails = presence(*(f"jail-{host}-{n}" for n in range(500)))
        if host not in HONEST or not clear:
            client.publish(f"f2bmqtt/blacklist/host/{host}", b"" if clear else jails, 1)
    client.close()


def attack_presence_clear():
    attack_presence(True)


def attack_stamp():
    """Messages with stamps in the far future, in the names of honest hosts and of an invented one."""
    client = Client()
    for stamp in (now() + DAY - 900_000, now() + DAY + 60_000, 2**53, 2**62):
        for host in (*HONEST, "evil"):
            ban = dict(bantime=600 if host == "evil" else -1)
            client.publish("blacklist/ban", detected("198.18.5.50", host, stamp, **ban))
            if host != "evil" or stamp > now() + DAY:
                client.publish(shard_topic(host), shard(host, stamp, bans=[shard_entry("198.18.5.51")]), 1)
        client.publish("blacklist/unban", fleet_unban(options["victim"], "b", stamp)) if stamp > now() + DAY else None
    client.publish("blacklist/unban", detected("198.18.5.50", stamp=now() + DAY - 800_000, action="unban"))
    client.publish(shard_topic("evil"), b"", 1)
    client.close()


def attack_spellings():
    """Addresses that no host may ban, also in other spellings, in events and snapshots."""
    exempt = [HUB, "127.0.0.1", "127.0.0.53", "198.51.100.7", "10.213.77.255", "0.0.0.0", "0.1.2.3", "255.255.255.255"]
    exempt += ["10.213.77.12", "10.213.77.13", "224.0.0.1", "240.0.0.1", "169.254.1.1"]
    other = "fd77::12 fd77::13 fd77:0:0:0:0:0:0:0012 FD77::13 :: ::1 fec0::1 100::1 ff0e::1 fe80::1 fe80::1%eth0".split()
    other += "127.1 0x7f.0.0.1 2130706433 0177.0.0.1 localhost hub 192.0.2.0/24 198.51.100.7/32 198.51.100.8-9".split()
    for address in exempt:
        octets = [int(octet) for octet in address.split(".")]
        groups = "%02x%02x:%02x%02x" % tuple(octets)
        forms = "::ffff:{0} ::{0} ::ffff:0:{0} 64:ff9b::{0} 2002:{1}::1 64:ff9b::{1} ::{1} ::FFFF:{1}"
        other += [address, *forms.format(address, groups).split(), address + " ", "0" + address]
    client = Client()
    for n, address in enumerate(other):
        if address in exempt[:8]:
            client.publish("blacklist/ban", event(address, "old"))
        client.publish("blacklist/ban", detected(address, "evil6"))
        client.publish(shard_topic("evil6"), shard("evil6", now() + n, bans=[shard_entry(address)]))
    client.publish(shard_topic("evil6"), shard("evil6", now() + 1_000))
    client.close()


NAMES = [
    "a\tb", "x y", "<b>", "$(id)", "`id`", "%s%n", "{{7*7}}", "=cmd|' /C calc'!A0", "e\u0301\u0301\u0301\u0301",
    "\u0430dmin", "\u2800", "\u3000", "\U0001f4a9", "\u06dd", "\u202eevil", "\x1b]0;x\x07", "\u009b31m", "é" * 64,
    "-rf", "--help", "..", ".", "'; DROP TABLE imports;--", "b (Rest:=0, Fails:=1)", "\ufdfa" * 40, "\u200bb",
    "b\u00a0", "\ufe0fq", "\u180ew", "\u0085", "a\nBan 203.0.113.9 for ipset sshd reported by b", "a\r\nb", "\u2028", "\u00adb", "\U000e0001b",
]  # fmt: skip


def attack_names(clear=False):
    """Names that would change a terminal's screen or forge a line of a log."""
    for name in NAMES:
        client = Client()
        try:
            for number in (2**63 - 1, 1):
                message = dict(presence("sshd", "j{}%"), version="\x1b[31m" + name, bans=number, machine=name, since=number)
                message |= dict(rejected={name: 2**63, "old": 7}, acks=[["sshd", "203.0.113.9", name, number, "w"]])
                valid_shard = shard(name, now(), bans=[["sshd", "203.0.113.9", number, number], ["j{}%", "203.0.113.8", 1, 1]])
                client.publish(f"f2bmqtt/blacklist/host/{name}", b"" if clear else message, 1)
                client.publish(shard_topic(name), b"" if clear else valid_shard, 1)
                client.publish(shard_topic("evil7"), {**valid_shard, "host": "evil7"})
                for jail, action in (("sshd", "ban"), (name, "ban"), ("sshd", name), (name, "ack_request")):
                    more = dict(ipmset=jail, action=action)
                    client.publish("blacklist/ban", expired_ban("203.0.113.9", name, **more, stamp=max(number, now())))
            client.close()
        except OSError:  # the broker rejects such a topic
            pass


def attack_names_clear():
    attack_names(True)


def attack_replay():
    """Receives an honest ban and its unban; then publishes the messages again, on their topics and on others."""
    client, received = Client("replay"), []
    client.subscribe("#")
    print("listens", flush=True)
    next_address = options["next"].encode()
    until = time.time() + 60
    while time.time() < until:
        kind, body = client.read()
        if kind >> 4 != 3:
            continue
        at = 2 + struct.unpack(">H", body[:2])[0]
        topic, message = body[2:at].decode(), body[at:]
        if kind & 6:
            client.link.sendall(packet(0x40, message[:2]))
            message = message[2:]
        if next_address in message:
            received.append((topic, message))
            print(topic, flush=True)
            if topic.endswith("/unban"):
                until = time.time() + 4
                threading.Timer(5, lambda: Client("end").publish("end", b"")).start()
    assert len(received) > 1, received
    client = Client()
    options["key"] = ""
    moved = {"blacklist/ban": "blacklist/unban", "blacklist/unban": "blacklist/ban"}
    for topic, message in received:
        client.publish(topic, message)
        client.publish(topic, message, 1)
        client.publish(moved.get(topic, shard_topic("a")), message)
    client.publish(shard_topic("b"), b"", 1)
    client.close()


def attack_stolen():
    """With the key: permanent bans in the names of an honest host and of an invented one."""
    client = Client()
    for stamp in (now() + DAY - 900_000, 2**53):
        bans = [shard_entry(f"198.18.5.{n}") for n in range(1, 6)]
        client.publish(shard_topic("b"), shard("b", stamp, bans=bans), 1)
        client.publish("blacklist/ban", detected("198.18.5.77", "b", stamp, bantime=-1))
        client.publish(shard_topic("ghost"), shard("ghost", stamp, bans=[shard_entry("198.18.5.78")]), 1)
        client.publish("blacklist/ban", detected("198.18.5.79", "ghost", stamp, bantime=-1))
        client.publish("blacklist/unban", fleet_unban("198.18.5.80", "b", stamp - 1))
    client.close()


def attack_as_broker():
    """A broker that sends messages outside the fleet's topics, and then endless long topics."""
    server = socket.create_server(("", 1999))
    seconds = 40 if options["full"] else 4
    # A daemon with new settings has a second client, which ends the former session.
    server.settimeout(30)
    first, _ = server.accept()
    until = time.time() + seconds
    threading.Thread(target=send_outside_messages, args=(first, until), daemon=True).start()
    while (left := until - time.time()) > 0:
        server.settimeout(left)
        try:
            client, _ = server.accept()
        except TimeoutError:
            break
        threading.Thread(target=send_outside_messages, args=(client, until), daemon=True).start()


def send_outside_messages(client, until):
    subscribed = threading.Event()
    threading.Thread(target=hostile.respond, args=(client, subscribed), daemon=True).start()
    if not subscribed.wait(20):
        return
    client.settimeout(15)
    for topic, message in outside_messages():
        client.sendall(hostile.publish(topic, json.dumps(message, separators=(",", ":")).encode()))
    long = b"".join(hostile.publish(start + "t" * 65_500, b"") for start in ("blacklist/", "f2bmqtt/blacklist/", "x")) * 7
    while time.time() < until:
        client.sendall(long)


def state():
    """Prints the bans of fail2ban and the firewall, the daemon's records without times, and numbers of the daemon."""

    def ask_fail2ban(*question):
        fail2ban = socket.socket(socket.AF_UNIX)
        fail2ban.connect("/run/fail2ban/fail2ban.sock")
        fail2ban.sendall(pickle.dumps(question, 2) + b"<F2B_END_COMMAND>")
        reply = b""
        while not reply.endswith(b"<F2B_END_COMMAND>"):
            reply += fail2ban.recv(65_536)
        return pickle.loads(reply[: -len(b"<F2B_END_COMMAND>")])[1]

    asked_at = time.monotonic()
    ask_fail2ban("ping")
    print("ping", round((time.monotonic() - asked_at) * 1000))
    for jail in ("sshd", "web", "both"):
        for address in ask_fail2ban("get", jail, "banip"):
            print("banned", jail, address)
    log = pathlib.Path("/var/log/fail2ban.log").read_text()
    for address in sorted(set(re.findall(r"NOTICE +\[\w+\] (?:Restore )?Ban (\S+)", log))):
        print("ever", address)
    for line in sorted(subprocess.check_output(["ipset", "save"], text=True).splitlines()):
        if line.startswith("add"):
            print("ipset", *line.split()[1:3])
    store = sqlite3.connect("file:/var/lib/f2bmqtt/fleet.sqlite3?mode=ro", uri=True)
    for (table,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'stamp'").fetchall():
        for row in store.execute(f'SELECT * FROM "{table}"').fetchall():
            print("store", table, re.sub(r"\b\d{10,13}\b", "TIME", repr(row)))
    daemon = subprocess.check_output(["systemctl", "show", "-P", "MainPID", "f2bmqttsub"], text=True).strip()
    status = pathlib.Path(f"/proc/{daemon}/status").read_text()
    print("pid", daemon)
    print("rss", re.search(r"VmRSS:\s+(\d+)", status)[1])
    journal = ["journalctl", "-u", "f2bmqttsub", "-o", "cat", "--no-pager", "-b"]
    journal = subprocess.check_output(journal, text=True).splitlines()
    print("journal", len(journal))
    print("connected", sum("connected to the broker" in line for line in journal))


def show():
    """Runs the commands that show the fleet; fails if one prints characters that are unsafe for a terminal."""
    unsafe = re.compile("[^\t\n -~\u00a1-\u00ac\u00ae-\u02ff\u0370-\u05ff\u2010-\u2027\u2030-\u205e\u2190-\u27ff\ufdfa\U0001f300-\U0001f9ff]")
    for command in ("f2bmqtt list", "f2bmqtt list 203.0.113.9", "f2bmqtt status", "f2bmqtt check", "journalctl -u f2bmqttsub -b -o cat"):
        out = subprocess.run(command.split(), capture_output=True, text=True, timeout=60)
        text = out.stdout + out.stderr
        assert out.returncode < 100 and not unsafe.search(text), (command, text)
        assert not re.search(r"203\.0\.113\.9 for ipset|\(Rest.*\(Rest|\d{17}", text), (command, text)


if __name__ == "__main__":
    name, *values = sys.argv[1:]
    options.update(value.split("=", 1) for value in values)
    globals()[name if name in ("state", "show") else "attack_" + name]()
