"""Foreign checkpoints through the command line: a bundle a box would run, or one clear message and nothing written."""

from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")
onnx = pytest.importorskip("onnx", reason="needs the extra convert")
pytest.importorskip("nncf", reason="needs the extra convert")
pytest.importorskip("skimage", reason="needs the extra demo")

from converters.cli import main  # noqa: E402
from edge.models.bundle import load_bundle  # noqa: E402
from edge.models.runtime import load_model  # noqa: E402
from edge.track.detector import Detector  # noqa: E402
from tests.converters.checkpoints.keras_maker import conv, dense, input_layer, normal, plain, write_keras  # noqa: E402

pytestmark = [pytest.mark.convert, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Foreign(torch.nn.Module):
    """A head nobody here has seen: another shape than our student, its softmax inside."""

    def __init__(self, classes: int = 3, softmax: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 5, 2), torch.nn.LeakyReLU(), torch.nn.Conv2d(8, 12, 3, 2), torch.nn.ReLU()
        )
        self.head = torch.nn.Linear(12, classes)
        self.head.weight.data.mul_(20)
        self.softmax = softmax

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(self.features(x).amax(dim=(2, 3)))
        return torch.softmax(y, dim=1) if self.softmax else y


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    for k in range(12):
        small = rng.integers(0, 256, (6, 6, 3), np.uint8)
        cv2.imwrite(str(folder / f"{k}.png"), cv2.resize(small, (48, 48), interpolation=cv2.INTER_CUBIC))
    return folder


def boots(folder: Path) -> None:
    loaded = load_model(load_bundle(folder), ["CPU"], threads=1, log=lambda _: None)
    assert loaded.golden == "ok"


def classify(checkpoint: Path, crops: Path, out: Path, *more: str) -> int:
    arguments = ["classifier", str(checkpoint), "--calibrate", str(crops), "--out", str(out), "--max-drop", "40"]
    return main([*arguments, *(more or ("--labels", "a,b,c", "--size", "48", "--margin", "0.2"))])


@pytest.mark.parametrize("kind", ["state dict", "torchscript", "pt2"])
def test_torch_head_of_another_shape_becomes_a_bundle_of_logits(kind: str, crops: Path, tmp_path: Path) -> None:
    net, path = Foreign().eval(), tmp_path / "head.pt"
    example = torch.zeros(2, 3, 48, 48)
    more = ["--labels", "a,b,c", "--size", "48", "--margin", "0.2"]
    if kind == "state dict":
        torch.save(net.state_dict(), path)
        more += ["--module", f"{__name__}:Foreign"]
    elif kind == "torchscript":
        torch.jit.trace(net, example).save(str(path))
    else:
        batch = torch.export.Dim("batch")
        torch.export.save(torch.export.export(net, (example,), dynamic_shapes=({0: batch},)), path)
    assert classify(path, crops, tmp_path / "abc", *more) == 0
    bundle = load_bundle(tmp_path / "abc")
    assert (bundle.manifest.decoder, bundle.manifest.outputs, bundle.manifest.crop_margin) == (
        "softmax",
        ("logits",),
        0.2,
    )
    assert {line.artefact for line in bundle.manifest.accuracy} >= {"fp32", "int8_openvino", "int8_onnx"}
    boots(tmp_path / "abc")
    # Logits, not the probabilities the file ends in: the box applies the softmax itself.
    picture = cv2.imread(str(crops / "0.png"))[None]
    with torch.inference_mode():
        net.softmax = False
        expected = net(torch.from_numpy(picture[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255))
    found = load_model(bundle, ["CPU"], threads=1, log=lambda _: None).runtime.infer(picture)[0]
    assert np.abs(found - expected.numpy()).max() < 0.15 * np.abs(expected.numpy()).max() + 0.1


def test_keras_single_face_regressor_runs_in_the_box_as_single_box(crops: Path, tmp_path: Path) -> None:
    layers = [
        input_layer(120, 120, 3),
        conv("a", "input", normal(1, 3, 3, 3, 8), stride=2),
        plain("MaxPooling2D", "pool", "a", pool_size=[2, 2], strides=[2, 2], padding="valid"),
        conv("b", "pool", normal(2, 3, 3, 8, 16), stride=2),
        plain("GlobalMaxPooling2D", "top", "b"),
        dense("class", "top", abs(normal(3, 16, 1)), "sigmoid"),
        dense("box", "top", normal(4, 16, 4) + np.array([-0.3, -0.3, 0.3, 0.3], np.float32), "sigmoid"),
    ]
    write_keras(tmp_path / "tracker.keras", layers, ["class", "box"])
    out = tmp_path / "single"
    arguments = [str(tmp_path / "tracker.keras"), "--calibrate", str(crops), "--out", str(out), "--max-drop", "100"]
    assert main(["detector", *arguments]) == 0
    bundle = load_bundle(out)
    assert bundle.manifest.decoder == "single_box"
    loaded = load_model(bundle, ["CPU"], threads=1, log=lambda _: None)
    found = Detector(loaded, score_threshold=0.01)(cv2.imread(str(crops / "0.png")))
    assert found.xyxy.shape == (1, 4)


def test_embedder_in_onnx_becomes_a_bundle_of_vectors(crops: Path, tmp_path: Path) -> None:
    net = Foreign(16, softmax=False).eval()
    torch.onnx.export(net, (torch.zeros(1, 3, 48, 48),), tmp_path / "e.onnx", dynamo=True, verbose=False)
    out = tmp_path / "vectors"
    assert (
        main(["embedder", str(tmp_path / "e.onnx"), "--calibrate", str(crops), "--out", str(out), "--max-drop", "5"])
        == 0
    )
    manifest = load_bundle(out).manifest
    assert (manifest.task, manifest.decoder) == ("embedder", "vector")
    assert next(m.value for m in manifest.accuracy if m.artefact == "int8_onnx" and m.metric == "cosine") > 0.97
    boots(out)


def test_fall_back_gives_up_loudly_and_writes_nothing(
    crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(Foreign(16, softmax=False).state_dict(), tmp_path / "e.pt")
    arguments = [str(tmp_path / "e.pt"), "--module", f"{__name__}:Foreign", "--size", "48", "--max-drop", "-1"]
    arguments += ["--module-args", '{"classes": 16, "softmax": false}', "--calibrate", str(crops)]
    assert main(["embedder", *arguments, "--out", str(tmp_path / "never")]) == 1
    assert "INT8 loses more than --max-drop -1.0 points of cosine in each of 5 ways" in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("case", "said"),
    [
        pytest.param("labels", "3 output(s), so 3 labels are expected", id="wrong label count"),
        pytest.param("empty", "no pictures", id="empty calibration folder"),
        pytest.param("grey", "pictures are grey, but this network eats colour", id="grey calibration folder"),
        pytest.param("shade", "of one shade", id="uniform pictures"),
        pytest.param("broken", "not a readable picture", id="unreadable picture"),
        pytest.param("tensor", "does not fit", id="missing tensor"),
        pytest.param("onnx", "not a valid ONNX file", id="not what it claims"),
        pytest.param("none", "no such file", id="no file"),
        pytest.param("dynamic", "is dynamic; say which size to fix with --size", id="dynamic input"),
        pytest.param("oblong", "expected a square", id="non-square input"),
    ],
)
def test_bad_input_is_named_and_leaves_no_bundle(
    case: str, said: str, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder, labels = tmp_path / "head.pt", tmp_path / "pictures", "a,b,c"
    folder.mkdir()
    state = Foreign().state_dict()
    size = ["--size", "48"]
    match case:
        case "labels":
            folder, labels = crops, "a,b"
        case "grey":
            cv2.imwrite(str(folder / "g.png"), np.arange(48 * 48, dtype=np.uint16).reshape(48, 48).astype(np.uint8))
        case "shade":
            cv2.imwrite(str(folder / "s.png"), np.full((48, 48, 3), (10, 100, 200), np.uint8))
        case "broken":
            (folder / "b.jpg").write_bytes(b"no picture")
        case "tensor":
            del state["head.bias"]
    torch.save(state, path)
    module = ["--module", f"{__name__}:Foreign"]
    if case == "onnx":
        path.write_bytes(b"certainly no protobuf")
    elif case == "none":
        path.unlink()
    elif case in ("dynamic", "oblong"):
        h, w = ("h", "w") if case == "dynamic" else (48, 64)
        x = onnx.helper.make_tensor_value_info("x", 1, ["n", 3, h, w])
        y = onnx.helper.make_tensor_value_info("y", 1, ["n", 3, 1, 1])
        graph = onnx.helper.make_graph([onnx.helper.make_node("GlobalAveragePool", ["x"], ["y"])], "g", [x], [y])
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
        size = []
    arguments = [str(path), "--calibrate", str(folder), "--labels", labels, *size, *module]
    assert main(["classifier", *arguments, "--out", str(tmp_path / "never")]) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*never*"))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "decoder"),
    [("yunet_apache2/yunet_n_320_320.onnx", "yunet"), ("ultralight_rfb_mit/version-RFB-320.onnx", "ssd")],
)
def test_published_detectors_convert_and_boot(file: str, decoder: str, shared: Path, tmp_path: Path) -> None:
    """On 20 reported pictures, where one face is 0.6 points: four of them may be lost, no more."""
    labelled = tmp_path / "faces"
    (labelled / "images").mkdir(parents=True)
    (labelled / "labels").mkdir()
    source = shared / "detection" / "face_mask"
    rows = [line.split(",") for line in (source / "split.csv").read_text().splitlines()]
    for image in [row[0] for row in rows if "test" in row][:40]:
        (labelled / "images" / image).symlink_to(source / "images" / image)
        (labelled / "labels" / f"{Path(image).stem}.txt").symlink_to(source / "labels" / f"{Path(image).stem}.txt")
    out = tmp_path / decoder
    arguments = ["--calibrate", str(labelled / "images"), "--data", str(labelled), "--max-drop", "4"]
    assert main(["detector", str(shared / "weights" / file), *arguments, "--out", str(out)]) == 0
    bundle = load_bundle(out)
    assert bundle.manifest.decoder == decoder
    assert next(m.value for m in bundle.manifest.accuracy if m.metric == "ap50" and m.artefact == "fp32") > 0.3
    boots(out)


@pytest.mark.shared
def test_published_keras_head_becomes_a_grey_classifier(shared: Path, tmp_path: Path) -> None:
    path = shared / "weights" / "oarriaga_mit" / "gender_mini_XCEPTION.21-0.95.hdf5"
    crops = shared / "attributes" / "fairface" / "images"
    arguments = ["--calibrate", str(crops), "--labels", "woman,man", "--mean", "127.5", "--scale", "127.5"]
    assert main(["classifier", str(path), *arguments, "--max-drop", "5", "--out", str(tmp_path / "gender")]) == 0
    manifest = load_bundle(tmp_path / "gender").manifest
    assert (manifest.input.color, manifest.input.width, manifest.decoder) == ("GRAY", 64, "softmax")
    boots(tmp_path / "gender")
