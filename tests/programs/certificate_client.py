"""Makes requests of a proxy, by TLS with this or that certificate, and says what came back.

usage: certificate_client.py HOST CASES

CASES is a JSON list of objects: `case` (for the header `x-case`), `port`, `tls` (`1.2`, `1.3`
or null), `tickets` (a bool), `sni` and `own` (a file with certificates and key), the last two
of which may be null. Prints a line of JSON for each: the `status` and those headers that begin
with `x-heard-`, and with TLS the `cipher` that was agreed on; or `closed`.
"""

import http.client
import json
import socket
import ssl
import sys

PATIENCE = 20


def secured(stream, case):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[case["tls"]]
    context.minimum_version = context.maximum_version = version
    if not case["tickets"]:
        context.options |= ssl.OP_NO_TICKET
    if case["own"]:
        context.load_cert_chain(case["own"])
    return context.wrap_socket(stream, server_hostname=case["sni"])


def answer(host, case):
    connection = http.client.HTTPConnection(host, case["port"], timeout=PATIENCE)
    connection.sock = socket.create_connection((host, case["port"]), PATIENCE)
    cipher = None
    if case["tls"]:
        connection.sock = secured(connection.sock, case)
        cipher = connection.sock.cipher()[0]
    connection.request("GET", "/", headers={"x-case": case["case"], "connection": "close"})
    response = connection.getresponse()
    response.read()
    heard = {name: value for name, value in response.getheaders() if name.startswith("x-heard-")}
    return {"status": response.status, **({"cipher": cipher} if cipher else {}), **heard}


for asked in json.loads(sys.argv[2]):
    try:
        print(json.dumps(answer(sys.argv[1], asked)))
    except (OSError, http.client.HTTPException):
        print('"closed"')
