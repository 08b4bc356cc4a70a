"""From broker to database: deliveries in, transactions out, acks back. Driven by app.py.

The network thread only puts deliveries into the inbox. One writer thread takes what has gathered there, writes it as
one transaction, and only after COMMIT acknowledges: to the broker (so that it may send more) and to the boxes (so that
they may forget). Whatever fails in between is sent again by the boxes; writing twice is harmless.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal, Protocol
from uuid import UUID

import msgspec
import psycopg

from bridge.answers import Answers, Outlet
from bridge.batches import Incoming
from bridge.counts import Counts
from bridge.errors import BridgeError, ConfigError, StoreError
from bridge.inbox import Delivery, Inbox
from bridge.sqlstate import Verdict, classify
from bridge.store import Written
from edge.link import Message
from edge.wire import ROOT, BoxState, Covered, WireError, parse_topic

log = logging.getLogger(__name__)

Status = Literal["accepting", "paused"]

MOST_MESSAGES = 400  # per transaction: at 50 events each some 150 ms, so an ack is never far
MOST_BYTES = 4 << 20
MOST_HEALTH = 200  # between two rounds of events: a fleet that reconnects says its health all at once
GATHER_S = 0.05  # a transaction costs 2 ms of CPU and a sync of the disk, however few messages it takes
IDLE_S = 0.5
MAINTAIN_S = 3600.0
STATE_DECODER = msgspec.json.Decoder(BoxState)


class Store(Protocol):
    """What the writer needs of bridge/store.py; a test may stand in for it."""

    def write(self, messages: Sequence[Incoming]) -> Written: ...
    def write_states(self, states: Sequence[tuple[str, str, BoxState, datetime]]) -> None: ...
    def write_healths(self, messages: Sequence[Incoming]) -> None: ...
    def all_covered(self, boxes: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[Covered, ...]]: ...
    def database_uuid(self) -> UUID: ...
    def maintain(self, now: datetime) -> object: ...
    def close(self) -> None: ...


class Subscriber:
    """The inbox, the writer thread, and what is between them.

    Args:
        open_store: connects to the database; raises psycopg.Error while it is away.
        ack: whether boxes are told what the database holds.
        database: the UUID it must have; None takes any, and holds on to the first one seen.
        on_status: called from the writer thread when it begins or stops accepting events.
        queue_bytes: bound of the inbox.
        rng: for the jitter of retries.
        backoff_s: first and longest wait while the database is away.
        stop_retry_s: how often it asks again after an error that only a person can mend.
    """

    def __init__(
        self,
        open_store: Callable[[], Store],
        *,
        ack: bool,
        database: UUID | None = None,
        on_status: Callable[[Status], None] = lambda _: None,
        queue_bytes: int = 64 << 20,
        rng: random.Random | None = None,
        backoff_s: tuple[float, float] = (0.2, 15.0),
        stop_retry_s: float = 30.0,
    ) -> None:
        self.counts = Counts()
        self.status: Status = "paused"
        self.inbox = Inbox(queue_bytes)
        self._open_store, self._ack, self.database = open_store, ack, database
        self._on_status, self._rng = on_status, rng or random.Random()
        self._backoff_s, self._stop_retry_s = backoff_s, stop_retry_s
        self._answers = Answers()
        self._store: Store | None = None
        self._outlet: Outlet
        self._round: deque[Delivery] = deque()  # taken from the inbox, not yet written
        self._maintain_at_s = 0.0
        self._ever_accepted = False
        self._died: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bridge writer", daemon=True)

    # -- any thread --------------------------------------------------------------------------------------------------

    def start(self, outlet: Outlet) -> None:
        """Begin to write, in the background; a database that is down is a state, not an error."""
        self._outlet = self._answers.outlet = outlet
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Write what is in hand, if the database is there, and end."""
        self._stopping.set()
        self.inbox.wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def check(self) -> None:
        """Raise what ended the writer thread, if it has ended by itself."""
        if self._died is not None:
            raise self._died

    def on_message(self, message: Message) -> None:
        """Take a delivery from the network thread; one without room stays unacknowledged until there is some (P38)."""
        received_at = datetime.now(UTC)
        try:
            site, box, kind = parse_topic(message.topic)
        except WireError as error:
            kind = ""
            if not message.topic.startswith(f"{ROOT}/bridge/"):  # another bridge's state is nobody's mistake
                self.counts.misaddressed += 1
                if self.counts.misaddressed.bit_count() == 1:
                    log.warning("%d messages on topics no box may have: %s", self.counts.misaddressed, error)
        if kind not in ("events", "state", "health"):
            self._answers.later(message)  # not ours, such as another bridge's state
        elif not self.inbox.put(Delivery(site, box, kind, message, received_at)):
            self._answers.later(replace(message, payload=b""))
            self.counts.turned_away += 1
            if self.counts.turned_away.bit_count() == 1:  # 1, 2, 4, 8, …
                log.warning("queue full: %d deliveries left to the boxes to send again", self.counts.turned_away)

    # -- the writer thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        try:
            while not self._stopping.is_set():
                try:
                    self._open()
                    while not self._stopping.is_set():
                        self._turn()
                        failures = 0
                    self._drain()
                except (psycopg.Error, StoreError) as error:
                    failures += 1
                    self._close()
                    self._stopping.wait(self._failed(error, failures))
        except BaseException as error:
            if not isinstance(error, BridgeError):
                log.exception("the bridge writer died")
            self._died = error
        finally:
            self._close()

    def _open(self) -> None:
        """Connect, and make sure that it is the database we believe it is."""
        if self._store is None:
            self._store = self._open_store()
        found = self._store.database_uuid()
        if self.database not in (None, found):
            raise ConfigError(
                f"the database is {found}, expected {self.database}: acknowledging from another one would make boxes "
                "delete events it does not hold; correct `dsn` or `database` in the bridge's config"
            )
        self.database = found
        self._maintain(self._store)
        if not self._round:  # what failed before must go in first: each "accepting" makes boxes send again
            self._accept()

    def _turn(self) -> None:
        """Write one round of what has gathered, and say what is due."""
        store = self._store
        assert store is not None
        if not self._round:
            wait_s = self._answers.wait_s(IDLE_S)
            self._round.extend(self.inbox.take(MOST_MESSAGES, MOST_BYTES, wait_s, GATHER_S))
        while self._round:
            self._write_first(store)
            self._say_acks()  # between the parts too: a start with many births must not silence the acks
        self._accept()
        if healths := self.inbox.take_health(MOST_HEALTH):
            self._write_health(store, healths)
        if self.inbox.roomy:
            self._answers.to_broker_at_last()
        self._say_acks()
        self._maintain(store)

    def _drain(self) -> None:
        """Write what is left when stopping; what comes later, the boxes keep."""
        self._round.extend(self.inbox.take(1 << 30, 1 << 40, 0.0))
        if self._round and self._store is not None:
            self._turn()

    def _write_first(self, store: Store) -> None:
        """Write of the round what may go now: states, or events. Of one box, what came later waits (P28)."""
        kind, now, later = self._round[0].kind, list[Delivery](), deque[Delivery]()
        waiting: set[tuple[str, str]] = set()
        for delivery in self._round:
            box = (delivery.site, delivery.box)
            if delivery.kind == kind and box not in waiting:
                now.append(delivery)
            else:
                later.append(delivery)
                waiting.add(box)
        (self._write_states if kind == "state" else self._write_events)(store, now)
        self._round = later
        self._answers.to_broker([delivery.message for delivery in now])

    def _write_events(self, store: Store, deliveries: Sequence[Delivery]) -> None:
        batches = [Incoming(d.site, d.box, d.message.payload, d.message.topic, d.received_at) for d in deliveries]
        try:
            written = store.write(batches)
        except (psycopg.Error, StoreError, MemoryError):
            raise
        except Exception:
            # A mistake of ours that one batch brings out must not block a fleet: find it, leave it to its box.
            if len(deliveries) == 1:
                log.critical("a batch on %s cannot be handled; its box keeps it", batches[0].topic, exc_info=True)
                return
            half = len(deliveries) // 2
            self._write_events(store, deliveries[:half])
            self._write_events(store, deliveries[half:])
            return
        counts = self.counts
        counts.batches += len(batches)
        counts.inserted += written.inserted
        counts.duplicates += written.duplicates
        counts.dead_letters += written.dead_letters
        counts.quarantined += written.quarantined
        counts.unknown_vocabulary += written.unknown_vocabulary
        counts.erased += written.erased
        if self._ack:
            for box, covered in written.covered.items():
                self._answers.note(box, covered)

    def _write_states(self, store: Store, deliveries: Sequence[Delivery]) -> None:
        heard: list[tuple[str, str, BoxState, datetime]] = []
        for delivery in deliveries:
            if delivery.message.payload:  # else somebody deleted a retained state
                try:
                    state = STATE_DECODER.decode(delivery.message.payload)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    self._malformed(delivery, error)
                else:
                    heard.append((delivery.site, delivery.box, state, delivery.received_at))
        if not heard:
            return
        try:
            store.write_states(heard)
        except (WireError, psycopg.DataError) as error:
            if len(deliveries) == 1:
                self._malformed(deliveries[0], error)
                return
            half = len(deliveries) // 2
            self._write_states(store, deliveries[:half])
            self._write_states(store, deliveries[half:])
            return
        self.counts.states += len(heard)
        if self._ack:
            self._answers.births(store, {(site, box): state for site, box, state, _ in heard})

    def _write_health(self, store: Store, deliveries: Sequence[Delivery]) -> None:
        try:
            store.write_healths(
                [Incoming(d.site, d.box, d.message.payload, d.message.topic, d.received_at) for d in deliveries]
            )
        except (msgspec.MsgspecError, UnicodeDecodeError, WireError, psycopg.DataError) as error:
            if len(deliveries) == 1:
                self._malformed(deliveries[0], error)
                return
            for delivery in deliveries:
                self._write_health(store, [delivery])
        else:
            self.counts.health += len(deliveries)

    def _malformed(self, delivery: Delivery, error: Exception) -> None:
        self.counts.malformed += 1
        log.warning("malformed message on %s dropped: %s", delivery.message.topic, error)

    def _say_acks(self) -> None:
        assert self.database is not None
        self.counts.acks += self._answers.publish(self.database)

    def _maintain(self, store: Store) -> None:
        """Make partitions, drop old ones; now and then."""
        if time.monotonic() < self._maintain_at_s:
            return
        self._maintain_at_s = time.monotonic() + MAINTAIN_S
        try:
            store.maintain(datetime.now(UTC))
        except psycopg.Error as error:
            if classify(error) is Verdict.RETRY:
                self._maintain_at_s = 0.0
                raise
            log.critical("maintenance of the database failed, events go on: %s", _first_line(error))

    def _failed(self, error: psycopg.Error | StoreError, failures: int) -> float:
        """Say what is wrong and return how long to wait; a person is called when waiting cannot mend it."""
        self.counts.failures += 1
        if isinstance(error, psycopg.Error) and classify(error) is Verdict.RETRY:
            if failures > 1:  # one deadlock or dropped connection is not worth stopping a fleet
                self._say("paused")
            first_s, longest_s = self._backoff_s
            log.log(
                logging.WARNING if failures.bit_count() == 1 else logging.DEBUG,  # 1, 2, 4, 8, …
                "database: %s; %d batches wait, trying again", _first_line(error), len(self._round),
            )  # fmt: skip
            return self._rng.uniform(0.0, min(longest_s, first_s * 2.0 ** min(failures, 16)))
        self._say("paused")
        state = error.sqlstate if isinstance(error, psycopg.Error) else None
        message = (
            f"the database refuses us{f' (SQLSTATE {state})' if state else ''}: {_first_line(error)}; nothing is "
            'acknowledged until this is mended: is a grant missing, or has "facefleet-bridge migrate" not been run?'
        )
        if not self._ever_accepted:
            raise StoreError(message) from error
        log.critical("%s", message)
        return self._stop_retry_s

    def _accept(self) -> None:
        self._ever_accepted = True
        self._say("accepting")

    def _say(self, status: Status) -> None:
        if status != self.status:
            self.status = status
            log.info("%s", status)
            self._on_status(status)

    def _close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            try:
                store.close()
            except psycopg.Error:
                log.debug("closing a broken database connection", exc_info=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
