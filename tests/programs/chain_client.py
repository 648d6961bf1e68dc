"""Connects to listeners of a proxy and says which filter chain has answered.

usage: chain_client.py HOST CASES

CASES is a JSON list of objects: `port`, `tls` (a bool), `sni`, `alpn` (a list) and
`source_port`, the last three of which may be null. Prints a line for each: what an HTTP/1.1
request was answered with and the protocol that was agreed on, or `closed`.
"""

import json
import socket
import ssl
import struct
import sys

PATIENCE = 20
REQUEST = b"GET / HTTP/1.1\r\nHost: chains.test\r\nConnection: close\r\n\r\n"


def whole(heard):
    head, end, body = heard.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    lengths = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]
    return end and len(body) >= sum(lengths)


def answer(host, case):
    with socket.socket() as stream:
        stream.settimeout(PATIENCE)
        # The same port is wanted again.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if case["source_port"]:
            stream.bind(("", case["source_port"]))
        stream.connect((host, case["port"]))
        agreed = None
        if case["tls"]:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            if case["alpn"]:
                context.set_alpn_protocols(case["alpn"])
            stream = context.wrap_socket(stream, server_hostname=case["sni"])
            agreed = stream.selected_alpn_protocol()
        stream.sendall(REQUEST)
        heard = b""
        # Envoy ends the connection a second later.
        while not whole(heard) and (more := stream.recv(4096)):
            heard += more
    if not heard.startswith(b"HTTP/"):
        # An alert of TLS, or nothing.
        return "closed"
    head, _, body = heard.decode().partition("\r\n\r\n")
    return f"{head.split()[1]} {body.strip()} {agreed}"


for asked in json.loads(sys.argv[2]):
    try:
        print(answer(sys.argv[1], asked))
    except TimeoutError:
        print("hangs")
    except (OSError, EOFError):
        print("closed")
