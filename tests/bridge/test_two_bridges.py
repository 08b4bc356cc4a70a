"""Two real bridge processes on one broker and one database: each its sites, and both the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bridge.box import FakeBox, wait_until
from tests.bridge.centre import BridgeProcess, Cluster, cluster, config_file, fresh_folder
from tests.broker import MOSQUITTO, Mosquitto, shipped


@pytest.fixture(scope="module")
def postgres_cluster() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture
def broker() -> Iterator[Mosquitto]:
    if MOSQUITTO is None:
        pytest.skip("Mosquitto is not installed")
    with fresh_folder() as folder:
        broker = Mosquitto(folder, extra=shipped("max_inflight_messages", "max_queued_messages"))
        broker.start()
        try:
            yield broker
        finally:
            broker.kill()


@pytest.mark.parametrize("sites", [(["north"], ["south"]), ([], [])], ids=["a site each", "both see all"])
def test_two_bridges_write_each_event_once(
    postgres_cluster: Cluster, broker: Mosquitto, tmp_path: Path, sites: tuple[list[str], list[str]]
) -> None:
    database = postgres_cluster.database()
    configs = []
    for name, own in zip(("a", "b"), sites, strict=True):
        (folder := tmp_path / name).mkdir()
        configs.append(config_file(folder, database, broker.port, id=name, sites=own))
    with BridgeProcess(configs[0]) as a, BridgeProcess(configs[1]) as b:
        wait_until(lambda: "accepting" in a.said() and "accepting" in b.said(), what="two bridges")
        with (
            FakeBox(broker.port, site="north", stream=7, bridge="a") as north,
            FakeBox(broker.port, site="south", stream=8, bridge="b") as south,
        ):
            for box in (north, south):
                wait_until(lambda box=box: "accepting" in box.states, what="the bridge's state")  # type: ignore[misc]
                box.birth()
                for _ in range(20):
                    box.send(10)
            for box in (north, south):
                box.resend()
                box.settle()
    assert database.visits() == [(stream, seq) for stream in (7, 8) for seq in range(1, 201)]
    assert database.rows("SELECT sum(visits)::int FROM rollup_days") == [(400,)]
    assert database.rows("SELECT count(*) FROM dead_letters") == [(0,)]
