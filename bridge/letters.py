"""What does not become a row: dead letters and quarantined events. Nothing is dropped without a trace."""

from collections.abc import Sequence
from hashlib import blake2b

from bridge.connection import Connection
from bridge.runs import DeadLetter, Quarantined
from bridge.statements import INSERT_DEAD_LETTER, INSERT_QUARANTINE


def bury(connection: Connection, letters: Sequence[DeadLetter]) -> None:
    """Write dead letters down; one that was here before is counted."""
    for letter in letters:
        name = b"\0".join((letter.reason.encode(), letter.message.topic.encode(), letter.raw))
        connection.execute(
            INSERT_DEAD_LETTER,
            {
                "at": letter.message.received_at,
                "reason": letter.reason,
                "error": letter.error.replace("\0", "␀")[:2000],
                "topic": letter.message.topic,
                "stream": letter.stream,
                "seq": letter.seq,
                "raw": letter.raw,
                "digest": blake2b(name, digest_size=16).digest(),
            },
        )


def quarantine(connection: Connection, events: Sequence[Quarantined]) -> None:
    """Write events with unbelievable times down (P32)."""
    for event in events:
        message = event.message
        connection.execute(
            INSERT_QUARANTINE,
            (event.stream, event.seq, event.at_ms, message.received_at, message.topic, event.raw),
        )
