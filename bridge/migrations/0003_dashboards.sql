-- What dashboards ask for, fast at fifty million visits: indices by time, attribute days kept beside attribute hours,
-- a sampled lag; and the centre's own state, for its alarms.

SET LOCAL ROLE facefleet_migrator;
SET LOCAL search_path = facefleet, pg_temp;

-- Rollups are asked by time first; their keys begin with the camera. None of these columns is ever updated (HOT stays).
CREATE INDEX ON rollup_hours (bucket);
CREATE INDEX ON rollup_days (bucket);
CREATE INDEX ON attribute_hours (bucket, camera_id, head);
CREATE INDEX ON losses (received_at);

-- Attribute days ------------------------------------------------------------------------------------------------------

-- Per box, as a box's events are one writer's: per site, two bridges would wait for each other at every commit.
CREATE TABLE attribute_days (
    bucket timestamptz NOT NULL,
    box_id integer NOT NULL,
    head text NOT NULL,
    label text NOT NULL,
    visits bigint NOT NULL,
    PRIMARY KEY (box_id, bucket, head, label)
) WITH (fillfactor = 70);
CREATE INDEX ON attribute_days (bucket);

INSERT INTO attribute_days
SELECT date_trunc('day', a.bucket, s.timezone), b.box_id, a.head, a.label, sum(a.visits)
FROM attribute_hours a JOIN cameras c USING (camera_id) JOIN boxes b USING (box_id) JOIN sites s USING (site_id)
GROUP BY 1, 2, 3, 4;

-- Whatever changes hours changes days in the same statement: writing, taking back, erasing, retention.
CREATE FUNCTION add_up_attribute_days() RETURNS trigger
LANGUAGE plpgsql SET search_path = facefleet, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO attribute_days AS d
        SELECT date_trunc('day', n.bucket, s.timezone), c.box_id, n.head, n.label, sum(n.visits)
        FROM after_rows n JOIN cameras c USING (camera_id) JOIN boxes b USING (box_id) JOIN sites s USING (site_id)
        GROUP BY 1, 2, 3, 4 ORDER BY 2, 1, 3, 4
        ON CONFLICT (box_id, bucket, head, label) DO UPDATE SET visits = d.visits + excluded.visits;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO attribute_days AS d
        SELECT date_trunc('day', n.bucket, s.timezone), c.box_id, n.head, n.label, sum(n.visits)
        FROM (SELECT bucket, camera_id, head, label, visits FROM after_rows
              UNION ALL SELECT bucket, camera_id, head, label, -visits FROM before_rows) n
        JOIN cameras c USING (camera_id) JOIN boxes b USING (box_id) JOIN sites s USING (site_id)
        GROUP BY 1, 2, 3, 4 HAVING sum(n.visits) <> 0 ORDER BY 2, 1, 3, 4
        ON CONFLICT (box_id, bucket, head, label) DO UPDATE SET visits = d.visits + excluded.visits;
    ELSE
        UPDATE attribute_days d SET visits = d.visits - n.visits
        FROM (SELECT date_trunc('day', o.bucket, s.timezone) AS bucket, c.box_id, o.head, o.label, sum(o.visits) AS visits
              FROM before_rows o JOIN cameras c USING (camera_id) JOIN boxes b USING (box_id)
              JOIN sites s USING (site_id) GROUP BY 1, 2, 3, 4) n
        WHERE (d.box_id, d.bucket, d.head, d.label) = (n.box_id, n.bucket, n.head, n.label);
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER days_after_insert AFTER INSERT ON attribute_hours REFERENCING NEW TABLE AS after_rows
    FOR EACH STATEMENT EXECUTE FUNCTION add_up_attribute_days();
CREATE TRIGGER days_after_update AFTER UPDATE ON attribute_hours
    REFERENCING OLD TABLE AS before_rows NEW TABLE AS after_rows
    FOR EACH STATEMENT EXECUTE FUNCTION add_up_attribute_days();
CREATE TRIGGER days_after_delete AFTER DELETE ON attribute_hours REFERENCING OLD TABLE AS before_rows
    FOR EACH STATEMENT EXECUTE FUNCTION add_up_attribute_days();

-- The same cells as before, hidden and rounded as before. The settings are read once, not once per cell (5 µs each), and
-- both windows share one sort, which follows the index.
CREATE OR REPLACE VIEW report.attribute_hours WITH (security_barrier) AS
    WITH cells AS (
        SELECT bucket, camera_id, head, label, visits, visits < (SELECT setting('k')) AS small
        FROM attribute_hours WHERE visits > 0 AND bucket <= now() - interval '1 hour'
    ), weighed AS (
        SELECT *, coalesce(sum(visits) FILTER (WHERE small) OVER whole, 0) AS hidden, row_number() OVER whole AS nth
        FROM cells
        WINDOW whole AS (PARTITION BY bucket, camera_id, head ORDER BY small, visits, label
                         ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
    )
    SELECT w.bucket, n.site, n.box, n.camera, w.head, w.label,
        (round(w.visits::numeric / (SELECT greatest(least(setting('k'), setting('round_to')), 1)))
            * (SELECT greatest(least(setting('k'), setting('round_to')), 1)))::bigint AS visits
    FROM weighed w JOIN camera_names n USING (camera_id)
    WHERE NOT w.small AND NOT (w.nth = 1 AND w.hidden > 0 AND w.hidden < (SELECT setting('k')));

CREATE OR REPLACE VIEW report.attribute_days WITH (security_barrier) AS
    WITH cells AS (
        SELECT a.bucket, s.name AS site, s.timezone, a.head, a.label,
            sum(a.visits) AS visits, sum(a.visits) < (SELECT setting('k')) AS small
        FROM attribute_days a JOIN boxes b USING (box_id) JOIN sites s USING (site_id)
        WHERE a.bucket < date_trunc('day', now(), s.timezone)
        GROUP BY 1, 2, 3, 4, 5 HAVING sum(a.visits) > 0
    ), weighed AS (
        SELECT *, coalesce(sum(visits) FILTER (WHERE small) OVER whole, 0) AS hidden, row_number() OVER whole AS nth
        FROM cells
        WINDOW whole AS (PARTITION BY bucket, site, head ORDER BY small, visits, label
                         ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
    )
    SELECT w.bucket, w.site, w.head, w.label,
        (round(w.visits / (SELECT greatest(least(setting('k'), setting('round_to')), 1)))
            * (SELECT greatest(least(setting('k'), setting('round_to')), 1)))::bigint AS visits
    FROM weighed w
    WHERE NOT w.small AND NOT (w.nth = 1 AND w.hidden > 0 AND w.hidden < (SELECT setting('k')));

-- Why a sensitive head is on, as its site wrote it down.
CREATE VIEW report.purposes WITH (security_barrier) AS
    SELECT s.name AS site, b.name AS box, h.value->>'name' AS head, h.value->>'purpose' AS purpose,
        min(v.added_at) AS since
    FROM vocabularies v JOIN boxes b USING (box_id) JOIN sites s USING (site_id), jsonb_array_elements(v.heads) h
    WHERE h.value->>'purpose' <> '' GROUP BY 1, 2, 3, 4;

-- The fleet -----------------------------------------------------------------------------------------------------------

-- Asked by camera instead of unfolding all cameras of the box for each of them.
CREATE OR REPLACE VIEW report.camera_status WITH (security_barrier) AS
    SELECT n.site, n.box, n.camera, h.received_at AS health_at, c.value->>'state' AS state, c.value->>'error' AS error,
        (c.value->>'fps_in')::real AS fps_in, (c.value->>'fps_processed')::real AS fps_processed,
        (c.value->>'fps_skipped')::real AS fps_skipped, (c.value->>'dropped')::bigint AS dropped,
        (c.value->>'reconnects')::bigint AS reconnects, (c.value->>'frame_age_s')::real AS frame_age_s,
        (c.value->>'inference_age_s')::real AS inference_age_s, (c.value->>'tracks')::bigint AS tracks,
        c.value->'stage_ms' AS stage_ms
    FROM camera_names n LEFT JOIN health_latest h USING (box_id)
    LEFT JOIN LATERAL (SELECT h.health->'cameras'->n.camera AS value) c ON true;

CREATE VIEW report.models WITH (security_barrier) AS
    SELECT s.name AS site, b.name AS box, m.key AS model, m.value->>'version' AS version,
        m.value->>'device' AS device, m.value->>'artefact' AS artefact, m.value->>'golden' AS golden,
        (SELECT string_agg(a.value, '; ') FROM jsonb_array_elements_text(m.value->'attempts') a) AS attempts,
        m.value->>'licence' AS licence, h.received_at AS health_at
    FROM health_latest h JOIN boxes b USING (box_id) JOIN sites s USING (site_id), jsonb_each(h.health->'models') m;

-- Counters of the process that speaks now: events it refused before acceptance, and events it had to give up.
CREATE VIEW report.box_counters WITH (security_barrier) AS
    SELECT s.name AS site, b.name AS box, k.kind, c.key AS reason, c.value::bigint AS events
    FROM health_latest h JOIN boxes b USING (box_id) JOIN sites s USING (site_id),
        LATERAL (VALUES ('refused', h.health->'refused'), ('lost', h.health->'losses')) k (kind, counts),
        jsonb_each_text(k.counts) c;

-- Lag in a bounded number of rows: whole pages of batches, enough for about 100,000 batches a day, all of them where
-- there are fewer. The same pages every time, so that a panel does not flicker.
CREATE FUNCTION batch_sample_percent() RETURNS real
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = facefleet, pg_temp AS $$
    SELECT least(100, 100 * 100000 / greatest(max(c.reltuples), 1))::real
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'batches'::regclass
$$;

CREATE VIEW report.lag_sample WITH (security_barrier) AS
    SELECT r.received_at AS at, s.name AS site, b.name AS box, r.last_seq - r.first_seq + 1 AS events,
        extract(epoch FROM r.written_at - r.newest_at)::real AS lag_s
    FROM batches r TABLESAMPLE SYSTEM (batch_sample_percent()) REPEATABLE (1)
    JOIN boxes b USING (box_id) JOIN sites s USING (site_id);

-- The centre itself ---------------------------------------------------------------------------------------------------

CREATE TABLE job_runs (
    job text PRIMARY KEY,
    finished_at timestamptz NOT NULL
);

INSERT INTO settings VALUES
    ('database_gb', 100, 'what the database may grow to, in GB: the alarm "nearly full" counts from here');

CREATE VIEW report.centre WITH (security_barrier) AS
    SELECT
        (SELECT count(*) FROM pg_stat_activity
         WHERE application_name = 'facefleet-bridge' AND datname = current_database()) AS bridges,
        (SELECT max(last_at) FROM streams) AS last_commit_at,
        (SELECT max(received_at) FROM health_latest) AS last_health_at,
        (SELECT finished_at FROM job_runs WHERE job = 'partitions') AS partitions_at,
        pg_database_size(current_database()) AS database_bytes,
        setting('database_gb') * 1000000000::bigint AS database_limit_bytes;

-- One row per partitioned table: how far ahead it is made, and what fell into DEFAULT.
CREATE VIEW report.partitions WITH (security_barrier) AS
    SELECT p.parent, count(i.day) AS days, max(i.day) - (now() AT TIME ZONE 'UTC')::date AS days_ahead,
        (SELECT coalesce(sum(d.rows), 0)::bigint FROM days_in_default(p.parent) d) AS default_rows
    FROM partitioned p LEFT JOIN LATERAL (
        SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
        FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid
        WHERE h.inhparent = to_regclass('facefleet.' || p.parent) AND c.relname ~ '_p[0-9]{8}$'
    ) i ON true
    GROUP BY p.parent;

REVOKE ALL ON FUNCTION add_up_attribute_days(), batch_sample_percent() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION batch_sample_percent() TO facefleet_reader;
GRANT SELECT, INSERT, UPDATE, DELETE ON attribute_days TO facefleet_ingest;
GRANT SELECT, INSERT, UPDATE ON job_runs TO facefleet_ingest;
GRANT SELECT ON ALL TABLES IN SCHEMA report TO facefleet_reader;
