"""The two programs a demo runs: the local centre, and the box. Each ends with the demo, however that ends."""

import json
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from bridge.child import Child, Program


def centre(data: Path, port: int, log: Path, ready_file: Path, *, broker: str | None = None) -> Child:
    """Return `facefleet-bridge local` as a child that can be started again on the same data and port.

    Args:
        data: Folder of database and broker.
        port: Of the broker.
        log: What it says goes here.
        ready_file: Where it writes one line of JSON once events can flow.
        broker: Which one; None takes the better that is installed.
    """
    argv = [sys.executable, "-m", "bridge.cli", "local", "--data", str(data), "--port", str(port)]
    argv += ["--ready-file", str(ready_file)]
    argv += ["--broker", broker] if broker else []

    def ready() -> bool:
        told = read_ready(ready_file)
        return told is not None and told["pid"] == child.pid  # not what one that was killed left behind

    child = Child(Program("facefleet-bridge local", argv, log, ready, signal.SIGTERM, start_s=90.0, stop_s=40.0))
    return child


def read_ready(path: Path) -> dict[str, Any] | None:
    """Return what a centre wrote to its ready file, None while it has not."""
    try:
        ready: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return ready


class BoxProcess:
    """`python -m demo.box`: its news, and its end; our death is its end too."""

    def __init__(self, config: Path, log: Path, *, video: Path | None, live: bool) -> None:
        argv = [sys.executable, "-m", "demo.box", str(config)]
        argv += ["--video", str(video)] if video else []
        argv += ["--live"] if live else []
        self.news: dict[str, Any] = {}
        self._log, self._asked = log, False
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, start_new_session=True
            )
        self._reader = threading.Thread(target=self._read, name="box-news", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    def wait(self, timeout_s: float) -> int | None:
        """Return how it ended, as `subprocess` numbers it, or None while it runs on."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(5.0)
        return code

    def ask_to_end(self) -> None:
        """Let it end its visits and deliver; returns at once."""
        if not self._asked and self._process.stdin is not None:
            self._asked = True
            with suppress(OSError):  # it is gone already
                self._process.stdin.write(b"end\n")
                self._process.stdin.flush()

    def close(self, grace_s: float = 45.0) -> int:
        """Ask, wait, kill if need be; it is reaped in any case."""
        self.ask_to_end()
        code = self.wait(grace_s)
        if code is None:
            self._process.kill()
            code = self._process.wait()
        self._reader.join(5.0)
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        return code

    def tail(self, lines: int = 6) -> str:
        """Return the last lines it wrote to its log."""
        text = self._log.read_text(errors="replace") if self._log.is_file() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self.news = self.news | json.loads(line)
            except ValueError:  # a library that prints
                continue
