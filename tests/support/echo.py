"""A server on the port $1 that echoes each line."""
import socketserver
import sys


class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    address_family = 10  # IPv6, and IPv4 with it


Server(("::", int(sys.argv[1])), Echo).serve_forever()
