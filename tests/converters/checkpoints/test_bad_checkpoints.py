"""Every bad checkpoint, through the command line: a message that names the matter, exit code 1, nothing written."""

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")
onnx = pytest.importorskip("onnx", reason="needs the extra convert")
pytest.importorskip("h5py", reason="needs the extra convert")

from onnx import helper  # noqa: E402

from converters.cli import main  # noqa: E402
from converters.nets.student import Student  # noqa: E402
from tests.converters.checkpoints.keras_maker import conv, dense, input_layer, normal, plain, write_hdf5  # noqa: E402

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("ignore")]


class Bomb:
    """Wants a command run when it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self._ran = ran

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._ran}",)


def graph(
    path: Path,
    nodes: list[object],
    shape: list[object],
    outputs: dict[str, list[object]],
    domain: str = "",
    weights: Sequence[object] = (),
) -> None:
    x = helper.make_tensor_value_info("x", 1, shape)
    made = [helper.make_tensor_value_info(name, 1, dims) for name, dims in outputs.items()]
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    body = helper.make_graph(nodes, "g", [x], made, weights)
    onnx.save(helper.make_model(body, opset_imports=opsets, ir_version=9), path)


def pooled(path: Path, shape: list[object], width: list[object] | None = None) -> None:
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    graph(path, nodes, shape, {"y": width or [shape[0], 3]})


def custom_operator(path: Path) -> None:
    graph(path, [helper.make_node("Magic", ["x"], ["y"], domain="com.acme")], [1, 3, 64, 64], {"y": [1, 3]}, "com.acme")


def convolved(path: Path, weight: object) -> None:
    steps = (("Conv", ["x", "w"], ["c"]), ("GlobalAveragePool", ["c"], ["p"]), ("Flatten", ["p"], ["y"]))
    weights = [onnx.numpy_helper.from_array(np.asarray(weight, np.float32), "w")]
    graph(path, [helper.make_node(*step) for step in steps], ["n", 3, 64, 64], {"y": ["n", 2]}, weights=weights)


def half_precision(path: Path) -> None:
    pooled(path, ["n", 3, 64, 64], ["n", 2])
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = model.graph.output[0].type.tensor_type.elem_type = 10
    onnx.save(model, path)


def cut_short(path: Path) -> None:
    torch.save(Student(2, (4, 8)).state_dict(), path)
    path.write_bytes(path.read_bytes()[:900])


def two_matrices(path: Path) -> None:
    nodes = [helper.make_node("Flatten", ["x"], [name]) for name in ("a", "b")]
    graph(path, nodes, [1, 3, 64, 64], {"a": [1, 12288], "b": [1, 12288]})


def oblong_yolo(path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.zeros(dims, np.float32)))
        for name, dims in (("scores", (1, 9, 1)), ("boxes", (1, 9, 4)))
    ]
    graph(path, nodes, [1, 3, 64, 96], {"scores": [1, 9, 1], "boxes": [1, 9, 4]})


def bomb(path: Path) -> None:
    torch.save({"classify.weight": Bomb(path.parent / "ran")}, path)


def bomb_in_pt2(path: Path) -> None:
    import pickle

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/archive_format", "pt2")
        archive.writestr("model/data/constants", pickle.dumps(Bomb(path.parent / "ran"), protocol=2))


def keras(*layers: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_hdf5(path, [input_layer(32, 32, 3), *layers], [layers[-1][1]["name"]])  # type: ignore[index, list-item]

    return write


def truncated_keras(path: Path) -> None:
    keras(plain("GlobalAveragePooling2D", "top", "input"), dense("say", "top", normal(1, 3, 2), "softmax"))(path)
    path.write_bytes(path.read_bytes()[:2000])


def student(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        state = Student(2, (4, 8)).state_dict()
        change(state)
        torch.save(state, path)

    return write


def torchscript(path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 48 * 48, 2))
    torch.jit.trace(net, torch.zeros(2, 3, 48, 48)).save(str(path))


CLASSIFIER = ("classifier", "--labels", "a,b")
SIZED = (*CLASSIFIER, "--size", "64")
Write = Callable[[Path], object]
CASES: dict[str, tuple[tuple[str, ...], Write, str]] = {
    "pickle that wants to run something": (SIZED, bomb, "its pickle wants to run posix.system; refused"),
    "the same for an embedder": (("embedder", "--size", "64"), bomb, "its pickle wants to run posix.system; refused"),
    "pickle inside a .pt2": (CLASSIFIER, bomb_in_pt2, "is a bare pickle, which may run code"),
    "state dict of another network": (
        SIZED,
        lambda p: torch.save(torch.nn.Linear(2, 2).state_dict(), p),
        "no tensor classify.weight",
    ),
    "missing tensor": (
        SIZED,
        student(lambda s: s.pop("blocks.1.conv1.0.weight")),
        'Missing key(s) in state_dict: "blocks.1.conv1.0.weight"',
    ),
    "tensor of another shape": (
        SIZED,
        student(lambda s: s.update({"blocks.0.conv1.0.weight": torch.zeros(4, 1, 3, 3)})),
        "size mismatch for blocks.0",
    ),
    "no size given": (CLASSIFIER, student(lambda s: None), "does not say its input's size; give --size"),
    "TorchScript for another size": (SIZED, torchscript, "TorchScript that cannot be run on 64×64 pixels"),
    "TorchScript as a detector": (("detector",), torchscript, "torchscript detectors are not supported"),
    "another network as an ultralytics file": (("detector",), student(lambda s: None), "head.pt: "),
    "operator nobody knows": (CLASSIFIER, custom_operator, "operators com.acme.Magic are not ONNX's own"),
    "operator OpenVINO does not know": (
        ("classifier", "--labels", "a,b,c"),
        lambda p: graph(p, [helper.make_node("Det", ["x"], ["y"])], [1, 3, 64, 64], {"y": [1, 3]}),
        "OpenVINO does not know Det-18",
    ),
    "weights for other channels": (
        CLASSIFIER,
        lambda p: convolved(p, np.ones((2, 5, 3, 3))),
        "the graph contradicts itself: Data batch channel count (3) does not match",
    ),
    "weights that are no numbers": (
        CLASSIFIER,
        lambda p: convolved(p, np.full((2, 3, 3, 3), np.nan)),
        "54 of 54 values of tensor w are NaN or infinite",
    ),
    "half precision": (CLASSIFIER, half_precision, "its input is FLOAT16, expected FLOAT"),
    "torch file cut short": (SIZED, cut_short, "the beginning of a zip without its end"),
    "state dict as a detector": (
        ("detector",),
        lambda p: torch.save({"weight": torch.zeros(1)}, p),
        "a state dict (weight, …), which does not say its network",
    ),
    "module that raises": (
        (*SIZED, "--module", "fractions:Fraction", "--module-args", '{"numerator": "x"}'),
        student(lambda s: None),
        "ValueError: Invalid literal for Fraction: 'x'; expected package.module:Class",
    ),
    "scale of nothing": (
        (*CLASSIFIER, "--scale", "0"),
        lambda p: pooled(p, [1, 3, 64, 64], [1, 2]),
        "--scale 0: pixels are divided by it",
    ),
    "outputs of no known detector": (("detector",), lambda p: pooled(p, [1, 3, 64, 64]), "expected those of YOLOv10"),
    "two outputs of a head": (CLASSIFIER, two_matrices, "expected one matrix (N, classes or dimensions)"),
    "two outputs of an embedder": (("embedder",), two_matrices, "expected one matrix (N, classes or dimensions)"),
    "oblong detector": (("detector",), oblong_yolo, "input 96×64, expected a square"),
    "dynamic detector": (
        ("detector",),
        lambda p: pooled(p, [1, 3, "h", "w"]),
        "is dynamic; say which size to fix with --size",
    ),
    "fixed batch": (CLASSIFIER, lambda p: pooled(p, [4, 3, 64, 64], [4, 2]), "made for batches of 4"),
    "another size than asked for": (
        SIZED,
        lambda p: pooled(p, [1, 3, 32, 32], [1, 2]),
        "made for 32×32 pixels, --size says 64",
    ),
    "two channels": (CLASSIFIER, lambda p: pooled(p, [1, 2, 64, 64], [1, 2]), "expected one picture"),
    "labels": (CLASSIFIER, lambda p: pooled(p, [1, 3, 64, 64]), "3 output(s), so 3 labels are expected"),
    "one label": (("classifier", "--labels", "a"), lambda p: pooled(p, [1, 3, 64, 64]), "expected at least two"),
    "two labels of one name": (
        ("classifier", "--labels", "a,b,a"),
        lambda p: pooled(p, [1, 3, 64, 64]),
        "--labels a,b,a: a twice, expected a name of its own per output",
    ),
    "two sizes of a foreign detector": (
        ("detector", "--size", "320", "640"),
        lambda p: pooled(p, [1, 3, 64, 64]),
        "--size 320 640: a foreign detector becomes one bundle",
    ),
    "latency alone of a foreign detector": (
        ("detector", "--latency"),
        lambda p: pooled(p, [1, 3, 64, 64]),
        "--latency is for our own bundles",
    ),
    "grey pixels for a colour network": (
        (*CLASSIFIER, "--color", "GRAY"),
        lambda p: pooled(p, [1, 3, 64, 64], [1, 2]),
        "--color GRAY does not fit",
    ),
    "two means for three channels": (
        (*CLASSIFIER, "--mean", "1", "2"),
        lambda p: pooled(p, [1, 3, 64, 64], [1, 2]),
        "--mean has 2 values, the network 3 channels",
    ),
    "Keras layer nobody knows": (
        CLASSIFIER,
        keras(plain("Lambda", "code", "input")),
        "code is a Lambda, which is not supported",
    ),
    "Keras file cut short": (CLASSIFIER, truncated_keras, "not a readable Keras model"),
    "Keras network of pictures": (CLASSIFIER, keras(conv("a", "input", normal(1, 3, 3, 3, 2))), "expected one matrix"),
    "empty file": (CLASSIFIER, lambda p: p.write_bytes(b""), "empty; copy the checkpoint again"),
    "another zip": (CLASSIFIER, lambda p: zipfile.ZipFile(p, "w").writestr("a.txt", "a"), "a zip with ['a.txt']"),
    "noise": (CLASSIFIER, lambda p: p.write_bytes(bytes(range(256)) * 8), "not a valid ONNX file"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_checkpoint_is_named_and_leaves_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (verb, *more), write, said = CASES[case]
    path, pictures, out = tmp_path / "head.pt", tmp_path / "pictures", tmp_path / "bundles"
    pictures.mkdir()
    out.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    cv2.imwrite(str(pictures / "a.png"), noise)
    write(path)
    assert main([verb, str(path), "--calibrate", str(pictures), "--out", str(out / "never"), *more]) == 1
    told = capsys.readouterr().err
    assert told.startswith("facefleet-convert: ")
    assert said in told
    assert not list(out.iterdir())
    assert not (tmp_path / "ran").exists()
