"""A whole centre by one command: it starts, mends what dies, ends without a trace."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bridge.child import Child, Program
from bridge.errors import LocalError
from bridge.local import LOCAL_DATABASE, PARENT
from bridge.local_servers import free_port, mosquitto_config, port_is_taken
from tests.bridge.box import FakeBox, wait_until
from tests.bridge.centre import ROOT, fresh_folder, kill_now
from tests.broker import MOSQUITTO


class LocalProcess:
    """`facefleet-bridge local` as users have it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.ready_file, self._log = folder / "ready.json", folder / "local.log"
        argv = [sys.executable, "-m", "bridge.cli", "local", "--ready-file", str(self.ready_file), *options]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)

    def ready(self) -> dict[str, Any]:
        wait_until(lambda: self.ready_file.exists() or self.process.poll() is not None, 60, "readiness")
        assert self.ready_file.exists(), self.said()
        found: dict[str, Any] = json.loads(self.ready_file.read_text())
        return found

    def children(self) -> dict[str, int]:
        """Return name → pid of the servers it runs."""
        task = Path(f"/proc/{self.process.pid}/task")
        pids = [int(pid) for thread in task.iterdir() for pid in (thread / "children").read_text().split()]
        return {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in pids}

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)

    def said(self) -> str:
        return self._log.read_text()


@contextmanager
def local(folder: Path, *options: str) -> Iterator[LocalProcess]:
    running = LocalProcess(folder, *options)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGTERM)


@pytest.fixture
def folder() -> Iterator[Path]:
    with fresh_folder() as path:
        yield path


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def visits(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute("SELECT count(*) FROM facefleet.visits").fetchone()
    assert row is not None
    return int(row[0])


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
def test_centre_starts_mends_what_is_killed_and_ctrl_c_leaves_nothing(folder: Path) -> None:
    with local(folder) as centre:
        ready = centre.ready()
        assert ready["database"] == str(LOCAL_DATABASE)
        assert Path(ready["data"]).parent == PARENT
        with FakeBox(ready["port"], stream=91, protocol=ready["protocol"]) as box:
            box.birth()
            for name in ("broker", "postgres"):
                box.send(5)
                before = centre.children()
                victim = next(pid for comm, pid in before.items() if (comm == "postgres") == (name == "postgres"))
                kill_now(victim)
                wait_until(lambda pid=victim: not alive(pid))  # type: ignore[misc]
                wait_until(lambda: len(centre.children()) == 2)
                box.send(5)
            wait_until(lambda: box.link.connected)
            box.settle(timeout_s=60)
            assert visits(ready["dsn"]) == box.sent
        children = centre.children()
        assert centre.end(signal.SIGINT) == 0
        assert not any(alive(pid) for pid in children.values())
        assert not Path(ready["data"]).exists()
        assert not centre.ready_file.exists()
        said = centre.said()
        assert f"mqtt://127.0.0.1:{ready['port']}" in said
        assert "died (signal SIGKILL): starting it again" in said
        assert "Traceback" not in said


@linux
def test_data_folder_is_kept_and_continued_even_after_sigkill_of_all_of_it(folder: Path) -> None:
    data = folder / ("a-folder-with-a-long-name-" * 4) / "centre"  # too long for a socket path
    with local(folder, "--data", str(data)) as centre:
        ready = centre.ready()
        with FakeBox(ready["port"], stream=92, protocol=ready["protocol"]) as box:
            box.send(5)
            box.settle(every_s=10)
        children = centre.children()
        centre.end(signal.SIGKILL)
        wait_until(lambda: not any(alive(pid) for pid in children.values()), what="the servers' end")
    centre.ready_file.unlink()
    with local(folder, "--data", str(data), "--broker", "amqtt") as centre:
        ready = centre.ready()
        assert (ready["broker"], ready["protocol"]) == ("amqtt", "3.1.1")
        assert visits(ready["dsn"]) == 5
        with FakeBox(ready["port"], stream=93, protocol="3.1.1") as box:
            box.send(5)
            box.settle(every_s=10)
        assert visits(ready["dsn"]) == 10
        assert centre.end(signal.SIGTERM) == 0
    assert data.is_dir()


def test_taken_port_is_told_before_anything_starts(folder: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), local(folder, "--port", str(port)) as centre:
        assert centre.process.wait(30) == 1
        assert f"port {port} is in use; give another --port" in centre.said()
        assert "Traceback" not in centre.said()


def test_data_that_is_a_file_is_one_message(folder: Path) -> None:
    (folder / "file").write_text("")
    with local(folder, "--data", str(folder / "file")) as centre:
        assert centre.process.wait(30) == 1
        assert centre.said().count("\n") == 1
        assert "cannot be made" in centre.said()


@linux
def test_ctrl_c_while_starting_leaves_nothing(folder: Path) -> None:
    with local(folder, "--data", str(folder / "centre")) as centre:
        wait_until(lambda: bool(centre.children()), what="initdb or the server")
        assert centre.end(signal.SIGINT) == 0
        assert "Traceback" not in centre.said()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # ended meanwhile
            assert str(folder).encode() not in path.read_bytes()


def program(folder: Path, argv: list[str], *, ready: bool = True) -> Program:
    return Program("the thing", argv, folder / "log", lambda: ready, start_s=0.5, stop_s=0.5)


def test_child_that_cannot_run_or_ends_at_once_or_is_never_ready_says_so(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="the thing cannot be run: /nowhere is no program here"):
        Child(program(tmp_path, ["/nowhere"])).start()
    with pytest.raises(LocalError, match=r"ended at once \(exit status 3\); it said:\n  because"):
        Child(program(tmp_path, ["/bin/sh", "-c", "echo because; exit 3"], ready=False)).start()
    with pytest.raises(LocalError, match=r"was not ready after 0\.5 s"):
        Child(program(tmp_path, ["/bin/sleep", "30"], ready=False)).start()


def test_child_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    child = Child(program(tmp_path, ["/bin/sleep", "30"]), most_restarts=2)
    child.start()
    for _ in range(2):
        kill_now(child.pid)
        wait_until(child.check)
    kill_now(child.pid)
    with pytest.raises(LocalError, match="died 3 times within 60 s, the last time by signal SIGKILL"):
        wait_until(child.check)
    child.stop()


def test_child_that_ignores_its_stop_signal_is_killed_and_reaped(tmp_path: Path) -> None:
    child = Child(program(tmp_path, ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]))
    child.start()
    time.sleep(0.2)
    pid = child.pid
    child.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(MOSQUITTO is None, reason="Mosquitto is not installed")
def test_shipped_mosquitto_config_is_accepted_and_has_the_settings_of_the_embedded_one(folder: Path) -> None:
    def settings(text: str) -> dict[str, str]:
        lines = [line.split("#")[0].split(None, 1) for line in text.splitlines() if line.split("#")[0].strip()]
        return {name: value.strip() for name, value in lines}

    shipped = (ROOT / "config/mosquitto.conf").read_text()
    ours, theirs = settings(mosquitto_config(1883, folder)), settings(shipped)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {"persistence_location"}
    port = free_port()
    config = folder / "m.conf"
    config.write_text(shipped.replace("1883", str(port)).replace("/var/lib/mosquitto/", f"{folder}/"))
    assert MOSQUITTO is not None
    child = Child(Program("Mosquitto", [MOSQUITTO, "-c", str(config)], folder / "log", lambda: port_is_taken(port)))
    child.start()
    child.stop()
