"""What each panel costs over fifty million visits: `python -m tests.bench.grafana_scale`. Minutes, and 3 GB of disk.

Makes the rollups, ledger, health and registry that so many visits leave behind, with generate_series: rollups have the
rows and the sums that the store would have written. Panels read no single visit, so of `visits` and `track_updates`
only `--raw` rows each are made, to have them in the way. Prints the median of five runs per panel and alarm, as the
reader, with the macros expanded as Grafana does; beside it what the server's process computed, which is what is left on
a machine with nothing else to do (parallel workers not counted, so they are off), and the first run.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from bridge.dashboards.alerts import GROUPS
from bridge.dashboards.ask import ask, first_choice, reader, statement
from bridge.dashboards.generate import DASHBOARDS
from bridge.dashboards.macros import Range, expand
from bridge.migrate import migrate
from tests.bench.database import database

TARGET_MS = 200
RUNS = 5
HEAD = "\n   median computed    first   rows"

REGISTRY = """
INSERT INTO sites (name, timezone) SELECT 'site-' || i, 'Europe/Berlin' FROM generate_series(1, %(sites)s) i;
INSERT INTO boxes (site_id, name, state, state_at, stream, software, config_digest)
    SELECT 1 + i %% %(sites)s, 'box-' || lpad(i::text, 5, '0'), 'online', now(), i, '0.1.' || i %% 3,
        md5((i %% 7)::text)
    FROM generate_series(1, %(boxes)s) i;
INSERT INTO cameras (box_id, name) SELECT b, 'cam-' || c FROM generate_series(1, %(boxes)s) b, generate_series(1, 2) c;
INSERT INTO vocabularies (box_id, digest, cameras, heads)
    SELECT b, 1, '{cam-1,cam-2}', '[{"name": "race", "labels": [], "purpose": "test"}]'
    FROM generate_series(1, %(boxes)s) b;
INSERT INTO streams (stream, box_id, upto, born, first_at, last_at)
    SELECT b * 1000 + n, b, 100000, true, now() - n * interval '1 day', now() - n * interval '1 day'
    FROM generate_series(1, %(boxes)s) b, generate_series(0, %(days)s) n;
INSERT INTO losses SELECT 1, n, 1 + n %% %(boxes)s, 2, n, n, 1, n %% 2, now() - n * interval '10 minutes'
    FROM generate_series(1, 1000) n;
INSERT INTO open_visits SELECT c, c, t, 1, 1, now(), now(), 1, 1, 1, 1, 1, 1, 200, 0, 1, '{}', '{}'
    FROM generate_series(1, %(boxes)s * 2) c, generate_series(1, 5) t
"""

# One UTC day at a time, as the days came. Visits follow the hour; every minute has a row, for counts come empty too.
DAY = """
INSERT INTO rollup_minutes
SELECT m, c, v, v * 28000, v * 28000 + 1000, 3, v
FROM generate_series(%(day)s::timestamptz, %(day)s::timestamptz + interval '1439 minutes', interval '1 minute') m,
    generate_series(1, %(boxes)s * 2) c,
    LATERAL (SELECT floor(%(a_minute)s * (0.1 + 1.8 * exp(-(((extract(hour FROM m) - 14) / 4.5) ^ 2)))
                          + (c * 7 %% 10) / 10.0)::bigint AS v) x;
INSERT INTO rollup_hours
SELECT date_trunc('hour', bucket, 'Europe/Berlin'), camera_id, sum(visits), sum(dwell_ms), sum(person_ms), max(most),
    sum(entered)
FROM rollup_minutes WHERE bucket >= %(day)s AND bucket < %(day)s::timestamptz + interval '1 day' GROUP BY 1, 2;
INSERT INTO attribute_hours
SELECT bucket, camera_id, l.head, l.label, greatest(visits / l.share, 1)
FROM rollup_hours, (VALUES ('age', '1-6', 25), ('age', '7-13', 16), ('age', '14-25', 5), ('age', '26-45', 3),
    ('age', '46-60', 5), ('age', '61-90', 10), ('gender', 'female', 2), ('gender', 'male', 2), ('race', 'white', 2),
    ('race', 'black', 5), ('race', 'asian', 3), ('emotion', 'angry', 12), ('emotion', 'fear', 25),
    ('emotion', 'happy', 2), ('emotion', 'neutral', 3)) AS l (head, label, share)
WHERE bucket >= %(day)s AND bucket < %(day)s::timestamptz + interval '1 day';
INSERT INTO rollup_days
SELECT date_trunc('day', bucket, 'Europe/Berlin'), camera_id, sum(visits), sum(dwell_ms), sum(person_ms), max(most),
    sum(entered)
FROM rollup_hours WHERE bucket >= %(day)s AND bucket < %(day)s::timestamptz + interval '1 day' GROUP BY 1, 2
ON CONFLICT (camera_id, bucket) DO UPDATE SET visits = rollup_days.visits + excluded.visits
"""

# What only the last days are asked for: a batch every ten seconds and a health message a minute, per box.
RECENT = """
INSERT INTO batches
SELECT t, t + interval '300 ms', b, b, extract(epoch FROM t), extract(epoch FROM t) + 4,
    t - (random() ^ 8 * 30) * interval '1 second', 0, decode(repeat('00', 40), 'hex')
FROM generate_series(%(day)s::timestamptz, least(%(day)s::timestamptz + interval '86390 seconds', now()),
        interval '10 seconds') t,
    generate_series(1, %(boxes)s) b;
INSERT INTO health
SELECT b, t, 1000, 1, 5, 300, 0.01, 2, 0, 0, 'connected', 3, 50 + b %% 20, false, 20000000000, 180000000, 40, 0.8, 300,
    'synchronized'
FROM generate_series(%(day)s::timestamptz, least(%(day)s::timestamptz + interval '1439 minutes', now()),
        interval '1 minute') t,
    generate_series(1, %(boxes)s) b;
INSERT INTO camera_health
SELECT c, t, 'streaming', NULL, 25, 5, 20, 100, 1, 0.04, 0.2, 3,
    '{"decode": 3.1, "mask": 0.1, "gate": 0.4, "letterbox": 0.7, "infer": 7.2, "boxes": 0.2, "sort": 0.3}'
FROM generate_series(%(day)s::timestamptz, least(%(day)s::timestamptz + interval '1439 minutes', now()),
        interval '1 minute') t,
    generate_series(1, %(boxes)s * 2) c
"""

LATEST = """
INSERT INTO health_latest
SELECT b, now(), format('{"stream": "1", "nonce": "n", "t_ms": 0, "uptime_s": 1000, "outbox_fill": 0.01, "reboots": 3,
    "temperature_c": 51, "disk_free_bytes": 20000000000, "certificate_days": 300, "publisher": "connected",
    "clock": "synchronized", "refused": {"buffer": %%s}, "losses": {"size": 0},
    "models": {"detector": {"version": "1", "device": "CPU", "artefact": "model.xml", "golden": "ok"},
               "age": {"version": "1", "device": "CPU", "artefact": "model.onnx", "golden": "ok", "attempts": ["no"]}},
    "cameras": {"cam-1": {"state": "streaming", "fps_in": 25, "stage_ms": {"decode": 3, "infer": 7}},
                "cam-2": {"state": "reconnecting", "error": "no answer", "stage_ms": {"decode": 3, "infer": 7}}}}',
    b)::jsonb
FROM generate_series(1, %(boxes)s) b
"""

RAW = """
INSERT INTO visits
SELECT i, 1 + i %% (%(boxes)s * 2), i, i, t, t, 0, 0, 1, 1, 1, 1, 1, 1, 200, 1, 0, 1, '{"age": "26-45"}', '{"age": 0.9}'
FROM generate_series(1, %(raw)s) i,
    LATERAL (SELECT %(day)s::timestamptz + i * interval '86000 seconds' / %(raw)s AS t) x;
INSERT INTO track_updates
SELECT i, i, t, 1 + i %% (%(boxes)s * 2), i, 1, 1, 1, 1, 1, 200, '{}', '{}'
FROM generate_series(1, %(raw)s) i,
    LATERAL (SELECT %(day)s::timestamptz + i * interval '86000 seconds' / %(raw)s AS t) x
"""


def fill(dsn: str, given: argparse.Namespace) -> int:
    """Make the tables of so many visits; return how many visits their rollups hold."""
    a_minute = given.visits / given.days / (given.boxes * 2) / 1440 * 2.0
    sizes = {"boxes": given.boxes, "sites": given.sites, "days": given.days, "a_minute": a_minute}
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    options = "-c search_path=facefleet -c TimeZone=UTC -c synchronous_commit=off -c work_mem=256MB"
    with psycopg.connect(dsn, autocommit=True, options=options) as connection:
        run(connection, REGISTRY, sizes)
        days = [today - timedelta(days=age) for age in range(given.days, -1, -1)]
        for number, day in enumerate(days):
            connection.execute("SELECT make_partition(parent, %s) FROM partitioned", (day.date(),))
            run(connection, DAY, {**sizes, "day": day})
            if number >= len(days) - given.recent:
                run(connection, RECENT, {**sizes, "day": day})
            if number % 10 == 9:
                print(f"  day {number + 1} of {len(days)}", file=sys.stderr, flush=True)
        run(connection, LATEST, sizes)
        for age in (1, 2):
            run(connection, RAW, {**sizes, "raw": given.raw // 2, "day": today - timedelta(days=age)})
        connection.execute("INSERT INTO job_runs VALUES ('partitions', now())")
        connection.execute("VACUUM ANALYZE")
        row = connection.execute("SELECT sum(visits), pg_database_size(current_database()) FROM rollup_days").fetchone()
        assert row is not None
        for table in ("rollup_minutes", "rollup_hours", "attribute_hours", "attribute_days", "batches", "health",
                      "camera_health", "visits", "track_updates"):  # fmt: skip
            count = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
            print(f"  {table:16}{count[0] if count else 0:>12,} rows")
        print(f"  database {row[1] / 1e9:.1f} GB")
        return int(row[0])


def run(connection: psycopg.Connection[Any], script: str, sizes: dict[str, Any]) -> None:
    """Run statements that are separated by semicolons."""
    for part in script.split(";\n"):
        connection.execute(part.encode(), sizes)


def measure(connection: psycopg.Connection[Any], title: str, sql: str) -> float:
    """Time one query and print its line; return the median in ms."""
    pid = connection.info.backend_pid
    first = ask(connection, sql)
    before_ms = cpu_ms(pid)
    rest = [ask(connection, sql) for _ in range(RUNS)]
    computed_ms = (cpu_ms(pid) - before_ms) / RUNS
    median = statistics.median(answer.took_ms for answer in rest)
    late = "  over" if median > TARGET_MS else ""
    print(f"  {median:7.1f} {computed_ms:8.1f} {first.took_ms:8.1f} {len(first.rows):6}  {title}{late}", flush=True)
    return median


def cpu_ms(pid: int) -> float:
    """Return the processor time a process has used; in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def main(argv: Sequence[str] | None = None) -> int:
    """Fill a database of its own, measure every panel and alarm in it, and drop it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.grafana_scale", description=__doc__)
    parser.add_argument("--visits", type=int, default=50_000_000)
    parser.add_argument("--boxes", type=int, default=100, help="with two cameras each")
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--recent", type=int, default=3, help="days with ledger and health")
    parser.add_argument("--raw", type=int, default=2_000_000, help="rows of visits and of track_updates")
    parser.add_argument("--wide", default="7d", help="a second range for the Audience dashboard")
    given = parser.parse_args(argv)
    with database() as dsn:
        migrate(dsn)
        started = time.perf_counter()
        visits = fill(dsn, given)
        took_s = time.perf_counter() - started
        print(f"{visits:,} visits of {given.boxes * 2} cameras in {given.days} days, made in {took_s:.0f} s")
        slow = survey(dsn, given.wide)
    print(f"{slow} over {TARGET_MS} ms")
    return 0


def survey(dsn: str, wide: str) -> int:
    """Measure everything; return how many are slower than the target."""
    times: list[float] = []
    with reader(dsn) as connection:
        connection.execute("SET max_parallel_workers_per_gather = 0")
        for page, since in [*((page, page.since) for page in DASHBOARDS), (DASHBOARDS[0], wide)]:
            now = datetime.now(UTC)
            chosen = first_choice(connection, page, Range.last(since, now))
            asked = {panel.title: statement(page, panel, now, chosen, since=since) for panel in page.panels}
            asked |= {f"variable {v.name}": expand(v.sql, Range.last(since, now), chosen) for v in page.variables}
            print(f"{page.title}, last {since}{HEAD}")
            times += [measure(connection, title, sql) for title, sql in asked.items()]
        print(f"alarms{HEAD}")
        alerts = [alert for alerts in GROUPS.values() for alert in alerts]
        times += [measure(connection, alert.title, alert.sql) for alert in alerts]
    return sum(took > TARGET_MS for took in times)


if __name__ == "__main__":
    sys.exit(main())
