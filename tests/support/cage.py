# Runs in the service's sandbox: tries what a compromised daemon might try, and prints for each attempt whether it
# succeeded.
import ctypes, mmap, os, resource, socket, subprocess


def attempt(what, action):
    try:
        action()
        print("can", what)
    except Exception as error:
        print("cannot", what, "-", error)


def write(path):
    attempt("write " + path, lambda: open(path, "a").close())


def execute(path):
    with open(path, "w") as program:
        program.write("#!/usr/bin/python3\n")
    os.chmod(path, 0o700)
    subprocess.run([path], check=True)


def listen():
    with socket.socket() as server:
        server.listen()


libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)


OWN_DIRECTORIES = ["/var/lib/f2bmqtt", "/run/f2bmqtt", "/var/lib/fail2ban/abuseipdb", "/var/log/abuseipdb",
       "/tmp", "/var/tmp"]
for path in ["/x", "/etc/x", "/usr/x", "/usr/bin/x", "/usr/lib/x", "/boot/x", "/root/x", "/home/x",
             "/var/x", "/var/log/x", "/srv/x", "/opt/x", "/dev/shm/x", "/var/lib/fail2ban/x", "/var/lib/fail2ban/fail2ban.sqlite3", "/etc/fail2ban/mqtt.env",
             "/run/x", "/run/fail2ban/x", "/run/lock/x", "/sys/x", "/sys/fs/cgroup/x", "/dev/x",
             "/proc/sys/kernel/hostname"]:
    write(path)
for path in OWN_DIRECTORIES:
    write(path + "/x")
    attempt("execute in " + path, lambda: execute(path + "/program"))
for path in ["/etc/shadow", "/etc/fail2ban/mqtt.env", "/var/lib/fail2ban/fail2ban.sqlite3"]:
    attempt("read " + path, lambda: open(path).close() if os.path.getsize(path) else 1 / 0)
attempt("connect to fail2ban", lambda: socket.socket(socket.AF_UNIX).connect("/run/fail2ban/fail2ban.sock"))
for path in ["/run/systemd/private", "/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket", "/run/own.sock",
             "/run/systemd/userdb/io.systemd.DynamicUser", "/run/systemd/journal/io.systemd.journal",
             "/run/systemd/journal/dev-log", "/run/systemd/notify"]:
    kind = socket.SOCK_DGRAM if path.endswith(("notify", "dev-log")) else socket.SOCK_STREAM
    attempt("connect to " + path, lambda: socket.socket(socket.AF_UNIX, kind).connect(path))
for program in [["systemd-run", "--wait", "true"], ["systemctl", "is-system-running"], ["busctl", "list"],
                ["systemctl", "stop", "fail2ban"]]:
    attempt("run " + " ".join(program[:2]), lambda: subprocess.run(program, check=True, timeout=10, capture_output=True))
attempt("reach the broker", lambda: socket.create_connection(("10.213.77.11", 1883), 5))
attempt("listen", listen)
attempt("send raw packets", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("see packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("write code into memory", lambda: mmap.mmap(-1, 4096, prot=7))
attempt("become another user", lambda: os.setuid(1000))
attempt("give a file away", lambda: os.chown("/var/lib/f2bmqtt/x", 1000, 1000))
attempt("mount", lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None))
attempt("make a namespace", lambda: call("unshare", 0x10000000))
attempt("signal another process", lambda: os.kill(1, 0) or os.kill(1, 18))
attempt("look into another process", lambda: os.readlink("/proc/1/root"))
attempt("trace", lambda: call("ptrace", 16, 1, None, None))
attempt("raise its limits", lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)))
visible = (os.path.join(directory, name) for directory in ["/run", "/run/systemd"] for name in os.listdir(directory))
print("run", *sorted(path[5:] for path in visible))
status = open("/proc/self/status").read()
print("capabilities", *[line.split()[1].lstrip("0") or "none" for line in status.splitlines() if line.startswith("Cap")])
print("core", *resource.getrlimit(resource.RLIMIT_CORE))
