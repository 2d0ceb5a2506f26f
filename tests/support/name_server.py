"""A slow name server: name_server.py ADDRESS SECONDS NAME=ADDRESS...

It responds to each query after SECONDS. Other names do not exist.
"""
import ipaddress, socket, struct, sys, threading, time

KINDS = {1: 4, 28: 6}  # A and AAAA (RFC 1035, RFC 3596)
delay = float(sys.argv[2])
addresses_of = {}
for pair in sys.argv[3:]:
    name, address = pair.split("=")
    addresses_of.setdefault(name, []).append(ipaddress.ip_address(address))


def respond(query, client):
    time.sleep(delay)
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += query[at] + 1
    kind = struct.unpack(">H", query[at + 1 : at + 3])[0]
    addresses = addresses_of.get(".".join(labels))
    found = [address for address in addresses or [] if KINDS.get(kind) == address.version]
    flags = 0x8180 if addresses else 0x8183  # a response; NXDOMAIN
    reply = query[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0) + query[12 : at + 5]
    for address in found:
        reply += b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 5, len(address.packed)) + address.packed
    server.sendto(reply, client)


server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
print("answers", flush=True)
while True:
    query, client = server.recvfrom(512)
    threading.Thread(target=respond, args=(query, client), daemon=True).start()
