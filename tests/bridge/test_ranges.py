"""Coverage against a set of numbers, which is what it stands for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.ranges import Coverage

spans = st.tuples(st.integers(1, 40), st.integers(0, 8)).map(lambda s: (s[0], s[0] + s[1]))


@given(st.lists(spans, max_size=12), spans)
def test_coverage_is_the_set_of_everything_added(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    coverage, truth = Coverage(), set[int]()
    for first, last in added:
        coverage = coverage.add(first, last)
        truth |= set(range(first, last + 1))
    assert {seq for seq in range(1, 60) if coverage.contains(seq)} == truth
    missing = {seq for low, high in coverage.missing(*asked) for seq in range(low, high + 1)}
    assert missing == set(range(asked[0], asked[1] + 1)) - truth
    assert Coverage.from_flat(coverage.upto, coverage.flat()) == coverage


@given(st.lists(spans, max_size=12))
def test_coverage_has_one_form_whatever_the_order(added: list[tuple[int, int]]) -> None:
    forward, backward = Coverage(), Coverage()
    for span in added:
        forward = forward.add(*span)
    for span in reversed(added):
        backward = backward.add(*span)
    assert forward == backward
    edges = (forward.upto, *forward.flat())
    assert all(right - left > 1 for left, right in zip(edges[::2], edges[1::2], strict=False)), "ranges touch"


@pytest.mark.parametrize(
    ("coverage", "first", "last", "expected"),
    [
        (Coverage(), 1, 5, Coverage(5)),
        (Coverage(5), 6, 6, Coverage(6)),
        (Coverage(5), 8, 9, Coverage(5, ((8, 9),))),
        (Coverage(5, ((8, 9),)), 6, 7, Coverage(9)),
        (Coverage(5, ((8, 9), (20, 21))), 10, 19, Coverage(5, ((8, 21),))),
        (Coverage(5, ((8, 9), (20, 21))), 1, 30, Coverage(30)),
        (Coverage(9), 2, 3, Coverage(9)),
    ],
    ids=["first", "next", "hole", "hole filled", "two joined", "swallowed", "inside"],
)
def test_add(coverage: Coverage, first: int, last: int, expected: Coverage) -> None:
    assert coverage.add(first, last) == expected


def test_range_that_runs_backwards_is_refused() -> None:
    with pytest.raises(ValueError, match="range 5…4 runs backwards"):
        Coverage().add(5, 4)


def test_p16_ack_form_is_flat_pairs_above_upto() -> None:
    assert Coverage(3).add(7, 9).add(20, 20).flat() == (7, 9, 20, 20)
