"""A TLS client that keeps its last flight to itself until it is told to go on.

usage: slow_handshake.py HOST PORT CERTIFICATE KEY GO

Says `held` when everything but that has been said, and waits for the file GO. Then the flight and a
request are sent, and what comes is printed: an answer, or `ended`.
"""

import os
import socket
import ssl
import sys
import time

host, port, certificate, key, go = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.minimum_version = ssl.TLSVersion.TLSv1_3
context.load_cert_chain(certificate, key)
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
client = context.wrap_bio(incoming, outgoing)
stream = socket.create_connection((host, int(port)), 60)
while True:
    try:
        client.do_handshake()
        break
    except ssl.SSLWantReadError:
        stream.sendall(outgoing.read())
        incoming.write(stream.recv(1 << 16))
print("held", flush=True)
while not os.path.exists(go):
    time.sleep(0.05)
try:
    client.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    stream.sendall(outgoing.read())
    heard = b""
    while b"hello" not in heard:
        more = stream.recv(1 << 16)
        if not more:
            break
        incoming.write(more)
        try:
            heard += client.read(1 << 16)
        except ssl.SSLWantReadError:
            pass
    print(heard.decode(), flush=True)
except OSError as error:
    print(error, flush=True)
print("ended", flush=True)
