-- What people may look at: schema report for dashboards, schema compat for what read the original project's tables.
-- Views run with their owner's rights; readers have none on the tables.

SET LOCAL ROLE facefleet_migrator;

CREATE SCHEMA report;
CREATE SCHEMA compat;
SET LOCAL search_path = facefleet, pg_temp;

CREATE FUNCTION setting(wanted text) RETURNS integer
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = facefleet, pg_temp AS
$$ SELECT value FROM settings WHERE name = wanted $$;

CREATE VIEW camera_names AS
    SELECT camera_id, box_id, s.name AS site, b.name AS box, c.name AS camera, s.timezone
    FROM cameras c JOIN boxes b USING (box_id) JOIN sites s USING (site_id);

-- One row per person, for the operator at the desk and the demo's table; no group role but the migrator sees it.
CREATE VIEW visit_list AS
    SELECT n.site, n.box, n.camera, v.started_at, v.ended_at, v.dwell_ms,
        coalesce((ARRAY['left', 'camera_lost', 'source_ended', 'shutdown', 'box_restarted'])[v.reason + 1],
            v.reason::text) AS reason,
        v.score / 255.0::real AS score, v.hits, v.labels, v.confidences, v.stream, v.camera_id, v.track,
        v.vocabulary_id
    FROM visits v JOIN camera_names n USING (camera_id)
    UNION ALL
    SELECT n.site, n.box, n.camera, o.started_at, NULL, (extract(epoch FROM o.last_at - o.started_at) * 1000)::bigint,
        'open', o.score / 255.0::real, NULL, o.labels, o.confidences, o.stream, o.camera_id, o.track, o.vocabulary_id
    FROM open_visits o JOIN camera_names n USING (camera_id) WHERE NOT o.closed;

-- People counts: plain ------------------------------------------------------------------------------------------------

CREATE VIEW report.cameras WITH (security_barrier) AS
    SELECT site, box, camera, timezone FROM camera_names;

CREATE VIEW report.people_minutes WITH (security_barrier) AS
    SELECT r.bucket, n.site, n.box, n.camera, (r.person_ms / 60000.0)::real AS people, r.most, r.entered, r.visits
    FROM rollup_minutes r JOIN camera_names n USING (camera_id);

CREATE VIEW report.visits_hours WITH (security_barrier) AS
    SELECT r.bucket, n.site, n.box, n.camera, r.visits, (r.dwell_ms / 1000.0 / nullif(r.visits, 0))::real AS mean_dwell_s,
        (r.person_ms / 3600000.0)::real AS people, r.most, r.entered, n.timezone
    FROM rollup_hours r JOIN camera_names n USING (camera_id);

CREATE VIEW report.visits_days WITH (security_barrier) AS
    SELECT r.bucket, n.site, n.box, n.camera, r.visits, (r.dwell_ms / 1000.0 / nullif(r.visits, 0))::real AS mean_dwell_s,
        (r.person_ms / 86400000.0)::real AS people, r.most, r.entered, n.timezone
    FROM rollup_days r JOIN camera_names n USING (camera_id);

CREATE VIEW report.people_now WITH (security_barrier) AS
    SELECT n.site, n.box, n.camera, count(o.track) AS people, max(o.last_at) AS last_at
    FROM camera_names n JOIN boxes b USING (box_id)
    LEFT JOIN open_visits o ON o.camera_id = n.camera_id AND NOT o.closed AND b.state = 'online'
    GROUP BY 1, 2, 3;

-- Counts that carry an attribute: closed hours or days, one head at a time, hidden below k, rounded. Where what is
-- hidden of a head adds up to less than k, its smallest shown cell goes too: it could be had by subtraction.

CREATE VIEW report.attribute_hours WITH (security_barrier) AS
    WITH cells AS (
        SELECT bucket, camera_id, head, label, visits, visits < setting('k') AS small
        FROM attribute_hours WHERE visits > 0 AND bucket + interval '1 hour' <= now()
    ), weighed AS (
        SELECT *, coalesce(sum(visits) FILTER (WHERE small) OVER (PARTITION BY camera_id, bucket, head), 0) AS hidden,
            row_number() OVER (PARTITION BY camera_id, bucket, head ORDER BY small, visits, label) AS nth
        FROM cells
    )
    SELECT w.bucket, n.site, n.box, n.camera, w.head, w.label,
        (round(w.visits::numeric / r.step) * r.step)::bigint AS visits
    FROM weighed w JOIN camera_names n USING (camera_id),
        LATERAL (SELECT greatest(least(setting('k'), setting('round_to')), 1) AS step) r
    WHERE NOT w.small AND NOT (w.nth = 1 AND w.hidden > 0 AND w.hidden < setting('k'));

CREATE VIEW report.attribute_days WITH (security_barrier) AS
    WITH cells AS (
        SELECT date_trunc('day', a.bucket, n.timezone) AS bucket, n.site, n.timezone, a.head, a.label,
            sum(a.visits) AS visits, sum(a.visits) < setting('k') AS small
        FROM attribute_hours a JOIN camera_names n USING (camera_id)
        WHERE date_trunc('day', a.bucket, n.timezone) < date_trunc('day', now(), n.timezone)
        GROUP BY 1, 2, 3, 4, 5 HAVING sum(a.visits) > 0
    ), weighed AS (
        SELECT *, coalesce(sum(visits) FILTER (WHERE small) OVER (PARTITION BY site, bucket, head), 0) AS hidden,
            row_number() OVER (PARTITION BY site, bucket, head ORDER BY small, visits, label) AS nth
        FROM cells
    )
    SELECT w.bucket, w.site, w.head, w.label, (round(w.visits / r.step) * r.step)::bigint AS visits
    FROM weighed w, LATERAL (SELECT greatest(least(setting('k'), setting('round_to')), 1) AS step) r
    WHERE NOT w.small AND NOT (w.nth = 1 AND w.hidden > 0 AND w.hidden < setting('k'));

CREATE VIEW report.settings WITH (security_barrier) AS SELECT name, value, meaning FROM settings;

-- The fleet: a box that never said a word is a row -------------------------------------------------------------------

CREATE VIEW report.box_status WITH (security_barrier) AS
    SELECT s.name AS site, b.name AS box,
        CASE
            WHEN b.state IS NULL AND h.received_at IS NULL THEN 'silent'
            WHEN b.state = 'offline' THEN 'offline'
            WHEN h.received_at > now() - interval '120 seconds' THEN 'online'
            ELSE 'stale'
        END AS status,
        b.reason, b.state_at, h.received_at AS health_at,
        extract(epoch FROM now() - h.received_at)::real AS health_age_s,
        (SELECT count(*) FROM cameras c WHERE c.box_id = b.box_id) AS cameras,
        b.software, b.config_digest, b.boot,
        (h.health->>'uptime_s')::real AS uptime_s,
        (h.health->>'ack_age_s')::real AS ack_age_s,
        (h.health->>'outbox_events')::bigint AS outbox_events,
        (h.health->>'outbox_fill')::real AS outbox_fill,
        (h.health->>'outbox_oldest_s')::real AS outbox_oldest_s,
        h.health->>'publisher' AS publisher,
        (h.health->>'temperature_c')::real AS temperature_c,
        (h.health->>'throttled')::boolean AS throttled,
        (h.health->>'reboots')::bigint AS reboots,
        (h.health->>'disk_free_bytes')::bigint AS disk_free_bytes,
        (h.health->>'rss_bytes')::bigint AS rss_bytes,
        (h.health->>'certificate_days')::real AS certificate_days,
        h.health->>'clock' AS clock,
        h.health->'models' AS models,
        coalesce(l.events, 0) AS lost_events
    FROM boxes b JOIN sites s USING (site_id)
    LEFT JOIN health_latest h USING (box_id)
    LEFT JOIN (SELECT box_id, sum(events)::bigint AS events FROM losses GROUP BY 1) l USING (box_id);

CREATE VIEW report.camera_status WITH (security_barrier) AS
    SELECT n.site, n.box, n.camera, h.received_at AS health_at, c.value->>'state' AS state, c.value->>'error' AS error,
        (c.value->>'fps_in')::real AS fps_in, (c.value->>'fps_processed')::real AS fps_processed,
        (c.value->>'fps_skipped')::real AS fps_skipped, (c.value->>'dropped')::bigint AS dropped,
        (c.value->>'reconnects')::bigint AS reconnects, (c.value->>'frame_age_s')::real AS frame_age_s,
        (c.value->>'inference_age_s')::real AS inference_age_s, (c.value->>'tracks')::bigint AS tracks,
        c.value->'stage_ms' AS stage_ms
    FROM camera_names n LEFT JOIN health_latest h USING (box_id)
    LEFT JOIN LATERAL jsonb_each(h.health->'cameras') c ON c.key = n.camera;

CREATE VIEW report.box_health WITH (security_barrier) AS
    SELECT h.received_at AS at, s.name AS site, b.name AS box, h.uptime_s, h.ack_age_s, h.outbox_events, h.outbox_bytes,
        h.outbox_fill, h.outbox_oldest_s, h.refused, h.losses, h.publisher, h.reboots, h.temperature_c, h.throttled,
        h.disk_free_bytes, h.rss_bytes, h.cpu_percent, h.load_1m, h.certificate_days, h.clock
    FROM health h JOIN boxes b USING (box_id) JOIN sites s USING (site_id);

CREATE VIEW report.camera_health WITH (security_barrier) AS
    SELECT h.received_at AS at, n.site, n.box, n.camera, h.state, h.error, h.fps_in, h.fps_processed, h.fps_skipped,
        h.dropped, h.reconnects, h.frame_age_s, h.inference_age_s, h.tracks, h.stage_ms
    FROM camera_health h JOIN camera_names n USING (camera_id);

CREATE VIEW report.lag WITH (security_barrier) AS
    SELECT r.received_at AS at, s.name AS site, b.name AS box, r.last_seq - r.first_seq + 1 AS events,
        extract(epoch FROM r.written_at - r.newest_at)::real AS lag_s
    FROM batches r JOIN boxes b USING (box_id) JOIN sites s USING (site_id);

CREATE VIEW report.losses WITH (security_barrier) AS
    SELECT l.received_at AS at, s.name AS site, b.name AS box, l.events,
        coalesce((ARRAY['age', 'size', 'disk', 'damaged'])[l.reason + 1], l.reason::text) AS reason
    FROM losses l JOIN boxes b USING (box_id) JOIN sites s USING (site_id);

CREATE VIEW report.dead_letters WITH (security_barrier) AS
    SELECT reason, count(*) AS letters, sum(times)::bigint AS times, max(last_at) AS last_at
    FROM dead_letters GROUP BY 1;

CREATE VIEW report.quarantine WITH (security_barrier) AS
    SELECT count(*) AS events, max(received_at) AS last_at FROM quarantine;

CREATE VIEW report.default_partitions WITH (security_barrier) AS
    SELECT p.parent, coalesce(sum(d.rows), 0)::bigint AS rows
    FROM partitioned p LEFT JOIN LATERAL days_in_default(p.parent) d ON true GROUP BY 1;

-- The original project's two tables: one row per person ---------------------------------------------------------------

CREATE FUNCTION person_id(stream bigint, camera_id integer, track bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT hashint8extended(stream, hashint8extended(track, camera_id)) & 9223372036854775807 $$;

CREATE VIEW compat.object_detection WITH (security_barrier) AS
    SELECT person_id(stream, camera_id, track) AS object_id, track AS tracked_object_id, 'face'::text AS object_class,
        labels->>'age' AS age_category, labels->>'gender' AS gender, labels->>'race' AS race,
        labels->>'emotion' AS face, coalesce(ended_at, started_at + dwell_ms * interval '1 ms') AS last_updated
    FROM visit_list;

CREATE VIEW compat.object_detection_idx WITH (security_barrier) AS
    SELECT person_id(v.stream, v.camera_id, v.track) AS object_id_idx, v.track AS tracked_object_idx,
        age.label_index AS age_category_idx, gender.label_index AS gender_idx, race.label_index AS race_idx,
        emotion.label_index AS face_idx,
        CASE WHEN v.ended_at IS NULL THEN 'detected' ELSE 'not_detected' END AS status,
        coalesce(here.people, 0) AS total_obj,
        coalesce(v.ended_at, v.started_at + v.dwell_ms * interval '1 ms') AS time_updated
    FROM visit_list v
    LEFT JOIN (SELECT camera_id, count(*) AS people FROM open_visits WHERE NOT closed GROUP BY 1) here USING (camera_id)
    LEFT JOIN vocabulary_labels age
        ON (age.vocabulary_id, age.head, age.label) = (v.vocabulary_id, 'age', v.labels->>'age')
    LEFT JOIN vocabulary_labels gender
        ON (gender.vocabulary_id, gender.head, gender.label) = (v.vocabulary_id, 'gender', v.labels->>'gender')
    LEFT JOIN vocabulary_labels race
        ON (race.vocabulary_id, race.head, race.label) = (v.vocabulary_id, 'race', v.labels->>'race')
    LEFT JOIN vocabulary_labels emotion
        ON (emotion.vocabulary_id, emotion.head, emotion.label) = (v.vocabulary_id, 'emotion', v.labels->>'emotion');

REVOKE ALL ON FUNCTION setting(text), person_id(bigint, integer, bigint) FROM PUBLIC;
-- Functions in a view run as whoever asks: what the views call, their readers may call.
GRANT EXECUTE ON FUNCTION setting(text), days_in_default(text) TO facefleet_reader;
GRANT EXECUTE ON FUNCTION person_id(bigint, integer, bigint) TO facefleet_compat;
GRANT USAGE ON SCHEMA report TO facefleet_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA report TO facefleet_reader;
GRANT USAGE ON SCHEMA compat TO facefleet_compat;
GRANT SELECT ON ALL TABLES IN SCHEMA compat TO facefleet_compat;
