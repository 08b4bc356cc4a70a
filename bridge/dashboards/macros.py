"""What Grafana makes of a panel's SQL before it reaches PostgreSQL: variables first, then the data source's macros.

Used wherever a panel is asked without Grafana: contact sheet, tests, benchmark. Two oddities are kept on purpose, as a
query must survive them: a macro's argument ends at the first closing parenthesis, and `$__timeGroup(…)` directly
followed by a comma gets the alias "time".

Source: Grafana 11, the PostgreSQL data source's documentation and behaviour, without TimescaleDB.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from bridge.dashboards.model import ALL

_MACRO = re.compile(r"\$(__[A-Za-z0-9]+)\(([^)]*)\)")
_SPAN = re.compile(r"(\d+)(ms|[smhdwy])")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
# (below this many seconds, the interval Grafana rounds to)
_ROUNDED = (
    (1.5, "1s"), (3.5, "2s"), (7.5, "5s"), (12.5, "10s"), (17.5, "15s"), (25, "20s"), (45, "30s"), (90, "1m"),
    (210, "2m"), (450, "5m"), (750, "10m"), (1050, "15m"), (1500, "20m"), (2700, "30m"), (5400, "1h"), (9000, "2h"),
    (16200, "3h"), (32400, "6h"), (86400, "12h"), (604800, "1d"), (1814400, "1w"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Range:
    """The time a dashboard shows; both ends aware UTC."""

    start: datetime
    end: datetime

    @classmethod
    def last(cls, span: str, now: datetime) -> "Range":
        """Return the range that Grafana calls now-<span> to now."""
        return cls(now - timedelta(seconds=seconds(span)), now)


def seconds(span: str) -> float:
    """Return the length of a span such as "5m"."""
    match = _SPAN.fullmatch(span)
    if match is None:
        raise ValueError(f"{span!r} is no span of time, expected a number and one of {', '.join(_SECONDS)}")
    return int(match[1]) * _SECONDS[match[2]]


def interval(shown: Range, points: int, least: str) -> str:
    """Return `$__interval`: the range cut into about `points`, rounded as Grafana does, and not under `least`."""
    exact_s = (shown.end - shown.start).total_seconds() / points
    rounded = next((name for below, name in _ROUNDED if exact_s < below), "30d")
    return least if seconds(rounded) < seconds(least) else rounded


def expand(
    sql: str, shown: Range, chosen: Mapping[str, Sequence[str] | str | None], *, points: int = 500, least: str = "1m"
) -> str:
    """Return the SQL that PostgreSQL gets.

    Args:
        chosen: variable → None for All, a list of several choices, or a text for a variable of one choice.
        points: width of the panel in points.
        least: the panel's shortest interval.

    Raises:
        ValueError: a macro is unknown, lacks an argument, or a dollar sign is left over.
    """
    step = interval(shown, points, least)
    texts = {
        "__from": str(_ms(shown.start)),
        "__to": str(_ms(shown.end)),
        "__interval_ms": str(round(seconds(step) * 1000)),
        "__interval": step,
        **{name: _choice(value) for name, value in chosen.items()},
    }
    for name in sorted(texts, key=len, reverse=True):  # $__interval_ms before $__interval
        sql = re.sub(rf"\${name}\b", lambda _, text=texts[name]: text, sql)  # type: ignore[misc]
    whole = sql

    def macro(match: re.Match[str]) -> str:
        name = match[1]
        # Grafana looks at what follows the first occurrence of the same text.
        after = whole[whole.index(match[0]) + len(match[0]) :][:1]
        if name == "__timeGroup" and after == ",":
            name = "__timeGroupAlias"
        return _expansion(name, [part.strip() for part in match[2].split(",")], shown)

    sql = _MACRO.sub(macro, sql)
    if "$" in sql:
        at = sql.index("$")
        raise ValueError(f"nothing is known of {sql[at : at + 30]!r}")
    return sql


def _expansion(name: str, arguments: Sequence[str], shown: Range) -> str:
    start, end = _stamp(shown.start), _stamp(shown.end)
    if name in ("__timeFilter", "__time") and not arguments[0]:
        raise ValueError(f"${name} wants a column")
    match name:
        case "__time":
            return f'{arguments[0]} AS "time"'
        case "__timeFilter":
            return f"{arguments[0]} BETWEEN '{start}' AND '{end}'"
        case "__timeFrom":
            return f"'{start}'"
        case "__timeTo":
            return f"'{end}'"
        case "__timeGroup" | "__timeGroupAlias":
            if len(arguments) < 2:
                raise ValueError(f"$__timeGroup wants a column and an interval, found {list(arguments)}")
            step_s = f"{seconds(arguments[1].strip(chr(39))):g}"
            group = f"floor(extract(epoch from {arguments[0]})/{step_s})*{step_s}"
            return group + (' AS "time"' if name == "__timeGroupAlias" else "")
    raise ValueError(f"Grafana knows no macro ${name}")


def _choice(value: Sequence[str] | str | None) -> str:
    if value is None:
        return ALL
    if isinstance(value, str):
        return value.replace("'", "''")
    return ",".join("'" + text.replace("'", "''") + "'" for text in value)


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
