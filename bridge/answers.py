"""What goes back once it is committed: to the broker, that it may send more; to boxes, what the database holds.

Driven by `subscriber.py` from its writer thread; only `later` is called by the network thread as well.
"""

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol
from uuid import UUID

from bridge.acks import AckBook, Box
from bridge.store import RECENT_STREAMS
from edge.link import Message
from edge.wire import BoxState, Covered, encode_ack, topic


class Outlet(Protocol):
    """What the writer needs of edge/link.py."""

    @property
    def generation(self) -> int: ...
    def ack(self, message: Message) -> bool: ...
    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> int | None: ...


class Covering(Protocol):
    """What births ask of bridge/store.py."""

    def all_covered(self, boxes: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[Covered, ...]]: ...


class Answers:
    """What is owed to the broker and to the boxes; `outlet` must be set before anything is said."""

    def __init__(self) -> None:
        self.outlet: Outlet
        self._acks = AckBook()
        self._unacked: deque[Message] = deque()  # deliveries to acknowledge to the broker when there is room again

    # -- to the broker -----------------------------------------------------------------------------------------------

    def later(self, message: Message) -> None:
        """Keep a delivery until there is room for more."""
        self._unacked.append(message)

    def to_broker_at_last(self) -> None:
        """Acknowledge what was kept until now."""
        self.to_broker([self._unacked.popleft() for _ in range(len(self._unacked))])

    def to_broker(self, messages: Sequence[Message]) -> None:
        """Let the broker send more. One of an earlier connection is nobody's any more (P37)."""
        for message in messages:
            if message.qos and not self.outlet.ack(message) and message.generation == self.outlet.generation:
                self._unacked.append(replace(message, payload=b""))

    # -- to boxes ----------------------------------------------------------------------------------------------------

    def note(self, box: Box, covered: Iterable[Covered]) -> None:
        """Owe a box an ack."""
        self._acks.note(box, covered)

    def wait_s(self, longest_s: float) -> float:
        """Return how long until the next ack may go, at most `longest_s`."""
        return self._acks.wait_s(time.monotonic(), longest_s)

    def births(self, store: Covering, states: dict[tuple[str, str], BoxState]) -> None:
        """Tell boxes what we hold even if they have nothing to send: how they learn of a restored backup (P23)."""
        born = {box: state for box, state in states.items() if state.state == "online"}
        for box, found in store.all_covered(list(born)).items() if born else ():
            held = {covered.stream: covered for covered in found}
            with contextlib.suppress(ValueError):
                if 0 < (own := int(born[box].stream, 16)) < 2**63:
                    held.setdefault(own, Covered(own, 0))
            complete = len(found) < RECENT_STREAMS  # else there may be more
            self._acks.note(box, held.values(), complete=complete)

    def publish(self, database: UUID) -> int:
        """Say to boxes what is due; return to how many. Without a connection they stay owed."""
        said = 0
        now_s = time.monotonic()
        for (site, box), covered in self._acks.due(now_s):
            payload = encode_ack(database, covered, complete=self._acks.is_complete((site, box)))
            if self.outlet.publish(topic(site, box, "ack"), payload, qos=1, retain=True) is None:
                break
            self._acks.said((site, box), now_s)
            said += 1
        return said
