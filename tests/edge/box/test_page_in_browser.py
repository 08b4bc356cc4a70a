"""The live page of a running box in a real Chromium: the picture moves, the panel is filled, a screenshot shows it."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.app import Box, run_box
from edge.config import load_box
from tests.chromium import browser, program
from tests.edge.conftest import BundleMaker
from tests.product import wait_for

RED = (20, 40, 230)


@pytest.fixture
def running(tmp_path: Path, bundles: BundleMaker) -> Iterator[Box]:
    """Run a box on a red street for as long as a test needs it; its detector sees two faces in whatever is red."""
    bundles.detector()
    picture, folder = tmp_path / "street.png", tmp_path / "frames"
    cv2.imwrite(str(picture), np.full((360, 640, 3), RED, np.uint8))
    folder.mkdir()
    for i in range(1200):
        (folder / f"{i:04}.png").symlink_to(picture)
    mask = [[0, 0.75], [1, 0.75], [1, 1], [0, 1]]
    source = {"uri": f"{folder}/", "realtime": True}
    config = {
        "site": "demo",
        "box": "lobby-1",
        "database": "6c6f6361-6c00-4000-8000-000000000000",
        "models_dir": str(bundles.root),
        "state_dir": str(tmp_path / "state"),
        "heads": [],
        "mqtt": {"port": 9},
        "cameras": [{"id": "door", "detector": "tiny-detector", "source": source, "masks": [mask]}],
        "preview": {"enabled": True, "port": 0, "width": 640},
    }
    (tmp_path / "box.yaml").write_text(json.dumps(config))
    ready, stop, boxes = threading.Event(), threading.Event(), list[Box]()

    def on_ready(box: Box) -> None:
        boxes.append(box)
        ready.set()

    ended: list[int] = []
    thread = threading.Thread(
        target=lambda: ended.append(run_box(load_box(tmp_path / "box.yaml"), stop=stop, on_ready=on_ready))
    )
    thread.start()
    try:
        assert ready.wait(30)
        yield boxes[0]
    finally:
        stop.set()
        thread.join(30)
    assert ended == [0]


def test_the_page_shows_the_camera_and_how_the_box_fares(running: Box, tmp_path: Path) -> None:
    chromium = program()
    if chromium is None:
        pytest.skip("no Chromium here; Debian: apt install chromium")
    assert running.page is not None
    with browser(chromium, tmp_path / "profile") as tab:
        tab.open(running.page.url)
        wait_for("the camera's picture", lambda: tab.evaluate("document.images[0]?.naturalWidth") == 640, 60)
        wait_for("the panel", lambda: "2 here" in (tab.evaluate("document.body.innerText") or ""), 60)
        text = tab.evaluate("document.body.innerText")
        shot = tab.screenshot()
        left = tab.evaluate("JSON.stringify(document.images[0].getBoundingClientRect())")
    for words in ("facefleet", "demo/lobby-1", "door", "streaming", "tiny-detector", "golden ok", "events waiting"):
        assert words in text
    (tmp_path / "page.png").write_bytes(shot)
    picture = cv2.imdecode(np.frombuffer(shot, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    box = json.loads(left)
    top, height = int(box["top"]), int(box["height"])
    street = picture[top : top + height, int(box["left"]) : int(box["right"])]
    red = (np.abs(street.astype(int) - RED) < 40).all(axis=2)
    assert red.mean() > 0.4, "the camera's picture is drawn"
    assert not red[int(0.78 * height) :].any(), "what is masked is not"
    assert len(np.unique(street.reshape(-1, 3), axis=0)) > 50, "boxes and labels are drawn on it"
