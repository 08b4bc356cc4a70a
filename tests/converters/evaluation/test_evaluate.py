"""`facefleet-convert evaluate` on shipped bundles and a foreign one: tables, curves, JSON, without a data folder."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nncf")
pytest.importorskip("skimage")

from converters.bundles.package import ASTRONAUT_FACE, astronaut  # noqa: E402
from converters.cli import main  # noqa: E402
from converters.data.face_crops import cut, widen  # noqa: E402
from converters.evaluation.classifier import load_student  # noqa: E402
from converters.evaluation.embedder import load_net as load_embedder  # noqa: E402
from converters.evaluation.landmarks import load_net as load_landmarks  # noqa: E402
from converters.evaluation.latency import face_ms  # noqa: E402
from edge.models.bundle import load_bundle  # noqa: E402

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]

SHIPPED = Path(__file__).resolve().parents[3] / "models_int8"
DETECTOR = SHIPPED / "yolov10n-face-320"


def hopper() -> np.ndarray:
    """Matplotlib's portrait of Grace Hopper (public domain), (600, 512, 3) uint8 BGR."""
    from matplotlib import cbook

    picture = cv2.imread(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    assert picture is not None
    return np.asarray(picture)


def shaded(picture: np.ndarray) -> np.ndarray:
    return np.asarray(picture * 0.7 + 10, np.uint8)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two people, three pictures each, and every pair of them."""
    folder = tmp_path / "people"
    folder.mkdir()
    people = {"collins": astronaut(), "hopper": hopper()}
    names = []
    for person, picture in people.items():
        mirrored = np.ascontiguousarray(picture[:, ::-1])
        for name, one in ((f"{person}1", picture), (f"{person}2", mirrored), (f"{person}3", shaded(picture))):
            cv2.imwrite(str(folder / f"{name}.png"), one)
            names.append(name)
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("a", "b", "same"))
        for i, a in enumerate(names):
            writer.writerows((f"{a}.png", f"{b}.png", int(a[:-1] == b[:-1])) for b in names[i + 1 :])
    return folder


def evaluated(bundle: Path, data: Path, out: Path, *more: str) -> dict[str, object]:
    """Run the command; return its figures."""
    assert main(["evaluate", str(bundle), "--data", str(data), "--out", str(out), *more]) == 0
    figures: dict[str, object] = json.loads((out / "figures.json").read_text())
    return figures


def drawn(path: Path) -> bool:
    """Tell whether a PNG shows something."""
    picture = cv2.imread(str(path))
    return picture is not None and picture.std() > 5


RATES = ["0.5", "0.25", "0.1", "0.05", "0.01", "0.005", "0.001"]


def test_shipped_embedder_tells_two_people_apart(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = evaluated(SHIPPED / "face-embedder", pairs, tmp_path / "out", "--detector", str(DETECTOR))
    assert {"fp32", "int8_openvino", "int8_onnx", "fp16_openvino"} <= figures.keys()
    for artefact in ("fp32", "int8_openvino", "int8_onnx"):
        (report,) = figures[artefact]  # type: ignore[misc]
        assert (report["dataset"], report["pictures"], report["genuine"], report["impostor"]) == ("people", 6, 6, 9)
        assert list(report["tpr"]) == RATES
        assert report["auc"] > 0.9
    assert drawn(tmp_path / "out/roc.png")
    assert drawn(tmp_path / "out/similarity.png")
    assert "true positive rate at false positive rate" in capsys.readouterr().out


class Foreign(torch.nn.Module):
    """Somebody else's embedder, untrained: 48×48 in, 24 numbers out, not of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Conv2d(8, 16, 3, 2, 1)
        self.out = torch.nn.Linear(16 * 12 * 12, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.conv2(torch.relu(self.conv1(x)))).flatten(1))


@pytest.mark.parametrize("align", [False, True])
def test_the_table_runs_for_a_foreign_onnx_embedder(pairs: Path, tmp_path: Path, align: bool) -> None:
    torch.manual_seed(0)
    torch.onnx.export(Foreign().eval(), (torch.zeros(1, 3, 48, 48),), tmp_path / "e.onnx", dynamo=True, verbose=False)
    bundle = tmp_path / "theirs"
    words = ["embedder", str(tmp_path / "e.onnx"), "--calibrate", str(pairs), "--out", str(bundle), "--max-drop", "5"]
    assert main([*words, *(["--align"] if align else ["--margin", "0.1"])]) == 0
    more = ["--detector", str(DETECTOR), *(["--landmarks", str(SHIPPED / "landmarks-student")] if align else [])]
    figures = evaluated(bundle, pairs, tmp_path / "out", *more)
    (report,) = figures["int8_onnx"]  # type: ignore[misc]
    assert list(report["tpr"]) == RATES
    assert report["pictures"] == 6
    assert 0 <= report["auc"] <= 1
    assert drawn(tmp_path / "out/roc.png")


def test_an_embedder_that_aligns_needs_landmarks(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(SHIPPED / "face-embedder"), "--data", str(pairs), "--out", str(tmp_path)]
    assert main([*words, "--detector", str(DETECTOR), "--landmarks", str(tmp_path / "none")]) == 1
    assert "give --landmarks" in capsys.readouterr().err
    assert main(words) == 1
    assert "give --detector a bundle that does" in capsys.readouterr().err


def test_detector_leaves_its_precision_recall_curve(tmp_path: Path) -> None:
    data = tmp_path / "scenes"
    (data / "images").mkdir(parents=True)
    (data / "labels").mkdir()
    picture = astronaut()
    cv2.imwrite(str(data / "images/collins.png"), picture)
    x0, y0, x1, y1 = (v / 512 for v in ASTRONAUT_FACE)
    (data / "labels/collins.txt").write_text(f"0 {(x0 + x1) / 2} {(y0 + y1) / 2} {x1 - x0} {y1 - y0}\n")
    figures = evaluated(DETECTOR, data, tmp_path / "out")
    accuracy = figures["accuracy"]
    assert {"fp32_openvino", "fp32_onnx", "int8_openvino", "int8_onnx", "fp16_openvino"} == accuracy.keys()  # type: ignore[attr-defined]
    assert all(sets["scenes"]["ap50"] == 1 for sets in accuracy.values())  # type: ignore[attr-defined]
    assert drawn(tmp_path / "out/pr.png")


def test_head_on_a_folder_per_label_leaves_its_confusions(tmp_path: Path) -> None:
    data = tmp_path / "faces"
    for label, view in (("female", astronaut()), ("male", astronaut()[:, ::-1])):
        (data / label).mkdir(parents=True)
        box = ASTRONAUT_FACE if label == "female" else (512 - ASTRONAUT_FACE[2], 65.0, 512 - ASTRONAUT_FACE[0], 175.0)
        for k, extra in enumerate((0.0, 0.1)):
            crop = cut(np.ascontiguousarray(view), widen(box, extra), 96)[0]
            cv2.imwrite(str(data / label / f"{k}.png"), crop)
    figures = evaluated(SHIPPED / "gender-student", data, tmp_path / "out")
    (report,) = figures["int8_openvino"]  # type: ignore[misc]
    assert np.sum(report["confusion"], axis=1).tolist() == [2, 2]
    assert report["accuracy"] == np.trace(report["confusion"]) / 4
    assert drawn(tmp_path / "out/confusion_int8_openvino.png")


def test_every_latency_in_a_manifest_is_one_that_evaluate_measures() -> None:
    for name in ("gender-student", "landmarks-student", "face-embedder"):
        bundle = load_bundle(SHIPPED / name)
        load = {"classifier": load_student, "landmarks": load_landmarks, "embedder": load_embedder}
        net = load[bundle.manifest.task](bundle.path("checkpoint"))
        found = face_ms(bundle.folder, bundle.manifest, net.fused(), 1)  # type: ignore[attr-defined]
        told = {(line.artefact, line.metric) for line in bundle.manifest.latency}
        assert told == {(artefact, f"ms per face, {batch}") for artefact, ms in found.items() for batch in ms}
        assert all(0 < value < 100 for ms in found.values() for value in ms.values())


def test_figures_go_where_they_are_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "faces"
    for label in ("female", "male"):
        (data / label).mkdir(parents=True)
        cv2.imwrite(str(data / label / "0.png"), cut(astronaut(), ASTRONAUT_FACE, 96)[0])
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(SHIPPED / "gender-student"), "--data", "faces", "--json", "mine.json"]) == 0
    kept = Path("out/evaluation/gender-student/figures.json").read_text()
    assert kept == Path("mine.json").read_text()
