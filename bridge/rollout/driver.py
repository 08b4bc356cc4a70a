"""Drives a roll-out: publishes offers, hears reports, writes progress, until it is done, stopped or aborted.

All state is in the database, so a driver that was killed is continued by the next one.
"""

import logging
import queue
import secrets
import threading
from collections.abc import Iterable
from dataclasses import replace

import msgspec

from bridge.errors import BridgeError
from bridge.rollout.plan import BoxState, after_report, next_move
from bridge.rollout.records import Records, Rollout
from edge.link import Link, LinkSettings, Message
from edge.wire import ROOT, FlashReport, WireError, parse_topic, topic

log = logging.getLogger(__name__)

TURN_S = 0.5
FAREWELL_S = 5.0
UNCOMMITTED = ("waiting", "offered", "taken", "rolled_back", "refused", "silent", "retired")


class Driver:
    """One roll-out and one broker connection.

    Args:
        records: the database.
        settings: of the bridge; the client id is replaced, and no will is left.
        rollout_id: which.
    """

    def __init__(self, records: Records, settings: LinkSettings, rollout_id: int) -> None:
        self._records, self._id = records, rollout_id
        self._heard: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._link = Link(
            replace(
                settings,
                client_id=f"facefleet-rollout-{secrets.token_hex(4)}",
                will=None,
                clean_start=True,
                session_expiry_s=0,
            ),
            on_message=self._heard.put,
            on_up=lambda *_: self._heard.put(None),
            on_down=lambda _: None,
            subscriptions=[(f"{ROOT}/+/+/flash", 1)],
        )

    def run(self, stop: threading.Event) -> Rollout:
        """Drive until the end; on `stop` leave it running in the database, to be continued."""
        self._link.start()
        try:
            while not stop.is_set():
                self._link.check()
                boxes = self._hear()
                rollout = self._records.get(self._id)
                if rollout.state != "running":
                    # A silent box of a roll-out that went well may still come back and take its offer.
                    self._withdraw(("committed", "retired") if rollout.state == "done" else UNCOMMITTED)
                    return rollout
                self._turn(rollout, boxes)
            return self._records.get(self._id)
        finally:
            self._link.stop()

    def _turn(self, rollout: Rollout, boxes: dict[tuple[str, str], BoxState]) -> None:
        move = next_move(list(boxes.values()), rollout.tolerated, rollout.patience_s)
        for name in move.silent:
            why = boxes[name].reason or f"said nothing for {rollout.patience_s} s"
            self._records.set_box(self._id, replace(boxes[name], state="silent", reason=why))
        if move.open_wave:
            log.info("wave %d", move.open_wave)
            self._records.open_wave(self._id, move.open_wave)
            self._offer()
        if move.end:
            self._records.end(self._id, move.end, move.reason)

    def _hear(self) -> dict[tuple[str, str], BoxState]:
        """Take in what came, for at most a turn; return where every box stands."""
        boxes = {(box.site, box.box): box for box in self._records.boxes(self._id)}
        timeout_s = TURN_S
        while True:
            try:
                message = self._heard.get(timeout=timeout_s)
            except queue.Empty:
                return boxes
            timeout_s = 0.0001
            if message is None:
                self._offer()
                continue
            try:
                site, name, _ = parse_topic(message.topic)
                report = msgspec.json.decode(message.payload, type=FlashReport)
            except (WireError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.warning("%s: %s", message.topic, error)
                continue
            before = boxes.get((site, name))
            if before is not None and (after := after_report(before, report)) != before:
                log.info("%s/%s: %s %s", site, name, after.state, after.reason)
                self._records.set_box(self._id, after)
                boxes[site, name] = after

    def _offer(self) -> None:
        for site, box, offer in self._records.offers(self._id, ("offered", "taken")):
            self._link.publish(topic(site, box, "offer"), msgspec.json.encode(offer), qos=1, retain=True)

    def _withdraw(self, states: Iterable[str]) -> None:
        """Take offers back; an empty retained message removes one from the broker."""
        give_up = threading.Event()
        for site, box, _ in self._records.offers(self._id, states):
            for _attempt in range(int(FAREWELL_S / 0.1)):
                if self._link.publish(topic(site, box, "offer"), b"", qos=1, retain=True) is not None:
                    break
                give_up.wait(0.1)
            else:
                raise BridgeError(f'the broker is away: the offer for {site}/{box} stands; run "rollout abort" again')
        give_up.wait(0.2)  # QoS 1 publishes are written by the link's thread
