-- Boxes taken out of service: gone from the fleet's tables and alarms until they speak again; their history stays.

SET LOCAL ROLE facefleet_migrator;
SET LOCAL search_path = facefleet, pg_temp;

ALTER TABLE boxes ADD COLUMN retired_at timestamptz, ADD COLUMN retired_by text;

-- Heard since: by an event, a new birth or its health. Not by its state as such, which the broker keeps and says again
-- whenever a bridge comes, long after the box is dead.
CREATE VIEW retirements AS
    SELECT b.box_id, b.retired_at, b.retired_by, greatest(
        (SELECT max(t.last_at) FROM streams t WHERE t.box_id = b.box_id AND t.last_at > b.retired_at),
        (SELECT h.received_at FROM health_latest h WHERE h.box_id = b.box_id AND h.received_at > b.retired_at)
    ) AS heard_at
    FROM boxes b WHERE b.retired_at IS NOT NULL;

CREATE VIEW away AS SELECT box_id FROM retirements WHERE heard_at IS NULL;

CREATE VIEW report.retired_boxes WITH (security_barrier) AS
    SELECT s.name AS site, b.name AS box, r.retired_at, r.retired_by, r.heard_at
    FROM retirements r JOIN boxes b USING (box_id) JOIN sites s USING (site_id);

-- The same as before without the boxes that are away. One that came back says so until somebody decides about it.
CREATE OR REPLACE VIEW report.box_status WITH (security_barrier) AS
    SELECT s.name AS site, b.name AS box,
        CASE
            WHEN b.retired_at IS NOT NULL THEN 'returned'
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
        coalesce(l.events, 0) AS lost_events,
        h.health->>'outbox_trouble' AS outbox_trouble
    FROM boxes b JOIN sites s USING (site_id)
    LEFT JOIN health_latest h USING (box_id)
    LEFT JOIN (SELECT box_id, sum(events)::bigint AS events FROM losses GROUP BY 1) l USING (box_id)
    WHERE b.box_id NOT IN (SELECT box_id FROM away);

CREATE OR REPLACE VIEW report.camera_status WITH (security_barrier) AS
    SELECT n.site, n.box, n.camera, h.received_at AS health_at, c.value->>'state' AS state, c.value->>'error' AS error,
        (c.value->>'fps_in')::real AS fps_in, (c.value->>'fps_processed')::real AS fps_processed,
        (c.value->>'fps_skipped')::real AS fps_skipped, (c.value->>'dropped')::bigint AS dropped,
        (c.value->>'reconnects')::bigint AS reconnects, (c.value->>'frame_age_s')::real AS frame_age_s,
        (c.value->>'inference_age_s')::real AS inference_age_s, (c.value->>'tracks')::bigint AS tracks,
        c.value->'stage_ms' AS stage_ms
    FROM camera_names n LEFT JOIN health_latest h USING (box_id)
    LEFT JOIN LATERAL (SELECT h.health->'cameras'->n.camera AS value) c ON true
    WHERE n.box_id NOT IN (SELECT box_id FROM away);

CREATE OR REPLACE VIEW report.models WITH (security_barrier) AS
    SELECT s.name AS site, b.name AS box, m.key AS model, m.value->>'version' AS version,
        m.value->>'device' AS device, m.value->>'artefact' AS artefact, m.value->>'golden' AS golden,
        (SELECT string_agg(a.value, '; ') FROM jsonb_array_elements_text(m.value->'attempts') a) AS attempts,
        m.value->>'licence' AS licence, h.received_at AS health_at
    FROM health_latest h JOIN boxes b USING (box_id) JOIN sites s USING (site_id), jsonb_each(h.health->'models') m
    WHERE b.box_id NOT IN (SELECT box_id FROM away);

CREATE OR REPLACE VIEW report.box_counters WITH (security_barrier) AS
    SELECT s.name AS site, b.name AS box, k.kind, c.key AS reason, c.value::bigint AS events
    FROM health_latest h JOIN boxes b USING (box_id) JOIN sites s USING (site_id),
        LATERAL (VALUES ('refused', h.health->'refused'), ('lost', h.health->'losses')) k (kind, counts),
        jsonb_each_text(k.counts) c
    WHERE b.box_id NOT IN (SELECT box_id FROM away);

-- A box whose death nobody heard keeps its last visits open for ever: once it is retired, nobody stands there.
CREATE OR REPLACE VIEW report.people_now WITH (security_barrier) AS
    SELECT n.site, n.box, n.camera, count(o.track) AS people, max(o.last_at) AS last_at
    FROM camera_names n JOIN boxes b USING (box_id)
    LEFT JOIN open_visits o ON o.camera_id = n.camera_id AND NOT o.closed AND b.state = 'online'
    WHERE n.box_id NOT IN (SELECT box_id FROM away)
    GROUP BY 1, 2, 3;

-- A roll-out leaves a retired box out, which is no failure of the box.
ALTER TABLE rollout_boxes DROP CONSTRAINT rollout_boxes_state_check, ADD CONSTRAINT rollout_boxes_state_check
    CHECK (state IN ('waiting', 'offered', 'taken', 'committed', 'rolled_back', 'refused', 'silent', 'retired'));

GRANT SELECT ON report.retired_boxes TO facefleet_reader;
