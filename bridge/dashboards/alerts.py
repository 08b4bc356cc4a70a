"""When a person is called: about a box, and about the centre itself."""

from bridge.dashboards.model import Alert, Kind

BOX: dict[str, Kind] = {"site": "text", "box": "text"}

BOXES = (
    Alert(
        "facefleet-offline",
        "Box is not online",
        "{{ .Labels.box }} at {{ .Labels.site }} sent no health for two heartbeats, died, or was never heard",
        "SELECT site, box, (status NOT IN ('online', 'returned'))::int AS away FROM report.box_status",
        {**BOX, "away": "number"},
        limit=0,
        lasting="1m",
        severity="critical",
    ),
    Alert(
        "facefleet-returned",
        "Retired box speaks again",
        '{{ .Labels.box }} at {{ .Labels.site }} was heard after it was retired: "facefleet-bridge retire --undo" if '
        "that is meant, else shut it out and retire it once more",
        "SELECT site, box, (status = 'returned')::int AS back FROM report.box_status",
        {**BOX, "back": "number"},
        limit=0,
        lasting="0s",
        severity="warning",
    ),
    Alert(
        "facefleet-duplicate-id",
        "Two boxes with one id",
        "another box lives under the id {{ .Labels.box }}; this one keeps its events and does not publish",
        "SELECT site, box, (coalesce(publisher, '') = 'duplicate_id')::int AS twin FROM report.box_status",
        {**BOX, "twin": "number"},
        limit=0,
        lasting="0s",
        severity="critical",
    ),
    Alert(
        "facefleet-camera",
        "Camera gives no frames",
        "{{ .Labels.camera }} of {{ .Labels.box }} is neither streaming nor at its end",
        """
SELECT site, box, camera, (coalesce(state, '') NOT IN ('streaming', 'ended'))::int AS dark
FROM report.camera_status WHERE health_at > now() - interval '2 minutes'""",
        {**BOX, "camera": "text", "dark": "number"},
        limit=0,
        lasting="5m",
        severity="warning",
    ),
    Alert(
        "facefleet-lag",
        "Events arrive late",
        "half of what came from {{ .Labels.box }} in ten minutes was over two minutes old when it was written",
        """
SELECT s.site, s.box, coalesce(l.lag_s, 0) AS lag
FROM report.box_status s LEFT JOIN (
    SELECT site, box, percentile_cont(0.5) WITHIN GROUP (ORDER BY lag_s) AS lag_s
    FROM report.lag WHERE at > now() - interval '10 minutes' GROUP BY 1, 2
) l USING (site, box)""",
        {**BOX, "lag": "number"},
        limit=120,
        lasting="10m",
        severity="warning",
    ),
    Alert(
        "facefleet-outbox",
        "Outbox is over 80 % full",
        "the outbox of {{ .Labels.box }} will soon drop its oldest events",
        "SELECT site, box, coalesce(outbox_fill, 0) AS filled FROM report.box_status",
        {**BOX, "filled": "number"},
        limit=0.8,
        lasting="1m",
        severity="warning",
    ),
    Alert(
        "facefleet-outbox-disk",
        "Outbox cannot be written as it should",
        "the disk of {{ .Labels.box }} is full, read-only or without its reserve: {{ .Labels.trouble }}",
        """
SELECT site, box, coalesce(outbox_trouble, '') AS trouble, (outbox_trouble IS NOT NULL)::int AS troubled
FROM report.box_status""",
        {**BOX, "trouble": "text", "troubled": "number"},
        limit=0,
        lasting="1m",
        severity="critical",
    ),
    Alert(
        "facefleet-losses",
        "Events were lost",
        "{{ .Labels.box }} gave up or refused events within the last hour",
        """
SELECT s.site, s.box, coalesce(l.events, 0) + coalesce(h.refused, 0) AS events
FROM report.box_status s
LEFT JOIN (
    SELECT site, box, sum(events) AS events FROM report.losses WHERE at > now() - interval '1 hour' GROUP BY 1, 2
) l USING (site, box)
LEFT JOIN (
    SELECT site, box, max(refused) - min(refused) AS refused
    FROM report.box_health WHERE at > now() - interval '1 hour' GROUP BY 1, 2
) h USING (site, box)""",
        {**BOX, "events": "number"},
        limit=0,
        lasting="0s",
        severity="critical",
    ),
    Alert(
        "facefleet-golden",
        "Golden check failed",
        "{{ .Labels.model }} on {{ .Labels.box }} computed a wrong golden output, there or on a device tried before",
        """
SELECT site, box, model, (golden <> 'ok' OR coalesce(attempts, '') LIKE '%golden check failed%')::int AS wrong
FROM report.models""",
        {**BOX, "model": "text", "wrong": "number"},
        limit=0,
        lasting="0s",
        severity="warning",
    ),
    Alert(
        "facefleet-certificate",
        "Certificate ends within two weeks",
        "{{ .Labels.box }} will be refused by the broker once its certificate has ended",
        "SELECT site, box, certificate_days AS days FROM report.box_status WHERE certificate_days IS NOT NULL",
        {**BOX, "days": "number"},
        limit=14,
        fires="below",
        lasting="1h",
        severity="warning",
    ),
    Alert(
        "facefleet-disk",
        "Box has under 500 MB free",
        "the disk of {{ .Labels.box }} is nearly full",
        "SELECT site, box, disk_free_bytes AS free FROM report.box_status WHERE disk_free_bytes IS NOT NULL",
        {**BOX, "free": "number"},
        limit=500_000_000,
        fires="below",
        lasting="10m",
        severity="warning",
    ),
    Alert(
        "facefleet-hot",
        "Box throttles",
        "{{ .Labels.box }} runs slower because it is too hot or short of current",
        "SELECT site, box, coalesce(throttled, false)::int AS throttled FROM report.box_status",
        {**BOX, "throttled": "number"},
        limit=0,
        lasting="10m",
        severity="warning",
    ),
)

CENTRE = (
    Alert(
        "facefleet-bridge-down",
        "No bridge",
        "no bridge is connected to the database; boxes keep their events",
        "SELECT (bridges = 0)::int AS down FROM report.centre",
        {"down": "number"},
        limit=0,
        lasting="2m",
        severity="critical",
        rows=True,
    ),
    Alert(
        "facefleet-last-commit",
        "Nothing was written for ten minutes",
        "boxes are online and send a count a minute, yet no events were committed",
        """
SELECT CASE WHEN EXISTS (SELECT FROM report.box_status WHERE status = 'online' AND cameras > 0)
    THEN extract(epoch FROM now() - coalesce(last_commit_at, '-infinity')) ELSE 0 END::float8 AS age
FROM report.centre""",
        {"age": "number"},
        limit=600,
        lasting="1m",
        severity="critical",
        rows=True,
    ),
    Alert(
        "facefleet-partition-job",
        "Partitions are not made ahead",
        "the hourly job of the bridges did not run, or {{ .Labels.table }} has no partition for tomorrow",
        """
SELECT parent AS "table", (coalesce(days_ahead, -1) < 1
    OR coalesce((SELECT partitions_at FROM report.centre), '-infinity') < now() - interval '3 hours')::int AS late
FROM report.partitions""",
        {"table": "text", "late": "number"},
        limit=0,
        lasting="5m",
        severity="critical",
        rows=True,
    ),
    Alert(
        "facefleet-default-partition",
        "DEFAULT partition is not empty",
        "{{ .Labels.table }} got rows for a day without a partition",
        'SELECT parent AS "table", default_rows AS rows FROM report.partitions',
        {"table": "text", "rows": "number"},
        limit=0,
        lasting="2h",  # the hourly job moves them; what stays is a job that fails
        severity="warning",
        rows=True,
    ),
    Alert(
        "facefleet-database-full",
        "Database is nearly full",
        "the database reached 85 % of the setting database_gb",
        "SELECT database_bytes::float8 / database_limit_bytes AS filled FROM report.centre",
        {"filled": "number"},
        limit=0.85,
        lasting="10m",
        severity="critical",
        rows=True,
    ),
    Alert(
        "facefleet-dead-letters",
        "Dead letters",
        'messages could not be written ({{ .Labels.reason }}); see "facefleet-bridge dead-letters list"',
        "SELECT reason, (last_at > now() - interval '1 hour')::int AS fresh FROM report.dead_letters",
        {"reason": "text", "fresh": "number"},
        limit=0,
        lasting="0s",
        severity="warning",
    ),
)

GROUPS = {"boxes": BOXES, "centre": CENTRE}
