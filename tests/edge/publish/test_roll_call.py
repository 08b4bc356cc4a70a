"""P42: a box refuses to start beside another that lives under its id; a replacement of a dead one starts."""

import socket
import time
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from edge.errors import DuplicateIdError
from edge.link import LinkSettings
from edge.publish.publisher import SETTLE_S, PublisherSettings
from edge.publish.roll_call import RollCall
from edge.wire import BoxState, stream_name, topic
from tests.broker import Amqtt, Mosquitto, free_port
from tests.edge.publish.centre import BOX, DATABASE, SITE, Centre, until
from tests.edge.publish.test_publisher import WORDS, a_box, a_voice

Protocol = Literal["5", "3.1.1"]
Wired = tuple[Mosquitto | Amqtt, Protocol]
STATE = topic(SITE, BOX, "state")


def ask(port: int, protocol: Protocol, *, answer_s: float = 10.0) -> float:
    """Hold a roll call as a newcomer; return the seconds it took, or raise DuplicateIdError."""
    link = LinkSettings("127.0.0.1", "", port, protocol, backoff_s=(0.05, 0.3))
    began_s = time.monotonic()
    with RollCall(PublisherSettings(SITE, BOX, 99, DATABASE, link)) as call:
        call.conclude(answer_s)
    return time.monotonic() - began_s


def leave_birth(port: int, protocol: Protocol, state: Literal["online", "offline"]) -> None:
    """Leave the retained state of a box that is gone."""
    said = BoxState(state, stream_name(5), "boot", "machine", "nonce", t_ms=1_790_000_000_000, vocabulary=WORDS)
    with a_voice(port, protocol, STATE) as (voice, heard):
        voice.publish(STATE, msgspec.json.encode(said), qos=1, retain=True)
        until(lambda: bool(heard))


def test_p42_newcomer_refuses_beside_a_living_box_which_goes_on_undisturbed(wired: Wired, tmp_path: Path) -> None:
    port, protocol = wired[0].port, wired[1]
    with Centre(port, protocol) as centre, a_box(tmp_path, port, protocol, machine="cafe0123", software="0.1.0") as box:
        until(lambda: box.publisher.status == "connected")
        time.sleep(0.6)  # a birth is said at most every half second
        with pytest.raises(
            DuplicateIdError, match=r"under the id lab/box-1: up since 20.*machine cafe0123, software 0"
        ):
            ask(port, protocol)
        box.append(3)
        assert box.delivered()
        assert box.publisher.status == "connected"
        assert centre.seqs(7) == [1, 2, 3]


def test_p42_newcomer_starts_where_nobody_ever_was(wired: Wired) -> None:
    assert ask(wired[0].port, wired[1]) < 8.0


@pytest.mark.parametrize("state", ["online", "offline"])
def test_p42_newcomer_starts_after_a_box_that_died_whatever_it_left_behind(
    wired: Wired, state: Literal["online", "offline"]
) -> None:
    port, protocol = wired[0].port, wired[1]
    leave_birth(port, protocol, state)
    took_s = ask(port, protocol, answer_s=3.0)
    assert took_s < (2.9 if state == "offline" else 8.0)


def test_p42_replacement_starts_once_the_older_box_has_ended(wired: Wired, tmp_path: Path) -> None:
    port, protocol = wired[0].port, wired[1]
    with a_box(tmp_path, port, protocol) as box:
        until(lambda: box.publisher.status == "waiting for a bridge")
        time.sleep(SETTLE_S + 0.1)
        with pytest.raises(DuplicateIdError):
            ask(port, protocol)
    assert ask(port, protocol) < 8.0


def test_p42_box_that_cannot_ask_starts() -> None:
    assert ask(free_port(), "5") < 5.0  # nobody listens
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes the connection and says nothing
        assert ask(mute.getsockname()[1], "5", answer_s=0.5) < 5.0


def test_p42_what_another_newcomer_asks_is_no_answer(wired: Wired) -> None:
    port, protocol = wired[0].port, wired[1]
    leave_birth(port, protocol, "online")
    link = LinkSettings("127.0.0.1", "", port, protocol)
    with (
        RollCall(PublisherSettings(SITE, BOX, 98, DATABASE, link)) as first,
        RollCall(PublisherSettings(SITE, BOX, 99, DATABASE, link)) as second,
    ):
        for call in (first, second):
            call.conclude(2.0)
