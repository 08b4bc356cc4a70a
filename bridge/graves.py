"""Which events of a box belong to what was erased of it. Pure; `transaction.py` asks before it makes rows."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from bridge.meaning import Meaning
from edge.wire import AnyEvent, Ended, Loss, Presence, Update, WireError

Key = tuple[int, int, int]  # stream, camera_id, track: one visit


@dataclass(frozen=True, slots=True)
class Span:
    """From `first_ms` up to, without, `end_ms`: ms since 1970."""

    tombstone: int
    first_ms: int
    end_ms: int

    def touches(self, first_ms: int, last_ms: int) -> bool:
        """Tell whether something that lasted from `first_ms` to `last_ms`, both included, reaches into it."""
        return first_ms < self.end_ms and last_ms >= self.first_ms


@dataclass(slots=True)
class Graves:
    """What was erased of one box: spans, and the visits that reached into them (with the tombstone they count for)."""

    spans: tuple[Span, ...]
    tracks: dict[Key, int] = field(default_factory=dict)

    def dig(self, stream: int, meaning: Meaning, base_ms: int, events: Iterable[AnyEvent]) -> set[Key]:
        """Learn the visits that reach into a span by these events; return those not known before."""
        found: set[Key] = set()
        for event in events:
            key = key_of(stream, meaning, event)
            if key is None or key in self.tracks:
                continue
            tombstone = self.span(event, base_ms)
            if tombstone is not None:
                self.tracks[key] = tombstone
                found.add(key)
        return found

    def holds(self, stream: int, meaning: Meaning, event: AnyEvent, base_ms: int) -> int | None:
        """Return the tombstone under which an event lies; None when it was not erased."""
        key = key_of(stream, meaning, event)
        known = None if key is None else self.tracks.get(key)
        return self.span(event, base_ms) if known is None else known

    def span(self, event: AnyEvent, base_ms: int) -> int | None:
        """Return the first tombstone whose span an event reaches into by its own times."""
        extent = extent_of(event, base_ms)
        if extent is None:
            return None
        return next((span.tombstone for span in self.spans if span.touches(*extent)), None)


def key_of(stream: int, meaning: Meaning, event: AnyEvent) -> Key | None:
    """Return the visit an event tells of, None when it tells of none that a row could hold."""
    if isinstance(event, Loss | Presence):
        return None
    try:
        camera_id = meaning.camera_id(event.camera)
    except WireError:
        return None
    return (stream, camera_id, event.track) if -(2**63) <= event.track < 2**63 else None


def extent_of(event: AnyEvent, base_ms: int) -> tuple[int, int] | None:
    """Return from when to when an event says somebody was there, both included, ms since 1970; None for a loss."""
    if isinstance(event, Loss):
        return None
    at_ms = base_ms + event.t_ms
    match event:
        case Update():
            return at_ms - max(0, event.dwell_ms), at_ms
        case Ended():
            return at_ms, at_ms + max(0, event.dwell_ms)
        case Presence():
            return at_ms, at_ms + max(1, event.period_ms) - 1
    return at_ms, at_ms
