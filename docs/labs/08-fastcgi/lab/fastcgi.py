# The records of FastCGI. https://fastcgi-archives.github.io/FastCGI_Specification.html, section 3.3
import struct

BEGIN_REQUEST, END_REQUEST, PARAMS, STDIN, STDOUT = 1, 3, 4, 5, 6
NAMES = {1: "BEGIN_REQUEST", 3: "END_REQUEST", 4: "PARAMS", 5: "STDIN", 6: "STDOUT"}


def record(kind, content=b""):
    # Version, type, request, length, padding, reserved: eight bytes. One request at a time, so it is number 1.
    return struct.pack(">BBHHBB", 1, kind, 1, len(content), 0, 0) + content


def read(stream):
    header = stream.read(8)
    if len(header) < 8:
        return None, b""
    _, kind, _, length, padding, _ = struct.unpack(">BBHHBB", header)
    return kind, stream.read(length + padding)[:length]


def pack(variables):
    # A length each, then name and value. (Longer ones than 127 bytes need four bytes for it; there are none here.)
    pairs = ((name.encode(), value.encode()) for name, value in variables.items())
    return b"".join(bytes([len(name), len(value)]) + name + value for name, value in pairs)


def unpack(content):
    variables, at = {}, 0
    while at < len(content):
        name, value, at = content[at], content[at + 1], at + 2
        variables[content[at:at + name].decode()] = content[at + name:at + name + value].decode()
        at += name + value
    return variables


def request(variables):
    # Role 1 is `responder`. An empty record ends a stream.
    begin = struct.pack(">HB5x", 1, 0)
    return [record(BEGIN_REQUEST, begin), record(PARAMS, pack(variables)), record(PARAMS), record(STDIN)]
