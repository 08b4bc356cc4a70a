"""Events read column by column are the events msgspec reads, however their numbers are written."""

import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.batches import NOTHING, read
from bridge.columns import MOST_ATTRIBUTES, NEVER_MS, Columns
from edge.wire import AnyEvent, Confirmed, Ended, Loss, Presence, Update
from tests.bridge.events import BASE_MS, confirmed, ended, presence, update

ARITY = {Confirmed: 8, Update: 9, Ended: 13, Presence: 6, Loss: 4}
pack = msgspec.msgpack.encode
number = st.sampled_from([0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**63 - 1]) | st.sampled_from(
    [-1, -32, -33, -128, -129, -32_768, -32_769, -(2**31), -(2**31) - 1, -(2**63)]
)
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


@st.composite
def _written(draw: st.DrawFn, value: int) -> bytes:
    """Draw one of the ways to write an integer."""
    ways = [struct.pack(f">B{letter}", first, value) for first, letter, low, high in WIDTHS if low <= value < high]
    return draw(st.sampled_from([pack(value), *ways]))


@st.composite
def _array(draw: st.DrawFn, items: list[bytes]) -> bytes:
    short = [bytes([0x90 | len(items)])] if len(items) < 16 else []
    heads = [*short, b"\xdc" + struct.pack(">H", len(items)), b"\xdd" + struct.pack(">I", len(items))]
    return draw(st.sampled_from(heads)) + b"".join(items)


@st.composite
def _event(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(list(ARITY)))
    items = [bytes([list(ARITY).index(kind) + 1])]
    items += [draw(_written(draw(number))) for _ in range(ARITY[kind])]
    more = [draw(_written(draw(number))) for _ in range(draw(st.integers(0, 20)))]
    if kind in (Update, Ended) and draw(st.booleans()):
        items.append(draw(_array(more)))
        items += draw(st.sampled_from([[], [pack({"newer": [1.5]})], [b"\xc0", b"\xc0"]]))
    return draw(_array(items))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(_event(), min_size=1, max_size=8), min_size=1, max_size=4))
def test_p5_columns_hold_what_msgspec_reads_whatever_the_widths(batches: list[list[bytes]]) -> None:
    columns = columns_of(*batches)
    expected = [event for one in columns.parsed for event in one.batch.events]
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
