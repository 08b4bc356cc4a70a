"""Daily partitions: made ahead, filled from DEFAULT, dropped when retention ends. Driven by `Store.maintain`."""

from datetime import date, datetime, timedelta

from bridge.connection import Connection

DAYS_AHEAD = 3
OUTBOX_DAYS = 365  # the longest that a box's config lets its outbox remember
STREAMS_AT_ONCE = 20_000
# A box's present stream stays, however long it has nothing to tell. In key order, as writers lock, and around them.
DROP_STREAMS = """
DELETE FROM streams WHERE stream IN (
    SELECT stream FROM streams s WHERE last_at < %s AND NOT EXISTS (SELECT FROM boxes b WHERE b.stream = s.stream)
    ORDER BY stream LIMIT %s FOR UPDATE SKIP LOCKED)
"""


def maintain(connection: Connection, now: datetime, retention: timedelta) -> None:
    """Do what is due; every partition is a transaction of its own, so that writers never wait for long.

    Raises:
        psycopg.Error: 55P03 when a writer held its lock too long; what is left is done the next time.
    """
    oldest = now - retention
    today = now.date()
    ahead = {today + timedelta(days=days) for days in range(-1, DAYS_AHEAD + 1)}
    for (parent,) in connection.execute("SELECT parent FROM partitioned ORDER BY parent").fetchall():
        for day in sorted(ahead | _stranded(connection, parent, oldest.date(), today)):
            connection.execute("SELECT make_partition(%s, %s)", (parent, day))
        connection.execute("SELECT drop_partitions(%s, %s)", (parent, oldest))
    # What carries an attribute or a person's bytes obeys the retention too; plain hour and day counts stay.
    connection.execute("DELETE FROM attribute_hours WHERE bucket < %s", (oldest,))
    connection.execute("DELETE FROM open_visits WHERE last_at < %s", (oldest,))
    connection.execute("DELETE FROM quarantine WHERE received_at < %s", (oldest,))
    connection.execute("DELETE FROM dead_letters WHERE last_at < %s", (oldest,))
    # What is older goes to quarantine when it comes now: no need to know its visits any longer.
    connection.execute("DELETE FROM erased_tracks WHERE erased_at < %s", (oldest,))
    # What a box could still send of such a stream is older than the retention by its own times and goes to quarantine,
    # covered or not. While an outbox may hold some of it, the stream is named to it (P23), so that it need not try.
    forgotten = now - max(retention, timedelta(days=OUTBOX_DAYS)) - timedelta(days=1)
    connection.execute(DROP_STREAMS, (forgotten, STREAMS_AT_ONCE))
    # Days follow their hours to zero by trigger; two days later nothing can be counted into them any more.
    connection.execute("DELETE FROM attribute_days WHERE bucket < %s", (oldest - timedelta(days=2),))
    connection.execute(
        "INSERT INTO job_runs (job, finished_at) VALUES ('partitions', %s) "
        "ON CONFLICT (job) DO UPDATE SET finished_at = greatest(job_runs.finished_at, excluded.finished_at)",
        (now,),
    )


def _stranded(connection: Connection, parent: str, oldest: date, today: date) -> set[date]:
    """Return the days that have rows in DEFAULT and deserve a partition."""
    rows = connection.execute("SELECT day FROM days_in_default(%s)", (parent,)).fetchall()
    return {day for (day,) in rows if oldest <= day <= today + timedelta(days=DAYS_AHEAD)}
