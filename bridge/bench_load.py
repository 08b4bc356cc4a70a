"""What `facefleet-bridge bench` sends: events as boxes send them after an outage, and a light client for them."""

import random
import socket
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event

from bridge.batches import Incoming
from edge.wire import AnyEvent, Batch, Confirmed, Ended, Head, Presence, Update, Vocabulary, encode_batch, topic

PER_BATCH = 50
VOCABULARY = Vocabulary(("door", "till"), (Head("age", ("0-19", "20-39", "40+")), Head("gender", ("f", "m"))))
NOW = datetime.now(UTC)
WINDOW = 200  # messages the broker has not acknowledged


def workload(events: int, boxes: int, seed: int = 1) -> list[Incoming]:
    """Return messages of 50 events, boxes taking turns: visits with confirmed, now and then an update, and presence.

    Args:
        events: how many, rounded down to whole messages.
        boxes: how many boxes they come from.
        seed: another one makes other streams of the same boxes.
    """
    rng = random.Random(seed)
    base_ms = int((NOW - timedelta(hours=1)).timestamp() * 1000)
    messages = []
    for number in range(events // PER_BATCH):
        box, turn = number % boxes, number // boxes
        content = Batch(
            1, (seed << 20) + box, turn * PER_BATCH + 1, base_ms + turn * 60_000 % 3_000_000, 0, VOCABULARY.digest(),
            tuple(_events(rng, turn * 100)), VOCABULARY if turn == 0 else None,
        )  # fmt: skip
        name = f"b{box:04d}"
        messages.append(Incoming("lab", name, encode_batch(content), topic("lab", name, "events"), NOW))
    return messages


def _events(rng: random.Random, first_track: int) -> Sequence[AnyEvent]:
    found: list[AnyEvent] = []
    for track in range(first_track, first_track + 14):
        camera, t_ms, x = rng.randrange(2), rng.randrange(30_000), rng.randrange(4096)
        found.append(Confirmed(camera, track, t_ms + 300, x, 700, 300, 400, 200))
        if track % 2:
            age = (0, rng.randrange(3), 180)
            found.append(Update(camera, track, t_ms + 9000, 9000, x, 700, 300, 400, 210, age))
        attributes = (0, rng.randrange(3), 200, 1, rng.randrange(2), 220)
        found.append(Ended(camera, track, t_ms, 20_000, 0, x, 700, 90, 800, 320, 420, 220, 90, attributes))
    return found + [Presence(i % 2, i * 4000, 10_000, 2, 9000, 1) for i in range(PER_BATCH - len(found))]


def publish(host: str, port: int, messages: Sequence[tuple[str, bytes]], connected: Event, go: Event) -> None:
    """Publish (topic, payload) with QoS 1 once `go` is set, and return when the broker has them all.

    In life boxes are machines of their own: what they do must cost this one little, so packets are made beforehand and
    written as they are, MQTT 3.1.1.
    """
    packets = [_packet(name, payload, mid % 65_535 + 1) for mid, (name, payload) in enumerate(messages)]
    with socket.create_connection((host, port)) as broker:
        broker.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = b"facefleet-bench"
        broker.sendall(_framed(0x10, b"\0\4MQTT\4\2\0\x3c" + struct.pack(">H", len(client)) + client))
        if _exactly(broker, 4)[3] != 0:
            raise ConnectionRefusedError("the broker refused the bench's publisher")
        connected.set()
        go.wait()
        for at in range(0, len(packets), WINDOW):
            chunk = packets[at : at + WINDOW]
            broker.sendall(b"".join(chunk))
            _exactly(broker, 4 * len(chunk))  # a PUBACK each
        broker.sendall(b"\xe0\0")


def _packet(name: str, payload: bytes, mid: int) -> bytes:
    return _framed(0x32, struct.pack(">H", len(name)) + name.encode() + struct.pack(">H", mid) + payload)


def _framed(kind: int, body: bytes) -> bytes:
    """Return an MQTT packet: kind, length in sevens of bits, body."""
    length, digits = len(body), bytearray([kind])
    while length > 127:
        digits.append(length & 127 | 128)
        length >>= 7
    return bytes(digits) + bytes([length]) + body


def _exactly(broker: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        part = broker.recv(count - len(found))
        if not part:
            raise ConnectionAbortedError("the broker closed the bench's connection")
        found += part
    return bytes(found)
