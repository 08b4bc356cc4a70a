"""What `facefleet-edge tail` makes of the wire."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from edge.errors import ConfigError
from edge.link import Link, LinkSettings
from edge.publish.tail import check_filter, learn, matches, readable
from edge.wire import (
    Batch,
    BoxState,
    BridgeState,
    Confirmed,
    Covered,
    Ended,
    Head,
    Loss,
    Presence,
    Vocabulary,
    bridge_topic,
    encode_ack,
    encode_batch,
    topic,
)
from tests.broker import Amqtt, Mosquitto
from tests.edge.publish.centre import until

WORDS = Vocabulary(("door",), (Head("age", ("young", "old")),))
EVENTS = (
    Confirmed(0, 7, 0, 2048, 1024, 410, 819, 204),
    Ended(0, 7, 0, 61_500, 0, 0, 0, 4096, 4096, 410, 819, 255, 900, (0, 1, 255)),
    Presence(0, -500, 60_000, 2, 61_500, 1),
    Loss(0xABC, 3, 9, 1),
)
BATCH = Batch(1, 0xDEF, 41, 1_790_000_000_250, 1, WORDS.digest(), EVENTS)


def line(name: str, payload: bytes, words: dict[int, Vocabulary] | None = None) -> dict[str, object]:
    text = readable(name, payload, words or {})
    assert "\n" not in text
    said: dict[str, object] = json.loads(text)
    return said


def test_events_have_absolute_times_fractions_and_labels() -> None:
    said = line(topic("s", "b", "events"), encode_batch(BATCH), {WORDS.digest(): WORDS})
    assert (said["stream"], said["clock"], said["resend"]) == ("0000000000000def", "estimated", False)
    confirmed, ended, presence, loss = said["events"]  # type: ignore[misc]
    assert confirmed == {
        "seq": 41, "event": "confirmed", "camera": "door", "track": 7, "at": "2026-09-21T14:13:20.250+00:00",
        "x": 0.5, "y": 0.25, "w": 0.1001, "h": 0.2, "score": 0.8,
    }  # fmt: skip
    assert ended["attributes"] == {"age": {"label": "old", "confidence": 1.0}}
    assert (ended["reason"], ended["exit_x"], ended["dwell_ms"]) == ("left", 1.0, 61_500)
    assert presence["at"] == "2026-09-21T14:13:19.750+00:00"
    assert loss == {"seq": 44, "event": "loss", "stream": "0000000000000abc", "first": 3, "last": 9, "reason": "size"}


def test_without_a_vocabulary_the_numbers_stay() -> None:
    said = line(topic("s", "b", "events"), encode_batch(BATCH))
    assert said["events"][0]["camera"] == 0  # type: ignore[index]
    assert said["events"][1]["attributes"] == {"0": {"label": "1", "confidence": 1.0}}  # type: ignore[index]


def test_births_and_resends_teach_the_words() -> None:
    words: dict[int, Vocabulary] = {}
    learn(words, topic("s", "b", "state"), b"no json")
    learn(words, bridge_topic("b"), msgspec.json.encode(BridgeState("accepting", "b", "d")))
    assert words == {}
    learn(words, topic("s", "b", "state"), msgspec.json.encode(BoxState("online", "1", "", "", "n", vocabulary=WORDS)))
    assert words == {WORDS.digest(): WORDS}
    words.clear()
    learn(words, topic("s", "b", "events"), encode_batch(msgspec.structs.replace(BATCH, vocabulary=WORDS)))
    assert words == {WORDS.digest(): WORDS}


def test_states_and_acks_are_readable() -> None:
    said = line(topic("s", "b", "ack"), encode_ack(UUID(int=5), (Covered(0xDEF, 40, (42, 43)), Covered(2, 0))))
    assert said["covered"] == {"0000000000000def": "1–40, 42–43", "0000000000000002": "nothing"}
    assert said["database"] == str(UUID(int=5))
    said = line(bridge_topic("b"), msgspec.json.encode(BridgeState("paused", "b", "d", t_ms=1_790_000_000_000)))
    assert (said["state"], said["t_ms"]) == ("paused", "2026-09-21T14:13:20.000+00:00")


@pytest.mark.parametrize("payload", [b"\xff\xfe", b"", b"[1]", b"{", b"\x98\x01", b"null"])
@pytest.mark.parametrize("kind", ["events", "ack", "state", "health"])
def test_what_is_not_ours_is_a_line_too(payload: bytes, kind: str) -> None:
    assert line(f"facefleet/1/s/b/{kind}", payload)["bytes"] == len(payload)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b/d", False),
        ("a/+", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("a/b", "a/b", True),
    ],
)
def test_filters_match_as_a_broker_matches_them(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, name) == fits


def test_tail_prints_what_goes_over_a_real_broker(broker: Mosquitto | Amqtt, tmp_path: Path) -> None:
    link = Link(
        LinkSettings("127.0.0.1", "box", broker.port, "3.1.1"),
        on_message=lambda _: None, on_up=lambda *_: None, on_down=lambda _: None,
    )  # fmt: skip
    link.start()
    until(lambda: link.connected)
    birth = msgspec.json.encode(BoxState("online", "1", "", "", "n", vocabulary=WORDS))
    link.publish(topic("s", "b", "state"), birth, qos=1, retain=True)
    with (tmp_path / "out").open("wb") as out:
        tail = subprocess.Popen(
            [sys.executable, "-m", "edge.cli", "tail", "+/+/events", "--port", str(broker.port)], stdout=out
        )
    try:
        give_up_s = time.monotonic() + 20
        while not (tmp_path / "out").stat().st_size:
            assert time.monotonic() < give_up_s
            link.publish(topic("s", "b", "events"), encode_batch(BATCH), qos=1)
            time.sleep(0.2)
    finally:
        tail.terminate()
        tail.wait()
        link.stop()
    printed = (tmp_path / "out").read_text()
    assert re.search(r'"camera": "door"', printed)
    assert '"state"' not in printed, "births are listened to for their words, not printed unless asked for"


@pytest.mark.parametrize("wrong", ["", "demo/#/events", "demo/+x/events", "demo/a#"])
def test_a_topic_that_no_broker_takes_is_refused_before_anybody_is_asked(wrong: str) -> None:
    with pytest.raises(ConfigError, match="expected levels like"):
        check_filter(wrong)


@pytest.mark.parametrize("right", ["#", "+", "demo/+/events", "demo/lobby-1/#", "+/+/health"])
def test_a_topic_of_levels_is_taken(right: str) -> None:
    check_filter(right)
