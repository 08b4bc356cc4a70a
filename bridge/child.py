"""A server process of ours that is watched: started, found ready, restarted when it dies, stopped and reaped.

`bridge/local.py` drives it from one thread; nothing here knows what the server is.
"""

import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bridge.errors import LocalError

log = logging.getLogger(__name__)

_LEASH = Path(__file__).with_name("leash.py")


@dataclass(frozen=True, slots=True)
class Program:
    """How to run one server.

    Attributes:
        name: as messages call it.
        argv: the command.
        log_file: where its output is appended; its tail is quoted when it fails.
        ready: true once it serves; asked again and again while the process lives.
        stop_signal: asks it to end cleanly.
        user: system user to run it as; None for ours.
        start_s: how long it may take until it is ready.
        stop_s: how long it may take to end cleanly before it is killed.
    """

    name: str
    argv: Sequence[str]
    log_file: Path
    ready: Callable[[], bool]
    stop_signal: signal.Signals = signal.SIGTERM
    user: str | None = None
    start_s: float = 20.0
    stop_s: float = 10.0


class Child:
    """One running program; `check` brings it back when it died, and gives up loudly when it keeps dying."""

    def __init__(self, program: Program, *, most_restarts: int = 5, within_s: float = 60.0) -> None:
        """Start nothing yet; more than `most_restarts` within `within_s` seconds end in LocalError."""
        self.program = program
        self.restarts = 0
        self._most = most_restarts
        self._within_s = within_s
        self._deaths: list[float] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise LocalError(f"{self.program.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it is ready.

        It runs in a session of its own, so that Ctrl-C in a terminal reaches us alone and we stop it in order. On
        Linux it also gets its stop signal when *this thread* dies, so start it from the thread that stays.

        Raises:
            LocalError: it ended, or was not ready in time; with the last lines it wrote.
        """
        program = self.program
        with program.log_file.open("ab") as output:
            self._process = self._spawn(output)
        end = time.monotonic() + program.start_s
        while time.monotonic() < end:
            if (code := self._process.poll()) is not None:
                self._process = None
                raise LocalError(f"{program.name} ended at once ({_ending(code)}); it said:\n{self.tail()}")
            if program.ready():
                return
            time.sleep(0.04)
        self.stop()
        raise LocalError(f"{program.name} was not ready after {program.start_s:g} s; it said:\n{self.tail()}")

    def check(self) -> bool:
        """Restart the server if it has died; return whether that was so.

        Raises:
            LocalError: it dies too often, or does not come back.
        """
        if self._process is None or (code := self._process.poll()) is None:
            return False
        self._process = None
        now = time.monotonic()
        self._deaths = [t for t in self._deaths if now - t < self._within_s] + [now]
        if len(self._deaths) > self._most:
            raise LocalError(
                f"{self.program.name} died {len(self._deaths)} times within {self._within_s:g} s, the last time by "
                f"{_ending(code)}; it said:\n{self.tail()}"
            )
        log.error("%s died (%s): starting it again", self.program.name, _ending(code))
        self._start_patiently()
        self.restarts += 1
        return True

    def stop(self) -> None:
        """Ask the server to end, wait, kill it if it does not; it is reaped in any case."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(self.program.stop_signal)
        try:
            process.wait(self.program.stop_s)
        except subprocess.TimeoutExpired:
            log.error("%s did not stop within %g s: killing it", self.program.name, self.program.stop_s)
            process.kill()
            process.wait()

    def tail(self, lines: int = 6) -> str:
        """Return the last lines the server wrote, indented."""
        try:
            text = self.program.log_file.read_text(errors="replace")
        except OSError:
            return "  (nothing)"
        return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (nothing)"

    def _spawn(self, output: IO[bytes]) -> "subprocess.Popen[bytes]":
        program = self.program
        path = shutil.which(program.argv[0])
        if path is None:
            raise LocalError(f"{program.name} cannot be run: {program.argv[0]} is no program here")
        account = pwd.getpwnam(program.user) if program.user and os.geteuid() == 0 else None
        ids = (account.pw_uid, account.pw_gid) if account else (-1, -1)
        leash = [sys.executable, "-I", "-S", str(_LEASH), *map(str, (int(program.stop_signal), *ids, os.getpid()))]
        return subprocess.Popen(
            [*leash, path, *program.argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )

    def _start_patiently(self) -> None:
        """Start again; what the dead process left (a port, shared memory) may need a moment to go away."""
        end = time.monotonic() + 10.0
        while True:
            try:
                return self.start()
            except LocalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
