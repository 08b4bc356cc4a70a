"""A client that says again what boxes said: duplicated, delayed, in another order. Driven by the supervisor."""

import heapq
import random
import threading
import time
from hashlib import blake2b

from edge.link import Link, LinkSettings, Message
from edge.wire import ROOT

MOST_S = 3.0


class Echo:
    """While `active`, repeats a share of all batches up to three times, seconds later and shuffled."""

    def __init__(self, port: int, rng: random.Random, share: float = 0.15) -> None:
        """Prepare; `start` connects to the broker at `port`."""
        self.active = False
        self.repeated = 0
        self._rng, self._share = rng, share
        self._lock = threading.Lock()
        self._due: list[tuple[float, str, bytes]] = []
        self._own: set[bytes] = set()
        self._link = Link(
            LinkSettings("127.0.0.1", "chaos-echo", port, "3.1.1", backoff_s=(0.2, 2.0)),
            on_message=self._hear,
            on_up=lambda *_: None,
            on_down=lambda _: None,
            subscriptions=[(f"{ROOT}/+/+/events", 0)],
        )

    def start(self) -> None:
        """Connect, in the background."""
        self._link.start()

    def stop(self) -> None:
        """Disconnect."""
        self._link.stop()

    def turn(self) -> None:
        """Say what is due."""
        now_s = time.monotonic()
        with self._lock:
            due = []
            while self._due and self._due[0][0] <= now_s:
                due.append(heapq.heappop(self._due))
        for _, name, payload in due:
            self.repeated += self._link.publish(name, payload, qos=1) is not None

    def _hear(self, message: Message) -> None:
        if not self.active or self._rng.random() > self._share:
            return
        mark = blake2b(message.payload, digest_size=8).digest()
        with self._lock:
            if mark not in self._own:
                self._own.add(mark)
                for _ in range(self._rng.randint(1, 3)):
                    at_s = time.monotonic() + self._rng.uniform(0.0, MOST_S)
                    heapq.heappush(self._due, (at_s, message.topic, message.payload))
