"""Outbox and delivery under everything that may happen between a box and its database, drawn by hypothesis.

The wire loses, repeats and reorders; acks come late; the box is killed; the database is restored from a backup. At
all times every accepted event is in the database or still owed, and in the end it is in the database, with the bytes
it was accepted with.
"""

import contextlib
import random
import shutil
import sqlite3
import tempfile
from pathlib import Path
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge.publish import outbox as outbox_module
from edge.publish.clock import MediaClock
from edge.publish.coverage import DOUBT_S
from edge.publish.delivery import Delivery, DeliverySettings
from edge.publish.outbox import Outbox
from edge.publish.ranges import Ranges
from edge.wire import AnyEvent, Batch, Covered, Presence, Vocabulary, decode_batch

DATABASE = UUID(int=9)
WORDS = Vocabulary(("cam",))
Key = tuple[int, int]
Held = dict[Key, tuple[int, AnyEvent]]


class Machine(RuleBasedStateMachine):
    """One box with its lives, one wire, one database with backups."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.gather_rows, outbox_module.GATHER_ROWS = outbox_module.GATHER_ROWS, 2  # so that a few steps gather
        self.now_s = 0.0
        self.stream = 0
        self.accepted: set[Key] = set()
        self.bytes: Held = {}
        self.database: Held = {}
        self.backup: Held = {}
        self.wire: list[Batch] = []
        self.acks: list[tuple[Covered, ...]] = []
        self.open()

    def open(self) -> None:
        self.stream += 1
        self.outbox = Outbox(
            self.folder / "outbox.db", stream=self.stream, vocabulary=WORDS, clock=MediaClock(0), reserve_bytes=0
        )
        self.outbox.use(DATABASE)
        self.delivery = Delivery(self.outbox, DeliverySettings(), random.Random(1))
        self.delivery.connected(10)

    @rule(count=st.integers(1, 7), gather=st.booleans())
    def accept(self, count: int, gather: bool) -> None:
        before, self.outbox.gather = self.outbox.state.accepted, gather
        self.outbox.append([Presence(0, i, 60_000, count, 5, 1) for i in range(count)])
        self.outbox.commit(self.now_s)
        assert self.outbox.state.accepted == before + count
        self.accepted |= {(self.stream, seq) for seq in range(before + 1, before + count + 1)}

    @rule(seconds=st.sampled_from([0.3, 3.0, DOUBT_S, 31.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.outbox.commit(self.now_s)
        if self.outbox.retakes:
            self.outbox.retakes = 0
            self.delivery.rewind()

    @rule(most=st.integers(1, 9))
    def send(self, most: int) -> None:
        for mid in range(most):
            row = self.delivery.next(self.now_s)
            if row is None:
                return
            raw = self.outbox.payload(row, inline_vocabulary=not self.delivery.first_time(row))
            assert raw is not None
            self.delivery.sent(row, mid, self.now_s)
            self.delivery.puback(mid)
            self.wire.append(decode_batch(raw))

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Take any message off the wire, and perhaps leave a copy there."""
        if not self.wire:
            return
        batch = self.wire.pop(data.draw(st.integers(0, len(self.wire) - 1)))
        if data.draw(st.booleans()):
            self.wire.append(batch)
        for seq, event in enumerate(batch.events, batch.first_seq):
            row = (batch.base_ms, event)
            assert self.bytes.setdefault((batch.stream, seq), row) == row, "a key never means two things (P11, P12)"
            self.database[batch.stream, seq] = row

    @rule()
    def lose_the_wire(self) -> None:
        self.wire.clear()
        self.delivery.connected(10)

    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        """The database says what it holds; the box hears it, or an older one."""
        self.acks.append(self.truth())
        self.hear(self.acks[data.draw(st.integers(max(0, len(self.acks) - 3), len(self.acks) - 1))])

    @rule()
    def back_up(self) -> None:
        self.backup = dict(self.database)

    @rule()
    def restore(self) -> None:
        """A backup from before a stream began shows only in what else is missing: here it knows each stream's first."""
        self.database = {key: row for key, row in self.database.items() if key in self.backup or key[1] == 1}

    @rule()
    def kill_the_box(self) -> None:
        self.outbox._held.file._db.close()
        self.open()

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """Whatever the database does not hold is in the file; so a restored database can have it back."""
        held: dict[int, Ranges] = {row.stream: row.held() for row in self.outbox._held.streams.values()}
        for stream, seq in self.accepted - self.database.keys():
            assert held[stream].covers(seq, seq)

    def teardown(self) -> None:
        try:
            self.drain()
            assert self.database.keys() >= self.accepted
            assert self.outbox.idle()
        finally:
            outbox_module.GATHER_ROWS = self.gather_rows
            with contextlib.suppress(sqlite3.Error):
                self.outbox.close()
            shutil.rmtree(self.folder)

    def drain(self) -> None:
        self.acks.clear()
        for _ in range(60):
            self.hear(self.truth())
            self.wait(DOUBT_S)
            self.hear(self.truth())
            self.send(100)
            for batch in self.wire:
                for seq, event in enumerate(batch.events, batch.first_seq):
                    self.database[batch.stream, seq] = (batch.base_ms, event)
            self.wire.clear()
            self.hear(self.truth())
            if self.database.keys() >= self.accepted and self.outbox.idle():
                return

    def hear(self, said: tuple[Covered, ...]) -> None:
        self.outbox.cover(DATABASE, said, self.now_s)
        self.delivery.acked(self.now_s)

    def truth(self) -> tuple[Covered, ...]:
        """Return what the database holds, as a bridge says it."""
        ranges = {stream: Ranges() for stream in range(1, self.stream + 1)}
        for stream, seq in sorted(self.database):
            ranges[stream].add(seq, seq)
        return tuple(_covered(stream, held) for stream, held in ranges.items() if held)


def _covered(stream: int, ranges: Ranges) -> Covered:
    runs = list(ranges)
    upto = runs.pop(0)[1] if runs and runs[0][0] == 1 else 0
    return Covered(stream, upto, tuple(number for run in runs for number in run))


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
