#!/usr/bin/env python3
"""An HTTP service whose version changes without one failed request.

It serves on sockets that it is given, says when it is ready, and finishes what it has begun before it ends.
Copy it, and put your own answers into `Handler`. Needs Python 3.8 or later and nothing else.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERSION = "shop 1.0.0"
# The name of the sockets that it serves, in LISTEN_FDNAMES.
NAME = "http"
# How long, in seconds, an idle connection is kept for its next request when the service is to end. Shorter than
# what kills it then: drain_timeout of the agent, or TimeoutStopSec= of systemd.
PATIENCE = 20

draining = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in one write.
    wbufsize = -1

    def do_GET(self):
        if self.path == "/slow":
            time.sleep(0.2)
        found = self.path in ("/version", "/slow")
        body = (VERSION if found else "not found").encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        # Looked at after the work: whoever waited while the signal came is told, too. It also ends the connection.
        if draining.is_set():
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """A server on a socket that is there already, which knows its connections."""

    daemon_threads = False

    def __init__(self, listener):
        super().__init__(None, Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        # The old and the new process accept from the same socket. Whoever comes second must not be stuck in accept().
        listener.setblocking(False)
        self.changed = threading.Condition()
        self.connections = set()

    def get_request(self):
        connection, address = super().get_request()
        with self.changed:
            self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request):
        with self.changed:
            self.connections.discard(request)
            self.changed.notify_all()
        super().shutdown_request(request)

    def drain(self, deadline):
        """Waits for the end of all connections; closes those that are still idle at the deadline."""
        # What waits in the socket's queue is for the next process: it is closed here and nowhere else. It must not
        # be shut down (socket.shutdown), as that would end it for everybody.
        self.socket.close()
        with self.changed:
            # Not closed at once: a client may be sending its next request on an idle connection at this very moment.
            self.changed.wait_for(lambda: not self.connections, max(0, deadline - time.monotonic()))
            for connection in self.connections:
                # Whoever is answered right now still gets the whole answer.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
        self.server_close()


def listeners():
    """The sockets that were passed to this process; without any, one of its own."""
    count, pid, names = (os.environ.pop("LISTEN_" + key, "") for key in ("FDS", "PID", "FDNAMES"))
    names = names.split(":") if names else []
    found = []
    for index in range(int(count) if pid == str(os.getpid()) else 0):
        name = names[index] if index < len(names) else NAME
        if name == NAME:
            listener = socket.socket(fileno=3 + index)
            listener.set_inheritable(False)
            found.append(listener)
        else:
            print(f"there is no use for the socket `{name}`", file=sys.stderr)
    if not found:
        host, _, port = os.environ.get("SHOP_LISTEN", "127.0.0.1:8080").rpartition(":")
        found.append(socket.create_server((host, int(port)), backlog=1024))
    return found


def notify(state):
    """Tells whoever started this process, as sd_notify(3) does."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
            wire.sendto(state.encode(), "\0" + path[1:] if path[0] == "@" else path)


def main():
    # Blocked in every thread and waited for below, so that an early signal is not missed.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    servers = [Server(listener) for listener in listeners()]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    notify("READY=1")

    signal.sigwait(signals)
    draining.set()
    # Whoever listened may be gone. What is under way is finished all the same.
    try:
        notify("STOPPING=1")
    except OSError as error:
        print(f"could not say STOPPING=1: {error}", file=sys.stderr)
    for server in servers:
        server.shutdown()
    deadline = time.monotonic() + PATIENCE
    for server in servers:
        server.drain(deadline)


if __name__ == "__main__":
    main()
