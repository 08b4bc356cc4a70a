"""End to end, with a real broker, a real PostgreSQL and hand-made batches: every event once, whatever is killed."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from bridge.app import subscriptions
from edge.wire import encode_batch
from tests.bridge.box import FakeBox, replace_vocabulary, visits, wait_until
from tests.bridge.centre import (
    BridgeProcess,
    Cluster,
    Database,
    bridge_in_thread,
    cluster,
    config_file,
    fresh_folder,
    kill_now,
)
from tests.broker import MOSQUITTO, Amqtt, Broker, Mosquitto, shipped

KINDS = [
    pytest.param(("mosquitto", "5"), id="mosquitto-5"),
    pytest.param(("mosquitto", "3.1.1"), id="mosquitto-3.1.1"),
    pytest.param(("amqtt", "3.1.1"), id="amqtt-3.1.1"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """One cluster for this module; a test that kills it starts it again."""
    with cluster() as running:
        yield running


@pytest.fixture
def database(server: Cluster) -> Database:
    return server.database()


@pytest.fixture
def folder() -> Iterator[Path]:
    with fresh_folder() as path:
        yield path


def start_broker(folder: Path, kind: str) -> Broker:
    if kind == "amqtt":
        return Amqtt(folder).start()
    if MOSQUITTO is None:
        pytest.skip("Mosquitto is not installed")
    return Mosquitto(folder, extra=shipped("max_inflight_messages", "max_queued_messages")).start()


@pytest.fixture
def broker(folder: Path) -> Iterator[Broker]:
    running = start_broker(folder, "mosquitto" if MOSQUITTO else "amqtt")
    yield running
    running.stop()


def protocol_of(broker: Broker) -> str:
    return "5" if "5" in broker.protocols else "3.1.1"


def expected(*boxes: FakeBox) -> list[tuple[int, int]]:
    return sorted((box.stream, seq) for box in boxes for seq in range(1, box.sent + 1))


def stream_while(box: FakeBox, seconds: float) -> None:
    """Send about 25 batches a second."""
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        box.send(5)
        time.sleep(0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_p36_batches_become_rows_and_acks_with_every_broker_and_protocol(
    kind: tuple[str, str], database: Database, folder: Path
) -> None:
    broker = start_broker(folder, kind[0])
    try:
        config = config_file(folder, database, broker.port, mqtt={"protocol": kind[1]})
        with bridge_in_thread(config) as bridge, FakeBox(broker.port, stream=71, protocol=kind[1]) as box:
            wait_until(lambda: "accepting" in box.states)
            box.birth()
            for _ in range(40):
                box.send(5)
            box.settle(every_s=10)
            assert database.visits() == expected(box)
            assert bridge.counts.inserted == 200
            assert {ack.database for ack in box.acks} == {database.uuid}
    finally:
        broker.stop()


def test_p13_every_event_once_after_sigkill_of_the_bridge(database: Database, broker: Broker, folder: Path) -> None:
    config = config_file(folder, database, broker.port, mqtt={"protocol": protocol_of(broker)})
    with BridgeProcess(config) as bridge, FakeBox(broker.port, stream=72, protocol=protocol_of(broker)) as box:
        wait_until(lambda: "accepting" in box.states)
        for _ in range(2):
            stream_while(box, 0.7)
            bridge.end(signal.SIGKILL)
            wait_until(lambda: box.states[-1] == "offline", what="the bridge's will")
            stream_while(box, 0.1)
            bridge.start()
            wait_until(lambda: box.states[-1] == "accepting")
            box.resend()
        box.settle()
        assert database.visits() == expected(box)
        assert bridge.end(signal.SIGTERM) == 0
        wait_until(lambda: box.states[-1] == "offline", what="the farewell")


def test_p13_every_event_once_after_sigkill_of_the_broker(database: Database, broker: Broker, folder: Path) -> None:
    config = config_file(folder, database, broker.port, mqtt={"protocol": protocol_of(broker)})
    with bridge_in_thread(config), FakeBox(broker.port, stream=73, protocol=protocol_of(broker)) as box:
        for _ in range(2):
            stream_while(box, 0.5)
            broker.kill()
            stream_while(box, 0.1)
            broker.start()
            wait_until(lambda: box.link.connected)
        box.settle(timeout_s=60)
        assert database.visits() == expected(box)


def test_p13_every_event_once_after_sigkill_of_postgresql(
    server: Cluster, database: Database, broker: Broker, folder: Path
) -> None:
    config = config_file(folder, database, broker.port, mqtt={"protocol": protocol_of(broker)})
    with bridge_in_thread(config) as bridge, FakeBox(broker.port, stream=74, protocol=protocol_of(broker)) as box:
        wait_until(lambda: "accepting" in box.states)
        for _ in range(2):
            stream_while(box, 0.5)
            kill_now(server.child.pid)
            stream_while(box, 0.3)
            wait_until(lambda: box.states[-1] == "paused")
            wait_until(server.child.check)
            wait_until(lambda: box.states[-1] == "accepting")
        box.settle()
        assert database.visits() == expected(box)
        assert bridge.counts.failures > 0


def test_database_down_at_start_and_coming_later(
    server: Cluster, database: Database, broker: Broker, folder: Path
) -> None:
    config = config_file(folder, database, broker.port, mqtt={"protocol": protocol_of(broker)})
    server.child.stop()
    try:
        with BridgeProcess(config) as bridge, FakeBox(broker.port, stream=75, protocol=protocol_of(broker)) as box:
            wait_until(lambda: box.states == ["paused"])
            for _ in range(100):
                box.send(5)
            time.sleep(0.5)
            assert box.acks == []
            server.child.start()
            wait_until(lambda: box.states[-1] == "accepting")
            box.settle(every_s=10)  # all of it waited in the bridge or at the broker: nothing need be sent twice
            assert database.visits() == expected(box)
            assert bridge.end(signal.SIGTERM) == 0
            assert "Traceback" not in bridge.said()
    finally:
        if not server.child.running:
            server.child.start()


def test_p15_ack_comes_only_after_the_commit(database: Database, broker: Broker, folder: Path) -> None:
    config = config_file(folder, database, broker.port, mqtt={"protocol": protocol_of(broker)})
    with bridge_in_thread(config), FakeBox(broker.port, stream=76, protocol=protocol_of(broker)) as box:
        wait_until(lambda: "accepting" in box.states)
        with psycopg.connect(database.admin_dsn) as blocker:
            blocker.execute("LOCK TABLE facefleet.visits IN ACCESS EXCLUSIVE MODE")
            box.send(5)
            time.sleep(1.0)
            assert box.acks == []
        wait_until(lambda: bool(box.acks))
        assert database.visits() == expected(box)


def test_p18_bridge_with_ack_false_writes_but_never_acks(database: Database, broker: Broker, folder: Path) -> None:
    config = config_file(folder, database, broker.port, ack=False, mqtt={"protocol": protocol_of(broker)})
    with bridge_in_thread(config), FakeBox(broker.port, stream=77, protocol=protocol_of(broker)) as box:
        wait_until(lambda: "accepting" in box.states)
        box.birth()
        box.send(5)
        wait_until(lambda: len(database.visits()) == 5)
        time.sleep(1.2)
        assert box.acks == []


def test_p7_malformed_payloads_become_dead_letters_and_block_nothing(
    database: Database, broker: Broker, folder: Path
) -> None:
    good = encode_batch(replace_vocabulary(visits(78, 1, 5)))
    bad = [b"", b"\xc1", good[:-3], good[: len(good) // 2], b"x" * 1000, b"\x78\x9c" + b"\xff" * 50, b"\x91\x02"]
    config = config_file(folder, database, broker.port, mqtt={"protocol": protocol_of(broker)})
    with bridge_in_thread(config) as bridge, FakeBox(broker.port, stream=78, protocol=protocol_of(broker)) as box:
        wait_until(lambda: "accepting" in box.states)
        for payload in bad:
            box.publish("events", payload)
            box.publish("state", payload)
            box.publish("health", payload)
            box.send(2)
        box.settle(every_s=10)
        assert database.visits() == expected(box)
        raw = {bytes(row[0]) for row in database.rows("SELECT raw FROM dead_letters WHERE topic LIKE '%/events'")}
        assert raw == set(bad)
        assert bridge.counts.dead_letters >= len(bad)


def test_p38_bounded_queue_loses_nothing_in_the_end(database: Database, broker: Broker, folder: Path) -> None:
    config = config_file(folder, database, broker.port, queue_mb=1, mqtt={"protocol": protocol_of(broker)})
    with ExitStack() as stack:
        bridge = stack.enter_context(bridge_in_thread(config))
        boxes = [
            stack.enter_context(FakeBox(broker.port, box=f"b{i}", stream=790 + i, protocol=protocol_of(broker)))
            for i in range(3)
        ]
        wait_until(lambda: all("accepting" in box.states for box in boxes))
        with psycopg.connect(database.admin_dsn) as blocker:
            blocker.execute("LOCK TABLE facefleet.visits IN ACCESS EXCLUSIVE MODE")
            for _ in range(100):
                for box in boxes:
                    box.send(400)  # about 10 kB each, 3 MB together
            wait_until(lambda: bridge.counts.turned_away > 0, what="a full queue")
            assert bridge.held_bytes <= 1 << 20
        for box in boxes:
            box.settle(timeout_s=60, every_s=5)
        assert len(database.visits()) == sum(box.sent for box in boxes)
        assert database.visits() == expected(*boxes)


def test_missing_grant_pauses_and_dead_letters_nobody(
    database: Database, broker: Broker, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_file(folder, database, broker.port, mqtt={"protocol": protocol_of(broker)})
    with bridge_in_thread(config), FakeBox(broker.port, stream=80, protocol=protocol_of(broker)) as box:
        wait_until(lambda: "accepting" in box.states)
        database.rows("REVOKE INSERT ON visits FROM facefleet_ingest")
        box.send(5)
        wait_until(lambda: box.states[-1] == "paused")
        assert "SQLSTATE 42501" in caplog.text
        time.sleep(0.5)
        assert box.acks == []
        assert database.rows("SELECT count(*) FROM dead_letters") == [(0,)]
        database.rows("GRANT INSERT ON visits TO facefleet_ingest")
        wait_until(lambda: box.states[-1] == "accepting")
        wait_until(lambda: not box.unacked)
        assert database.visits() == expected(box)


def test_bridge_of_other_sites_leaves_a_box_alone(database: Database, broker: Broker, folder: Path) -> None:
    assert subscriptions(("north",))[1] == ("facefleet/1/north/+/events", 1)
    config = config_file(folder, database, broker.port, sites=["north"], mqtt={"protocol": protocol_of(broker)})
    with (
        bridge_in_thread(config),
        FakeBox(broker.port, site="south", stream=81, protocol=protocol_of(broker)) as south,
        FakeBox(broker.port, site="north", stream=82, protocol=protocol_of(broker)) as north,
    ):
        wait_until(lambda: "accepting" in north.states)
        south.send(5)
        north.send(5)
        north.settle(every_s=10)
        assert database.visits() == expected(north)
        assert south.unacked


def test_p18_will_of_a_bridge_that_was_not_told_its_database_names_it_all_the_same(
    database: Database, broker: Broker, folder: Path
) -> None:
    config = config_file(folder, database, broker.port, database=None, mqtt={"protocol": protocol_of(broker)})
    with BridgeProcess(config) as bridge, FakeBox(broker.port, stream=83, protocol=protocol_of(broker)) as box:
        wait_until(lambda: "accepting" in box.states)
        bridge.end(signal.SIGKILL)
        wait_until(lambda: box.states[-1] == "offline", what="the will")
        assert set(box.databases) == {str(database.uuid)}


def test_bridge_that_cannot_reach_its_broker_ends_cleanly(database: Database, folder: Path) -> None:
    config = config_file(folder, database, 1)
    with BridgeProcess(config) as bridge:
        wait_until(lambda: "broker 127.0.0.1:1" in bridge.said())
        assert bridge.end(signal.SIGINT) == 0
        assert "Traceback" not in bridge.said()


def test_threads_of_a_stopped_bridge_are_gone(database: Database, broker: Broker, folder: Path) -> None:
    before = set(threading.enumerate())
    config = config_file(folder, database, broker.port, mqtt={"protocol": protocol_of(broker)})
    with bridge_in_thread(config) as bridge:
        wait_until(lambda: bridge.status == "accepting")
        assert len(set(threading.enumerate()) - before) == 3  # the test's own, the writer, the network's
    assert set(threading.enumerate()) <= before
