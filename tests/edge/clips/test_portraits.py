"""The two people of the demo in one video, and only the one who agreed in the clip, by the detector that we ship."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

av = pytest.importorskip("av", reason="needs the extra demo")
pytest.importorskip("skimage", reason="needs the extra demo")
pytest.importorskip("matplotlib", reason="needs the extra demo")

from demo.portraits import Look, cutout  # noqa: E402
from demo.scene import paste  # noqa: E402
from demo.story import Pose, face_aspect  # noqa: E402
from edge.assembly import load_models  # noqa: E402
from edge.box.video import VideoWriter  # noqa: E402
from edge.capture.sources import open_source  # noqa: E402
from edge.capture.spec import SourceSpec  # noqa: E402
from edge.cli import main  # noqa: E402
from edge.config import SHIPPED_MODELS, load_box  # noqa: E402
from edge.models.manifest import Input  # noqa: E402
from edge.track.crops import cut  # noqa: E402
from edge.track.detector import Detector  # noqa: E402
from tests.edge.conftest import BundleMaker  # noqa: E402

pytestmark = pytest.mark.timeout(300)
WH, FPS, SECONDS = (640, 552), 10, 9
COLLINS, HOPPER = Look("collins"), Look("hopper")
COLLINS_S = (3.0, 6.0)
AT = {COLLINS: Pose(170, 250, 150, 0), HOPPER: Pose(470, 250, 150, 0)}
DETECTOR = "yolov10n-face-320"
CONSENT = {"who": "E. C.", "given": "2026-01-31", "until": "2199-12-31", "record": "in this file: a public portrait"}


def face(look: Look) -> NDArray[np.float64]:
    at = AT[look]
    half = np.array([face_aspect(look) * at.face_h / 2, at.face_h / 2])
    centre = np.array([at.x_px, at.y_px])
    return np.concatenate([centre - half, centre + half])


def drawn(*looks: Look, shift_px: float = 0.0) -> NDArray[np.uint8]:
    """Return a picture of these people before a wall, (552, 640, 3) uint8 BGR."""
    canvas = np.full((WH[1], WH[0], 3), (190, 186, 178), np.uint8)
    for look in looks:
        at = AT[look if look in AT else Look(look.portrait)]
        paste(canvas, cutout(look), Pose(at.x_px + shift_px, at.y_px, at.face_h, at.tilt_deg))
    return canvas


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render nine seconds of Hopper standing there; Collins is beside her from the third second to the sixth."""
    path = tmp_path_factory.mktemp("video") / "hall.mp4"
    with VideoWriter(path, WH, FPS) as video:
        for i in range(SECONDS * FPS):
            at_s = i / FPS
            there = (HOPPER, COLLINS) if COLLINS_S[0] <= at_s < COLLINS_S[1] else (HOPPER,)
            video.write(drawn(*there, shift_px=4 * np.sin(at_s)), at_s)
    return video.path


def config(folder: Path, models: Path, head: str) -> Path:
    for name in (DETECTOR,):
        (models / name).symlink_to(SHIPPED_MODELS / name)
    text = {
        "site": "demo",
        "box": "hall-1",
        "database": "6c6f6361-6c00-4000-8000-000000000000",
        "models_dir": str(models),
        "state_dir": str(folder / "state"),
        "heads": [{"name": "me", "bundle": head, "consent": {"me": CONSENT}}],
        "cameras": [{"id": "hall", "detector": DETECTOR, "source": {"uri": "rtsp://192.0.2.1/s"}}],
    }
    (folder / "box.yaml").write_text(json.dumps(text))
    return folder / "box.yaml"


def assert_only_collins(path: Path, hall: Path, out: Path) -> None:
    """Cut; look with the detector for Collins where she stood, and for what is left of Hopper's face."""
    assert main(["clips", str(path), str(hall), "--out", str(out)]) == 0
    listed = json.loads((out / "clips.json").read_text())
    (clip,) = listed["clips"]
    assert clip["start_s"] == pytest.approx(COLLINS_S[0] - 1, abs=0.25)
    assert clip["end_s"] == pytest.approx(COLLINS_S[1] + 0.9, abs=0.25)
    detector = Detector(load_models(load_box(path), log=lambda _: None).detectors[DETECTOR])
    found: dict[Look, list[bool]] = {COLLINS: [], HOPPER: []}
    with open_source(SourceSpec("file", str(out / clip["file"]))) as source:
        while (frame := source.read(0.0)) is not None:
            boxes = detector(frame.image).xyxy
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            for look, seen in found.items():
                x0, y0, x1, y1 = face(look)
                inside = (centres > (x0, y0)) & (centres < (x1, y1))
                seen.append(bool(inside.all(axis=1).any()))
            assert contrast(frame.image, HOPPER) < 0.5 * contrast(drawn(HOPPER), HOPPER)
    assert sum(found[COLLINS]) == pytest.approx((COLLINS_S[1] - COLLINS_S[0]) * FPS, abs=2)
    assert not any(found[HOPPER])


def contrast(image: NDArray[np.uint8], look: Look) -> float:
    x0, y0, x1, y1 = face(look).astype(int)
    return float(cv2.Laplacian(image[y0:y1, x0:x1], cv2.CV_64F).std())


def test_the_clip_shows_her_who_agreed_and_not_whoever_stood_beside_her(
    hall: Path, bundles: BundleMaker, tmp_path: Path
) -> None:
    """The head is two small pictures, the nearer of which it names."""
    crops = np.empty((2, 16, 16, 3), np.uint8)
    for crop, look in zip(crops, (HOPPER, COLLINS), strict=True):
        cut(drawn(look), face(look), 0.0, Input(16, 16), out=crop)
    bundles.nearest(crops, ("other", "me"))
    assert_only_collins(config(tmp_path, bundles.root, "tiny-nearest"), hall, tmp_path / "clips")


@pytest.mark.convert
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_a_head_trained_on_her_pictures_finds_her(hall: Path, tmp_path: Path) -> None:
    """From a folder per class to a clip, by the commands that a person types."""
    pytest.importorskip("torch", reason="needs the extra convert")
    pytest.importorskip("nncf", reason="needs the extra convert")
    from converters.cli import main as convert

    looks: dict[str, Any] = {"me": "collins", "other": "hopper"}
    for label, portrait in looks.items():
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for k in range(10):
            look = Look(portrait, mirrored=k % 2 == 1, gain=0.8 + 0.05 * k, warmth=0.02 * (k % 3 - 1))
            cv2.imwrite(str(tmp_path / "pictures" / label / f"{k}.png"), drawn(look, shift_px=3.0 * k))
    models = tmp_path / "models"
    words = ["--pictures", str(tmp_path / "pictures"), "--bundle", str(models / "collins"), "--times", "3"]
    assert convert(["train-student", *words]) == 0
    assert_only_collins(config(tmp_path, models, "collins"), hall, tmp_path / "clips")
