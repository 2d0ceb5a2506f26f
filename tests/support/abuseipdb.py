#!/usr/bin/python3
# Simulates api.abuseipdb.com: three calls of its API v2 with their rules (docs.abuseipdb.com). Writes each request to
# DIR/calls and each accepted report to DIR/taken, as one JSON value per line. While a file DIR/answer exists, all
# responses come from it: "STATUS BODY", or "200" and "endless", "stalled" or "truncated".
#   abuseipdb.py DIR CERTIFICATE PRIVATE-KEY [PORT]
import csv, datetime, email, http.server, io, json, pathlib, ssl, sys, threading, time
from urllib.parse import parse_qs, urlsplit

directory, certificate, private_key, port = pathlib.Path(sys.argv[1]), *sys.argv[2:4], int((sys.argv + ["443"])[4])
KEY = "a1" * 40
lock, reported = threading.Lock(), {}


def error(detail, status, parameter=None):
    entry = {"detail": detail, "status": status}
    return status, {"errors": [entry | ({"source": {"parameter": parameter}} if parameter else {})]}


def accept_report(ip, categories, comment, reported_at):
    """Accepts a report, or returns the reason of its rejection."""
    with lock:
        if time.time() - reported.get(ip, 0) < 900:
            return "You can only report the same IP address (`%s`) once in 15 minutes." % ip
        if not categories or len(comment) > 1024:
            return "Invalid"
        datetime.datetime.fromisoformat(reported_at)
        reported[ip] = time.time()
        with (directory / "taken").open("a") as taken:
            taken.write(json.dumps([ip, categories, comment, reported_at]) + "\n")


class Api(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.respond(b"")

    def do_POST(self):
        self.respond(self.rfile.read(int(self.headers["Content-Length"])))

    def respond(self, body):
        status, answer = self.answer(body)
        self.close_connection = True
        # Write the call before the response: a test reads the file once it has the response.
        with lock, (directory / "calls").open("a") as calls:
            calls.write(json.dumps({
                "call": f"{self.command} {self.path}", "status": status,
                "headers": {name.lower(): value for name, value in self.headers.items()},
                "body": body.decode()}) + "\n")
        text = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        # Without this line, a client may send its next request on the connection that ends.
        self.send_header("Connection", "close")
        if answer in ("endless", "stalled"):
            self.end_headers()
            while answer == "endless":
                self.wfile.write(b" " * 65536)
            time.sleep(600)
        self.send_header("Content-Length", str(len(text) + 9 * (answer == "truncated")))
        self.send_header("X-RateLimit-Limit", "1000")
        self.send_header("X-RateLimit-Remaining", "777")
        self.end_headers()
        self.wfile.write(text)

    def answer(self, body):
        if (directory / "answer").exists():
            status, text = (directory / "answer").read_text().split(" ", 1)
            return int(status), text
        if self.headers["Key"] != KEY or self.headers["Accept"] != "application/json":
            return error("Authentication failed. Your API key is either missing or incorrect.", 401)
        url = urlsplit(self.path)
        call = f"{self.command} {url.path}"
        if call == "GET /api/v2/check":
            ip = parse_qs(url.query)["ipAddress"][0]
            listed = ip in reported or ip.startswith("192.175.48.")
            return 200, {"data": {"ipAddress": ip, "abuseConfidenceScore": 0,
                                  "totalReports": int(listed), "reports": []}}
        if call == "POST /api/v2/report":
            form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            rejection = accept_report(form["ip"], form["categories"], form["comment"], form["timestamp"])
            if rejection:
                return error(rejection, 429, "ip")
            return 200, {"data": {"ipAddress": form["ip"], "abuseConfidenceScore": 52}}
        if call == "POST /api/v2/bulk-report":
            head = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
            parts = email.message_from_bytes(head + body).get_payload()
            file = next(part for part in parts if 'name="csv"' in part["Content-Disposition"])
            text = file.get_payload(decode=True).decode()
            rows = list(csv.DictReader(io.StringIO(text)))
            rejected = []
            for number, row in enumerate(rows, 1):
                rejection = accept_report(row["IP"], row["Categories"], row["Comment"], row["ReportDate"])
                if rejection:
                    rejected.append({"error": rejection, "input": row["IP"], "rowNumber": number})
            return 200, {"data": {"savedReports": len(rows) - len(rejected), "invalidReports": rejected}}
        return error("Not found", 404)


server = http.server.ThreadingHTTPServer(("0.0.0.0", port), Api)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(certificate, private_key)
server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()
