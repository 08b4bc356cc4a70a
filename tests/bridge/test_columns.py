"""Events read column by column are the events msgspec reads, however their numbers are written."""

import random
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.batches import NOTHING, read
from bridge.columns import KINDS, MOST_ATTRIBUTES, NEVER_MS, Columns
from edge.wire import AnyEvent, Confirmed, Ended, Loss, Presence, Update
from tests.bridge.events import BASE_MS, confirmed, ended, presence, update

ARITY = {Confirmed: 8, Update: 9, Ended: 13, Presence: 6, Loss: 4}
pack = msgspec.msgpack.encode
EDGES = (0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**63 - 1)
NUMBERS = (*EDGES, *(-edge - 1 for edge in EDGES), -32, -33)
# First byte, struct letter, and what fits: MessagePack leaves open which one a writer takes.
WIDTHS = (
    (0xCC, "B", 0, 2**8), (0xCD, "H", 0, 2**16), (0xCE, "I", 0, 2**32), (0xCF, "Q", 0, 2**64),
    (0xD0, "b", -(2**7), 2**7), (0xD1, "h", -(2**15), 2**15), (0xD2, "i", -(2**31), 2**31),
    (0xD3, "q", -(2**63), 2**63),
)  # fmt: skip


def columns_of(*batches: list[bytes]) -> Columns:
    """Return the columns of batches of events that are given as bytes."""
    head = b"\x98\x01\x4d\x01" + pack(BASE_MS) + b"\x00\x07"
    return Columns.of(
        [read(head + b"\xdc" + struct.pack(">H", len(events)) + b"".join(events) + b"\xc0") for events in batches]
    )


def events_of(columns: Columns) -> dict[int, AnyEvent]:
    """Return the events by position, made of the columns."""
    found: dict[int, AnyEvent] = {}
    for kind, told in columns.told.items():
        for i, at in enumerate(told.at.tolist()):
            numbers = {name: int(column[i]) for name, column in told.numbers.items()}
            if "attributes" in kind.__struct_fields__:
                numbers["attributes"] = tuple(told.attributes[: told.lengths[i], i].tolist())
            found[at] = kind(**numbers)
    return found


def written(rng: random.Random, value: int) -> bytes:
    """Return an integer in one of the ways it may be written."""
    ways = [struct.pack(f">B{letter}", first, value) for first, letter, low, high in WIDTHS if low <= value < high]
    return rng.choice([pack(value), *ways])


def array(rng: random.Random, items: list[bytes]) -> bytes:
    short = [bytes([0x90 | len(items)])] if len(items) < 16 else []
    heads = [*short, b"\xdc" + struct.pack(">H", len(items)), b"\xdd" + struct.pack(">I", len(items))]
    return rng.choice([*short * 5, *heads]) + b"".join(items)


def event(rng: random.Random) -> bytes:
    tag, kind = rng.choice(list(KINDS.items()))
    items = [bytes([tag])] + [written(rng, rng.choice(NUMBERS)) for _ in range(ARITY[kind])]
    if kind in (Update, Ended) and rng.random() < 0.7:
        items.append(array(rng, [written(rng, rng.choice(NUMBERS)) for _ in range(rng.randrange(20))]))
        items += rng.choice([[], [pack({"newer": [1.5]})], [b"\xc0", b"\xc0"]])
    return array(rng, items)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64))
def test_p5_columns_hold_what_msgspec_reads_whatever_the_widths(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(10):
        batches = [[event(rng) for _ in range(rng.randrange(1, 20))] for _ in range(rng.randrange(1, 5))]
        columns = columns_of(*batches)
        expected = [one for parsed in columns.parsed for one in parsed.batch.events]
        assert not columns.illegible
        assert not columns.impossible
        assert events_of(columns) == dict(enumerate(expected))
        assert columns.first.tolist() == [sum(map(len, batches[:i])) for i in range(len(batches) + 1)]
        assert [columns.message(at) for at in columns.first[:-1].tolist()] == list(range(len(batches)))


@pytest.mark.parametrize(
    "odd",
    [
        pack([4, 0, 1.5, 3, 4, 5, 6]),
        pack([4, 0, 1, 2]),
        pack([9, 1]),
        pack([]),
        pack({"a": 1}),
        pack("x"),
        pack([True, 1]),
    ],
    ids=["float", "short", "newer", "empty", "map", "text", "bool"],
)
def test_p7_what_is_no_event_is_named_and_its_neighbours_are_read(odd: bytes) -> None:
    columns = columns_of([pack(presence(1)), odd, pack(presence(2))])
    assert list(columns.illegible) == [1]
    assert events_of(columns) == {0: presence(1), 2: presence(2)}
    assert columns.parsed[0].batch.events[1] == NOTHING


def test_number_no_column_could_hold_is_named_but_an_absurd_time_is_kept_for_quarantine() -> None:
    columns = columns_of([pack(ended(2**63)), pack(presence(2**64 - 1)), pack(update(1, attributes=(0, 2**63, 1)))])
    assert columns.impossible == {
        0: f"track {2**63} is too large for its column",
        2: f"an attribute {2**63} is too large for its column",
    }
    assert events_of(columns) == {1: presence(2**63 - 1)}


def test_event_of_a_thousand_attributes_costs_itself_and_no_memory() -> None:
    columns = columns_of([pack(ended(1, attributes=(0,) * 999)), pack(ended(2))])
    assert columns.impossible == {0: f"999 attribute numbers, expected at most {MOST_ATTRIBUTES}"}
    assert columns.told[Ended].attributes.shape == (6, 1)


def test_lag_counts_from_when_a_box_could_tell() -> None:
    columns = columns_of([pack(confirmed(1, 5)), pack(ended(1, 5, 20)), pack(presence(7)), pack(Loss(1, 1, 2, 0))])
    assert columns.known_ms().tolist() == [5, 25, 10_007, NEVER_MS]


def test_no_messages_are_no_columns() -> None:
    assert events_of(Columns.of([])) == {}
