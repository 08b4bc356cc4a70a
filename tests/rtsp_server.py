"""A real RTSP camera for tests: GStreamer's server in a process of its own, to be killed, frozen and restarted.

The file has two halves. `RtspServer` is what tests use; `serve` runs under the interpreter that has GStreamer's Python
binding (Debian: gir1.2-gst-rtsp-server-1.0, python3-gi, gstreamer1.0-plugins-{base,good,bad,ugly}), usually
/usr/bin/python3.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import socket
import subprocess
import sys
from typing import Any, Self

NEEDED = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"


@functools.cache
def interpreter() -> str | None:
    """Return a Python that can import GStreamer's RTSP server, or None where there is none."""
    for python in ("/usr/bin/python3", sys.executable):
        try:
            subprocess.run([python, "-c", NEEDED], check=True, capture_output=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            continue
        return python
    return None


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RtspServer:
    """One camera at `url`: start, kill with SIGKILL, freeze with SIGSTOP, start again on the same port.

    Args:
        size: width and height, pixels.
        fps: frames a second.
        user, password: asked for by the camera when a user is given.
        auth: "digest" or "basic".
        codec: "h264" or "jpeg".
    """

    def __init__(
        self,
        size: tuple[int, int] = (320, 240),
        fps: int = 25,
        user: str = "",
        password: str = "",
        auth: str = "digest",
        codec: str = "h264",
    ) -> None:
        self.size, self.fps, self.user, self.password, self.auth, self.codec = size, fps, user, password, auth, codec
        self.port = free_port()
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """The address without user and password."""
        return f"rtsp://127.0.0.1:{self.port}/cam"

    def start(self) -> None:
        """Start the server and return once it listens."""
        python = interpreter()
        assert python, "no Python with GStreamer's RTSP server"
        command = [python, __file__, "--port", str(self.port), "--size", "{}x{}".format(*self.size)]
        command += ["--fps", str(self.fps), "--user", self.user, "--auth", self.auth, "--codec", self.codec]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CAMERA_PASSWORD": self.password},
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line == "ready", f"the RTSP server did not start: {line!r}"

    def resize(self, width: int, height: int) -> None:
        """Change the resolution (pixels) in the middle of the stream."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{width} {height}\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """End the server at once: no TEARDOWN, no goodbye."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(timeout=10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None

    def freeze(self) -> None:
        """Stop the server without closing a connection: a camera that hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()


def serve(argv: list[str] | None = None) -> int:
    """Run one camera until killed; each line "WIDTH HEIGHT" on stdin changes the resolution."""
    import gi  # type: ignore[import-untyped,import-not-found,unused-ignore]

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtsp", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
        GLib,
        Gst,
        GstRtsp,
        GstRtspServer,
    )

    parser = argparse.ArgumentParser(description=serve.__doc__)
    parser.add_argument("--port", default="8554")
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--user", default="")
    parser.add_argument("--auth", choices=["basic", "digest"], default="digest")
    parser.add_argument("--codec", choices=["h264", "jpeg"], default="h264")
    args = parser.parse_args(argv)
    width, height = args.size.split("x")

    def caps(width: str, height: str) -> str:
        return f"video/x-raw,width={width},height={height},framerate={args.fps}/1"

    Gst.init(None)
    encode = {
        "h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! h264parse ! "
        "rtph264pay name=pay0 pt=96 config-interval=-1",
        "jpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
    }[args.codec]
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f"( videotestsrc is-live=true pattern=ball ! capsfilter name=size caps={caps(width, height)} ! {encode} )"
    )
    factory.set_shared(True)
    medias: list[Any] = []
    factory.connect("media-configure", lambda _factory, media: medias.append(media))
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(args.port)
    server.get_mount_points().add_factory("/cam", factory)
    if args.user:
        auth = GstRtspServer.RTSPAuth()
        method = {"basic": GstRtsp.RTSPAuthMethod.BASIC, "digest": GstRtsp.RTSPAuthMethod.DIGEST}[args.auth]
        auth.set_supported_methods(method)
        token = GstRtspServer.RTSPToken()
        token.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "viewer")
        password = os.environ.get("CAMERA_PASSWORD", "")
        if args.auth == "digest":
            auth.add_digest(args.user, password, token)
        else:
            auth.add_basic(GstRtspServer.RTSPAuth.make_basic(args.user, password), token)
        server.set_auth(auth)
        role = Gst.Structure.new_from_string("viewer,media.factory.access=true,media.factory.construct=true")
        factory.add_role_from_structure(role[0] if isinstance(role, tuple) else role)  # 1.22 and earlier: a tuple
    if server.attach(None) == 0:
        print(f"port {args.port} is taken", flush=True)
        return 1
    loop = GLib.MainLoop()

    def resize(stream: Any, _condition: Any) -> bool:
        words = stream.readline().split()
        if len(words) != 2:  # the test that started us is gone
            loop.quit()
            return False
        for media in medias:
            element = media.get_element().get_by_name("size")
            if element is not None:
                element.set_property("caps", Gst.Caps.from_string(caps(*words)))
        return True

    GLib.io_add_watch(sys.stdin, GLib.IO_IN | GLib.IO_HUP, resize)
    print("ready", flush=True)
    loop.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(serve())
