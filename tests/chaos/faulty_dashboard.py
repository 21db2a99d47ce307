"""A dashboard that is slow, silent or talks rubbish: what stands before a real one."""

from __future__ import annotations

import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

SLOW_S = 0.5
PATIENCE_S = 30

RUBBISH = [
    (200, "application/json", b"{}"),
    (200, "application/json", b"null"),
    (200, "application/json", b"[]"),
    (200, "application/json", b'{"result": false, "data": {}'),
    (200, "text/html", b"<html><body>[/bold] please sign in \x1b[31m</body></html>"),
    (502, "text/html", b"<html><body>502: the job does not exist</body></html>"),
    (404, "text/html", b"<html><body>not found</body></html>"),
    (500, "text/plain", b""),
]

HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "content-encoding"}


class FaultyDashboard:
    """Passes requests on to a dashboard, as its `mood` lets it: well, silent, slow or rubbish."""

    def __init__(self, behind: str, seed: int) -> None:
        """Listen on this machine alone."""
        self.mood = "well"
        chances = random.Random(seed)
        dashboard = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                while dashboard.mood == "silent":
                    time.sleep(0.05)
                if dashboard.mood == "slow":
                    time.sleep(SLOW_S)
                # What is asked is done, but who asked is not told.
                try:
                    status, kind, content = _asked(self, behind, body)
                except requests.RequestException as error:
                    status, kind, content = 502, "text/plain", str(error).encode()
                if dashboard.mood == "rubbish" and chances.random() < 0.5:
                    status, kind, content = chances.choice(RUBBISH)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = _pass_on  # noqa: N815 - so BaseHTTPRequestHandler finds them

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of those who did not wait for their answer: they are killed, or have given up."""


def _asked(request: BaseHTTPRequestHandler, behind: str, body: bytes) -> tuple[int, str, bytes]:
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
    answer = requests.request(
        request.command, behind + request.path, data=body, headers=headers, timeout=PATIENCE_S, allow_redirects=False
    )
    return answer.status_code, answer.headers.get("Content-Type", "text/plain"), answer.content
