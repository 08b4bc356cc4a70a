"""P39 and P40: an offered bundle is fetched once, taken like any other, its end is told; a bad one changes nothing."""

import hashlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.config import load_box
from edge.flash import offers
from edge.flash.offers import OfferError, Offers, fetch, read_offer, shown, wanted
from edge.flash.slots import FlashState
from edge.flash.spool import take_spool
from edge.link import Link, LinkSettings, Message
from edge.wire import FlashReport, Offer, topic
from tests.broker import MOSQUITTO, Amqtt, Broker, Mosquitto
from tests.edge.flash.desk import BAD_PORT, Box, Desk
from tests.edge.flash.programs import ProgramBox


class Centre:
    """Offers, and hears what boxes say of it."""

    def __init__(self, port: int) -> None:
        self.reports: queue.SimpleQueue[FlashReport] = queue.SimpleQueue()
        self.link = Link(
            LinkSettings("127.0.0.1", "centre", port, "3.1.1"),
            on_message=self._heard, on_up=lambda *_: None, on_down=lambda _: None,
            subscriptions=[(topic("demo", "lobby-1", "flash"), 1)],
        )  # fmt: skip
        self.link.start()

    def _heard(self, message: Message) -> None:
        self.reports.put(msgspec.json.decode(message.payload, type=FlashReport))

    def offer(self, offer: Offer) -> None:
        name = topic("demo", "lobby-1", "offer")
        for _ in range(100):
            if self.link.publish(name, msgspec.json.encode(offer), qos=1, retain=True) is not None:
                return
            time.sleep(0.05)
        raise AssertionError("no broker")

    def hear(self, outcome: str, counter: int) -> FlashReport:
        """Return the first report of this kind; others before it are passed over."""
        seen = []
        try:
            while True:
                seen.append(self.reports.get(timeout=10))
                if (seen[-1].outcome, seen[-1].counter) == (outcome, counter):
                    return seen[-1]
        except queue.Empty:
            raise AssertionError(f"no {outcome} {counter}, but {seen}") from None


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    (folder := tmp_path / "broker").mkdir()
    with (Mosquitto if MOSQUITTO else Amqtt)(folder) as running:
        yield running


@pytest.fixture
def centre(broker: Broker) -> Iterator[Centre]:
    made = Centre(broker.port)
    yield made
    made.link.stop()


def offered(path: Path, counter: int) -> Offer:
    data = path.read_bytes()
    return Offer(path.as_uri(), hashlib.sha256(data).hexdigest(), len(data), counter)


def spooled(box: Box) -> list[str]:
    return sorted(path.name for path in box.slots.spool.iterdir())


def until(claim: Callable[[], bool], what: str) -> None:
    give_up_s = time.monotonic() + 10
    while not claim():
        assert time.monotonic() < give_up_s, what
        time.sleep(0.02)


def test_an_offer_is_fetched_taken_and_reported(
    desk: Desk, box: Box, broker: Broker, centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "LOOK_S", 0.05)
    mqtt: dict[str, Any] = {"port": broker.port, "protocol": "3.1.1"}
    box.updater.apply(desk.parcel(1, mqtt=mqtt))
    with Offers(load_box(box.slots.current / "config.yaml"), random.Random(1)):
        centre.hear("committed", 1)
        centre.offer(offered(desk.made(2, mqtt=mqtt, presence_s=30).path, 2))
        centre.hear("taken", 2)
        assert spooled(box) == ["2.ffbundle"]
        list(take_spool(box.updater))
        assert centre.hear("committed", 2).reason == ""
        assert (box.running(), spooled(box)) == (2, [])

        centre.offer(offered(desk.made(3, mqtt={"port": BAD_PORT}).path, 3))
        until(lambda: spooled(box) == ["3.ffbundle"], "the offer was not fetched")
        list(take_spool(box.updater))
        assert "publisher is disconnected" in centre.hear("rolled_back", 3).reason
        assert box.running() == 2

        wrong = desk.made(4, mqtt=mqtt, box="lobby-2")
        centre.offer(offered(wrong.path, 4))
        until(lambda: spooled(box) == ["4.ffbundle"], "the offer was not fetched")
        list(take_spool(box.updater))
        assert "this box is demo/lobby-1" in centre.hear("refused", 4).reason


def test_a_retained_offer_is_not_fetched_again_after_a_restart(
    desk: Desk, box: Box, broker: Broker, centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "LOOK_S", 0.05)
    mqtt: dict[str, Any] = {"port": broker.port, "protocol": "3.1.1"}
    box.updater.apply(desk.parcel(1, mqtt=mqtt))
    centre.offer(offered(desk.made(2, mqtt={"port": BAD_PORT}).path, 2))
    config = load_box(box.slots.current / "config.yaml")
    with Offers(config):
        until(lambda: spooled(box) == ["2.ffbundle"], "the offer was not fetched")
    list(take_spool(box.updater))
    with Offers(config):  # the broker gives the retained offer once more
        centre.hear("rolled_back", 2)
        time.sleep(0.5)
    assert spooled(box) == []


def test_an_unreachable_bundle_is_reported_and_tried_again(
    desk: Desk, box: Box, broker: Broker, centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "LOOK_S", 0.05)
    monkeypatch.setattr(offers, "RETRY_S", (0.3, 1.0))
    mqtt: dict[str, Any] = {"port": broker.port, "protocol": "3.1.1"}
    box.updater.apply(desk.parcel(1, mqtt=mqtt))
    made = desk.made(2, mqtt=mqtt)
    offer = offered(made.path, 2)
    made.path.rename(aside := made.path.with_name("aside"))
    with Offers(load_box(box.slots.current / "config.yaml")):
        centre.offer(offer)
        assert "cannot be fetched" in centre.hear("unreachable", 2).reason
        aside.rename(made.path)
        until(lambda: spooled(box) == ["2.ffbundle"], "it was not tried again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "http://127.0.0.1:1/x"}, "http://127.0.0.1:1/x is refused, expected one of https, file"),
        ({"url": "ftp://x/y"}, "is refused"),
        ({"url": "https://me:secret@127.0.0.1:1/x?token=secret"}, r"https://127.0.0.1:1/x cannot be fetched"),
        ({"sha256": "0" * 64}, "holds something else than was offered"),
        ({"bytes": 10}, "holds something else than was offered"),
        ({"bytes": 1 << 29}, "holds something else than was offered|no room"),
        ({"url": "file:///dev/zero"}, "holds something else than was offered"),
    ],
)
def test_a_bad_offer_leaves_nothing_in_the_spool(desk: Desk, box: Box, change: dict[str, Any], message: str) -> None:
    box.updater.apply(desk.parcel(1))
    offer = msgspec.structs.replace(offered(desk.made(2).path, 2), **change)
    with pytest.raises(OfferError, match=message) as refused:
        fetch(offer, box.root, threading.Event())
    assert "secret" not in str(refused.value)
    assert spooled(box) == []


def test_only_what_is_newer_and_new_is_wanted(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(5))
    assert [wanted(box.root, Offer("file:///x", "0" * 64, 1, n)) for n in (4, 5, 6)] == [False, False, True]
    box.slots.write_state(FlashState(phase="trial", slot="5", trial="6"))
    assert not wanted(box.root, Offer("file:///x", "0" * 64, 1, 7))


def test_a_program_is_judged_by_the_program_that_runs_and_a_config_by_the_config(desk: Desk, tmp_path: Path) -> None:
    """P39: a program that was built before the config was flashed is news all the same."""
    it = ProgramBox(desk, tmp_path / "it")
    it.box.updater.apply(desk.parcel(9))
    it.updater.apply(it.parcel("1.1", 5))

    def news(counter: int, **kind: Any) -> bool:
        return wanted(it.box.root, Offer("file:///x", "0" * 64, 1, counter, **kind), it.programs.root)

    assert [news(n, kind="software") for n in (5, 6, 9, 10)] == [False, True, True, True]
    assert [news(n, kind="config") for n in (5, 6, 9, 10)] == [False, False, False, True]
    assert [news(n) for n in (6, 10)] == [False, True], "an offer that names no kind is one of a config"
    it.programs.write_state(FlashState(phase="trial", slot="1.1-5", trial="1.2-6"))
    assert not news(10), "nothing else while a program is tried"


def test_an_offered_program_older_than_the_config_is_fetched_taken_and_reported(
    desk: Desk, broker: Broker, centre: Centre, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "LOOK_S", 0.05)
    it = ProgramBox(desk, tmp_path / "it")
    made = it.made("1.1", 5)
    it.box.updater.apply(desk.parcel(9, mqtt={"port": broker.port, "protocol": "3.1.1"}))
    with Offers(load_box(it.box.slots.current / "config.yaml"), random.Random(1), it.programs.root):
        centre.hear("committed", 9)
        centre.offer(msgspec.structs.replace(offered(made, 5), kind="software"))
        centre.hear("taken", 5)
        list(take_spool(it.box.updater, it.updater))
        centre.hear("committed", 5)
    assert (it.programs.current_slot, it.box.running()) == ("1.1-5", 9)


def test_what_is_no_offer_is_ignored() -> None:
    good = Offer("https://centre/x", "0" * 64, 100, 7)
    assert read_offer(msgspec.json.encode(good)) == good
    older = {"url": good.url, "sha256": good.sha256, "bytes": good.bytes, "counter": good.counter, "schema": 1}
    assert read_offer(msgspec.json.encode(older)) == good, "P5: before offers had a kind"
    for bad in (b"", b"{", b"\xff", b"[]", msgspec.json.encode(msgspec.structs.replace(good, bytes=1 << 40)),
                msgspec.json.encode(msgspec.structs.replace(good, counter=-1))):  # fmt: skip
        assert read_offer(bad) is None
    assert shown("https://me:pw@centre:8443/a/b?token=x") == "https://centre:8443/a/b"
