"""A Keras single-face regressor, trained a little, through the command line into a box: does it find the face?"""

from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")
pytest.importorskip("nncf", reason="needs the extra convert")
pytest.importorskip("h5py", reason="needs the extra convert")
pytest.importorskip("skimage", reason="needs the extra demo")

from converters.cli import main  # noqa: E402
from edge.geometry import iou  # noqa: E402
from edge.models.bundle import load_bundle  # noqa: E402
from edge.models.runtime import load_model  # noqa: E402
from edge.track.detector import Detector  # noqa: E402
from tests.converters.checkpoints.keras_maker import write_hdf5  # noqa: E402
from tests.converters.checkpoints.vgg_tracker import SIDE, faces_and_grounds, layers_of, scene, train  # noqa: E402

pytestmark = [
    pytest.mark.convert,
    pytest.mark.slow,
    pytest.mark.shared,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(1200, method="thread"),  # a minute of training on a quiet machine
]

STEPS = 220
SCENES = 1200


def test_trained_vgg_regressor_finds_faces_of_held_out_pictures_in_a_box(shared: Path, tmp_path: Path) -> None:
    """Three quarters of FairFace's pictures teach it, the rest is pasted on grounds it never saw.

    By always answering with the average box it would reach an IoU of about 0.35.
    """
    torch.set_num_threads(1)
    faces, grounds = faces_and_grounds(shared)
    rng, many, few = np.random.default_rng(0), len(faces) * 3 // 4, len(grounds) * 3 // 4
    learnt = [scene(rng, faces[i % many] if i % 5 else None, grounds[int(rng.integers(few))]) for i in range(SCENES)]
    held = [scene(rng, face, grounds[int(rng.integers(few, len(grounds)))]) for face in faces[many:]]
    (tmp_path / "pictures").mkdir()
    for k, (picture, _) in enumerate(learnt[:80]):
        cv2.imwrite(str(tmp_path / "pictures" / f"{k}.png"), picture)
    write_hdf5(tmp_path / "tracker.h5", layers_of(train(learnt, STEPS)), ["score", "box"])

    arguments = ["--calibrate", str(tmp_path / "pictures"), "--max-drop", "3", "--out", str(tmp_path / "tracker")]
    assert main(["detector", str(tmp_path / "tracker.h5"), *arguments]) == 0
    bundle = load_bundle(tmp_path / "tracker")
    assert (bundle.manifest.decoder, bundle.manifest.input.width) == ("single_box", SIDE)
    loaded = load_model(bundle, ["CPU"], threads=1, log=lambda _: None)
    assert loaded.runtime.artefact == "int8_openvino"

    detector = Detector(loaded, score_threshold=0.3)
    average = np.mean([box[0] for _, box in learnt if len(box)], axis=0, keepdims=True)
    found, guessed = [], []
    for picture, box in held:
        boxes = detector(picture).xyxy
        found.append(float(iou(boxes[:1], box)[0, 0]) if len(boxes) else 0.0)
        guessed.append(float(iou(average.astype(np.float32), box)[0, 0]))
    print(f"mean IoU {np.mean(found):.3f} on {len(held)} held-out faces, the average box {np.mean(guessed):.3f}")
    assert np.mean(found) > 0.5
    assert np.mean(found) > np.mean(guessed) + 0.1
