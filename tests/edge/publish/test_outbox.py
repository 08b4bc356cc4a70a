"""What a box may not forget: acceptance, acks, bounds, damage, a full disk."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from edge.errors import OutboxError
from edge.publish.clock import BoxClock, MediaClock
from edge.publish.outbox import DOUBT_S, GATHER_ROWS, TIDY_S, Outbox
from edge.publish.outbox_file import salvage
from edge.publish.ranges import Ranges
from edge.wire import Clock, Covered, Ended, Head, Loss, LossReason, Presence, Vocabulary, decode_batch

DATABASE, OTHER = UUID(int=1), UUID(int=2)
WORDS = Vocabulary(("cam",), (Head("age", ("young", "old")),))
Make = Callable[..., Outbox]


def presence(at_ms: int) -> Presence:
    return Presence(0, at_ms, 60_000, 1, 500, 1)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return what opens the same outbox again, as the next life of the process."""
    streams = iter(range(101, 200))
    opened: list[Outbox] = []

    def _make(**changes: Any) -> Outbox:
        settings: dict[str, Any] = {
            "stream": next(streams), "vocabulary": WORDS, "clock": MediaClock(1_000_000), "reserve_bytes": 0,
        }  # fmt: skip
        outbox = Outbox(tmp_path / "outbox.db", **(settings | changes))
        outbox.use(DATABASE)
        opened.append(outbox)
        return outbox

    yield _make
    for outbox in opened:
        with contextlib.suppress(sqlite3.Error):
            outbox.close()


def kill(outbox: Outbox) -> None:
    """End as a SIGKILL does: nothing is said to the file any more."""
    outbox._file._db.close()


def fill(outbox: Outbox, batches: int, events: int = 1, now_s: float = 0.0) -> None:
    for i in range(batches):
        outbox.append([presence(i * 1000 + k) for k in range(events)])
        outbox.commit(now_s + i)


def held(outbox: Outbox) -> list[tuple[int, int]]:
    """Return (first, last) of the pending batches."""
    return [(row.first, row.last) for row in outbox.pending(limit=100_000)]


def losses(outbox: Outbox) -> list[Loss]:
    rows = outbox.pending(limit=100_000)
    payloads = [outbox.payload(row, inline_vocabulary=False) for row in rows]
    return [e for raw in payloads if raw for e in decode_batch(raw).events if isinstance(e, Loss)]


def test_p13_events_are_accepted_by_the_commit_and_are_there_after_a_kill(make: Make) -> None:
    outbox = make()
    outbox.append([presence(1), presence(2)])
    assert (outbox.state.events, outbox.idle()) == (0, False)
    assert outbox.commit(0.0) == 2
    outbox.append([presence(3)])
    kill(outbox)
    again = make()
    assert held(again) == [(1, 2)]
    assert again.state.events == 2


def test_p13_one_commit_makes_batches_of_at_most_500_without_holes(make: Make) -> None:
    outbox = make()
    outbox.append([presence(i) for i in range(1201)])
    assert outbox.commit(0.0) == 1201
    assert held(outbox) == [(1, 500), (501, 1000), (1001, 1201)]


def test_p13_synchronous_is_full_and_the_log_is_written_ahead(make: Make) -> None:
    db = make()._file._db
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_p6_a_batch_whose_resend_would_be_too_large_is_split(make: Make) -> None:
    words = Vocabulary(("cam",), (Head("huge", tuple(f"label {i} {'x' * 60}" for i in range(3200))),))
    outbox = make(vocabulary=words)
    attributes = tuple(range(256)) * 2
    outbox.append([Ended(0, 1, i, *[2000] * 10, attributes) for i in range(300)])
    outbox.commit(0.0)
    rows = outbox.pending(limit=1000)
    assert len(rows) > 1
    assert [row.first for row in rows[1:]] == [row.last + 1 for row in rows[:-1]]
    for row in rows:
        assert decode_batch(outbox.payload(row, inline_vocabulary=True) or b"").vocabulary == words


def test_p12_a_resend_changes_nothing_but_the_vocabulary(make: Make) -> None:
    for deflate in (False, True):
        outbox = make(deflate=deflate)
        outbox.append([presence(i) for i in range(20)])
        outbox.commit(0.0)
        row = outbox.pending(limit=100)[-1]
        first, again = (outbox.payload(row, inline_vocabulary=inline) or b"" for inline in (False, True))
        one, two = decode_batch(first), decode_batch(again)
        assert (one.vocabulary, two.vocabulary) == (None, WORDS)
        assert [one.stream, one.first_seq, one.base_ms, one.events] == [
            two.stream, two.first_seq, two.base_ms, two.events,
        ]  # fmt: skip
        if not deflate:
            assert again[1 : len(first)] == first[1:], "appended to the envelope, every byte before it as it was"
            assert (first[0], again[0]) == (0x97, 0x98), "an array of seven, and of eight"
        outbox.close()


def test_p21_events_of_an_outage_gather_in_batches_and_mean_what_they_meant(make: Make) -> None:
    outbox = make()
    outbox.gather = True
    for i in range(120):
        outbox.append([presence(1_000 * i)])
        outbox.commit(float(i))
    rows = outbox.pending(limit=1000)
    assert held(outbox)[:2] == [(1, 50), (51, 100)]
    assert [row.made_s for row in rows[:2]] == [0, 50], "as old as the oldest event in it"
    assert [row.first for row in rows[2:]] == list(range(101, 121)), "not yet worth writing again"
    batches = [decode_batch(outbox.payload(row, inline_vocabulary=False) or b"") for row in rows]
    times = [batch.base_ms + event.t_ms for batch in batches for event in batch.events if isinstance(event, Presence)]
    assert [t - times[0] for t in times] == [1_000 * i for i in range(120)]


def test_p12_nothing_joins_a_batch_that_has_left_the_file_or_is_of_an_earlier_life(make: Make) -> None:
    outbox = make()
    outbox.gather = True
    fill(outbox, 5)
    sent = {row.key: outbox.payload(row, inline_vocabulary=False) for row in outbox.pending()}
    fill(outbox, GATHER_ROWS)
    assert held(outbox)[:5] == [(i, i) for i in range(1, 6)]
    fill(outbox, 1)
    assert held(outbox)[5:] == [(6, GATHER_ROWS + 6)], "all that had not been sent became one"
    rows = [row for row in outbox.pending() if row.key in sent]
    assert {row.key: outbox.payload(row, inline_vocabulary=False) for row in rows} == sent
    kill(outbox)
    reborn = make()
    reborn.gather = True
    fill(reborn, GATHER_ROWS + 1)
    assert [(r.place, r.first, r.last) for r in reborn.pending()][5:] == [(1, 6, GATHER_ROWS + 6), (2, 1, 25)]


def test_p21_what_can_be_sent_at_once_is_not_gathered(make: Make) -> None:
    outbox = make()
    fill(outbox, 3 * GATHER_ROWS)
    assert held(outbox) == [(i, i) for i in range(1, 3 * GATHER_ROWS + 1)]


def test_p12_times_are_stamped_once_on_entering(make: Make) -> None:
    wall = [2_000_000_000.0]
    clock = BoxClock(wall=lambda: wall[0], mono=lambda: 100.0, synchronized=lambda: True)
    outbox = make(clock=clock)
    outbox.append([presence(90_000)])
    wall[0] += 86_400
    outbox.append([presence(90_000)])
    outbox.commit(0.0)
    batch = decode_batch(outbox.payload(outbox.pending()[0], inline_vocabulary=False) or b"")
    assert batch.base_ms == (2_000_000_000 - 10) * 1000
    assert [event.t_ms for event in batch.events if isinstance(event, Presence)] == [0, 86_400_000]


def test_p31_events_of_different_trust_go_into_different_batches(make: Make) -> None:
    state = [False]
    mono = [0.0]
    clock = BoxClock(wall=lambda: 2e9, mono=lambda: mono[0], synchronized=lambda: state[0])
    outbox = make(clock=clock)
    outbox.append([presence(0)])
    state[0], mono[0] = True, 20.0
    outbox.append([presence(0)])
    outbox.commit(0.0)
    clocks = [decode_batch(outbox.payload(r, inline_vocabulary=False) or b"").clock for r in outbox.pending()]
    assert clocks == [Clock.ESTIMATED, Clock.SYNCHRONIZED]


def test_p31_the_next_life_knows_what_time_has_passed_already(make: Make) -> None:
    outbox = make(clock=BoxClock(wall=lambda: 2e9, mono=lambda: 0.0, synchronized=lambda: True))
    fill(outbox, 1)
    outbox.commit(TIDY_S + 1)
    outbox.close()
    clock = BoxClock(wall=lambda: 30.0, mono=lambda: 0.0, synchronized=lambda: False)
    make(clock=clock)
    assert clock.stamp(0.0)[0] >= 2e12


def test_p14_only_an_ack_of_the_whole_batch_takes_it_out(make: Make) -> None:
    outbox = make()
    fill(outbox, 3, events=10)
    stream = outbox.stream
    outbox.cover(DATABASE, [Covered(stream, 0, (2, 9, 11, 20))], 0.0)
    assert held(outbox) == [(1, 10), (21, 30)]
    outbox.cover(DATABASE, [Covered(stream, 9, (11, 20))], 0.0)
    assert held(outbox) == [(1, 10), (21, 30)]
    outbox.cover(DATABASE, [Covered(stream, 10, (11, 20))], 0.0)
    assert held(outbox) == [(21, 30)]
    assert not outbox.idle()
    outbox.cover(DATABASE, [Covered(stream, 30)], 0.0)
    assert outbox.idle()


def test_p16_acks_merge_by_union_whatever_their_order(make: Make) -> None:
    outbox = make()
    fill(outbox, 20)
    acks = [Covered(outbox.stream, 4), Covered(outbox.stream, 2, (6, 9)), Covered(outbox.stream, 12)]
    random.Random(3).shuffle(acks)
    for ack in acks:
        outbox.cover(DATABASE, [ack], 0.0)
    assert held(outbox)[0] == (13, 13)


def test_p16_nobody_can_hold_what_was_never_accepted(make: Make) -> None:
    """A hostile or mistaken ack must not swallow the events of tomorrow."""
    outbox = make()
    fill(outbox, 2)
    outbox.cover(DATABASE, [Covered(outbox.stream, 10**9), Covered(77, 5)], 0.0)
    fill(outbox, 1, now_s=5.0)
    assert held(outbox) == [(3, 3)]


def test_p18_acks_of_another_database_change_nothing(make: Make) -> None:
    outbox = make()
    fill(outbox, 2)
    assert outbox.cover(OTHER, [Covered(outbox.stream, 2)], 0.0) == 0
    assert held(outbox) == [(1, 1), (2, 2)]


def test_p18_a_config_that_names_another_database_makes_everything_pending_again(make: Make) -> None:
    outbox = make()
    fill(outbox, 3)
    outbox.cover(DATABASE, [Covered(outbox.stream, 3)], 0.0)
    outbox.close(10.0)
    again = make()
    assert held(again) == []
    again.use(OTHER)
    assert held(again) == [(1, 1), (2, 2), (3, 3)]


def test_acks_survive_a_restart_once_written_down_and_older_streams_are_sent_first(make: Make) -> None:
    outbox = make()
    fill(outbox, 4)
    outbox.cover(DATABASE, [Covered(outbox.stream, 2)], 4.0)
    outbox.commit(20.0)
    kill(outbox)
    again = make()
    fill(again, 1)
    rows = again.pending()
    assert [(row.first, again.is_current(row)) for row in rows] == [(3, False), (4, False), (1, True)]
    assert decode_batch(again.payload(rows[0], inline_vocabulary=True) or b"").vocabulary == WORDS
    assert decode_batch(again.payload(rows[0], inline_vocabulary=True) or b"").stream == outbox.stream


def test_p23_acked_batches_stay_and_are_pending_again_when_the_centre_was_restored(make: Make) -> None:
    outbox = make()
    fill(outbox, 10)
    outbox.cover(DATABASE, [Covered(outbox.stream, 10)], 10.0)
    outbox.cover(DATABASE, [Covered(outbox.stream, 6)], 11.0)
    outbox.commit(11.5)
    assert held(outbox) == [], "one ack that says less may just be late"
    outbox.commit(11.0 + DOUBT_S)
    assert held(outbox) == [(7, 7), (8, 8), (9, 9), (10, 10)]
    assert outbox.retakes == 1
    kill(outbox)
    assert [row.first for row in make().pending()] == [7, 8, 9, 10], "and the file knows it"


def test_p23_a_late_ack_is_corrected_by_the_next_and_nothing_is_sent_again(make: Make) -> None:
    outbox = make()
    fill(outbox, 10)
    for upto, at_s in ((10, 10.0), (6, 11.0), (10, 12.0)):
        outbox.cover(DATABASE, [Covered(outbox.stream, upto)], at_s)
    outbox.commit(100.0)
    assert held(outbox) == []


def test_p23_once_the_centre_was_restored_streams_it_no_longer_names_are_sent_again_too(make: Make) -> None:
    old = make()
    fill(old, 3)
    old.cover(DATABASE, [Covered(old.stream, 3)], 3.0)
    old.close(20.0)
    outbox = make()
    fill(outbox, 2)
    outbox.cover(DATABASE, [Covered(outbox.stream, 2)], 2.0)
    fill(outbox, 1, now_s=3.0)
    outbox.cover(DATABASE, [Covered(outbox.stream, 0, (3, 3))], 4.0)
    outbox.commit(4.0 + DOUBT_S)
    assert held(outbox) == [(1, 1), (2, 2), (3, 3), (1, 1), (2, 2)]


def test_p23_a_complete_ack_that_names_a_stream_no_longer_says_the_database_has_nothing_of_it(make: Make) -> None:
    """The backup is older than the stream's first event, and a box with nothing to send hears of no ranges."""
    old = make()
    fill(old, 3)
    old.cover(DATABASE, [Covered(old.stream, 3)], 3.0)
    old.close(20.0)
    outbox = make()
    outbox.cover(DATABASE, [Covered(outbox.stream, 0)], 4.0)
    outbox.commit(4.0 + DOUBT_S)
    assert held(outbox) == [], "an ack that is not complete says nothing of what it leaves out"
    outbox.cover(DATABASE, [Covered(outbox.stream, 0)], 20.0, complete=True)
    outbox.commit(21.0)
    assert held(outbox) == [], "it may be a late one"
    outbox.commit(20.0 + DOUBT_S)
    assert held(outbox) == [(1, 1), (2, 2), (3, 3)]


def test_p23_a_complete_ack_that_was_late_is_corrected_by_the_next(make: Make) -> None:
    outbox = make()
    fill(outbox, 3)
    outbox.cover(DATABASE, [Covered(outbox.stream, 3)], 3.0)
    outbox.cover(DATABASE, [], 4.0, complete=True)
    outbox.cover(DATABASE, [Covered(outbox.stream, 3)], 5.0)
    outbox.commit(60.0)
    assert held(outbox) == []


def test_p23_a_hole_below_what_the_ack_names_is_taken_back_too(make: Make) -> None:
    outbox = make()
    fill(outbox, 10)
    outbox.cover(DATABASE, [Covered(outbox.stream, 9)], 10.0)
    outbox.cover(DATABASE, [Covered(outbox.stream, 4, (8, 10))], 11.0)
    outbox.commit(11.0 + DOUBT_S)
    assert held(outbox) == [(5, 5), (6, 6), (7, 7)]


def test_p23_a_bridge_that_names_only_its_first_ranges_takes_nothing_back(make: Make) -> None:
    outbox = make()
    fill(outbox, 10)
    outbox.cover(DATABASE, [Covered(outbox.stream, 2, (4, 5, 7, 10))], 10.0)
    outbox.cover(DATABASE, [Covered(outbox.stream, 2, (4, 5))], 11.0)
    outbox.commit(30.0)
    assert held(outbox) == [(3, 3), (6, 6)]


def test_p24_acked_batches_go_first_when_space_is_needed(make: Make) -> None:
    outbox = make(max_bytes=600_000)
    fill(outbox, 30, events=200)
    outbox.cover(DATABASE, [Covered(outbox.stream, 3000)], 30.0)
    fill(outbox, 45, events=200, now_s=31.0)
    assert outbox.state.losses == {}
    assert outbox.state.events == 75 * 200 - 3000
    assert outbox.state.bytes <= 600_000


def test_p24_unacked_events_that_must_go_leave_a_loss_and_the_file_keeps_its_bound(make: Make) -> None:
    outbox = make(max_bytes=2_000_000)
    for i in range(350):
        fill(outbox, 1, events=500, now_s=float(i))
        assert outbox.state.bytes <= 2_000_000
    said = losses(outbox)
    lost = Ranges((loss.first, loss.last) for loss in said)
    kept = Ranges(held(outbox))
    assert {loss.reason for loss in said} == {LossReason.SIZE}
    assert {loss.stream for loss in said} == {outbox.stream}
    assert outbox.state.losses == {"size": lost.count()}
    assert list(lost | kept) == [(1, outbox.state.accepted)], "every number is held or said to be lost"
    assert not lost & kept


def test_p24_events_too_old_are_lost_by_age_and_running_time_alone_makes_old(make: Make) -> None:
    wall = [1.6e9]
    outbox = make(max_age_s=1000.0, clock=BoxClock(wall=lambda: wall[0], mono=lambda: 0.0, synchronized=lambda: True))
    fill(outbox, 5)
    wall[0] += 10 * 365 * 86_400
    outbox.commit(TIDY_S + 1)
    assert outbox.state.losses == {}, "a step of the wall clock makes nothing old"
    assert outbox.state.oldest_s == pytest.approx(TIDY_S + 1, abs=1)
    outbox.commit(1002.5)
    assert outbox.state.losses == {"age": 2}
    assert losses(outbox) == [Loss(outbox.stream, 1, 2, LossReason.AGE)]
    assert held(outbox) == [(3, 3), (4, 4), (5, 5), (6, 6)]


def test_p24_a_loss_that_is_lost_itself_is_said_again(make: Make) -> None:
    outbox = make(max_age_s=100.0)
    fill(outbox, 2)
    outbox.commit(170.0)
    assert losses(outbox) == [Loss(outbox.stream, 1, 2, LossReason.AGE)]
    outbox.commit(400.0)
    assert losses(outbox) == [Loss(outbox.stream, 1, 3, LossReason.AGE)]


def test_acked_batches_leave_by_age_without_a_loss_and_empty_streams_are_forgotten(make: Make) -> None:
    old = make()
    fill(old, 3)
    old.cover(DATABASE, [Covered(old.stream, 3)], 3.0)
    old.close(20.0)
    outbox = make(max_age_s=100.0)
    outbox.commit(0.0)
    for i in range(1, 8):
        outbox.commit(i * (TIDY_S + 1))
    assert outbox.state.losses == {}
    assert outbox._file._db.execute("SELECT count(*) FROM batches").fetchone() == (0,)
    assert outbox._file._db.execute("SELECT count(*) FROM streams").fetchone() == (0,)


def test_p25_events_that_cannot_be_kept_are_counted_by_reason(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.publish.outbox.BUFFER_EVENTS", 5)
    outbox = make()
    outbox.append([Presence(0, 1, 0.5, 1, 1, 1)])  # type: ignore[arg-type]
    outbox.append([presence(i) for i in range(9)])
    outbox.append([presence(9)])
    assert outbox.commit(0.0) == 5
    assert outbox.state.refused == {"invalid": 1, "buffer": 5}


def test_p10_a_stream_that_the_file_knows_already_is_refused(make: Make) -> None:
    outbox = make(stream=7)
    fill(outbox, 1)
    outbox.close()
    with pytest.raises(OutboxError, match="already has stream 0000000000000007"):
        make(stream=7)


def test_a_second_process_cannot_open_the_same_outbox(make: Make) -> None:
    fill(make(), 1)
    with pytest.raises(OutboxError, match="in use by another process; stop that one first"):
        make()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutboxError, match=r"file/outbox.db cannot be opened.*its folder must be writable"):
        Outbox(tmp_path / "file" / "outbox.db", stream=1, vocabulary=WORDS)


def test_append_is_safe_from_many_threads(make: Make) -> None:
    outbox = make()
    threads = [threading.Thread(target=lambda: [outbox.append([presence(i)]) for i in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        outbox.commit(0.0)
    outbox.commit(1.0)
    assert outbox.state.events == outbox.state.accepted == 800


# -- damage ----------------------------------------------------------------------------------------------------------


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
    outbox._file.checkpoint()
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
    outbox._file.checkpoint()
    outbox._file._db.execute("PRAGMA cache_size = 0")
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

    monkeypatch.setattr("edge.publish.outbox.salvage", without_the_newest)
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
    outbox._file._db.execute("UPDATE batches SET payload = x'00' WHERE key = ?", (row.key,))
    assert outbox.payload(row, inline_vocabulary=False) is None
    outbox.commit(4.0)
    assert losses(outbox) == [Loss(outbox.stream, 2, 2, LossReason.DAMAGED)]
    assert held(outbox) == [(1, 1), (3, 3), (4, 4)]


def test_a_torn_tail_of_the_log_costs_nothing_that_was_accepted_before_it(make: Make, tmp_path: Path) -> None:
    outbox = make()
    fill(outbox, 5)
    log = Path(f"{outbox._file.path}-wal").read_bytes()
    base = (tmp_path / "outbox.db").read_bytes()
    outbox.append([presence(1)])
    outbox.commit(6.0)
    torn = Path(f"{outbox._file.path}-wal").read_bytes()[: len(log) + 700]
    kill(outbox)
    (tmp_path / "outbox.db").write_bytes(base)
    (tmp_path / "outbox.db-wal").write_bytes(torn)
    assert held(make()) == [(i, i) for i in range(1, 6)]


# -- kills and full disks --------------------------------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from uuid import UUID
from edge.publish.outbox import Outbox
from edge.wire import Presence, Vocabulary
outbox = Outbox(Path(sys.argv[1]), stream=int(sys.argv[2]), vocabulary=Vocabulary(("cam",)), max_bytes=1 << 20)
outbox.use(UUID(int=1))
i = 0
while True:
    outbox.append([Presence(0, 1000 * i + k, 60000, 1, 5, 1) for k in range(i % 7 + 1)])
    outbox.commit(time.monotonic())
    print(outbox.state.accepted, flush=True)
    i += 1
"""


def test_p13_everything_accepted_is_there_after_sigkill(tmp_path: Path) -> None:
    path, rng = tmp_path / "outbox.db", random.Random(4)
    accepted: dict[int, int] = {}
    for stream in range(1, 6):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path, str(stream)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        for _ in range(rng.randrange(1, 60)):
            accepted[stream] = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split(b"\n")[:-1]  # said before the kill, read after it
        accepted[stream] = int(rest[-1]) if rest else accepted[stream]
        writer.wait()
        writer.stdout.close()
    outbox = Outbox(path, stream=99, vocabulary=WORDS)
    outbox.use(DATABASE)
    found: dict[int, Ranges] = {}
    for row in outbox.pending(limit=100_000):
        batch = decode_batch(outbox.payload(row, inline_vocabulary=True) or b"")
        found.setdefault(batch.stream, Ranges()).add(row.first, row.last)
    for stream, last in accepted.items():
        assert len(list(found[stream])) == 1
        assert found[stream].covers(1, last)
    outbox.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.root
def test_p24_on_a_full_disk_the_reserve_is_released_and_the_oldest_are_lost_with_a_reason(small_disk: Path) -> None:
    outbox = Outbox(small_disk / "outbox.db", stream=5, vocabulary=WORDS, clock=MediaClock(0), reserve_bytes=512 << 10)
    outbox.use(DATABASE)
    reserve = small_disk / "outbox.db.reserve"
    assert reserve.stat().st_size == 512 << 10
    fill(outbox, 20, events=100)
    (small_disk / "somebody else's").write_bytes(b"x" * 1_000_000)
    for i in range(600):
        fill(outbox, 1, events=400, now_s=20.0 + i)
    assert not reserve.exists()
    assert "disk" in outbox.state.losses
    lost = Ranges((loss.first, loss.last) for loss in losses(outbox))
    assert list(lost | Ranges(held(outbox))) == [(1, outbox.state.accepted)]
    assert outbox.state.accepted >= 242_000
    (small_disk / "somebody else's").unlink()
    outbox.cover(DATABASE, [Covered(5, outbox.state.accepted)], 700.0)
    outbox.commit(5000.0)
    outbox.close()


@pytest.mark.root
def test_p13_a_disk_that_takes_nothing_at_all_keeps_events_in_memory_and_says_so(small_disk: Path) -> None:
    outbox = Outbox(small_disk / "outbox.db", stream=5, vocabulary=WORDS, clock=MediaClock(0), reserve_bytes=0)
    outbox.use(DATABASE)
    fill(outbox, 1)
    hog = (small_disk / "hog").open("wb")
    with contextlib.suppress(OSError):
        while True:
            hog.write(b"x" * 4096)
            hog.flush()
    taken, asked = 0, 0
    for i in range(200):
        outbox.append([presence(k) for k in range(50)])
        taken, asked = taken + outbox.commit(2.0 + i), asked + 50
        if outbox.state.trouble:
            break
    assert "cannot write" in outbox.state.trouble or outbox.state.losses
    with contextlib.suppress(OSError):
        hog.close()
    (small_disk / "hog").unlink()
    taken += outbox.commit(300.0)
    assert taken == asked
    assert outbox.state.trouble == ""
    outbox.close()


def test_p24_a_file_that_may_not_grow_is_met_without_a_disk(make: Make) -> None:
    """SQLite's own limit raises the very error of a full disk."""
    outbox = make()
    fill(outbox, 50, events=50)
    pages = outbox._file._db.execute("PRAGMA page_count").fetchone()[0]
    outbox._file._db.execute(f"PRAGMA max_page_count = {pages + 8}")
    fill(outbox, 100, events=50, now_s=50.0)
    said = losses(outbox)
    assert {loss.reason for loss in said} == {LossReason.DISK}
    lost = Ranges((loss.first, loss.last) for loss in said)
    assert list(lost | Ranges(held(outbox))) == [(1, outbox.state.accepted)]
    assert outbox.state.losses == {"disk": lost.count()}


def test_trouble_of_the_disk_stands_until_it_is_over(make: Make, tmp_path: Path) -> None:
    outbox = make(reserve_bytes=1 << 20)
    fill(outbox, 20, events=50)
    pages = outbox._file._db.execute("PRAGMA page_count").fetchone()[0]
    outbox._file._db.execute(f"PRAGMA max_page_count = {pages}")
    now_s = 30.0
    while not outbox.state.trouble and now_s < 59.0:
        now_s += 0.1
        fill(outbox, 1, events=400, now_s=now_s)
    assert outbox.state.trouble == "disk full, reserve released"
    outbox.commit(now_s + 0.1)
    fill(outbox, 1, events=1, now_s=now_s + 0.2)
    assert outbox.state.trouble.startswith("disk full"), "no less true because one more event found room"
    outbox.commit(200.0)
    assert outbox.state.trouble == ""
    assert (tmp_path / "outbox.db.reserve").exists(), "there is plenty again"


def test_trouble_names_a_disk_that_is_read_only_and_a_reserve_that_is_gone(make: Make, tmp_path: Path) -> None:
    outbox = make(reserve_bytes=1 << 20)
    fill(outbox, 1)
    outbox._file._db.execute("PRAGMA query_only = 1")
    fill(outbox, 1, now_s=2.0)
    assert outbox.state.trouble == "cannot write: attempt to write a readonly database"
    outbox._file._db.execute("PRAGMA query_only = 0")
    (tmp_path / "outbox.db.reserve").unlink()
    outbox.commit(3.0)
    assert outbox.state.trouble == "no room on the disk for its reserve"
    outbox.commit(100.0)
    assert outbox.state.trouble == ""


def test_the_reserve_is_taken_where_there_is_plenty(make: Make, tmp_path: Path) -> None:
    make(reserve_bytes=1 << 20)
    assert (tmp_path / "outbox.db.reserve").stat().st_size == 1 << 20
