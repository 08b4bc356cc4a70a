"""The process of a box, run in this one: cameras that do not share their fate, and ends that leave nothing open."""

import contextlib
import json
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

from edge.app import Box, run_box
from edge.box.facts import count_boot
from edge.cli import EXIT_DUPLICATE, main
from edge.config import LoadedConfig, load_box
from edge.errors import ConfigError, EdgeError
from edge.pipeline import Seen
from edge.publish.outbox_file import OutboxFile
from edge.wire import Health
from tests.broker import MOSQUITTO, Amqtt, Mosquitto
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


def test_p30_health_says_that_the_disk_refuses_events_as_soon_as_it_does(box: Any, street: Path) -> None:
    told: list[str | None] = []
    stop = threading.Event()

    def refuse_and_wait(running: Box) -> None:
        running.outbox._held.file._db.execute("PRAGMA query_only = 1")

        def watch() -> None:
            give_up_s = time.monotonic() + 60.0
            while time.monotonic() < give_up_s and not (running.last_health and running.last_health.outbox_trouble):
                time.sleep(0.05)
            told.append(running.last_health.outbox_trouble if running.last_health else None)
            running.outbox._held.file._db.execute("PRAGMA query_only = 0")
            stop.set()

        threading.Thread(target=watch).start()

    source = {"uri": str(street), "realtime": True, "fps": 1}
    assert run_box(box({"door": source}, health_s=600), stop=stop, on_ready=refuse_and_wait) == 0
    assert told == ["cannot write: attempt to write a readonly database"]


def test_health_of_a_box_that_knows_no_trouble_yet_is_read_as_one_without(box: Any, street: Path) -> None:
    old = {"stream": "1", "nonce": "n", "t_ms": 1, "uptime_s": 1, "cameras": {}, "models": {}}
    assert msgspec.convert(old, Health).outbox_trouble is None
    assert "outbox_trouble" not in msgspec.to_builtins(msgspec.convert(old, Health))


def _next(manager: socket.socket) -> str:
    with contextlib.suppress(BlockingIOError):
        return manager.recv(4096).decode()
    return ""


def test_the_manager_hears_of_the_wait_for_the_last_acks(
    box: Any, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd would kill after its own TimeoutStopSec a box that stops by itself and still waits for a bridge."""
    monkeypatch.setattr("edge.app.DELIVER_S", 1.0)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        assert run_box(box({"door": {"uri": str(street)}})) == 1, "there is no broker"
        manager.setblocking(False)
        heard = list(iter(lambda: _next(manager), ""))
    after = heard[heard.index("STOPPING=1") + 1 :]
    assert after[0] == "EXTEND_TIMEOUT_USEC=31000000"
    assert after.count("WATCHDOG=1") > 1


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


def test_p42_second_box_under_one_id_ends_with_75_and_says_why_and_starts_when_the_first_is_gone(
    box: Any, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    with (Mosquitto if MOSQUITTO else Amqtt)(folder) as broker:
        refuse_and_replace(broker, box, street, tmp_path, capsys)


def refuse_and_replace(
    broker: Mosquitto | Amqtt, box: Any, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = {"door": {"uri": str(street), "realtime": True, "fps": 1}}
    mqtt = {"port": broker.port, "protocol": "3.1.1"}
    first, stop, ready = box(sources, mqtt=mqtt), threading.Event(), threading.Event()
    elder = threading.Thread(target=run_box, args=(first,), kwargs={"stop": stop, "on_ready": lambda _: ready.set()})
    elder.start()
    try:
        assert ready.wait(30.0)
        box(sources, mqtt=mqtt, state_dir=str(tmp_path / "another"))  # the same YAML on another card
        time.sleep(1.0)  # births of less than half a second ago are not said again
        assert main(["run", str(tmp_path / "box.yaml")]) == EXIT_DUPLICATE
        assert "another box lives under the id demo/lobby-1" in capsys.readouterr().err
        assert not (tmp_path / "another" / "outbox.db").exists()
    finally:
        stop.set()
        elder.join(30.0)
    over = threading.Event()
    over.set()
    assert run_box(load_box(tmp_path / "box.yaml"), stop=over) == 0
