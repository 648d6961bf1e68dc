"""Sends a request's body in single bytes, or takes such bodies and never answers.

usage: crumbs.py send HOST:PORT PATH KIND COUNT
       crumbs.py take PORT

KIND is `chunks` (HTTP/1.1), `data`, `empty-data` or `paced-data` (HTTP/2). Sends COUNT crumbs, as
fast as they are taken and windows allow, or 10,000 a second, then ends the body and waits for what
comes. Prints how many crumbs it sent, whether there was an `answer` or `none`, and how it ended: `cut` (the connection), `reset`
(the stream), `whole` (the answer) or `open`.

`take` speaks HTTP/2 with prior knowledge, and its windows are as large as can be.
"""

import socket
import sys
import threading
import time

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INITIAL_WINDOW = 65535
WINDOW_SETTING = 4
# Crumbs that go at once, and the same of those with a pause before each lot.
MANY = 8192
FEW, PAUSE = 100, 0.01
# How long the end may take.
PATIENCE = 30


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


class Chunks:
    CRUMB, END = b"1\r\nx\r\n", b"0\r\n\r\n"

    def __init__(self, stream, host, path):
        self.stream = stream
        self.answered, self.end = False, None
        self.head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n".encode()

    def allowed(self, wanted):
        return wanted

    def write(self, data):
        self.stream.sendall(data)

    def reads(self):
        while self.stream.recv(1 << 16):
            self.answered = True


class Frames:
    END = frame(DATA, END_STREAM, 1, b"")

    def __init__(self, stream, host, path, payload):
        self.stream = stream
        self.answered, self.end = False, None
        self.CRUMB, self.cost = frame(DATA, 0, 1, payload), len(payload)
        block = b"\x83\x86" + b"".join(
            bytes([name, len(value)]) + value.encode() for name, value in ((1, host), (4, path))
        )
        self.head = PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, END_HEADERS, 1, block)
        self.windows = {0: INITIAL_WINDOW, 1: INITIAL_WINDOW}
        self.initial = INITIAL_WINDOW
        self.changed = threading.Condition()
        self.writing = threading.Lock()

    def allowed(self, wanted):
        if not self.cost:
            return wanted
        with self.changed:
            count = max(min(wanted, *self.windows.values()), 0)
            if not count:
                self.changed.wait(0.05)
            for stream in self.windows:
                self.windows[stream] -= count
        return count

    def write(self, data):
        with self.writing:
            self.stream.sendall(data)

    def take(self, length):
        read = b""
        while len(read) < length:
            more = self.stream.recv(length - len(read))
            if not more:
                raise ConnectionError("the end")
            read += more
        return read

    def reads(self):
        while True:
            head = self.take(9)
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            payload = self.take(int.from_bytes(head[:3], "big"))
            if kind == HEADERS:
                self.answered = True
            if kind in (HEADERS, DATA) and flags & END_STREAM:
                self.end = "whole"
            elif kind == RST_STREAM:
                self.end = self.end or "reset"
                return
            elif kind == WINDOW_UPDATE:
                with self.changed:
                    self.windows[stream] += int.from_bytes(payload, "big")
                    self.changed.notify()
            elif kind == SETTINGS and not flags & ACK:
                self.set(payload)
                self.write(frame(SETTINGS, ACK, 0, b""))
            elif kind == PING and not flags & ACK:
                self.write(frame(PING, ACK, 0, payload))

    def set(self, payload):
        for at in range(0, len(payload), 6):
            if int.from_bytes(payload[at : at + 2], "big") == WINDOW_SETTING:
                size = int.from_bytes(payload[at + 2 : at + 6], "big")
                with self.changed:
                    self.windows[1] += size - self.initial
                    self.initial = size


def send(address, path, kind, count):
    host, port = address.rsplit(":", 1)
    stream = socket.create_connection((host, int(port)))
    if kind == "chunks":
        peer = Chunks(stream, host, path)
    else:
        peer = Frames(stream, host, path, b"" if kind == "empty-data" else b"x")
    over = threading.Event()

    def reads():
        try:
            peer.reads()
        except OSError:
            pass
        peer.end = peer.end or "cut"
        over.set()

    threading.Thread(target=reads, daemon=True).start()
    sent, most = 0, FEW if kind == "paced-data" else MANY
    try:
        peer.write(peer.head)
        while sent < int(count) and not over.is_set():
            if most == FEW:
                time.sleep(PAUSE)
            crumbs = peer.allowed(min(most, int(count) - sent))
            peer.write(peer.CRUMB * crumbs)
            sent += crumbs
        peer.write(peer.END)
    except OSError:
        pass
    until = time.monotonic() + PATIENCE
    while not peer.end and time.monotonic() < until:
        over.wait(0.05)
    print(sent, "answer" if peer.answered else "none", peer.end or "open")


def takes(stream):
    largest = (1 << 31) - 1
    window = WINDOW_SETTING.to_bytes(2, "big") + largest.to_bytes(4, "big")
    try:
        stream.sendall(frame(SETTINGS, 0, 0, window) + frame(SETTINGS, ACK, 0, b""))
        stream.sendall(frame(WINDOW_UPDATE, 0, 0, (largest - INITIAL_WINDOW).to_bytes(4, "big")))
        while stream.recv(1 << 16):
            pass
    except OSError:
        pass
    finally:
        stream.close()


def take(port):
    listener = socket.create_server(("", int(port)), backlog=128)
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=takes, args=(stream,), daemon=True).start()


{"send": send, "take": take}[sys.argv[1]](*sys.argv[2:])
