"""A real HTTP MJPEG camera for tests, in this process: stops, comes back on the same port, falls silent, resizes."""

from __future__ import annotations

import hashlib
import secrets
import socket
import threading
import time
from base64 import b64encode
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np

BOUNDARY = "frame-edge"


def picture(number: int, size: tuple[int, int]) -> bytes:
    """Return a JPEG of `size` (width, height) whose grey value tells its number modulo 256."""
    width, height = size
    return cv2.imencode(".jpg", np.full((height, width, 3), number % 256, np.uint8))[1].tobytes()


class MjpegServer:
    """One camera at `url`.

    Attributes:
        size: width and height, pixels; may be changed while it streams.
        silent: True while it keeps connections open and sends nothing.
        damaged: True while it sends bytes that are no JPEG.

    Args:
        fps: pictures a second.
        user, password: asked for when a user is given.
        auth: "basic", "digest", or "query": wanted as `?user=…&password=…` and nowhere else.
        content_length: say the length of each part, as most cameras do.
        content_type: what to answer instead of an MJPEG stream.
    """

    def __init__(
        self,
        fps: float = 25.0,
        size: tuple[int, int] = (64, 48),
        user: str = "",
        password: str = "",
        auth: str = "basic",
        content_length: bool = True,
        content_type: str = f"multipart/x-mixed-replace; boundary=--{BOUNDARY}",
    ) -> None:
        self.fps, self.size, self.user, self.password, self.auth = fps, size, user, password, auth
        self.content_length, self.content_type = content_length, content_type
        self.silent = self.damaged = False
        self.requests = 0
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        self._links: set[socket.socket] = set()

    @property
    def url(self) -> str:
        """The address without user and password."""
        return f"http://127.0.0.1:{self.port}/video"

    def start(self) -> None:
        """Listen; on the same port as before, if there was a before."""
        camera = self

        class Handler(_Handler):
            server_camera = camera

        self._server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Drop every connection and stop listening."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        for link in list(self._links):
            # The stream's thread may have closed it in this very moment.
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def admits(self, authorization: str, method: str, path: str) -> bool:
        """Return whether a request with this Authorization header and path may watch."""
        if not self.user:
            return True
        if self.auth == "query":
            return parse_qs(urlsplit(path).query) == {"user": [self.user], "password": [self.password]}
        if self.auth == "basic":
            return authorization == "Basic " + b64encode(f"{self.user}:{self.password}".encode()).decode()
        fields = dict(pair.partition("=")[::2] for pair in authorization.removeprefix("Digest ").split(", "))
        said = {name: value.strip('"') for name, value in fields.items()}
        ha1, ha2 = _md5(f"{self.user}:camera:{self.password}"), _md5(f"{method}:{said.get('uri')}")
        middle = ":".join(said.get(key, "") for key in ("nonce", "nc", "cnonce", "qop"))
        return said.get("response") == _md5(f"{ha1}:{middle}:{ha2}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up; that is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server_camera: MjpegServer

    def do_GET(self) -> None:
        camera = self.server_camera
        camera.requests += 1
        if not camera.admits(self.headers.get("Authorization", ""), "GET", self.path):
            self.send_response(401)
            if camera.auth == "query":
                self.end_headers()
                return
            offer = f'Digest realm="camera", nonce="{secrets.token_hex(8)}", qop="auth"'
            self.send_header("WWW-Authenticate", 'Basic realm="camera"' if camera.auth == "basic" else offer)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", camera.content_type)
        self.end_headers()
        camera._links.add(self.connection)
        try:
            self._stream(camera)
        finally:
            camera._links.discard(self.connection)

    def _stream(self, camera: MjpegServer) -> None:
        number = 0
        while camera._server is not None:
            time.sleep(1.0 / camera.fps)
            if camera.silent:
                continue
            body = b"no picture" if camera.damaged else picture(number, camera.size)
            length = f"Content-Length: {len(body)}\r\n" if camera.content_length else ""
            self.wfile.write(f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\n{length}\r\n".encode() + body + b"\r\n")
            number += 1

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()
