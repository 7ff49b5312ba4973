import argparse, os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from store import command

options = argparse.ArgumentParser()
options.add_argument("--title", default="none")
options.add_argument("--name", default="none")
options = options.parse_args()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/health":
            body = "ok"
        else:
            hits = command("INCR", "hits")
            body = f"{options.title} / {options.name} / {os.environ['GREETING']} / {hits} hits / {os.environ['RATIO']}\n"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())


print("listening on 5000")
ThreadingHTTPServer(("0.0.0.0", 5000), Handler).serve_forever()
