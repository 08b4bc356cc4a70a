"""Events whose rows can be told apart, counted and checked in SQL. Every one becomes exactly one row with its own seq.

Visits of even tracks end; odd tracks are confirmed and never end, so that their open visit keeps the event's seq.
The dwell of a visit follows from its track: content that changed on the way would show.
"""

from edge.wire import AnyEvent, Confirmed, Ended, Presence, Update, Vocabulary

VOCABULARY = Vocabulary(cameras=("door", "till"))
DWELL_SQL = "(track * 7919) % 50000"
_PATTERN = "PEEUEEPEEEUEEEEPEEEEEUEEEEPEEEEEEEUEEEEEEEEPEEEEUEEEEEEEEEE"
ENDLESS_EVERY = 300  # events: few people are there when a box dies


def event(number: int, t_ms: int) -> AnyEvent:
    """Return the `number`th event of a process; `t_ms` on its monotonic timeline.

    Args:
        number: from 0; decides the kind and the content.
        t_ms: when, milliseconds.
    """
    camera, track = number % 2, 2 * number
    if number % ENDLESS_EVERY == ENDLESS_EVERY // 2:
        return Confirmed(camera, track + 1, t_ms, 2000, 2000, 300, 400, 200)
    match _PATTERN[number % len(_PATTERN)]:
        case "P":
            return Presence(camera, t_ms, 10_000, 3, 9_000 + number % 1000, 1)
        case "U":
            return Update(camera, track, t_ms, 60_000, 2000, 2000, 300, 400, 200)
    return Ended(camera, track, t_ms, dwell_ms(track), 0, 100, 100, 900, 900, 300, 400, 200, 20)


def dwell_ms(track: int) -> int:
    """Return how long the visit of this track lasts, as `DWELL_SQL` has it."""
    return track * 7919 % 50_000
