"""The simulated fleet: its light boxes speak MQTT as brokers do, and every event of theirs and of real ones arrives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.wire import decode_batch
from tests.bench import fleet, light_mqtt
from tests.bench.fleet_boxes import BoxesSpec, happening
from tests.bench.light_boxes import Fleet
from tests.broker import MOSQUITTO

needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="Mosquitto is not installed")


@given(st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 65_535)), max_size=5), st.integers(1, 40))
def test_packets_come_out_whole_however_they_were_cut(sent: list[tuple[bytes, int]], cut: int) -> None:
    stream = b"".join(light_mqtt.publish(light_mqtt.topic_bytes("a/b"), payload, mid) for payload, mid in sent)
    buffer, heard = bytearray(), []
    for at in range(0, len(stream), cut):
        buffer += stream[at : at + cut]
        heard += [light_mqtt.read_publish(flags, body) for _, flags, body in light_mqtt.packets(buffer)]
    assert heard == [("a/b", mid, payload) for payload, mid in sent]
    assert not buffer


@pytest.mark.parametrize(
    ("connack", "most"),
    [
        pytest.param(b"\0\0\0", 65_535, id="unsaid"),
        pytest.param(b"\0\0\x03\x21\x00\x14", 20, id="said"),
        pytest.param(b"\0\0\x08\x22\x00\x0a\x12\x00\x02ab", 65_535, id="other properties only"),
        pytest.param(b"\0\0\x0a\x12\x00\x02ab\x24\x01\x21\x00\xc8", 200, id="after a text and a byte"),
    ],
)
def test_broker_says_how_many_messages_may_be_under_way(connack: bytes, most: int) -> None:
    assert light_mqtt.receive_maximum(connack) == most


def test_refused_connection_is_an_error_with_its_reason() -> None:
    with pytest.raises(ConnectionError, match="0x87"):
        light_mqtt.receive_maximum(b"\0\x87\0")


def test_backlog_lies_before_the_beginning_in_order_and_without_holes() -> None:
    spec = BoxesSpec(0, 1, 1883, "00" * 16, "", rate_hz=0.5, outage_s=300.0)
    boxes = Fleet(spec)
    batches = []
    while boxes.boxes[0].backlog:
        batches.append(decode_batch(boxes._of_backlog(boxes.boxes[0])[2]))
        boxes.boxes[0].backlog -= spec.backlog_batch
    assert [batch.first_seq for batch in batches] == [1, 51, 101]
    bases = [batch.base_ms for batch in batches]
    assert bases == sorted(bases)
    assert bases[0] == boxes.began_ms - 1_000 - 300_000
    assert batches[-1].base_ms + 98_000 < boxes.began_ms
    assert batches[1].events[0] == happening(50, 0)


@pytest.mark.slow
@needs_mosquitto
@pytest.mark.parametrize(
    "how",
    [pytest.param(["--seconds", "3", "--warm-s", "0"], id="live"), pytest.param(["--outage-s", "200"], id="drain")],
)
def test_every_event_of_a_small_fleet_arrives_once(how: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert fleet.main(["--boxes", "12", "--real", "4", "--rate", "1", "--health-s", "2", *how]) == 0
    said = capsys.readouterr().out
    assert "0 holes, 0 strays" in said
    assert "WRONG" not in said
