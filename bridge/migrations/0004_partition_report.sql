-- report.partitions, so that its readers can read it: to_regclass asks for rights on the schema it looks into.

SET LOCAL ROLE facefleet_migrator;
SET LOCAL search_path = facefleet, pg_temp;

CREATE OR REPLACE VIEW report.partitions WITH (security_barrier) AS
    SELECT p.parent, count(i.day) AS days, max(i.day) - (now() AT TIME ZONE 'UTC')::date AS days_ahead,
        (SELECT coalesce(sum(d.rows), 0)::bigint FROM days_in_default(p.parent) d) AS default_rows
    FROM partitioned p LEFT JOIN LATERAL (
        SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
        FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace
        JOIN pg_inherits h ON h.inhparent = t.oid JOIN pg_class c ON c.oid = h.inhrelid
        WHERE n.nspname = 'facefleet' AND t.relname = p.parent AND c.relname ~ '_p[0-9]{8}$'
    ) i ON true
    GROUP BY p.parent;
