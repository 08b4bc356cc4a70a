"""Keeps OpenVINO's converter and NNCF from reporting to their makers: they do unless told not to, and fork to do it.

`ov.convert_model` tells Google Analytics of every conversion, without asking. It does so by forking this process from a
thread while torch, OpenVINO and onnxruntime have threads of their own running; the fork was seen to die of a
segmentation fault inside the resolver, and waits three seconds where there is no network.
"""

from typing import Any


def forbid() -> None:
    """Make every report of this process go nowhere; may be called at any time and more than once."""
    try:
        from openvino_telemetry.utils.sender import TelemetrySender  # type: ignore[import-untyped]
    except ImportError:  # not installed, so nobody reports
        return
    TelemetrySender.send = _nothing


def _nothing(*_: Any) -> None:
    """Send nothing."""
