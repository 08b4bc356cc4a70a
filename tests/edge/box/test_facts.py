"""What the machine says about itself, read from a real one."""

from pathlib import Path

import pytest

from edge.box import facts


def test_memory_disk_and_boot_are_known_on_linux(tmp_path: Path) -> None:
    assert 10 << 20 < (facts.rss_bytes() or 0) < 10 << 30
    assert (facts.peak_rss_bytes() or 0) >= (facts.rss_bytes() or 0) * 0.5
    assert (facts.disk_free_bytes(tmp_path) or 0) > 0
    assert facts.boot_id()


def test_what_cannot_be_known_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "PROC", tmp_path)
    monkeypatch.setattr(facts, "SYS", tmp_path)
    assert facts.temperature_c() is None
    assert facts.throttled() is None
    assert facts.rss_bytes() is None
    assert facts.disk_free_bytes(tmp_path / "gone") is None


def test_the_hottest_zone_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, millidegrees in enumerate(("41000", "67500", "error")):
        zone = tmp_path / f"class/thermal/thermal_zone{i}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(millidegrees)
    monkeypatch.setattr(facts, "SYS", tmp_path)
    assert facts.temperature_c() == 67.5


def test_the_machine_id_is_not_given_away() -> None:
    raw = Path("/etc/machine-id")
    if raw.is_file() and raw.read_text().strip():
        assert raw.read_text().strip()[:8] not in facts.machine_id()
    assert len(facts.machine_id()) == 16


def test_boots_are_counted_and_restarts_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert facts.count_boot(tmp_path) == 1
    assert facts.count_boot(tmp_path) == 1
    monkeypatch.setattr(facts, "boot_id", lambda: "another")
    assert facts.count_boot(tmp_path) == 2
