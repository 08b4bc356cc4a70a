"""Events → rows, without a database. `transaction.py` drives it, with all runs of events that are new to it."""

from collections.abc import Mapping, Sequence

import numpy as np

from bridge.columns import Columns
from bridge.copy import Layout, timestamp
from bridge.graves import Graves
from bridge.meaning import EMPTY, Names
from bridge.runs import Run
from bridge.sieve import NO_GRAVES, Sieve
from bridge.table import Ints, Table
from bridge.visits import first_ends, still_open
from edge.wire import AnyEvent, Confirmed, Ended, Presence, Update

VISIT = Layout("qiqqqqqhhhhhhhhihi", tail=2)
OPEN = Layout("qiqqqqqhhhhhhhhi", tail=2)
UPDATE = Layout("qqqiqqhhhhh", tail=2)
PRESENCE = Layout("qqqiiiqi")
_PATH = ("entry_x", "entry_y", "exit_x", "exit_y", "w", "h", "score")
VISIT_COLUMNS = (
    "stream", "camera_id", "track", "seq", "started_at", "ended_at", "dwell_ms", "reason", *_PATH, "hits", "clock",
    "vocabulary_id",
)  # fmt: skip
OPEN_COLUMNS = (
    "stream", "camera_id", "track", "first_seq", "last_seq", "started_at", "last_at", *_PATH, "clock", "vocabulary_id",
)  # fmt: skip
UPDATE_COLUMNS = ("stream", "seq", "at", "camera_id", "track", "dwell_ms", "x", "y", "w", "h", "score")
PRESENCE_COLUMNS = ("stream", "seq", "at", "camera_id", "period_ms", "most", "person_ms", "entered")


class Rows:
    """Rows of one transaction, and what does not become a row.

    Attributes:
        visits, open, updates, presence: the rows.
        pairs: (head, label): what the labels of visits count into.
        earliest_ms: the earliest start of any visit touched: where to look for its end.
        losses, dead, quarantined, erased: as in `Sieve`.
    """

    def __init__(
        self, columns: Columns, runs: Sequence[Run], retention_ms: int, graves: Mapping[int, Graves] = NO_GRAVES
    ) -> None:
        """Turn runs into rows; an event that cannot be one becomes a dead letter, and its neighbours live.

        Args:
            columns: of all messages that the runs are parts of.
            runs: those that are new.
            retention_ms: how old an event may be.
            graves: by stream, of boxes of which something was erased.
        """
        self._sieve = sieve = Sieve(columns, runs, retention_ms, graves)
        self.losses, self.dead = sieve.losses, sieve.dead
        self.quarantined, self.erased = sieve.quarantined, sieve.erased
        self.pairs: list[tuple[str, str]] = []
        self._name(runs)
        confirmed, updates, ended = (self._visits(kind) for kind in (Confirmed, Update, Ended))
        self.presence, self.updates = sieve.events(Presence), updates
        self.visits = sieve.keep(
            ended, first_ends(ended), lambda i: f"track {ended['track'][i]} ended twice in one transaction"
        )
        self.open = still_open([_sightings(confirmed), _sightings(updates)], self.visits)
        starts = (self.visits["at_ms"], self.open["started_ms"])
        self.earliest_ms = min((int(times.min()) for times in starts if len(times)), default=0)

    def refuse_ends(self, refused: Sequence[int]) -> None:
        """Take back visits, by their places in `visits`, that had ended before (P33)."""
        fine = np.ones(len(self.visits), bool)
        fine[refused] = False
        error = "this visit ended before; the row that came first stands"
        self.visits = self._sieve.keep(self.visits, fine, lambda _: error, "second end")

    def visit_rows(self) -> bytes:
        """Return the visits for COPY."""
        return _packed(self.visits, VISIT, VISIT_COLUMNS, started_at="at_ms", ended_at="end_ms")

    def open_rows(self) -> bytes:
        """Return the open visits for COPY."""
        return _packed(self.open, OPEN, OPEN_COLUMNS, started_at="started_ms", last_at="last_ms")

    def update_rows(self) -> bytes:
        """Return the updates for COPY."""
        return _packed(self.updates, UPDATE, UPDATE_COLUMNS, at="at_ms")

    def presence_rows(self) -> bytes:
        """Return the presence for COPY."""
        return _packed(self.presence, PRESENCE, PRESENCE_COLUMNS, at="at_ms")

    def _name(self, runs: Sequence[Run]) -> None:
        """Note which names each run's labels have, and where in `pairs` they begin; most boxes share them."""
        self._names: dict[Names, tuple[int, int]] = {}  # number, first pair
        for run in runs:
            if run.meaning.names not in self._names:
                self._names[run.meaning.names] = (len(self._names), len(self.pairs))
                self.pairs += run.meaning.names.pairs
        self._names_of = np.array([self._names[run.meaning.names][0] for run in runs], np.int64)

    def _visits(self, kind: type[AnyEvent]) -> Table:
        """Return events of visits, with their labels, and labels and confidences as the tails of their rows."""
        events = self._sieve.events(kind)
        if not len(events):
            return events
        lengths = events["lengths"]
        triples = "attribute numbers, expected triples"
        events = self._sieve.keep(events, lengths % 3 == 0, lambda i: f"{lengths[i]} {triples}")
        lengths = events["lengths"]
        most = int(lengths.max(initial=0))
        attributes = np.array([events[f"attribute {i}"] for i in range(most)], np.int64).reshape(most, len(events))
        names_of = self._names_of[events["run"]]
        labels, fine = np.full((most // 3, len(events)), -1), np.ones(len(events), bool)
        tails, refusals = [EMPTY] * len(events), dict[int, str]()
        for names, (number, first) in self._names.items() if most else ():
            for length in np.unique(lengths[(names_of == number) & (lengths > 0)]).tolist():
                rows = np.flatnonzero((names_of == number) & (lengths == length))
                places, good = names.places(attributes[:length, rows])
                refusals |= {at: names.refusal(attributes[:length, at].tolist()) for at in rows[~good].tolist()}
                fine[rows], rows, places = good, rows[good], places[:, good]
                labels[: length // 3, rows] = places + first
                for at, tail in zip(rows.tolist(), names.tails(attributes[:length, rows], places), strict=True):
                    tails[at] = tail
        return self._sieve.keep(Table(events.columns, tails, labels), fine, refusals.__getitem__)


def _sightings(events: Table) -> Table:
    """Return what events say of visits that go on, in the columns of open visits; of an update also since when."""
    started = events["at_ms"] - events["dwell_ms"] if "dwell_ms" in events.columns else events["at_ms"]
    names = ("stream", "camera_id", "track", "seq", "w", "h", "score", "clock", "vocabulary_id")
    columns = {name: events[name] for name in names} | {"started_ms": started, "last_ms": events["at_ms"]}
    columns |= {f"{end}_{axis}": events[axis] for end in ("entry", "exit") for axis in ("x", "y")}
    return Table(columns, events.tails)


def _packed(table: Table, layout: Layout, names: Sequence[str], **times: str) -> bytes:
    stamps: dict[str, Ints] = {name: timestamp(table[column]) for name, column in times.items()}
    return Table(table.columns | stamps, table.tails).pack(layout, names)
