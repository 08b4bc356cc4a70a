"""What a person reads when a camera cannot be reached; no sentence names a credential."""

import socket

from edge.capture.spec import SourceSpec
from edge.errors import CameraError


class RefusedError(CameraError):
    """The camera is there and does not accept the user and password."""


def refused(spec: SourceSpec) -> str:
    """Return what to tell a person whose credentials the camera did not take; names neither of them."""
    if spec.user:
        return f"{spec.shown}: authentication refused; check the user and the credential this camera names"
    return f"{spec.shown}: authentication refused: the camera wants a user and a password, none is configured"


def unreachable(shown: str, host: str, port: int, error: OSError, timeout_s: float) -> str:
    """Return what to tell a person about a connection that was not made."""
    match error:
        case socket.gaierror():
            return f"{shown}: no host is called {host!r}; check the name, or use the camera's IP address"
        case TimeoutError():
            return f"{shown}: no answer from {host}:{port} within {timeout_s:g} s; is the camera on and reachable?"
        case ConnectionRefusedError():
            return f"{shown}: connection refused: nothing listens at {host}:{port}; is the camera's stream switched on?"
        case _:
            return f"{shown}: cannot reach {host}:{port}: {error.strerror or type(error).__name__}"
