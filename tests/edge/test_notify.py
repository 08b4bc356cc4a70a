"""The service manager hears from box and bridge over a real datagram socket."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge import notify
from edge.notify import Notifier


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


def test_more_time_is_asked_for_until_the_models_are_compiled(
    manager: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, address = manager
    monkeypatch.setattr(notify, "MORE_S", 0.15)
    with Notifier(address).taking_long():
        heard = [server.recv(4096) for _ in range(3)]
    assert heard == [b"EXTEND_TIMEOUT_USEC=150000"] * 3
    server.settimeout(0.3)
    with pytest.raises(TimeoutError):
        drain(server)


def test_a_compiler_that_hangs_is_not_waited_for_for_ever(
    manager: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, address = manager
    monkeypatch.setattr(notify, "MORE_S", 0.03)
    server.settimeout(0.3)
    with Notifier(address).taking_long(at_most_s=0.1), pytest.raises(TimeoutError):
        drain(server)


def drain(server: socket.socket) -> None:
    while True:
        server.recv(4096)
