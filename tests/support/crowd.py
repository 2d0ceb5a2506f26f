"""A fleet on one machine: `crowd.py HOSTS BANS BROKER OTHERS` starts HOSTS real daemons, each with its own directories
and a stand-in for fail2ban that has BANS local bans and bans without delay. OTHERS is the number of other hosts' bans.

Each second it writes to /run/crowd/state the least and the most bans of a host, whether all hosts hold the same bans,
and the mean and the largest memory of the daemons in KiB. A file /run/crowd/burst with a number makes the first host
detect this number of further addresses."""

import json
import os
import pickle
import selectors
import socket
import sqlite3
import subprocess
import sys
import time

HOSTS, BANS, BROKER, OTHERS = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
END = b"<F2B_END_COMMAND>"
BANTIME = 86400
TABLE = "CREATE TABLE bips(ip TEXT, jail TEXT, timeofban INTEGER, bantime INTEGER, bancount INTEGER, data JSON)"
# Each host has its own directories at the paths that the daemon uses.
START = """for d in var/lib/f2bmqtt run/f2bmqtt run/fail2ban; do mkdir -p /$d; mount --bind {dir}/$d /$d; done
exec f2bmqtt subscribe >{dir}/log 2>&1"""


def address(number):
    return f"10.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


class Host:
    def __init__(self, number):
        self.dir = f"/run/crowd/{number}"
        for path in ["var/lib/f2bmqtt/spool", "run/f2bmqtt", "run/fail2ban"]:
            os.makedirs(f"{self.dir}/{path}", exist_ok=True)
        local = [address(number * BANS + n) for n in range(BANS)]
        self.held = set(local)
        self.database = sqlite3.connect(f"{self.dir}/run/fail2ban/database")
        self.database.execute(TABLE)
        self.write_rows(local)
        with open(f"{self.dir}/env", "w") as env:
            env.write(f"MQTT_HOST={BROKER}\nMQTT_USER=fail2ban\nMQTT_PASSWORD=fail2ban\nMQTT_TOPIC=blacklist\n"
                      f"MQTT_NODE=h{number}\n")
        os.chmod(f"{self.dir}/env", 0o600)

    def write_rows(self, addresses):
        rows = [(ip, "sshd", int(time.time()), BANTIME, 1, '{"failures":3}') for ip in addresses]
        with self.database:
            self.database.executemany("INSERT INTO bips VALUES(?, ?, ?, ?, ?, ?)", rows)

    def start(self):
        env = dict(os.environ, F2BMQTT_ENV=f"{self.dir}/env", MALLOC_ARENA_MAX="1", MALLOC_MMAP_THRESHOLD_="65536",
                   MALLOC_TRIM_THRESHOLD_="65536")
        command = ["unshare", "-m", "sh", "-c", START.format(dir=self.dir)]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL)

    def detect(self, addresses):
        """Bans addresses, writes their events to the spool, and writes their rows to the database."""
        self.held.update(addresses)
        spool = f"{self.dir}/var/lib/f2bmqtt/spool"
        for n, ip in enumerate(addresses):
            event = {"action": "ban", "bantime": BANTIME, "failures": 3, "ip": ip, "ipmset": "sshd", "restored": 0,
                    "time": int(time.time())}
            name = f"{time.time_ns():020}-{n:010}"
            with open(f"{spool}/.{name}", "w") as file:
                json.dump(event, file, separators=(",", ":"))
            os.rename(f"{spool}/.{name}", f"{spool}/{name}.json")
        self.write_rows(addresses)

    def reply_to(self, command):
        match command:
            case ["status"]:
                return [("Number of jail", 1), ("Jail list", "sshd")]
            case ["status", _]:
                return [("Filter", []), ("Actions", [("Total banned", len(self.held))])]
            case ["get", _, "banip", "--with-time"]:
                return [f"{ip} \t2026-01-01 00:00:00 + {BANTIME} = 2026-01-02 00:00:00" for ip in self.held]
            case ["get", _, "banned", *ips]:
                found = [int(ip in self.held) for ip in ips]
                return found if len(found) > 1 else found[0]
            case ["get", _, "bantime"] | ["get", "dbpurgeage"]:
                return BANTIME
            case ["get", _, "ignoreip"]:
                return []
            case ["get", "dbfile"]:
                return "/run/fail2ban/database"
            case ["set", _, "banip", *ips]:
                before = len(self.held)
                self.held.update(map(sys.intern, ips))
                return len(self.held) - before
            case ["set", _, "unbanip", *ips]:
                self.held.difference_update(ips)
                return len(ips)
        return None

    def memory(self):
        """The memory of the daemon, in KiB."""
        try:
            with open(f"/proc/{self.process.pid}/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
        except (OSError, StopIteration):
            return 0


def serve(hosts):
    selector = selectors.DefaultSelector()
    for host in hosts:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{host.dir}/run/fail2ban/fail2ban.sock")
        listener.listen()
        selector.register(listener, selectors.EVENT_READ, (host, None))
    for host in hosts:
        host.start()
    written_at = extra = 0
    while True:
        for key, _ in selector.select(1):
            host, request = key.data
            if request is None:
                selector.register(key.fileobj.accept()[0], selectors.EVENT_READ, (host, bytearray()))
                continue
            data = key.fileobj.recv(65536)
            if not data:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                continue
            request += data
            if request.endswith(END):
                reply = pickle.dumps((0, host.reply_to(pickle.loads(request[: -len(END)]))), 5)
                key.fileobj.sendall(reply + END)
                request.clear()
        if os.path.exists("/run/crowd/burst"):
            with open("/run/crowd/burst") as burst:
                count = int(burst.read())
            os.remove("/run/crowd/burst")
            hosts[0].detect([address(HOSTS * BANS + extra + n) for n in range(count)])
            extra += count
        if time.time() - written_at >= 1:
            counts = [len(host.held) for host in hosts]
            memory = [host.memory() for host in hosts]
            same = int(min(counts) == max(counts) == OTHERS + HOSTS * BANS + extra)
            with open("/run/crowd/state.new", "w") as state:
                state.write(f"{min(counts)} {max(counts)} {same} {sum(memory) // HOSTS} {max(memory)}\n")
            os.rename("/run/crowd/state.new", "/run/crowd/state")
            written_at = time.time()


os.makedirs("/run/crowd", exist_ok=True)
serve([Host(number) for number in range(HOSTS)])
