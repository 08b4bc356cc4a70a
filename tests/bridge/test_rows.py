"""Messages → rows without a database: what is read, what is refused, and that nothing crashes."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.batches import DIGEST_BYTES, Incoming, read
from bridge.columns import Columns
from bridge.copy import Layout, timestamp
from bridge.meaning import EMPTY, Meaning
from bridge.ranges import Coverage
from bridge.rows import Rows
from bridge.runs import Run
from edge.wire import AnyEvent, Batch, Confirmed, Head, WireError, encode_batch
from tests.bridge.events import (
    BASE_MS,
    NOW,
    VOCABULARY,
    absurd_batches,
    batch,
    confirmed,
    ended,
    message,
    presence,
    sent,
    update,
)

MEANING = Meaning(1, 1, (10, 11), VOCABULARY.heads)
RETENTION_MS = 90 * 86_400_000


def rows_of(*events: AnyEvent) -> Rows:
    return rows_from(sent(*events))


def rows_from(*messages: Incoming) -> Rows:
    parsed = [read(message.payload) for message in messages]
    runs = [
        Run(message, one, MEANING, one.envelope.first_seq, one.last_seq, place)
        for place, (message, one) in enumerate(zip(messages, parsed, strict=True))
    ]
    return Rows(Columns.of(parsed), runs, RETENTION_MS)


def test_digest_depends_on_content_and_envelope_but_not_on_batch_cut_or_vocabulary() -> None:
    events: list[AnyEvent] = [ended(1), ended(2), presence()]
    whole = read(encode_batch(batch(events)))
    later = read(encode_batch(batch(events[1:], first_seq=2, inline=False)))
    assert [later.digest(seq) for seq in (2, 3)] == [whole.digest(seq) for seq in (2, 3)]
    assert len({whole.digest(seq) for seq in (1, 2, 3)}) == 3
    moved = read(encode_batch(batch(events, base_ms=BASE_MS + 1)))
    assert moved.digest(1) != whole.digest(1)
    assert len(whole.digests) == 3 * DIGEST_BYTES


def test_p5_digest_covers_fields_this_version_does_not_know() -> None:
    plain = msgspec.msgpack.decode(encode_batch(batch([presence()])))
    newer = [*plain[:6], [[*plain[6][0], 42]], plain[7]]
    parsed = read(msgspec.msgpack.encode(newer))
    assert parsed.batch.events == (presence(),)
    assert parsed.digest(1) != read(msgspec.msgpack.encode(plain)).digest(1)
    assert msgspec.msgpack.decode(parsed.single(1))[6] == newer[6], "a dead letter keeps the bytes as sent"


def test_single_event_can_be_published_again() -> None:
    parsed = read(encode_batch(batch([ended(1), ended(2), ended(3)], first_seq=40)))
    again = read(parsed.single(41))
    assert (again.batch.first_seq, again.batch.events) == (41, (ended(2),))
    assert again.digest(41) == parsed.digest(41)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_ms": 2**63}, "base_ms 9223372036854775808"),
        ({"clock": -1}, "clock -1"),
        ({"vocabulary_digest": 2**40}, "vocabulary digest 1099511627776"),
        ({"stream": 0}, "stream 0"),
        ({"vocabulary": msgspec.structs.replace(VOCABULARY, cameras=("a", "a"))}, "names a camera twice"),
        ({"vocabulary": msgspec.structs.replace(VOCABULARY, heads=(Head("a", ()), Head("a", ())))}, "a head twice"),
        ({"vocabulary": msgspec.structs.replace(VOCABULARY, cameras=("a\n",))}, "printable"),
    ],
)
def test_impossible_envelope_is_refused(change: dict[str, object], said: str) -> None:
    whole = msgspec.structs.replace(batch([presence()]), **change)
    with pytest.raises(WireError, match=said):
        read(msgspec.msgpack.encode(whole))


def test_visit_that_begins_and_ends_in_one_transaction_is_never_open() -> None:
    rows = rows_of(confirmed(1), update(1), ended(1), confirmed(2))
    assert [rows.open[name].tolist() for name in ("stream", "camera_id", "track")] == [[77], [10], [2]]
    assert len(rows.visits) == 1
    assert len(rows.updates) == 1


def test_events_of_a_visit_after_its_end_open_nothing() -> None:
    assert len(rows_of(ended(1), confirmed(1), update(1)).open) == 0


@given(st.permutations([0, 1, 2, 3]), st.integers(0, 3))
def test_p35_merging_open_visits_is_order_free_and_idempotent(order: list[int], again: int) -> None:
    sightings: list[AnyEvent] = [
        confirmed(1, 200, score=99),
        update(1, 60_000, 59_900),
        update(1, 120_000, 119_950),
        confirmed(1, 300),
    ]

    def merged(indices: list[int]) -> bytes:
        rows = rows_from(*[message(batch([sightings[i]], first_seq=i + 1)) for i in indices])
        assert len(rows.open) == 1
        return rows.open_rows()

    assert merged([*order, again]) == merged([0, 1, 2, 3])


def test_p32_retention_and_five_minutes_are_the_edges() -> None:
    now_ms = int(NOW.timestamp() * 1000) - BASE_MS
    inside = rows_of(presence(now_ms + 300_000), presence(now_ms - RETENTION_MS))
    outside = rows_of(presence(now_ms + 300_001), presence(now_ms - RETENTION_MS - 1))
    assert (len(inside.presence), len(inside.quarantined)) == (2, 0)
    assert (len(outside.presence), len(outside.quarantined)) == (0, 2)


def test_visit_is_quarantined_by_its_end_too() -> None:
    [event] = rows_of(ended(1, 0, 10**9)).quarantined
    assert event.at_ms == BASE_MS + 10**9


def test_labels_and_confidences_are_json_whatever_the_names() -> None:
    meaning = Meaning(1, 1, (10,), (Head('100 % "odd"', ("ünïcode",)), Head("age", ("0-19", "20+"))))
    labels, confidences = columns_of(meaning, (0, 0, 51, 1, 1, 255))
    assert msgspec.json.decode(labels[1:]) == {'100 % "odd"': "ünïcode", "age": "20+"}
    assert msgspec.json.decode(confidences[1:]) == {'100 % "odd"': 0.2, "age": 1.0}
    assert columns_of(meaning, (1, 0, 0)) == [b'\x01{"age":"0-19"}', b'\x01{"age":0.000}']
    assert jsonb_values(EMPTY) == [b"\x01{}", b"\x01{}"]


def columns_of(meaning: Meaning, flat: tuple[int, ...]) -> list[bytes]:
    """Return labels and confidences of one event as its row holds them."""
    attributes = np.array([flat], np.int64).T
    places, fine = meaning.names.places(attributes)
    assert fine.tolist() == [True]
    [tail] = meaning.names.tails(attributes, places)
    return jsonb_values(tail)


def jsonb_values(tail: bytes) -> list[bytes]:
    found = []
    while tail:
        end = 4 + int.from_bytes(tail[:4], "big")
        found.append(tail[4:end])
        tail = tail[end:]
    return found


def test_run_halves_meet_and_miss_nothing() -> None:
    incoming = sent(*[presence() for _ in range(7)])
    run = Run(incoming, read(incoming.payload), MEANING, 3, 7)
    left, right = run.halves()
    assert (left.first, left.last, right.first, right.last) == (3, 5, 6, 7)


def test_timestamp_counts_microseconds_since_2000() -> None:
    assert timestamp(946_684_800_000 + 1) == 1000


def test_layout_writes_the_binary_row_of_the_manual() -> None:
    packed = Layout("ih", tail=1).pack((7, -1), b"ab")
    assert packed == b"\0\x03" + b"\0\0\0\x04\0\0\0\x07" + b"\0\0\0\x02\xff\xff" + b"\0\0\0\x02ab"


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_p7_random_bytes_are_refused_without_crashing(payload: bytes) -> None:
    with pytest.raises(WireError):
        read(payload)


@settings(max_examples=300)
@given(absurd_batches())
def test_absurd_numbers_become_rows_letters_or_quarantine_and_never_crash(payload: bytes) -> None:
    """Whatever integers stand in an event, each event ends in at most one place."""
    incoming = message(payload)
    try:
        parsed = read(payload)
    except WireError:
        return
    rows = rows_from(incoming)
    settled = len(rows.visits) + len(rows.presence) + len(rows.losses) + len(rows.dead) + len(rows.quarantined)
    seen = sum(isinstance(event, Confirmed) for event in parsed.batch.events) + len(rows.updates)
    assert settled <= len(parsed.raw) <= settled + seen


def test_batch_and_coverage_agree_on_what_a_batch_covers() -> None:
    whole: Batch = batch([presence()] * 5, first_seq=3)
    assert Coverage(2).add(whole.first_seq, whole.first_seq + len(whole.events) - 1) == Coverage(7)
