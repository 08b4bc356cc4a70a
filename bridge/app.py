"""One bridge process: the MQTT connection, the writer, its own state on the broker. Driven by cli.py and local.py."""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from bridge.config import BridgeConfig, full_dsn, link_settings
from bridge.counts import Counts
from bridge.store import Store
from bridge.subscriber import Status, Subscriber
from edge.link import Link, Will
from edge.wire import ROOT, BridgeState, bridge_topic

log = logging.getLogger(__name__)

TURN_S = 0.5
REPORT_S = 60.0


class Bridge:
    """Everything of one bridge, between `run` and the moment its `stop` is set."""

    def __init__(
        self,
        config: BridgeConfig,
        base: Path,
        *,
        rng: random.Random | None = None,
        backoff_s: tuple[float, float] = (0.2, 15.0),
        stop_retry_s: float = 30.0,
    ) -> None:
        """Make the parts; nothing connects yet.

        Args:
            config: of this bridge.
            base: folder of the config file, for relative paths and credentials.
            rng: for the jitter of both connections.
            backoff_s: first and longest wait while the database is away.
            stop_retry_s: how often to ask again after a database error that only a person can mend.

        Raises:
            ConfigError: a credential is nowhere to be found.
            LinkError: the TLS files do not fit.
        """
        self._config = config
        dsn = full_dsn(config, base)
        self._topic = bridge_topic(config.id)
        self._wake = threading.Event()
        self._linked = False  # whether the network thread was started
        self._subscriber = Subscriber(
            lambda: Store(dsn, retention_days=config.retention_days, registry=config.registry),
            ack=config.ack,
            database=config.database_uuid,
            on_status=lambda _: self._wake.set(),
            queue_bytes=config.queue_mb << 20,
            rng=rng,
            backoff_s=backoff_s,
            stop_retry_s=stop_retry_s,
        )
        self._link = Link(
            link_settings(config, base, Will(self._topic, self._state("offline"))),
            on_message=self._subscriber.on_message,
            on_up=lambda *_: self._wake.set(),
            on_down=lambda _: None,
            subscriptions=subscriptions(config.sites),
            manual_ack=True,
            rng=rng,
        )

    @property
    def status(self) -> Status:
        """Whether events are written now."""
        return self._subscriber.status

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        return self._link.connected

    @property
    def counts(self) -> Counts:
        """What went through so far."""
        return self._subscriber.counts

    @property
    def held_bytes(self) -> int:
        """What waits to be written."""
        return self._subscriber.inbox.bytes

    @property
    def turned_at_s(self) -> float:
        """When the network thread last turned, on the monotonic clock; it also turns while the broker is away."""
        return self._link.turned_at_s if self._linked else time.monotonic()

    def run(self, stop: threading.Event, *, watch: Callable[[], None] = lambda: None) -> None:
        """Bridge until `stop` is set; `watch` is called twice a second and may raise to end it.

        Raises:
            StoreError: the database refuses us at the start: a grant or a table is missing.
            ConfigError: it is another database than the config names.
            LinkDied: the network thread ended, which is a mistake of ours.
        """
        self._subscriber.start(self._link)
        said: tuple[int, Status] | None = None
        reported, report_at_s = "", time.monotonic() + REPORT_S
        try:
            while not stop.is_set():
                self._link.check()
                self._subscriber.check()
                watch()
                if not self._linked:
                    self._start_link()
                said = self._say_state(said)
                if time.monotonic() > report_at_s:
                    report_at_s += REPORT_S
                    if (report := str(self.counts)) != reported:
                        log.info("%s", report)
                        reported = report
                self._wake.wait(TURN_S)
                self._wake.clear()
        finally:
            self._subscriber.stop()
            self._link.stop(farewell=(self._topic, self._state("offline"), 1, True))
            log.info("stopped: %s", str(self.counts) or "nothing came")

    def _start_link(self) -> None:
        """Connect to the broker, but not before the will can name our database: boxes heed no other (P18)."""
        if self._subscriber.database is None:
            return
        self._link.settings = replace(self._link.settings, will=Will(self._topic, self._state("offline")))
        self._link.turned_at_s = time.monotonic()  # it stood still until now
        self._link.start()
        self._linked = True

    def _say_state(self, said: tuple[int, Status] | None) -> tuple[int, Status] | None:
        """Publish our state once per connection and per change; one thread does it, so none overtakes another."""
        now = (self._link.generation, self.status)
        if now == said or not self._link.connected:
            return said
        sent = self._link.publish(self._topic, self._state(now[1]), qos=1, retain=True)
        return said if sent is None else now

    def _state(self, state: Literal["accepting", "paused", "offline"]) -> bytes:
        database = str(self._subscriber.database or "")
        now_ms = time.time_ns() // 1_000_000
        return msgspec.json.encode(BridgeState(state, self._config.id, database, self._config.ack, now_ms))


def subscriptions(sites: tuple[str, ...]) -> list[tuple[str, int]]:
    """Return the topic filters of a bridge for these sites; none named means all."""
    return [
        (f"{ROOT}/{site}/+/{kind}", qos)
        for site in sites or ("+",)
        for kind, qos in (("state", 1), ("events", 1), ("health", 0))
    ]
