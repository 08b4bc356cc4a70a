"""The event contract between boxes and the bridge: topics, payloads, limits. Both sides import this and nothing else.

Events travel as MessagePack arrays of integers, state and health as JSON. Messages are tolerant: unknown trailing
fields are ignored, new fields are appended with defaults, because boxes and bridges update at different times.
`docs/PROTOCOL.md` states all of it as numbered assertions.
"""

import re
import zlib
from enum import IntEnum
from typing import Literal
from uuid import UUID

import msgspec

SCHEMA = 1
ROOT = "facefleet/1"
MAX_EVENTS = 500  # per batch; keeps one poisoned batch small and a bridge transaction short
MAX_BYTES = 256 * 1024  # of a payload, inflated
BOX_UNIT = 4096  # a coordinate of 4096 is the far edge of the frame
SCORE_UNIT = 255
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Kind = Literal["events", "state", "health", "ack", "offer", "flash", "request", "certificate"]
Brings = Literal["config", "software"]  # what a bundle is, and so which of a box's updaters takes it


class WireError(ValueError):
    """A payload, topic or id that does not follow the contract."""


class Clock(IntEnum):
    """How far event times can be trusted."""

    SYNCHRONIZED = 0
    ESTIMATED = 1
    MEDIA = 2  # replay: media time from a fixed epoch


class EndReason(IntEnum):
    """Why a visit ended."""

    LEFT = 0
    CAMERA_LOST = 1
    SOURCE_ENDED = 2
    SHUTDOWN = 3
    BOX_RESTARTED = 4  # said by the bridge, when a new stream is born


class LossReason(IntEnum):
    """Why a box gave up on events it had accepted."""

    AGE = 0
    SIZE = 1
    DISK = 2
    DAMAGED = 3


class Event(msgspec.Struct, frozen=True, array_like=True, tag_field="type"):
    """What every event is: `t_ms` counts from the batch's base time and may be negative."""


class Confirmed(Event, frozen=True, array_like=True, tag=1):
    """A track has been matched `min_hits` times: somebody is here."""

    camera: int
    track: int
    t_ms: int
    x: int
    y: int
    w: int
    h: int
    score: int


class Update(Event, frozen=True, array_like=True, tag=2):
    """A visit goes on; at most one a minute. `attributes` is flat: head, label, confidence, head, …"""

    camera: int
    track: int
    t_ms: int
    dwell_ms: int
    x: int
    y: int
    w: int
    h: int
    score: int
    attributes: tuple[int, ...] = ()


class Ended(Event, frozen=True, array_like=True, tag=3):
    """A visit is over; `t_ms` is its start. Path: centre on entry, centre on exit, size of the best box."""

    camera: int
    track: int
    t_ms: int
    dwell_ms: int
    reason: int
    entry_x: int
    entry_y: int
    exit_x: int
    exit_y: int
    w: int
    h: int
    score: int
    hits: int
    attributes: tuple[int, ...] = ()


class Presence(Event, frozen=True, array_like=True, tag=4):
    """People seen by one camera in one slot of a fixed grid: most at once, sum of person-milliseconds, arrivals."""

    camera: int
    t_ms: int
    period_ms: int
    most: int
    person_ms: int
    entered: int


class Loss(Event, frozen=True, array_like=True, tag=5):
    """Events `first`…`last` of `stream` will never come."""

    stream: int
    first: int
    last: int
    reason: int


AnyEvent = Confirmed | Update | Ended | Presence | Loss


class Head(msgspec.Struct, frozen=True, array_like=True):
    """One classifier head: an attribute's label is an index into `labels`. `purpose` is why a sensitive head is on."""

    name: str
    labels: tuple[str, ...]
    purpose: str = ""


class Vocabulary(msgspec.Struct, frozen=True, array_like=True):
    """What the indices in events mean: camera names and classifier heads."""

    cameras: tuple[str, ...]
    heads: tuple[Head, ...] = ()

    def digest(self) -> int:
        """Return the 32-bit name of this vocabulary that every batch carries."""
        return zlib.crc32(msgspec.msgpack.encode(self))


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive events of one stream: event i has sequence number `first_seq + i`; sequence numbers start at 1.

    `vocabulary` is None on the first sending (the birth message carries it) and present on every resend.
    """

    schema: int
    stream: int
    first_seq: int
    base_ms: int
    clock: int
    vocabulary_digest: int
    events: tuple[AnyEvent, ...]
    vocabulary: Vocabulary | None = None


class Covered(msgspec.Struct, frozen=True, array_like=True):
    """What the database holds of one stream: 1…`upto`, and `ranges` above it, flat: first, last, first, last, …"""

    stream: int
    upto: int
    ranges: tuple[int, ...] = ()


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """Published by the bridge after COMMIT, retained; the box merges by union."""

    schema: int
    database: bytes  # UUID, 16 bytes
    covered: tuple[Covered, ...]
    complete: bool = False  # it names every stream of the box of which the database holds anything (P23)


class BoxState(msgspec.Struct, frozen=True, omit_defaults=True):
    """Birth or death of a box process. The death is the will, and is published too on a clean stop."""

    state: Literal["online", "offline"]
    stream: str  # 16 hexadecimal digits: JSON readers lose integers above 2**53
    boot: str
    machine: str
    nonce: str
    reason: str = ""
    t_ms: int = 0
    software: str = ""
    config_digest: str = ""
    vocabulary: Vocabulary | None = None
    schema: int = SCHEMA


class BridgeState(msgspec.Struct, frozen=True):
    """Whether events may be sent: boxes send only while a bridge of their database is accepting."""

    state: Literal["accepting", "paused", "offline"]
    bridge: str
    database: str
    ack: bool = True
    t_ms: int = 0
    schema: int = SCHEMA


class Offer(msgspec.Struct, frozen=True):
    """Where a box finds a signed bundle that is meant for it. Only a reference: the signature decides, on the box.

    Attributes:
        counter: newer than that of what runs of the same kind, or the box does not want it.
        kind: what the bundle brings; an offer of an older centre does not say so.
    """

    url: str
    sha256: str
    bytes: int
    counter: int
    schema: int = SCHEMA
    kind: Brings = "config"


class FlashReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the last update of a box ended, or where the offered one stands."""

    counter: int
    outcome: Literal["taken", "unreachable", "committed", "unchanged", "rolled_back", "refused"]
    reason: str = ""
    at: str = ""
    schema: int = SCHEMA


class CertificateRequest(msgspec.Struct, frozen=True):
    """A box asks its authority for a certificate, with a claim at first, later with the certificate it has.

    Attributes:
        certificate: PEM: the claim, or the certificate that it has.
        csr: PEM, of the box's own key.
        signature: hexadecimal, by the key of `certificate` over `signed_request`: the broker cannot make one.
    """

    certificate: str
    csr: str
    signature: str
    schema: int = SCHEMA


class CertificateAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the authority says to a request: a certificate and its own (PEM), or why not.

    Attributes:
        csr: SHA-256 of the request's `csr`, hexadecimal: answers to others are not for this process.
    """

    csr: str
    chain: str = ""
    refused: str = ""
    schema: int = SCHEMA


class StageMs(msgspec.Struct, frozen=True, omit_defaults=True):
    """Mean time per frame of each stage since the last health message, in milliseconds."""

    decode: float | None = None
    mask: float | None = None
    gate: float | None = None
    letterbox: float | None = None
    infer: float | None = None
    boxes: float | None = None
    sort: float | None = None
    attributes: float | None = None
    events: float | None = None


class CameraHealth(msgspec.Struct, frozen=True, omit_defaults=True):
    """One camera since the last health message; ages are seconds before `Health.t_ms`."""

    state: str
    error: str | None = None
    fps_in: float | None = None
    fps_processed: float | None = None
    fps_skipped: float | None = None
    dropped: int | None = None
    reconnects: int | None = None
    frame_age_s: float | None = None
    inference_age_s: float | None = None
    tracks: int | None = None
    width: int | None = None
    height: int | None = None
    hardware_decode: bool | None = None
    stage_ms: StageMs | None = None


class ModelHealth(msgspec.Struct, frozen=True, omit_defaults=True):
    """What runs which model, whether its golden output came out, and what was tried before it."""

    version: str
    device: str
    artefact: str
    golden: str
    attempts: tuple[str, ...] = ()
    licence: str = ""


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole of what dashboards read about a box; a field that cannot be known is None."""

    stream: str
    nonce: str
    t_ms: int
    uptime_s: float
    cameras: dict[str, CameraHealth]
    models: dict[str, ModelHealth]
    ack_age_s: float | None = None
    outbox_events: int | None = None
    outbox_bytes: int | None = None
    outbox_fill: float | None = None
    outbox_oldest_s: float | None = None
    refused: dict[str, int] | None = None
    losses: dict[str, int] | None = None
    publisher: str | None = None  # "connected", "waiting for a bridge", "disconnected: …", "duplicate_id"
    boot: str | None = None
    reboots: int | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    disk_free_bytes: int | None = None
    rss_bytes: int | None = None
    cpu_percent: float | None = None
    load_1m: float | None = None
    certificate_days: float | None = None
    clock: str | None = None
    config_digest: str | None = None
    software: str | None = None
    schema: int = SCHEMA
    outbox_trouble: str | None = None  # of the outbox's disk, as it stands: full, no reserve, nothing can be written


def check_id(value: str, what: str = "id") -> str:
    """Return `value` when it can stand in a topic, else raise WireError."""
    if not ID.fullmatch(value):
        raise WireError(
            f"{what} {value!r} cannot be used in a topic: expected 1–63 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit"
        )
    return value


def topic(site: str, box: str, kind: Kind) -> str:
    """Return the topic of one kind of message of one box."""
    return f"{ROOT}/{check_id(site, 'site')}/{check_id(box, 'box')}/{kind}"


def bridge_topic(bridge: str) -> str:
    """Return the topic on which one bridge says whether it accepts events.

    Its depth equals that of the topics of a box, so `parse_topic` refuses a site named "bridge".
    """
    return f"{ROOT}/bridge/{check_id(bridge, 'bridge')}/state"


def signed_request(site: str, box: str, csr: str) -> bytes:
    """Return what the signature of a `CertificateRequest` is over."""
    return f"{topic(site, box, 'request')}\n{csr}".encode()


def parse_topic(name: str) -> tuple[str, str, str]:
    """Split a box's topic into (site, box, kind)."""
    parts = name.split("/")
    if len(parts) != 5 or "/".join(parts[:2]) != ROOT or parts[2] == "bridge":
        raise WireError(f"topic {name!r} is not {ROOT}/<site>/<box>/<kind>")
    return check_id(parts[2], "site"), check_id(parts[3], "box"), parts[4]


_batch = msgspec.msgpack.Decoder(Batch)
_ack = msgspec.msgpack.Decoder(Ack)


def encode_batch(batch: Batch, *, deflate: bool = False) -> bytes:
    """Return the payload of a batch; deflated only where that is shorter. No vocabulary costs no byte."""
    fields = msgspec.structs.astuple(batch)
    raw = msgspec.msgpack.encode(fields[:-1] if batch.vocabulary is None else fields)
    packed = zlib.compress(raw, 6) if deflate else raw
    return packed if len(packed) < len(raw) else raw


def decode_batch(payload: bytes) -> Batch:
    """Read a batch, deflated or not. A MessagePack array never begins with zlib's 0x78.

    Raises:
        WireError: malformed, truncated, too large, of another schema, or with impossible numbers.
    """
    try:
        batch = _batch.decode(inflate(payload))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a batch: {error}") from error
    return check_batch(batch)


def check_batch(batch: Batch) -> Batch:
    """Return a batch whose envelope is possible, else raise WireError."""
    if batch.schema != SCHEMA:
        raise WireError(f"batch has schema {batch.schema}, expected {SCHEMA}")
    if not batch.events or len(batch.events) > MAX_EVENTS:
        raise WireError(f"batch has {len(batch.events)} events, expected 1–{MAX_EVENTS}")
    if not (0 < batch.stream < 2**63 and 0 < batch.first_seq < 2**62):
        raise WireError(f"batch has stream {batch.stream}, first_seq {batch.first_seq}, expected both positive")
    return batch


def encode_ack(database: UUID, covered: tuple[Covered, ...], *, complete: bool = False) -> bytes:
    """Return the payload of an acknowledgement; what says nothing at an end is left off and costs no byte."""
    runs = tuple((c.stream, c.upto, c.ranges) if c.ranges else (c.stream, c.upto) for c in covered)
    ack = (SCHEMA, database.bytes, runs)
    return msgspec.msgpack.encode((*ack, True) if complete else ack)


def decode_ack(payload: bytes) -> Ack:
    """Read an acknowledgement, or raise WireError."""
    try:
        ack = _ack.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"not an ack: {error}") from error
    if ack.schema != SCHEMA or len(ack.database) != 16:
        raise WireError(f"ack has schema {ack.schema} and a database id of {len(ack.database)} bytes")
    return ack


def stream_name(stream: int) -> str:
    """Return a stream as JSON messages and people write it: 16 hexadecimal digits."""
    return f"{stream:016x}"


def inflate(payload: bytes) -> bytes:
    """Return a payload as it was before it was deflated, if it was (P6), or raise WireError."""
    if len(payload) > MAX_BYTES:
        raise WireError(f"payload has {len(payload)} bytes, expected at most {MAX_BYTES}")
    if payload[:1] != b"\x78":
        return payload
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(payload, MAX_BYTES)
    except zlib.error as error:
        raise WireError(f"deflated payload is damaged: {error}") from error
    if inflater.unconsumed_tail or not inflater.eof:
        raise WireError(f"deflated payload is truncated or larger than {MAX_BYTES} bytes")
    return raw
