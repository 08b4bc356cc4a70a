"""What has been delivered and is not yet written: a queue with a bound (P38), filled by the network thread.

Events and states keep their order of arrival. Health is only ever worth its newest, so it is kept once per box.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from edge.link import Message

_LULL_S = 0.005  # when nothing has come for so long, what there is may go
_OVERHEAD_BYTES = 512  # of the objects around a payload, so that many tiny messages count for what they cost


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message of a box, its topic taken apart. Kind is "events", "state" or "health"."""

    site: str
    box: str
    kind: str
    message: Message
    received_at: datetime

    @property
    def bytes(self) -> int:
        """What it costs to hold, roughly."""
        return len(self.message.payload) + _OVERHEAD_BYTES


class Inbox:
    """A bounded queue; what does not fit is turned away, never waited for: the caller is the network thread."""

    def __init__(self, most_bytes: int, *, most_boxes: int = 100_000) -> None:
        """Hold at most `most_bytes` of events and states, and the newest health of at most `most_boxes` boxes."""
        self._most_bytes = most_bytes
        self._most_boxes = most_boxes
        self._queue: deque[Delivery] = deque()
        self._health: dict[tuple[str, str], Delivery] = {}
        self._bytes = 0
        self._news = threading.Condition()

    @property
    def bytes(self) -> int:
        """What the queue holds now."""
        return self._bytes

    @property
    def roomy(self) -> bool:
        """Whether less than half the bound is taken: time to let the broker send again."""
        return self._bytes < self._most_bytes // 2

    def put(self, delivery: Delivery) -> bool:
        """Take a delivery in; False when there is no room for it."""
        with self._news:
            if delivery.kind == "health":
                key = (delivery.site, delivery.box)
                if key not in self._health and len(self._health) >= self._most_boxes:
                    return False
                self._health[key] = delivery
            elif self._bytes + delivery.bytes > self._most_bytes:
                return False
            else:
                self._queue.append(delivery)
                self._bytes += delivery.bytes
            self._news.notify()
        return True

    def take(self, most_messages: int, most_bytes: int, wait_s: float, gather_s: float = 0.0) -> list[Delivery]:
        """Return the oldest deliveries, at least one if any; wait up to `wait_s` for the first, or for health.

        `gather_s`: then wait up to so long for more, while more comes. Longer makes a live fleet's transactions fewer
        and its rows later; one that has a backlog fills them before.
        """
        with self._news:
            if not self._queue and not self._health:
                self._news.wait(wait_s)
        give_up_s = time.monotonic() + gather_s
        while (found := len(self._queue)) and found < most_messages and time.monotonic() < give_up_s:
            time.sleep(_LULL_S)  # unlike a wait for news, this wakes nobody with each of hundreds of messages
            if len(self._queue) == found:
                break
        with self._news:
            taken: list[Delivery] = []
            taken_bytes = 0
            while self._queue and len(taken) < most_messages:
                if taken and taken_bytes + self._queue[0].bytes > most_bytes:
                    break
                taken.append(self._queue.popleft())
                taken_bytes += taken[-1].bytes
            self._bytes -= taken_bytes
        return taken

    def take_health(self, most: int = 1 << 30) -> list[Delivery]:
        """Return the newest health of boxes that sent one since the last call, the longest waiting first."""
        with self._news:
            return [self._health.pop(box) for box in list(islice(self._health, most))]

    def wake(self) -> None:
        """End a wait in `take`."""
        with self._news:
            self._news.notify_all()
