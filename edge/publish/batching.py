"""Dated events ↔ batches: split where the trust in the clock changes, and at what a message may hold. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from edge.wire import (
    MAX_BYTES,
    MAX_EVENTS,
    SCHEMA,
    AnyEvent,
    Batch,
    Clock,
    Loss,
    Vocabulary,
    decode_batch,
    encode_batch,
)

Stamped = tuple[int, Clock, AnyEvent]  # ms since 1970, how far the clock was trusted, the event


@dataclass(frozen=True, slots=True)
class Batcher:
    """Makes the batches of one stream; `digest` is its vocabulary's."""

    stream: int
    vocabulary: Vocabulary
    digest: int

    def check(self, event: AnyEvent, t_ms: int, clock: Clock) -> None:
        """Refuse an event that we could not read ourselves: it must not reach the bridge.

        Raises:
            TypeError, ValueError, OverflowError, msgspec.MsgspecError: it cannot be put on the wire.
        """
        one = Batch(SCHEMA, self.stream, 1, t_ms, clock, self.digest, (_at(event, 0),), self.vocabulary)
        decode_batch(encode_batch(one))

    def batches(self, part: Sequence[Stamped], first_seq: int) -> list[Batch]:
        """Return one batch of events with one clock state, or two when its resend would be too large (P6)."""
        base_ms, clock, _ = part[0]
        events = tuple(_at(event, t_ms - base_ms) for t_ms, _, event in part)
        batch = Batch(SCHEMA, self.stream, first_seq, base_ms, clock, self.digest, events)
        if len(part) > 1 and len(encode_batch(msgspec.structs.replace(batch, vocabulary=self.vocabulary))) > MAX_BYTES:
            half = len(part) // 2
            return self.batches(part[:half], first_seq) + self.batches(part[half:], first_seq + half)
        return [batch]


def stamped(batch: Batch) -> Iterator[Stamped]:
    """Yield the events of a batch as they were appended."""
    clock = Clock(batch.clock)
    for event in batch.events:
        yield batch.base_ms + (0 if isinstance(event, Loss) else event.t_ms), clock, event


def parts(entries: Sequence[Stamped]) -> Iterator[Sequence[Stamped]]:
    """Split where the trust in the clock changes, and at what a batch may hold."""
    begin = 0
    for i in range(1, len(entries) + 1):
        if i == len(entries) or i - begin == MAX_EVENTS or entries[i][1] != entries[begin][1]:
            yield entries[begin:i]
            begin = i


def _at(event: AnyEvent, t_ms: int) -> AnyEvent:
    return event if isinstance(event, Loss) else msgspec.structs.replace(event, t_ms=t_ms)
