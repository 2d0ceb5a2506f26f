"""Talks to servers from one address, as ordered on standard input, a line an order."""
import socket
import sys

source = sys.argv[1]
opened = None


def connect(host, port):
    return socket.create_connection((host, int(port)), timeout=3, source_address=(source, 0))


for order in sys.stdin:
    word, *rest = order.split()
    try:
        if word == "connect":
            connect(*rest).close()
            print("connected")
        elif word == "open":
            opened = connect(*rest)
            print("open")
        elif word == "echo":
            opened.settimeout(1.5)
            opened.sendall(b"hello\n")
            print("answered" if opened.recv(100) else "closed")
    except TimeoutError:
        print("silence" if word == "echo" else "timeout")
    except OSError:
        print("silence" if word == "echo" else "refused")
