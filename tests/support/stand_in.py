"""A stand-in for a fail2ban server without delays: `stand_in.py SOCKET COUNT [LOCAL_BANS DATABASE]` answers f2bmqtt's
commands on the socket, and writes to the file COUNT how many bans it holds, and since when. It has no database, or one
with LOCAL_BANS detections of the same addresses as the first host of far.py."""

import os
import pickle
import socketserver
import sqlite3
import sys
import threading
import time

END = b"<F2B_END_COMMAND>"
BANTIME = 86400
LOCAL_BANS, DATABASE = (int(sys.argv[3]), sys.argv[4]) if len(sys.argv) > 3 else (0, None)
held = {f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}": None for n in range(LOCAL_BANS)}
lock = threading.Lock()
replies = {}


def write_local_bans():
    """Writes the rows of the local bans."""
    os.makedirs(os.path.dirname(DATABASE), exist_ok=True)
    with sqlite3.connect(DATABASE) as database:
        database.execute("DROP TABLE IF EXISTS bips")
        database.execute("CREATE TABLE bips(ip TEXT, jail TEXT, timeofban INTEGER, bantime INTEGER, "
                         "bancount INTEGER, data JSON, PRIMARY KEY(ip, jail))")
        rows = ((ip, int(time.time()), BANTIME, '{"failures":3}') for ip in held)
        database.executemany("INSERT INTO bips VALUES(?, 'sshd', ?, ?, 1, ?)", rows)


def reply_to(command):
    match command:
        case ["status"]:
            return [("Number of jail", 1), ("Jail list", "sshd")]
        case ["status", _]:
            return [("Filter", []), ("Actions", [("Currently banned", len(held)), ("Total banned", len(held))])]
        case ["get", _, "banip", "--with-time"]:
            return [f"{ip} \t2026-01-01 00:00:00 + {BANTIME} = 2026-01-02 00:00:00" for ip in held]
        case ["get", _, "banned", *ips]:
            found = [int(ip in held) for ip in ips]
            return found if len(found) > 1 else found[0]
        case ["get", _, "bantime"]:
            return BANTIME
        case ["get", _, "ignoreip"]:
            return []
        case ["get", "dbfile"]:
            return DATABASE
        case ["get", "dbpurgeage"]:
            return DATABASE and 86400
        case ["set", _, "banip", *ips]:
            new = [ip for ip in ips if ip not in held]
            held.update(dict.fromkeys(new))
            return len(new)
        case ["set", _, "unbanip", *ips]:
            return sum(held.pop(ip, 0) is None for ip in ips)
    return None


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        request = b""
        while data := self.request.recv(65536):
            request += data
            if request.endswith(END):
                with lock:
                    before = len(held)
                    # Long replies are built once.
                    reply = replies.get(request) or pickle.dumps((0, reply_to(pickle.loads(request[: -len(END)]))), 5)
                    if len(reply) > 65536:
                        replies[request] = reply
                    if len(held) != before:
                        replies.clear()
                        with open(sys.argv[2] + ".new", "w") as count:
                            count.write(f"{len(held)} {time.time()}\n")
                        os.rename(sys.argv[2] + ".new", sys.argv[2])
                self.request.sendall(reply + END)
                request = b""


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


if DATABASE:
    write_local_bans()
os.makedirs(os.path.dirname(sys.argv[1]), exist_ok=True)
if os.path.exists(sys.argv[1]):
    os.remove(sys.argv[1])
Server(sys.argv[1], Handler).serve_forever()
