"""Damage of the file: what can be read goes on, the rest is a loss."""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.publish.outbox import Outbox
from edge.publish.outbox_file import PAGE_BYTES, salvage
from edge.publish.ranges import Ranges
from edge.wire import Loss, LossReason, Vocabulary, decode_batch
from tests.edge.publish.lives import Make, fill, held, kill, losses, presence


def spoil(path: Path, where: Callable[[bytes], list[int]]) -> None:
    data = bytearray(path.read_bytes())
    for at in where(bytes(data)):
        data[at : at + 512] = os.urandom(512)
    path.write_bytes(data)


def test_damaged_pages_are_set_aside_and_the_unreadable_is_a_loss(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = make()
    fill(outbox, 400)
    outbox._held.file.checkpoint()
    kill(outbox)
    size = (tmp_path / "outbox.db").stat().st_size
    spoil(tmp_path / "outbox.db", lambda _: [size // 2 // 1024 * 1024, size // 2 // 1024 * 1024 + 512])
    again = make()
    again.commit(0.0)
    assert "is damaged" in caplog.text
    assert (tmp_path / "outbox.db.damaged-1").exists()
    said = losses(again)
    assert {(loss.stream, loss.reason) for loss in said} == {(outbox.stream, LossReason.DAMAGED)}
    lost = Ranges((loss.first, loss.last) for loss in said)
    kept = Ranges((row.first, row.last) for row in again.pending(limit=1000) if not again.is_current(row))
    assert list(lost | kept) == [(1, 400)]
    assert 0 < lost.count() < 40
    assert again.state.losses == {"damaged": lost.count()}


def test_a_file_that_is_no_database_is_set_aside_and_a_new_one_started(make: Make, tmp_path: Path) -> None:
    (tmp_path / "outbox.db").write_bytes(os.urandom(5000))
    outbox = make()
    fill(outbox, 1)
    assert held(outbox) == [(1, 1)]
    assert (tmp_path / "outbox.db.damaged-1").exists()


def test_damage_met_while_running_keeps_the_numbers_of_the_stream(make: Make, tmp_path: Path) -> None:
    outbox = make()
    fill(outbox, 300)
    outbox._held.file.checkpoint()
    outbox._held.file._db.execute("PRAGMA cache_size = 0")
    size = (tmp_path / "outbox.db").stat().st_size
    spoil(tmp_path / "outbox.db", lambda _: list(range(4096, size, 1024)))
    for i in range(40):
        outbox.pending(limit=1000)
        fill(outbox, 1, now_s=300.0 + i)
    assert outbox.state.accepted >= 340
    said = losses(outbox)
    lost = Ranges((loss.first, loss.last) for loss in said)
    kept = Ranges(held(outbox))
    assert list(lost | kept) == [(1, outbox.state.accepted)]
    assert (tmp_path / "outbox.db.damaged-1").exists()


def test_p10_what_gathers_after_damage_takes_no_number_that_a_loss_has(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_the_newest(aside: Path) -> Any:
        streams, batches = salvage(aside)
        return streams, sorted(batches, key=lambda found: found[0].key)[:-5]

    monkeypatch.setattr("edge.publish.rescue.salvage", without_the_newest)
    outbox = make()
    fill(outbox, 40)
    outbox.gather = True
    outbox._suspect = sqlite3.DatabaseError("database disk image is malformed")
    outbox._suspect.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    fill(outbox, 2, now_s=40.0)
    kept = held(outbox)
    assert losses(outbox) == [Loss(outbox.stream, 36, 40, LossReason.DAMAGED)]
    assert [seq for first, last in kept for seq in range(first, last + 1)] == [*range(1, 36), *range(41, 44)]


def test_a_batch_whose_bytes_were_spoilt_becomes_a_loss_and_is_not_sent(make: Make) -> None:
    outbox = make()
    fill(outbox, 3)
    row = outbox.pending()[1]
    outbox._held.file._db.execute("UPDATE batches SET payload = x'00' WHERE key = ?", (row.key,))
    assert outbox.payload(row, inline_vocabulary=False) is None
    outbox.commit(4.0)
    assert losses(outbox) == [Loss(outbox.stream, 2, 2, LossReason.DAMAGED)]
    assert held(outbox) == [(1, 1), (3, 3), (4, 4)]


def test_a_torn_tail_of_the_log_costs_nothing_that_was_accepted_before_it(make: Make, tmp_path: Path) -> None:
    outbox = make()
    fill(outbox, 5)
    log = Path(f"{outbox._held.file.path}-wal").read_bytes()
    base = (tmp_path / "outbox.db").read_bytes()
    outbox.append([presence(1)])
    outbox.commit(6.0)
    torn = Path(f"{outbox._held.file.path}-wal").read_bytes()[: len(log) + 700]
    kill(outbox)
    (tmp_path / "outbox.db").write_bytes(base)
    (tmp_path / "outbox.db-wal").write_bytes(torn)
    assert held(make()) == [(i, i) for i in range(1, 6)]


def closed_in_good_order(make: Make, lives: int = 3) -> list[int]:
    """Leave a file with 20 pending batches of each of some lives, which is not checked when it is opened again."""
    streams = []
    for _ in range(lives):
        outbox = make()
        fill(outbox, 20)
        outbox.close(30.0)
        streams.append(outbox.stream)
    return streams


def spoil_streams(path: Path) -> None:
    """Write over the page with all streams of a closed file."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        [(page,)] = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'streams'")
    data = bytearray(path.read_bytes())
    data[(page - 1) * PAGE_BYTES : page * PAGE_BYTES] = b"Z" * PAGE_BYTES
    path.write_bytes(data)


def sent(outbox: Outbox) -> dict[int, list[tuple[int, int]]]:
    """Return the numbers that are pending, by stream, as the bridge would read them."""
    found: dict[int, Ranges] = {}
    for row in outbox.pending(limit=1000):
        batch = decode_batch(outbox.payload(row, inline_vocabulary=True) or b"")
        assert batch.vocabulary is not None
        assert batch.vocabulary.digest() == batch.vocabulary_digest
        found.setdefault(batch.stream, Ranges()).add(batch.first_seq, batch.first_seq + len(batch.events) - 1)
    return {stream: list(ranges) for stream, ranges in found.items()}


def test_p13_batches_whose_streams_cannot_be_read_are_sent_all_the_same(make: Make, tmp_path: Path) -> None:
    """Damage that only shows when a file is read that was closed in good order; every batch says whose it is."""
    streams = closed_in_good_order(make)
    spoil_streams(tmp_path / "outbox.db")
    outbox = make()
    assert sent(outbox) == {stream: [(1, 20)] for stream in streams}
    assert outbox.state.losses == {}
    assert (tmp_path / "outbox.db.damaged-1").exists()


def test_p24_batches_that_nobody_can_explain_any_more_become_losses(make: Make, tmp_path: Path) -> None:
    """Their vocabulary went with their streams, and the config has another one by now. A loss among them is kept."""
    streams = closed_in_good_order(make, lives=2)
    last = make()
    last.append([Loss(7, 3, 5, LossReason.AGE)])
    last.close(0.0)
    spoil_streams(tmp_path / "outbox.db")
    outbox = make(vocabulary=Vocabulary(("another",)))
    outbox.commit(0.0)
    assert losses(outbox) == [
        *(Loss(stream, 1, 20, LossReason.DAMAGED) for stream in streams),
        Loss(7, 3, 5, LossReason.AGE),
        Loss(last.stream, 1, 1, LossReason.DAMAGED),
    ]
    assert outbox.state.losses == {"damaged": 41}


def test_one_stream_whose_row_is_no_message_pack_takes_no_other_with_it(make: Make, tmp_path: Path) -> None:
    streams = closed_in_good_order(make)
    with contextlib.closing(sqlite3.connect(tmp_path / "outbox.db")) as db:
        db.execute("UPDATE streams SET covered = x'c1' WHERE stream = ?", (streams[0],))
        db.commit()
    outbox = make()
    assert sent(outbox) == {stream: [(1, 20)] for stream in streams}
    assert outbox.state.losses == {}
