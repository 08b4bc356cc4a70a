"""From sightings to stretches: what is close belongs together, and nothing leaves the recording."""

import pytest

from edge.clips.stretches import Sighting, stretches


def spans(*found: tuple[float, float], gap_s: float = 2.0, pad_s: float = 1.0, end_s: float = 60.0) -> list[object]:
    joined = stretches((Sighting(a, b, 0.9) for a, b in found), gap_s=gap_s, pad_s=pad_s, end_s=end_s)
    return [(s.start_s, s.end_s) for s in joined]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([(10, 12)], [(9, 13)], id="padded"),
        pytest.param([(0.5, 2)], [(0, 3)], id="not before the beginning"),
        pytest.param([(58, 59.5)], [(57, 60)], id="not after the end"),
        pytest.param([(10, 12), (14, 15)], [(9, 16)], id="as close as the gap"),
        pytest.param([(10, 12), (14.1, 15)], [(9, 13), (13.1, 16)], id="further than the gap"),
        pytest.param([(10, 30), (12, 14), (31, 32)], [(9, 33)], id="one inside another"),
        pytest.param([(20, 21), (10, 11)], [(9, 12), (19, 22)], id="out of order"),
    ],
)
def test_spans(found: list[tuple[float, float]], expected: list[tuple[float, float]]) -> None:
    assert spans(*found) == expected


def test_what_the_padding_makes_touch_is_one_stretch() -> None:
    assert spans((10, 12), (15, 16), gap_s=0, pad_s=2) == [(8, 18)]
    assert spans((10, 12), (15, 16), gap_s=0, pad_s=1) == [(9, 13), (14, 17)]


def test_a_long_look_weighs_more_than_a_glance() -> None:
    (one,) = stretches([Sighting(0, 9, 0.9), Sighting(9, 10, 0.6)], gap_s=0, pad_s=0, end_s=10)
    assert one.confidence == pytest.approx(0.87, abs=0.001)
    assert one.sightings == 2
