"""The Audience dashboard: how many people, where, when, for how long; and who, as far as may be shown."""

from bridge.dashboards.model import AMBER, BLUE, GREEN, Dashboard, Panel, Row, Variable

CHOSEN_SITE = "('*' IN ($site) OR site IN ($site))"
CHOSEN_BOX = f"{CHOSEN_SITE} AND ('*' IN ($box) OR box IN ($box))"
CHOSEN = f"{CHOSEN_BOX} AND ('*' IN ($camera) OR camera IN ($camera))"

VARIABLES = (
    Variable("site", "SELECT DISTINCT site FROM report.cameras ORDER BY 1"),
    Variable("box", f"SELECT DISTINCT box FROM report.cameras WHERE {CHOSEN_SITE} ORDER BY 1"),
    Variable("camera", f"SELECT DISTINCT camera FROM report.cameras WHERE {CHOSEN_BOX} ORDER BY 1"),
)

# Minutes where minutes are drawn, hours where not: both conditions are constants, so only one table is read. Not by
# $__timeGroup, whose arithmetic is numeric and cost five times as much over 288,000 rows.
STEP_MS = "CASE WHEN $__interval_ms < 600000 THEN $__interval_ms ELSE greatest($__interval_ms, 3600000) END"
POINT = f"date_bin({STEP_MS} * interval '1 ms', bucket, '1970-01-01 00:00Z')"


def person_ms(keys: str, where: str) -> str:
    """Return a query of person-milliseconds by bucket and `keys`."""
    return f"""
    SELECT bucket{keys}, sum(person_ms) AS person_ms FROM report.people_minutes
    WHERE $__interval_ms < 600000 AND $__timeFilter(bucket) AND {where} GROUP BY bucket{keys}
    UNION ALL
    SELECT bucket{keys}, sum(person_ms) FROM report.visits_hours
    WHERE $__interval_ms >= 600000 AND $__timeFilter(bucket) AND {where} GROUP BY bucket{keys}"""


# A day begins at its site's midnight; to stand in one column with other sites' it is drawn at that date's 0:00 UTC.
DAY = "date_trunc('day', bucket + interval '12 hours', 'UTC')"

CAMERA = "site || ' / ' || box || ' / ' || camera"
BUSIEST = f"""
busiest AS (
    SELECT camera_id FROM report.visits_hours WHERE $__timeFilter(bucket) AND {CHOSEN}
    GROUP BY 1 ORDER BY sum(visits) DESC, 1 LIMIT 8
)"""
AMONG_BUSIEST = "camera_id IN (SELECT camera_id FROM busiest)"

HIDDEN = (
    "Closed hours only; per camera and hour, labels with fewer than k visits are not counted in and the others are "
    "rounded. Over more than two days, with all boxes chosen, closed days of a site are used instead, which hides less."
)


def attribute_pie(head: str) -> Panel:
    """Return the pie of one head."""
    days = "($__to - $__from > 172800000 AND '*' IN ($box) AND '*' IN ($camera))"
    return Panel(
        head.capitalize(),
        "pie",
        f"""
SELECT label, sum(visits)::bigint AS visits FROM (
    SELECT label, visits FROM report.attribute_hours
    WHERE NOT {days} AND head = '{head}' AND $__timeFilter(bucket) AND {CHOSEN}
    UNION ALL
    SELECT label, visits FROM report.attribute_days
    WHERE {days} AND head = '{head}' AND $__timeFilter(bucket) AND {CHOSEN_SITE}
) shown
GROUP BY label ORDER BY substring(label FROM '^[0-9]+')::int NULLS LAST, label""",
        {"label": "text", "visits": "number"},
        HIDDEN,
        w=6,
        unit="short",
    )


NOW = (
    Panel(
        "People in view now",
        "stat",
        f"SELECT coalesce(sum(people), 0)::bigint AS people FROM report.people_now WHERE {CHOSEN}",
        {"people": "number"},
        "Visits that have begun and not ended, of boxes that are online.",
        w=4,
        h=4,
        steps=((None, BLUE),),
    ),
    Panel(
        "Visits",
        "stat",
        f"SELECT coalesce(sum(visits), 0)::bigint AS visits FROM report.visits_hours "
        f"WHERE $__timeFilter(bucket) AND {CHOSEN}",
        {"visits": "number"},
        "Visits that ended in the hours shown.",
        w=4,
        h=4,
        steps=((None, GREEN),),
    ),
    Panel(
        "Mean dwell",
        "stat",
        f"SELECT sum(dwell_ms)::float8 / 1000 / nullif(sum(visits), 0) AS dwell FROM report.visits_hours "
        f"WHERE $__timeFilter(bucket) AND {CHOSEN}",
        {"dwell": "number"},
        w=4,
        h=4,
        unit="s",
        decimals=1,
        steps=((None, GREEN),),
    ),
    Panel(
        "Detected and no longer detected",
        "pie",
        f"""
SELECT 'detected' AS status, coalesce(sum(people), 0)::bigint AS people FROM report.people_now WHERE {CHOSEN}
UNION ALL
SELECT 'not detected', coalesce(sum(visits), 0)::bigint FROM report.visits_hours
WHERE $__timeFilter(bucket) AND {CHOSEN}""",
        {"status": "text", "people": "number"},
        "In view now, and gone again within the time shown.",
        w=6,
        h=4,
    ),
    Panel(
        "Fewest visits shown (k)",
        "stat",
        "SELECT value AS k FROM report.settings WHERE name = 'k'",
        {"k": "number"},
        "A count that carries an attribute is hidden below this many visits. 1 hides nothing: for demonstrations only.",
        w=6,
        h=4,
        steps=((None, AMBER), (2, BLUE)),
    ),
)

OVER_TIME = (
    Panel(
        "People over time",
        "lines",
        f"""
SELECT {POINT} AS "time", sum(person_ms)::float8 / ({STEP_MS}) AS people
FROM ({person_ms("", CHOSEN)}
) counts
GROUP BY 1 ORDER BY 1""",
        {"time": "time", "people": "number"},
        "People in view at once, on average over each point, summed over the chosen cameras.",
        w=12,
        h=9,
        decimals=1,
    ),
    Panel(
        "People by camera",
        "lines",
        f"""
WITH {BUSIEST.strip()}
SELECT {POINT} AS "time", {CAMERA} AS metric, sum(person_ms)::float8 / ({STEP_MS}) AS people
FROM ({person_ms(", site, box, camera", f"{CHOSEN} AND {AMONG_BUSIEST}")}
) counts
GROUP BY 1, site, box, camera ORDER BY 1, 2""",
        {"time": "time", "metric": "text", "people": "number"},
        "The eight cameras with the most visits.",
        w=12,
        h=9,
        decimals=1,
        least="5m",
    ),
)

VISITS = (
    Panel(
        "Visits by camera and hour",
        "bars",
        f"""
WITH {BUSIEST.strip()}
SELECT bucket AS "time", {CAMERA} AS metric, visits
FROM report.visits_hours
WHERE $__timeFilter(bucket) AND {CHOSEN} AND {AMONG_BUSIEST}
ORDER BY 1, 2""",
        {"time": "time", "metric": "text", "visits": "number"},
        "Counted in the hour in which they ended; the eight cameras with the most visits.",
        w=12,
        stacked=True,
        least="1h",
    ),
    Panel(
        "Dwell by camera and hour",
        "lines",
        f"""
WITH {BUSIEST.strip()}
SELECT bucket AS "time", {CAMERA} AS metric, mean_dwell_s AS dwell
FROM report.visits_hours
WHERE $__timeFilter(bucket) AND {CHOSEN} AND {AMONG_BUSIEST} AND visits > 0
ORDER BY 1, 2""",
        {"time": "time", "metric": "text", "dwell": "number"},
        "Mean length of the visits that ended in the hour.",
        w=12,
        unit="s",
        least="1h",
    ),
    Panel(
        "Cameras",
        "table",
        f"""
SELECT site, box, camera, sum(visits)::bigint AS visits,
    sum(dwell_ms)::float8 / 1000 / nullif(sum(visits), 0) AS "mean dwell",
    max(most) AS "most at once", sum(person_ms)::float8 / 3600000 / count(*) AS "people on average"
FROM report.visits_hours
WHERE $__timeFilter(bucket) AND {CHOSEN}
GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3 LIMIT 200""",
        {
            "site": "text",
            "box": "text",
            "camera": "text",
            "visits": "number",
            "mean dwell": "number",
            "most at once": "number",
            "people on average": "number",
        },
        w=12,
        h=9,
        units={"mean dwell": "s"},
        decimals=1,
    ),
    Panel(
        "Visits a day",
        "bars",
        f"""
SELECT {DAY} AS "time", site AS metric, sum(visits)::bigint AS visits
FROM report.visits_days
WHERE $__timeFilter(bucket) AND {CHOSEN}
GROUP BY 1, 2 ORDER BY 1, 2""",
        {"time": "time", "metric": "text", "visits": "number"},
        "Days of the site's own time zone.",
        w=12,
        h=9,
        stacked=True,
        since="30d",
        least="1d",
    ),
    Panel(
        "Visits by weekday and hour",
        "heat",
        f"""
WITH hours AS (
    SELECT extract(isodow FROM bucket AT TIME ZONE timezone) AS weekday,
        extract(hour FROM bucket AT TIME ZONE timezone) AS hour,
        sum(visits) AS visits, count(DISTINCT bucket) AS times
    FROM (
        SELECT bucket, timezone, sum(visits) AS visits FROM report.visits_hours
        WHERE $__timeFilter(bucket) AND {CHOSEN} GROUP BY 1, 2
    ) summed
    GROUP BY 1, 2
)
SELECT to_char(date '2024-01-01' + (weekday::int - 1), 'Dy') AS day,
    """
        + ",\n    ".join(
            f'(sum(visits / times) FILTER (WHERE hour = {hour}))::real AS "{hour:02d}"' for hour in range(24)
        )
        + "\nFROM hours GROUP BY weekday ORDER BY weekday",
        {"day": "text", **{f"{hour:02d}": "number" for hour in range(24)}},
        "Visits in such an hour, on average over four weeks, in the site's own time.",
        w=24,
        h=9,
        decimals=0,
        since="28d",
    ),
)

WHO = (
    *(attribute_pie(head) for head in ("age", "gender", "race", "emotion")),
    Panel(
        "Age by day",
        "bars",
        f"""
SELECT {DAY} AS "time", label AS metric, sum(visits)::bigint AS visits
FROM report.attribute_days
WHERE head = 'age' AND $__timeFilter(bucket) AND {CHOSEN_SITE}
GROUP BY 1, 2 ORDER BY 1, substring(label FROM '^[0-9]+')::int NULLS LAST, 2""",
        {"time": "time", "metric": "text", "visits": "number"},
        "Closed days of the chosen sites; labels with fewer than k visits that day are hidden, the others rounded.",
        w=12,
        stacked=True,
        since="30d",
        least="1d",
    ),
    Panel(
        "Why sensitive attributes are on",
        "table",
        f"""
SELECT site, head, purpose, count(*) AS boxes, min(since) AS since
FROM report.purposes WHERE {CHOSEN_BOX} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3 LIMIT 500""",
        {"site": "text", "head": "text", "purpose": "text", "boxes": "number", "since": "time"},
        "Race and emotion are off unless a site writes down its purpose; this is what was written.",
        w=12,
    ),
)

AUDIENCE = Dashboard(
    "facefleet-audience",
    "Audience",
    "People counts are plain. Counts that carry an attribute are marginals of closed hours or days, hidden below k "
    "visits and rounded; that is a hurdle, not anonymity.",
    since="24h",
    refresh="1m",
    variables=VARIABLES,
    items=(Row("Now"), *NOW, *OVER_TIME, Row("Visits"), *VISITS, Row("Attributes, as the models saw them"), *WHO),
)
