"""Stands in for a fail2ban server that does everything at once: `stand_in.py SOCKET COUNT` answers on the socket
what f2bmqtt asks, keeps no database, and writes into the file COUNT how many bans it holds, and since when."""

import os
import pickle
import socketserver
import sys
import threading
import time

END = b"<F2B_END_COMMAND>"
BANTIME = 86400
held = {}
lock = threading.Lock()


def answer(words):
    match words:
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
        case ["get", "dbfile"] | ["get", "dbpurgeage"]:
            return None
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
                    reply = pickle.dumps((0, answer(pickle.loads(request[: -len(END)]))), 5)
                    if len(held) != before:
                        with open(sys.argv[2] + ".new", "w") as count:
                            count.write(f"{len(held)} {time.time()}\n")
                        os.rename(sys.argv[2] + ".new", sys.argv[2])
                self.request.sendall(reply + END)
                request = b""


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


os.makedirs(os.path.dirname(sys.argv[1]), exist_ok=True)
if os.path.exists(sys.argv[1]):
    os.remove(sys.argv[1])
Server(sys.argv[1], Handler).serve_forever()
