"""Bad input: ten thousand payloads that no box of this version sends. Nothing crashes, all of it leaves a trace."""

import math
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.batches import Parsed, read
from bridge.columns import Columns
from bridge.meaning import Meaning
from bridge.rows import Rows
from bridge.runs import Run
from bridge.store import Store
from edge.wire import MAX_BYTES, MAX_EVENTS, WireError, encode_batch
from tests.bridge.events import (
    BASE_MS,
    VOCABULARY,
    batch,
    confirmed,
    count,
    ended,
    message,
    presence,
    query,
    sent,
    update,
)
from tests.bridge.test_roles import as_role

MEANING = Meaning(1, 1, (10, 11), VOCABULARY.heads)
RETENTION_MS = 90 * 86_400_000
Payload = Callable[[random.Random, list[Any]], bytes]
pack = msgspec.msgpack.encode
_odd_values = (math.nan, math.inf, -1, 2**63, -(2**63), 2**64 - 1, 1.5, "x", b"x", None, True, [], {}, [[]] * 3, "\0")


def plain(rng: random.Random) -> list[Any]:
    """Return a good batch as lists, in a stream of its own."""
    track = rng.randrange(2**31)
    events = rng.choices([confirmed(track), update(track), ended(track), presence(), ended(track + 1)], k=4)
    return list(msgspec.msgpack.decode(encode_batch(batch(events, stream=rng.randrange(1, 2**63)))))


def event_of(rng: random.Random, whole: list[Any]) -> list[Any]:
    events: list[list[Any]] = whole[6]
    return rng.choice(events)


def _field(rng: random.Random, whole: list[Any]) -> bytes:
    row = event_of(rng, whole)
    row[rng.randrange(len(row))] = rng.choice(_odd_values)
    return pack(whole)


def _envelope(rng: random.Random, whole: list[Any]) -> bytes:
    whole[rng.randrange(len(whole))] = rng.choice(_odd_values)
    return pack(whole)


def _newer_event(rng: random.Random, whole: list[Any]) -> bytes:
    whole[6].insert(rng.randrange(5), [rng.choice([6, 7, 200, "walk"]), *rng.choices(range(99), k=rng.randrange(9))])
    return pack(whole)


def _newer_fields(rng: random.Random, whole: list[Any]) -> bytes:
    event_of(rng, whole).append({"pose": [1, 2.5]})
    whole[7].append("more")
    return pack([*whole, rng.choice(_odd_values), 7])


def _older(rng: random.Random, whole: list[Any]) -> bytes:
    row = event_of(rng, whole)
    del row[rng.choice([-1, 1, 3]) :]
    return pack(whole[: rng.choice([3, 6, 7, 8])])


def _times(rng: random.Random, whole: list[Any]) -> bytes:
    whole[3] = rng.choice([0, -1, BASE_MS * 2, BASE_MS - 10**11, 2**61, -(2**61), 2**62, 253_402_300_800_000])
    event_of(rng, whole)[3] = rng.choice([10**15, -(10**15), 2**62, 0])
    return pack(whole)


def _names(rng: random.Random, whole: list[Any]) -> bytes:
    whole[7][0] = rng.choice([["a+b", "c/#"], ["\0"], [""], ["x" * 999], ["a", "a"], [], ["\ud7ff"], [b"x"], 5])
    return pack(whole)


def _flipped(rng: random.Random, whole: list[Any]) -> bytes:
    raw = bytearray(pack(whole))
    for _ in range(rng.randrange(1, 4)):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def _cut(rng: random.Random, whole: list[Any]) -> bytes:
    raw = rng.choice([pack(whole), zlib.compress(pack(whole))])
    return raw[: rng.randrange(len(raw))]


def _large(rng: random.Random, whole: list[Any]) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return zlib.compress(bytes(MAX_BYTES + 1))
    if kind == 1:
        return rng.randbytes(8) * (MAX_BYTES // 8 + 1)
    if kind == 2:
        return b"\x91" * rng.randrange(1, 5000)  # a list in a list in a list …
    whole[6] = rng.choice([[], [whole[6][0]] * (MAX_EVENTS + 1)])
    return pack(whole)


PAYLOADS: tuple[Payload, ...] = (
    _field, _envelope, _newer_event, _newer_fields, _older, _times, _names, _flipped, _cut, _large,
    lambda rng, _: rng.randbytes(rng.randrange(200)),
    lambda rng, whole: pack([rng.choice([0, 2, 99]), *whole[1:]]),
)  # fmt: skip


def payload(rng: random.Random) -> bytes:
    return rng.choice(PAYLOADS)(rng, plain(rng))


def parsed(raw: bytes) -> Parsed | None:
    try:
        return read(raw)
    except WireError:
        return None


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 2**64))
def test_p7_ten_thousand_payloads_are_refused_as_a_whole_or_settled_event_by_event(seed: int) -> None:
    """250 times 40: what can be read at all has a place for each of its events, and only one."""
    rng = random.Random(seed)
    for _ in range(40):
        raw = payload(rng)
        batch_ = parsed(raw)
        if batch_ is None:
            continue
        first, length = batch_.batch.first_seq, len(batch_.batch.events)
        run = Run(message(raw), batch_, MEANING, first, first + length - 1)
        rows = Rows(Columns.of([batch_]), [run], RETENTION_MS)
        letters = {letter.seq for letter in rows.dead} | {event.seq for event in rows.quarantined}
        assert len(letters) == len(rows.dead) + len(rows.quarantined)
        assert set(batch_.illegible) <= letters
        for letter in (*rows.dead, *rows.quarantined):
            again = read(letter.raw)
            assert (again.batch.first_seq, len(again.batch.events)) == (letter.seq, 1), "it can be published again"
        told = [event for event in batch_.batch.events if type(event).__name__ in ("Confirmed", "Update")]
        settled = len(rows.visits) + len(rows.presence) + len(rows.losses) + len(letters)
        assert settled <= length <= settled + len(told)


@pytest.fixture
def store(dsn: str) -> Iterator[Store]:
    with Store(as_role(dsn, "ingest")) as opened:
        yield opened


def test_p7_hundreds_of_payloads_through_a_real_database_harm_nobody_and_leave_a_trace(store: Store, dsn: str) -> None:
    """Each is written together with a good message of another box, which must get in whatever its neighbour is."""
    rng = random.Random(20)
    rows = letters = 0
    for number in range(1, 361):
        raw = payload(rng)
        good = message(batch([ended(number)], stream=5, first_seq=number), box="good")
        written = store.write([message(raw, box="bad"), good])
        assert written.covered["lab", "good"][0].upto == number
        known = parsed(raw)
        if known is None:
            assert (written.inserted, written.dead_letters) == (1, 1)
            letters += 1
        elif not written.unknown_vocabulary:
            events = len(known.batch.events)
            assert written.inserted - 1 + written.dead_letters + written.quarantined == events
            stream, held = known.batch.stream, written.covered["lab", "bad"]
            last = known.batch.first_seq + events - 1
            (own,) = (covered for covered in held if covered.stream == stream)
            assert own.upto == last or own.ranges[-1] >= last, "covered: the box need not send it again"
            letters += written.dead_letters
            rows += written.inserted - 1
    assert count(dsn, "visits WHERE stream = 5") == 360
    assert query(dsn, "SELECT sum(times) AS n FROM dead_letters") == [{"n": letters}]
    assert rows > 100 < letters


def test_p7_unknown_event_of_a_newer_box_costs_itself_and_not_its_neighbours(store: Store, dsn: str) -> None:
    whole = msgspec.msgpack.decode(encode_batch(batch([confirmed(1), ended(1), presence()])))
    whole[6].insert(1, [6, 1, 2, "hello"])
    written = store.write([message(pack(whole))])
    assert (written.inserted, written.dead_letters) == (3, 1)
    assert [(c.upto, c.ranges) for c in written.covered["lab", "b1"]] == [(4, ())]
    (letter,) = query(dsn, "SELECT reason, error, stream, seq, raw FROM dead_letters")
    assert (letter["reason"], letter["stream"], letter["seq"]) == ("unknown event", 77, 2)
    assert "6" in letter["error"]
    assert msgspec.msgpack.decode(letter["raw"])[6] == [[6, 1, 2, "hello"]], "as it was sent, for a newer bridge"
    assert store.write([message(pack(whole))]).duplicates == 4


def test_p7_not_a_number_costs_one_event(store: Store, dsn: str) -> None:
    whole = msgspec.msgpack.decode(encode_batch(batch([ended(1), ended(2)])))
    whole[6][0][4] = math.nan
    written = store.write([message(pack(whole))])
    assert (written.inserted, written.dead_letters) == (1, 1)
    assert "float" in query(dsn, "SELECT error FROM dead_letters")[0]["error"]


def test_p5_older_box_without_the_newest_fields_is_understood(store: Store, dsn: str) -> None:
    whole = msgspec.msgpack.decode(encode_batch(batch([ended(1, attributes=()), update(2)])))
    for row in whole[6]:
        del row[-1]  # attributes came later
    assert store.write([message(pack(whole)), sent(presence(), stream=9)]).inserted == 3
    assert query(dsn, "SELECT labels FROM visits") == [{"labels": {}}]
