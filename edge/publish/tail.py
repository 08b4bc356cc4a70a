"""`facefleet-edge tail`: whatever goes over the wire as readable JSON, one line a message.

Numbers become what they stand for: dates, fractions of the frame, camera names and labels. The names come from births
and resends; until one was heard, the numbers are shown.
"""

import argparse
import json
import queue
import secrets
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from edge.config import load_box
from edge.errors import ConfigError
from edge.link import Link, LinkSettings, Message
from edge.publish.publisher import publisher_settings
from edge.wire import (
    BOX_UNIT,
    ROOT,
    SCORE_UNIT,
    AnyEvent,
    Batch,
    BoxState,
    Clock,
    EndReason,
    Loss,
    LossReason,
    Vocabulary,
    decode_ack,
    decode_batch,
    stream_name,
)

Words = dict[int, Vocabulary]


def tail(args: argparse.Namespace) -> int:
    """Print messages until interrupted.

    Args:
        args: `topic` (a filter, below facefleet/1/ unless it starts there), `host`, `port`, `config` (a box's YAML).

    Returns:
        0 when interrupted; 1 when the broker refuses us.

    Raises:
        ConfigError: the topic or the port is none.
    """
    check_filter(args.topic)
    if not 1 <= args.port <= 65535:
        raise ConfigError(f"--port is {args.port}, expected 1–65535")
    topics = args.topic if args.topic.startswith(f"{ROOT}/") else f"{ROOT}/{args.topic}"
    settings = LinkSettings(args.host, "", args.port, "3.1.1")  # which every broker speaks
    if args.config is not None:
        settings = publisher_settings(load_box(args.config), 1).link
    settings = replace(settings, client_id=f"facefleet-tail-{secrets.token_hex(4)}", will=None)
    heard: queue.SimpleQueue[Message | str] = queue.SimpleQueue()
    wanted = dict.fromkeys([topics, f"{ROOT}/+/+/state"])  # births name cameras and labels
    link = Link(
        settings,
        on_message=heard.put,
        on_up=lambda *_: None,
        on_down=heard.put,
        subscriptions=[(name, 0) for name in wanted],
    )
    words: Words = {}
    trouble = ""
    link.start()
    try:
        while True:
            said = heard.get()
            link.check()
            if isinstance(said, str):
                if said != trouble:  # once: it is tried again for as long as somebody waits
                    print(f"broker {settings.host}:{settings.port}: {said}; trying again", file=sys.stderr)
                trouble = said
                if said.startswith("refused"):
                    return 1
                continue
            trouble = ""
            learn(words, said.topic, said.payload)
            if matches(topics, said.topic):
                print(readable(said.topic, said.payload, words, retained=said.retain), flush=True)
    except (KeyboardInterrupt, BrokenPipeError):
        return 0
    finally:
        link.stop()


def check_filter(topic_filter: str) -> None:
    """Raise ConfigError for what a broker would hang up on (MQTT 5, section 4.7.1)."""
    *before, last = topic_filter.split("/")
    stray = any("#" in level for level in before) or ("#" in last and last != "#")
    if stray or any("+" in level and level != "+" for level in (*before, last)) or not topic_filter:
        raise ConfigError(f"topic is {topic_filter!r}; expected levels like demo/+/events, and # only as the last one")


def matches(topic_filter: str, topic: str) -> bool:
    """Return whether a topic fits a filter with `+` and `#` (MQTT 5, section 4.7.1)."""
    pattern, levels = topic_filter.split("/"), topic.split("/")
    for i, level in enumerate(pattern):
        if level == "#":
            return True
        if i >= len(levels) or level not in ("+", levels[i]):
            return False
    return len(pattern) == len(levels)


def learn(words: Words, topic: str, payload: bytes) -> None:
    """Take the vocabulary out of a birth or a resent batch."""
    vocabulary = None
    try:
        if topic.endswith("/state") and not topic.startswith(f"{ROOT}/bridge/"):
            vocabulary = msgspec.json.decode(payload, type=BoxState).vocabulary
        elif topic.endswith("/events"):
            vocabulary = decode_batch(payload).vocabulary
    except (ValueError, msgspec.MsgspecError):
        return
    if vocabulary is not None:
        words[vocabulary.digest()] = vocabulary


def readable(topic: str, payload: bytes, words: Words, *, retained: bool = False) -> str:
    """Return one line of JSON for any message of ours; for one that is not, why not."""
    line: dict[str, Any] = {"topic": topic, "bytes": len(payload)}
    if retained:
        line["retained"] = True
    try:
        if topic.endswith("/events"):
            line |= _batch(decode_batch(payload), words)
        elif topic.endswith("/ack"):
            ack = decode_ack(payload)
            line["database"] = str(UUID(bytes=ack.database))
            line["covered"] = {stream_name(c.stream): _ranges(c.upto, c.ranges) for c in ack.covered}
        elif payload:
            line |= json.loads(payload)
            line = {key: _date(value) if key == "t_ms" else value for key, value in line.items()}
    except (ValueError, TypeError, msgspec.MsgspecError) as error:  # WireError and JSON errors are ValueErrors
        line["unreadable"] = str(error)
        line["begins"] = payload[:32].hex()
    return json.dumps(line, ensure_ascii=False)


def _batch(batch: Batch, words: Words) -> dict[str, Any]:
    vocabulary = words.get(batch.vocabulary_digest)
    return {
        "stream": stream_name(batch.stream),
        "clock": _name(Clock, batch.clock),
        "resend": batch.vocabulary is not None,
        "events": [_event(e, seq, batch.base_ms, vocabulary) for seq, e in enumerate(batch.events, batch.first_seq)],
    }


def _event(event: AnyEvent, seq: int, base_ms: int, vocabulary: Vocabulary | None) -> dict[str, Any]:
    said: dict[str, Any] = {"seq": seq, "event": type(event).__name__.lower()}
    fields = msgspec.structs.asdict(event)
    if isinstance(event, Loss):
        return said | fields | {"stream": stream_name(event.stream), "reason": _name(LossReason, event.reason)}
    for key, value in fields.items():
        match key:
            case "camera":
                known = vocabulary is not None and 0 <= value < len(vocabulary.cameras)
                said["camera"] = vocabulary.cameras[value] if vocabulary and known else value
            case "t_ms":
                said["at"] = _date(base_ms + value)
            case "x" | "y" | "w" | "h" | "entry_x" | "entry_y" | "exit_x" | "exit_y":
                said[key] = round(value / BOX_UNIT, 4)
            case "score":
                said["score"] = round(value / SCORE_UNIT, 3)
            case "reason":
                said["reason"] = _name(EndReason, value)
            case "attributes":
                said["attributes"] = _attributes(value, vocabulary)
            case _:
                said[key] = value
    return said


def _attributes(flat: tuple[int, ...], vocabulary: Vocabulary | None) -> dict[str, Any]:
    said = {}
    for head, label, confidence in zip(flat[::3], flat[1::3], flat[2::3], strict=False):
        name, text = str(head), str(label)
        if vocabulary is not None and 0 <= head < len(vocabulary.heads):
            known = vocabulary.heads[head]
            name = known.name
            text = known.labels[label] if 0 <= label < len(known.labels) else text
        said[name] = {"label": text, "confidence": round(confidence / SCORE_UNIT, 3)}
    return said


def _name(kind: type[Clock] | type[EndReason] | type[LossReason], value: int) -> str | int:
    return kind(value).name.lower() if value in list(kind) else value


def _ranges(upto: int, flat: tuple[int, ...]) -> str:
    runs = [(1, upto)] if upto > 0 else []
    runs += list(zip(flat[::2], flat[1::2], strict=False))
    return ", ".join(f"{first}–{last}" for first, last in runs) or "nothing"


def _date(epoch_ms: object) -> object:
    """Return ISO 8601 in UTC; what no calendar holds stays a number."""
    if not isinstance(epoch_ms, int):
        return epoch_ms
    try:
        return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return epoch_ms
