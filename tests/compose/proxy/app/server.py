import os, socket
from http.server import BaseHTTPRequestHandler, HTTPServer

class H(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        name = os.environ.get("NAME") or socket.gethostname()
        self.wfile.write(f"served by {name} for {self.headers.get('X-Real-IP')}\n".encode())

HTTPServer(("", 8000), H).serve_forever()
