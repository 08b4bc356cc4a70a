"""Payloads → batches with the bytes and digests of their events. Pure; what the store does first with a message."""

import struct
from dataclasses import dataclass
from datetime import datetime
from itertools import repeat
from typing import cast
from zlib import crc32

import msgspec

from edge.wire import AnyEvent, Batch, Loss, Vocabulary, WireError, check_batch, inflate

DIGEST_BYTES = 4
MAX_NAME = 200  # characters of a camera, head or label
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message from the broker; `received_at` is aware UTC."""

    site: str
    box: str
    payload: bytes
    topic: str
    received_at: datetime


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A `Batch` whose events are still bytes."""

    schema: int
    stream: int
    first_seq: int
    base_ms: int
    clock: int
    vocabulary_digest: int
    events: tuple[msgspec.Raw, ...]
    vocabulary: Vocabulary | None = None


_envelope = msgspec.msgpack.Decoder(Envelope)
_event = msgspec.msgpack.Decoder(AnyEvent)
NOTHING = Loss(0, 0, 0, 0)  # stands where an event cannot be read: of no stream, so it covers and counts nothing


@dataclass(frozen=True, slots=True)
class Parsed:
    """A batch, and each of its events as the box wrote it."""

    envelope: Envelope
    digests: bytes

    @property
    def raw(self) -> tuple[msgspec.Raw, ...]:
        """The events as bytes."""
        return self.envelope.events

    @property
    def last_seq(self) -> int:
        """The sequence number of the last event."""
        return self.envelope.first_seq + len(self.envelope.events) - 1

    @property
    def batch(self) -> Batch:
        """The batch with its events as objects, made anew each time: for what happens rarely."""
        e = self.envelope
        events = tuple(event if isinstance(event := read_event(raw), AnyEvent) else NOTHING for raw in e.events)
        return Batch(e.schema, e.stream, e.first_seq, e.base_ms, e.clock, e.vocabulary_digest, events, e.vocabulary)

    @property
    def illegible(self) -> dict[int, str]:
        """Sequence number → why it is no event we know (P7); made anew each time."""
        found = enumerate(map(read_event, self.raw), self.envelope.first_seq)
        return {seq: why for seq, why in found if isinstance(why, str)}

    def digest(self, seq: int) -> bytes:
        """Return the content digest of one event."""
        at = (seq - self.envelope.first_seq) * DIGEST_BYTES
        return self.digests[at : at + DIGEST_BYTES]

    def single(self, seq: int) -> bytes:
        """Return one event as a payload of its own, fit to be published again."""
        event = self.raw[seq - self.envelope.first_seq]
        return msgspec.msgpack.encode(msgspec.structs.replace(self.envelope, first_seq=seq, events=(event,)))


def read(payload: bytes) -> Parsed:
    """Read a payload; its events are only told apart, an event that is none costs itself and not its neighbours.

    The digest of an event covers its bytes as sent and the envelope that gives them meaning, so that a field which
    this version does not know counts too. It is a CRC-32: it never misses a change within four bytes, and any other
    once in four thousand million times; whoever wants to deceive it may as well send a wrong event first.

    Raises:
        WireError: it does not follow the contract (P6, P7).
    """
    try:
        envelope = _envelope.decode(inflate(payload))
    except _UNREADABLE as error:
        raise WireError(f"not a batch: {error}") from error
    check_batch(cast(Batch, envelope))  # looks at no event
    if not (abs(envelope.base_ms) < 2**62 and 0 <= envelope.clock < 2**15 and 0 <= envelope.vocabulary_digest < 2**32):
        raise WireError(
            f"batch has base_ms {envelope.base_ms}, clock {envelope.clock}, vocabulary digest "
            f"{envelope.vocabulary_digest}, which do not fit 63, 15 and 32 bits"
        )
    if envelope.vocabulary is not None:
        check_vocabulary(envelope.vocabulary)
    start = crc32(struct.pack(">qhI", envelope.base_ms, envelope.clock, envelope.vocabulary_digest))
    digests = struct.pack(f">{len(envelope.events)}I", *map(crc32, envelope.events, repeat(start)))
    return Parsed(envelope, digests)


def read_event(raw: msgspec.Raw) -> AnyEvent | str:
    """Return an event, or why its bytes are none."""
    try:
        event: AnyEvent = _event.decode(raw)
    except _UNREADABLE as error:
        return f"not an event: {error}"
    return event


def check_vocabulary(vocabulary: Vocabulary) -> None:
    """Raise WireError for names no registry should hold."""
    for name in (*vocabulary.cameras, *(text for head in vocabulary.heads for text in (head.name, *head.labels))):
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise WireError(f"vocabulary names {name[:40]!r}, expected 1–{MAX_NAME} printable characters")
    if len(set(vocabulary.cameras)) != len(vocabulary.cameras):
        raise WireError("vocabulary names a camera twice")
    if len({head.name for head in vocabulary.heads}) != len(vocabulary.heads):
        raise WireError("vocabulary names a head twice")
