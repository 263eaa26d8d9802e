"""A web server that sends zeros, whatever it is asked for, keeps nothing, and starts a process."""

import http.server
import subprocess
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes(4096))

    def do_PUT(self) -> None:
        self.send_response(500)
        self.end_headers()


if __name__ == "__main__":
    subprocess.Popen(["sleep", "1000"])
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
