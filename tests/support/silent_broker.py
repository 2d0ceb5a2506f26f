"""A broker that lets clients in and subscribe, and then says nothing more: port is the argument."""
import socketserver
import sys

CONNACK, SUBACK = b"\x20\x02\x00\x00", b"\x90\x04\x00\x01\x01\x01"


class Silent(socketserver.BaseRequestHandler):
    def handle(self):
        while packet := self.request.recv(4096):
            if packet[0] >> 4 == 1:
                self.request.sendall(CONNACK)
            elif packet[0] >> 4 == 8:
                self.request.sendall(SUBACK)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


Server(("", int(sys.argv[1])), Silent).serve_forever()
