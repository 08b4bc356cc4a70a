"""Compare what was accepted with what PostgreSQL holds. All arithmetic is PostgreSQL's own, on multiranges.

An event has arrived when the row it must become is there: a visit's end, an update, a count, an open visit, a loss, or
a row in quarantine or among the dead letters. The bridge's own ledger is only compared with that, never believed.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from edge.wire import LossReason
from tests.chaos.events import DWELL_SQL
from tests.chaos.witness import Span

OPTIONS = "-c search_path=facefleet,pg_temp -c default_transaction_read_only=off -c statement_timeout=300s"

_EVENTS = """
    SELECT stream, seq FROM visits WHERE seq IS NOT NULL
    UNION ALL SELECT stream, seq FROM track_updates
    UNION ALL SELECT stream, seq FROM presence
    UNION ALL SELECT stream, first_seq FROM open_visits WHERE track % 2 = 1
    UNION ALL SELECT stream, seq FROM losses
    UNION ALL SELECT stream, seq FROM quarantine
    UNION ALL SELECT stream, seq FROM dead_letters
        WHERE reason IN ('invalid', 'refused', 'second end', 'foreign stream')
"""
_FACTS = f"""
    SELECT stream, range_agg(int8range(seq, seq, '[]')) AS spans, count(*) AS rows FROM ({_EVENTS}) e GROUP BY stream
"""
_SPANS = f"""
    SELECT stream, lower(s), upper(s) - 1 FROM (
        SELECT stream, spans FROM ({_FACTS}) f
        UNION ALL SELECT lost_stream, range_agg(int8range(first_seq, last_seq, '[]')) FROM losses GROUP BY 1
    ) all_spans, unnest(spans) s
"""
_SIZE = "(SELECT coalesce(sum(upper(s) - lower(s)), 0) FROM unnest({}) s)::bigint"


@dataclass(frozen=True, slots=True)
class Excuse:
    """Events that may be missing although nobody reported them: these spans, less those, by what was done to them."""

    reason: str
    spans: list[Span]
    but_not: list[Span]


@dataclass(slots=True)
class Verdict:
    """The ledger at the end."""

    accepted: int = 0
    arrived: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    unexplained: int = 0
    twice: int = 0  # more rows than events
    invented: int = 0  # rows of events nobody accepted
    altered: int = 0  # rows whose content is not what was accepted
    disagreeing: int = 0  # events on which the bridge's own ledger and the rows differ
    miscounted: int = 0  # rollups that differ from the rows they count
    conflicts: int = 0
    quarantined: int = 0
    streams: int = 0
    where: list[tuple[Any, ...]] = field(default_factory=list)  # of the unexplained: site/box, stream, spans

    @property
    def green(self) -> bool:
        """Whether the promise held; nothing accepted proves nothing."""
        wrong = (
            self.unexplained, self.twice, self.invented, self.altered, self.disagreeing, self.miscounted,
            self.conflicts,
        )  # fmt: skip
        return self.arrived > 0 and not any(wrong)


def spans_in(dsn: str) -> list[Span]:
    """Return all events that a database can account for: rows and reported losses."""
    with psycopg.connect(dsn, options=OPTIONS) as connection:
        return connection.execute(_SPANS.encode()).fetchall()


def judge(dsn: str, accepted: Iterable[Span], excuses: Iterable[Excuse]) -> Verdict:
    """Return the ledger; the database must be at rest."""
    with psycopg.connect(dsn, options=OPTIONS) as connection:
        ask = _Asker(connection)
        ask.load("noted", accepted)
        ask.run(f"CREATE TEMP TABLE facts AS {_FACTS}")
        ask.run("CREATE TEMP TABLE taken AS SELECT stream, range_agg(span) AS spans FROM noted GROUP BY 1")
        ask.run("""CREATE TEMP TABLE carried AS SELECT stream, range_agg(int8range(first_seq, last_seq, '[]')) AS spans,
            sum(last_seq - first_seq + 1)::bigint AS events FROM batches GROUP BY 1""")
        size = _SIZE.format
        joined = "FROM taken t LEFT JOIN facts f USING (stream)"
        none = "coalesce(f.spans, '{}'::int8multirange)"
        found = Verdict(
            accepted=ask.number(f"SELECT sum({size('spans')}) FROM taken"),
            arrived=ask.number(f"SELECT sum({size(f't.spans * {none}')}) {joined}"),
            twice=ask.number(f"SELECT sum(rows - {size('spans')}) FROM facts")
            + ask.number(f"SELECT sum(events - {size('spans')}) FROM carried"),
            invented=ask.number(
                f"SELECT sum({size('f.spans - ' + _or_empty('t.spans'))}) FROM facts f LEFT JOIN taken t USING (stream)"
            ),
            altered=ask.number(
                f"SELECT count(*) FROM visits WHERE seq IS NOT NULL AND (dwell_ms <> {DWELL_SQL} OR hits <> 20)"
            ),
            disagreeing=ask.number(
                f"SELECT sum({size('(' + _or_empty('f.spans') + ' - ' + _or_empty('c.spans') + ')')}"
                f" + {size('(' + _or_empty('c.spans') + ' - ' + _or_empty('f.spans') + ')')})"
                " FROM facts f FULL JOIN carried c USING (stream)"
            ),
            miscounted=ask.number("""SELECT
                abs((SELECT coalesce(sum(visits), 0) FROM rollup_days) - (SELECT count(*) FROM visits))
                + abs((SELECT coalesce(sum(person_ms), 0) FROM rollup_days)
                    - (SELECT coalesce(sum(person_ms), 0) FROM presence))"""),
            conflicts=ask.number("SELECT count(*) FROM dead_letters WHERE reason IN ('conflict', 'second end')"),
            quarantined=ask.number("SELECT count(*) FROM quarantine"),
            streams=ask.number("SELECT count(*) FROM taken"),
        )
        ask.run(f"CREATE TEMP TABLE missing AS SELECT stream, t.spans - {none} AS spans {joined}")
        for reason in LossReason:
            ask.run("CREATE TEMP TABLE why (stream bigint, spans int8multirange)")
            ask.run(f"""INSERT INTO why SELECT lost_stream, range_agg(int8range(first_seq, last_seq, '[]'))
                FROM losses WHERE reason = {int(reason)} GROUP BY 1""")
            found.lost[reason.name.lower()] = ask.subtract()
        for excuse in excuses:
            ask.load("spans", excuse.spans)
            ask.load("others", excuse.but_not)
            ask.run("""CREATE TEMP TABLE why AS SELECT a.stream, a.spans - coalesce(b.spans, '{}') AS spans FROM
                (SELECT stream, range_agg(span) AS spans FROM spans GROUP BY 1) a LEFT JOIN
                (SELECT stream, range_agg(span) AS spans FROM others GROUP BY 1) b USING (stream)""")
            found.excused[excuse.reason] += ask.subtract()
        found.unexplained = ask.number(f"SELECT sum({size('spans')}) FROM missing")
        found.where = connection.execute(
            """SELECT to_hex(m.stream), b.name, m.spans::text FROM missing m LEFT JOIN streams USING (stream)
            LEFT JOIN boxes b USING (box_id) WHERE NOT isempty(m.spans) ORDER BY 2, 1 LIMIT 20"""
        ).fetchall()
        return found


def _or_empty(spans: str) -> str:
    return f"coalesce({spans}, '{{}}'::int8multirange)"


class _Asker:
    """A connection whose statements are text made here."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def run(self, sql: str) -> None:
        self._connection.execute(sql.encode())

    def number(self, sql: str) -> int:
        row = self._connection.execute(sql.encode()).fetchone()
        return int(row[0] or 0) if row else 0

    def load(self, table: str, spans: Iterable[Span]) -> None:
        """Make a table of spans."""
        self.run(f"DROP TABLE IF EXISTS {table}; CREATE TEMP TABLE {table} (stream bigint, span int8range)")
        with self._connection.cursor().copy(f"COPY {table} FROM STDIN".encode()) as copy:
            for stream, first, last in spans:
                copy.write_row((stream, f"[{first},{last}]"))

    def subtract(self) -> int:
        """Take the table `why` off what is missing; return how many events that explains."""
        explained = self.number(
            f"SELECT sum({_SIZE.format('m.spans * w.spans')}) FROM missing m JOIN why w USING (stream)"
        )
        self.run("UPDATE missing m SET spans = m.spans - w.spans FROM why w WHERE w.stream = m.stream; DROP TABLE why")
        return explained
