"""The SQL of one writing transaction, in the order `store.py` runs it.

Every statement that takes row locks takes them in key order, and all writers take the tables in the same order
(streams, visits, attribute_hours, minutes, hours, days): two bridges wait for each other instead of deadlocking.
"""

# Per connection: where COPY lands. No keys, no checks: those are the real tables' business.
TEMPORARY = """
CREATE TEMP TABLE IF NOT EXISTS in_visits (LIKE facefleet.visits) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_open (LIKE facefleet.open_visits) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_track_updates (LIKE facefleet.track_updates) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_presence (LIKE facefleet.presence) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_delta (LIKE facefleet.rollup_hours) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_erased (stream bigint, camera_id integer, track bigint) ON COMMIT DELETE ROWS;
ALTER TABLE in_open ALTER COLUMN closed SET DEFAULT false;
"""

EMPTY_TEMPORARY = "TRUNCATE in_visits, in_open, in_track_updates, in_presence, in_delta, in_erased"

COPY_DELTA = """
COPY in_delta (bucket, camera_id, visits, dwell_ms, person_ms, most, entered) FROM STDIN (FORMAT binary)
"""

COPY_OPEN = """
COPY in_open (stream, camera_id, track, first_seq, last_seq, started_at, last_at, entry_x, entry_y, exit_x, exit_y,
    w, h, score, clock, vocabulary_id, labels, confidences) FROM STDIN (FORMAT binary)
"""

# Streams ----------------------------------------------------------------------------------------------------------

SHARE_BOXES = "SELECT box_id FROM boxes WHERE box_id = ANY(%s) ORDER BY box_id FOR SHARE"

NEW_STREAMS = """
INSERT INTO streams (stream, box_id, superseded, first_at, last_at, erased)
SELECT n.stream, n.box_id, b.stream IS NOT NULL AND b.stream <> n.stream, %(now)s, %(now)s,
    EXISTS (SELECT FROM tombstones t WHERE t.box_id = b.box_id)
FROM unnest(%(streams)s::bigint[], %(boxes)s::integer[]) AS n (stream, box_id) JOIN boxes b USING (box_id)
ORDER BY n.stream
ON CONFLICT DO NOTHING
"""

LOCK_STREAMS = """
SELECT stream, box_id, upto, ranges, superseded, first_at, erased FROM streams
WHERE stream = ANY(%s) ORDER BY stream FOR UPDATE
"""

COVER_STREAMS = """
UPDATE streams s SET upto = n.upto, ranges = n.ranges::bigint[], last_at = greatest(s.last_at, %(now)s)
FROM unnest(%(streams)s::bigint[], %(upto)s::bigint[], %(ranges)s::text[]) AS n (stream, upto, ranges)
WHERE s.stream = n.stream
"""

# A batch has at most 500 events, so an overlapping one begins less than 500 before.
KNOWN_DIGESTS = """
SELECT b.stream, b.first_seq, b.last_seq, b.digests
FROM (SELECT DISTINCT * FROM unnest(%(streams)s::bigint[], %(first)s::bigint[], %(last)s::bigint[]))
    AS d (stream, first, last)
JOIN batches b ON b.stream = d.stream AND b.first_seq BETWEEN d.first - 499 AND d.last AND b.last_seq >= d.first
WHERE b.received_at >= %(since)s
ORDER BY b.received_at
"""

# Visits -----------------------------------------------------------------------------------------------------------

COUNT_VISITS = """
counted AS (
    INSERT INTO attribute_hours AS a (bucket, camera_id, head, label, visits)
    SELECT date_trunc('hour', c.ended_at, z.timezone), c.camera_id, l.key, l.value, {sign} count(*)
    FROM changed c JOIN camera_zones z USING (camera_id), jsonb_each_text(c.labels) AS l
    GROUP BY 1, 2, 3, 4 ORDER BY 2, 1, 3, 4
    ON CONFLICT (camera_id, bucket, head, label) DO UPDATE SET visits = a.visits + excluded.visits
), delta AS (
    INSERT INTO in_delta (bucket, camera_id, visits, dwell_ms, person_ms, most, entered)
    SELECT date_trunc('minute', ended_at), camera_id, {sign} count(*), {sign} sum(dwell_ms), 0, 0, 0
    FROM changed GROUP BY 1, 2
)
SELECT count(*) FROM changed
"""

# What is inserted -------------------------------------------------------------------------------------------------

# The covered ranges have said what is new, so rows go straight into their table, and its key only stands guard. When
# it objects (the ranges were lost, or a row is refused for another reason), `INSERT` sorts out what is there already.
COPY = {
    table: f"COPY {table} FROM STDIN (FORMAT binary)"
    for table in ("visits", "track_updates", "presence", "in_visits", "in_track_updates", "in_presence")
}
INSERT = {
    table: f"INSERT INTO {table} SELECT * FROM in_{table} ON CONFLICT DO NOTHING RETURNING stream, seq"
    for table in ("visits", "track_updates", "presence")
}

# A second `ended` of one track changes nothing: the row that came first stands. The same one again is left to the
# table's key. `earliest` is the earliest start of any visit here, and keeps the search out of older partitions. No
# upper bound: with one the planner takes the index of cameras and times, and reads all of a camera's visits.
ENDED_BEFORE = """
SELECT n.place - 1
FROM unnest(%(stream)s::bigint[], %(camera_id)s::bigint[], %(track)s::bigint[], %(seq)s::bigint[])
    WITH ORDINALITY AS n (stream, camera_id, track, seq, place)
WHERE EXISTS (
    SELECT FROM visits v WHERE v.stream = n.stream AND v.camera_id = n.camera_id::integer AND v.track = n.track
    AND v.ended_at >= %(earliest)s AND v.seq <> n.seq)
"""

END_OPEN = """
DELETE FROM open_visits o
USING unnest(%(stream)s::bigint[], %(camera_id)s::bigint[], %(track)s::bigint[]) AS n (stream, camera_id, track)
WHERE o.stream = n.stream AND o.camera_id = n.camera_id::integer AND o.track = n.track
"""

# P35: what comes after the end opens nothing.
MERGE_OPEN = """
INSERT INTO open_visits AS o
SELECT * FROM in_open i
WHERE NOT EXISTS (
    SELECT FROM visits v WHERE v.stream = i.stream AND v.camera_id = i.camera_id AND v.track = i.track
    AND v.ended_at >= %(earliest)s AND v.seq IS NOT NULL)
ORDER BY stream, camera_id, track
ON CONFLICT (stream, camera_id, track) DO UPDATE SET
    entry_x = CASE WHEN excluded.first_seq < o.first_seq THEN excluded.entry_x ELSE o.entry_x END,
    entry_y = CASE WHEN excluded.first_seq < o.first_seq THEN excluded.entry_y ELSE o.entry_y END,
    exit_x = CASE WHEN excluded.last_seq > o.last_seq THEN excluded.exit_x ELSE o.exit_x END,
    exit_y = CASE WHEN excluded.last_seq > o.last_seq THEN excluded.exit_y ELSE o.exit_y END,
    w = CASE WHEN excluded.last_seq > o.last_seq THEN excluded.w ELSE o.w END,
    h = CASE WHEN excluded.last_seq > o.last_seq THEN excluded.h ELSE o.h END,
    clock = CASE WHEN excluded.last_seq > o.last_seq THEN excluded.clock ELSE o.clock END,
    vocabulary_id = CASE WHEN excluded.last_seq > o.last_seq THEN excluded.vocabulary_id ELSE o.vocabulary_id END,
    labels = CASE WHEN excluded.last_seq > o.last_seq THEN excluded.labels ELSE o.labels END,
    confidences = CASE WHEN excluded.last_seq > o.last_seq THEN excluded.confidences ELSE o.confidences END,
    first_seq = least(o.first_seq, excluded.first_seq),
    last_seq = greatest(o.last_seq, excluded.last_seq),
    started_at = least(o.started_at, excluded.started_at),
    last_at = greatest(o.last_at, excluded.last_at),
    score = greatest(o.score, excluded.score)
"""

# P28: visits of superseded streams stand closed in visits while their open row waits for the real end. Before more is
# learnt about them they are taken back, afterwards closed again.
RETRACT_CLOSED = """
WITH reopened AS (
    UPDATE open_visits SET closed = false WHERE stream = ANY(%(streams)s) AND closed
    RETURNING stream, camera_id, track, last_at
), changed AS (
    DELETE FROM visits v USING reopened o
    WHERE v.stream = o.stream AND v.camera_id = o.camera_id AND v.track = o.track AND v.ended_at = o.last_at
    AND v.seq IS NULL
    RETURNING v.camera_id, v.ended_at, v.dwell_ms, v.labels
), """ + COUNT_VISITS.format(sign="-")

CLOSE_OPEN = """
WITH closing AS (
    UPDATE open_visits SET closed = true WHERE stream = ANY(%(streams)s) AND NOT closed RETURNING *
), changed AS (
    INSERT INTO visits
    SELECT stream, camera_id, track, NULL, started_at, last_at,
        (extract(epoch FROM last_at - started_at) * 1000)::bigint, %(reason)s,
        entry_x, entry_y, exit_x, exit_y, w, h, score, 0, clock, vocabulary_id, labels, confidences
    FROM closing ORDER BY stream, camera_id, track
    RETURNING camera_id, ended_at, dwell_ms, labels
), """ + COUNT_VISITS.format(sign="")

# Rollups --------------------------------------------------------------------------------------------------------------

COUNT_LABELS = """
INSERT INTO attribute_hours AS a (bucket, camera_id, head, label, visits)
SELECT date_trunc('hour', timestamptz '2000-01-01 00:00Z' + n.bucket * interval '1 microsecond', z.timezone),
    z.camera_id, n.head, n.label, sum(n.visits)
FROM unnest(%(bucket)s::bigint[], %(camera_id)s::bigint[], %(head)s::text[], %(label)s::text[], %(visits)s::bigint[])
    AS n (bucket, camera_id, head, label, visits) JOIN camera_zones z ON z.camera_id = n.camera_id::integer
GROUP BY 1, 2, 3, 4 ORDER BY 2, 1, 3, 4
ON CONFLICT (camera_id, bucket, head, label) DO UPDATE SET visits = a.visits + excluded.visits
"""

_ADD_UP = """
ON CONFLICT (camera_id, bucket) DO UPDATE SET
    visits = r.visits + excluded.visits, dwell_ms = r.dwell_ms + excluded.dwell_ms,
    person_ms = r.person_ms + excluded.person_ms, most = greatest(r.most, excluded.most),
    entered = r.entered + excluded.entered
"""

_ROLLUP = """
INSERT INTO {table} AS r (bucket, camera_id, visits, dwell_ms, person_ms, most, entered)
SELECT {bucket}, camera_id, sum(visits), sum(dwell_ms), sum(person_ms), max(most), sum(entered)
FROM in_delta d JOIN camera_zones z USING (camera_id)
GROUP BY 1, 2 ORDER BY 2, 1
"""

ROLLUPS = tuple(
    _ROLLUP.format(table=table, bucket=bucket) + _ADD_UP
    for table, bucket in (
        ("rollup_minutes", "bucket"),
        ("rollup_hours", "date_trunc('hour', bucket, timezone)"),
        ("rollup_days", "date_trunc('day', bucket, timezone)"),
    )
)

# Erasure: what comes late of an erased span ------------------------------------------------------------------------

TOMBSTONES = """
SELECT box_id, tombstone_id, coalesce(extract(epoch FROM from_at) * 1000, -9e18)::bigint,
    (extract(epoch FROM to_at) * 1000)::bigint
FROM tombstones WHERE box_id = ANY(%s) ORDER BY box_id, tombstone_id
"""

ERASED_TRACKS = """
SELECT stream, camera_id, track FROM erased_tracks
JOIN unnest(%s::bigint[], %s::integer[], %s::bigint[]) AS n (stream, camera_id, track) USING (stream, camera_id, track)
"""

COUNT_DROPPED = """
UPDATE tombstones SET dropped = dropped + %s WHERE tombstone_id = %s
"""

# What is not a row ------------------------------------------------------------------------------------------------

INSERT_LOSS = """
INSERT INTO losses (stream, seq, box_id, lost_stream, first_seq, last_seq, events, reason, received_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""

INSERT_QUARANTINE = """
INSERT INTO quarantine (stream, seq, at_ms, received_at, topic, raw) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING
"""

INSERT_DEAD_LETTER = """
INSERT INTO dead_letters AS d (first_at, last_at, reason, error, topic, stream, seq, raw, digest)
VALUES (%(at)s, %(at)s, %(reason)s, %(error)s, %(topic)s, %(stream)s, %(seq)s, %(raw)s, %(digest)s)
ON CONFLICT (digest) DO UPDATE SET times = d.times + 1, last_at = greatest(d.last_at, excluded.last_at)
"""
