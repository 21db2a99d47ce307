"""A connection to a server that is slow, counted, and cut when the test says so."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal
from urllib.parse import urlsplit

REQUEST = re.compile(rb"(?:^|\r\n)(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1\.1\r\n")

State = Literal["open", "stalled", "refusing"]


class Proxy:
    """HTTP/1.1 passed on to a server; each request waits for `latency_s`, each 64 KiB that come back for `pause_s`.

    `requests` counts them by method, `refused` connections that were not taken. While it is "stalled", nothing
    passes; while it is "refusing", connections end.
    """

    def __init__(self, server: str, *, latency_s: float = 0, pause_s: float = 0) -> None:
        self.latency_s, self.pause_s = latency_s, pause_s
        self.requests: Counter[str] = Counter()
        self.refused = 0
        self.bytes_up = self.bytes_down = 0
        self._server = urlsplit(server)
        self._state: State = "open"
        self._changed = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]

    @property
    def address(self) -> str:
        """What a client writes in the place of the server's address."""
        return f"http://127.0.0.1:{self._port}{self._server.path}"

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        """Listen until the block ends."""
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield self
        finally:
            self._set("refusing")
            with suppress(OSError):  # wakes the thread that accepts
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    @contextmanager
    def cut(self, state: Literal["stalled", "refusing"]) -> Iterator[None]:
        """Let nothing pass until the block ends."""
        self._set(state)
        try:
            yield
        finally:
            self._set("open")

    def _set(self, state: State) -> None:
        with self._changed:
            self._state = state
            sockets = list(self._sockets) if state == "refusing" else []
            self._changed.notify_all()
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        assert self._server.hostname
        assert self._server.port
        with client, suppress(OSError):
            if self._state == "refusing":
                self.refused += 1
                return
            with socket.create_connection((self._server.hostname, self._server.port)) as server:
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._changed:
                    self._sockets |= {client, server}
                back = threading.Thread(target=self._pass_back, args=(server, client), daemon=True)
                back.start()
                self._pass_on(client, server)
                back.join()
                with self._changed:
                    self._sockets -= {client, server}

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                found = REQUEST.match(data)
                if found:
                    self.requests[found[1].decode()] += 1
                    time.sleep(self.latency_s)
                self._wait_until_open()
                self.bytes_up += len(data)
                server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _pass_back(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                time.sleep(self.pause_s)
                self._wait_until_open()
                self.bytes_down += len(data)
                client.sendall(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)

    def _wait_until_open(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._state != "stalled")
