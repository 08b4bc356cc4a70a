"""Cost of SORT per frame, ours beside the usual loop: `python -m tests.bench.sort`."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.track.sort import Sort, SortParams
from tests.bench.scenes import crowd
from tests.bench.sort_peer import PeerSort

Scene = list[NDArray[np.float64]]
LIMIT_US = {10: 150, 50: 260, 200: 1200}  # what the project asks of a two-core box
WARM_FRAMES = 20


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds per frame: the median over rounds of each round's median frame, and the rounds' range."""

    median_us: float
    least_us: float
    most_us: float

    def __str__(self) -> str:
        return f"{self.median_us:8.0f} ({self.least_us:.0f}–{self.most_us:.0f})"


def frame_us(update: Callable[[NDArray[np.float64]], Any], scene: Scene) -> float:
    """Return the median time of one frame, the first `WARM_FRAMES` left out."""
    times = []
    for boxes in scene:
        start = time.perf_counter()
        update(boxes)
        times.append(time.perf_counter() - start)
    return float(np.median(times[WARM_FRAMES:])) * 1e6


def compare(objects: int, frames: int, rounds: int, params: SortParams) -> tuple[Cost, Cost]:
    """Time ours and the peer on the same scenes, in turns, so that whatever else runs hits both."""
    ours, peer = [], []
    for round_ in range(rounds):
        scene = crowd(np.random.default_rng(round_), objects, frames + WARM_FRAMES)
        ours.append(frame_us(Sort(params).update, scene))
        peer.append(frame_us(PeerSort(params).update, scene))
    return (
        Cost(float(np.median(ours)), min(ours), max(ours)),
        Cost(float(np.median(peer)), min(peer), max(peer)),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a median of ours is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, nargs="+", default=[10, 50, 200], help="people in the picture")
    parser.add_argument("--frames", type=int, default=150, help="timed frames of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="scenes, each with its own seed (default: %(default)s)")
    args = parser.parse_args(argv)

    params = SortParams()
    frame_us(Sort(params).update, crowd(np.random.default_rng(0), 50, 100))  # load everything before the clock runs
    print(f"SORT, µs per frame, 1920×1080, 5 % missed: median (range) of {args.rounds} rounds × {args.frames} frames")
    print(f"{'objects':>7}  {'ours':>20}  {'limit':>6}  {'plain loop':>24}  {'ratio':>6}")
    over = False
    for objects in args.objects:
        ours, peer = compare(objects, args.frames, args.rounds, params)
        limit = LIMIT_US.get(objects)
        over |= limit is not None and ours.median_us > limit
        ratio = peer.median_us / ours.median_us
        print(f"{objects:>7}  {ours!s:>20}  {limit or '–':>6}  {peer!s:>24}  {ratio:>5.1f}×")
    return int(over)


if __name__ == "__main__":
    raise SystemExit(main())
