"""Connects to servers from one address; standard input has the commands, one per line."""
import socket
import sys

source = sys.argv[1]
connection = None


def connect(host, port):
    return socket.create_connection((host, int(port)), timeout=3, source_address=(source, 0))


for line in sys.stdin:
    command, *rest = line.split()
    try:
        if command == "connect":
            connect(*rest).close()
            print("connected")
        elif command == "open":
            connection = connect(*rest)
            print("open")
        elif command == "echo":
            connection.settimeout(1.5)
            connection.sendall(b"hello\n")
            print("answered" if connection.recv(100) else "closed")
    except TimeoutError:
        print("silence" if command == "echo" else "timeout")
    except OSError:
        print("silence" if command == "echo" else "refused")
