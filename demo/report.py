"""What PostgreSQL knows after a run, read back and told: a table of visits, a summary, and the figures of the chart."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean

import psycopg
from psycopg.rows import class_row
from rich import box
from rich.console import Console
from rich.table import Table

HEADS = ("age", "gender", "race", "emotion")  # in this order; others follow by name
REASONS = {
    "left": "left",
    "camera_lost": "camera lost",
    "source_ended": "clip ended",
    "shutdown": "stopped",
    "box_restarted": "box restarted",
    "open": "still here",
}
OPEN_K = "UPDATE facefleet.settings SET value = 1 WHERE name IN ('k', 'round_to')"
VISITS = """
    SELECT camera, started_at, dwell_ms / 1000.0::float8 AS dwell_s, reason, score::float8, labels, confidences
    FROM facefleet.visit_list ORDER BY started_at, track
"""
PRESENCE = """
    SELECT at, period_ms / 1000.0::float8 AS period_s, sum(person_ms)::float8 / period_ms AS people,
        sum(most)::int AS most
    FROM facefleet.presence GROUP BY at, period_ms ORDER BY at
"""
TRAFFIC = """
    SELECT (SELECT coalesce(sum(last_seq - first_seq + 1), 0)::bigint FROM facefleet.batches) AS events,
        (SELECT count(*) FROM facefleet.batches) AS batches,
        (SELECT count(*) FROM (SELECT FROM facefleet.batches, generate_series(first_seq, last_seq) AS seq
            GROUP BY stream, seq HAVING count(*) > 1) AS again) AS doubled,
        (SELECT count(*) FROM facefleet.dead_letters) AS dead_letters,
        (SELECT count(*) FROM facefleet.streams) AS streams,
        (SELECT coalesce(sum(events), 0)::bigint FROM facefleet.losses) AS lost
"""


@dataclass(frozen=True, slots=True)
class Visit:
    """One row of the table: somebody came, stayed and went. `labels` and `confidences` are by head."""

    camera: str
    started_at: datetime
    dwell_s: float
    reason: str
    score: float
    labels: Mapping[str, str]
    confidences: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Presence:
    """One slot of the counting grid, all cameras together: people on average, and at most."""

    at: datetime
    period_s: float
    people: float
    most: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """How it all came to the database."""

    events: int
    batches: int
    doubled: int
    dead_letters: int
    streams: int
    lost: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything a run left in the database."""

    visits: tuple[Visit, ...]
    presence: tuple[Presence, ...]
    traffic: Traffic

    @property
    def heads(self) -> tuple[str, ...]:
        """Return the heads that said anything, age and gender first."""
        said = {head for visit in self.visits for head in visit.labels}
        return (*(h for h in HEADS if h in said), *sorted(said - set(HEADS)))

    @property
    def mean_dwell_s(self) -> float:
        """Return the mean length of a visit, 0 without one."""
        return fmean(v.dwell_s for v in self.visits) if self.visits else 0.0

    @property
    def most_at_once(self) -> int:
        """Return the most people counted at one moment."""
        return max((p.most for p in self.presence), default=0)

    def shares(self, head: str) -> list[tuple[str, int]]:
        """Return each label of a head with its number of visits, the most frequent first; abstentions are "?"."""
        counts = Counter(visit.labels.get(head, "?") for visit in self.visits)
        return sorted(counts.items(), key=lambda item: (item[0] == "?", -item[1], item[0]))


def read(dsn: str) -> Outcome:
    """Read a run's outcome; the role must own the tables, as that of a local centre does."""
    with psycopg.connect(dsn) as connection:
        return Outcome(
            tuple(connection.cursor(row_factory=class_row(Visit)).execute(VISITS)),
            tuple(connection.cursor(row_factory=class_row(Presence)).execute(PRESENCE)),
            connection.cursor(row_factory=class_row(Traffic)).execute(TRAFFIC).fetchone() or Traffic(0, 0, 0, 0, 0, 0),
        )


def open_up(dsn: str) -> None:
    """Let the report views of a demo's database show every count, however small."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(OPEN_K)


def show(console: Console, outcome: Outcome, *, most: int = 40) -> None:
    """Print the table of visits and the summary.

    Args:
        console: Where to.
        outcome: What was read back.
        most: Rows to print; of more visits the newest are shown.
    """
    if outcome.visits:
        console.print(visits_table(outcome, most, wide=console.width >= 100))
    if len(outcome.visits) > most:
        console.print(f"[dim]… and {len(outcome.visits) - most} earlier visits[/dim]")
    console.print(summary(outcome))


def visits_table(outcome: Outcome, most: int, *, wide: bool = True) -> Table:
    """Return the visits as a table, a column for each head that said anything; `wide` adds how sure it was."""
    table = Table(
        title="Visits, read back from PostgreSQL", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    table.add_column("#", justify="right")
    table.add_column("came", no_wrap=True)
    several = len({visit.camera for visit in outcome.visits}) > 1
    if several:
        table.add_column("camera")
    table.add_column("stayed", justify="right", no_wrap=True)
    for head in outcome.heads:
        table.add_column(head, no_wrap=True)
    table.add_column("ended", no_wrap=True)
    first = max(0, len(outcome.visits) - most)
    for number, visit in enumerate(outcome.visits[first:], first + 1):
        table.add_row(
            str(number),
            visit.started_at.astimezone().strftime("%H:%M:%S"),
            *([visit.camera] if several else []),
            f"{'> ' if visit.reason == 'box_restarted' else ''}{visit.dwell_s:.1f} s",
            *(_cell(visit, head, wide) for head in outcome.heads),
            REASONS.get(visit.reason, visit.reason),
        )
    return table


def summary(outcome: Outcome) -> str:
    """Return two lines: what was seen, and how it came here."""
    traffic = outcome.traffic
    visits = len(outcome.visits)
    seen = (
        f"[bold]{_count(visits, 'visit')}[/bold], staying {outcome.mean_dwell_s:.1f} s on average, "
        f"at most {outcome.most_at_once} at once"
        if visits
        else "[bold]nobody came[/bold]: no face was followed for three frames"
    )
    came = (
        f"[dim]{_count(traffic.events, 'event')} in {_count(traffic.batches, 'batch', 'batches')} over MQTT, "
        f"{traffic.lost} lost, {traffic.doubled} doubled, {traffic.dead_letters} unreadable[/dim]"
    )
    return f"{seen}\n{came}"


def _cell(visit: Visit, head: str, wide: bool) -> str:
    label = visit.labels.get(head)
    if label is None:
        return "[dim]–[/dim]"
    confidence = visit.confidences.get(head)
    return f"{label} [dim]{confidence:.0%}[/dim]" if wide and confidence is not None else label


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
