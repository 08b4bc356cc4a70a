"""Macros become what Grafana makes of them, its oddities included."""

from datetime import UTC, datetime

import pytest

from bridge.dashboards.macros import Range, expand, interval, seconds

DAY = Range(datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC))


def expanded(sql: str) -> str:
    return expand(sql, DAY, {"site": None, "box": ["a", "b'c"], "one": "x'y"}, points=500)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("$__timeFilter(t)", "t BETWEEN '2026-03-01T00:00:00.000Z' AND '2026-03-02T00:00:00.000Z'"),
        ("$__timeFrom()", "'2026-03-01T00:00:00.000Z'"),
        ("$__timeTo()", "'2026-03-02T00:00:00.000Z'"),
        ("$__time(t)", 't AS "time"'),
        ("$__timeGroup(t, '5m') AS x", "floor(extract(epoch from t)/300)*300 AS x"),
        ("$__timeGroup(t, 5m) AS x", "floor(extract(epoch from t)/300)*300 AS x"),
        ("$__timeGroup(t, '$__interval') x", "floor(extract(epoch from t)/120)*120 x"),
        ("$__timeGroupAlias(t, '1h')", 'floor(extract(epoch from t)/3600)*3600 AS "time"'),
        ("$__interval_ms $__interval", "120000 2m"),
        ("$__from $__to", "1772323200000 1772409600000"),
        ("site IN ($site)", "site IN ('*')"),
        ("box IN ($box)", "box IN ('a','b''c')"),
        ("'$one'", "'x''y'"),
    ],
)
def test_macro_becomes(sql: str, expected: str) -> None:
    assert expanded(sql) == expected


def test_time_group_directly_before_a_comma_gets_an_alias_and_elsewhere_none() -> None:
    group = "floor(extract(epoch from t)/60)*60"
    assert expanded("SELECT $__timeGroup(t,'1m'), x") == f'SELECT {group} AS "time", x'
    assert expanded("SELECT $__timeGroup(t,'1m') , x") == f"SELECT {group} , x"
    # Only the first place of a text decides, for all of them.
    assert expanded("$__timeGroup(t,'1m'), $__timeGroup(t,'1m') z") == f'{group} AS "time", {group} AS "time" z'


def test_argument_ends_at_the_first_closing_parenthesis() -> None:
    assert expanded("$__timeFilter(lower(t))").startswith("lower(t BETWEEN")
    assert expanded("$__timeFilter(lower(t))").endswith("Z')")


@pytest.mark.parametrize(
    ("sql", "complaint"),
    [
        ("$__timeGruop(t, '5m')", "Grafana knows no macro $__timeGruop"),
        ("$__timeGroup(t)", "wants a column and an interval"),
        ("$__timeFilter()", "wants a column"),
        ("$__timeGroup(t, 'often')", "'often' is no span of time"),
        ("camera IN ($camera)", "nothing is known of '$camera)'"),
    ],
)
def test_mistake_in_a_query_is_said(sql: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace("$", r"\$").replace("(", r"\(").replace(")", r"\)")):
        expanded(sql)


@pytest.mark.parametrize(
    ("span", "points", "least", "expected"),
    [
        ("15m", 500, "1m", "1m"),
        ("15m", 500, "1s", "2s"),
        ("3h", 470, "1m", "1m"),
        ("24h", 700, "1m", "2m"),
        ("24h", 24, "1m", "1h"),
        ("30d", 700, "1m", "1h"),
        ("30d", 700, "1d", "1d"),
        ("365d", 10, "1m", "30d"),
    ],
)
def test_interval_is_rounded_as_grafana_rounds(span: str, points: int, least: str, expected: str) -> None:
    assert interval(Range.last(span, DAY.end), points, least) == expected


@pytest.mark.parametrize(
    ("span", "expected"), [("500ms", 0.5), ("90s", 90), ("2h", 7200), ("28d", 2419200), ("1w", 604800)]
)
def test_span_has_seconds(span: str, expected: float) -> None:
    assert seconds(span) == expected
