"""Read a camera's MJPEG over HTTP (a phone, an ESP32, most IP cameras) without FFmpeg.

Our own reader knows what FFmpeg would hide: the status, the refused password, the web page instead of a stream. And a
picture that is not wanted is never decoded.
"""

import secrets
import socket
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urljoin, urlsplit

import cv2
import numpy as np

from edge.capture import opencv
from edge.capture.auth import answer
from edge.capture.faults import RefusedError, refused, unreachable
from edge.capture.frames import Image
from edge.capture.multipart import MultipartCutter
from edge.capture.opencv import OpenCvConnection
from edge.capture.spec import SourceSpec
from edge.errors import CameraError

_CHUNK_BYTES = 64 * 1024
_RECEIVE_BUFFER_BYTES = 256 * 1024  # what waits in the kernel is delay; 6 MB of it is seconds of small pictures
_MOST_REDIRECTS = 3


class MjpegConnection:
    """One open MJPEG stream. Not for two threads at once.

    Args:
        link: the connection; closed with this object.
        response: its answer, at the start of the body.
        boundary: what separates the pictures.
        silence_s: a stream without a whole picture for so long is over.
        clock: monotonic seconds.
    """

    decoder = "software"

    def __init__(
        self,
        link: HTTPConnection,
        response: HTTPResponse,
        boundary: str,
        silence_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link, self._response, self._silence_s, self._clock = link, response, silence_s, clock
        self._cutter = MultipartCutter(boundary)
        self._waiting: list[bytes] = []
        self._grabbed = b""

    def grab(self) -> bool:
        """Wait for the next picture; False when the stream is over, silent, or no MJPEG."""
        give_up_s = self._clock() + self._silence_s
        try:
            while not self._waiting and self._clock() < give_up_s:
                chunk = self._response.read1(_CHUNK_BYTES)
                if not chunk:
                    return False
                self._waiting += self._cutter.feed(chunk)
        except (OSError, HTTPException, ValueError):
            return False
        if not self._waiting:
            return False
        self._grabbed = self._waiting.pop(0)
        return True

    def retrieve(self) -> Image | None:
        """Decode the grabbed picture to (H, W, 3) uint8 BGR, None when it is damaged."""
        image = cv2.imdecode(np.frombuffer(self._grabbed, np.uint8), cv2.IMREAD_COLOR)
        return None if image is None else image.astype(np.uint8, copy=False)

    def close(self) -> None:
        """Hang up."""
        self._response.close()
        self._link.close()


def open_http(spec: SourceSpec) -> MjpegConnection | OpenCvConnection:
    """Open what an HTTP address offers: MJPEG ourselves, other video (HLS, MP4, FLV) through FFmpeg.

    Raises:
        RefusedError: the camera wants other credentials.
        CameraError: nobody there, an error status, or no video.
    """
    link, response = _get(spec)
    content = response.headers.get_content_type()
    boundary = response.headers.get_param("boundary")
    if content.startswith("multipart/") and isinstance(boundary, str):
        return MjpegConnection(link, response, boundary, spec.silence_s)
    response.close()
    link.close()
    if content in ("text/html", "text/plain", "image/jpeg", "image/png"):
        what = "one picture" if content.startswith("image/") else "a page"
        raise CameraError(
            f"{spec.shown}: answers with {what} ({content}), expected an MJPEG stream; "
            "give the stream's own address (often /video, /mjpeg or /stream)"
        )
    return opencv.open_stream(spec)


def _get(spec: SourceSpec) -> tuple[HTTPConnection, HTTPResponse]:
    url, authorization = spec.address, None
    home = urlsplit(url).netloc
    for _ in range(_MOST_REDIRECTS + 2):
        link, response = _request(spec, url, authorization)
        if response.status == 200:
            return link, response
        challenges = response.headers.get_all("WWW-Authenticate", [])
        target = response.headers.get("Location")
        response.close()
        link.close()
        if response.status in (301, 302, 303, 307, 308) and target:
            url, authorization = urljoin(url, target), None
            continue
        # The password goes to the camera it was configured for, not to where it sends us.
        same = urlsplit(url).netloc == home
        if response.status == 401 and spec.user and same and authorization is None:
            path = _path(url)
            authorization = answer(challenges, spec.user, spec.password or "", "GET", path, secrets.token_hex(8))
            if authorization is not None:
                continue
        if response.status in (401, 403):
            raise RefusedError(refused(spec))
        raise CameraError(f"{spec.shown}: answers with HTTP status {response.status}; check the path of the stream")
    raise CameraError(f"{spec.shown}: redirects in a circle; give the stream's own address")


def _request(spec: SourceSpec, url: str, authorization: str | None) -> tuple[HTTPConnection, HTTPResponse]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CameraError(f"{spec.shown}: redirects to something that is no HTTP address")
    timeout_s = opencv.open_timeout_s(spec) / 5
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    link = kind(parts.hostname, parts.port, timeout=timeout_s)
    headers = {"User-Agent": "facefleet", "Accept": "multipart/x-mixed-replace, */*"}
    if authorization:
        headers["Authorization"] = authorization
    try:
        link.connect()
        wire: socket.socket = link.sock  # `link` lets go of it when the answer has no length
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        link.request("GET", _path(url), headers=headers)
        response = link.getresponse()
        wire.settimeout(spec.silence_s)
        return link, response
    except HTTPException as error:
        link.close()
        raise CameraError(f"{spec.shown}: does not speak HTTP ({type(error).__name__}); is the port right?") from None
    except OSError as error:
        link.close()
        raise CameraError(unreachable(spec.shown, parts.hostname, link.port, error, timeout_s)) from None


def _path(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
