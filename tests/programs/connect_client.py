"""Asks a proxy for a tunnel, by HTTP/1.1, and says something through it.

usage: connect_client.py HOST:PORT AUTHORITY HOW [HEADER...]

HOW is `talk`, `early` (says something before it is answered), or `wait` (says nothing). Prints in one line what came of it: the status,
the headers that frame or route, what was heard through the tunnel, and how it ended.
"""

import socket
import sys

SHOWN = ("connection", "content-length", "proxy-connection", "server", "transfer-encoding", "x-by")


def head(stream):
    """The lines of a head, and what came behind it."""
    read = b""
    while b"\r\n\r\n" not in read:
        more = stream.recv(4096)
        if not more:
            return read.decode().split("\r\n"), b""
        read += more
    lines, rest = read.split(b"\r\n\r\n", 1)
    return lines.decode().split("\r\n"), rest


def rest_of(stream, heard):
    try:
        while more := stream.recv(4096):
            heard += more
    except ConnectionResetError:
        return heard, "reset"
    except TimeoutError:
        return heard, "nothing more"
    return heard, "end"


def main(proxy, authority, how, *headers):
    host, port = proxy.rsplit(":", 1)
    stream = socket.create_connection((host, int(port)), timeout=10)
    lines = [f"CONNECT {authority} HTTP/1.1", f"host: {authority}", *headers]
    stream.sendall("\r\n".join([*lines, "", ""]).encode())
    if how == "early":
        stream.sendall(b"early;quit;")
    (status, *lines), heard = head(stream)
    shown = sorted(line.lower() for line in lines if line.lower().split(":")[0] in SHOWN)
    if how == "talk" and status.split()[1:2] == ["200"]:
        stream.sendall(b"hello;")
        while not heard.endswith(b"HELLO;") and (more := stream.recv(4096)):
            heard += more
        stream.sendall(b"quit;")
    heard, end = rest_of(stream, heard)
    # Whatever the code is called.
    print(" ".join(status.split()[:2]), *shown, heard, end, sep=" | ")


main(*sys.argv[1:])
