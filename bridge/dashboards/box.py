"""The Box dashboard: one box in depth."""

from bridge.dashboards.fleet import GOLDEN, STATUS
from bridge.dashboards.model import AMBER, BLUE, GREEN, GREY, RED, Dashboard, Panel, Row, Variable

THIS = "box = '$box'"  # one choice, so Grafana puts no quotes around it

NOW = (
    Panel(
        "Status",
        "stat",
        f"SELECT coalesce(max(status), 'retired') AS status FROM report.box_status WHERE {THIS}",
        {"status": "text"},
        "A retired box has a past and no present.",
        w=4,
        h=4,
        colours=STATUS,
    ),
    Panel(
        "Heard and acknowledged",
        "stat",
        f"SELECT health_age_s AS heard, ack_age_s AS acknowledged FROM report.box_status WHERE {THIS}",
        {"heard": "number", "acknowledged": "number"},
        "Since the last health message; and, as the box said in it, since the last acknowledgement it heard.",
        w=7,
        h=4,
        unit="s",
        decimals=0,
        steps=((None, GREEN), (120, AMBER), (600, RED)),
    ),
    Panel(
        "Outbox filled",
        "stat",
        f"SELECT outbox_fill AS full FROM report.box_status WHERE {THIS}",
        {"full": "number"},
        "Of its bound in bytes; at 100 % the oldest events are dropped, and counted.",
        w=4,
        h=4,
        unit="percentunit",
        decimals=1,
        steps=((None, GREEN), (0.5, AMBER), (0.8, RED)),
    ),
    Panel(
        "Up and restarts",
        "stat",
        f"SELECT uptime_s AS up, reboots AS restarts FROM report.box_status WHERE {THIS}",
        {"up": "number", "restarts": "number"},
        w=5,
        h=4,
        units={"up": "s"},
        decimals=0,
        steps=((None, BLUE),),
    ),
    Panel(
        "Certificate",
        "stat",
        f"SELECT certificate_days AS days FROM report.box_status WHERE {THIS}",
        {"days": "number"},
        "Days until it ends.",
        w=4,
        h=4,
        unit="d",
        decimals=0,
        steps=((None, RED), (14, GREEN)),
    ),
    Panel(
        "What it says",
        "table",
        f"""
SELECT site, status, reason, publisher, clock, software, config_digest AS config, boot, lost_events AS lost
FROM report.box_status WHERE {THIS}""",
        {
            "site": "text", "status": "text", "reason": "text", "publisher": "text", "clock": "text",
            "software": "text", "config": "text", "boot": "text", "lost": "number",
        },
        w=24,
        h=3,
        colours=STATUS,
    ),
)  # fmt: skip

CAMERAS = (
    Panel(
        "Cameras",
        "table",
        f"""
SELECT camera, state, coalesce(error, '') AS error, fps_in AS "fps in", fps_processed AS processed,
    fps_skipped AS skipped, tracks, dropped, reconnects, frame_age_s AS "frame age", inference_age_s AS "inference age"
FROM report.camera_status WHERE {THIS} ORDER BY 1""",
        {
            "camera": "text", "state": "text", "error": "text", "fps in": "number", "processed": "number",
            "skipped": "number", "tracks": "number", "dropped": "number", "reconnects": "number",
            "frame age": "number", "inference age": "number",
        },
        w=24,
        h=5,
        units={"frame age": "s", "inference age": "s"},
        decimals=1,
        colours={"streaming": GREEN, "reconnecting": RED, "opening": AMBER, "ended": GREY},
    ),
    Panel(
        "Frames a second, coming in",
        "lines",
        f"""
SELECT at AS "time", camera AS metric, fps_in AS fps
FROM report.camera_health WHERE $__timeFilter(at) AND {THIS} ORDER BY 1, 2""",
        {"time": "time", "metric": "text", "fps": "number"},
        decimals=1,
    ),
    Panel(
        "Frames a second, processed",
        "lines",
        f"""
SELECT at AS "time", camera AS metric, fps_processed AS fps
FROM report.camera_health WHERE $__timeFilter(at) AND {THIS} ORDER BY 1, 2""",
        {"time": "time", "metric": "text", "fps": "number"},
        decimals=1,
    ),
    Panel(
        "Time of each stage",
        "lines",
        f"""
SELECT $__timeGroup(at, '$__interval') AS "time", s.key AS metric, avg(s.value::real) AS ms
FROM report.camera_health, jsonb_each_text(stage_ms) s
WHERE $__timeFilter(at) AND {THIS} GROUP BY 1, 2 ORDER BY 1, 2""",
        {"time": "time", "metric": "text", "ms": "number"},
        "Mean of the box's cameras; stacked, a frame's whole way.",
        unit="ms",
        decimals=1,
        stacked=True,
    ),
    Panel(
        "People over time",
        "lines",
        f"""
SELECT $__timeGroup(bucket, '$__interval') AS "time", camera AS metric,
    sum(person_ms)::float8 / greatest($__interval_ms, 60000) AS people
FROM report.people_minutes WHERE $__timeFilter(bucket) AND {THIS} GROUP BY 1, 2 ORDER BY 1, 2""",
        {"time": "time", "metric": "text", "people": "number"},
        "In view at once, on average.",
        w=12,
        decimals=1,
    ),
    Panel(
        "Visits",
        "bars",
        f"""
SELECT bucket AS "time", camera AS metric, visits
FROM report.visits_hours WHERE $__timeFilter(bucket) AND {THIS} ORDER BY 1, 2""",
        {"time": "time", "metric": "text", "visits": "number"},
        w=12,
        stacked=True,
        least="1h",
    ),
)  # fmt: skip


def health(title: str, selected: str, names: tuple[str, ...], unit: str, about: str = "") -> Panel:
    """Return a curve of columns of the box's health, as they came."""
    return Panel(
        title,
        "lines",
        f'SELECT at AS "time", {selected} FROM report.box_health WHERE $__timeFilter(at) AND {THIS} ORDER BY 1',
        {"time": "time", **dict.fromkeys(names, "number")},
        about,
        w=6,
        unit=unit,
    )


DELIVERY = (
    health("Events waiting", "outbox_events AS events", ("events",), "short"),
    health("Oldest event waiting", "outbox_oldest_s AS age", ("age",), "s"),
    health("Outbox filled", "outbox_fill AS filled", ("filled",), "percentunit", "Of its bound in bytes."),
    Panel(
        "Lag from event to row",
        "lines",
        f"""
SELECT $__timeGroup(at, '$__interval') AS "time", percentile_cont(0.5) WITHIN GROUP (ORDER BY lag_s) AS p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY lag_s) AS p99
FROM report.lag WHERE $__timeFilter(at) AND {THIS}
GROUP BY 1 ORDER BY 1""",
        {"time": "time", "p50": "number", "p99": "number"},
        w=6,
        unit="s",
        decimals=2,
    ),
)

MACHINE = (
    health("Temperature", "temperature_c AS temperature", ("temperature",), "celsius"),
    health("Processor", "cpu_percent AS cpu, load_1m AS load", ("cpu", "load"), "short", "Percent, and load average."),
    health("Memory", "rss_bytes AS rss", ("rss",), "decbytes", "Resident set of the process."),
    health("Free on disk", "disk_free_bytes AS free", ("free",), "decbytes"),
    Panel(
        "Models",
        "table",
        f"""
SELECT model, version, device, artefact, golden, coalesce(attempts, '') AS "tried before",
    coalesce(licence, '') AS licence
FROM report.models WHERE {THIS} ORDER BY 1""",
        {
            "model": "text", "version": "text", "device": "text", "artefact": "text", "golden": "text",
            "tried before": "text", "licence": "text",
        },
        w=16,
        h=6,
        colours=GOLDEN,
    ),
    Panel(
        "Refused and lost",
        "table",
        f"SELECT kind, reason, events FROM report.box_counters WHERE {THIS} ORDER BY 1, 2",
        {"kind": "text", "reason": "text", "events": "number"},
        "Counters since the process started.",
        w=8,
        h=6,
    ),
)  # fmt: skip

BOX = Dashboard(
    "facefleet-box",
    "Box",
    "One box in depth.",
    since="6h",
    refresh="30s",
    variables=(
        Variable(
            "box", "SELECT box FROM report.box_status UNION SELECT box FROM report.retired_boxes ORDER BY 1", many=False
        ),
    ),
    items=(
        Row("Now"), *NOW, Row("Cameras"), *CAMERAS, Row("Delivery"), *DELIVERY, Row("Machine"), *MACHINE,
    ),
)  # fmt: skip
