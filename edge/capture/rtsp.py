"""Ask an RTSP camera why it does not open.

FFmpeg's binding says "not opened" and no more; one DESCRIBE over a socket of our own tells a refused password from a
wrong path, a closed port or a silent host. It opens no session on the camera. An answer that proves nothing is no
error.

Source: RFC 2326 (RTSP), section 10.2.
"""

import secrets
import socket
from email.message import Message
from http.client import HTTPException, parse_headers
from urllib.parse import urlsplit

from edge.capture.auth import answer
from edge.capture.faults import RefusedError, refused, unreachable
from edge.capture.spec import SourceSpec
from edge.errors import CameraError

_LONGEST_BYTES = 64 * 1024


def ask(spec: SourceSpec, timeout_s: float) -> None:
    """Raise when the camera is certainly not going to stream.

    Args:
        spec: an RTSP source; rtsps is left to FFmpeg.
        timeout_s: for the connection and for each answer.

    Raises:
        RefusedError: the camera wants other credentials.
        CameraError: nobody there, nobody answers, or no such stream.
    """
    parts = urlsplit(spec.location)
    if parts.scheme.lower() != "rtsp":
        return
    host, port = parts.hostname or "", parts.port or 554
    try:
        with socket.create_connection((host, port), timeout_s) as link:
            status, headers = _describe(link, spec.address, 1, None)
            if status == 401 and spec.user:
                challenges = headers.get_all("WWW-Authenticate", [])
                reply = answer(
                    challenges, spec.user, spec.password or "", "DESCRIBE", spec.address, secrets.token_hex(8)
                )
                if reply is None:
                    return
                status, _ = _describe(link, spec.address, 2, reply)
    except (ConnectionResetError, BrokenPipeError, EOFError, ValueError, HTTPException):
        return  # it hung up on us: some do between two requests
    except OSError as error:
        raise CameraError(unreachable(spec.shown, host, port, error, timeout_s)) from None
    if status in (401, 403):
        raise RefusedError(refused(spec))
    if status in (404, 454, 410):
        raise CameraError(
            f"{spec.shown}: the camera has no stream at this path (RTSP {status}); look up the path in its manual"
        )


def _describe(link: socket.socket, url: str, cseq: int, authorization: str | None) -> tuple[int, Message]:
    lines = [f"DESCRIBE {url} RTSP/1.0", f"CSeq: {cseq}", "Accept: application/sdp", "User-Agent: facefleet"]
    if authorization:
        lines.append(f"Authorization: {authorization}")
    link.sendall("\r\n".join([*lines, "", ""]).encode())
    with link.makefile("rb") as stream:
        words = stream.readline(_LONGEST_BYTES).split()
        if not words:
            raise EOFError
        if len(words) < 2 or not words[0].startswith(b"RTSP/"):
            raise ValueError("not RTSP")
        headers = parse_headers(stream)
        stream.read(min(int(headers.get("Content-Length", 0)), _LONGEST_BYTES))
    return int(words[1]), headers
