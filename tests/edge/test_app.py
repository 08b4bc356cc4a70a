"""The process of a box, run in this one: cameras that do not share their fate, and ends that leave nothing open."""

import json
import socket
import sqlite3
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.app import Box, run_box
from edge.box.facts import count_boot
from edge.config import LoadedConfig, load_box
from edge.errors import ConfigError, EdgeError
from edge.pipeline import Seen
from edge.publish.outbox_file import OutboxFile
from tests.edge.conftest import BundleMaker


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Write a folder of red pictures: the tiny detector sees two faces in each."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(20):
        cv2.imwrite(str(folder / f"{i:03}.png"), np.full((64, 64, 3), (20, 40, 230), np.uint8))
    return folder


@pytest.fixture
def box(tmp_path: Path, bundles: BundleMaker) -> Any:
    """Return a function that writes a config with these sources and reads it."""
    bundles.detector()

    def made(sources: dict[str, Any], **more: Any) -> LoadedConfig:
        config = {
            "site": "demo",
            "box": "lobby-1",
            "database": "6c6f6361-6c00-4000-8000-000000000000",
            "models_dir": str(bundles.root),
            "state_dir": str(tmp_path / "state"),
            "heads": [],
            "mqtt": {"port": 9},
            "cameras": [{"id": n, "detector": "tiny-detector", "source": s} for n, s in sources.items()],
        }
        (tmp_path / "box.yaml").write_text(json.dumps(config | more))
        return load_box(tmp_path / "box.yaml")

    return made


def test_a_camera_that_cannot_start_stops_no_other_and_is_told_in_the_end(box: Any, street: Path) -> None:
    frames: dict[str, int] = {}

    def count(name: str, _: Seen) -> None:
        frames[name] = frames.get(name, 0) + 1

    with pytest.raises(EdgeError, match=r"camera gone: .*gone.mp4: no such file"):
        run_box(box({"gone": {"uri": "gone.mp4"}, "door": {"uri": str(street)}}), observers=[count])
    assert frames == {"door": 20}


def test_a_stop_is_a_good_end_though_a_camera_had_failed(box: Any, street: Path) -> None:
    stop = threading.Event()
    sources = {"gone": {"uri": "gone.mp4"}, "door": {"uri": str(street), "realtime": True, "fps": 1}}
    assert run_box(box(sources), stop=stop, observers=[lambda _, __: stop.set()]) == 0


def test_a_stop_before_the_first_frame_is_a_good_end_too(box: Any, street: Path) -> None:
    stop = threading.Event()
    stop.set()
    assert run_box(box({"door": {"uri": str(street), "realtime": True}}), stop=stop) == 0


def test_a_bug_in_one_camera_ends_the_process_and_the_others_visits(
    box: Any, street: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(name: str, _: Seen) -> None:
        if name == "bad":
            raise ZeroDivisionError("by zero")

    slow = {"uri": str(street), "realtime": True, "fps": 1}
    with pytest.raises(EdgeError, match="ZeroDivisionError"):
        run_box(box({"bad": {"uri": str(street)}, "door": slow}), observers=[stumble])
    assert "camera bad died" in caplog.text
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("camera", "publisher"))]


def test_a_recording_of_the_future_is_refused(box: Any, street: Path) -> None:
    with pytest.raises(EdgeError, match=r"recorded_at lies \d+ s in the future"):
        run_box(box({"door": {"uri": str(street), "recorded_at": "2200-01-01T00:00:00Z"}}))


def test_a_page_that_cannot_listen_leaves_no_outbox_open(
    box: Any, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Path] = []
    really = OutboxFile.close

    def close(self: OutboxFile) -> None:
        really(self)
        closed.append(tmp_path)

    monkeypatch.setattr(OutboxFile, "close", close)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        preview = {"enabled": True, "port": taken.getsockname()[1]}
        with pytest.raises(EdgeError, match="live page cannot listen on"):
            run_box(box({"door": {"uri": str(street)}}, preview=preview))
    assert closed
    with sqlite3.connect(tmp_path / "state" / "outbox.db") as file:
        file.execute("BEGIN EXCLUSIVE")
    file.close()


def test_a_certificate_that_is_not_there_is_told_and_leaves_no_outbox_open(
    box: Any, street: Path, tmp_path: Path
) -> None:
    mqtt = {"port": 9, "tls": {"ca": "gone.pem"}}
    with pytest.raises(EdgeError, match=r"gone\.pem"):
        run_box(box({"door": {"uri": str(street)}}, mqtt=mqtt))
    with sqlite3.connect(tmp_path / "state" / "outbox.db") as file:
        file.execute("BEGIN EXCLUSIVE")
    file.close()


def test_a_secret_of_the_live_page_that_is_not_there_is_told_before_models_are_loaded(
    box: Any, street: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.app.load_models", lambda *_, **__: pytest.fail("models were loaded"))
    preview = {"enabled": True, "host": "0.0.0.0", "token": {"credential": "page"}}
    with pytest.raises(ConfigError, match=r"preview.token: credential 'page' was not found"):
        run_box(box({"door": {"uri": str(street)}}, preview=preview))


def test_a_disk_that_takes_no_boot_count_does_not_keep_a_box_from_starting(tmp_path: Path) -> None:
    (tmp_path / "boots.new").mkdir()  # as good as a full disk: the file beside cannot be written
    assert count_boot(tmp_path) == 1


def test_the_live_pages_status_is_gathered_once_for_all_who_watch(box: Any, street: Path) -> None:
    stop, told = threading.Event(), list[object]()

    def on_ready(made: Box) -> None:
        assert made.page is not None
        told.extend([made.page.status(), made.page.status()])
        stop.set()

    source = {"uri": str(street), "realtime": True}
    run_box(box({"door": source}, preview={"enabled": True, "port": 0}), stop=stop, on_ready=on_ready)
    assert told[0] is told[1]
