"""What was accepted, written down by somebody who is not the code under test: (stream, first, last), fsynced.

A witness appends a line once `Outbox.commit` has returned. A SIGKILL may fall between the two; so whatever else an
outbox file holds is read, from a copy and with plain SQL, before the next life opens it.
"""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.publish.outbox import Outbox

SEQ_BITS = 40  # docs say: a key is the stream's place in the file and the first sequence number
Span = tuple[int, int, int]  # stream, first, last


class Witness:
    """A ledger file of one process, append only."""

    def __init__(self, path: Path) -> None:
        """Open the file."""
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(self, stream: int, first: int, last: int) -> None:
        """Write down that these were accepted; on the disk when this returns."""
        os.write(self._fd, f"{stream} {first} {last}\n".encode())
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class WitnessedOutbox(Outbox):
    """The real outbox, watched from outside its commits."""

    def __init__(self, path: Path, *, witness: Witness, **more: Any) -> None:
        """Note what earlier lives left in the file, then open it."""
        for stream, first, last in accepted_in(path):
            witness.note(stream, first, last)
        self._witness = witness
        super().__init__(path, **more)

    def commit(self, now_s: float) -> int:
        """Commit, and write down what came of it."""
        before = self.state.accepted
        accepted = super().commit(now_s)
        after = self.state.accepted
        if after > before:
            self._witness.note(self.stream, before + 1, after)
        return accepted


def spans(path: Path) -> list[Span]:
    """Read a ledger file; a line that a SIGKILL cut short is covered by the next life's."""
    found: list[Span] = []
    for line in path.read_text().split("\n")[:-1]:
        stream, first, last = map(int, line.split())
        found.append((stream, first, last))
    return found


def accepted_in(path: Path) -> list[Span]:
    """Return what an outbox file says it ever accepted: 1…last of each stream."""
    query = """SELECT s.stream, (SELECT max(last) FROM batches WHERE key BETWEEN s.place << ?1
               AND ((s.place + 1) << ?1) - 1) FROM streams s"""
    return [(stream, 1, last) for stream, last in _ask(path, query, SEQ_BITS) if last]


def held_in(path: Path) -> list[Span]:
    """Return the events whose batches an outbox file still has."""
    query = """SELECT s.stream, key & ((1 << ?1) - 1), last FROM batches
               JOIN streams s ON s.place = key >> ?1 ORDER BY key"""
    found: list[Span] = []
    for stream, first, last in _ask(path, query, SEQ_BITS):
        if found and found[-1][0] == stream and found[-1][2] == first - 1:
            found[-1] = (stream, found[-1][1], last)
        else:
            found.append((stream, first, last))
    return found


def _ask(path: Path, query: str, *args: object) -> list[Any]:
    """Query a copy: whoever opens the file itself changes it."""
    if not path.exists():
        return []
    with tempfile.TemporaryDirectory() as folder:
        for part in _parts(path):
            shutil.copyfile(part, Path(folder) / part.name)
        with_file = sqlite3.connect(Path(folder) / path.name)
        try:
            return with_file.execute(query, args).fetchall()
        except sqlite3.DatabaseError:  # no table yet: killed while it was being made
            return []
        finally:
            with_file.close()


def _parts(path: Path) -> Iterator[Path]:
    yield path
    log = path.with_name(path.name + "-wal")
    if log.exists():
        yield log
