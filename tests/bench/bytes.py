"""What an event costs on the wire, ours beside the same in JSON: `python -m tests.bench.bytes`. P9 is tested on it."""

import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec

from edge.wire import (
    SCHEMA,
    AnyEvent,
    Batch,
    Confirmed,
    Covered,
    Ended,
    Head,
    Update,
    Vocabulary,
    encode_ack,
    encode_batch,
    topic,
)

TCP_IP_BYTES = 40  # IPv4 and TCP headers of one segment, without options
VOCABULARY = Vocabulary(
    ("entrance",),
    (Head("age", ("0-9", "10-19", "20-29", "30-44", "45-59", "60+")), Head("gender", ("female", "male"))),
)
STREAM, BASE_MS = 0x5A3C_91D2_77E0_48B6, 1_790_000_000_000
SEQ = 40_001  # a stream of weeks; beyond 65,535 events a number takes two bytes more
SHORT = {"dwell_ms": "d", "attributes": "a", "reason": "r", "entry_x": "ex", "entry_y": "ey", "exit_x": "qx",
         "exit_y": "qy", "score": "s", "hits": "n", "camera": "c", "track": "i", "t_ms": "t", "type": "k"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Visit:
    """One visit of a minute: its events, and the batches they leave in."""

    events: tuple[AnyEvent, ...]

    def batches(self, seq: int) -> list[Batch]:
        """One batch an event: they are a minute apart, and a quiet box has nothing else to send with them."""
        return [_batch([event], at) for at, event in enumerate(self.events, seq)]


def visit(rng: random.Random, at_ms: int = 0) -> Visit:
    """Return a visit of one minute, with numbers as large as they get: confirmed and ended (an update would be due)."""
    track, place = rng.getrandbits(32), lambda: rng.randrange(300, 4096)
    attributes = (0, rng.randrange(6), rng.randrange(128, 256), 1, rng.randrange(2), rng.randrange(128, 256))
    return Visit((
        Confirmed(0, track, at_ms, place(), place(), place(), place(), 231),
        Ended(0, track, at_ms, 59_800, 0, *(place() for _ in range(6)), 241, 1495, attributes),
    ))  # fmt: skip


def mixture(rng: random.Random, count: int = 50) -> list[AnyEvent]:
    """Return the events of a batch as a busy box sends it: visits that begin, go on and end, within ten seconds."""
    events: list[AnyEvent] = []
    while len(events) < count:
        confirmed, ended = visit(rng, rng.randrange(-60_000, 10_000)).events
        assert isinstance(ended, Ended)
        update = Update(0, ended.track, ended.t_ms, 60_000, *(rng.randrange(4096) for _ in range(4)), 240,
                        ended.attributes)  # fmt: skip
        events += [confirmed, update, ended]
    return events[:count]


def wire_bytes(
    visit: Visit,
    *,
    acks: int = 2,
    with_tcp_ip: bool = False,
    protocol: str = "5",
    seq: int = SEQ,
    box: tuple[str, str] = ("milan-3", "box-0042"),
) -> int:
    """Return all bytes a visit costs between box and broker and back: its batches, their PUBACKs, the ack messages.

    A box with one visitor gets an ack for each batch; one covers both where the bridge hears of them together. Over
    MQTT 5 a number stands for the topic of events, which only the first batch of a connection spells out. Acks are
    delivered at QoS 0. Each MQTT packet is counted as a segment of its own, which is the worst case; pure TCP acks are
    left out.
    """
    events_topic, ack_topic = topic(*box, "events"), topic(*box, "ack")
    batches = [encode_batch(batch) for batch in visit.batches(seq)]
    packets = [_publish(events_topic, payload, protocol, qos=1, aliased=protocol == "5") for payload in batches]
    packets += [4] * len(batches)  # PUBACK: 4 bytes in both protocols when all is well
    ack = encode_ack(UUID(int=7 << 100), (Covered(STREAM, seq + 1),))
    packets += [_publish(ack_topic, ack, protocol, qos=0)] * acks
    return sum(packets) + (TCP_IP_BYTES * len(packets) if with_tcp_ip else 0)


def json_of(events: Sequence[AnyEvent], *, short: bool) -> bytes:
    """Return the same events as one JSON message: names as they are, or of a letter or two."""
    rows = [{"type": type(event).__name__.lower()} | msgspec.structs.asdict(event) for event in events]
    if short:
        rows = [{SHORT.get(key, key): value for key, value in row.items()} for row in rows]
    names = ("s", "q", "b", "c", "e") if short else ("stream", "first_seq", "base_ms", "clock", "events")
    envelope = dict(zip(names, (f"{STREAM:016x}", 40_001, BASE_MS, 0, rows), strict=True))
    return json.dumps(envelope, separators=(",", ":")).encode()


def table() -> str:
    """Return the comparison as a Markdown table."""
    rng = random.Random(1)
    events, one = mixture(rng), visit(rng)
    raw = encode_batch(_batch(events, SEQ))
    lines = ["| | ours | ours, deflated | JSON, short names | JSON, long names |", "|---|---|---|---|---|"]
    each = [len(raw), len(zlib.compress(raw, 6)), *(len(json_of(events, short=s)) for s in (True, False))]
    lines.append(
        f"| one event in a batch of {len(events)} | " + " | ".join(f"{n / len(events):.1f} B" for n in each) + " |"
    )
    alone = [[_batch([e], SEQ) for e in one.events], *([[e] for e in one.events] for _ in range(2))]
    for i, event in enumerate(one.events):
        lone = encode_batch(alone[0][i])  # type: ignore[arg-type]
        sizes = [len(lone), len(zlib.compress(lone, 6)), *(len(json_of([event], short=s)) for s in (True, False))]
        lines.append(
            f"| a batch of one `{type(event).__name__.lower()}` | " + " | ".join(f"{n} B" for n in sizes) + " |"
        )
    lines += ["", "| a whole visit of one minute, box to broker and back | MQTT 5 | MQTT 3.1.1 |", "|---|---|---|"]
    for name, acks, tcp in (
        ("payloads, MQTT headers, topics, PUBACKs, an ack for each batch", 2, False),
        ("the same with one ack for both", 1, False),
        ("an ack for each batch, TCP/IP headers", 2, True),
    ):
        sizes = [wire_bytes(one, acks=acks, with_tcp_ip=tcp, protocol=p) for p in ("5", "3.1.1")]
        lines.append(f"| {name} | " + " | ".join(f"{n} B" for n in sizes) + " |")
    return "\n".join(lines)


def _batch(events: Sequence[AnyEvent], first_seq: int) -> Batch:
    return Batch(SCHEMA, STREAM, first_seq, BASE_MS, 0, VOCABULARY.digest(), tuple(events))


def _publish(name: str, payload: bytes, protocol: str, *, qos: int, aliased: bool = False) -> int:
    """Return the bytes of a PUBLISH: fixed header, topic, packet id, properties (MQTT 5: at most an alias), payload."""
    rest = 2 + (0 if aliased else len(name.encode())) + 2 * qos + len(payload)
    rest += (4 if aliased else 1) if protocol == "5" else 0
    return 1 + (1 if rest < 128 else 2 if rest < 16_384 else 3) + rest


if __name__ == "__main__":
    print(table())
