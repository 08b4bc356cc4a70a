"""Ask PostgreSQL what a panel asks, as the reader, and hold the answer to what the panel says it returns."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bridge.dashboards.macros import Range, expand
from bridge.dashboards.model import SERIES, Alert, Dashboard, Kind, Panel

Chosen = Mapping[str, Sequence[str] | str | None]

# What Grafana can plot, by PostgreSQL's type: int2/4/8, float4/8, numeric; text, varchar; timestamptz. A timestamp
# without a zone is not among them: Grafana would take it for UTC.
_KINDS: dict[int, Kind] = {
    **dict.fromkeys((20, 21, 23, 700, 701, 1700), "number"),
    **dict.fromkeys((25, 1043), "text"),
    1184: "time",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `types` has a PostgreSQL type name in place of a kind that Grafana cannot plot."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    took_ms: float

    def column(self, name: str) -> list[Any]:
        """Return the values of one column."""
        at = self.names.index(name)
        return [row[at] for row in self.rows]


def reader(dsn: str) -> psycopg.Connection[Any]:
    """Connect as Grafana does: with the rights of `facefleet_reader` and none of the caller's own."""
    own = str(conninfo_to_dict(dsn).get("options") or "")
    options = f"{own} -c role=facefleet_reader -c TimeZone=UTC -c default_transaction_read_only=on"
    return psycopg.connect(make_conninfo(dsn, options=options.strip()), autocommit=True)


def first_choice(connection: psycopg.Connection[Any], page: Dashboard, shown: Range) -> Chosen:
    """Return what is chosen when a dashboard is opened: All, or the first of a variable that takes one choice."""
    chosen: dict[str, Sequence[str] | str | None] = {}
    for variable in page.variables:
        if variable.many:
            chosen[variable.name] = None
            continue
        row = connection.execute(expand(variable.sql, shown, chosen).encode()).fetchone()
        chosen[variable.name] = str(row[0]) if row else ""
    return chosen


def statement(page: Dashboard, panel: Panel, now: datetime, chosen: Chosen, *, since: str = "") -> str:
    """Return the SQL of a panel as it is asked at `now`; `since` is another range than the dashboard's own."""
    shown = Range.last(panel.since or since or page.since, now)
    points = round(panel.w / 24 * 1400)  # about the pixels it has on a common screen
    return expand(panel.sql, shown, chosen, points=points, least=panel.least)


def ask(connection: psycopg.Connection[Any], sql: str) -> Answer:
    """Run one expanded query."""
    started = time.perf_counter()
    cursor = connection.execute(sql.encode())
    rows = cursor.fetchall()
    took_ms = (time.perf_counter() - started) * 1000
    description = cursor.description or []
    types = tuple(_KINDS.get(column.type_code) or str(column.type_display) for column in description)
    return Answer(tuple(column.name for column in description), types, rows, took_ms)


def mistakes(asked: Panel | Alert, answer: Answer) -> list[str]:
    """Say what Grafana, or a person in front of it, could not use."""
    found = []
    expected = tuple(asked.columns)
    if answer.names != expected:
        return [f"columns are {', '.join(answer.names)}, expected {', '.join(expected)}"]
    for (name, kind), given in zip(asked.columns.items(), answer.types, strict=True):
        if given != kind and not (name == "time" and given == "number"):  # epoch seconds are a time to Grafana
            found.append(f"column {name} is {given}, expected {kind}")
    if found:
        return found
    if not answer.rows:
        found.append("no rows")
    for name, kind in asked.columns.items():
        if kind == "number" and answer.rows and all(value is None for value in answer.column(name)):
            found.append(f"column {name} is null in every row")
    return found + (_unusable_panel(asked, answer) if isinstance(asked, Panel) else _unusable_alert(asked, answer))


def _unusable_panel(panel: Panel, answer: Answer) -> list[str]:
    found = []
    if panel.shape in SERIES:
        numbers = [name for name, kind in panel.columns.items() if kind == "number"]
        texts = [name for name, kind in panel.columns.items() if kind == "text"]
        if texts not in ([], ["metric"]) or (texts and len(numbers) != 1):
            found.append("a series has numbers, or one number and the text `metric`, beside its time")
        times = answer.column("time")
        if None in times or times != sorted(times):
            found.append("times do not ascend, and Grafana refuses such a series")
        keys = [row[: 1 + len(texts)] for row in answer.rows]
        if len(set(keys)) != len(keys):
            found.append("a series has two values at one time")
    if panel.shape == "stat" and len(answer.rows) != 1:
        found.append(f"{len(answer.rows)} rows, expected one")
    if panel.shape == "pie":
        if list(panel.columns.values()) != ["text", "number"]:
            found.append("a pie has a text and a number")
        if any(value is None or value < 0 for value in answer.column(answer.names[-1])):
            found.append("a slice is null or negative")
    return found


def _unusable_alert(alert: Alert, answer: Answer) -> list[str]:
    labels = [
        tuple(value for value, kind in zip(row, alert.columns.values(), strict=True) if kind == "text")
        for row in answer.rows
    ]
    found = [] if len(set(labels)) == len(labels) else ["two rows have the same labels"]
    if any(value is None for row in answer.rows for value in row):
        found.append("a value is null")
    return found


def firing(alert: Alert, answer: Answer) -> set[tuple[str, ...]]:
    """Return the labels of the rows that fire."""
    kinds = tuple(alert.columns.values())
    at = kinds.index("number")
    return {
        tuple(str(value) for value, kind in zip(row, kinds, strict=True) if kind == "text")
        for row in answer.rows
        if (row[at] > alert.limit if alert.fires == "above" else row[at] < alert.limit)
    }
