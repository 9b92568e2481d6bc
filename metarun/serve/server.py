"""The HTTP server of ``metarun serve``: the page, what it says of the learner, and predictions."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from metarun.errors import RunFailed, UserError, shortened
from metarun.escape import printable
from metarun.serve.answers import ACCEPTED, Answers
from metarun.strict_json import dumps

log = logging.getLogger("metarun")
FILES = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript"),
         "/page.css": ("page.css", "text/css")}  # fmt: skip
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
AT_ONCE = 8
"""Largest number of requests that are answered at a time."""
LINGER, CHUNK, DISCARDED = 0.5, 1 << 16, 1 << 20
"""Seconds, and bytes at a time and in all, for which a refused upload is discarded before the connection ends."""
SECONDS = 30
"""Seconds that a client may take to send a part of its request."""


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        message: Reason, one line.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """The server of one learner.

    Args:
        host: Address to listen at.
        port: Port; 0 for any free one.
        answers: Predictions of the learner.
        limit: Largest size of an upload in bytes.

    Raises:
        UserError: The address cannot be used.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, answers: Answers, limit: int) -> None:
        self.answers, self.limit = answers, limit
        self.places = threading.BoundedSemaphore(AT_ONCE)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--host {host} --port {port}: cannot listen there ({reason})") from None
        self.is_local = is_loopback(host)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a connection that broke."""
        log.debug("connection of %s broke", client_address, exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection. It reads nothing that is too large or of another type."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "metarun", ""
    timeout = SECONDS

    def do_GET(self) -> None:
        """Send a file of the page, or the facts on the learner."""
        try:
            self._check_sender()
            place = address(self.path).path
            if place == "/about":
                about = {**self.server.answers.about(), "limit": self.server.limit}
                self._send(HTTPStatus.OK, dumps(about).encode(), "application/json")
            elif place in FILES:
                name, kind = FILES[place]
                self._send(HTTPStatus.OK, Path(__file__).with_name(name).read_bytes(), kind)
            else:
                raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        except Refused as error:
            self._refuse(error)

    def do_POST(self) -> None:
        """Predict what was sent to ``/predict``."""
        try:
            size = self._check_upload()
            if not self.server.places.acquire(blocking=False):
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at a time; try again")
            try:
                body = self.rfile.read(size)
                if len(body) < size:
                    raise Refused(HTTPStatus.BAD_REQUEST, "the upload ended early")
                found = self.server.answers.predict(body)
            finally:
                self.server.places.release()
            self._send(HTTPStatus.OK, dumps(found).encode(), "application/json")
        except Refused as error:
            self._refuse(error)
        except (UserError, RunFailed, TypeError) as error:
            self._refuse(Refused(HTTPStatus.UNPROCESSABLE_ENTITY, shortened(error, 300)), read=True)

    def handle_expect_100(self) -> bool:
        """Ask for the body only if it will be read."""
        try:
            self._check_upload()
        except Refused as error:
            self._refuse(error)
            return False
        return super().handle_expect_100()

    def _check_upload(self) -> int:
        """Return the size of the upload, of which nothing has been read; raises :class:`Refused`."""
        self._check_sender()
        if address(self.path).path != "/predict":
            raise Refused(HTTPStatus.NOT_FOUND, "predictions are at /predict")
        modality, limit = self.server.answers.modality, self.server.limit
        size = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (size.isascii() and size.isdigit()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the upload does not say its size (Content-Length)")
        if len(size) > 15 or int(size) > limit:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the upload has {shortened(size, 20)} bytes; at most {limit:,} are read",
            )
        kind = self.headers.get_content_type()
        if kind not in ACCEPTED[modality]:
            allowed = ", ".join(ACCEPTED[modality])
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"{shortened(kind, 60)} is not read; allowed: {allowed}")
        return int(size)

    def _check_sender(self) -> None:
        """Refuse requests of other web pages: those to another name of this machine, or with another origin."""
        host = self.headers.get("Host", "")
        name = address(f"//{host}").hostname or ""
        if self.server.is_local and not (name == "localhost" or is_loopback(name)):
            raise Refused(HTTPStatus.FORBIDDEN, f"this server is not called {shortened(host, 60)}")
        origin = self.headers.get("Origin")
        if origin is not None and address(origin).netloc != host:
            raise Refused(HTTPStatus.FORBIDDEN, f"requests of {shortened(origin, 60)} are not answered")

    def _refuse(self, error: Refused, read: bool = False) -> None:
        """Send the reason. The connection is closed unless the whole request was ``read``."""
        self.close_connection = self.close_connection or not read
        log.info("refused: %s", error)
        self._send(error.status, json.dumps({"error": printable(error)}).encode(), "application/json")
        if not read:
            self._let_go()

    def _let_go(self) -> None:
        """Discard what the client still sends for a moment, so that the reason reaches it before the end."""
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER)
            for _ in range(DISCARDED // CHUNK):
                if not self.connection.recv(CHUNK):
                    break

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            if self.close_connection:
                self.send_header("Connection", "close")
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, form: str, *values: Any) -> None:
        """Log a request for ``-v``."""
        log.debug("%s", printable(form % values))


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def address(text: str) -> SplitResult:
    """Return the parts of an address that a client sent; raises :class:`Refused` for one that is none."""
    try:
        return urlsplit(text)
    except ValueError:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{shortened(text, 60)} is no address") from None
