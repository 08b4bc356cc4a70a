-- Roles, registry, facts, rollups. Facts are partitioned by UTC day; rollup buckets follow the site's time zone.

-- Roles belong to the whole cluster: another database may have made them, or be making them right now.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['facefleet_migrator', 'facefleet_ingest', 'facefleet_reader', 'facefleet_compat'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', name);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
    IF current_setting('server_version_num')::integer < 160000 THEN -- Debian 12 has 15, which knows no SET option
        EXECUTE format('GRANT facefleet_migrator TO %I', current_user);
    ELSIF NOT pg_has_role(current_user, 'facefleet_migrator', 'SET') THEN
        EXECUTE format('GRANT facefleet_migrator TO %I WITH SET TRUE', current_user);
    END IF;
    EXECUTE format('GRANT CREATE, TEMPORARY ON DATABASE %I TO facefleet_migrator', current_database());
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO facefleet_ingest', current_database());
END
$$;

ALTER SCHEMA facefleet OWNER TO facefleet_migrator;
ALTER TABLE facefleet.migrations OWNER TO facefleet_migrator;
SET LOCAL ROLE facefleet_migrator;
SET LOCAL search_path = facefleet, pg_temp;

CREATE TABLE database_identity (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    uuid uuid NOT NULL
);

CREATE TABLE settings (
    name text PRIMARY KEY,
    value integer NOT NULL,
    meaning text NOT NULL
);
INSERT INTO settings VALUES
    ('k', 10, 'an attribute count below this many visits is not shown'),
    ('round_to', 5, 'attribute counts are rounded to a multiple of this');

-- Registry ---------------------------------------------------------------------------------------------------------

CREATE TABLE sites (
    site_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    timezone text NOT NULL DEFAULT 'UTC',
    added_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE boxes (
    box_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    site_id integer NOT NULL REFERENCES sites,
    name text NOT NULL,
    added_at timestamptz NOT NULL DEFAULT now(),
    -- What the newest birth or its death said. All null: a box that was never heard.
    state text CHECK (state IN ('online', 'offline')),
    state_at timestamptz,
    reason text,
    stream bigint,
    boot text,
    machine text,
    nonce text,
    software text,
    config_digest text,
    UNIQUE (site_id, name)
) WITH (fillfactor = 80);

CREATE TABLE cameras (
    camera_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    box_id integer NOT NULL REFERENCES boxes,
    name text NOT NULL,
    added_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (box_id, name)
);

CREATE VIEW camera_zones AS
    SELECT camera_id, timezone FROM cameras JOIN boxes USING (box_id) JOIN sites USING (site_id);

-- A digest has 32 bits, too few to be unique in a large fleet: it names a vocabulary of one box.
CREATE TABLE vocabularies (
    vocabulary_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    box_id integer NOT NULL REFERENCES boxes,
    digest bigint NOT NULL,
    cameras text[] NOT NULL,
    heads jsonb NOT NULL, -- [{"name": …, "labels": […], "purpose": …}]: the record of why a sensitive head is on
    added_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (box_id, digest)
);

CREATE TABLE vocabulary_labels (
    vocabulary_id integer NOT NULL REFERENCES vocabularies,
    head text NOT NULL,
    label text NOT NULL,
    label_index integer NOT NULL,
    PRIMARY KEY (vocabulary_id, head, label)
);

-- What is covered: 1…upto, and ranges above it (first, last, first, last, …). Locked by every writer, in key order.
CREATE TABLE streams (
    stream bigint PRIMARY KEY CHECK (stream > 0),
    box_id integer NOT NULL REFERENCES boxes,
    upto bigint NOT NULL DEFAULT 0,
    ranges bigint[] NOT NULL DEFAULT '{}',
    born boolean NOT NULL DEFAULT false,
    superseded boolean NOT NULL DEFAULT false, -- a newer stream of the box was born
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX ON streams (box_id, last_at);

-- Facts ------------------------------------------------------------------------------------------------------------

-- Which events arrived, 8 bytes of content digest each: how "same key, other bytes" is noticed (P11), and the lag.
CREATE TABLE batches (
    received_at timestamptz NOT NULL,
    written_at timestamptz NOT NULL,
    box_id integer NOT NULL,
    stream bigint NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    newest_at timestamptz NOT NULL, -- the latest event time in it
    clock smallint NOT NULL,
    digests bytea NOT NULL
) PARTITION BY RANGE (received_at);
CREATE INDEX ON batches (stream, first_seq);
CREATE INDEX ON batches USING brin (received_at);

-- Visits without an `ended` event. A visit whose stream was superseded stands in both tables: here `closed`, and in
-- visits with seq null. Its real end, should it still come, replaces that row.
CREATE TABLE open_visits (
    stream bigint NOT NULL,
    camera_id integer NOT NULL,
    track bigint NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    started_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    entry_x smallint NOT NULL,
    entry_y smallint NOT NULL,
    exit_x smallint NOT NULL,
    exit_y smallint NOT NULL,
    w smallint NOT NULL,
    h smallint NOT NULL,
    score smallint NOT NULL CHECK (score BETWEEN 0 AND 255),
    clock smallint NOT NULL,
    vocabulary_id integer NOT NULL,
    labels jsonb NOT NULL,
    confidences jsonb NOT NULL,
    closed boolean NOT NULL DEFAULT false,
    PRIMARY KEY (stream, camera_id, track),
    CHECK (last_at >= started_at)
) WITH (fillfactor = 70);
CREATE INDEX ON open_visits (last_at);

CREATE TABLE visits (
    stream bigint NOT NULL,
    camera_id integer NOT NULL,
    track bigint NOT NULL,
    seq bigint, -- of the `ended` event; null: closed by the bridge when the box restarted
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL,
    dwell_ms bigint NOT NULL CHECK (dwell_ms >= 0),
    reason smallint NOT NULL CHECK (reason BETWEEN 0 AND 31),
    entry_x smallint NOT NULL, -- centres and sizes in 1/4096 of the frame
    entry_y smallint NOT NULL,
    exit_x smallint NOT NULL,
    exit_y smallint NOT NULL,
    w smallint NOT NULL,
    h smallint NOT NULL,
    score smallint NOT NULL CHECK (score BETWEEN 0 AND 255), -- 1/255
    hits integer NOT NULL,
    clock smallint NOT NULL,
    vocabulary_id integer NOT NULL,
    labels jsonb NOT NULL,      -- {"age": "20-29", "gender": "female"}; a head that abstained is absent
    confidences jsonb NOT NULL, -- {"age": 0.83, "gender": 0.97}
    PRIMARY KEY (stream, camera_id, track, ended_at),
    CHECK (ended_at >= started_at)
) PARTITION BY RANGE (ended_at);
CREATE INDEX ON visits USING brin (ended_at);
CREATE INDEX ON visits (camera_id, ended_at);

CREATE TABLE track_updates (
    stream bigint NOT NULL,
    seq bigint NOT NULL,
    at timestamptz NOT NULL,
    camera_id integer NOT NULL,
    track bigint NOT NULL,
    dwell_ms bigint NOT NULL CHECK (dwell_ms >= 0),
    x smallint NOT NULL,
    y smallint NOT NULL,
    w smallint NOT NULL,
    h smallint NOT NULL,
    score smallint NOT NULL CHECK (score BETWEEN 0 AND 255),
    labels jsonb NOT NULL,
    confidences jsonb NOT NULL,
    PRIMARY KEY (stream, seq, at)
) PARTITION BY RANGE (at);
CREATE INDEX ON track_updates USING brin (at);

CREATE TABLE presence (
    stream bigint NOT NULL,
    seq bigint NOT NULL,
    at timestamptz NOT NULL,
    camera_id integer NOT NULL,
    period_ms integer NOT NULL CHECK (period_ms > 0),
    most integer NOT NULL CHECK (most >= 0),
    person_ms bigint NOT NULL CHECK (person_ms >= 0),
    entered integer NOT NULL CHECK (entered >= 0),
    PRIMARY KEY (stream, seq, at)
) PARTITION BY RANGE (at);
CREATE INDEX ON presence USING brin (at);
CREATE INDEX ON presence (camera_id, at);

CREATE TABLE losses (
    stream bigint NOT NULL,
    seq bigint NOT NULL,
    box_id integer NOT NULL REFERENCES boxes,
    lost_stream bigint NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    events bigint NOT NULL CHECK (events >= 0), -- those of the range that had not arrived before
    reason smallint NOT NULL,
    received_at timestamptz NOT NULL,
    PRIMARY KEY (stream, seq),
    CHECK (last_seq >= first_seq)
);

-- `raw` is a payload that can be published again as it stands: one event, or the whole message if it was unreadable.
CREATE TABLE dead_letters (
    dead_letter_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    times integer NOT NULL DEFAULT 1, -- a box resends what is not covered; the same letter is counted, not piled up
    reason text NOT NULL,
    error text NOT NULL,
    topic text NOT NULL,
    stream bigint,
    seq bigint,
    raw bytea NOT NULL,
    digest bytea NOT NULL UNIQUE
);
CREATE INDEX ON dead_letters (last_at);

CREATE TABLE quarantine (
    stream bigint NOT NULL,
    seq bigint NOT NULL,
    at_ms bigint NOT NULL, -- the time the event claims, ms since 1970
    received_at timestamptz NOT NULL,
    topic text NOT NULL,
    raw bytea NOT NULL,
    PRIMARY KEY (stream, seq)
);
CREATE INDEX ON quarantine (received_at);

CREATE TABLE health_latest (
    box_id integer PRIMARY KEY REFERENCES boxes,
    received_at timestamptz NOT NULL,
    health jsonb NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE health (
    box_id integer NOT NULL,
    received_at timestamptz NOT NULL,
    uptime_s real,
    ack_age_s real,
    outbox_events bigint,
    outbox_bytes bigint,
    outbox_fill real,
    outbox_oldest_s real,
    refused bigint,
    losses bigint,
    publisher text,
    reboots bigint,
    temperature_c real,
    throttled boolean,
    disk_free_bytes bigint,
    rss_bytes bigint,
    cpu_percent real,
    load_1m real,
    certificate_days real,
    clock text
) PARTITION BY RANGE (received_at);
CREATE INDEX ON health (box_id, received_at);
CREATE INDEX ON health USING brin (received_at);

CREATE TABLE camera_health (
    camera_id integer NOT NULL,
    received_at timestamptz NOT NULL,
    state text NOT NULL,
    error text,
    fps_in real,
    fps_processed real,
    fps_skipped real,
    dropped bigint,
    reconnects bigint,
    frame_age_s real,
    inference_age_s real,
    tracks bigint,
    stage_ms jsonb
) PARTITION BY RANGE (received_at);
CREATE INDEX ON camera_health (camera_id, received_at);
CREATE INDEX ON camera_health USING brin (received_at);

-- Rollups: fed only from rows really inserted, in key order. Visits count in the bucket of their end. ---------------

CREATE TABLE rollup_minutes (
    bucket timestamptz NOT NULL,
    camera_id integer NOT NULL,
    visits bigint NOT NULL,
    dwell_ms bigint NOT NULL,
    person_ms bigint NOT NULL,
    most integer NOT NULL,
    entered bigint NOT NULL,
    PRIMARY KEY (camera_id, bucket)
) PARTITION BY RANGE (bucket);
CREATE INDEX ON rollup_minutes USING brin (bucket);

CREATE TABLE rollup_hours (LIKE rollup_minutes, PRIMARY KEY (camera_id, bucket)) WITH (fillfactor = 70);
CREATE TABLE rollup_days (LIKE rollup_minutes, PRIMARY KEY (camera_id, bucket)) WITH (fillfactor = 70);

-- Marginals only: no table crosses one head with another.
CREATE TABLE attribute_hours (
    bucket timestamptz NOT NULL,
    camera_id integer NOT NULL,
    head text NOT NULL,
    label text NOT NULL,
    visits bigint NOT NULL,
    PRIMARY KEY (camera_id, bucket, head, label)
) WITH (fillfactor = 70);

-- Partitions -------------------------------------------------------------------------------------------------------

CREATE TABLE partitioned (
    parent text PRIMARY KEY,
    key text NOT NULL
);
INSERT INTO partitioned VALUES
    ('batches', 'received_at'), ('visits', 'ended_at'), ('track_updates', 'at'), ('presence', 'at'),
    ('health', 'received_at'), ('camera_health', 'received_at'), ('rollup_minutes', 'bucket');

DO $$
DECLARE
    parent text;
BEGIN
    FOR parent IN SELECT p.parent FROM partitioned p LOOP
        EXECUTE format('CREATE TABLE %I PARTITION OF %I DEFAULT', parent || '_default', parent);
    END LOOP;
END
$$;

-- Rows of that day leave DEFAULT first: one of them there would make ATTACH fail with 23514. Locks are taken as a
-- writer takes them, parent before DEFAULT. Returns whether a partition was made.
CREATE FUNCTION make_partition(parent_name text, day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = facefleet, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
    part text := parent_name || '_p' || to_char(day, 'YYYYMMDD');
    low timestamptz := day::timestamp AT TIME ZONE 'UTC';
    high timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
    key_name text;
BEGIN
    SELECT key INTO STRICT key_name FROM partitioned WHERE parent = parent_name;
    IF to_regclass(part) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('LOCK TABLE ONLY %I IN SHARE UPDATE EXCLUSIVE MODE', parent_name);
    EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', parent_name || '_default');
    IF to_regclass(part) IS NOT NULL THEN
        RETURN false; -- another bridge made it while this one waited
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', part, parent_name);
    EXECUTE format('WITH moved AS (DELETE FROM %1$I WHERE %2$I >= %3$L AND %2$I < %4$L RETURNING *) '
                   'INSERT INTO %5$I SELECT * FROM moved', parent_name || '_default', key_name, low, high, part);
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent_name, part, low, high);
    RETURN true;
END
$$;

CREATE FUNCTION days_in_default(parent_name text) RETURNS TABLE (day date, rows bigint)
LANGUAGE plpgsql SECURITY DEFINER STABLE SET search_path = facefleet, pg_temp AS $$
DECLARE
    key_name text;
BEGIN
    SELECT key INTO STRICT key_name FROM partitioned WHERE parent = parent_name;
    RETURN QUERY EXECUTE format(
        'SELECT (%I AT TIME ZONE ''UTC'')::date, count(*) FROM %I GROUP BY 1 ORDER BY 1',
        key_name, parent_name || '_default');
END
$$;

-- Retention: whole days that ended before `oldest` go. Returns the names of the partitions dropped.
CREATE FUNCTION drop_partitions(parent_name text, oldest timestamptz) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = facefleet, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
    part text;
    key_name text;
BEGIN
    SELECT key INTO STRICT key_name FROM partitioned WHERE parent = parent_name;
    IF oldest > now() - interval '1 day' THEN
        RAISE EXCEPTION 'retention up to % would drop the last day of %', oldest, parent_name
            USING ERRCODE = 'raise_exception', HINT = 'keep at least one day';
    END IF;
    FOR part IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = parent_name::regclass AND c.relname ~ '_p[0-9]{8}$'
          AND (to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' <= oldest
        ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE %I', part);
        RETURN NEXT part;
    END LOOP;
    EXECUTE format('DELETE FROM %I WHERE %I < %L', parent_name || '_default', key_name, oldest);
END
$$;

-- Grants -----------------------------------------------------------------------------------------------------------

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA facefleet FROM PUBLIC;
GRANT USAGE ON SCHEMA facefleet TO facefleet_ingest;
GRANT SELECT, INSERT, UPDATE ON sites, boxes, cameras, vocabularies, vocabulary_labels, health_latest,
    rollup_minutes, rollup_hours, rollup_days TO facefleet_ingest;
GRANT SELECT, INSERT, UPDATE, DELETE ON streams, open_visits, visits, dead_letters, quarantine, attribute_hours
    TO facefleet_ingest;
GRANT SELECT, INSERT ON batches, track_updates, presence, losses, health, camera_health TO facefleet_ingest;
GRANT SELECT ON database_identity, settings, partitioned, camera_zones TO facefleet_ingest;
GRANT EXECUTE ON FUNCTION make_partition(text, date), days_in_default(text), drop_partitions(text, timestamptz)
    TO facefleet_ingest;
