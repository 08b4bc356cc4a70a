"""The few packets of MQTT 5 a light box says and hears. Pure: bytes in, bytes out. Tested against a real broker.

Section numbers are those of the OASIS standard "MQTT Version 5.0".
"""

import struct
from collections.abc import Iterator

CONNACK, PUBLISH, PUBACK, SUBACK = 2, 3, 4, 9
RECEIVE_MAXIMUM = 0x21
# Bytes of a CONNACK property after its id (2.2.2.2); None: a string with a length before it.
_PROPERTY_BYTES = {
    0x11: 4, 0x13: 2, 0x21: 2, 0x22: 2, 0x24: 1, 0x25: 1, 0x27: 4, 0x28: 1, 0x29: 1, 0x2A: 1,
    0x12: None, 0x1A: None, 0x1C: None, 0x1F: None, 0x16: None,
}  # fmt: skip


def connect(client_id: str, keep_alive_s: int, will_topic: str, will: bytes) -> bytes:
    """Return a CONNECT with Clean Start and a retained will of QoS 1 (3.1)."""
    body = _text("MQTT") + bytes((5, 0b0010_1110)) + struct.pack(">H", keep_alive_s) + b"\0"
    return _packet(0x10, body + _text(client_id) + b"\0" + _text(will_topic) + struct.pack(">H", len(will)) + will)


def subscribe(mid: int, filters: list[tuple[str, int]]) -> bytes:
    """Return a SUBSCRIBE (3.8)."""
    return _packet(0x82, struct.pack(">HB", mid, 0) + b"".join(_text(name) + bytes((qos,)) for name, qos in filters))


def publish(topic: bytes, payload: bytes, mid: int = 0, *, retain: bool = False, expiry_s: int = 0) -> bytes:
    """Return a PUBLISH, of QoS 1 when it has a message id (3.3).

    Args:
        topic: with its length before it, as `topic_bytes` gives it.
        payload: of the message.
        mid: message id, 0 for QoS 0.
        retain: whether the broker keeps it.
        expiry_s: how long it is of interest; 0 for ever.
    """
    properties = b"\x05\x02" + struct.pack(">I", expiry_s) if expiry_s else b"\0"
    middle = struct.pack(">H", mid) if mid else b""
    return _packet(0x30 | (2 if mid else 0) | retain, topic + middle + properties + payload)


def puback(mid: int) -> bytes:
    """Return a PUBACK that says that all is well (3.4)."""
    return struct.pack(">BBH", 0x40, 2, mid)


def topic_bytes(name: str) -> bytes:
    """Return a topic as `publish` wants it."""
    return _text(name)


def packets(buffer: bytearray) -> Iterator[tuple[int, int, bytes]]:
    """Take the whole packets out of a buffer; yield (kind, flags, body) of each and leave the rest."""
    at = 0
    try:
        while len(buffer) - at >= 2:
            length, size = _varint(buffer, at + 1)
            if not size or len(buffer) < at + 1 + size + length:
                return
            first, start = buffer[at], at + 1 + size
            at = start + length
            yield first >> 4, first & 15, bytes(buffer[start:at])
    finally:
        del buffer[:at]


def read_publish(flags: int, body: bytes) -> tuple[str, int, bytes]:
    """Return (topic, message id or 0, payload) of a PUBLISH."""
    end = 2 + int.from_bytes(body[:2], "big")
    mid, at = 0, end
    if flags & 0b0110:
        mid, at = int.from_bytes(body[end : end + 2], "big"), end + 2
    length, size = _varint(body, at)
    return body[2:end].decode(), mid, body[at + size + length :]


def receive_maximum(connack: bytes) -> int:
    """Return how many messages of QoS 1 may be under way; raise ConnectionError for a refusal (3.2)."""
    if connack[1]:
        raise ConnectionError(f"refused: reason {connack[1]:#x}")
    length, size = _varint(connack, 2)
    at, end = 2 + size, 2 + size + length
    while at < end:
        kind = connack[at]
        width = _PROPERTY_BYTES[kind]
        if width is None:
            width = 2 + int.from_bytes(connack[at + 1 : at + 3], "big")
        if kind == RECEIVE_MAXIMUM:
            return int.from_bytes(connack[at + 1 : at + 3], "big")
        at += 1 + width
    return 65_535


def _packet(first: int, body: bytes) -> bytes:
    length, digits = len(body), bytearray((first,))
    while length > 127:
        digits.append(length & 127 | 128)
        length >>= 7
    digits.append(length)
    return bytes(digits) + body


def _varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """Return (value, bytes it takes), (0, 0) while it is not all there (1.5.5)."""
    value = 0
    for size in range(4):
        if at + size >= len(data):
            return 0, 0
        byte = data[at + size]
        value |= (byte & 127) << 7 * size
        if byte < 128:
            return value, size + 1
    raise ConnectionError("a length of more than four bytes")


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack(">H", len(raw)) + raw
