"""`facefleet-bridge bench` runs, on little, and what it prints is what it measured."""

import pytest

from bridge import bench, bench_plain
from bridge.bench import lines, table
from bridge.bench_plain import Figure
from bridge.cli import main
from bridge.errors import BridgeError


def test_bench_measures_every_way_and_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--events", "2000", "--boxes", "4", "--single", "50"]) == 0
    head, *shown = capsys.readouterr().out.splitlines()
    assert "ours / it" in head
    assert [line[:40].strip() for line in shown[:-1]] == [
        "MQTT in → partitions",
        "all of it again: duplicates, no MQTT",
        "raw: COPY, INSERT … ON CONFLICT, rollups",
        "raw, sums taken beforehand",
        "one INSERT and commit per event",
        "SELECT, UPDATE, commit per event",
    ]
    assert all(float(line[40:].split()[0].replace(",", "")) > 0 for line in shown[:-1])


def figure(name: str, seconds: float, cpu_s: float = 1.0) -> Figure:
    return Figure(name, 1000, seconds, cpu_s / 2, cpu_s / 2)


def test_table_says_how_often_faster_ours_is_and_whether_that_was_promised() -> None:
    ours = [figure("ours", 1.0), figure("ours", 2.0, 2.0), figure("ours", 3.0, 3.0)]
    raws = [[figure("raw", 0.8), figure("raw", 1.2, 1.0), figure("raw", 2.7, 3.0)], [figure("sums", 1.0)] * 3]
    found = lines(ours, raws, figure("again", 0.005), [figure("single", 30.0), figure("look", 1.0)])
    shown = [line.split() for line in table(found).splitlines()[1:]]
    assert shown[0] == ["ours", "500", "500", "1000.0", "1000.0"], "of three rounds the middle one"
    assert shown[1][:5] == ["again", "200,000", "1,000", "≥", "100,000"]
    assert shown[2][:8] == ["raw", "833", "1,000", "0.80", "1.00", "≥", "0.70", "met"], "each round against its own"
    assert shown[3][:5] == ["sums", "1,000", "1,000", "0.50", "0.50"]
    assert shown[4][:8] == ["single", "33", "1,000", "15.00", "0.50", "≥", "10.00", "met"]
    assert shown[5][-3] == "missed"


def test_bench_refuses_to_compare_ways_that_wrote_different_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bench_plain.write_raw
    monkeypatch.setattr(
        bench_plain,
        "write_raw",
        lambda connection, packed, beforehand: honest(connection, packed[:-1], beforehand=beforehand),
    )
    with pytest.raises(BridgeError, match="not written the same rows"):
        bench.run(events=1000, boxes=4, single=50)
