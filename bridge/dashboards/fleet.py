"""The Fleet dashboard: which boxes live, what they do, what they lose, what runs on them; and the centre itself."""

from bridge.dashboards.audience import CHOSEN_BOX, CHOSEN_SITE
from bridge.dashboards.model import AMBER, BLUE, GREEN, GREY, RED, Dashboard, Panel, Row, Variable

# Many rows, few points: as $__timeGroup, without its numeric arithmetic.
POINT = "date_bin('$__interval_ms ms', at, '1970-01-01 00:00Z')"

STATUS = {"online": GREEN, "stale": AMBER, "offline": RED, "silent": GREY, "returned": BLUE, "retired": GREY}
GOLDEN = {"ok": GREEN}

# From the registry, not from what was heard: a box that never said a word can be chosen.
VARIABLES = (
    Variable("site", "SELECT DISTINCT site FROM report.box_status ORDER BY 1"),
    Variable("box", f"SELECT box FROM report.box_status WHERE {CHOSEN_SITE} ORDER BY 1"),
)

BOXES = (
    Panel(
        "Boxes",
        "stat",
        f"""
SELECT count(*) FILTER (WHERE status = 'online') AS online, count(*) FILTER (WHERE status = 'stale') AS stale,
    count(*) FILTER (WHERE status = 'offline') AS offline, count(*) FILTER (WHERE status = 'silent') AS silent,
    count(*) FILTER (WHERE status = 'returned') AS returned
FROM report.box_status WHERE {CHOSEN_BOX}""",
        {"online": "number", "stale": "number", "offline": "number", "silent": "number", "returned": "number"},
        "online: health heard within two minutes. stale: no death heard, but no health either. offline: it said so, or "
        "the broker did. silent: registered, never heard. returned: retired, and heard since.",
        w=8,
        h=5,
        colours=STATUS,
    ),
    Panel(
        "Bridges at the database",
        "stat",
        "SELECT bridges FROM report.centre",
        {"bridges": "number"},
        "Connections of bridges, now.",
        w=4,
        h=5,
        steps=((None, RED), (1, GREEN)),
    ),
    Panel(
        "Since the last commit",
        "stat",
        "SELECT extract(epoch FROM now() - last_commit_at) AS age FROM report.centre",
        {"age": "number"},
        "A commit that brought events.",
        w=4,
        h=5,
        unit="s",
        decimals=0,
        steps=((None, GREEN), (120, AMBER), (600, RED)),
    ),
    Panel(
        "Database",
        "stat",
        "SELECT database_bytes AS used, database_bytes::float8 / database_limit_bytes AS full FROM report.centre",
        {"used": "number", "full": "number"},
        "Of what the setting database_gb allows.",
        w=4,
        h=5,
        unit="percentunit",
        units={"used": "decbytes"},
        decimals=1,
        steps=((None, GREEN),),
    ),
    Panel(
        "Rows in DEFAULT partitions",
        "stat",
        "SELECT sum(default_rows)::bigint AS rows FROM report.partitions",
        {"rows": "number"},
        "Rows for whose day nobody made a partition in time.",
        w=4,
        h=5,
        steps=((None, GREEN), (1, RED)),
    ),
    Panel(
        "Every box",
        "table",
        f"""
SELECT site, box, status, health_age_s AS "heard", cameras, publisher, outbox_fill AS "outbox",
    outbox_trouble AS "outbox's disk", lost_events AS "lost", temperature_c AS "°C", disk_free_bytes AS "disk free",
    reboots, certificate_days AS "certificate", clock, software, left(config_digest, 8) AS config
FROM report.box_status WHERE {CHOSEN_BOX}
ORDER BY status = 'online', site, box LIMIT 1000""",
        {
            "site": "text", "box": "text", "status": "text", "heard": "number", "cameras": "number",
            "publisher": "text", "outbox": "number", "outbox's disk": "text", "lost": "number", "°C": "number",
            "disk free": "number", "reboots": "number", "certificate": "number", "clock": "text", "software": "text",
            "config": "text",
        },
        "Every registered box that is not retired, those in trouble first.",
        w=24,
        h=10,
        units={"heard": "s", "outbox": "percentunit", "°C": "celsius", "disk free": "decbytes", "certificate": "d"},
        decimals=1,
        colours=STATUS,
    ),
    Panel(
        "Retired boxes",
        "table",
        f"""
SELECT site, box, retired_at AS retired, retired_by AS "by", heard_at AS "heard since"
FROM report.retired_boxes WHERE {CHOSEN_SITE} ORDER BY heard_at IS NULL, retired_at DESC, site, box LIMIT 200""",
        {"site": "text", "box": "text", "retired": "time", "by": "text", "heard since": "time"},
        '"facefleet-bridge retire" took them out of service. One that was heard since stands above, too.',
        w=24,
        h=4,
    ),
)  # fmt: skip

FRAMES = (
    Panel(
        "Frames a second",
        "lines",
        f"""
SELECT {POINT} AS "time", avg(fps_in) AS "in", avg(fps_processed) AS processed,
    avg(fps_skipped) AS skipped
FROM report.camera_health WHERE $__timeFilter(at) AND {CHOSEN_BOX}
GROUP BY 1 ORDER BY 1""",
        {"time": "time", "in": "number", "processed": "number", "skipped": "number"},
        "Mean of a camera. Skipped: the gate saw no motion, or the camera is faster than the configured rate.",
        decimals=1,
    ),
    Panel(
        "Time of each stage",
        "ranking",
        f"""
SELECT s.key AS stage, avg(s.value::real) AS mean, max(s.value::real) AS slowest
FROM report.camera_status, jsonb_each_text(stage_ms) s
WHERE {CHOSEN_BOX} GROUP BY 1 ORDER BY 2 DESC""",
        {"stage": "text", "mean": "number", "slowest": "number"},
        "Milliseconds a frame now: mean of all cameras, and the slowest camera.",
        unit="ms",
        decimals=1,
    ),
    Panel(
        "Cameras",
        "table",
        f"""
SELECT coalesce(state, 'never heard') AS state, count(*) AS cameras, max(frame_age_s) AS "oldest frame",
    sum(reconnects)::bigint AS reconnects, sum(dropped)::bigint AS dropped
FROM report.camera_status WHERE {CHOSEN_BOX} GROUP BY 1 ORDER BY 2 DESC, 1""",
        {"state": "text", "cameras": "number", "oldest frame": "number", "reconnects": "number", "dropped": "number"},
        units={"oldest frame": "s"},
        colours={"streaming": GREEN, "reconnecting": RED, "opening": AMBER, "ended": GREY, "never heard": GREY},
    ),
    Panel(
        "Cameras in trouble",
        "table",
        f"""
SELECT site, box, camera, coalesce(state, 'never heard') AS state, coalesce(error, '') AS error
FROM report.camera_status
WHERE {CHOSEN_BOX} AND state IS DISTINCT FROM 'streaming' AND state IS DISTINCT FROM 'ended'
ORDER BY 1, 2, 3 LIMIT 200""",
        {"site": "text", "box": "text", "camera": "text", "state": "text", "error": "text"},
        w=24,
        h=5,
    ),
)

DELIVERY = (
    Panel(
        "Events waiting in outboxes",
        "lines",
        f"""
SELECT "time", sum(events) AS events FROM (
    SELECT {POINT} AS "time", box, avg(outbox_events) AS events
    FROM report.box_health WHERE $__timeFilter(at) AND {CHOSEN_BOX} GROUP BY 1, 2
) boxes
GROUP BY 1 ORDER BY 1""",
        {"time": "time", "events": "number"},
        "Summed over the boxes heard.",
    ),
    Panel(
        "Oldest event in an outbox",
        "lines",
        f"""
SELECT {POINT} AS "time", max(outbox_oldest_s) AS oldest, avg(outbox_oldest_s) AS mean
FROM report.box_health WHERE $__timeFilter(at) AND {CHOSEN_BOX}
GROUP BY 1 ORDER BY 1""",
        {"time": "time", "oldest": "number", "mean": "number"},
        unit="s",
    ),
    Panel(
        "Lag from event to row",
        "lines",
        f"""
SELECT {POINT} AS "time", percentile_cont(0.5) WITHIN GROUP (ORDER BY lag_s) AS p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY lag_s) AS p99
FROM report.lag_sample WHERE $__timeFilter(at) AND {CHOSEN_BOX}
GROUP BY 1 ORDER BY 1""",
        {"time": "time", "p50": "number", "p99": "number"},
        "Of the newest event of each batch; over 100,000 batches a day, of a sample. A backlog that drains counts.",
        unit="s",
        decimals=2,
    ),
    Panel(
        "Events lost",
        "bars",
        f"""
SELECT {POINT} AS "time", reason AS metric, sum(events)::bigint AS events
FROM report.losses WHERE $__timeFilter(at) AND {CHOSEN_BOX}
GROUP BY 1, 2 ORDER BY 1, 2""",
        {"time": "time", "metric": "text", "events": "number"},
        "Given up by boxes whose outbox reached its bounds: every one is counted.",
        stacked=True,
        colours={"age": AMBER, "size": RED, "disk": RED, "damaged": RED},
    ),
    Panel(
        "Refused and lost, by reason",
        "table",
        f"""
SELECT kind, reason, sum(events)::bigint AS events, count(*) FILTER (WHERE events > 0) AS boxes
FROM report.box_counters WHERE {CHOSEN_BOX} GROUP BY 1, 2 HAVING sum(events) > 0 ORDER BY 3 DESC LIMIT 50""",
        {"kind": "text", "reason": "text", "events": "number", "boxes": "number"},
        "Counters of the boxes since they started. Refused: never accepted into an outbox.",
    ),
    Panel(
        "Dead letters and quarantine",
        "table",
        """
SELECT reason, letters, times, last_at AS last FROM report.dead_letters
UNION ALL
SELECT 'quarantine: time beyond belief', events, events, last_at FROM report.quarantine
ORDER BY 2 DESC""",
        {"reason": "text", "letters": "number", "times": "number", "last": "time"},
        'What could not be written. "facefleet-bridge dead-letters list" shows each with its content.',
    ),
)

HARDWARE = (
    Panel(
        "Temperature",
        "lines",
        f"""
SELECT {POINT} AS "time", max(temperature_c) AS hottest, avg(temperature_c) AS mean
FROM report.box_health WHERE $__timeFilter(at) AND {CHOSEN_BOX}
GROUP BY 1 ORDER BY 1""",
        {"time": "time", "hottest": "number", "mean": "number"},
        unit="celsius",
    ),
    Panel(
        "Free on disk",
        "lines",
        f"""
SELECT {POINT} AS "time", min(disk_free_bytes) AS least, avg(disk_free_bytes) AS mean
FROM report.box_health WHERE $__timeFilter(at) AND {CHOSEN_BOX}
GROUP BY 1 ORDER BY 1""",
        {"time": "time", "least": "number", "mean": "number"},
        unit="decbytes",
    ),
    Panel(
        "Restarts",
        "table",
        f"""
SELECT site, box, max(reboots) - min(reboots) AS restarts, max(reboots) AS "since installed"
FROM report.box_health WHERE $__timeFilter(at) AND {CHOSEN_BOX}
GROUP BY 1, 2 ORDER BY 3 DESC, 4 DESC, 1, 2 LIMIT 100""",
        {"site": "text", "box": "text", "restarts": "number", "since installed": "number"},
        "Within the time shown, and ever.",
    ),
)

SOFTWARE = (
    Panel(
        "Models",
        "table",
        f"""
SELECT model, version, device, artefact, golden, count(*) AS boxes, count(attempts) AS "on a fallback"
FROM report.models WHERE {CHOSEN_BOX} GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 6 DESC LIMIT 200""",
        {
            "model": "text", "version": "text", "device": "text", "artefact": "text", "golden": "text",
            "boxes": "number", "on a fallback": "number",
        },
        "What runs where, and whether it computed its golden output.",
        w=14,
        colours=GOLDEN,
    ),
    Panel(
        "Configs",
        "pie",
        f"SELECT coalesce(left(config_digest, 8), 'unknown') AS config, count(*) AS boxes FROM report.box_status "
        f"WHERE {CHOSEN_BOX} GROUP BY 1 ORDER BY 2 DESC LIMIT 20",
        {"config": "text", "boxes": "number"},
        "Boxes by the digest of their config: after a rollout, one slice.",
        w=5,
    ),
    Panel(
        "Software versions",
        "pie",
        f"SELECT coalesce(software, 'unknown') AS software, count(*) AS boxes FROM report.box_status "
        f"WHERE {CHOSEN_BOX} GROUP BY 1 ORDER BY 2 DESC LIMIT 20",
        {"software": "text", "boxes": "number"},
        w=5,
    ),
    Panel(
        "Models that are not where they should be",
        "table",
        f"""
SELECT site, box, model, device || ' ' || artefact AS "runs on", golden, coalesce(attempts, '') AS "tried before"
FROM report.models WHERE {CHOSEN_BOX} AND (golden <> 'ok' OR attempts IS NOT NULL) ORDER BY 1, 2, 3 LIMIT 200""",
        {"site": "text", "box": "text", "model": "text", "runs on": "text", "golden": "text", "tried before": "text"},
        "A device before the one in use was refused, mostly because its golden output was wrong.",
        w=14,
        h=6,
        colours=GOLDEN,
    ),
    Panel(
        "Partitions",
        "table",
        "SELECT parent AS \"table\", days, days_ahead AS \"days ahead\", default_rows AS \"rows in DEFAULT\" "
        "FROM report.partitions ORDER BY 1",
        {"table": "text", "days": "number", "days ahead": "number", "rows in DEFAULT": "number"},
        "Made ahead once an hour by a bridge.",
        w=10,
        h=6,
    ),
)  # fmt: skip

ROLLOUTS = (
    Panel(
        "Roll-outs",
        "table",
        """
SELECT rollout_id AS "roll-out", started_at AS began, state, wave, boxes, committed, under_way AS "under way", failed,
    reason
FROM report.rollouts ORDER BY 1 DESC, 4 LIMIT 50""",
        {
            "roll-out": "number", "began": "time", "state": "text", "wave": "number", "boxes": "number",
            "committed": "number", "under way": "number", "failed": "number", "reason": "text",
        },
        "One row a wave, the newest first. A wave begins when the one before has ended.",
        w=14,
        h=6,
        colours={"running": AMBER, "done": GREEN, "stopped": RED, "aborted": GREY},
    ),
    Panel(
        "Boxes that did not take the newest roll-out",
        "table",
        f"""
SELECT site, box, wave, state, reason FROM report.rollout_boxes
WHERE rollout_id = (SELECT max(rollout_id) FROM report.rollouts) AND state NOT IN ('committed', 'retired')
    AND {CHOSEN_BOX}
ORDER BY state IN ('waiting', 'offered', 'taken'), site, box LIMIT 200""",
        {"site": "text", "box": "text", "wave": "number", "state": "text", "reason": "text"},
        "Failed ones first; they run what they ran before.",
        w=10,
        h=6,
        colours={"rolled_back": RED, "refused": RED, "silent": GREY, "taken": AMBER, "offered": AMBER},
    ),
)  # fmt: skip

FLEET = Dashboard(
    "facefleet-fleet",
    "Fleet",
    "Every registered box, whether it speaks or not; retired ones apart.",
    since="3h",
    refresh="30s",
    variables=VARIABLES,
    items=(
        Row("Boxes and centre"), *BOXES, Row("Frames"), *FRAMES, Row("Delivery"), *DELIVERY,
        Row("Hardware"), *HARDWARE, Row("What runs"), *SOFTWARE, Row("Roll-outs"), *ROLLOUTS,
    ),
)  # fmt: skip
