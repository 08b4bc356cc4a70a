"""What must leave an outbox when its size, its age or its disk demand it, and the losses that say so (P24)."""

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from edge.publish.held import Held
from edge.publish.outbox_file import Row
from edge.publish.ranges import Ranges
from edge.wire import Loss, LossReason

log = logging.getLogger(__name__)

DROP_ROWS = 500  # batches that go in one transaction


class Bounds:
    """The bounds of one outbox. Every method is called within a transaction of its file.

    `gone` and `lost` gather, by place and by reason, what the transaction drops: memory follows when the disk has it.

    Args:
        path: of the file, for the log.
        max_bytes: of pages and log; what is acked goes first, then the oldest.
        max_age_s: of a batch, in running time.
        reserve_bytes: set aside for the day the disk is full; 0 for none.
    """

    def __init__(self, path: Path, *, max_bytes: int, max_age_s: float, reserve_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.log_bytes = min(1 << 20, max_bytes // 8, reserve_bytes // 2 or max_bytes)  # the reserve must hold it
        self.losing: LossReason | None = None  # said in the journal already
        self._path, self._max_age_s = path, max_age_s
        self._page_bytes = max_bytes - self.log_bytes - min(256 << 10, max_bytes // 16)  # a commit may overshoot

    def drop(
        self, held: Held, rows: Sequence[Row], reason: LossReason, gone: dict[int, Ranges], lost: Counter[str]
    ) -> list[Loss]:
        """Delete batches; return the losses that must be said in their place, those that were in them included."""
        losses: list[Loss] = []
        for row in rows:
            stream = held.streams[row.place]
            dropped = gone.setdefault(row.place, Ranges())
            if dropped.covers(row.first, row.last):
                continue
            if not stream.covered.covers(row.first, row.last):
                losses += [event for event in held.events(row) if isinstance(event, Loss)]
                join(losses, Loss(stream.stream, row.first, row.last, reason))
                lost[reason.name.lower()] += row.last - row.first + 1
            dropped.add(row.first, row.last)
        held.file.delete(rows)
        return losses

    def make_room(self, held: Held, room_bytes: int, gone: dict[int, Ranges], lost: Counter[str]) -> list[Loss]:
        """Drop batches, acked ones first, until the size bound holds or `room_bytes` of pages are free."""
        used = held.file.page_bytes
        if room_bytes:
            reason = LossReason.DISK
            target = used() - max(0, room_bytes - held.file.free_bytes())
        elif used() > self._page_bytes:
            reason = LossReason.SIZE
            target = self._page_bytes - self.max_bytes // 20
        else:
            return []
        losses: list[Loss] = []
        acked = (row for row in held.walk(lambda s: s.held() & s.covered) if not held.is_pending(row))
        for rows in (acked, held.walk(lambda s: s.pending())):
            while used() > target and (some := list(islice(rows, 20))):
                for loss in self.drop(held, some, reason, gone, lost):
                    join(losses, loss)
        if losses and self.losing != reason:
            why = reason.name.lower()
            fields = {"EVENT": "events_lost"}
            log.error("outbox %s has no room (%s): the oldest events are being lost", self._path, why, extra=fields)
            self.losing = reason
        return losses

    def drop_old(self, held: Held, made_s: int, gone: dict[int, Ranges], lost: Counter[str]) -> list[Loss]:
        """Drop the batches that are older at `made_s` of running time than they may become."""
        old: list[Row] = []
        for row in held.walk(lambda s: s.held()):
            if row.made_s >= made_s - self._max_age_s or len(old) >= DROP_ROWS:
                break
            old.append(row)
        return self.drop(held, old, LossReason.AGE, gone, lost)


def join(losses: list[Loss], loss: Loss) -> None:
    """Append a loss, or lengthen the last one when it goes on where that ended."""
    before = losses[-1] if losses else None
    if before and (before.stream, before.reason, before.last + 1) == (loss.stream, loss.reason, loss.first):
        losses[-1] = Loss(loss.stream, before.first, loss.last, loss.reason)
    else:
        losses.append(loss)
