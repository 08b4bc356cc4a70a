"""What a box may not forget: acceptance, gathering, lives, threads, kills."""

import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge.errors import OutboxError
from edge.publish.clock import BoxClock
from edge.publish.outbox import GATHER_ROWS, TIDY_S, Outbox
from edge.publish.ranges import Ranges
from edge.wire import Clock, Ended, Head, Presence, Vocabulary, decode_batch
from tests.edge.publish.lives import DATABASE, WORDS, Make, fill, held, kill, presence


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
    db = make()._held.file._db
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
