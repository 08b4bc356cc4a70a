-- A box says when the disk of its outbox is full, read-only or without its reserve.

SET LOCAL ROLE facefleet_migrator;
SET LOCAL search_path = facefleet, pg_temp;

CREATE OR REPLACE VIEW report.box_status WITH (security_barrier) AS
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
        coalesce(l.events, 0) AS lost_events,
        h.health->>'outbox_trouble' AS outbox_trouble
    FROM boxes b JOIN sites s USING (site_id)
    LEFT JOIN health_latest h USING (box_id)
    LEFT JOIN (SELECT box_id, sum(events)::bigint AS events FROM losses GROUP BY 1) l USING (box_id);
