"""The gate lets motion through, leaves still scenes alone, and keeps to the detection rate."""

import numpy as np
import pytest

from edge.capture.gate import Gate, GateParams
from edge.errors import ConfigError

RNG = np.random.default_rng(7)
SCENE = RNG.integers(40, 200, (360, 640, 3), np.uint8)


def with_person(x: int) -> np.ndarray:
    image = SCENE.copy()
    image[100:260, x : x + 60] = 255
    return image


def decisions(gate: Gate, images: list[np.ndarray], fps: float = 25.0, has_tracks: bool = False) -> list[bool]:
    return [gate.decide(image, number / fps, has_tracks) for number, image in enumerate(images)]


def test_without_gate_and_rate_every_frame_is_detected() -> None:
    gate = Gate(GateParams(enabled=False))
    assert all(decisions(gate, [SCENE] * 100))
    assert (gate.seen, gate.detected, gate.skipped) == (100, 100, 0)


def test_a_still_empty_scene_is_detected_on_arrival_and_then_only_now_and_then() -> None:
    gate = Gate(GateParams(linger_s=1.0, idle_s=5.0))
    said = decisions(gate, [SCENE] * 400)  # 16 s
    assert all(said[:26])
    assert [number for number, wanted in enumerate(said) if wanted and number > 26] == [150, 275]
    # the last one of the first second is at frame 25; five seconds later is frame 150
    assert gate.skipped == 400 - gate.detected


def test_a_person_who_walks_is_detected_in_every_frame() -> None:
    gate = Gate(GateParams(linger_s=0.2))
    decisions(gate, [SCENE] * 20)
    walk = [with_person(8 * step) for step in range(40)]
    assert all(gate.decide(image, 1.0 + number / 25, False) for number, image in enumerate(walk))


def test_a_person_who_creeps_is_noticed_although_no_two_frames_differ_much() -> None:
    """Compared with the last detection, slow movement adds up."""
    gate = Gate(GateParams(linger_s=0.0, idle_s=3600.0, motion_area=0.01))
    said = decisions(gate, [with_person(100 + step) for step in range(200)])
    assert 2 < sum(said) < 40
    assert any(said[100:])


def test_sensor_noise_is_not_motion() -> None:
    noisy = [np.clip(SCENE.astype(int) + RNG.normal(0, 4, SCENE.shape), 0, 255).astype(np.uint8) for _ in range(20)]
    gate = Gate(GateParams(linger_s=0.0, idle_s=3600.0))
    assert sum(decisions(gate, noisy)) == 1


def test_stationary_tracks_are_checked_again_every_recheck() -> None:
    gate = Gate(GateParams(linger_s=0.0, recheck_s=0.4, idle_s=3600.0))
    said = decisions(gate, [SCENE] * 50, has_tracks=True)
    assert [number for number, wanted in enumerate(said) if wanted] == [0, 10, 20, 30, 40]


@pytest.mark.parametrize(("source_fps", "fps"), [(25, 5), (30, 12), (30, 7.5), (25, 25), (10, 30)])
def test_detection_rate_is_kept_on_average(source_fps: float, fps: float) -> None:
    gate = Gate(GateParams(enabled=False, fps=fps))
    said = decisions(gate, [SCENE] * int(source_fps * 20), fps=source_fps)
    assert sum(said) / 20 == pytest.approx(min(fps, source_fps), abs=0.1)


def test_a_pause_does_not_earn_a_burst() -> None:
    gate = Gate(GateParams(enabled=False, fps=5))
    assert gate.decide(SCENE, 0.0, False)
    assert [gate.decide(SCENE, 60.0 + number / 25, False) for number in range(6)] == [True] + 4 * [False] + [True]


def test_a_new_resolution_is_looked_at() -> None:
    gate = Gate(GateParams(linger_s=0.0, idle_s=3600.0))
    decisions(gate, [SCENE] * 5)
    assert gate.decide(np.zeros((720, 1280, 3), np.uint8), 1.0, False)


def test_time_that_goes_back_starts_afresh() -> None:
    gate = Gate(GateParams(fps=5, linger_s=0.0, idle_s=3600.0))
    decisions(gate, [SCENE] * 100)
    assert gate.decide(SCENE, 0.0, False)


def test_equal_input_gives_equal_decisions() -> None:
    images = [with_person(int(x)) for x in RNG.integers(0, 500, 60)]
    params = GateParams(fps=8, linger_s=0.1)
    assert decisions(Gate(params), images) == decisions(Gate(params), images)


@pytest.mark.parametrize("shape", [(1, 1, 3), (48, 64, 3), (2, 4000, 3)])
def test_any_size_of_picture_is_taken(shape: tuple[int, int, int]) -> None:
    gate = Gate()
    assert gate.decide(np.zeros(shape, np.uint8), 0.0, False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fps": 0}, "fps is 0"),
        ({"luma_step": 0}, "luma_step"),
        ({"motion_area": 0}, "motion_area"),
        ({"recheck_s": -1}, "recheck_s"),
    ],
)
def test_wrong_parameters_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GateParams(**settings)  # type: ignore[arg-type]
