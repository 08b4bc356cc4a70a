"""A head on its way into a bundle, and the bundles that are shipped."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nncf")

from converters.bundles.student import MAX_BYTES, calibration_crops, write_head  # noqa: E402
from converters.data.attributes import CONTEXT_PX, HEADS, Faces, Label  # noqa: E402
from converters.evaluation.classifier import load_student  # noqa: E402
from converters.nets.student import Student  # noqa: E402
from edge.models.bundle import load_bundle  # noqa: E402
from edge.models.runtime import load_model  # noqa: E402

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("ignore")]

SHIPPED = Path(__file__).resolve().parents[3] / "models_int8"


def faces(count: int, head: str) -> Faces:
    labels = tuple(Label(str(i), "train", **{head: i % len(HEADS[head])}) for i in range(count))  # type: ignore[arg-type]
    pictures = np.random.default_rng(0).integers(0, 256, (count, CONTEXT_PX, CONTEXT_PX, 3), np.uint8)
    inside = np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))
    return Faces(pictures, inside, labels, tuple(f"{i:064x}" for i in range(count)))


def test_a_head_becomes_a_bundle_with_threshold_figures_and_provenance(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    torch.manual_seed(0)
    known = faces(12, "gender")
    manifest = write_head(
        Student(2, (4, 8)), "gender", {"utkface": known}, known, {"made up": known}, tmp_path / "gender-student",
        margin=0.1, size_px=32, how="a test",
    )  # fmt: skip
    assert manifest == load_bundle(tmp_path / "gender-student").manifest
    assert manifest.licence == "research-only"
    assert manifest.labels == ("female", "male")
    assert (manifest.crop_margin, manifest.input.batch) == (0.1, 0)
    assert 0.5 <= manifest.score_threshold < 1
    assert {line.artefact for line in manifest.accuracy} == {"fp32", "int8_openvino", "int8_onnx", "fp16_openvino"}
    assert {line.dataset for line in manifest.accuracy} == {"made up"}
    assert manifest.calibration is not None
    assert manifest.calibration.images == 12
    assert load_student(tmp_path / "gender-student/checkpoint.pt").widths == (4, 8)


def test_calibration_takes_only_faces_the_head_has_labels_for() -> None:
    crops, digest = calibration_crops({"a": faces(5, "race"), "b": faces(7, "race")}, "race", 0.0, 48)
    assert crops.shape == (12, 48, 48, 3)
    assert len(digest) == 64


@pytest.mark.parametrize("head", list(HEADS))
def test_shipped_head_is_small_research_only_and_passes_its_golden_check(head: str) -> None:
    bundle = load_bundle(SHIPPED / f"{head}-student")
    assert bundle.manifest.labels == HEADS[head]
    assert bundle.manifest.licence == "research-only"
    assert max(bundle.path("onnx").stat().st_size, bundle.path("bin").stat().st_size) <= MAX_BYTES
    told: list[str] = []
    loaded = load_model(bundle, ["CPU"], threads=1, log=told.append)
    assert loaded.attempts == ()
    assert any("research-only" in line for line in told)


@pytest.mark.parametrize("head", list(HEADS))
def test_shipped_head_loses_little_in_int8(head: str) -> None:
    """On all held-out faces together; a single small set moves by a point when three faces change their answer."""
    accuracy = load_bundle(SHIPPED / f"{head}-student").manifest.accuracy
    right: dict[str, float] = {}
    faces_seen: dict[str, int] = {}
    for line in accuracy:
        if line.metric == "accuracy":
            right[line.artefact] = right.get(line.artefact, 0) + line.value * line.images
            faces_seen[line.artefact] = faces_seen.get(line.artefact, 0) + line.images
    share = {artefact: right[artefact] / faces_seen[artefact] for artefact in right}
    assert share["int8_openvino"] >= share["fp32"] - 0.003
    assert share["int8_onnx"] >= share["fp32"] - 0.003
