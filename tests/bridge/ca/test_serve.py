"""What `ca serve` does without a broker: it has the broker told, and does not give up where that fails."""

import logging
import shlex
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from bridge.ca import authority, serve
from bridge.ca.authority import Authority
from bridge.ca.names import parse_name


class Reloads:
    """A command that fails until it is mended, and the clock of those who run it."""

    def __init__(self, folder: Path) -> None:
        self.calls, self.mended, self.now_s = folder / "calls", folder / "mended", 0.0
        self.calls.write_text("")
        script = f"import pathlib, sys; open({str(self.calls)!r}, 'a').write('x'); "
        script += f"sys.exit(0 if pathlib.Path({str(self.mended)!r}).exists() else 'no such unit')"
        self.command = shlex.join([sys.executable, "-c", script])

    @property
    def count(self) -> int:
        return len(self.calls.read_text())


@pytest.fixture
def reloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reloads:
    made = Reloads(tmp_path)
    monkeypatch.setattr(serve, "time", SimpleNamespace(monotonic=lambda: made.now_s))
    return made


@pytest.fixture
def there(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "ca", ["localhost"], 8883, tmp_path / "broker", authority.now())


@pytest.fixture
def look(there: Authority, reloads: Reloads) -> Callable[[], None]:
    """Return one turn of `ca serve`, as far as the broker is concerned."""
    broker = serve._Broker(there, reloads.command)
    return lambda: broker.told(authority.now())


def test_a_reload_that_failed_is_tried_again_each_minute_until_it_works(
    reloads: Reloads, look: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for now_s, count in ((0.0, 1), (1.0, 1), (59.0, 1), (60.0, 2), (61.0, 2), (120.0, 3)):
        reloads.now_s = now_s
        look()
        assert reloads.count == count, f"after {now_s} s"
    assert [r.levelname for r in caplog.records] == ["ERROR"], "the same failure is said once"
    assert "no such unit" in caplog.text
    reloads.mended.touch()
    for now_s in (180.0, 240.0, 1e6):
        reloads.now_s = now_s
        look()
    assert reloads.count == 4, "once it worked, it is over"
    assert caplog.messages[-1] == "the broker was told after all"


def test_a_change_does_not_wait_for_the_next_try(there: Authority, reloads: Reloads, look: Callable[[], None]) -> None:
    look()
    there.claim(parse_name("munich/lobby-1"), authority.now())
    look()
    assert reloads.count == 2


def test_a_renewed_certificate_of_the_broker_is_announced_though_the_first_reload_failed(
    there: Authority, reloads: Reloads, look: Callable[[], None]
) -> None:
    reloads.mended.touch()
    look()
    reloads.mended.unlink()
    there.renew([], authority.now() + timedelta(days=1), within_days=authority.DAYS)
    look()
    assert reloads.count == 2
    reloads.mended.touch()
    reloads.now_s = 60.0
    look()
    assert reloads.count == 3
