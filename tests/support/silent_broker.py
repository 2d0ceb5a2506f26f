"""A broker on the port $1 that accepts connections and subscriptions, and acknowledges no published message."""
import socketserver
import sys

CONNACK = b"\x20\x02\x00\x00"


def suback(subscribe):
    """Grants each filter of a SUBSCRIBE, which is shorter than 128 bytes; other packets may follow it."""
    body, granted, at = subscribe[2 : 2 + subscribe[1]], b"", 2
    while at < len(body):
        at += 2 + int.from_bytes(body[at : at + 2], "big") + 1
        granted += b"\x01"
    return bytes([0x90, 2 + len(granted)]) + body[:2] + granted


class Silent(socketserver.BaseRequestHandler):
    def handle(self):
        while packet := self.request.recv(4096):
            if packet[0] >> 4 == 1:
                self.request.sendall(CONNACK)
            elif packet[0] >> 4 == 8:
                self.request.sendall(suback(packet))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


Server(("", int(sys.argv[1])), Silent).serve_forever()
