"""What counts as well, what as worse, and how long it must hold."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from edge.box.status import BoxStatus, CameraStatus
from edge.flash.proof import Terms, complaints, prove, report

DOOR = CameraStatus("streaming", 100, True)
WELL = BoxStatus(1, "boot", 1000.0, 1000.0, "new", "digest", "connected", {"door": DOOR})
BEFORE = replace(WELL, nonce="old", config_digest="old digest")
LOST = replace(BEFORE, cameras={"door": CameraStatus("reconnecting", 0, False)})


@pytest.mark.parametrize(
    ("before", "now", "complaint"),
    [
        pytest.param(BEFORE, WELL, "", id="well"),
        pytest.param(None, WELL, "", id="first flash"),
        pytest.param(BEFORE, None, "says nothing", id="silent"),
        pytest.param(BEFORE, replace(WELL, config_digest="other"), "runs config other", id="old config"),
        pytest.param(BEFORE, replace(WELL, at_s=900.0), "not said anything for 101 s", id="hangs"),
        pytest.param(BEFORE, replace(WELL, fed_at_s=900.0), "watchdog was not fed", id="watchdog"),
        pytest.param(
            BEFORE,
            replace(WELL, cameras={"door": CameraStatus("reconnecting", 0, False, "no route")}),
            "camera door is reconnecting, was streaming before (no route)",
            id="camera lost",
        ),
        pytest.param(LOST, replace(WELL, cameras=LOST.cameras), "", id="camera was lost before"),
        pytest.param(
            LOST, replace(WELL, cameras={"door": CameraStatus("failed", 0, False)}), "is failed", id="now it crashes"
        ),
        pytest.param(
            BEFORE,
            replace(WELL, cameras={"door": DOOR, "yard": CameraStatus("opening", 0, False)}),
            "camera yard is opening",
            id="new camera",
        ),
        pytest.param(
            BEFORE,
            replace(WELL, cameras={"door": replace(DOOR, inferred=False)}),
            "no inference yet",
            id="no inference",
        ),
        pytest.param(BEFORE, replace(WELL, publisher="disconnected: x"), "publisher is disconnected: x", id="offline"),
        pytest.param(BEFORE, replace(WELL, publisher="waiting for a bridge"), "waiting", id="no bridge any more"),
        pytest.param(
            replace(BEFORE, publisher="waiting for a bridge"),
            replace(WELL, publisher="waiting for a bridge"),
            "",
            id="no bridge before either",
        ),
        pytest.param(BEFORE, replace(WELL, publisher="duplicate_id"), "duplicate_id", id="twin"),
    ],
)
def test_complaints(before: BoxStatus | None, now: BoxStatus | None, complaint: str) -> None:
    found = complaints(before, now, "digest", 1001.0)
    assert (found == []) if not complaint else (complaint in found[0])


class Film:
    """Time that passes by sleeping, and a box that changes with it."""

    def __init__(self, scenes: Callable[[float], BoxStatus | None]) -> None:
        self.now_s, self.scenes = 0.0, scenes

    def verdict(self, before: BoxStatus | None = BEFORE, ended: str = "") -> str:
        return prove(
            self.look, before, "digest", Terms(start_s=60, hold_s=30), ended=ended,
            clock=lambda: self.now_s, sleep=self.sleep,
        )  # fmt: skip

    def look(self) -> BoxStatus | None:
        found = self.scenes(self.now_s)
        return replace(found, at_s=self.now_s, fed_at_s=self.now_s) if found else None

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_a_box_that_comes_up_and_stays_well_is_proven() -> None:
    film = Film(lambda t: WELL if t > 20 else BEFORE)
    assert film.verdict() == ""
    assert 50 <= film.now_s <= 53


def test_a_box_that_never_comes_up_is_not() -> None:
    assert "not well within 60 s: the service says nothing" in Film(lambda _: None).verdict()


def test_the_old_process_with_the_same_config_is_not_mistaken_for_the_new() -> None:
    assert "not restarted yet" in Film(lambda _: replace(WELL, nonce="old")).verdict()


def test_what_a_process_that_ended_long_ago_wrote_is_not_taken_for_a_start() -> None:
    """A first flash that was taken back leaves a status; the same config comes again minutes later."""
    assert Film(lambda t: WELL if t > 5 else replace(WELL, nonce="left")).verdict(None, ended="left") == ""


def test_a_box_that_crashes_and_starts_again_is_not_proven() -> None:
    film = Film(lambda t: replace(WELL, nonce=f"n{int(t / 25)}"))
    assert "ended and was started again by itself" in film.verdict()


def test_a_camera_that_comes_and_goes_is_not_proven() -> None:
    bad = replace(WELL, cameras={"door": CameraStatus("reconnecting", 0, False)})
    assert "camera door is reconnecting" in Film(lambda t: bad if int(t) % 20 < 2 else WELL).verdict()


def test_the_report_names_cameras_and_publisher() -> None:
    assert report(WELL) == "config digest, publisher connected\ncamera door: streaming, 100 frames, models have looked"
    assert "says nothing" in report(None)
