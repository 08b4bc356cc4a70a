-- Roll-outs of signed bundles: which box was offered which, in which wave, and what came of it.

SET LOCAL ROLE facefleet_migrator;
SET LOCAL search_path = facefleet, pg_temp;

CREATE TABLE rollouts (
    rollout_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    state text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done', 'stopped', 'aborted')),
    reason text NOT NULL DEFAULT '',
    tolerated integer NOT NULL CHECK (tolerated >= 0),
    patience_s integer NOT NULL CHECK (patience_s > 0),
    CHECK ((state = 'running') = (ended_at IS NULL))
);
CREATE UNIQUE INDEX rollouts_one_at_a_time ON rollouts (state) WHERE state = 'running';

-- Names, not ids: a box may be offered its first bundle before it was ever heard.
CREATE TABLE rollout_boxes (
    rollout_id integer NOT NULL REFERENCES rollouts,
    site text NOT NULL,
    box text NOT NULL,
    wave integer NOT NULL CHECK (wave > 0),
    counter bigint NOT NULL,
    url text NOT NULL,
    sha256 text NOT NULL,
    bytes bigint NOT NULL,
    state text NOT NULL DEFAULT 'waiting'
        CHECK (state IN ('waiting', 'offered', 'taken', 'committed', 'rolled_back', 'refused', 'silent')),
    reason text NOT NULL DEFAULT '',
    offered_at timestamptz,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (rollout_id, site, box)
);

CREATE VIEW report.rollouts WITH (security_barrier) AS
    SELECT r.rollout_id, r.started_at, r.ended_at, r.state, r.reason, b.wave,
        count(*) AS boxes,
        count(*) FILTER (WHERE b.state = 'committed') AS committed,
        count(*) FILTER (WHERE b.state IN ('offered', 'taken')) AS under_way,
        count(*) FILTER (WHERE b.state IN ('rolled_back', 'refused', 'silent')) AS failed
    FROM rollouts r JOIN rollout_boxes b USING (rollout_id)
    GROUP BY r.rollout_id, b.wave;

CREATE VIEW report.rollout_boxes WITH (security_barrier) AS
    SELECT rollout_id, site, box, wave, counter, state, reason, offered_at, changed_at FROM rollout_boxes;

GRANT SELECT, INSERT, UPDATE ON rollouts, rollout_boxes TO facefleet_ingest;
GRANT SELECT ON report.rollouts, report.rollout_boxes TO facefleet_reader;
