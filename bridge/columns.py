"""The events of many messages at once: MessagePack → columns of integers. Pure; `rows.py` makes rows of them.

One Python object per event and one per number was most of what the bridge did. Here each kind of event is walked
through column by column: numpy reads the same field of all events of a kind in one step, wherever each of them lies.
What is not written as every box writes it (a number of another type, an envelope too long) is read singly, by msgspec,
and put beside the others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from bridge.batches import Parsed, read_event
from edge.wire import AnyEvent, Confirmed, Ended, Loss, Presence, Update

Ints = NDArray[np.int64]
KINDS: dict[int, type[AnyEvent]] = {1: Confirmed, 2: Update, 3: Ended, 4: Presence, 5: Loss}
MOST_ATTRIBUTES = 96  # numbers of one event: 32 heads
FAR_MS = 2**61  # times are cut to ±FAR_MS where they are added: beyond belief already, and no sum overflows
NEVER_MS = -2 * FAR_MS
_TIMES = ("t_ms", "dwell_ms")
_PAD = bytes(16)  # so that eight bytes can be read at the last number


def _numbers() -> tuple[Ints, Ints, Ints, Ints]:
    """Return, by first byte: length of a number (0: no integer), where it begins, how far to shift it, its mask."""
    length, begin, shift, mask = (np.zeros(256, np.int64) for _ in range(4))
    small = [*range(0x80), *range(0xE0, 0x100)]
    length[small], shift[small], mask[small] = 1, 56, -1
    for first, count in ((0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8), (0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8)):
        signed = first >= 0xD0 or count == 8  # a uint64 beyond 2^63 shows as negative
        length[first], begin[first], shift[first] = 1 + count, 1, 64 - 8 * count
        mask[first] = -1 if signed else (1 << 8 * count) - 1
    return length, begin, shift, mask


_LENGTH, _BEGIN, _SHIFT, _MASK = _numbers()
_UINT64 = 0xCF


@dataclass(frozen=True, slots=True)
class Told:
    """All events of one kind, in order.

    Attributes:
        at: (n,) where each stands among all events.
        numbers: field → (n,); without `attributes`.
        attributes: (most, n), flat: head, label, confidence, head, …; column i counts up to `lengths[i]`.
        lengths: (n,) numbers in each event's attributes.
    """

    at: Ints
    numbers: dict[str, Ints]
    attributes: Ints
    lengths: Ints


@dataclass(frozen=True, slots=True)
class Columns:
    """The events of some messages, message after message.

    Attributes:
        parsed: the messages.
        first: message → where its first event stands among all events; one more entry for the end.
        told: by kind.
        illegible: position → why it is no event (P7).
        impossible: position → which of its numbers no column could hold.
    """

    parsed: Sequence[Parsed]
    first: Ints
    told: dict[type[AnyEvent], Told]
    illegible: dict[int, str]
    impossible: dict[int, str]

    @classmethod
    def of(cls, parsed: Sequence[Parsed]) -> Self:
        """Read the events of messages."""
        events = list(chain.from_iterable(one.envelope.events for one in parsed))
        first = _sums(len(one.envelope.events) for one in parsed)
        starts = _sums(map(len, events))
        reader = _Reader(b"".join((*events, _PAD)))
        kinds, fields, places = reader.headers(starts[:-1])
        columns = cls(parsed, first, dict(_NOTHING), {}, {})
        singly = np.ones(len(events), bool)
        for number, kind in KINDS.items():
            names = _fields(kind)
            optional = "attributes" in kind.__struct_fields__
            mine = np.flatnonzero((kinds == number) & (fields > len(names)))
            if len(mine):
                columns.told[kind], fits = reader.read(
                    mine, places[mine], names, (fields[mine] > len(names) + 1) & optional
                )
                singly[mine[fits]] = False
        columns._read_singly(np.flatnonzero(singly).tolist(), events)
        return columns

    def known_ms(self) -> Ints:
        """Return when a box could first tell of each event, ms from its batch's base; NEVER_MS for a loss.

        That is when a visit ends or a period does: counted from an event's own time, the lag would be a visit's length.
        """
        known = np.full(self.first[-1], NEVER_MS)
        for kind, length in ((Confirmed, ""), (Update, ""), (Ended, "dwell_ms"), (Presence, "period_ms")):
            told = self.told[kind]
            known[told.at] = near(told.numbers["t_ms"])
            if length:
                known[told.at] += near(told.numbers[length])
        return known

    def message(self, at: int) -> int:
        """Return which message the event at a position is from."""
        return int(np.searchsorted(self.first, at, side="right")) - 1

    def losses(self) -> Iterable[tuple[int, Loss]]:
        """Return position and content of each reported loss."""
        told = self.told[Loss]
        numbers = zip(*(column.tolist() for column in told.numbers.values()), strict=True)
        return [(at, Loss(*each)) for at, each in zip(told.at.tolist(), numbers, strict=True)]

    def _read_singly(self, positions: Sequence[int], events: Sequence[msgspec.Raw]) -> None:
        """Read what is written unusually, and put it among the others."""
        found: dict[type[AnyEvent], list[tuple[int, AnyEvent]]] = {}
        for at in positions:
            event = read_event(events[at])
            if isinstance(event, str):
                self.illegible[at] = event
            elif why := _misfit(event):
                self.impossible[at] = why
            else:
                found.setdefault(type(event), []).append((at, event))
        for kind, items in found.items():
            self.told[kind] = _merged(self.told[kind], items)


class _Reader:
    """Reads MessagePack numbers at many places of one buffer."""

    def __init__(self, buffer: bytes) -> None:
        self._bytes = np.frombuffer(buffer, np.uint8)
        # The eight bytes that begin at each byte, as one big-endian number.
        self._words = np.ndarray((len(buffer) - 7,), ">i8", buffer, strides=(1,))

    def headers(self, starts: Ints) -> tuple[Ints, Ints, Ints]:
        """Return kind (0: no plain array), number of fields with it, and where its first field begins."""
        plain, fields, places = self._arrays(starts)
        kind = self._bytes[places].astype(np.int64)
        return np.where(plain & (fields > 0), kind, 0), fields, places + 1

    def read(
        self, at: Ints, places: Ints, names: Sequence[str], more: NDArray[np.bool_]
    ) -> tuple[Told, NDArray[np.bool_]]:
        """Read the named fields and, where there is `more`, attributes; return those that could be, and which."""
        good = np.ones(len(at), bool)
        numbers = {}
        for name in names:
            numbers[name], places = self._number(places, good)
        lengths, attributes = np.zeros(len(at), np.int64), np.zeros((0, len(at)), np.int64)
        if more.any():
            plain, counts, inside = self._arrays(places)
            good &= ~more | (plain & (counts <= MOST_ATTRIBUTES))
            lengths = np.where(more & good, counts, 0)
            places = np.where(more, inside, places)
            attributes = np.zeros((int(lengths.max(initial=0)), len(at)), np.int64)
            for i, row in enumerate(attributes):
                some = np.flatnonzero(lengths > i)
                fine = np.ones(len(some), bool)
                row[some], places[some] = self._number(places[some], fine)
                good[some] &= fine
        told = Told(at, numbers, attributes, lengths)
        return (told if good.all() else _where(told, good)), good

    def _arrays(self, places: Ints) -> tuple[NDArray[np.bool_], Ints, Ints]:
        """Read the head of an array at each place; return whether there is one, its length, where it begins."""
        head = self._bytes[places].astype(np.int64)
        short, long = head & 0xF0 == 0x90, head == 0xDC
        count = np.where(short, head & 0x0F, self._words[places] >> 40 & 0xFFFF)
        return short | long, count, places + np.where(long, 3, 1)

    def _number(self, places: Ints, good: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """Read a number at each place; return them and where the next ones begin, and mark what is none."""
        first = self._bytes[places]
        length = _LENGTH[first]
        value = self._words[places + _BEGIN[first]].astype(np.int64)
        value >>= _SHIFT[first]
        value &= _MASK[first]
        good &= (length > 0) & ((first != _UINT64) | (value >= 0))
        return value, places + length


def _where(told: Told, mask: NDArray[np.bool_]) -> Told:
    numbers = {name: column[mask] for name, column in told.numbers.items()}
    return Told(told.at[mask], numbers, told.attributes[:, mask], told.lengths[mask])


def _fields(kind: type[AnyEvent]) -> tuple[str, ...]:
    return tuple(name for name in kind.__struct_fields__ if name != "attributes")


def _sums(lengths: Iterable[int]) -> Ints:
    """Return 0, the first length, the first two, …"""
    found = np.fromiter(lengths, np.int64)
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(found)))


def near(times: Ints) -> Ints:
    """Cut absurd times, so that they can be added."""
    return np.clip(times, -FAR_MS, FAR_MS)


def _misfit(event: AnyEvent) -> str:
    """Return which number of an event no column could hold. An absurd time is none: it goes to quarantine."""
    numbers = [(name, getattr(event, name)) for name in _fields(type(event)) if name not in _TIMES]
    attributes = getattr(event, "attributes", ())
    if len(attributes) > MOST_ATTRIBUTES:
        return f"{len(attributes)} attribute numbers, expected at most {MOST_ATTRIBUTES}"
    numbers += [("an attribute", number) for number in attributes]
    return next((f"{name} {value} is too large for its column" for name, value in numbers if value >= 2**63), "")


def _merged(told: Told, items: Sequence[tuple[int, AnyEvent]]) -> Told:
    """Put events that were read singly in their places."""
    rows = [getattr(event, "attributes", ()) for _, event in items]
    most = max(len(told.attributes), *map(len, rows))
    own = np.array([[*row, *repeat(0, most - len(row))] for row in rows], np.int64).T.reshape(most, len(items))
    at = np.concatenate((told.at, [at for at, _ in items]))
    order = np.argsort(at)
    numbers = {
        name: np.concatenate((column, [min(getattr(event, name), 2**63 - 1) for _, event in items]))[order]
        for name, column in told.numbers.items()
    }
    wide = np.pad(told.attributes, ((0, most - len(told.attributes)), (0, 0)))
    lengths = np.concatenate((told.lengths, [len(row) for row in rows]))
    return Told(at[order], numbers, np.concatenate((wide, own), axis=1)[:, order], lengths[order])


_NONE = np.zeros(0, np.int64)
_NOTHING = {
    kind: Told(_NONE, dict.fromkeys(_fields(kind), _NONE), np.zeros((0, 0), np.int64), _NONE) for kind in KINDS.values()
}
