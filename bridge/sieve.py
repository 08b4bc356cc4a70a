"""Holds back the events that cannot become rows: illegible, erased, beyond belief, out of range. Pure.

Every check looks at all events of a kind at once; only what fails one is looked at singly. What was held back stands
in the lists afterwards, each event in one of them.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from bridge.batches import read_event
from bridge.columns import Columns, near
from bridge.graves import Graves
from bridge.runs import DeadLetter, Lost, Quarantined, Run, RunColumns
from bridge.table import Mask, Table
from edge.wire import AnyEvent, Ended

FUTURE_MS = 5 * 60_000  # P32
NO_GRAVES: Mapping[int, Graves] = MappingProxyType({})
_SMALLINTS = ("x", "y", "w", "h", "score", "entry_x", "entry_y", "exit_x", "exit_y", "reason")
_INTEGERS = ("hits", "period_ms", "most", "entered")
_BITS = dict.fromkeys(_SMALLINTS, 15) | dict.fromkeys(_INTEGERS, 31)
_ADDED = ("position", "run", "lengths", "stream", "clock", "vocabulary_id", "seq", "camera_id", "at_ms", "end_ms")


class Sieve:
    """The events of some runs, and what of them is no row.

    Attributes:
        losses, dead, quarantined: what is no row.
        erased: the tombstones of events that came too late.
    """

    def __init__(self, columns: Columns, runs: Sequence[Run], retention_ms: int, graves: Mapping[int, Graves]) -> None:
        """Hold back what is no event at all; arguments as `Rows` has them."""
        self.losses: list[Lost] = []
        self.dead: list[DeadLetter] = []
        self.quarantined: list[Quarantined] = []
        self.erased: list[int] = []
        self._columns, self._runs, self._retention_ms = columns, runs, retention_ms
        self._of_runs = RunColumns.of(runs, columns.first)
        self._run_of = np.full(columns.first[-1], -1)  # by position; -1: not ours, or held back
        for number, run in enumerate(runs):
            start = int(columns.first[run.place]) - run.parsed.envelope.first_seq
            self._run_of[start + run.first : start + run.last + 1] = number
        self._hold_back(columns.illegible, "unknown event")
        self._hold_back(columns.impossible, "invalid")
        if graves:
            self._drop_erased(graves)
        self._take_losses()

    def events(self, kind: type[AnyEvent]) -> Table:
        """Return the events of a kind that can be believed and fit their columns.

        Beside its numbers each has `position` and `run`, what `RunColumns` says, `seq`, `camera_id`, `at_ms`; a visit's
        end has `end_ms`.
        """
        told, of_runs = self._columns.told[kind], self._of_runs
        run = self._run_of[told.at]
        if not (run >= 0).any():
            none = told.at[:0]
            return Table(dict.fromkeys((*told.numbers, *_ADDED), none))
        columns = {"position": told.at, "run": run, "lengths": told.lengths, **told.numbers}
        columns |= {f"attribute {i}": column for i, column in enumerate(told.attributes)}
        table = self._believable(Table(columns).where(run >= 0), ends=kind is Ended)
        table = self._known_camera(table)
        for name, bits in _BITS.items():
            if name in table.columns:
                table = self._fitting(table, name, bits)
        if "dwell_ms" in table.columns:
            dwells = table["dwell_ms"]
            table = self.keep(
                table,
                (dwells >= 0) & (dwells <= self._retention_ms + FUTURE_MS),
                lambda i: f"dwell of {dwells[i]} ms, expected 0 to the retention",
            )
        run = table["run"]
        camera_ids = of_runs.camera_ids[of_runs.first_camera[run] + table["camera"]]
        more = {name: getattr(of_runs, name)[run] for name in ("stream", "clock", "vocabulary_id")}
        return Table(table.columns | more | {"camera_id": camera_ids})

    def keep(self, table: Table, fine: Mask, why: Callable[[int], str], reason: str = "invalid") -> Table:
        """Make dead letters of the rows that are not fine, and return the others."""
        if fine.all():
            return table
        for row in np.flatnonzero(~fine).tolist():
            self._bury(int(table["position"][row]), reason, why(row))
        return table.where(fine)

    def _event(self, at: int) -> tuple[Run, int]:
        """Return run and sequence number of the event at a position."""
        number = int(self._run_of[at])
        return self._runs[number], at + int(self._of_runs.first_seq[number])

    def _bury(self, at: int, reason: str, error: str) -> None:
        run, seq = self._event(at)
        self.dead.append(run.letter(seq, reason, error))

    def _hold_back(self, found: Mapping[int, str], reason: str) -> None:
        for at, error in found.items():
            if self._run_of[at] >= 0:
                self._bury(at, reason, error)
                self._run_of[at] = -1

    def _drop_erased(self, graves: Mapping[int, Graves]) -> None:
        for at in np.flatnonzero(self._run_of >= 0).tolist():
            run, seq = self._event(at)
            if run.stream not in graves:
                continue
            envelope = run.parsed.envelope
            event = read_event(envelope.events[seq - envelope.first_seq])
            if not isinstance(event, str):
                tombstone = graves[run.stream].holds(run.stream, run.meaning, event, envelope.base_ms)
                if tombstone is not None:
                    self.erased.append(tombstone)
                    self._run_of[at] = -1

    def _take_losses(self) -> None:
        for at, loss in self._columns.losses():
            if self._run_of[at] < 0:
                continue
            if 0 < loss.stream < 2**63 and 0 < loss.first <= loss.last < 2**62 and 0 <= loss.reason < 2**15:
                run, seq = self._event(at)
                self.losses.append(Lost(run.stream, seq, loss, run))
            else:
                self._bury(at, "invalid", f"impossible loss {loss}")

    def _believable(self, table: Table, *, ends: bool) -> Table:
        """Add times and sequence numbers, and put what nobody can believe into quarantine (P32)."""
        of_runs, run = self._of_runs, table["run"]
        at_ms = of_runs.base_ms[run] + near(table["t_ms"])
        end_ms = at_ms + near(table["dwell_ms"]) if ends else at_ms
        received_ms = of_runs.received_ms[run]
        late = at_ms < received_ms - self._retention_ms
        good = ~late & (at_ms <= received_ms + FUTURE_MS) & (end_ms <= received_ms + FUTURE_MS)
        for i in np.flatnonzero(~good).tolist():
            told_by, seq = self._event(int(table["position"][i]))
            claimed = told_by.parsed.envelope.base_ms + int(table["t_ms"][i])
            claimed += int(table["dwell_ms"][i]) if ends and not late[i] else 0
            shown = max(-(2**63), min(2**63 - 1, claimed))
            raw = told_by.parsed.single(seq)
            self.quarantined.append(Quarantined(told_by.stream, seq, shown, told_by.message, raw))
        seqs = of_runs.first_seq[run] + table["position"]
        return Table(table.columns | {"seq": seqs, "at_ms": at_ms, "end_ms": end_ms}).where(good)

    def _known_camera(self, table: Table) -> Table:
        cameras, known = table["camera"], self._of_runs.cameras[table["run"]]
        return self.keep(
            table,
            (cameras >= 0) & (cameras < known),
            lambda i: f"camera {cameras[i]} is not in the vocabulary of {known[i]} cameras",
        )

    def _fitting(self, table: Table, name: str, bits: int) -> Table:
        numbers, limit = table[name], 1 << bits
        return self.keep(
            table,
            (numbers >= -limit) & (numbers < limit),
            lambda i: f"{name} is {numbers[i]}, its column's format requires {-limit} to {limit - 1}",
        )
