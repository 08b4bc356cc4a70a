"""What dashboards and alarms are made of: plain values. `render.py` turns them into Grafana's files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["time", "number", "text"]
Shape = Literal["lines", "bars", "pie", "stat", "table", "heat", "ranking"]
Severity = Literal["warning", "critical"]

GRID = 24  # columns of a dashboard
SERIES = frozenset({"lines", "bars"})  # shapes over time: the first column is "time", rows ascend in it

GREEN, AMBER, RED, BLUE, GREY = "green", "orange", "red", "blue", "gray"

# The value of "All" in every variable: one word, however large the fleet. No id contains an asterisk.
ALL = "'*'"


@dataclass(frozen=True, slots=True)
class Panel:
    """One query and how it is drawn.

    Attributes:
        columns: what the query returns, name → kind, in order; the tests hold every panel to it.
        w: width in `GRID` columns.
        h: height in Grafana's rows of about 38 px.
        unit: Grafana's name for the unit of the numbers; `units` for single columns.
        steps: (from this value on, this colour), the first from None.
        colours: text → colour, for cells and slices.
        since: a time range of its own, e.g. "28d", instead of the dashboard's.
        least: shortest `$__interval`, the period in which the data arrives.
    """

    title: str
    shape: Shape
    sql: str
    columns: Mapping[str, Kind]
    about: str = ""
    w: int = 8
    h: int = 8
    unit: str = "short"
    units: Mapping[str, str] = field(default_factory=dict)
    decimals: int | None = None
    steps: tuple[tuple[float | None, str], ...] = ()
    colours: Mapping[str, str] = field(default_factory=dict)
    stacked: bool = False
    since: str = ""
    least: str = "1m"

    def __post_init__(self) -> None:
        if self.shape in SERIES and next(iter(self.columns.items())) != ("time", "time"):
            raise ValueError(f'panel "{self.title}" is drawn over time, so its first column must be "time"')
        if not 1 <= self.w <= GRID:
            raise ValueError(f'panel "{self.title}" is {self.w} wide, expected 1–{GRID}')


@dataclass(frozen=True, slots=True)
class Row:
    """A heading above the panels that follow."""

    title: str


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard. `many` allows several and All; the query's first column is the choice."""

    name: str
    sql: str
    many: bool = True


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    about: str
    since: str
    refresh: str
    variables: tuple[Variable, ...]
    items: tuple[Panel | Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All but the headings."""
        return tuple(item for item in self.items if isinstance(item, Panel))


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule that fires for every row whose number is on the wrong side of a limit.

    Attributes:
        sql: returns text columns, which become labels, and exactly one number. It contains no dollar sign: Grafana
            replaces those in provisioning files by environment variables.
        lasting: how long it must be true, as Grafana writes durations.
        rows: whether there is always a row; if so, none at all is an alarm too.
    """

    uid: str
    title: str
    summary: str
    sql: str
    columns: Mapping[str, Kind]
    limit: float
    lasting: str
    severity: Severity
    rows: bool = False
    fires: Literal["above", "below"] = "above"

    def __post_init__(self) -> None:
        if "$" in self.sql or "$" in self.summary:
            raise ValueError(f"alarm {self.uid} contains a dollar sign, which Grafana would replace")
        if sorted(self.columns.values()).count("number") != 1:
            raise ValueError(f"alarm {self.uid} must return exactly one number, found {dict(self.columns)}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a panel stands in the grid."""

    x: int
    y: int
    w: int
    h: int


def placed(items: tuple[Panel | Row, ...]) -> list[tuple[Panel | Row, Place]]:
    """Lay items out as text is: from left to right, a new line where one does not fit or a heading comes."""
    laid: list[tuple[Panel | Row, Place]] = []
    x = y = line_h = 0
    for item in items:
        w, h = (GRID, 1) if isinstance(item, Row) else (item.w, item.h)
        if x + w > GRID:
            x, y, line_h = 0, y + line_h, 0
        laid.append((item, Place(x, y, w, h)))
        x, line_h = x + w, max(line_h, h)
    return laid
