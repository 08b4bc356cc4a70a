"""The real product in a test: `facefleet-bridge local` and boxes as processes of their own, that can be killed."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from bridge.local import LOCAL_DATABASE


def wait_for(what: str, probe: Callable[[], Any], timeout_s: float = 60.0, every_s: float = 0.1) -> Any:
    """Return the first true answer of `probe`; fail with `what` when none comes in time."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if answer := probe():
            return answer
        time.sleep(every_s)
    raise AssertionError(f"{what}: not within {timeout_s:g} s")


@dataclass
class Process:
    """A process of the product; its output is kept in a file for the message of a failing test."""

    command: list[str]
    log: Path
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> "Process":
        with self.log.open("ab") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", *self.command], stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        return self

    def kill(self) -> None:
        """SIGKILL: no last words."""
        assert self.popen is not None
        self.popen.kill()
        self.popen.wait(10)

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, as systemd would."""
        assert self.popen is not None
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout_s)

    def wait(self, timeout_s: float) -> int:
        assert self.popen is not None
        return self.popen.wait(timeout_s)

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Centre:
    """`facefleet-bridge local` in a folder of its own."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder, self.ready_file = folder, logs / "ready.json"
        command = ["bridge.cli", "local", "--data", str(folder), "--ready-file", str(self.ready_file)]
        self.process = Process(command, logs / "centre.log")
        self.port = 0

    def start(self) -> "Centre":
        self.ready_file.unlink(missing_ok=True)
        if self.port and "--port" not in self.process.command:
            self.process.command += ["--port", str(self.port)]
        self.process.start()
        wait_for(
            f"the centre ({self.process.log})",
            lambda: (self.ready_file.exists() and self.ready_file.read_text()) or self._died(),
        )
        self.ready = json.loads(self.ready_file.read_text())
        self.port = self.ready["port"]
        return self

    def _died(self) -> None:
        if not self.process.running:
            raise AssertionError(f"the centre ended:\n{self.process.text()[-3000:]}")

    def rows(self, query: str, *args: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.ready["dsn"]) as connection:
            return connection.execute(query, args).fetchall()

    def children(self, name: str) -> list[int]:
        """Return the process ids of the embedded servers called `name` (postgres, mosquitto, …)."""
        assert self.process.popen is not None
        out = subprocess.run(["ps", "-eo", "pid,sid,ppid,args"], capture_output=True, text=True, check=True).stdout
        lines = [line.split(None, 3) for line in out.splitlines()[1:]]
        family = {self.process.popen.pid}
        for _ in range(6):
            family |= {int(pid) for pid, _, parent, _ in lines if int(parent) in family}
        return [int(pid) for pid, _, _, args in lines if int(pid) in family and name in args.split()[0]]


@contextmanager
def centre(folder: Path, logs: Path) -> Iterator[Centre]:
    """Run an embedded centre; stop it and whatever it started at the end."""
    made = Centre(folder, logs)
    try:
        yield made.start()
    finally:
        if made.process.popen is not None:
            with suppress(subprocess.TimeoutExpired):
                made.process.stop()
            with suppress(ProcessLookupError):
                os.killpg(made.process.popen.pid, signal.SIGKILL)
            made.process.popen.wait(10)


def box_yaml(folder: Path, port: int, source: str, **more: Any) -> Path:
    """Write a box's config; JSON is YAML too."""
    config: dict[str, Any] = {
        "site": "demo",
        "box": "lobby-1",
        "database": str(LOCAL_DATABASE),
        "state_dir": str(folder / "state"),
        "mqtt": {"host": "127.0.0.1", "port": port},
        "presence_s": 5,
        "cameras": [{"id": "door", "source": {"uri": source}}],
    }
    path = folder / "box.yaml"
    path.write_text(json.dumps(config | more))
    return path


def accepted(state: Path) -> dict[int, int]:
    """Return how many events the outbox file says it accepted, by stream: an observer outside the code under test."""
    with sqlite3.connect(f"file:{state / 'outbox.db'}?mode=ro", uri=True) as file:
        return dict(
            file.execute(
                "SELECT streams.stream, max(batches.last) FROM streams "
                "JOIN batches ON batches.key >> 40 = streams.place GROUP BY streams.stream"
            )
        )


def arrived(made: Centre) -> dict[int, int]:
    """Return how many different events the database holds, by stream."""
    query = """SELECT stream, count(DISTINCT seq) FROM facefleet.batches,
               generate_series(first_seq, last_seq) AS seq GROUP BY stream"""
    return {int(stream): int(count) for stream, count in made.rows(query)}


def written_twice(made: Centre) -> list[tuple[Any, ...]]:
    """Return events that are in more than one batch row, and visits told twice: both must be empty."""
    return made.rows(
        """SELECT stream, seq, count(*) FROM facefleet.batches, generate_series(first_seq, last_seq) AS seq
           GROUP BY stream, seq HAVING count(*) > 1"""
    ) + made.rows(
        "SELECT stream, camera_id, track, count(*) FROM facefleet.visits GROUP BY 1, 2, 3 HAVING count(*) > 1"
    )
