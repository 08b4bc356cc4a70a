"""Boxes of a simulated fleet with the real outbox and publisher: `python -m tests.bench.real_boxes SPEC`."""

import logging
import random
import secrets
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

from edge.link import LinkSettings
from edge.publish.outbox import Outbox
from edge.publish.publisher import Publisher, PublisherSettings
from edge.wire import stream_name
from tests.bench.fleet_boxes import (
    QUIET,
    SITE,
    VOCABULARY,
    BoxesSpec,
    Report,
    happening,
    health,
    name_of,
    next_pause_s,
    read_spec,
    say,
)

TURN_S = 0.05


class RealBox:
    """One box: outbox and publisher as in the product, events made up."""

    def __init__(self, number: int, spec: BoxesSpec) -> None:
        """Open the outbox and put the outage's events into it; `publisher.start` connects."""
        self.spec, self.rng, self.stream = spec, random.Random(number), secrets.randbits(63) or 1
        self.outbox = Outbox(Path(spec.folder) / name_of(number) / "outbox.db", stream=self.stream,
                             vocabulary=VOCABULARY)  # fmt: skip
        mono_ms = round(time.monotonic() * 1000)
        for begin in range(0, spec.backlog, spec.backlog_batch):
            ends = range(begin, begin + spec.backlog_batch)
            self.outbox.append([happening(i, spec.backlog_ms(i, mono_ms)) for i in ends])
            self.outbox.commit(time.monotonic())
        link = LinkSettings("127.0.0.1", "", spec.port, "5")
        self.publisher = Publisher(
            PublisherSettings(
                site=SITE, box=name_of(number), stream=self.stream, database=UUID(spec.database), link=link,
                heartbeat_s=spec.health_s, commit_s=spec.commit_s, boot="simulated", machine="simulated",
            ),
            self.outbox,
        )  # fmt: skip
        self.events = spec.backlog
        self.due_s = time.monotonic() + 2.0 + self.rng.random() / spec.rate_hz
        self.health_s = time.monotonic() + self.rng.random() * spec.health_s

    def turn(self, now_s: float, *, quiet: bool) -> None:
        """Let happen what is due; nobody passes by when it is `quiet`."""
        self.publisher.check()
        while self.due_s <= now_s and not quiet:
            self.outbox.append([happening(self.events, round(self.due_s * 1000))])
            self.events += 1
            self.due_s += next_pause_s(self.rng, self.spec.rate_hz)
        if self.health_s <= now_s:
            self.health_s = now_s + self.spec.health_s
            pending = self.outbox.state.events
            self.publisher.set_health(
                health(stream_name(self.stream), self.publisher.nonce, time.time_ns() // 1_000_000, pending)
            )


def run(spec: BoxesSpec) -> None:
    """Live until the orders end."""
    asked, ended, quiet = threading.Semaphore(0), threading.Event(), threading.Event()

    def listen() -> None:
        for line in sys.stdin.buffer:
            if QUIET in line:
                quiet.set()
            asked.release()
        ended.set()

    with ExitStack() as stack:
        boxes = [RealBox(spec.first + i, spec) for i in range(spec.count)]
        for box in boxes:
            stack.callback(box.publisher.stop)
            box.publisher.start()
        threading.Thread(target=listen, daemon=True).start()
        say(Report())  # the outage is on the disks
        while not ended.is_set():
            now_s = time.monotonic()
            for box in boxes:
                box.turn(now_s, quiet=quiet.is_set())
            while asked.acquire(blocking=False):
                say(report(boxes))
            time.sleep(TURN_S)


def report(boxes: list[RealBox]) -> Report:
    """Sum up. Messages, acks and bytes are the light boxes' to count: they send the same."""
    return Report(
        connected=sum(box.publisher.status in ("connected", "waiting for a bridge") for box in boxes),
        events=sum(box.events for box in boxes),
        pending=sum(box.outbox.state.events or not box.outbox.idle() for box in boxes),
        backlog=sum(min(box.spec.backlog, box.outbox.state.events) for box in boxes),
        cpu_s=time.process_time(),
    )


def main(argv: list[str]) -> int:
    """Be the boxes of a spec."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    run(read_spec(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
