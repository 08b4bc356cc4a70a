"""RTSP cameras that cost next to nothing: a server that sends files encoded before, one address per file.

Two halves, as in `tests.rtsp_server`: `FileCameras` is what the benchmark uses; `serve` runs under the interpreter
that has GStreamer's Python binding.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self


class FileCameras:
    """A server with one live stream per MP4 file (H.264); whoever joins later sees what the others see."""

    def __init__(self, python: str, files: Sequence[Path], port: int) -> None:
        """Remember what to serve.

        Args:
            python: an interpreter with GStreamer's RTSP server.
            files: each as long as the benchmark takes; a stream ends with its file.
            port: free.
        """
        self.urls = [f"rtsp://127.0.0.1:{port}/cam{i}" for i in range(len(files))]
        self._command = [python, __file__, str(port), *map(str, files)]
        self._process: subprocess.Popen[str] | None = None

    def cpu_s(self) -> float:
        """Return the processor time the server has used."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if line != "ready":
            self._process.kill()
            raise RuntimeError(f"the RTSP server did not start: {line!r}")
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def serve(argv: list[str]) -> int:
    """Serve files until killed, or until whoever started us is gone."""
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(argv[0])
    for i, file in enumerate(argv[1:]):
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(
            f"( filesrc location={file} ! qtdemux ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
        )
        factory.set_shared(True)
        server.get_mount_points().add_factory(f"/cam{i}", factory)
    if server.attach(None) == 0:
        print(f"port {argv[0]} is taken", flush=True)
        return 1
    loop = GLib.MainLoop()
    GLib.io_add_watch(sys.stdin, GLib.IO_HUP, lambda *_: loop.quit())
    print("ready", flush=True)
    loop.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(serve(sys.argv[1:]))
