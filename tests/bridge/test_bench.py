"""`facefleet-bridge bench` runs, on little, and what it prints is what it measured."""

import pytest

from bridge.bench import Figure, table
from bridge.cli import main


def test_bench_measures_every_way_and_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--events", "2000", "--boxes", "4", "--single", "50"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert "ours / it" in head
    assert [line.split("  ")[0].strip() or line.strip().split("  ")[0] for line in lines] == [
        "MQTT in → partitions",
        "all of it again: duplicates, no MQTT",
        "raw with rollups",
        "one INSERT and commit per event",
        "SELECT, UPDATE, commit per event",
    ]
    assert all(float(line.split()[-4].replace(",", "")) > 0 for line in lines)


def test_ratio_says_how_often_faster_ours_is() -> None:
    lines = table([Figure("ours", 1000, 1.0, 0.5, 0.25), Figure("theirs", 1000, 10.0, 1.0, 1.0)]).splitlines()
    assert lines[1].split()[-4:] == ["1,000", "1.00", "500.0", "250.0"]
    assert lines[2].split()[-4:] == ["100", "10.00", "1000.0", "1000.0"]
