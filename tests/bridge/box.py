"""A box reduced to what the bridge sees of one: hand-made batches, an unacked set, resends. For end-to-end tests."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import msgspec

from edge.link import Link, LinkSettings, Message
from edge.wire import (
    SCHEMA,
    Batch,
    BoxState,
    BridgeState,
    Ended,
    Vocabulary,
    bridge_topic,
    decode_ack,
    encode_batch,
    stream_name,
    topic,
)

VOCABULARY = Vocabulary(cameras=("door",))


def wait_until(true: Callable[[], bool], timeout_s: float = 20.0, what: str = "it") -> None:
    """Return as soon as `true()` is; fail after `timeout_s`."""
    give_up_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < give_up_s, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(0.02)


def visits(stream: int, first_seq: int, count: int, now_ms: int | None = None) -> Batch:
    """Return a batch of `count` ended visits, one track each; the same arguments give the same bytes."""
    base_ms = now_ms if now_ms is not None else time.time_ns() // 1_000_000 - 60_000
    events = tuple(
        Ended(0, first_seq + i, -1000, 900 + i, 0, 100, 100, 900, 900, 300, 400, 200, 20) for i in range(count)
    )
    return Batch(SCHEMA, stream, first_seq, base_ms, 0, VOCABULARY.digest(), events)


@dataclass(frozen=True, slots=True)
class SeenAck:
    """An ack as the box heard it."""

    at_s: float
    database: UUID
    upto: dict[int, int]


class FakeBox:
    """Publishes batches once, keeps them until an ack covers them, and sends them again on demand."""

    def __init__(
        self, port: int, *, site: str = "lab", box: str = "b1", stream: int, protocol: str = "5", bridge: str = "local"
    ) -> None:
        self.site, self.box, self.stream = site, box, stream
        self.acks: list[SeenAck] = []
        self.states: list[str] = []
        self.databases: list[str] = []
        self.unacked: dict[int, Batch] = {}
        self._next_seq = 1
        self._lock = threading.Lock()
        self._bridge_topic = bridge_topic(bridge)
        self.link = Link(
            LinkSettings(
                host="127.0.0.1",
                port=port,
                client_id=f"facefleet-{site}-{box}",
                protocol="5" if protocol == "5" else "3.1.1",
                backoff_s=(0.1, 0.5),
            ),
            on_message=self._hear,
            on_up=lambda *_: None,
            on_down=lambda _: None,
            subscriptions=[(topic(site, box, "ack"), 1), (self._bridge_topic, 1)],
            rng=random.Random(stream),
        )

    def __enter__(self) -> "FakeBox":
        self.link.start()
        wait_until(lambda: self.link.connected, what="the box's connection")
        return self

    def __exit__(self, *_: object) -> None:
        self.link.stop()
        self.link.check()

    def birth(self) -> None:
        """Publish the birth, which carries the vocabulary."""
        state = BoxState("online", stream_name(self.stream), "boot", "machine", "nonce", vocabulary=VOCABULARY)
        self.publish("state", msgspec.json.encode(state), retain=True)

    def send(self, count: int = 10) -> Batch:
        """Publish the next `count` events, with the vocabulary as a resend has it."""
        with self._lock:
            batch = replace_vocabulary(visits(self.stream, self._next_seq, count))
            self.unacked[self._next_seq] = batch
            self._next_seq += count
        self.publish("events", encode_batch(batch))
        return batch

    def resend(self) -> None:
        """Publish what no ack covers yet."""
        with self._lock:
            batches = list(self.unacked.values())
        for batch in batches:
            self.publish("events", encode_batch(batch))

    def settle(self, timeout_s: float = 30.0, every_s: float = 1.5) -> None:
        """Resend until everything is acked."""
        give_up_s = time.monotonic() + timeout_s
        while self.unacked:
            assert time.monotonic() < give_up_s, f"{len(self.unacked)} batches unacked after {timeout_s:g} s"
            self.resend()
            next_s = time.monotonic() + every_s
            while self.unacked and time.monotonic() < next_s:
                time.sleep(0.02)

    def publish(self, kind: str, payload: bytes, retain: bool = False) -> bool:
        """Publish raw bytes on one of the box's topics; False when there is no connection."""
        name = f"facefleet/1/{self.site}/{self.box}/{kind}"
        return self.link.publish(name, payload, qos=0 if kind == "health" else 1, retain=retain) is not None

    @property
    def sent(self) -> int:
        """How many events have been made so far."""
        return self._next_seq - 1

    def _hear(self, message: Message) -> None:
        if message.topic == self._bridge_topic:
            state = msgspec.json.decode(message.payload, type=BridgeState)
            self.databases.append(state.database)
            self.states.append(state.state)
            return
        ack = decode_ack(message.payload)
        upto = {c.stream: c.upto for c in ack.covered}
        self.acks.append(SeenAck(time.monotonic(), UUID(bytes=ack.database), upto))
        with self._lock:
            for covered in ack.covered:
                if covered.stream != self.stream:
                    continue
                pairs = [(1, covered.upto), *zip(covered.ranges[::2], covered.ranges[1::2], strict=True)]
                for first_seq, batch in list(self.unacked.items()):
                    last = first_seq + len(batch.events) - 1
                    if any(low <= first_seq and last <= high for low, high in pairs):
                        del self.unacked[first_seq]


def replace_vocabulary(batch: Batch) -> Batch:
    """Return the batch as a resend carries it."""
    return msgspec.structs.replace(batch, vocabulary=VOCABULARY)
