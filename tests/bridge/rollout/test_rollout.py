"""P41: boxes, a real broker and a real PostgreSQL: waves, a stop on the first failure, an abort, a killed driver."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg import conninfo

from bridge import cli
from bridge.rollout import driver
from bridge.rollout.plan import read_bundles
from bridge.rollout.records import Records
from edge.config import load_box
from edge.flash import offers
from edge.flash.offers import Offers
from edge.flash.spool import take_spool
from edge.flash.wheelhouse import build
from edge.link import Link, LinkSettings, Message
from edge.wire import ROOT
from tests.broker import MOSQUITTO, Amqtt, Broker, Mosquitto
from tests.edge.flash.desk import BAD_PORT, Box, Desk
from tests.edge.flash.programs import our_wheel

NAMES = ("b1", "b2", "b3", "b4")


class Fleet:
    """Four flashed boxes that take offers, each with an updater turning in a thread of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.desk, self.port = Desk(folder / "desk"), port
        self.mqtt: dict[str, Any] = {"port": port, "protocol": "3.1.1"}
        self.boxes = {name: Box(folder / name) for name in NAMES}
        self.deaf: set[str] = set()
        self.stop = threading.Event()
        for name, box in self.boxes.items():
            box.updater.apply(self.desk.parcel(1, box=name, mqtt=self.mqtt))

    def bundles(self, folder: Path, counter: int, bad: str = "") -> Path:
        """Build a bundle for each box; the one for `bad` loses the broker."""
        folder.mkdir()
        for name in NAMES:
            mqtt = {"port": BAD_PORT} if name == bad else self.mqtt
            made = self.desk.made(counter, box=name, mqtt=mqtt, presence_s=30)
            made.path.rename(folder / f"{name}.ffbundle")
        return folder

    def running(self) -> dict[str, int]:
        return {name: box.running() for name, box in self.boxes.items()}

    def live(self, name: str) -> None:
        """Be a box until the end."""
        box = self.boxes[name]
        with Offers(load_box(box.slots.current / "config.yaml")):
            while not self.stop.wait(0.05):
                if name not in self.deaf:
                    list(take_spool(box.updater))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    (folder := tmp_path / "broker").mkdir()
    with (Mosquitto if MOSQUITTO else Amqtt)(folder) as running:
        yield running


@pytest.fixture
def fleet(tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setattr(offers, "LOOK_S", 0.05)
    monkeypatch.setattr(driver, "TURN_S", 0.05)
    made = Fleet(tmp_path, broker.port)
    threads = [threading.Thread(target=made.live, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    yield made
    made.stop.set()
    for thread in threads:
        thread.join()


@pytest.fixture
def config(tmp_path: Path, broker: Broker, dsn: str) -> Path:
    """Write a bridge's config whose database user has the rights of `facefleet_ingest` and no more."""
    narrow = conninfo.make_conninfo(dsn, options="-c role=facefleet_ingest")
    path = tmp_path / "bridge.yaml"
    path.write_text(yaml.safe_dump({"id": "b", "dsn": narrow, "mqtt": {"port": broker.port, "protocol": "3.1.1"}}))
    return path


def start(config: Path, bundles: Path, *more: str) -> int:
    words = ["rollout", "start", str(config), "--bundles", str(bundles), "--url", bundles.as_uri(), "--waves", "1,3"]
    return cli.main([*words, *more])


def states(dsn: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        query = "SELECT box, wave, state FROM report.rollout_boxes WHERE rollout_id = " \
                "(SELECT max(rollout_id) FROM report.rollouts) ORDER BY box"  # fmt: skip
        return connection.execute(query).fetchall()


def retained_offers(port: int) -> set[str]:
    heard: set[str] = set()

    def on_message(message: Message) -> None:
        if message.payload:
            heard.add(message.topic.split("/")[3])

    link = Link(
        LinkSettings("127.0.0.1", "looker", port, "3.1.1"),
        on_message=on_message, on_up=lambda *_: None, on_down=lambda _: None,
        subscriptions=[(f"{ROOT}/+/+/offer", 1)],
    )  # fmt: skip
    link.start()
    time.sleep(0.7)
    link.stop()
    return heard


def until(claim: Callable[[], bool], what: str) -> None:
    give_up_s = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < give_up_s, what
        time.sleep(0.05)


def test_a_roll_out_reaches_the_fleet_wave_by_wave(
    fleet: Fleet, config: Path, dsn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(config, fleet.bundles(tmp_path / "out", 2)) == 0
    said = capsys.readouterr().out
    assert "4 boxes in waves of 1, 2, 1" in said
    assert "roll-out 1: done" in said
    assert fleet.running() == dict.fromkeys(NAMES, 2)
    assert states(dsn) == [("b1", 1, "committed"), ("b2", 2, "committed"), ("b3", 2, "committed"),
                           ("b4", 3, "committed")]  # fmt: skip
    assert retained_offers(fleet.port) == set()
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT wave, boxes, committed, failed FROM report.rollouts ORDER BY wave").fetchall()
        assert rows == [(1, 1, 1, 0), (2, 2, 2, 0), (3, 1, 1, 0)]
        first = connection.execute("SELECT max(changed_at) FROM report.rollout_boxes WHERE wave = 1").fetchone()
        second = connection.execute("SELECT min(offered_at) FROM report.rollout_boxes WHERE wave = 2").fetchone()
        assert first is not None
        assert second is not None
        assert first[0] <= second[0]


def test_the_first_failure_stops_it_and_the_others_keep_their_config(
    fleet: Fleet, config: Path, dsn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(config, fleet.bundles(tmp_path / "out", 2, bad="b1")) == 1
    said = capsys.readouterr().out
    assert "stopped, 1 failed, demo/b1 rolled_back (not well within" in said
    assert fleet.running() == dict.fromkeys(NAMES, 1)
    assert [state for _, _, state in states(dsn)] == ["rolled_back", "waiting", "waiting", "waiting"]
    assert retained_offers(fleet.port) == set()


def test_a_tolerated_failure_does_not_stop_it(fleet: Fleet, config: Path, dsn: str, tmp_path: Path) -> None:
    assert start(config, fleet.bundles(tmp_path / "out", 2, bad="b1"), "--failures", "1") == 0
    assert fleet.running() == {"b1": 1, "b2": 2, "b3": 2, "b4": 2}


def test_a_silent_box_is_a_failure(fleet: Fleet, config: Path, dsn: str, tmp_path: Path) -> None:
    fleet.deaf.add("b1")
    assert start(config, fleet.bundles(tmp_path / "out", 2), "--patience", "2") == 1
    assert states(dsn)[0] == ("b1", 1, "silent")


def test_an_operator_aborts_it(
    fleet: Fleet, config: Path, dsn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.deaf.add("b2")
    bundles = fleet.bundles(tmp_path / "out", 2)
    codes: list[int] = []
    running = threading.Thread(target=lambda: codes.append(start(config, bundles)))
    running.start()
    until(lambda: ("b2", 2, "taken") in states(dsn), "the second wave did not begin")
    assert start(config, bundles) == 1
    assert "another roll-out is running" in capsys.readouterr().err
    assert cli.main(["rollout", "abort", str(config)]) == 0
    running.join()
    assert codes == [1]
    assert "aborted, by an operator" in capsys.readouterr().out
    assert retained_offers(fleet.port) <= {"b1", "b3"}
    assert fleet.running()["b4"] == 1


def test_a_driver_that_was_ended_is_continued_by_the_next(
    fleet: Fleet, config: Path, dsn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = Records(dsn)
    bundles = fleet.bundles(tmp_path / "out", 2)
    records.start(read_bundles(bundles, bundles.as_uri()), [1, 3], 0, 60)
    records.open_wave(1, 1)  # and then it was killed, before it had offered anything
    records.close()
    assert cli.main(["rollout", "status", str(config)]) == 0
    assert "wave 1  demo/b1  counter 2  offered" in capsys.readouterr().out
    assert cli.main(["rollout", "start", str(config)]) == 0
    assert fleet.running() == dict.fromkeys(NAMES, 2)


def test_offers_name_the_kind_of_their_bundles(dsn: str, tmp_path: Path) -> None:
    """P39: it goes from the manifest through the database to the box, which counts the two kinds apart."""
    desk = Desk(tmp_path / "desk")
    (folder := tmp_path / "out").mkdir()
    desk.made(2, box="b1").path.rename(folder / "b1.ffbundle")
    wheel = our_wheel(tmp_path / "wheels", "1.1")
    build(wheel, folder / "b2.ffbundle", desk.key, counter=3, addressee="demo/b2")
    with contextlib.closing(Records(dsn)) as records:
        records.start(read_bundles(folder, folder.as_uri()), [2], 0, 60)
        found = {box: (offer.counter, offer.kind) for _, box, offer in records.offers(1, ["waiting"])}
    assert found == {"b1": (2, "config"), "b2": (3, "software")}


def test_mistakes_are_named(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rollout", "start", str(config)]) == 1
    assert "no roll-out is running; name --bundles and --url" in capsys.readouterr().err
    assert cli.main(["rollout", "abort", str(config)]) == 1
    assert "no roll-out is running" in capsys.readouterr().err
    assert cli.main(["rollout", "status", str(config)]) == 0
    assert "there has been no roll-out" in capsys.readouterr().out
    (empty := tmp_path / "empty").mkdir()
    assert start(config, empty) == 1
    assert "holds no *.ffbundle" in capsys.readouterr().err
    (empty / "x.ffbundle").write_bytes(b"rubbish")
    assert start(config, empty) == 1
    assert "is no bundle" in capsys.readouterr().err
