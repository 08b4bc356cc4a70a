"""A face on video becomes a row in PostgreSQL, through every real part; and survives the death of each of them."""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from demo.clip import render
from demo.story import ground_truth
from tests.product import Centre, Process, accepted, arrived, box_yaml, centre, wait_for, written_twice

pytestmark = pytest.mark.timeout(300)

RunBox = Callable[[Path], Process]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="module")
def short_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("short") / "clip.mp4", duration_s=12.0)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Centre]:
    with (
        tempfile.TemporaryDirectory(prefix="facefleet-test-", dir="/var/tmp") as folder,
        centre(Path(folder), tmp_path) as made,
    ):
        yield made


@pytest.fixture
def run_box(tmp_path: Path) -> Iterator[RunBox]:
    """Return a starter of boxes; whatever still runs at the end is killed."""
    started: list[Process] = []

    def run(config: Path) -> Process:
        started.append(Process(["edge.cli", "run", str(config)], tmp_path / "box.log").start())
        return started[-1]

    yield run
    for process in started:
        if process.running:
            process.kill()


def everything_is_there_once(local: Centre, state: Path) -> None:
    assert written_twice(local) == []
    sent = accepted(state)
    assert sent
    assert {stream: arrived(local).get(stream, 0) for stream in sent} == sent
    assert local.rows("SELECT * FROM facefleet.losses") == []
    assert local.rows("SELECT reason, error FROM facefleet.dead_letters") == []


def test_every_visit_of_the_demo_clip_is_one_row(local: Centre, clip: Path, tmp_path: Path, run_box: RunBox) -> None:
    running = run_box(box_yaml(tmp_path, local.port, str(clip)))
    assert running.wait(200) == 0, running.text()[-3000:]
    truth = ground_truth().visits
    rows = local.rows("SELECT started_at, dwell_ms / 1000.0, labels FROM facefleet.visits ORDER BY started_at")
    assert len(rows) == len(truth)
    began = [(row[0] - rows[0][0]).total_seconds() for row in rows]
    for visit, start_s, (_, dwell_s, labels) in zip(truth, began, rows, strict=True):
        assert abs(start_s - (visit.enter_s - truth[0].enter_s)) < 1.5, visit.name
        assert abs(float(dwell_s) - (visit.leave_s - visit.enter_s)) < 2.0, visit.name
        assert "gender" in labels or "age" in labels, visit.name
    [(most,)] = local.rows("SELECT max(most) FROM facefleet.presence")
    # Three are there at once only for the moment in which one of them is half hidden.
    assert most in (2, max(ground_truth().people_at(i) for i in range(ground_truth().frames)))
    everything_is_there_once(local, tmp_path / "state")


@pytest.mark.parametrize("victim", ["box", "broker", "bridge", "postgres"])
def test_every_event_arrives_once_though_one_part_is_killed(
    local: Centre, short_clip: Path, tmp_path: Path, run_box: RunBox, victim: str
) -> None:
    source = {"uri": str(short_clip), "realtime": True}
    config = box_yaml(tmp_path, local.port, "", presence_s=1, cameras=[{"id": "door", "source": source}])
    running = run_box(config)
    wait_for("the first events", lambda: sum(arrived(local).values()) >= 3)
    match victim:
        case "box":
            running.kill()
            running.start()
        case "bridge":
            local.process.kill()
            local.start()
        case _:
            name = "mosquitto" if victim == "broker" else "postgres"
            [oldest, *_] = sorted(local.children(name))
            os.kill(oldest, signal.SIGKILL)
    assert running.wait(100) == 0, running.text()[-3000:]
    everything_is_there_once(local, tmp_path / "state")
    assert len(accepted(tmp_path / "state")) == (2 if victim == "box" else 1)


def test_a_box_starts_without_a_broker_and_delivers_when_one_comes(
    short_clip: Path, tmp_path: Path, run_box: RunBox
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="facefleet-test-", dir="/var/tmp") as folder,
        centre(Path(folder), tmp_path) as local,
    ):
        port = local.port
        assert local.process.stop() == 0
        source = {"uri": str(short_clip), "realtime": True}
        config = box_yaml(tmp_path, port, "", cameras=[{"id": "door", "source": source}])
        running = run_box(config)
        wait_for("the box to say that nobody answers", lambda: "127.0.0.1" in running.text())
        assert running.running
        local.start()
        assert running.wait(100) == 0, running.text()[-3000:]
        everything_is_there_once(local, tmp_path / "state")


def test_a_clip_without_faces_gives_presence_and_no_visit(local: Centre, tmp_path: Path, run_box: RunBox) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for i in range(30):
        cv2.imwrite(str(folder / f"{i:03}.png"), rng.integers(0, 255, (240, 320, 3), dtype=np.uint8))
    (folder / "notes.txt").write_text("not a picture")
    running = run_box(box_yaml(tmp_path, local.port, str(folder)))
    assert running.wait(60) == 0, running.text()[-3000:]
    assert local.rows("SELECT * FROM facefleet.visits") == []
    assert local.rows("SELECT sum(entered) FROM facefleet.presence") == [(0,)]
    assert "notes.txt" in running.text()
    everything_is_there_once(local, tmp_path / "state")
