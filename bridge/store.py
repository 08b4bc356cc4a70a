"""Write events to PostgreSQL exactly once. Driven by the bridge's writer thread, which acknowledges what it returns.

One transaction per `write`: either all of it is in the database, or none. `transaction.py` says what happens in it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Self
from uuid import UUID

import psycopg

from bridge import fleet, partitions, statements
from bridge.batches import Incoming, Parsed, read
from bridge.columns import Columns
from bridge.connection import Connection, adapt
from bridge.errors import StoreError
from bridge.letters import bury
from bridge.registry import Policy, Registry
from bridge.runs import DeadLetter
from bridge.sqlstate import Verdict, classify
from bridge.transaction import Transaction, Written
from edge.wire import BoxState, Covered, WireError, topic

__all__ = ["Incoming", "Store", "Written"]

RECENT_STREAMS = 8_000  # of one box, acknowledged when it is born; with fewer the ack is complete (P23)
CONNECT_TIMEOUT_S = 5
# Everything here goes by key from a small temporary table, which has no statistics: left to itself the planner takes
# it for hundreds of rows and hashes whole partitions (5,000 events a transaction were four times slower).
PLANS = "-c enable_hashjoin=off -c enable_mergejoin=off -c enable_seqscan=off"
OPTIONS = f"-c search_path=facefleet,pg_temp -c TimeZone=UTC -c lock_timeout=30s -c statement_timeout=120s {PLANS}"


class Store:
    """One connection to the database, made when first needed and again after it broke."""

    def __init__(
        self,
        dsn: str,
        *,
        retention_days: int = 90,
        registry: Policy = "auto",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Remember how to connect; nothing is opened yet.

        Args:
            dsn: libpq connection string of a member of `facefleet_ingest`.
            retention_days: events older than this go to quarantine, partitions older than this are dropped.
            registry: what becomes of boxes nobody registered: `auto` registers them, `strict` dead-letters them.
            clock: what time the bridge thinks it is, for the lag figures.
        """
        self._dsn = dsn
        own = str(psycopg.conninfo.conninfo_to_dict(dsn).get("options") or "")
        self._options = f"{OPTIONS} {own}"
        self._retention = timedelta(days=retention_days)
        self._registry = Registry(registry)
        self._clock = clock
        self._open: Connection | None = None
        self._known_streams: set[int] = set()

    def write(self, messages: Sequence[Incoming]) -> Written:
        """Write messages in one transaction and return what may be acknowledged once this returns.

        Raises:
            psycopg.Error: classified by `sqlstate.classify`; nothing was written, the same messages may come again.
            StoreError: the database refuses something that no single row is to blame for.
        """
        dead: list[DeadLetter] = []
        readable: list[Incoming] = []
        batches: list[Parsed] = []
        for message in messages:
            try:
                batches.append(read(message.payload))
                readable.append(message)
            except WireError as error:
                dead.append(DeadLetter("unreadable", str(error), message, message.payload))
        columns = Columns.of(batches)
        try:
            return self._transact(readable, columns, dead, careful=False)
        except psycopg.Error as error:
            if classify(error) is not Verdict.BAD_ROW:
                raise
        try:  # the whole again, this time with savepoints around ever smaller halves
            return self._transact(readable, columns, dead, careful=True)
        except psycopg.Error as error:
            if classify(error) is not Verdict.BAD_ROW:
                raise
            raise StoreError(f"no row is to blame, yet the database says: {error}") from error

    def write_state(self, site: str, box: str, state: BoxState, received_at: datetime) -> None:
        """Write one birth or death."""
        self.write_states([(site, box, state, received_at)])

    def write_states(self, states: Sequence[fleet.Heard]) -> None:
        """Write births and deaths: registry, vocabulary, newest stream (P27), open visits closed (P28)."""
        with self._transaction() as connection:
            fleet.write_states(connection, self._registry, states)
        self._registry.keep()

    def write_health(self, site: str, box: str, health_json: bytes, received_at: datetime) -> None:
        """Write one health message: the latest per box, and the history per box and camera."""
        self.write_healths([Incoming(site, box, health_json, topic(site, box, "health"), received_at)])

    def write_healths(self, messages: Sequence[Incoming]) -> None:
        """Write health messages in one transaction; one that cannot be written becomes a dead letter."""
        try:
            with self._transaction() as connection:
                fleet.write_healths(connection, self._registry, messages)
            self._registry.keep()
            return
        except (psycopg.Error, WireError) as error:
            if isinstance(error, psycopg.Error) and classify(error) is not Verdict.BAD_ROW:
                raise
            refused = str(error)
        if half := len(messages) // 2:
            self.write_healths(messages[:half])
            self.write_healths(messages[half:])
            return
        with self._transaction() as connection:
            bury(connection, [DeadLetter("health", refused, messages[0], messages[0].payload)])

    def covered(self, site: str, box: str) -> tuple[Covered, ...]:
        """Return what is covered of a box's recent streams, newest first."""
        return self.all_covered([(site, box)])[site, box]

    def all_covered(self, boxes: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[Covered, ...]]:
        """Return what is covered of the recent streams of each box, newest first; of an unknown one nothing."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT n.site, n.box, t.stream, t.upto, t.ranges FROM unnest(%s::text[], %s::text[]) AS n (site, box) "
                "JOIN sites s ON s.name = n.site JOIN boxes b ON b.site_id = s.site_id AND b.name = n.box, "
                "LATERAL (SELECT * FROM streams WHERE box_id = b.box_id AND (upto > 0 OR ranges <> '{}') "
                "ORDER BY last_at DESC, stream LIMIT %s) t",
                ([site for site, _ in boxes], [box for _, box in boxes], RECENT_STREAMS),
            ).fetchall()
        found: dict[tuple[str, str], list[Covered]] = {name: [] for name in boxes}
        for site, box, stream, upto, ranges in rows:
            found[site, box].append(Covered(stream, upto, tuple(ranges)))
        return {name: tuple(covered) for name, covered in found.items()}

    def transaction(self) -> AbstractContextManager[Connection]:
        """Begin what later calls take part in: all of it happens, or, when it is left by an exception, none.

        Then throw the store away: it remembers what did not happen.
        """
        return self._transaction()

    def database_uuid(self) -> UUID:
        """Return who this database is to the boxes (P18)."""
        with self._transaction() as connection:
            row = connection.execute("SELECT uuid FROM database_identity").fetchone()
        if row is None:
            raise StoreError('the database has no identity; run "facefleet-bridge migrate"')
        return UUID(str(row[0]))

    def maintain(self, now: datetime) -> None:
        """Make partitions ahead, empty DEFAULT, drop what retention ends. Safe to run beside writers, at any time."""
        partitions.maintain(self._connection(), now, self._retention)

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # One transaction ----------------------------------------------------------------------------------------------

    def _connection(self) -> Connection:
        if self._open is None or self._open.closed or self._open.broken:
            self.close()
            connection = psycopg.connect(
                self._dsn, autocommit=True, options=self._options, connect_timeout=CONNECT_TIMEOUT_S,
                application_name="facefleet-bridge",
            )  # fmt: skip
            adapt(connection)
            try:
                connection.execute(statements.TEMPORARY)
            except BaseException:
                connection.close()
                raise
            self._open = connection
        return self._open

    def _transaction(self) -> AbstractContextManager[Connection]:
        """Begin; what the registry has looked up since counts only when `keep` is called after the commit."""
        self._registry.forget()
        return _begin(self._connection())

    def _transact(
        self, messages: Sequence[Incoming], columns: Columns, dead: Sequence[DeadLetter], *, careful: bool
    ) -> Written:
        with self._transaction() as connection:
            transaction = Transaction(
                connection, self._registry, self._known_streams, columns, now=self._clock(), retention=self._retention
            )
            written = transaction.run(messages, dead, careful=careful)
        self._registry.keep()
        self._known_streams |= transaction.streams.keys()
        return written


@contextmanager
def _begin(connection: Connection) -> Iterator[Connection]:
    with connection.transaction():
        yield connection
