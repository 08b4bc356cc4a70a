"""Several simulated boxes in one process: the real Outbox and Publisher, made-up events, an injected clock.

Run by world.py as `python -m tests.chaos.fleet_process [--sabotage NAME] SPEC`. Orders come in as lines of JSON, what
the boxes say of themselves goes out as lines of JSON. It ends when its orders end: nobody is left behind.
"""

import json
import logging
import queue
import random
import secrets
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from edge.errors import OutboxError
from edge.link import LinkSettings
from edge.publish.clock import BoxClock
from edge.publish.delivery import DeliverySettings
from edge.publish.publisher import Publisher, PublisherSettings
from edge.wire import Health, stream_name
from tests.chaos import sabotage
from tests.chaos.events import VOCABULARY, event
from tests.chaos.witness import Witness, WitnessedOutbox

TURN_S = 0.1
HEARTBEAT_S = 4.0
NO_ROOM = 75  # exit status: the disk is too full to open an outbox


class BoxSpec(msgspec.Struct, frozen=True):
    """One simulated box."""

    site: str
    box: str
    folder: str
    max_bytes: int
    reserve_bytes: int


class FleetSpec(msgspec.Struct, frozen=True):
    """One process of boxes."""

    boxes: tuple[BoxSpec, ...]
    port: int
    protocol: str
    database: str
    ledger: str
    rate_hz: float  # events per second and box
    clock_offset_s: float = 0.0
    at_1970: bool = False  # starts with an unset clock, which is set some seconds later


class Box:
    """One box: its clock, outbox and publisher."""

    def __init__(self, spec: BoxSpec, fleet: FleetSpec, witness: Witness) -> None:
        """Open the outbox; `publisher.start` connects."""
        self.offset_s = -time.time() + 30.0 if fleet.at_1970 else fleet.clock_offset_s
        self.synchronized = not fleet.at_1970
        self.name = f"{spec.site}/{spec.box}"
        self._number = 0
        self._owed = random.random()
        stream = secrets.randbits(63) or 1
        clock = BoxClock(wall=lambda: time.time() + self.offset_s, synchronized=lambda: self.synchronized)
        self.outbox = WitnessedOutbox(
            Path(spec.folder) / "outbox.db", witness=witness, stream=stream, vocabulary=VOCABULARY, clock=clock,
            max_bytes=spec.max_bytes, reserve_bytes=spec.reserve_bytes,
        )  # fmt: skip
        link = LinkSettings(
            "127.0.0.1", "", fleet.port, "5" if fleet.protocol == "5" else "3.1.1", keep_alive_s=5,
            backoff_s=(0.2, 3.0),
        )  # fmt: skip
        settings = PublisherSettings(
            site=spec.site, box=spec.box, stream=stream, database=UUID(fleet.database), link=link,
            heartbeat_s=HEARTBEAT_S, commit_s=0.25, linger_s=1.0,
            delivery=DeliverySettings(resend_s=5.0, resend_most_s=20.0),
        )  # fmt: skip
        self.publisher = Publisher(settings, self.outbox)
        self._stream = stream

    def feed(self, elapsed_s: float, rate_hz: float) -> None:
        """Append what has happened since the last call."""
        self._owed += min(elapsed_s, 2.0) * rate_hz
        count = int(self._owed)
        if count:
            self._owed -= count
            now_ms = round(time.monotonic() * 1000)
            self.outbox.append([event(self._number + i, now_ms - 60_000) for i in range(count)])
            self._number += count

    def say_health(self) -> None:
        """Let the publisher say that we live: twins are found by it."""
        health = Health(
            stream=stream_name(self._stream), nonce=self.publisher.nonce, t_ms=time.time_ns() // 1_000_000,
            uptime_s=1.0, cameras={}, models={}, outbox_events=self.outbox.state.events,
        )  # fmt: skip
        self.publisher.set_health(msgspec.json.encode(health))

    def report(self) -> dict[str, Any]:
        """Return what the supervisor wants to know."""
        state = self.outbox.state
        return {
            "pending": state.events, "idle": self.outbox.idle(), "losses": state.losses, "refused": state.refused,
            "trouble": state.trouble, "status": self.publisher.status, "retakes": self.outbox.retakes,
        }  # fmt: skip


def run(fleet: FleetSpec) -> None:
    """Feed the boxes until told to stop."""
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    rate_hz, said_s, set_clock_s = fleet.rate_hz, 0.0, time.monotonic() + 6.0
    with ExitStack() as stack:
        witness = Witness(Path(fleet.ledger))
        stack.callback(witness.close)
        boxes = [Box(spec, fleet, witness) for spec in fleet.boxes]
        for box in boxes:
            stack.callback(box.publisher.stop)
            box.say_health()
            box.publisher.start()
        before_s = time.monotonic()
        while True:
            time.sleep(TURN_S)
            now_s = time.monotonic()
            while not orders.empty():
                order = orders.get()
                if order.get("stop"):
                    return
                rate_hz = order.get("rate_hz", rate_hz)
                for box in boxes:
                    box.offset_s = order.get("clock_offset_s", box.offset_s)
            if fleet.at_1970 and now_s > set_clock_s:
                set_clock_s = float("inf")
                for box in boxes:
                    box.offset_s, box.synchronized = 0.0, True
            for box in boxes:
                box.publisher.check()
                box.feed(now_s - before_s, rate_hz)
            before_s = now_s
            if now_s - said_s > 1.0:
                said_s = now_s
                print(json.dumps({box.name: box.report() for box in boxes}), flush=True)
                for box in boxes:
                    box.say_health()


def _listen(orders: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    orders.put({"stop": True})


def main(argv: list[str]) -> int:
    """Run the process described by a JSON file."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sabotage.apply(argv[1])
    fleet = msgspec.json.decode(Path(argv[2]).read_bytes(), type=FleetSpec)
    try:
        run(fleet)
    except OutboxError as error:
        print(error, file=sys.stderr)
        if "free at least" in str(error):
            return NO_ROOM
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
