"""When somebody was there: the times of single tracks become stretches worth keeping. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sighting:
    """One track that a head answered for: from its first to its last detection, seconds into the recording."""

    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a recording; `confidence` is the mean of its sightings, weighed by their length."""

    start_s: float
    end_s: float
    confidence: float
    sightings: int


def stretches(found: Iterable[Sighting], *, gap_s: float, pad_s: float, end_s: float) -> list[Stretch]:
    """Join sightings into stretches that do not overlap, in order.

    Args:
        found: in any order; several may overlap.
        gap_s: sightings that are no further apart belong together; larger gives fewer and longer stretches.
        pad_s: added before and after, within the recording; what then touches belongs together too.
        end_s: when the recording ends.
    """
    groups: list[list[Sighting]] = []
    for one in sorted(found, key=lambda s: s.start_s):
        if groups and one.start_s - max(s.end_s for s in groups[-1]) <= max(gap_s, 2 * pad_s):
            groups[-1].append(one)
        else:
            groups.append([one])
    return [_stretch(group, pad_s, end_s) for group in groups]


def _stretch(group: Sequence[Sighting], pad_s: float, end_s: float) -> Stretch:
    weights = [s.end_s - s.start_s + 1e-3 for s in group]  # one seen in a single frame counts a little
    confidence = sum(w * s.confidence for w, s in zip(weights, group, strict=True)) / sum(weights)
    start_s, last_s = group[0].start_s - pad_s, max(s.end_s for s in group) + pad_s
    return Stretch(max(0.0, start_s), min(end_s, last_s), confidence, len(group))
