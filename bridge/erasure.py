"""The SQL of erasure: a span of one box, or the visits that events from an erased span still tell of.

What is deleted is counted back out of the rollups in the same statement, as it was counted in. `erase.py` and, for what
comes late, `transaction.py` run it; the streams of the box are locked then.
"""

from bridge.connection import Connection
from bridge.graves import Key
from bridge.statements import COUNT_VISITS

# Visits that reach into a span, by what is known of them.
FIND_TRACKS = """
INSERT INTO in_erased
SELECT stream, camera_id, track FROM visits
WHERE camera_id = ANY(%(cameras)s) AND ended_at >= %(first)s AND started_at < %(end)s
UNION
SELECT stream, camera_id, track FROM open_visits
WHERE camera_id = ANY(%(cameras)s) AND last_at >= %(first)s AND started_at < %(end)s
UNION
SELECT stream, camera_id, track FROM track_updates
WHERE camera_id = ANY(%(cameras)s) AND at >= %(first)s AND at - dwell_ms * interval '1 ms' < %(end)s
"""

REMEMBER_TRACKS = """
INSERT INTO erased_tracks (stream, camera_id, track) SELECT * FROM in_erased ORDER BY 1, 2, 3 ON CONFLICT DO NOTHING
"""

DELETE_VISITS = """
WITH changed AS (
    DELETE FROM visits v USING in_erased e
    WHERE v.stream = e.stream AND v.camera_id = e.camera_id AND v.track = e.track
    RETURNING v.camera_id, v.ended_at, v.dwell_ms, v.labels
), """ + COUNT_VISITS.format(sign="-")

DELETE_OPEN = """
DELETE FROM open_visits o USING in_erased e
WHERE o.stream = e.stream AND o.camera_id = e.camera_id AND o.track = e.track
"""

DELETE_UPDATES = """
DELETE FROM track_updates u USING in_erased e
WHERE u.stream = e.stream AND u.camera_id = e.camera_id AND u.track = e.track
"""

# A period may be long: it began at most 25 days (2^31 ms) before the span does.
DELETE_PRESENCE = """
WITH changed AS (
    DELETE FROM presence WHERE camera_id = ANY(%(cameras)s)
    AND at >= %(first)s::timestamptz - interval '25 days' AND at < %(end)s
    AND at + period_ms * interval '1 ms' > %(first)s
    RETURNING *
), delta AS (
    INSERT INTO in_delta (bucket, camera_id, visits, dwell_ms, person_ms, most, entered)
    SELECT date_trunc('minute', at), camera_id, 0, 0, -sum(person_ms), 0, -sum(entered) FROM changed GROUP BY 1, 2
)
SELECT count(*) FROM changed
"""

# The most people at once cannot be counted back: it is looked up again, where the counts say that all of the bucket's
# presence is still there. Where retention took a part, it stays: an upper bound.
_FIX_MOST = """
WITH touched AS (
    SELECT DISTINCT camera_id, {bucket} AS bucket, timezone FROM in_delta d JOIN camera_zones z USING (camera_id)
), found AS (
    SELECT t.camera_id, t.bucket, coalesce(max(p.most), 0) AS most, coalesce(sum(p.person_ms), 0) AS person_ms,
        coalesce(sum(p.entered), 0) AS entered
    FROM touched t LEFT JOIN presence p ON p.camera_id = t.camera_id AND p.at >= t.bucket
        AND p.at < t.bucket + interval '26 hours' AND {of_presence} = t.bucket
    GROUP BY 1, 2
)
UPDATE {table} r SET most = f.most FROM found f
WHERE r.camera_id = f.camera_id AND r.bucket = f.bucket AND r.person_ms = f.person_ms AND r.entered = f.entered
"""

# Buckets that lie in the span as a whole: all that they counted is gone, also what retention has left only here.
_DROP_WHOLE = """
DELETE FROM {table} r USING camera_zones t
WHERE t.camera_id = r.camera_id AND r.camera_id = ANY(%(cameras)s) AND r.bucket >= %(first)s AND {until} <= %(end)s
"""
_NEXT_DAY = "((r.bucket AT TIME ZONE t.timezone + interval '1 day') AT TIME ZONE t.timezone)"

_TABLES = (
    ("rollup_minutes", "bucket", "date_trunc('minute', p.at)", "r.bucket + interval '1 minute'"),
    (
        "rollup_hours",
        "date_trunc('hour', bucket, timezone)",
        "date_trunc('hour', p.at, t.timezone)",
        "r.bucket + interval '1 hour'",
    ),
    ("rollup_days", "date_trunc('day', bucket, timezone)", "date_trunc('day', p.at, t.timezone)", _NEXT_DAY),
)

FIX_MOST = tuple(
    _FIX_MOST.format(table=table, bucket=bucket, of_presence=of_presence) for table, bucket, of_presence, _ in _TABLES
)
DROP_WHOLE = (
    *(_DROP_WHOLE.format(table=table, until=until) for table, _, _, until in _TABLES),
    _DROP_WHOLE.format(table="attribute_hours", until="r.bucket + interval '1 hour'"),
    # Hours take their days down by trigger; a cell of nothing tells that there was something.
    "DELETE FROM attribute_hours WHERE camera_id = ANY(%(cameras)s) AND visits = 0",
    "DELETE FROM attribute_days WHERE box_id = %(box)s AND visits = 0",
)


def remove_tracks(connection: Connection) -> tuple[int, int, int]:
    """Delete the visits in `in_erased` and remember them; return how many visits, open visits and updates went.

    What is to be counted out of the rollups is in `in_delta` afterwards.
    """
    row = connection.execute(DELETE_VISITS).fetchone()
    open_visits = connection.execute(DELETE_OPEN).rowcount
    updates = connection.execute(DELETE_UPDATES).rowcount
    connection.execute(REMEMBER_TRACKS)
    return row[0] if row else 0, open_visits, updates


def name_tracks(connection: Connection, keys: set[Key]) -> None:
    """Put visits into `in_erased`."""
    ordered = sorted(keys)
    connection.execute(
        "INSERT INTO in_erased SELECT * FROM unnest(%s::bigint[], %s::integer[], %s::bigint[])",
        ([key[0] for key in ordered], [key[1] for key in ordered], [key[2] for key in ordered]),
    )
