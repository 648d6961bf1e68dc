"""Says something on connections of its own and tells which server each has reached.

usage: first_bytes_client.py HOST CASES

CASES is a file with a JSON list of objects: `port`, and either `hex` (the bytes) or `sni` and `alpn` (those
of a ClientHello, either of which may be null). Prints a line for each: the port that `peer who`
names, or `closed`.
"""

import concurrent.futures
import json
import re
import socket
import ssl
import struct
import sys

PATIENCE = 20
AT_ONCE = 32


def hello(sni, alpn):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=sni)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()


def reached(case):
    said = bytes.fromhex(case["hex"]) if "hex" in case else hello(case["sni"], case["alpn"])
    heard = b""
    try:
        with socket.create_connection((sys.argv[1], case["port"]), PATIENCE) as stream:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.sendall(said)
            while more := stream.recv(4096):
                heard += more
    except TimeoutError:
        return "hangs"
    except OSError:
        # Who has said enough may be reset for what nobody has read.
        pass
    named = re.search(rb"I am \S+ (\d+)", heard)
    return named[1].decode() if named else "closed"


with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
    with open(sys.argv[2], encoding="ascii") as file:
        cases = json.load(file)
    for line in pool.map(reached, cases):
        print(line)
