"""What the database has said it holds of an outbox's streams: acks, and the doubts about them (P16, P23)."""

import logging
from collections.abc import Iterable, Mapping
from uuid import UUID

from edge.publish.outbox_file import StreamRow
from edge.publish.ranges import Ranges
from edge.wire import Covered

log = logging.getLogger(__name__)

SAVE_COVERED_S = 10.0  # acks are written down this often: forgetting one costs a resend, writing each costs a page
DOUBT_S = 5.0  # an ack that says less than we know is believed after this long: a late one is corrected sooner


class Coverage:
    """Believes acks of one database; what they say stands in the streams' rows, by place, which each call is given."""

    def __init__(self) -> None:
        self.database: bytes = b""
        self.unsaved: set[int] = set()  # places whose covered ranges changed
        self._database_unsaved = False
        self._saved_s = float("inf")  # before the first commit nothing is due, unless it is asked for
        self._doubts: dict[int, tuple[Ranges, float]] = {}
        self._named_s: dict[int, float] = {}  # when an ack last spoke of a stream

    def use(self, database: UUID, streams: Mapping[int, StreamRow]) -> bool:
        """Say which database's acks count (P18); what only another one holds is pending again.

        Returns:
            Whether it is another than before.
        """
        if database.bytes == self.database:
            return False
        if self.database:
            for row in streams.values():
                row.covered = Ranges()
        self._doubts.clear()
        self.database = database.bytes
        self.unsaved |= {row.place for row in streams.values() if row.last}
        self._database_unsaved = True
        return True

    def cover(
        self, streams: Mapping[int, StreamRow], database: UUID, covered: Iterable[Covered], now_s: float, complete: bool
    ) -> int:
        """Learn what the database holds; return how many events are newly covered.

        What an ack adds is believed at once (P16). What it no longer names is doubted, and pending again when no ack
        has named it within a few seconds: then the centre was restored from an older backup (P23). A `complete` ack
        that leaves a stream out says that the database holds nothing of it.
        """
        if database.bytes != self.database:
            return 0
        by_stream = {row.stream: row for row in streams.values()}
        newly = 0
        covered = list(covered)
        if complete:
            named = {said.stream for said in covered}
            covered += [Covered(stream, 0) for stream in by_stream if stream not in named]
        for said in covered:
            row = by_stream.get(said.stream)
            if row is None:
                continue
            self._named_s[row.place] = now_s
            held = Ranges.from_flat((1, said.upto, *said.ranges) if said.upto > 0 else said.ranges)
            held.discard(row.last + 1, max(row.last + 1, held.top))  # nobody can hold what was never accepted
            fresh = (held - row.covered) & row.held()
            if fresh:
                newly += fresh.count()
                row.covered = row.covered | held
                self.unsaved.add(row.place)
            missing = (row.covered - held) & row.held()
            if said.ranges:  # a bridge may name only the first few ranges: above them, silence means nothing
                missing.discard(held.top + 1, max(held.top + 1, missing.top))
            if missing:
                before, since_s = self._doubts.get(row.place, (missing, now_s))
                self._doubts[row.place] = (missing, since_s if before & missing else now_s)
            else:
                self._doubts.pop(row.place, None)
        return newly

    def settle_doubts(self, streams: Mapping[int, StreamRow], now_s: float) -> int:
        """Believe what was doubted long enough; return how often acked events became pending again."""
        retakes = 0
        for place, (missing, since_s) in list(self._doubts.items()):
            if now_s - since_s >= DOUBT_S and place in streams:
                retakes += self._take_back(streams[place], missing)
                for other, row in streams.items():  # a restored database may not know a stream it could name
                    if other not in self._doubts and self._named_s.get(other, float("-inf")) < since_s:
                        retakes += self._take_back(streams[other], row.covered & row.held())
        return retakes

    def _take_back(self, row: StreamRow, missing: Ranges) -> bool:
        self._doubts.pop(row.place, None)
        if not missing:
            return False
        row.covered = row.covered - missing
        self.unsaved.add(row.place)
        self.save_next()  # this may not be forgotten: the database has said it once
        log.warning(
            "the database no longer holds %d events of stream %016x: pending again; was it restored from a backup?",
            missing.count(),
            row.stream,
        )
        return True

    # -- writing it down -------------------------------------------------------------------------------------------

    def begin(self, now_s: float) -> None:
        """Count the time between two savings from the first commit on."""
        self._saved_s = min(self._saved_s, now_s)

    def save_next(self) -> None:
        """Have the next commit write everything down."""
        self._saved_s = float("-inf")

    def due(self, now_s: float) -> bool:
        """Tell whether the commit at `now_s` is to write down what changed."""
        return self._database_unsaved or (bool(self.unsaved) and now_s - self._saved_s >= SAVE_COVERED_S)

    def saved(self, now_s: float) -> None:
        """Take note that all of it is on the disk."""
        self._saved_s, self._database_unsaved = now_s, False
