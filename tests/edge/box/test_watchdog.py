"""The service manager hears from the box over a real datagram socket."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.box.watchdog import Loop, Notifier, stuck


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address)
        server.settimeout(2)
        yield server, address


def test_life_is_told_in_the_words_systemd_knows(manager: tuple[socket.socket, str]) -> None:
    server, address = manager
    notifier = Notifier(address)
    notifier.extend_timeout(30)
    notifier.ready("2 cameras")
    notifier.alive()
    notifier.stopping()
    heard = [server.recv(4096).decode() for _ in range(4)]
    assert heard == ["EXTEND_TIMEOUT_USEC=30000000", "READY=1\nSTATUS=2 cameras", "WATCHDOG=1", "STOPPING=1"]


def test_an_abstract_socket_is_found() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind("\0facefleet-test")
        server.settimeout(2)
        Notifier("@facefleet-test").alive()
        assert server.recv(100) == b"WATCHDOG=1"


def test_without_a_manager_nothing_is_said_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().alive()
    Notifier(str(tmp_path / "gone")).ready("ok")
    assert Notifier().watchdog_s is None


def test_the_watchdog_period_is_only_ours_when_the_pid_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert Notifier("").watchdog_s == 30.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notifier("").watchdog_s is None


def test_a_loop_that_stopped_turning_is_named() -> None:
    loops = [Loop("camera door", 100.0), Loop("publisher", 70.0)]
    assert stuck(loops, now_s=105.0, limit_s=20.0) == ["publisher"]
    assert stuck(loops, now_s=80.0, limit_s=20.0) == []
