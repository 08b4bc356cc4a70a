"""Me or not me: a frozen network, a fitted head, a calibrated threshold, a bundle that a box runs."""

from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")
onnx = pytest.importorskip("onnx", reason="needs the extra convert")
ort = pytest.importorskip("onnxruntime", reason="needs the extra edge")

from converters.checkpoints.network import Told  # noqa: E402
from converters.cli import main  # noqa: E402
from converters.data.album import cut_faces, listed, whole, with_splits  # noqa: E402
from converters.errors import ConvertError  # noqa: E402
from converters.training.transfer import (  # noqa: E402
    BASE,
    Linear,
    base_of,
    calibrated,
    fit,
    left_out,
    people_of,
    views,
    with_head,
)
from edge.models.bundle import load_bundle  # noqa: E402
from edge.models.runtime import load_model  # noqa: E402
from tests.converters.checkpoints.keras_maker import conv, dense, input_layer, normal, plain, write_hdf5  # noqa: E402

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("ignore")]


def paint(folder: Path, counts: dict[str, int]) -> Path:
    """Write pictures whose class is their colour: red for the first, blue for the second."""
    rng = np.random.default_rng(3)
    for index, (label, count) in enumerate(counts.items()):
        (folder / label).mkdir(parents=True)
        for k in range(count):
            picture = rng.integers(0, 90, (60, 60, 3), np.uint8)
            picture[..., 0 if index else 2] += 120
            cv2.imwrite(str(folder / label / f"{k}.png"), picture)
    return folder


@pytest.fixture
def keras_head(tmp_path: Path) -> Path:
    layers = [
        input_layer(32, 32, 3),
        conv("a", "input", normal(1, 3, 3, 3, 6), stride=2),
        plain("GlobalAveragePooling2D", "top", "a"),
        dense("b", "top", normal(2, 6, 9), "relu"),
        dense("say", "b", normal(3, 9, 1), "sigmoid"),
    ]
    write_hdf5(tmp_path / "head.h5", layers, ["say"])
    return tmp_path / "head.h5"


def test_features_are_what_the_last_layer_eats(keras_head: Path) -> None:
    base = base_of(keras_head, Told())
    assert (base.width, base.source.width) == (9, 32)
    crops = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    found = base.features(crops)
    assert found.shape == (3, 9)
    assert found.min() == 0  # after the ReLU, before the last product


def test_a_network_saved_without_its_top_is_averaged_over_the_picture(tmp_path: Path) -> None:
    layers = [input_layer(32, 32, 3), conv("a", "input", normal(1, 3, 3, 3, 6), stride=2)]
    write_hdf5(tmp_path / "trunk.h5", layers, ["a"])
    base = base_of(tmp_path / "trunk.h5", Told())
    assert base.width == 6
    assert base.features(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 6)


def test_our_own_students_trunk_has_eighty_features() -> None:
    base = base_of(BASE, Told(size=64))
    assert base.width == 80
    assert base.source.batch == 0


def test_head_on_top_computes_what_the_linear_layer_says(keras_head: Path) -> None:
    base = base_of(keras_head, Told())
    head = Linear(normal(5, 9, 3), normal(6, 3))
    model = with_head(base, head)
    onnx.checker.check_model(model)
    crops = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = crops[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255
    found = session.run(["logits"], {"images": pixels})[0]
    np.testing.assert_allclose(found, head(base.features(crops)), atol=1e-4)


def test_fitted_head_weighs_a_rare_class_as_much_as_a_common_one() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([0] * 190 + [1] * 10)
    features = rng.normal(0, 1, (200, 5)).astype(np.float32)
    features[:, 2] += 2.5 * truth
    answers = fit(features, truth, 2)(features).argmax(axis=1)
    assert (answers[truth == 1] == 1).mean() >= 0.8
    assert (answers[truth == 0] == 0).mean() >= 0.8


def test_threshold_is_half_where_all_is_sure_and_higher_where_half_sure_answers_are_wrong() -> None:
    truth = np.array([0, 1] * 50)
    sure = np.where(truth[:, None] == [0, 1], 4.0, -4.0).astype(np.float32)
    assert calibrated(sure, truth)[1] == 0.5
    unsure = sure.copy()
    unsure[:30] = np.where(np.arange(30)[:, None] % 3 == 0, -sure[:30], sure[:30]) * 0.05
    temperature, threshold = calibrated(unsure, truth)
    assert temperature > 0
    assert threshold > 0.5


def test_few_strangers_taken_for_me_raise_the_threshold_however_many_strangers_there_are() -> None:
    truth = np.array([0] * 8 + [1] * 400)
    logits = np.where(truth[:, None] == [0, 1], 3.0, -3.0).astype(np.float32)
    logits[8:14] = [0.4, -0.4]  # six strangers in 400 look a little like me
    temperature, threshold = calibrated(logits, truth)
    assert threshold > 1 / (1 + np.exp(-0.8 / temperature)) - 0.01


def test_every_face_is_judged_by_a_head_that_saw_neither_it_nor_its_person(keras_head: Path, tmp_path: Path) -> None:
    """With labels drawn at random nothing can be learnt: a head that had seen the face would still be right."""
    folder = tmp_path / "noise"
    rng = np.random.default_rng(1)
    for k in range(40):
        (folder / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "ab"[k % 2] / f"{k}.png"), rng.integers(0, 256, (40, 40, 3), np.uint8))
    pictures, labels = listed(folder)
    album, _ = cut_faces(with_splits(pictures, 0.2), labels, whole)
    features, face = views(album, base_of(keras_head, Told()), 0.0, 2, seed=0)
    assert features.shape == (3 * len(album.truth), 9)
    right = (left_out(features, face, album).argmax(axis=1) == album.truth).mean()
    assert right < 0.75


def test_shown_views_are_the_same_for_the_same_seed(keras_head: Path, tmp_path: Path) -> None:
    pictures, labels = listed(paint(tmp_path / "p", {"me": 5, "other": 5}))
    album, _ = cut_faces(with_splits(pictures, 0.2), labels, whole)
    base = base_of(keras_head, Told())
    one, same, other = (views(album, base, 0.0, 1, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize(
    ("told", "labels", "people"),
    [
        ("", ("me", "other"), ("me",)),
        ("", ("glasses", "none"), ()),
        ("nobody", ("me", "other"), ()),
        ("anna, ben", ("anna", "ben", "other"), ("anna", "ben")),
    ],
)
def test_a_class_is_a_person_when_told_so_or_called_me(
    told: str, labels: tuple[str, ...], people: tuple[str, ...]
) -> None:
    assert people_of(told, labels) == people


def test_a_person_who_is_no_class_is_refused() -> None:
    with pytest.raises(ConvertError, match="--identifies names anna, expected classes out of me, other"):
        people_of("anna", ("me", "other"))


@pytest.mark.slow
def test_twenty_pictures_become_a_head_that_a_box_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nncf", reason="needs the extra convert")
    pytest.importorskip("skimage", reason="needs the extra demo")
    folder = paint(tmp_path / "faces", {"me": 8, "other": 12})
    out = tmp_path / "me-head"
    arguments = ["--whole", "--times", "4", "--margin", "0.1", "--bundle", str(out)]
    assert main(["train-student", "--pictures", str(folder), *arguments]) == 0
    manifest = load_bundle(out).manifest
    assert (manifest.labels, manifest.crop_margin, manifest.decoder) == (("me", "other"), 0.1, "softmax")
    assert manifest.licence == "research-only"  # as the base says
    assert manifest.identifies == ("me",)  # so that a box asks for consent
    assert "train-student --pictures faces --whole --times 4" in manifest.accuracy[0].command
    figures = {line.artefact: line.value for line in manifest.accuracy if line.metric == "accuracy"}
    assert figures["int8_openvino"] == figures["int8_onnx"] == figures["fp32"] == 1.0
    assert (out / "data.json").is_file()
    assert "6 me, 9 other to learn from, 2 me, 3 other held out" in capsys.readouterr().out
    loaded = load_model(load_bundle(out), ["CPU"], threads=1, log=lambda _: None)
    assert loaded.attempts == ()


@pytest.mark.parametrize(
    ("case", "said"),
    [
        pytest.param("few", "me: 2 faces to learn from and 1 to report on, expected at least 3 and 1", id="too few"),
        pytest.param("faceless", "no face found in", id="no faces"),
        pytest.param("one", "1 label(s) found (me), expected at least two", id="one class"),
        pytest.param("none", "no such folder or CSV", id="no folder"),
        pytest.param("broken", "not a readable picture", id="unreadable picture"),
        pytest.param("base", "not a valid ONNX file", id="base that is not what it claims"),
        pytest.param("share", "--held-out 1.5, expected a share", id="share"),
        pytest.param("nowhere", "--bundle FOLDER is missing", id="no bundle named"),
    ],
)
def test_bad_pictures_are_named_and_leave_no_bundle(
    case: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"few": {"me": 3, "other": 8}, "one": {"me": 8}}.get(case, {"me": 8, "other": 8})
    folder = paint(tmp_path / "faces", counts)
    arguments = ["--pictures", str(folder), "--bundle", str(tmp_path / "never")]
    arguments += [] if case == "faceless" else ["--whole"]
    match case:
        case "none":
            arguments[1] = str(tmp_path / "elsewhere")
        case "broken":
            (folder / "me" / "1.png").write_bytes(b"no picture")
        case "base":
            (tmp_path / "base.onnx").write_bytes(b"certainly no protobuf")
            arguments += ["--base", str(tmp_path / "base.onnx")]
        case "share":
            arguments += ["--held-out", "1.5"]
        case "nowhere":
            arguments = ["--pictures", str(folder)]
    assert main(["train-student", *arguments]) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*never*"))


def test_neither_data_nor_pictures_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-student"]) == 1
    assert "give --data FOLDER for the four heads, or --pictures FOLDER" in capsys.readouterr().err
