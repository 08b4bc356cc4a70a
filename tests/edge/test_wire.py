"""The contract itself: ids, topics, round trips, and what malformed bytes do."""

import random
import zlib
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.link import LinkSettings
from edge.publish.publisher import PublisherSettings
from edge.wire import (
    MAX_BYTES,
    MAX_EVENTS,
    SCHEMA,
    Batch,
    BoxState,
    BridgeState,
    Confirmed,
    Covered,
    Ended,
    Event,
    Health,
    Loss,
    Presence,
    Update,
    Vocabulary,
    WireError,
    bridge_topic,
    check_id,
    decode_ack,
    decode_batch,
    encode_ack,
    encode_batch,
    parse_topic,
    topic,
)
from tests.bench.bytes import STREAM, VOCABULARY, json_of, mixture, visit, wire_bytes

DATABASE = UUID("6c6f6361-6c00-4000-8000-000000000000")
numbers = st.integers(-(2**31), 2**31)
unsigned = st.integers(0, 2**32)
flat = st.lists(st.integers(0, 255), max_size=12).map(tuple)
events = st.one_of(
    st.builds(Confirmed, *[unsigned, unsigned, numbers, *[unsigned] * 5]),
    st.builds(Update, *[unsigned, unsigned, numbers, *[unsigned] * 6], flat),
    st.builds(Ended, *[unsigned, unsigned, numbers, *[unsigned] * 10], flat),
    st.builds(Presence, *[unsigned, numbers, *[unsigned] * 4]),
    st.builds(Loss, st.integers(1, 2**63 - 1), *[unsigned] * 3),
)
batches = st.builds(
    Batch,
    st.just(SCHEMA),
    st.integers(1, 2**63 - 1),
    st.integers(1, 2**62 - 1),
    st.integers(0, 2**53),
    st.integers(0, 2),
    st.integers(0, 2**32 - 1),
    st.lists(events, min_size=1, max_size=20).map(tuple),
    st.one_of(st.none(), st.just(VOCABULARY)),
)


def a_batch(count: int = 3, **changes: object) -> Batch:
    batch = Batch(SCHEMA, STREAM, 1, 1_790_000_000_000, 0, VOCABULARY.digest(), tuple(mixture(random.Random(2), count)))
    return msgspec.structs.replace(batch, **changes)


@pytest.mark.parametrize("name", ["a", "box-1", "0", "A.b_c-9", "x" * 63])
def test_p1_ids_of_letters_digits_dots_and_dashes_make_topics(name: str) -> None:
    assert parse_topic(topic("site", name, "events")) == ("site", name, "events")


@pytest.mark.parametrize("name", ["", "a/b", "a+", "#", "+", "-a", ".a", "a b", "ä", "x" * 64, "a\n", "a\x00"])
def test_p1_any_other_id_is_refused_before_it_reaches_a_topic(name: str) -> None:
    with pytest.raises(WireError, match="cannot be used in a topic"):
        check_id(name)
    with pytest.raises(WireError):
        topic("site", name, "state")
    with pytest.raises(WireError):
        bridge_topic(name)


def test_p1_no_site_is_called_bridge() -> None:
    with pytest.raises(WireError, match="is not facefleet/1"):
        parse_topic("facefleet/1/bridge/b1/state")


def test_p2_client_id_derives_from_the_ids_alone() -> None:
    me = PublisherSettings("milan", "box-1", 5, DATABASE, LinkSettings("h", ""))
    assert me.client_id == "facefleet-milan-box-1"


@given(batches, st.booleans())
def test_p3_batches_come_back_as_they_went(batch: Batch, deflate: bool) -> None:
    assert decode_batch(encode_batch(batch, deflate=deflate)) == batch


def test_p3_events_hold_integers_only() -> None:
    fields = [field for kind in (Confirmed, Update, Ended, Presence, Loss) for field in msgspec.structs.fields(kind)]
    assert {str(field.type) for field in fields} == {"<class 'int'>", "tuple[int, ...]"}
    raw = msgspec.msgpack.decode(encode_batch(a_batch()))
    raw[6][0][3] = 0.5
    with pytest.raises(WireError, match="not a batch"):
        decode_batch(msgspec.msgpack.encode(raw))


def test_p4_fields_of_a_batch_stand_in_the_promised_order() -> None:
    batch = a_batch(vocabulary=VOCABULARY)
    schema, stream, first_seq, base_ms, clock, digest, rows, words = msgspec.msgpack.decode(encode_batch(batch))
    assert (schema, stream, first_seq, base_ms, clock) == (1, batch.stream, 1, batch.base_ms, 0)
    assert digest == VOCABULARY.digest()
    assert len(rows) == 3
    assert words[0] == ["entrance"]


@pytest.mark.parametrize("changes", [{"stream": 0}, {"stream": 2**63}, {"first_seq": 0}, {"first_seq": -4}])
def test_p4_sequence_numbers_and_streams_are_positive(changes: dict[str, int]) -> None:
    with pytest.raises(WireError, match="expected both positive"):
        decode_batch(encode_batch(a_batch(**changes)))


@given(batches, st.lists(st.one_of(st.integers(-(2**63), 2**64 - 1), st.text(max_size=5)), max_size=3))
def test_p5_unknown_trailing_fields_are_ignored(batch: Batch, more: list[object]) -> None:
    """A box from a newer version: each array is longer than we know."""
    raw = msgspec.msgpack.decode(msgspec.msgpack.encode(batch))
    raw[6] = [[*row, *more] for row in raw[6]]
    if raw[7] is not None:
        raw[7] += more
    assert decode_batch(msgspec.msgpack.encode([*raw, *more])) == batch


def test_p5_missing_trailing_fields_take_their_defaults() -> None:
    """A box from an older version: no vocabulary in the envelope, no attributes in the events."""
    raw = msgspec.msgpack.decode(encode_batch(a_batch()))
    rows = [row if row[0] == 1 else row[:-1] for row in raw[6]]
    assert [row[0] for row in rows] == [1, 2, 3]
    batch = decode_batch(msgspec.msgpack.encode([*raw[:6], rows]))
    assert batch.vocabulary is None
    assert [getattr(event, "attributes", ()) for event in batch.events] == [(), (), ()]
    assert decode_ack(msgspec.msgpack.encode([1, DATABASE.bytes, [[5, 9]]])).covered == (Covered(5, 9),)


def test_p5_unknown_json_fields_are_ignored() -> None:
    state = b'{"state":"online","stream":"01","boot":"b","machine":"m","nonce":"n","mood":"good"}'
    assert msgspec.json.decode(state, type=BoxState).nonce == "n"
    bridge = b'{"state":"accepting","bridge":"b","database":"d","mood":[1,{}]}'
    assert msgspec.json.decode(bridge, type=BridgeState).ack
    health = b'{"stream":"1","nonce":"n","t_ms":1,"uptime_s":1,"cameras":{"c":{"state":"live","x":1}},"models":{}}'
    assert msgspec.json.decode(health, type=Health).cameras["c"].state == "live"


def test_p6_no_batch_begins_with_the_byte_that_says_deflated() -> None:
    assert encode_batch(a_batch())[0] != 0x78
    assert encode_batch(a_batch(50), deflate=True)[0] == 0x78
    assert encode_batch(a_batch(1), deflate=True)[0] != 0x78, "deflating must not make a small batch larger"


def test_p6_a_deflated_bomb_is_refused_without_being_inflated() -> None:
    bomb = zlib.compress(b"\x00" * (64 << 20), 9)
    assert len(bomb) < MAX_BYTES
    with pytest.raises(WireError, match="truncated or larger than"):
        decode_batch(bomb)
    with pytest.raises(WireError, match="expected at most"):
        decode_batch(b"\x98" + b"\x00" * MAX_BYTES)


def test_p7_a_batch_has_one_to_five_hundred_events() -> None:
    for count in (0, MAX_EVENTS + 1):
        with pytest.raises(WireError, match=f"has {count} events"):
            decode_batch(encode_batch(a_batch(count)))
    assert len(decode_batch(encode_batch(a_batch(MAX_EVENTS))).events) == MAX_EVENTS


@settings(max_examples=400)
@given(st.binary(max_size=300))
def test_p7_any_bytes_are_a_batch_or_a_wire_error(payload: bytes) -> None:
    for decode in (decode_batch, decode_ack):
        try:
            decode(payload)
        except WireError:
            continue


@settings(max_examples=400)
@given(batches, st.data())
def test_p7_a_spoilt_batch_is_a_batch_or_a_wire_error(batch: Batch, data: st.DataObject) -> None:
    payload = bytearray(encode_batch(batch, deflate=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for spoilt in (bytes(payload), bytes(payload[:cut])):
        try:
            assert 1 <= len(decode_batch(spoilt).events) <= MAX_EVENTS
        except WireError:
            continue


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "not a batch"),
        (b"\xc1", "not a batch"),
        (b'{"schema":1}', "not a batch"),
        (b"\x91" * 5000, "not a batch"),
        (b"\x78\x9cgarbage", "damaged"),
        (zlib.compress(b"\x90")[:-1], "truncated"),
        (msgspec.msgpack.encode(a_batch(schema=2)), "schema 2, expected 1"),
    ],
)
def test_p7_malformed_batches_say_what_is_wrong(payload: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode_batch(payload)


def test_p8_vocabularies_that_differ_have_different_digests() -> None:
    other = Vocabulary(VOCABULARY.cameras, VOCABULARY.heads[:1])
    assert VOCABULARY.digest() != other.digest()
    assert VOCABULARY.digest() == Vocabulary(VOCABULARY.cameras, VOCABULARY.heads).digest() < 2**32


def test_p9_an_event_costs_at_most_55_bytes_in_a_batch_of_50_and_35_deflated() -> None:
    for seed in range(20):
        batch = a_batch(events=tuple(mixture(random.Random(seed))))
        assert len(encode_batch(batch)) <= 55 * 50
        assert len(encode_batch(batch, deflate=True)) <= 35 * 50
        assert len(json_of(batch.events, short=True)) > 2 * len(encode_batch(batch))


@pytest.mark.parametrize(("protocol", "acks", "most"), [("5", 2, 300), ("3.1.1", 1, 300), ("3.1.1", 2, 360)])
def test_p9_a_visit_of_a_minute_costs_at_most_300_bytes_headers_included(protocol: str, acks: int, most: int) -> None:
    """`tests/edge/publish/test_publisher.py` counts the same bytes at a broker."""
    for seed in range(20):
        assert wire_bytes(visit(random.Random(seed)), protocol=protocol, acks=acks) <= most


def test_p5_what_says_nothing_at_the_end_is_left_off() -> None:
    batch, ack = a_batch(), encode_ack(DATABASE, (Covered(7, 3), Covered(8, 1, (4, 5))))
    assert len(msgspec.msgpack.decode(encode_batch(batch))) == 7
    assert decode_batch(encode_batch(batch)) == batch
    assert [len(run) for run in msgspec.msgpack.decode(ack)[2]] == [2, 3]
    assert decode_ack(ack).covered == (Covered(7, 3), Covered(8, 1, (4, 5)))


@given(st.lists(st.builds(Covered, st.integers(1, 2**63 - 1), unsigned, flat), max_size=5).map(tuple))
def test_p16_acks_come_back_as_they_went(covered: tuple[Covered, ...]) -> None:
    ack = decode_ack(encode_ack(DATABASE, covered))
    assert (UUID(bytes=ack.database), ack.covered, ack.complete) == (DATABASE, covered, False)
    assert decode_ack(encode_ack(DATABASE, covered, complete=True)).complete


@pytest.mark.parametrize("payload", [[2, DATABASE.bytes, []], [1, b"short", []]])
def test_p16_an_ack_of_another_schema_or_without_a_uuid_is_refused(payload: list[object]) -> None:
    with pytest.raises(WireError, match="ack has schema"):
        decode_ack(msgspec.msgpack.encode(payload))


def test_event_kinds_are_told_apart_by_their_first_field() -> None:
    tags = {kind.__struct_config__.tag for kind in Event.__subclasses__()}
    assert tags == {1, 2, 3, 4, 5}
