"""Payloads → batches with the bytes and digests of their events. Pure; what the store does first with a message."""

import struct
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b

import msgspec

from edge.wire import AnyEvent, Batch, Loss, Vocabulary, WireError, check_batch, decode_batch, inflate

DIGEST_BYTES = 8
MAX_NAME = 200  # characters of a camera, head or label


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message from the broker; `received_at` is aware UTC."""

    site: str
    box: str
    payload: bytes
    topic: str
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Parsed:
    """A batch, and each of its events as the box wrote it."""

    batch: Batch
    raw: tuple[bytes, ...]
    digests: bytes
    illegible: dict[int, str] = field(default_factory=dict)  # sequence number → why it is no event we know (P7)

    def digest(self, seq: int) -> bytes:
        """Return the content digest of one event."""
        at = (seq - self.batch.first_seq) * DIGEST_BYTES
        return self.digests[at : at + DIGEST_BYTES]

    def single(self, seq: int) -> bytes:
        """Return one event as a payload of its own, fit to be published again."""
        envelope = self.batch
        event = msgspec.Raw(self.raw[seq - envelope.first_seq])
        return msgspec.msgpack.encode(
            _RawBatch(
                envelope.schema, envelope.stream, seq, envelope.base_ms, envelope.clock,
                envelope.vocabulary_digest, (event,), envelope.vocabulary,
            )
        )  # fmt: skip


class _RawBatch(msgspec.Struct, frozen=True, array_like=True):
    schema: int
    stream: int
    first_seq: int
    base_ms: int
    clock: int
    vocabulary_digest: int
    events: tuple[msgspec.Raw, ...]
    vocabulary: Vocabulary | None = None


_raw_batch = msgspec.msgpack.Decoder(_RawBatch)
_event = msgspec.msgpack.Decoder(AnyEvent)
NOTHING = Loss(0, 0, 0, 0)  # stands where an event cannot be read: of no stream, so it covers and counts nothing


def read(payload: bytes) -> Parsed:
    """Read a payload.

    The digest of an event covers its bytes as sent and the envelope that gives them meaning, so that a field which
    this version does not know counts too.

    Raises:
        WireError: it does not follow the contract (P6, P7).
    """
    illegible: dict[int, str] = {}
    try:
        batch = decode_batch(payload)
    except WireError as error:
        batch, illegible = _decode_singly(payload, error)
    if not (abs(batch.base_ms) < 2**62 and 0 <= batch.clock < 2**15 and 0 <= batch.vocabulary_digest < 2**32):
        raise WireError(
            f"batch has base_ms {batch.base_ms}, clock {batch.clock}, vocabulary digest {batch.vocabulary_digest}, "
            "expected at most 62, 15 and 32 bits"
        )
    raw = tuple(map(bytes, _raw_batch.decode(inflate(payload)).events))
    prefix = blake2b(struct.pack(">qhI", batch.base_ms, batch.clock, batch.vocabulary_digest), digest_size=DIGEST_BYTES)
    digests = []
    for event in raw:
        hasher = prefix.copy()
        hasher.update(event)
        digests.append(hasher.digest())
    if batch.vocabulary is not None:
        check_vocabulary(batch.vocabulary)
    return Parsed(batch, raw, b"".join(digests), illegible)


def _decode_singly(payload: bytes, error: WireError) -> tuple[Batch, dict[int, str]]:
    """Read a batch event by event: a newer box's event, or a spoilt one, costs itself and not its neighbours.

    Raises:
        WireError: the given one, when the events are not to blame.
    """
    try:
        loose = _raw_batch.decode(inflate(payload))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, WireError):
        raise error from None
    events: list[AnyEvent] = []
    illegible: dict[int, str] = {}
    for seq, raw in enumerate(loose.events, loose.first_seq):
        try:
            events.append(_event.decode(raw))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as why:
            events.append(NOTHING)
            illegible[seq] = f"not an event: {why}"
    if not illegible:
        raise error
    batch = Batch(
        loose.schema, loose.stream, loose.first_seq, loose.base_ms, loose.clock, loose.vocabulary_digest,
        tuple(events), loose.vocabulary,
    )  # fmt: skip
    return check_batch(batch), illegible


def check_vocabulary(vocabulary: Vocabulary) -> None:
    """Raise WireError for names no registry should hold."""
    for name in (*vocabulary.cameras, *(text for head in vocabulary.heads for text in (head.name, *head.labels))):
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise WireError(f"vocabulary names {name[:40]!r}, expected 1–{MAX_NAME} printable characters")
    if len(set(vocabulary.cameras)) != len(vocabulary.cameras):
        raise WireError("vocabulary names a camera twice")
    if len({head.name for head in vocabulary.heads}) != len(vocabulary.heads):
        raise WireError("vocabulary names a head twice")
