"""Waves, and when a roll-out goes on, waits, or stops."""

from dataclasses import replace

import pytest

from bridge.errors import BridgeError
from bridge.rollout.plan import BoxState, Move, State, after_report, next_move, wave_sizes
from edge.wire import FlashReport


@pytest.mark.parametrize(
    ("text", "boxes", "sizes"),
    [
        ("1,10%,100%", 50, [1, 4, 45]),
        ("1,10%,100%", 3, [1, 2]),
        ("1,10%,100%", 1, [1]),
        ("2, 4", 10, [2, 2, 6]),
        ("100%", 7, [7]),
        ("500", 7, [7]),
        ("3,2,1", 7, [3, 4]),
    ],
)
def test_waves_grow_to_the_whole_fleet(text: str, boxes: int, sizes: list[int]) -> None:
    assert wave_sizes(text, boxes) == sizes


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1,,2", "10%%", "1.5"])
def test_what_are_no_waves_is_refused(text: str) -> None:
    with pytest.raises(BridgeError, match="is no number of boxes or percentage"):
        wave_sizes(text, 10)


def fleet(*states: State) -> list[BoxState]:
    """Return a first wave of one box, and a second of all others."""
    return [BoxState("s", f"b{i}", 1 if i == 0 else 2, 7, state) for i, state in enumerate(states)]


@pytest.mark.parametrize(
    ("boxes", "tolerated", "move"),
    [
        pytest.param(fleet("waiting", "waiting"), 0, Move(open_wave=1), id="begin"),
        pytest.param(fleet("offered", "waiting"), 0, Move(), id="wait for the first"),
        pytest.param(fleet("taken", "waiting"), 0, Move(), id="wait while it tries"),
        pytest.param(fleet("committed", "waiting"), 0, Move(open_wave=2), id="next wave"),
        pytest.param(fleet("committed", "committed"), 0, Move(end="done"), id="done"),
        pytest.param(fleet("retired", "waiting"), 0, Move(open_wave=2), id="go on without a retired one"),
        pytest.param(
            fleet("rolled_back", "waiting"), 0, Move(end="stopped", reason="1 failed, s/b0 rolled_back"), id="stop"
        ),
        pytest.param(fleet("refused", "waiting"), 1, Move(open_wave=2), id="one failure tolerated"),
        pytest.param(fleet("committed", "silent", "refused"), 2, Move(end="done"), id="done with failures"),
        pytest.param(
            fleet("committed", "silent", "taken"), 0, Move(end="stopped", reason="1 failed, s/b1 silent"), id="at once"
        ),
    ],
)
def test_next_move(boxes: list[BoxState], tolerated: int, move: Move) -> None:
    assert next_move(boxes, tolerated, 100.0) == move


def test_a_box_that_says_nothing_for_too_long_is_silent() -> None:
    boxes = [replace(box, offered_s=100.0) for box in fleet("offered", "waiting")]
    assert next_move(boxes, 0, 100.0) == Move(silent=(("s", "b0"),))
    assert next_move(boxes, 0, 101.0) == Move()


@pytest.mark.parametrize(
    ("before", "report", "after"),
    [
        ("offered", FlashReport(7, "taken"), "taken"),
        ("taken", FlashReport(7, "committed"), "committed"),
        ("offered", FlashReport(7, "unchanged"), "committed"),
        ("offered", FlashReport(7, "unreachable", "404"), "offered"),
        ("taken", FlashReport(7, "rolled_back", "no camera"), "rolled_back"),
        ("silent", FlashReport(7, "committed"), "committed"),
        ("offered", FlashReport(6, "rolled_back"), "offered"),
        ("committed", FlashReport(7, "rolled_back"), "committed"),
        ("waiting", FlashReport(7, "committed"), "waiting"),
        ("retired", FlashReport(7, "rolled_back"), "retired"),
    ],
)
def test_reports(before: State, report: FlashReport, after: State) -> None:
    box = after_report(BoxState("s", "b", 1, 7, before), report)
    assert box.state == after
