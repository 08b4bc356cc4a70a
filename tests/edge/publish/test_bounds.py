"""Size, age and a full disk: what goes leaves a loss, and trouble is said."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.publish.clock import BoxClock, MediaClock
from edge.publish.outbox import TIDY_S, Outbox
from edge.publish.ranges import Ranges
from edge.wire import Covered, Loss, LossReason
from tests.edge.publish.lives import DATABASE, WORDS, Make, fill, held, losses, presence


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
    assert outbox._held.file._db.execute("SELECT count(*) FROM batches").fetchone() == (0,)
    assert outbox._held.file._db.execute("SELECT count(*) FROM streams").fetchone() == (0,)


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
    pages = outbox._held.file._db.execute("PRAGMA page_count").fetchone()[0]
    outbox._held.file._db.execute(f"PRAGMA max_page_count = {pages + 8}")
    fill(outbox, 100, events=50, now_s=50.0)
    said = losses(outbox)
    assert {loss.reason for loss in said} == {LossReason.DISK}
    lost = Ranges((loss.first, loss.last) for loss in said)
    assert list(lost | Ranges(held(outbox))) == [(1, outbox.state.accepted)]
    assert outbox.state.losses == {"disk": lost.count()}


def test_trouble_of_the_disk_stands_until_it_is_over(make: Make, tmp_path: Path) -> None:
    outbox = make(reserve_bytes=1 << 20)
    fill(outbox, 20, events=50)
    pages = outbox._held.file._db.execute("PRAGMA page_count").fetchone()[0]
    outbox._held.file._db.execute(f"PRAGMA max_page_count = {pages}")
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
    outbox._held.file._db.execute("PRAGMA query_only = 1")
    fill(outbox, 1, now_s=2.0)
    assert outbox.state.trouble == "cannot write: attempt to write a readonly database"
    outbox._held.file._db.execute("PRAGMA query_only = 0")
    (tmp_path / "outbox.db.reserve").unlink()
    outbox.commit(3.0)
    assert outbox.state.trouble == "no room on the disk for its reserve"
    outbox.commit(100.0)
    assert outbox.state.trouble == ""


def test_the_reserve_is_taken_where_there_is_plenty(make: Make, tmp_path: Path) -> None:
    make(reserve_bytes=1 << 20)
    assert (tmp_path / "outbox.db.reserve").stat().st_size == 1 << 20
