"""Do all loops of a box turn? While they do, the service manager is told so (`edge.notify`).

Fed while every loop turns and no inference is stuck. A dead camera, a missing broker or missing acks are states in
health, never a reason to stop feeding: an outage in the centre must not restart a fleet.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop that must turn: its name and when it last did, on the monotonic clock."""

    name: str
    turned_at_s: float


def stuck(loops: Iterable[Loop], now_s: float, limit_s: float) -> list[str]:
    """Return the names of the loops that have not turned for `limit_s`."""
    return [loop.name for loop in loops if now_s - loop.turned_at_s > limit_s]
