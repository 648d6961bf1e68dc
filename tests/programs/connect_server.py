"""Says everything back in capitals until the client has said `quit`.

usage: connect_server.py PORT OPAQUE_PORT

On PORT only to whom asks for a tunnel by HTTP/1.1; by the name of the host it decides whether to
agree: `refused` is told 403, `closed` nothing. On OPAQUE_PORT to everybody.
"""

import sys
import threading
import socketserver

AGREED = b"HTTP/1.1 200 OK\r\nx-by: server\r\n\r\n"
REFUSED = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 3\r\nx-by: server\r\n\r\nno;"


class Opaque(socketserver.StreamRequestHandler):
    def handle(self):
        while said := self.connection.recv(4096):
            self.connection.sendall(said.upper())
            if said.endswith(b"quit;"):
                return


class Asked(Opaque):
    # What follows the head is read by nobody else.
    rbufsize = 0

    def handle(self):
        while (line := self.rfile.readline()).strip():
            asked = line.split()
            while (line := self.rfile.readline()).strip():
                pass
            if asked[0] != b"CONNECT" or asked[1].startswith(b"closed"):
                return
            if asked[1].startswith(b"refused"):
                self.wfile.write(REFUSED)
                continue
            self.wfile.write(AGREED)
            return super().handle()


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


threading.Thread(
    target=Server(("", int(sys.argv[2])), Opaque).serve_forever, daemon=True
).start()
Server(("", int(sys.argv[1])), Asked).serve_forever()
