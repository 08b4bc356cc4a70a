"""Events that come after their time was erased. Driven by `transaction.py`, for boxes of which something was erased."""

from collections.abc import Mapping, Sequence

from bridge import statements as sql
from bridge.batches import read_event
from bridge.connection import Connection
from bridge.erasure import name_tracks, remove_tracks
from bridge.graves import Graves, Key, Span, key_of
from bridge.rollups import roll_up
from bridge.runs import DeadLetter, Run
from edge.wire import AnyEvent


def dig(connection: Connection, runs: Sequence[Run]) -> dict[int, Graves]:
    """Return by stream what tells which events come too late; take away what earlier ones of the same visits left."""
    if not runs:
        return {}
    spans: dict[int, list[Span]] = {}
    for box_id, *span in connection.execute(sql.TOMBSTONES, ([run.meaning.box_id for run in runs],)):
        spans.setdefault(box_id, []).append(Span(*span))
    found = {run.stream: Graves(tuple(spans.get(run.meaning.box_id, ()))) for run in runs}
    told = {key_of(run.stream, run.meaning, event) for run in runs for event in _events(run)}
    columns = list(zip(*sorted(filter(None, told)), strict=True)) or [(), (), ()]
    for key in connection.execute(sql.ERASED_TRACKS, [list(column) for column in columns]).fetchall():
        graves = found[key[0]]
        graves.tracks[key] = graves.spans[0].tombstone
    fresh: set[Key] = set()
    for run in runs:
        fresh |= found[run.stream].dig(run.stream, run.meaning, run.parsed.envelope.base_ms, _events(run))
    if fresh:
        name_tracks(connection, fresh)
        remove_tracks(connection)
        roll_up(connection)
        connection.execute("TRUNCATE in_delta, in_erased")
    return found


def is_late(letter: DeadLetter, runs: Sequence[Run], graves: Mapping[int, Graves]) -> bool:
    """Tell whether a dead letter of one of these runs would keep the bytes of an erased event."""
    buried = graves.get(letter.stream or 0)
    if buried is None or letter.seq is None:
        return False
    for run in runs:
        if run.stream == letter.stream and run.first <= letter.seq <= run.last:
            envelope = run.parsed.envelope
            event = read_event(envelope.events[letter.seq - envelope.first_seq])
            if isinstance(event, str):
                continue
            if buried.holds(run.stream, run.meaning, event, envelope.base_ms) is not None:
                return True
    return False


def _events(run: Run) -> list[AnyEvent]:
    """Return the events of a run that can be read, as objects."""
    start = run.parsed.envelope.first_seq
    events = map(read_event, run.parsed.raw[run.first - start : run.last - start + 1])
    return [event for event in events if not isinstance(event, str)]
