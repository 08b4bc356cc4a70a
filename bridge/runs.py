"""Runs of new events, and what an event becomes that is no row. Pure values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bridge.batches import Incoming, Parsed
from bridge.meaning import Meaning
from bridge.table import Ints
from edge.wire import Loss


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive events of one message, first…last: all new to the database, or all covered before."""

    message: Incoming
    parsed: Parsed
    meaning: Meaning
    first: int
    last: int
    place: int = 0  # of the message among those whose columns were read together

    def __len__(self) -> int:
        return self.last - self.first + 1

    @property
    def stream(self) -> int:
        """The stream its events belong to."""
        return self.parsed.envelope.stream

    def halves(self) -> tuple["Run", "Run"]:
        """Split, to find a bad row."""
        middle = (self.first + self.last) // 2
        return (
            Run(self.message, self.parsed, self.meaning, self.first, middle, self.place),
            Run(self.message, self.parsed, self.meaning, middle + 1, self.last, self.place),
        )

    def letter(self, seq: int, reason: str, error: str) -> "DeadLetter":
        """Return the dead letter of one of its events."""
        return DeadLetter(reason, error, self.message, self.parsed.single(seq), self.stream, seq)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What cannot become a row, with bytes that can be published again."""

    reason: str
    error: str
    message: Incoming
    raw: bytes
    stream: int | None = None
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An event whose time is beyond belief (P32)."""

    stream: int
    seq: int
    at_ms: int
    message: Incoming
    raw: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """A loss a box reports, and where it said so."""

    stream: int
    seq: int
    loss: Loss
    run: Run


@dataclass(frozen=True, slots=True)
class RunColumns:
    """What holds for all events of a run, as columns (n runs,): event columns are made by indexing with the run.

    Attributes:
        first_seq: what to add to an event's position to get its sequence number.
        cameras, first_camera: how many cameras a vocabulary names, and where in `camera_ids` they begin.
        camera_ids: of all runs, one vocabulary after another.
    """

    stream: Ints
    first_seq: Ints
    base_ms: Ints
    received_ms: Ints
    clock: Ints
    vocabulary_id: Ints
    cameras: Ints
    first_camera: Ints
    camera_ids: Ints

    @classmethod
    def of(cls, runs: Sequence[Run], first: Ints) -> "RunColumns":
        """Return the columns of runs; `first` tells of each message where its first event stands among all."""
        rows = [
            (
                run.stream,
                run.parsed.envelope.first_seq,
                run.parsed.envelope.base_ms,
                int(run.message.received_at.timestamp() * 1000),
                run.parsed.envelope.clock,
                run.meaning.vocabulary_id,
                len(run.meaning.camera_ids),
                run.place,
            )
            for run in runs
        ]
        columns = np.array(rows, np.int64).reshape(len(runs), 8).T
        stream, first_seq, base_ms, received_ms, clock, vocabulary_id, cameras, place = columns
        ids = [camera_id for run in runs for camera_id in run.meaning.camera_ids]
        return cls(
            stream, first_seq - first[place], base_ms, received_ms, clock, vocabulary_id, cameras,
            np.cumsum(cameras) - cameras, np.array(ids, np.int64),
        )  # fmt: skip
