"""A centre that fits into a test: takes batches, remembers each event once, acknowledges what it holds."""

import threading
import time
from collections.abc import Callable
from typing import Self
from uuid import UUID

import msgspec

from edge.link import Link, LinkSettings, Message, Will
from edge.publish.ranges import Ranges
from edge.wire import ROOT, BoxState, BridgeState, Covered, Vocabulary, bridge_topic, decode_batch, encode_ack, topic

SITE, BOX = "lab", "box-1"
DATABASE = UUID("11111111-2222-3333-4444-555555555555")


def until(claim: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Wait until a claim comes true."""
    give_up_s = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < give_up_s, "did not come true in time"
        time.sleep(0.01)


class Centre:
    """A bridge with a dictionary for a database; `acks` and `database` may be changed under way."""

    def __init__(self, port: int, protocol: str, database: UUID = DATABASE, name: str = "b1", ack: bool = True) -> None:
        self.database, self.name, self.ack = database, name, ack
        self.acks = True  # whether it really answers
        self.rows: dict[tuple[int, int], bytes] = {}
        self.covered: dict[int, Ranges] = {}
        self.vocabularies: dict[int, Vocabulary] = {}
        self.messages: list[Message] = []
        self.states: list[BoxState] = []
        self.health: list[bytes] = []
        self.conflicts = self.duplicates = self.unknown_vocabulary = 0
        self._lock = threading.Lock()
        self.link = Link(
            LinkSettings(
                "127.0.0.1", f"centre-{name}", port, protocol,  # type: ignore[arg-type]
                will=Will(bridge_topic(name), self._state("offline")), backoff_s=(0.05, 0.3),
            ),
            on_message=self._message,
            on_up=lambda *_: self.say("accepting"),
            on_down=lambda _: None,
            subscriptions=[(f"{ROOT}/+/+/{kind}", 1) for kind in ("events", "state", "health")],
        )  # fmt: skip

    def __enter__(self) -> Self:
        self.link.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.link.stop((bridge_topic(self.name), self._state("offline"), 1, True))
        self.link.check()

    def say(self, state: str) -> None:
        self.link.publish(bridge_topic(self.name), self._state(state), qos=1, retain=True)

    def publish_ack(self, retain: bool = True) -> None:
        """Tell the box what is held."""
        with self._lock:
            said = tuple(_covered(stream, ranges) for stream, ranges in self.covered.items())
        self.link.publish(topic(SITE, BOX, "ack"), encode_ack(self.database, said), qos=1, retain=retain)

    def seqs(self, stream: int) -> list[int]:
        """Return which events of a stream are here."""
        return sorted(seq for s, seq in self.rows if s == stream)

    def _message(self, message: Message) -> None:
        if message.topic.endswith("/events"):
            self._batch(message)
        elif message.topic.endswith("/health"):
            self.health.append(message.payload)
        elif "/bridge/" not in message.topic:
            try:
                state = msgspec.json.decode(message.payload, type=BoxState)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                return
            self.states.append(state)
            if state.vocabulary is not None:
                self.vocabularies[state.vocabulary.digest()] = state.vocabulary

    def _batch(self, message: Message) -> None:
        self.messages.append(message)
        batch = decode_batch(message.payload)
        if batch.vocabulary is not None:
            assert batch.vocabulary.digest() == batch.vocabulary_digest
            self.vocabularies[batch.vocabulary_digest] = batch.vocabulary
        if batch.vocabulary_digest not in self.vocabularies:
            self.unknown_vocabulary += 1
            return
        with self._lock:
            for seq, event in enumerate(batch.events, batch.first_seq):
                row = msgspec.msgpack.encode((batch.base_ms, batch.clock, event))
                before = self.rows.setdefault((batch.stream, seq), row)
                self.duplicates += before is not row
                self.conflicts += before != row
                self.covered.setdefault(batch.stream, Ranges()).add(seq, seq)
        if self.acks:
            self.publish_ack()

    def _state(self, state: str) -> bytes:
        return msgspec.json.encode(BridgeState(state, self.name, str(self.database), self.ack))  # type: ignore[arg-type]


def _covered(stream: int, ranges: Ranges) -> Covered:
    runs = list(ranges)
    upto = runs.pop(0)[1] if runs and runs[0][0] == 1 else 0
    return Covered(stream, upto, tuple(number for run in runs for number in run))
