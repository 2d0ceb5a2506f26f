"""Measures on a host of tests/bench: runs the function that the first argument names, and prints results line by line."""
import os
import pickle
import re
import socket
import statistics
import subprocess
import sys
import time

LOG = "/var/log/fail2ban.log"
END = b"<F2B_END_COMMAND>"


def median_and_spread(values):
    values = sorted(values)
    return f"{statistics.median(values):.3f} {values[len(values) // 10]:.3f} {values[-len(values) // 10 - 1]:.3f}"


def spawn(command):
    """Milliseconds from the start of a process to its end."""
    start = time.perf_counter()
    process = os.posix_spawn(command[0], command, os.environ)
    os.waitpid(process, 0)
    return (time.perf_counter() - start) * 1000


def time_processes(runs, *commands):
    """Measures several commands `NAME=PATH ARG...` in turns, so that the machine's load is the same for all."""
    named = [command.split("=", 1) for command in commands]
    taken = {name: [] for name, _ in named}
    for run in range(int(runs)):
        for name, command in named:
            taken[name].append(spawn(command.replace("RUN", str(run % 250 + 1)).split()))
    for name, values in taken.items():
        print(name, median_and_spread(values))


class Fail2ban:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect("/run/fail2ban/fail2ban.sock")

    def call(self, *command):
        self.socket.sendall(pickle.dumps(list(command), 2) + END)
        reply = b""
        while not reply.endswith(END):
            reply += self.socket.recv(65536)
        return pickle.loads(reply[: -len(END)])


def ban_in_batches(count, batch, prefix):
    """Bans addresses over the socket, in batches."""
    fail2ban = Fail2ban()
    addresses = [f"{prefix}.{n // 250}.{n % 250 + 1}" for n in range(int(count))]
    for start in range(0, len(addresses), int(batch)):
        fail2ban.call("set", "sshd", "banip", *addresses[start : start + int(batch)])


def time_single_bans(count):
    """Prints how many milliseconds fail2ban takes for single bans."""
    fail2ban, taken = Fail2ban(), []
    for n in range(int(count)):
        start = time.perf_counter()
        fail2ban.call("set", "sshd", "banip", f"198.19.9.{n + 1}")
        taken.append((time.perf_counter() - start) * 1000)
    print("single", median_and_spread(taken))


def ban_with_clients(count, prefix):
    """Bans addresses, each with a fail2ban-client of its own."""
    for n in range(int(count)):
        subprocess.run(["fail2ban-client", "set", "sshd", "banip", f"{prefix}.0.{n + 1}"],
                       check=True, stdout=subprocess.DEVNULL)


def ban_times(prefix):
    """The times of the bans in fail2ban's log of addresses with a prefix, in seconds."""
    found = {}
    line = re.compile(r"(\S+ \S+),(\d+) .*\] Ban (" + re.escape(prefix) + r"\S+)")
    with open(LOG) as log:
        for match in filter(None, map(line.match, log)):
            moment = time.mktime(time.strptime(match[1], "%Y-%m-%d %H:%M:%S"))
            found[match[3]] = moment + int(match[2]) / 1000
    return found


def print_rate(prefix):
    """Prints the number of bans, and the bans per second between the first and the last."""
    moments = sorted(ban_times(prefix).values())
    print(len(moments), (len(moments) - 1) / (moments[-1] - moments[0]))


def moments(prefix):
    for address, moment in ban_times(prefix).items():
        print(address, f"{moment:.3f}")


globals()[sys.argv[1]](*sys.argv[2:])
