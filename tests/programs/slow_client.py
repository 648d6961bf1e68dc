"""Takes a response slowly, by HTTP/1.1 or HTTP/2.

usage: slow_client.py HOST:PORT PATH PROTOCOL BYTES PAUSE SECONDS

PROTOCOL is `1` or `2`. Reads (by HTTP/2, lets the server send) BYTES, then does nothing for PAUSE
seconds, and so on for SECONDS; with BYTES 0, nothing but the head. Prints how many bytes of the
body came, and how it ended: `whole`, `cut`, `reset` (the stream) or `open`.
"""

import socket
import sys
import time

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


class Cut(Exception):
    pass


class Slow:
    def __init__(self, stream):
        self.stream = stream
        self.read = b""

    def take(self, length):
        while len(self.read) < length:
            more = self.stream.recv(max(length - len(self.read), 1))
            if not more:
                raise Cut
            self.read += more
        taken, self.read = self.read[:length], self.read[length:]
        return taken


def by_http1(slow, host, path):
    """Yields how much of the body is left."""
    slow.stream.sendall(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += slow.take(1)
    lines = head.decode().lower().split("\r\n")
    lengths = (int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
    length = next(lengths, 1 << 40)
    allowed = yield
    while length:
        piece = slow.take(min(allowed, length)) if allowed else b""
        length -= len(piece)
        allowed = yield len(piece)


def by_http2(slow, host, path):
    block = b"\x82\x86" + b"".join(
        bytes([name, len(value)]) + value.encode() for name, value in ((1, host), (4, path))
    )
    # The connection's window is as large as can be, the stream's is told by and by.
    slow.stream.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(SETTINGS, 0, 0, (4).to_bytes(2, "big") + (0).to_bytes(4, "big"))
        + frame(WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big"))
        + frame(HEADERS, 5, 1, block)
    )
    allowed = yield
    while True:
        if allowed:
            slow.stream.sendall(frame(WINDOW_UPDATE, 0, 1, allowed.to_bytes(4, "big")))
        came = 0
        slow.stream.settimeout(0.2)
        try:
            while came < allowed or not allowed:
                head = slow.take(9)
                length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
                payload = slow.take(length)
                if kind == DATA:
                    came += length
                    if flags & 1:
                        yield came
                        return
                elif kind == RST_STREAM:
                    raise ConnectionError("reset")
                elif kind == GOAWAY:
                    raise Cut
                elif kind == SETTINGS and not flags & 1:
                    slow.stream.sendall(frame(SETTINGS, 1, 0, b""))
                elif kind == PING and not flags & 1:
                    slow.stream.sendall(frame(PING, 1, 0, payload))
        except TimeoutError:
            pass
        allowed = yield came


def main(address, path, protocol, size, pause, seconds):
    host, port = address.rsplit(":", 1)
    stream = socket.socket()
    # What the kernel takes for a client that reads nothing is little.
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
    stream.connect((host, int(port)))
    reading = (by_http1 if protocol == "1" else by_http2)(Slow(stream), host, path)
    total, end = 0, "open"
    until = time.monotonic() + float(seconds)
    start = time.monotonic()
    try:
        next(reading)
        while time.monotonic() < until:
            total += reading.send(int(size)) or 0
            time.sleep(float(pause))
    except StopIteration:
        end = "whole"
    except (Cut, ConnectionResetError, BrokenPipeError):
        end = "cut"
    except ConnectionError:
        end = "reset"
    print(total, end, file=sys.stdout)
    print(f"{time.monotonic() - start:.1f} s", file=sys.stderr)


main(*sys.argv[1:])
