"""Sends fail2ban a command over its socket like fail2ban-client, but three times as fast: for commands in loops."""
import pickle
import socket
import sys

END = b"<F2B_END_COMMAND>"
fail2ban = socket.socket(socket.AF_UNIX)
fail2ban.connect("/run/fail2ban/fail2ban.sock")
fail2ban.sendall(pickle.dumps(sys.argv[1:], 2) + END)
reply = b""
while not reply.endswith(END):
    part = fail2ban.recv(65536)
    if not part:
        sys.exit("fail2ban hung up")
    reply += part
failed, answer = pickle.loads(reply[: -len(END)])
print(" ".join(map(str, answer)) if isinstance(answer, list) else answer)
sys.exit(failed)
