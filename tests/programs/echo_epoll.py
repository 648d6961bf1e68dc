"""An echo server on edge-triggered epoll, as Go's netpoller uses it: both directions are
registered once, and nothing is asked again until a read or write would block."""

import select
import socket
import sys

EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
LIMIT = 1 << 20


class Connection:
    def __init__(self, sock):
        self.sock = sock
        self.buffer = bytearray()
        self.ended = False

    def work(self):
        """Reads and writes until both would block; true when it is over."""
        while True:
            moved = False
            while not self.ended and len(self.buffer) < LIMIT:
                try:
                    data = self.sock.recv(65536)
                except BlockingIOError:
                    break
                moved = True
                self.ended = not data
                self.buffer += data
            while self.buffer:
                try:
                    sent = self.sock.send(self.buffer)
                except BlockingIOError:
                    break
                moved = True
                del self.buffer[:sent]
            if self.ended and not self.buffer:
                self.sock.shutdown(socket.SHUT_WR)
                return True
            if not moved:
                return False


def main():
    listener = socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=4096)
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    connections = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                sock.setblocking(False)
                connections[sock.fileno()] = Connection(sock)
                epoll.register(sock, EDGES)
                continue
            connection = connections[fd]
            try:
                over = connection.work()
            except OSError:
                over = True
            if over:
                epoll.unregister(fd)
                connections.pop(fd).sock.close()


main()
