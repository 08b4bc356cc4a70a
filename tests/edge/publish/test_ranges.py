"""Sets of ranges behave as sets of numbers do."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge.publish.ranges import Ranges

runs = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)).map(lambda r: (r[0], r[0] + r[1])), max_size=8)


def numbers(ranges: Ranges) -> set[int]:
    return {n for first, last in ranges for n in range(first, last + 1)}


@given(runs, runs)
def test_ranges_are_sets(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    left, right = Ranges(a), Ranges(b)
    x = {n for first, last in a for n in range(first, last + 1)}
    y = {n for first, last in b for n in range(first, last + 1)}
    assert numbers(left) == x
    assert numbers(left | right) == x | y
    assert numbers(left - right) == x - y
    assert numbers(left & right) == x & y
    assert left.count() == len(x)
    assert left.top == max(x, default=0)
    assert bool(left) == bool(x)
    assert Ranges.from_flat(left.flat()) == left == left.copy()


@given(runs, st.integers(1, 40), st.integers(0, 6))
def test_covers_asks_for_all_and_touches_for_any(a: list[tuple[int, int]], first: int, more: int) -> None:
    ranges, wanted = Ranges(a), set(range(first, first + more + 1))
    assert ranges.covers(first, first + more) == (wanted <= numbers(ranges))
    assert ranges.touches(first, first + more) == bool(wanted & numbers(ranges))


@given(runs)
def test_runs_are_sorted_and_never_touch(a: list[tuple[int, int]]) -> None:
    kept = list(Ranges(a))
    assert all(b[0] > a[1] + 1 for a, b in pairwise(kept))


def test_what_a_stranger_wrote_down_wrong_is_left_out() -> None:
    assert list(Ranges.from_flat((1, 3, 9, 5, -2, 4, 7))) == [(1, 3)]
