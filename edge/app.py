"""The box as one process: cameras, publisher, live page, watchdog. Opened in order, closed in reverse.

Threads: one per camera, the publisher's, the MQTT link's, the live page's; this one turns slowly, feeds the watchdog
and gathers health. The config is read before, by the command line, and passed down as values.
"""

import logging
import os
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from edge.assembly import Models, build_pipeline, load_models, preview_token, source_spec
from edge.box import facts
from edge.box.preview import LivePage
from edge.box.status import EVERY_S, BoxStatus, CameraStatus, boottime_s, write_status
from edge.box.watchdog import Loop, stuck
from edge.camera import Camera, Observer, Timeline
from edge.capture import opencv
from edge.capture.frames import Source
from edge.capture.sources import open_source
from edge.config import Camera as CameraConfig
from edge.config import LoadedConfig
from edge.consent import heads_off
from edge.errors import ConfigError, EdgeError
from edge.notify import Notifier
from edge.publish.clock import BoxClock
from edge.publish.outbox import Outbox
from edge.publish.publisher import Publisher, publisher_settings
from edge.publish.roll_call import RollCall
from edge.wire import Health, stream_name

log = logging.getLogger(__name__)

TURN_S = 0.2
STUCK_S = 30.0  # a loop that has not turned for so long is stuck
CAPTURE_STUCK_S = 60.0  # a capture loop may wait for a silent camera in between
DELIVER_S = 30.0  # how long a box whose recordings ended waits for the last acks
LEAVE_S = 30.0  # how long all parts together may then take to let go: the unit's own TimeoutStopSec
CLOSE_S = 10.0  # how long a camera may take to let go
PAGE_S = 0.9  # the live page's status is gathered at most this often, however many watch


def run_box(
    config: LoadedConfig,
    *,
    observers: Sequence[Observer] = (),
    stop: threading.Event | None = None,
    on_ready: Callable[["Box"], None] | None = None,
) -> int:
    """Run a box until `stop`, or until its recordings end and are delivered.

    Args:
        config: The box.
        observers: Called with each frame's result, in the camera's thread.
        stop: Set to end; visits are closed, events committed, the death published.
        on_ready: Called once everything runs.

    Returns:
        0 when it ended as asked; 1 when events still wait in the outbox at the end of the recordings.

    Raises:
        DuplicateIdError: another box lives under this id.
        EdgeError: it cannot start, or a part died in a way that a restart may mend.
    """
    stop = stop or threading.Event()
    if config.has_own_tls:
        from edge.box.certificate import require  # only where there is a certificate: it costs memory

        require(config)
    opencv.quiet()  # before the first capture: FFmpeg would print addresses, and with them passwords
    notifier = Notifier()
    with ExitStack() as closing:
        with notifier.taking_long():
            box = Box(config, observers, closing)
        if (config.state_dir / "identity.json").is_file():  # flashed: it also takes what is offered
            from edge.flash.offers import Offers

            closing.enter_context(Offers(config))
        if config.has_own_tls:
            from edge.box.renewal import Renewal

            closing.enter_context(Renewal(config))
        notifier.ready(f"{len(box.cameras)} cameras, config {config.digest}")
        if on_ready:
            on_ready(box)
        box.turn_until(stop, notifier)
        notifier.stopping()
        return box.finish(stop, notifier)


class Box:
    """The running parts of a box; `closing` takes them apart again, last first."""

    def __init__(self, config: LoadedConfig, observers: Sequence[Observer], closing: ExitStack) -> None:
        self.config = config
        self.started_s = time.monotonic()
        self.stream = secrets.randbits(63) or 1
        _make_folder(config.state_dir)
        self.boots = facts.count_boot(config.state_dir)
        settings = publisher_settings(config, self.stream)
        token = preview_token(config)
        with RollCall(settings) as roll_call:
            self.models: Models = load_models(config, log=log.info)
            roll_call.conclude()
        self.clock = BoxClock()
        self.fed_at_s = boottime_s()
        self.last_health: Health | None = None
        self.outbox = Outbox(
            config.state_dir / "outbox.db",
            stream=self.stream,
            vocabulary=self.models.vocabulary,
            clock=self.clock,
            max_bytes=config.box.outbox.max_mb << 20,
            max_age_s=config.box.outbox.max_days * 86400,
            deflate=config.box.mqtt.deflate,
        )
        try:
            self.publisher = Publisher(settings, self.outbox)
        except BaseException:
            self.outbox.close()
            raise
        closing.callback(self.publisher.stop)  # closes the outbox, whether or not the rest could start
        self.cameras = [self._camera(i, observers) for i in range(len(config.box.cameras))]
        self.heads_off: dict[str, str] = {}
        self._heed_consents()
        self._page_lock, self._page_at_s = threading.Lock(), float("-inf")
        self._page_status: dict[str, Any] = {}
        self.page = self._live_page(token, closing)
        if self.page is not None:
            for camera in self.cameras:
                camera.add_observer(self.page.show)
        closing.callback(self._close)
        self.publisher.set_health(self._health_bytes())
        self.publisher.start()
        for camera in self.cameras:
            camera.start()

    def turn_until(self, stop: threading.Event, notifier: Notifier) -> None:
        """Feed the watchdog and gather health until asked to stop or all recordings have ended."""
        health_due_s, status_due_s, feed_s = 0.0, 0.0, (notifier.watchdog_s or 60.0) / 3
        fed_s, states = 0.0, ""
        while not stop.wait(TURN_S):
            now_s = time.monotonic()
            self.publisher.check()
            for camera in self.cameras:
                camera.check()
            self._heed_consents()
            if all(camera.done for camera in self.cameras):
                return
            if now_s - fed_s >= min(feed_s, 5.0) and not (late := self._stuck(now_s)):
                notifier.alive()
                fed_s, self.fed_at_s = now_s, boottime_s()
            elif now_s - fed_s >= STUCK_S and late:
                log.error("stuck: %s; the watchdog is no longer fed", ", ".join(late), extra={"EVENT": "stuck"})
                fed_s = now_s
            changed = self._states()
            if now_s >= health_due_s or changed != states:
                health_due_s, states, status_due_s = now_s + self.config.box.health_s, changed, 0.0
                self.publisher.set_health(self._health_bytes())
            if now_s >= status_due_s:
                status_due_s = now_s + EVERY_S
                write_status(self.config.state_dir, self.status())

    def finish(self, stop: threading.Event, notifier: Notifier) -> int:
        """After the recordings' end: report cameras that failed, wait for the last acks, and say that we do."""
        if stop.is_set():
            return 0  # a camera that had failed was told when it did
        failed = [camera for camera in self.cameras if camera.error is not None]
        if failed:
            raise EdgeError("; ".join(f"camera {camera.name}: {camera.error}" for camera in failed))
        deadline_s = time.monotonic() + DELIVER_S
        notifier.extend_timeout(DELIVER_S + LEAVE_S)
        while time.monotonic() < deadline_s and not stop.is_set():
            notifier.alive()
            if self.publisher.wait_delivered(TURN_S):
                return 0
        left = self.outbox.state.events
        log.warning("%d events wait in the outbox for a bridge; the next start sends them", left)
        return 1 if left else 0

    def health(self, reader: str = "") -> Health:
        """Gather what is known now; rates count from when the same reader asked last."""
        now_s, outbox = time.monotonic(), self.outbox.state
        wall_ms, clock = self.clock.stamp(now_s)
        return Health(
            stream=stream_name(self.stream),
            nonce=self.publisher.nonce,
            t_ms=wall_ms,
            uptime_s=round(now_s - self.started_s, 1),
            cameras={camera.name: camera.health(now_s, reader) for camera in self.cameras},
            models=self.models.health(self.heads_off),
            ack_age_s=self.publisher.ack_age_s,
            outbox_events=outbox.events,
            outbox_bytes=outbox.bytes,
            outbox_fill=round(outbox.fill, 4),
            outbox_oldest_s=round(outbox.oldest_s, 1),
            refused=outbox.refused,
            losses=outbox.losses,
            publisher=self.publisher.status,
            boot=facts.boot_id(),
            reboots=self.boots,
            temperature_c=facts.temperature_c(),
            throttled=facts.throttled(),
            disk_free_bytes=facts.disk_free_bytes(self.config.state_dir),
            rss_bytes=facts.rss_bytes(),
            certificate_days=self._certificate_days(),
            clock=clock.name.lower(),
            config_digest=self.config.digest,
            software=version("facefleet"),
            outbox_trouble=outbox.trouble or None,
        )

    def status(self) -> BoxStatus:
        """Say how this process fares, for the flasher beside it."""
        return BoxStatus(
            pid=os.getpid(),
            boot=facts.boot_id() or "",
            at_s=boottime_s(),
            fed_at_s=self.fed_at_s,
            nonce=self.publisher.nonce,
            config_digest=self.config.digest,
            publisher=self.publisher.status,
            cameras={c.name: CameraStatus(c.state, c.frames, c.inferred, _error(c)) for c in self.cameras},
            health=self.last_health,
            program=Path(sys.prefix).name,
        )

    def _health_bytes(self) -> bytes:
        self.last_health = self.health()
        return msgspec.json.encode(self.last_health)

    def _states(self) -> str:
        """Return what makes health worth sending before its time: a camera, publisher, disk or head changed state."""
        troubles = (self.publisher.status, self.outbox.state.trouble, *self.heads_off)
        return " ".join([*troubles, *(camera.state for camera in self.cameras)])

    def _heed_consents(self) -> None:
        """Silence the heads whose consents do not hold today, and say so once."""
        today = datetime.fromtimestamp(self.clock.stamp(time.monotonic())[0] / 1000, UTC).date()
        off, before = heads_off(self.config.box.heads, today), self.heads_off
        if off == before:
            return
        self.heads_off = off
        for camera in self.cameras:
            camera.switch_off(off)
        for name in off.keys() - before.keys():
            log.warning("head %s is off: %s", name, off[name], extra={"EVENT": "head_off"})
        for name in before.keys() - off.keys():  # the clock was wrong before
            log.info("head %s is on: its consents hold", name, extra={"EVENT": "head_on"})

    def _certificate_days(self) -> float | None:
        tls = self.config.tls_files()
        return facts.certificate_days(tls.cert) if tls and tls.cert else None

    def _stuck(self, now_s: float) -> list[str]:
        running = [camera for camera in self.cameras if not camera.done]
        loops = [Loop(f"camera {c.name}", c.turned_at_s) for c in running]
        captures = [Loop(f"capture {c.name}", c.capture_turned_at_s) for c in running]
        publisher = Loop("publisher", self.publisher.turned_at_s)
        silent_s = max(c.source.silence_s for c in self.config.box.cameras)
        return stuck([*loops, publisher], now_s, STUCK_S) + stuck(captures, now_s, silent_s + CAPTURE_STUCK_S)

    def _camera(self, index: int, observers: Sequence[Observer]) -> Camera:
        config = self.config.box.cameras[index]
        spec = source_spec(self.config, config)
        period_s = self.config.box.presence_s
        grid_s = time.monotonic() - time.time() % period_s
        pipeline = build_pipeline(self.config, index, self.models, random.SystemRandom(), grid_s=grid_s)
        return Camera(
            config.id,
            lambda: open_source(spec, name=config.id),
            pipeline,
            lambda source: timeline(config, source),
            self.outbox.append,
            observers,
            realtime=config.source.realtime,
        )

    def _live_page(self, token: str | None, closing: ExitStack) -> LivePage | None:
        settings = self.config.box.preview
        if not settings.enabled:
            return None
        names = tuple(camera.name for camera in self.cameras)
        title = f"{self.config.box.site}/{self.config.box.box}"
        page = closing.enter_context(LivePage(settings, title, names, self._status, token))
        log.info("live page on %s", page.url)
        return page

    def _status(self) -> dict[str, Any]:
        with self._page_lock:
            now_s = time.monotonic()
            if now_s - self._page_at_s >= PAGE_S:
                self._page_status, self._page_at_s = msgspec.to_builtins(self.health("live page")), now_s
            return self._page_status

    def _close(self) -> None:
        for camera in self.cameras:
            camera.stop()
        for camera in self.cameras:
            if not camera.join(CLOSE_S):
                log.error("camera %s did not let go within %g s", camera.name, CLOSE_S)
        self.publisher.set_health(self._health_bytes())


def _error(camera: Camera) -> str | None:
    return str(camera.error) if camera.error else None


def timeline(camera: CameraConfig, source: Source) -> Timeline:
    """Place a source on the process's timeline: live frames as captured, a recording as if it ended just now.

    A recording is read faster than it was made, and events of the future would go to quarantine; so it begins its own
    length ago, or when the config says it was recorded.
    """
    now_s = time.monotonic()
    if source.live:
        return Timeline(0.0, live=True)
    if camera.source.recorded_at is not None:
        ago_s = time.time() - camera.source.recorded_at.timestamp()
        if ago_s < 0:
            raise ConfigError(f"source.recorded_at lies {-ago_s:.0f} s in the future; correct it, or this box's clock")
        return Timeline(now_s - ago_s, live=False)
    return Timeline(now_s if camera.source.realtime else now_s - (source.duration_s or 0.0), live=False)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"state_dir {folder} cannot be made ({error.strerror}); name a folder you may write"
        ) from error
