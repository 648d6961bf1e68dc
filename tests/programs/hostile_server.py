"""Floods whoever asks, in one way after another.

usage: hostile_server.py PORT KIND

By HTTP/1.1: `status`, `headers`, `hints`, `chunks`, `trailers`, `body`. By HTTP/2: `block`,
`empty-block`, `http2-hints`, `data`, `empty-data`, `http2-trailers`, `http2-body`. Each connection
is flooded with up to 1 GiB, as long as it is taken.
"""

import socket
import sys
import threading

FLOOD_BYTES = 1 << 30

DATA, HEADERS, SETTINGS, CONTINUATION = 0, 1, 4, 9
END_HEADERS = 4
OK = b"\x88"


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def field(value):
    """A header that no table keeps."""
    return b"\x00\x01x" + b"\x7f" + varint(len(value) - 127) + value


def varint(number):
    out = b""
    while number >= 128:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


HTTP1 = {
    "status": (b"HTTP/1.1 200 ", b"a" * 1000),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
    "hints": (b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"),
    "chunks": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "trailers": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n", b"x" * (64 << 10)),
}
BEGUN = frame(HEADERS, END_HEADERS, 1, OK)
HTTP2 = {
    "block": (frame(HEADERS, 0, 1, OK), frame(CONTINUATION, 0, 1, field(b"v" * 16000))),
    "empty-block": (frame(HEADERS, 0, 1, OK), frame(CONTINUATION, 0, 1, b"")),
    "http2-hints": (b"", frame(HEADERS, END_HEADERS, 1, b"\x08\x03103")),
    "data": (BEGUN, frame(DATA, 0, 1, b"x")),
    "empty-data": (BEGUN, frame(DATA, 0, 1, b"")),
    "http2-trailers": (BEGUN + frame(HEADERS, 1, 1, field(b"v" * 200)), frame(CONTINUATION, 0, 1, field(b"v" * 4000))),
    "http2-body": (BEGUN, frame(DATA, 0, 1, b"x" * 16000)),
}


def reads(stream):
    try:
        while stream.recv(1 << 16):
            pass
    except OSError:
        pass


def take(stream, length):
    read = b""
    while len(read) < length:
        more = stream.recv(length - len(read))
        if not more:
            raise ConnectionError("the end")
        read += more
    return read


def serve(stream, kind):
    if kind in HTTP2:
        take(stream, len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        stream.sendall(frame(SETTINGS, 0, 0, b"") + frame(SETTINGS, 1, 0, b""))
        asked = None
        while asked != HEADERS:
            head = take(stream, 9)
            take(stream, int.from_bytes(head[:3], "big"))
            asked = head[3]
    else:
        read = b""
        while b"\r\n\r\n" not in read:
            read += take(stream, 1)
    threading.Thread(target=reads, args=(stream,), daemon=True).start()
    first, again = (HTTP1 | HTTP2)[kind]
    stream.sendall(first)
    again *= (64 << 10) // len(again) + 1
    for _ in range(FLOOD_BYTES // len(again)):
        stream.sendall(again)


def connection(stream, kind):
    try:
        serve(stream, kind)
    except OSError:
        pass
    finally:
        stream.close()


def main(port, kind):
    listener = socket.create_server(("", int(port)), backlog=128)
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=connection, args=(stream, kind), daemon=True).start()


main(*sys.argv[1:])
