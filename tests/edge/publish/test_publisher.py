"""The box's end of the wire against real brokers and a centre that fits into a test."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import msgspec
import pytest

from edge.link import Link, LinkDied, LinkSettings, Message
from edge.publish.delivery import DeliverySettings
from edge.publish.outbox import Outbox
from edge.publish.publisher import Publisher, PublisherSettings
from edge.wire import (
    BoxState,
    BridgeState,
    Covered,
    Head,
    Presence,
    Vocabulary,
    bridge_topic,
    decode_batch,
    encode_ack,
    stream_name,
    topic,
)
from tests.bench.bytes import STREAM, visit, wire_bytes
from tests.broker import MOSQUITTO, Amqtt, Mosquitto
from tests.edge.publish.centre import BOX, DATABASE, SITE, Centre, until
from tests.edge.publish.tap import PUBACK, PUBLISH, Tap

Protocol = Literal["5", "3.1.1"]
Wired = tuple[Mosquitto | Amqtt, Protocol]
WORDS = Vocabulary(("cam",), (Head("age", ("young", "old")),))
FOREIGN = UUID(int=77)
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


def events(count: int) -> list[Presence]:
    now_ms = round(time.monotonic() * 1000)
    return [Presence(0, now_ms + i, 60_000, 1, 500, 1) for i in range(count)]


class Box:
    """An outbox and a publisher with short times."""

    def __init__(self, folder: Path, port: int, protocol: Protocol, stream: int = 7, **settings: Any) -> None:
        self.outbox = Outbox(folder / f"outbox-{stream}.db", stream=stream, vocabulary=WORDS, reserve_bytes=0)
        mine = {
            "heartbeat_s": 0.5,
            "commit_s": 0.02,
            "linger_s": 0.3,
            "delivery": DeliverySettings(resend_s=0.6, backlog_per_s=10_000),
        } | settings
        link = LinkSettings("127.0.0.1", "", port, protocol, backoff_s=(0.05, 0.3), keep_alive_s=5)
        self.publisher = Publisher(PublisherSettings(SITE, BOX, stream, DATABASE, link, **mine), self.outbox)
        self.publisher.set_health(msgspec.json.encode({"nonce": self.publisher.nonce}))

    def append(self, count: int) -> None:
        self.outbox.append(events(count))

    def delivered(self, timeout_s: float = 15.0) -> bool:
        return self.publisher.wait_delivered(timeout_s)


@contextmanager
def a_box(folder: Path, port: int, protocol: Protocol, **settings: Any) -> Iterator[Box]:
    box = Box(folder, port, protocol, **settings)
    box.publisher.start()
    try:
        yield box
    finally:
        box.publisher.stop()
        box.publisher.check()


@contextmanager
def a_voice(port: int, protocol: Protocol, *filters: str) -> Iterator[tuple[Link, list[Message]]]:
    """Publish and listen as a stranger."""
    heard: list[Message] = []
    link = Link(
        LinkSettings("127.0.0.1", f"voice-{time.monotonic_ns()}", port, protocol, backoff_s=(0.05, 0.3)),
        on_message=heard.append, on_up=lambda *_: None, on_down=lambda _: None,
        subscriptions=[(name, 1) for name in filters],
    )  # fmt: skip
    link.start()
    until(lambda: link.connected)
    try:
        yield link, heard
    finally:
        link.stop()


def test_p36_every_event_arrives_once_and_is_acked(wired: Wired, tmp_path: Path) -> None:
    port, protocol = wired[0].port, wired[1]
    with Centre(port, protocol) as centre, a_box(tmp_path, port, protocol) as box:
        for _ in range(20):
            box.append(37)
        assert box.delivered()
        assert centre.seqs(7) == list(range(1, 741))
        assert (centre.conflicts, box.outbox.state.events, box.publisher.status) == (0, 0, "connected")
        assert box.publisher.ack_age_s is not None


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@needs_mosquitto
def test_p9_a_visit_costs_on_the_wire_what_the_table_of_bytes_says(protocol: Protocol, tmp_path: Path) -> None:
    """Counted between box and broker: both batches, their PUBACKs, an ack for each. Only the first names its topic."""
    one = visit(random.Random(3))
    with (
        Mosquitto(tmp_path) as broker,
        Tap(broker.port) as tap,
        Centre(broker.port, protocol) as centre,
        a_box(tmp_path, tap.port, protocol, stream=STREAM, heartbeat_s=600.0) as box,
    ):
        box.append(1)
        assert box.delivered()
        before = tap.bytes_of(PUBLISH, PUBACK)
        for event in one.events:
            box.outbox.append([event])
            assert box.delivered()
        settled = before + wire_bytes(one, protocol=protocol, seq=2, box=(SITE, BOX))
        until(lambda: tap.bytes_of(PUBLISH, PUBACK) == settled)
        assert centre.seqs(STREAM) == [1, 2, 3]


def test_p36_a_broker_killed_under_way_costs_nothing(wired: Wired, tmp_path: Path) -> None:
    """SIGKILL, without persistence: whatever the broker had acknowledged is gone."""
    broker, protocol = wired
    with Centre(broker.port, protocol) as centre, a_box(tmp_path, broker.port, protocol) as box:
        feeding = threading.Event()

        def feed() -> None:
            while not feeding.wait(0.005):
                box.append(3)

        feeder = threading.Thread(target=feed)
        feeder.start()
        for _ in range(3):
            time.sleep(0.4)
            broker.kill()
            time.sleep(0.2)
            broker.start()
        feeding.set()
        feeder.join()
        assert box.delivered()
        assert centre.seqs(7) == list(range(1, box.outbox.state.accepted + 1))
        assert centre.conflicts == 0


def test_broker_down_at_start_is_a_state_and_not_an_error(tmp_path: Path) -> None:
    broker = (Mosquitto if MOSQUITTO else Amqtt)(tmp_path)
    with a_box(tmp_path, broker.port, "3.1.1") as box:
        box.append(5)
        until(lambda: box.publisher.status == "disconnected: Connection refused")
        until(lambda: box.outbox.state.events == 5)
        box.publisher.check()
        with broker:
            until(lambda: box.publisher.status == "waiting for a bridge")
            with Centre(broker.port, "3.1.1") as centre:
                assert box.delivered()
                assert centre.seqs(7) == [1, 2, 3, 4, 5]


def test_p13_a_box_killed_under_way_sends_the_rest_in_its_next_life(broker: Mosquitto | Amqtt, tmp_path: Path) -> None:
    """The child appends and publishes until it is killed; its outbox is opened by the next life."""
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from tests.edge.publish.test_publisher import Box\n"
        "box = Box(Path(sys.argv[1]), int(sys.argv[2]), '3.1.1', int(sys.argv[3]))\n"
        "box.publisher.start()\n"
        "while True:\n    box.append(2); time.sleep(0.002); print(box.outbox.state.accepted, flush=True)\n"
    )
    root = Path(__file__).resolve().parents[3]
    with Centre(broker.port, "3.1.1") as centre:
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(broker.port), "7"],
            stdout=subprocess.PIPE, cwd=root, env=os.environ | {"PYTHONPATH": str(root)},
        )  # fmt: skip
        assert child.stdout is not None
        accepted = 0
        while accepted < 200:
            accepted = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        accepted = max([accepted, *map(int, child.stdout.read().split(b"\n")[:-1])])
        child.wait()
        child.stdout.close()
        (tmp_path / "outbox-7.db").rename(tmp_path / "outbox-8.db")
        (tmp_path / "outbox-7.db-wal").rename(tmp_path / "outbox-8.db-wal")
        with a_box(tmp_path, broker.port, "3.1.1", stream=8) as box:
            assert box.delivered()
        assert centre.seqs(7) == list(range(1, len(centre.seqs(7)) + 1))
        assert len(centre.seqs(7)) >= accepted
        assert centre.conflicts == 0


def test_p8_the_first_sending_leaves_the_vocabulary_to_the_birth_and_every_resend_carries_it(
    broker: Mosquitto | Amqtt, tmp_path: Path
) -> None:
    with Centre(broker.port, "3.1.1") as centre, a_box(tmp_path, broker.port, "3.1.1") as box:
        until(lambda: bool(centre.states))
        assert centre.states[0].vocabulary == WORDS
        centre.acks = False
        box.append(3)
        until(lambda: len(centre.messages) >= 2)
        first, again = (decode_batch(message.payload) for message in centre.messages[:2])
        assert (first.vocabulary, again.vocabulary) == (None, WORDS)
        assert first.events == again.events


def test_p8_a_bridge_that_missed_the_birth_gets_the_vocabulary_with_the_resend(
    broker: Mosquitto | Amqtt, tmp_path: Path
) -> None:
    with Centre(broker.port, "3.1.1") as centre, a_box(tmp_path, broker.port, "3.1.1") as box:
        until(lambda: bool(centre.states))
        centre.vocabularies.clear()
        box.append(3)
        assert box.delivered()
        assert centre.unknown_vocabulary == 1
        assert centre.seqs(7) == [1, 2, 3]


@pytest.mark.parametrize("why", ["no bridge", "paused", "another database", "ack: false", "a dead bridge"])
def test_p19_no_events_leave_unless_a_bridge_of_our_database_accepts(
    broker: Mosquitto | Amqtt, tmp_path: Path, why: str
) -> None:
    state: dict[str, dict[str, Any]] = {
        "no bridge": {},
        "paused": {"state": "paused"},
        "another database": {"database": str(FOREIGN)},
        "ack: false": {"ack": False},
        "a dead bridge": {"state": "offline"},
    }
    says = {"state": "accepting", "bridge": "b", "database": str(DATABASE), "ack": True} | state[why]
    with (
        a_voice(broker.port, "3.1.1", topic(SITE, BOX, "events")) as (voice, heard),
        a_box(tmp_path, broker.port, "3.1.1") as box,
    ):
        if state[why]:
            voice.publish(bridge_topic("b"), msgspec.json.encode(BridgeState(**says)), qos=1, retain=True)
        box.append(3)
        until(lambda: box.outbox.state.events == 3)
        time.sleep(0.4)
        assert heard == []
        assert box.publisher.status == "waiting for a bridge"
        says |= {"state": "accepting", "database": str(DATABASE), "ack": True}
        voice.publish(bridge_topic("b"), msgspec.json.encode(BridgeState(**says)), qos=1, retain=True)
        until(lambda: bool(heard))


def test_p18_acks_of_a_staging_bridge_on_the_same_broker_delete_nothing(
    broker: Mosquitto | Amqtt, tmp_path: Path
) -> None:
    with Centre(broker.port, "3.1.1") as centre, a_box(tmp_path, broker.port, "3.1.1") as box:
        centre.acks = False
        box.append(3)
        until(lambda: bool(centre.messages))
        with a_voice(broker.port, "3.1.1") as (voice, _):
            voice.publish(topic(SITE, BOX, "ack"), encode_ack(FOREIGN, (Covered(7, 3),)), qos=1)
            time.sleep(0.3)
            assert box.outbox.state.events == 3
            voice.publish(topic(SITE, BOX, "ack"), encode_ack(DATABASE, (Covered(7, 3),)), qos=1)
        assert box.delivered()


def test_p20_unacked_batches_go_again_after_their_time_on_connect_and_on_a_bridges_birth(
    broker: Mosquitto | Amqtt, tmp_path: Path
) -> None:
    slow = DeliverySettings(resend_s=60.0)
    with (
        Centre(broker.port, "3.1.1") as centre,
        a_box(tmp_path, broker.port, "3.1.1", delivery=slow) as box,
    ):
        until(lambda: box.publisher.status == "connected")
        centre.acks = False
        box.append(1)
        until(lambda: len(centre.messages) == 1)
        centre.say("paused")
        centre.say("accepting")
        until(lambda: len(centre.messages) == 2)
        broker.kill()
        broker.start()
        until(lambda: len(centre.messages) >= 3)
        centre.acks = True
        centre.publish_ack()
        assert box.delivered()


@needs_mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_p22_batches_in_flight_stay_below_the_brokers_window(tmp_path: Path, protocol: Protocol) -> None:
    """The broker says 6 (MQTT 5) or cannot say (3.1.1); 300 batches wait. What was in flight at most is counted."""
    with (
        Mosquitto(tmp_path, extra="max_inflight_messages 6\nmax_queued_messages 0") as broker,
        Centre(broker.port, protocol) as centre,
    ):
        box = Box(tmp_path, broker.port, protocol, delivery=DeliverySettings(backlog_per_s=1e6, unacked=1000))
        for _ in range(300):
            box.append(1)
            box.outbox.commit(time.monotonic())
        most = 0
        delivery = box.publisher._delivery
        sent = delivery.sent

        def counting(*args: Any) -> None:
            nonlocal most
            sent(*args)
            most = max(most, len(delivery._in_flight))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(delivery), "sent", lambda _, *args: counting(*args))
            box.publisher.start()
            assert box.delivered()
            box.publisher.stop()
        assert centre.seqs(7) == list(range(1, 301))
        assert 1 <= most <= (6 if protocol == "5" else 20)


def test_p26_birth_first_will_when_killed_goodbye_when_stopped(wired: Wired, tmp_path: Path) -> None:
    port, protocol = wired[0].port, wired[1]
    name = topic(SITE, BOX, "state")
    with a_voice(port, protocol, f"facefleet/1/{SITE}/{BOX}/+") as (_, heard):
        with a_box(tmp_path, port, protocol, boot="boot-1", machine="m", software="1.2", config_digest="abc") as box:
            until(lambda: bool(heard))
            assert heard[0].topic == name
            birth = msgspec.json.decode(heard[0].payload, type=BoxState)
            assert (birth.state, birth.vocabulary, birth.software, birth.config_digest) == (
                "online", WORDS, "1.2", "abc",
            )  # fmt: skip
            nonce = box.publisher.nonce
        states = [msgspec.json.decode(m.payload, type=BoxState) for m in heard if m.topic == name]
        until(lambda: [m for m in heard if m.topic == name][-1].payload.find(b'"shutdown"') > 0)
        states = [msgspec.json.decode(m.payload, type=BoxState) for m in heard if m.topic == name]
        assert [(s.state, s.reason) for s in states] == [("online", ""), ("offline", "shutdown")]
        for state in states:  # P27
            assert (state.stream, state.boot, state.machine, state.nonce) == (stream_name(7), "boot-1", "m", nonce)
    with a_voice(port, protocol, name) as (_, heard):
        until(lambda: bool(heard))
        assert heard[0].retain, "whoever comes later learns it too"


def test_p26_the_will_speaks_for_a_box_that_vanishes(broker: Mosquitto | Amqtt, tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tests.edge.publish.test_publisher import Box\n"
        "box = Box(Path(sys.argv[1]), int(sys.argv[2]), '3.1.1')\nbox.publisher.start()\ntime.sleep(60)\n"
    )
    root = Path(__file__).resolve().parents[3]
    with a_voice(broker.port, "3.1.1", topic(SITE, BOX, "state")) as (_, heard):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(broker.port)],
            cwd=root, env=os.environ | {"PYTHONPATH": str(root)},
        )  # fmt: skip
        until(lambda: bool(heard))
        child.kill()
        child.wait()
        until(lambda: len(heard) == 2)
        birth, death = (msgspec.json.decode(m.payload, type=BoxState) for m in heard)
        assert (death.state, death.reason) == ("offline", "vanished")
        assert (death.stream, death.nonce) == (birth.stream, birth.nonce)


def test_p27_a_box_that_hears_its_own_death_says_that_it_lives(broker: Mosquitto | Amqtt, tmp_path: Path) -> None:
    """A will of a connection that was half open may come after the birth of the next."""
    name = topic(SITE, BOX, "state")
    with a_voice(broker.port, "3.1.1", name) as (voice, heard), a_box(tmp_path, broker.port, "3.1.1") as box:
        until(lambda: bool(heard))
        time.sleep(0.6)
        will = BoxState("offline", stream_name(7), "", "", box.publisher.nonce, "vanished")
        voice.publish(name, msgspec.json.encode(will), qos=1, retain=True)
        until(lambda: len(heard) >= 3)
        assert msgspec.json.decode(heard[-1].payload, type=BoxState).state == "online"


def test_p26_birth_that_no_bridge_answers_is_said_again_until_one_does(
    broker: Mosquitto | Amqtt, tmp_path: Path
) -> None:
    delivery = DeliverySettings(resend_s=0.3)
    with Centre(broker.port, "3.1.1") as centre, a_box(tmp_path, broker.port, "3.1.1", delivery=delivery):
        until(lambda: len(centre.states) >= 3)
        assert {state.state for state in centre.states} == {"online"}
        answer = encode_ack(DATABASE, (Covered(7, 0),), complete=True)
        centre.link.publish(topic(SITE, BOX, "ack"), answer, qos=1, retain=True)
        time.sleep(0.5)  # what was under way
        said = len(centre.states)
        time.sleep(3.0)  # the next one would have been due
        assert len(centre.states) == said


def test_p30_health_goes_each_heartbeat_and_on_change(broker: Mosquitto | Amqtt, tmp_path: Path) -> None:
    name = topic(SITE, BOX, "health")
    with a_voice(broker.port, "3.1.1", name) as (_, heard), a_box(tmp_path, broker.port, "3.1.1") as box:
        until(lambda: len(heard) >= 3)
        assert all((m.qos, m.retain) == (0, False) for m in heard)
        box.publisher.set_health(b'{"nonce":"x","changed":true}')
        until(lambda: heard[-1].payload.find(b"changed") > 0)


@needs_mosquitto
def test_p30_with_mqtt_5_health_expires_after_two_heartbeats(tmp_path: Path) -> None:
    """A reader that was away for longer finds nothing stale in its queue."""
    with Mosquitto(tmp_path, extra="queue_qos0_messages true") as broker:
        settings = LinkSettings(
            "127.0.0.1", "reader", broker.port, "5", clean_start=False, session_expiry_s=60, backoff_s=(0.05, 0.1)
        )
        heard: list[Message] = []

        def reader() -> Link:
            link = Link(
                settings, on_message=heard.append, on_up=lambda *_: None, on_down=lambda _: None,
                subscriptions=[(topic(SITE, BOX, "health"), 0)],
            )  # fmt: skip
            link.start()
            until(lambda: link.connected)
            return link

        reader().stop()
        with a_box(tmp_path, broker.port, "5") as box:
            until(lambda: box.publisher.status == "waiting for a bridge")
            time.sleep(0.1)
        time.sleep(2.2)
        again = reader()
        time.sleep(0.3)
        again.stop()
        assert heard == []


def test_p29_twins_on_one_broker_the_younger_falls_silent_and_keeps_its_events(wired: Wired, tmp_path: Path) -> None:
    port, protocol = wired[0].port, wired[1]
    with Centre(port, protocol) as centre, a_box(tmp_path, port, protocol) as old:
        until(lambda: old.publisher.status == "connected")
        time.sleep(0.05)
        with a_box(tmp_path, port, protocol, stream=8) as young:
            until(lambda: young.publisher.status == "duplicate_id", 30.0)
            young.append(4)
            old.append(4)
            assert old.delivered()
            time.sleep(1.5)
            assert young.publisher.status == "duplicate_id"
            assert young.outbox.state.events == 4
            assert (len(centre.seqs(7)), centre.seqs(8)) == (4, [])
            old.publisher.stop()
            assert young.delivered(30.0), "and speaks when it is alone"
            assert len(centre.seqs(8)) == 4


def test_p37_an_ack_of_an_older_connection_is_dropped(broker: Mosquitto | Amqtt, tmp_path: Path) -> None:
    with a_box(tmp_path, broker.port, "3.1.1") as box:
        box.append(2)
        until(lambda: box.outbox.state.events == 2)
        until(lambda: box.publisher.status == "waiting for a bridge")
        ack = encode_ack(DATABASE, (Covered(7, 2),))
        stale = Message(topic(SITE, BOX, "ack"), ack, 1, False, 1, box.publisher._link.generation - 1, False)
        box.publisher._inbox.put((box.publisher._links, stale))
        time.sleep(0.2)
        assert box.outbox.state.events == 2
        box.publisher._inbox.put(
            (box.publisher._links, Message(stale.topic, ack, 1, False, 1, box.publisher._link.generation, False))
        )
        assert box.delivered()


def test_malformed_messages_to_a_box_change_nothing(broker: Mosquitto | Amqtt, tmp_path: Path) -> None:
    kinds: list[Literal["ack", "state", "health"]] = ["ack", "state", "health"]
    with (
        Centre(broker.port, "3.1.1") as centre,
        a_voice(broker.port, "3.1.1") as (voice, _),
        a_box(tmp_path, broker.port, "3.1.1") as box,
    ):
        until(lambda: box.publisher.status == "connected")
        for payload in (b"", b"\xff\x00", b"{}", b"[]", b"\x93\x01\xc4\x02ab\x90", b'{"nonce":5}', b"\xc1" * 9000):
            for kind in kinds:
                voice.publish(topic(SITE, BOX, kind), payload, qos=1)
            voice.publish(bridge_topic("x"), payload, qos=1)
        box.append(2)
        assert box.delivered()
        assert centre.seqs(7) == [1, 2]
        assert box.publisher.status == "connected"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_publisher_ends_the_process_loudly(
    broker: Mosquitto | Amqtt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise LinkDied("a bug of ours")

    box = Box(tmp_path, broker.port, "3.1.1")
    monkeypatch.setattr(Publisher, "_send", fail)
    box.publisher.start()
    until(lambda: "the publisher died" in caplog.text)

    def died() -> bool:
        box.publisher.check()
        return False

    with pytest.raises(LinkDied, match="a bug of ours"):
        until(died)
    box.publisher.stop()


def test_stop_commits_and_delivers_what_was_appended_last(broker: Mosquitto | Amqtt, tmp_path: Path) -> None:
    with Centre(broker.port, "3.1.1") as centre:
        with a_box(tmp_path, broker.port, "3.1.1", commit_s=1.0) as box:
            until(lambda: box.publisher.status == "connected")
            box.append(9)
        assert centre.seqs(7) == list(range(1, 10))
