import os, socket
from urllib.parse import urlparse

url = urlparse(os.environ["REDIS_URL"])


def command(*words):
    with socket.create_connection((url.hostname, url.port)) as s:
        f = s.makefile("rw", newline="\r\n")
        for one in (["AUTH", url.password], words):
            f.write(f"*{len(one)}\n" + "".join(f"${len(w)}\n{w}\n" for w in one))
        f.flush()
        assert f.readline().strip() == "+OK"
        return f.readline().strip().lstrip(":+")
