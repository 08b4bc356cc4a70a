-- Erasure: what was erased of which box, so that whatever comes later of it is counted as covered and dropped.

SET LOCAL ROLE facefleet_migrator;
SET LOCAL search_path = facefleet, pg_temp;

-- A span ends when it was asked for at the latest: nobody erases the future.
CREATE TABLE tombstones (
    tombstone_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    box_id integer NOT NULL REFERENCES boxes,
    from_at timestamptz, -- null: since ever
    to_at timestamptz NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    made_by text NOT NULL DEFAULT session_user,
    erased jsonb NOT NULL, -- how many rows of what went
    dropped bigint NOT NULL DEFAULT 0, -- events of that span that came afterwards
    CHECK (from_at < to_at)
);
CREATE INDEX ON tombstones (box_id);

-- Visits that reached into an erased span: events of theirs outside of it bring none of them back.
CREATE TABLE erased_tracks (
    stream bigint NOT NULL,
    camera_id integer NOT NULL,
    track bigint NOT NULL,
    erased_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stream, camera_id, track)
);
CREATE INDEX ON erased_tracks (erased_at);

-- Said on the row that every writer locks: one that waited for the erasure sees it, one of another box pays nothing.
ALTER TABLE streams ADD COLUMN erased boolean NOT NULL DEFAULT false;

CREATE VIEW report.erasures WITH (security_barrier) AS
    SELECT s.name AS site, b.name AS box, t.from_at, t.to_at, t.made_at, t.made_by, t.erased, t.dropped
    FROM tombstones t JOIN boxes b USING (box_id) JOIN sites s USING (site_id);

GRANT SELECT ON tombstones TO facefleet_ingest;
GRANT UPDATE (dropped) ON tombstones TO facefleet_ingest;
GRANT SELECT, INSERT, DELETE ON erased_tracks TO facefleet_ingest;
GRANT DELETE ON track_updates TO facefleet_ingest;
GRANT SELECT ON report.erasures TO facefleet_reader;
