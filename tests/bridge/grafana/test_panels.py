"""Every panel and alarm, asked as Grafana asks, as the role it has, on a real PostgreSQL with a fleet in it."""

import re
import statistics
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import psycopg
import pytest

from bridge.dashboards.alerts import GROUPS
from bridge.dashboards.ask import Answer, Chosen, ask, firing, first_choice, mistakes, reader, statement
from bridge.dashboards.generate import DASHBOARDS
from bridge.dashboards.macros import Range, expand
from bridge.dashboards.model import Alert, Dashboard, Panel
from bridge.store import Store
from tests.bridge.events import query
from tests.bridge.grafana import seed
from tests.bridge.grafana.conftest import Fleet

PANELS = [(page, panel) for page in DASHBOARDS for panel in page.panels]
IDS = [f"{page.title}-{panel.title}" for page, panel in PANELS]
ALERTS = [alert for alerts in GROUPS.values() for alert in alerts]
AUDIENCE, FLEET, BOX = DASHBOARDS
PLAN_BUDGET_MS = 150  # on a machine that does something else besides; 10 is usual
ZONE = ZoneInfo("Europe/Berlin")
FACTS = re.compile(r"(visits|track_updates|presence)(_p\d+|_default)?")


def everything(page: Dashboard) -> Chosen:
    return {variable.name: None if variable.many else "kiosk-2" for variable in page.variables}


def panel(page: Dashboard, title: str) -> Panel:
    return next(panel for panel in page.panels if panel.title == title)


def answer(connection: psycopg.Connection[Any], fleet: Fleet, page: Dashboard, title: str, **chosen: Any) -> Answer:
    since = chosen.pop("since", "")
    return ask(connection, statement(page, panel(page, title), fleet.now, {**everything(page), **chosen}, since=since))


@pytest.mark.parametrize(("page", "asked"), PANELS, ids=IDS)
def test_panel_gives_the_columns_it_says_and_something_to_see(
    grafana: psycopg.Connection[Any], fleet: Fleet, page: Dashboard, asked: Panel
) -> None:
    assert mistakes(asked, ask(grafana, statement(page, asked, fleet.now, everything(page)))) == []


@pytest.mark.parametrize("since", ["15m", "2d", "7d", "90d"])
@pytest.mark.parametrize("page", DASHBOARDS, ids=lambda page: page.title)
def test_panels_can_be_asked_for_any_time(
    grafana: psycopg.Connection[Any], fleet: Fleet, page: Dashboard, since: str
) -> None:
    for asked in page.panels:
        found = ask(grafana, statement(page, asked, fleet.now, everything(page), since=since))
        wrong = [text for text in mistakes(asked, found) if text != "no rows" and not text.endswith("in every row")]
        assert wrong == [], asked.title


@pytest.mark.parametrize(
    "chosen",
    [
        {"site": ["lisbon"], "box": None, "camera": None},
        {"site": None, "box": ["hall-1", "kiosk-2"], "camera": None},
        {"site": ["berlin", "lisbon"], "box": ["hall-1"], "camera": ["entrance"]},
        {"site": ["nowhere"], "box": ["it's"], "camera": ["x"]},
    ],
    ids=["a site", "boxes", "a camera", "nothing there"],
)
@pytest.mark.parametrize("page", [AUDIENCE, FLEET], ids=lambda page: page.title)
def test_panels_can_be_asked_for_any_choice(
    grafana: psycopg.Connection[Any], fleet: Fleet, page: Dashboard, chosen: Chosen
) -> None:
    for asked in page.panels:
        found = ask(grafana, statement(page, asked, fleet.now, chosen))
        assert found.names == tuple(asked.columns), asked.title


def test_choosing_all_is_choosing_each(grafana: psycopg.Connection[Any], fleet: Fleet) -> None:
    each = {"site": ["berlin", "lisbon"], "box": [box.box for box in seed.LIVE], "camera": None}
    for title in ("Visits", "Cameras", "Age", "People over time", "Visits by weekday and hour"):
        assert answer(grafana, fleet, AUDIENCE, title).rows == answer(grafana, fleet, AUDIENCE, title, **each).rows


def test_sites_add_up(grafana: psycopg.Connection[Any], fleet: Fleet) -> None:
    def visits(*sites: str) -> int:
        return int(answer(grafana, fleet, AUDIENCE, "Visits", site=list(sites)).rows[0][0])

    assert visits("berlin") + visits("lisbon") == visits("berlin", "lisbon") > visits("berlin") > 0


def test_variables_offer_what_there_is(grafana: psycopg.Connection[Any], fleet: Fleet) -> None:
    shown = Range.last("24h", fleet.now)

    def offered(page: Dashboard, name: str, **chosen: Any) -> list[Any]:
        [variable] = [variable for variable in page.variables if variable.name == name]
        given = {**everything(page), **chosen}
        return ask(grafana, expand(variable.sql, shown, given)).column(name)

    assert offered(AUDIENCE, "site") == ["berlin", "lisbon"]
    assert offered(AUDIENCE, "box", site=["lisbon"]) == ["kiosk-1", "kiosk-2", "stale-1"]
    assert offered(AUDIENCE, "camera", box=["hall-2"]) == ["window"]
    assert "silent-1" in offered(FLEET, "box")
    assert first_choice(grafana, BOX, shown) == {"box": "dead-1"}


# What is shown is true ------------------------------------------------------------------------------------------------


def test_people_over_time_is_the_same_by_minutes_and_by_hours(grafana: psycopg.Connection[Any], fleet: Fleet) -> None:
    """A narrow panel reads hours, a wide one minutes; the area below both curves is the person-time."""
    asked = panel(AUDIENCE, "People over time")
    # whole hours, so that both see the same
    whole = Range(fleet.now.replace(minute=0, second=0) - timedelta(hours=20), fleet.now.replace(minute=0, second=0))
    whole = Range(whole.start, whole.end - timedelta(seconds=1))
    areas = []
    for points, step_s in ((1400, 60), (20, 3600)):
        rows = ask(grafana, expand(asked.sql, whole, everything(AUDIENCE), points=points)).rows
        areas.append(sum(float(people) * step_s for _, people in rows))
    assert areas[0] == pytest.approx(areas[1], rel=1e-3)
    [[truth]] = ask_owner(
        fleet,
        "SELECT sum(person_ms) / 1000.0 FROM facefleet.presence WHERE at BETWEEN %s AND %s",
        whole.start,
        whole.end,
    )
    assert areas[0] == pytest.approx(float(truth), rel=1e-3)


def test_visits_are_those_that_ended(grafana: psycopg.Connection[Any], fleet: Fleet) -> None:
    [[shown]] = answer(grafana, fleet, AUDIENCE, "Visits", since="90d").rows
    [[truth]] = ask_owner(fleet, "SELECT count(*) FROM facefleet.visits")
    assert shown == truth > 10_000


def test_pies_show_no_label_that_an_hour_hides(grafana: psycopg.Connection[Any], fleet: Fleet) -> None:
    shown = dict(answer(grafana, fleet, AUDIENCE, "Age").rows)
    truth = dict(
        ask_owner(
            fleet,
            "SELECT label, sum(visits) FROM facefleet.attribute_hours WHERE head = 'age' AND bucket BETWEEN %s AND %s "
            "GROUP BY 1",
            fleet.now - timedelta(hours=24), fleet.now,
        )
    )  # fmt: skip
    assert set(shown) < set(truth), "children are too few in any hour"
    assert all(count % 5 == 0 and count <= float(truth[label]) * 1.1 for label, count in shown.items())


def test_pie_of_a_week_is_made_of_days_which_hide_less(grafana: psycopg.Connection[Any], fleet: Fleet) -> None:
    days = dict(answer(grafana, fleet, AUDIENCE, "Age", since="7d").rows)
    hours = dict(
        answer(grafana, fleet, AUDIENCE, "Age", since="7d", camera=["entrance", "checkout", "window", "door"]).rows
    )
    assert sum(days.values()) > 1.2 * sum(hours.values())
    assert set(hours) < set(days)


def test_heat_map_is_in_the_sites_own_time(grafana: psycopg.Connection[Any], fleet: Fleet) -> None:
    rows = answer(grafana, fleet, AUDIENCE, "Visits by weekday and hour", site=["berlin"]).rows
    assert [row[0] for row in rows] == ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    busiest = max(range(24), key=lambda hour: sum(row[1 + hour] or 0 for row in rows))
    berlin_is_ahead_h = int(fleet.now.astimezone(ZONE).utcoffset().total_seconds()) // 3600  # type: ignore[union-attr]
    assert abs(busiest - (14 + berlin_is_ahead_h)) <= 1, "seeded to be fullest at 14:00 UTC"


def test_silent_box_is_a_row(grafana: psycopg.Connection[Any], fleet: Fleet) -> None:
    found = answer(grafana, fleet, FLEET, "Every box")
    statuses = dict(zip(found.column("box"), found.column("status"), strict=True))
    assert {box: statuses[box] for box in ("silent-1", "dead-1", "stale-1")} == {
        "silent-1": "silent", "dead-1": "offline", "stale-1": "stale",
    }  # fmt: skip
    assert len(statuses) == 7


def test_lag_is_measured_and_not_the_length_of_visits(grafana: psycopg.Connection[Any], fleet: Fleet) -> None:
    well = answer(grafana, fleet, FLEET, "Lag from event to row", box=["hall-1", "hall-2", "kiosk-1"])
    assert all(0 <= p50 <= p99 < 5 for _, p50, p99 in well.rows)
    late = answer(grafana, fleet, FLEET, "Lag from event to row", box=["kiosk-2"])
    assert statistics.median(p50 for _, p50, _ in late.rows) == pytest.approx(240, abs=5)


# Alarms ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.uid)
def test_alarm_gives_one_number_and_labels(grafana: psycopg.Connection[Any], alert: Alert) -> None:
    assert mistakes(alert, ask(grafana, alert.sql)) == []


def test_alarms_fire_for_what_is_wrong_and_for_nothing_else(fleet: Fleet) -> None:
    now = datetime.now(UTC)
    with Store(fleet.dsn) as store:  # a bridge is there, and the boxes' hearts beat on
        for box in seed.LIVE:
            message = seed.health(box, seed.random.Random(2), now, 0)
            store.write_health(box.site, box.box, msgspec.json.encode(message), now)
        with reader(fleet.dsn) as connection:
            fired = {alert.uid: firing(alert, ask(connection, alert.sql)) for alert in ALERTS}
    kiosk = ("lisbon", "kiosk-2")
    expected: dict[str, set[tuple[str, ...]]] = {
        "facefleet-offline": {("berlin", "silent-1"), ("berlin", "dead-1"), ("lisbon", "stale-1")},
        "facefleet-camera": {(*kiosk, "yard")},
        "facefleet-golden": {(*kiosk, "yolov10n-face-320")},
        "facefleet-dead-letters": {("unreadable",)},
        "facefleet-outbox-disk": {(*kiosk, "disk full, reserve released")},
        **{name: {kiosk} for name in ("outbox", "losses", "certificate", "disk", "hot")},
    }
    expected = {uid if uid.startswith("facefleet") else f"facefleet-{uid}": rows for uid, rows in expected.items()}
    fired.pop("facefleet-lag")  # of the last ten minutes; it has a test of its own
    assert {uid: rows for uid, rows in fired.items() if rows} == expected


def rules(dsn: str) -> dict[str, set[tuple[str, ...]]]:
    with reader(dsn) as connection:
        return {alert.uid.removeprefix("facefleet-"): firing(alert, ask(connection, alert.sql)) for alert in ALERTS}


def test_late_events_raise_the_lag_alarm(dsn: str) -> None:
    now = datetime.now(UTC)
    [(_, message), *_] = seed.messages(seed.LIVE[0], seed.random.Random(1), now)
    with Store(dsn, clock=lambda: now) as store:
        store.write_state("berlin", "hall-1", seed.birth(seed.LIVE[0]), now)
        store.write([seed.Incoming("berlin", "hall-1", message.payload, message.topic, now)])
    assert rules(dsn)["lag"] == {("berlin", "hall-1")}


def test_centre_without_a_bridge_or_a_commit_raises_alarms(dsn: str) -> None:
    now = datetime.now(UTC)
    box = seed.LIVE[0]
    assert rules(dsn)["bridge-down"] == {()}
    assert rules(dsn)["last-commit"] == set(), "no box is online that could have sent something"
    with Store(dsn, clock=lambda: now - timedelta(minutes=20)) as store:
        store.write_state(box.site, box.box, seed.birth(box), now - timedelta(minutes=20))
        store.write([seed.messages(box, seed.random.Random(1), now - timedelta(minutes=20))[-1][1]])
        store.write_health(box.site, box.box, msgspec.json.encode(seed.health(box, seed.random.Random(1), now, 0)), now)
        assert rules(dsn)["bridge-down"] == set()
        assert rules(dsn)["last-commit"] == {()}


def test_job_that_does_not_run_and_rows_without_a_partition_raise_alarms(dsn: str) -> None:
    now = datetime.now(UTC)
    with Store(dsn) as store:
        assert len(rules(dsn)["partition-job"]) == 7, "it never ran"
        store.maintain(now)
        assert rules(dsn)["partition-job"] == set()
        store.maintain(now + timedelta(days=1))
        assert rules(dsn)["default-partition"] == set()
        box = seed.LIVE[0]
        old = seed.messages(box, seed.random.Random(1), now - timedelta(days=20))[0][1]
        store.write_state(box.site, box.box, seed.birth(box), now)
        store.write([old])
        assert rules(dsn)["default-partition"] >= {("visits",)}
        store.maintain(now)
        assert rules(dsn)["default-partition"] == set()
    query_owner(dsn, "UPDATE facefleet.job_runs SET finished_at = now() - interval '4 hours'")
    assert len(rules(dsn)["partition-job"]) == 7


def test_twin_raises_an_alarm(dsn: str) -> None:
    now, box = datetime.now(UTC), seed.LIVE[0]
    twin = msgspec.structs.replace(seed.health(box, seed.random.Random(1), now, 0), publisher="duplicate_id")
    with Store(dsn) as store:
        store.write_health(box.site, box.box, msgspec.json.encode(twin), now)
    assert rules(dsn)["duplicate-id"] == {(box.site, box.box)}


def test_full_database_raises_an_alarm() -> None:
    [alert] = [alert for alert in ALERTS if alert.uid == "facefleet-database-full"]
    assert firing(alert, Answer(("filled",), ("number",), [(0.86,)], 0)) == {()}
    assert firing(alert, Answer(("filled",), ("number",), [(0.85,)], 0)) == set()


# A query that no longer fits the schema -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def statements(fleet: Fleet) -> dict[str, str]:
    """Return every query there is, expanded, by who asks it."""
    asked = {
        f"{page.title}, {asked.title}": statement(page, asked, fleet.now, everything(page)) for page, asked in PANELS
    }
    return asked | {alert.uid: alert.sql for alert in ALERTS}


def columns(dsn: str) -> Iterator[tuple[str, str]]:
    for row in query(
        dsn,
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'report' ORDER BY 1, 2",
    ):
        yield row["table_name"], row["column_name"]


def test_every_query_fails_once_a_column_it_reads_is_gone(fleet: Fleet, statements: dict[str, str]) -> None:
    survivors = dict.fromkeys(statements, 0)
    with psycopg.connect(fleet.dsn) as owner:
        for view, column in columns(fleet.dsn):
            readers = {
                name: sql
                for name, sql in statements.items()
                if re.search(rf"report\.{view}\b", sql) and re.search(rf"\b{column}\b", sql) and name in survivors
            }
            if not readers:
                continue
            owner.execute(f'ALTER VIEW report.{view} RENAME COLUMN "{column}" TO gone'.encode())
            for name, sql in readers.items():
                try:
                    with owner.transaction():
                        owner.execute(b"SET LOCAL ROLE facefleet_reader")
                        owner.execute(f"EXPLAIN {sql}".encode())
                except psycopg.errors.UndefinedColumn:
                    survivors.pop(name)
            owner.rollback()
    assert list(survivors) == []


@pytest.mark.parametrize(
    ("sql", "complaint"),
    [
        ("SELECT label, 1 AS visit FROM (VALUES ('a')) v (label)", "columns are label, visit, expected label, visits"),
        ("SELECT label, '1' AS visits FROM (VALUES ('a')) v (label)", "column visits is text, expected number"),
        ("SELECT label, 1 AS visits FROM (VALUES ('a')) v (label) WHERE false", "no rows"),
        ("SELECT 'a' AS label, NULL::int AS visits", "column visits is null in every row"),
        ("SELECT 'a' AS label, -1 AS visits", "a slice is null or negative"),
        ("SELECT '{}'::jsonb AS label, 1 AS visits", "column label is jsonb, expected text"),
        ("SELECT now()::timestamp::text AS label, now()::timestamp AS visits", "column visits is timestamp"),
    ],
)
def test_answer_that_is_no_pie_is_refused(grafana: psycopg.Connection[Any], sql: str, complaint: str) -> None:
    pie = Panel("x", "pie", sql, {"label": "text", "visits": "number"})
    assert any(complaint in mistake for mistake in mistakes(pie, ask(grafana, sql)))


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("(2, 'a', 1), (1, 'a', 1)", "times do not ascend"),
        ("(1, 'a', 1), (1, 'a', 2)", "two values at one time"),
        ("(NULL::int, 'a', 1)", "times do not ascend"),
    ],
)
def test_answer_that_is_no_series_is_refused(grafana: psycopg.Connection[Any], rows: str, complaint: str) -> None:
    series = Panel("x", "lines", "", {"time": "time", "metric": "text", "n": "number"})
    found = ask(grafana, f"SELECT * FROM (VALUES {rows}) v (time, metric, n)")
    assert any(complaint in mistake for mistake in mistakes(series, found))


def test_alarm_with_equal_labels_is_refused(grafana: psycopg.Connection[Any]) -> None:
    alert = Alert("x", "t", "s", "SELECT 1", {"box": "text", "n": "number"}, 0, "1m", "warning")
    found = ask(grafana, "SELECT * FROM (VALUES ('a', 1), ('a', 2)) v (box, n)")
    assert mistakes(alert, found) == ["two rows have the same labels"]


# Plans ----------------------------------------------------------------------------------------------------------------


def test_no_query_reads_single_visits_and_each_is_planned_in_time(
    grafana: psycopg.Connection[Any], statements: dict[str, str]
) -> None:
    for name, sql in statements.items():
        tries = []
        for _ in range(3):  # the best counts: the machine may have been busy with something else
            [[plan]] = ask(grafana, f"EXPLAIN (FORMAT JSON, SUMMARY) {sql}").rows
            tries.append(plan[0]["Planning Time"])
            if tries[-1] <= PLAN_BUDGET_MS:
                break
        assert min(tries) <= PLAN_BUDGET_MS, name
        assert not [table for table in relations(plan[0]["Plan"]) if FACTS.fullmatch(table)], name


def test_only_one_of_minutes_and_hours_is_read(grafana: psycopg.Connection[Any], fleet: Fleet) -> None:
    asked = panel(AUDIENCE, "People over time")
    for since, expected in (("24h", "rollup_minutes"), ("90d", "rollup_hours")):
        sql = statement(AUDIENCE, asked, fleet.now, everything(AUDIENCE), since=since)
        [[plan]] = ask(grafana, f"EXPLAIN (FORMAT JSON) {sql}").rows
        read = {re.sub(r"_p\d+$|_default$", "", table) for table in relations(plan[0]["Plan"])}
        assert read & {"rollup_minutes", "rollup_hours"} == {expected}


def relations(node: dict[str, Any]) -> Iterator[str]:
    if "Relation Name" in node:
        yield node["Relation Name"]
    for child in node.get("Plans", ()):
        yield from relations(child)


def ask_owner(fleet: Fleet, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(fleet.dsn) as connection:
        return connection.execute(sql.encode(), parameters).fetchall()


def query_owner(dsn: str, sql: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(sql.encode())
