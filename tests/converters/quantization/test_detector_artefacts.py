"""Parity: the same seeded picture through torch, FP32 ONNX and IR, INT8 ONNX and IR; a tolerance for each step."""

import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")
onnx = pytest.importorskip("onnx", reason="needs the extra convert")
pytest.importorskip("openvino", reason="needs the extra convert")

from converters.bundles.detector import Origin, describe_bundle, golden_pictures  # noqa: E402
from converters.bundles.package import open_fp16, open_runtimes  # noqa: E402
from converters.errors import QuantizeError  # noqa: E402
from converters.evaluation.latency import in_turn  # noqa: E402
from converters.nets.yolov10 import YOLOv10  # noqa: E402
from converters.nets.yolov10_export import Exported  # noqa: E402
from converters.quantization.detector_artefacts import (  # noqa: E402
    OUTPUTS,
    exported,
    input_of,
    pick,
    write_float,
    write_fp16,
)
from converters.quantization.graphs import (  # noqa: E402
    attention_onnx,
    openvino_names,
    read_openvino,
    tail_onnx,
    tail_openvino,
)
from converters.quantization.losses import named_nodes  # noqa: E402
from converters.quantization.quantize import to_openvino  # noqa: E402
from converters.quantization.ways import Way, Workshop  # noqa: E402
from edge.models.manifest import Manifest  # noqa: E402
from edge.models.preprocess import to_tensor  # noqa: E402

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

SIZE = 96


@pytest.fixture(scope="module")
def net() -> YOLOv10:
    """Random weights whose scores are not all alike."""
    torch.manual_seed(0)
    net = YOLOv10()
    with torch.no_grad():
        for _ in range(2):
            net(torch.rand(2, 3, SIZE, SIZE))  # norms see some data
        for branch in net.head.one2one_cv3:
            branch[2].bias.fill_(-1.0)
            branch[2].weight.mul_(8)
    return net.eval()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def floats(net: YOLOv10, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("floats")
    write_float(net, SIZE, folder)
    return folder


@pytest.fixture(scope="module")
def expected(net: YOLOv10, picture: np.ndarray) -> list[np.ndarray]:
    with torch.inference_mode():
        return [t.numpy() for t in exported(net, SIZE)(torch.from_numpy(to_tensor(picture, input_of(SIZE))))]


def shop(floats: Path, picture: np.ndarray, **more: object) -> Workshop:
    others = [np.random.default_rng(k).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8) for k in range(4)]
    return Workshop(
        floats / "model.onnx", input_of(SIZE), OUTPUTS, [*others, picture], tail=True, symmetric=True, **more
    )


def described(net: YOLOv10, *, quantized: bool = True) -> Manifest:
    manifest = describe_bundle(net, SIZE, Origin("a test"), [])
    fields = {f: getattr(manifest, f) for f in manifest.__struct_fields__}
    return manifest if quantized else Manifest(**(fields | {"calibration": None}))


def test_the_quotient_of_sums_is_the_softmax_of_the_paper(net: YOLOv10) -> None:
    """The step inside torch: 1e-4 px, because only the order of additions differs."""
    pixels = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        fast, half = exported(net, SIZE)(pixels), exported(net, SIZE, sixteen_bit=True)(pixels)
        features = net.features(pixels)
        distances, logits = net.head.one_to_one(features)
        sides = net.head.dfl(distances)
    np.testing.assert_allclose(fast[0], half[0], atol=1e-4)
    np.testing.assert_allclose(fast[1][..., 0], logits.sigmoid()[:, 0], atol=1e-6)
    strides = torch.cat([torch.full((144,), 8.0), torch.full((36,), 16.0), torch.full((9,), 32.0)])
    widths = (sides[:, 0] + sides[:, 2]) * strides
    np.testing.assert_allclose(fast[0][..., 2] - fast[0][..., 0], widths, atol=1e-3)


def test_logits_beyond_any_head_stay_finite_in_both_forms() -> None:
    for sixteen_bit in (False, True):
        export = Exported(YOLOv10(), SIZE, SIZE, sixteen_bit)
        logits = torch.tensor([[[-500.0] * 8 + [500.0] * 8], [[0.0] * 16], [[-200.0] * 16]])
        assert torch.isfinite(export._expectation(logits)).all()


@pytest.mark.slow
def test_both_float_runtimes_agree_with_torch(
    net: YOLOv10, floats: Path, picture: np.ndarray, expected: list[np.ndarray]
) -> None:
    """Float to float: 2e-3 px and 1e-3 in score; sums of a thousand products in another order."""
    runtimes = open_runtimes(floats, described(net, quantized=False))
    assert set(runtimes) == {"fp32_openvino", "fp32_onnx"}
    for runtime in runtimes.values():
        boxes, scores = runtime.infer(picture)
        assert boxes.shape == (1, 189, 4)
        assert scores.shape == (1, 189, 1)
        np.testing.assert_allclose(boxes, expected[0], atol=2e-3)
        np.testing.assert_allclose(scores, expected[1], atol=1e-3)


@pytest.mark.slow
def test_fp16_weights_move_boxes_by_a_fraction_of_a_pixel(
    net: YOLOv10, picture: np.ndarray, expected: list[np.ndarray], tmp_path: Path
) -> None:
    write_fp16(net, SIZE, tmp_path)
    boxes, scores = open_fp16(tmp_path, described(net)).infer(picture)
    assert np.abs(boxes - expected[0]).mean() < 0.1
    assert np.abs(scores - expected[1]).max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("way", [Way(), Way(attention=False), Way("mean")], ids=str)
def test_int8_stays_near_its_float_whichever_way(
    way: Way, net: YOLOv10, floats: Path, picture: np.ndarray, expected: list[np.ndarray], tmp_path: Path
) -> None:
    """Float to INT8, on random weights without a margin: 3 px and 0.05 in score on average."""
    shop(floats, picture).write(tmp_path, way)
    for name, runtime in open_runtimes(tmp_path, described(net)).items():
        boxes, scores = runtime.infer(picture)
        assert float(np.abs(boxes - expected[0]).mean()) < 3.0, name
        assert float(np.abs(scores - expected[1]).mean()) < 0.05, name


@pytest.mark.slow
def test_int8_keeps_the_arithmetic_of_the_head_in_float_and_its_last_convolutions_in_int8(
    floats: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    shop(floats, picture).write(tmp_path, Way())
    model = onnx.load(tmp_path / "model.onnx")
    makers = {output: node for node in model.graph.node for output in node.output}
    products = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert len(products) == 6
    assert {makers[name].op_type for node in products for name in node.input} == {"DequantizeLinear"}
    last = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Exp")
    after = {node.op_type for node in model.graph.node if node.op_type in ("Div", "Sigmoid", "Exp", "Clip")}
    assert after == {"Div", "Sigmoid", "Exp", "Clip"}
    assert not {"QuantizeLinear", "DequantizeLinear"} & {makers[model.graph.node[last].input[0]].op_type}
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) > 50


@pytest.mark.slow
def test_named_layers_stay_in_float_in_both_artefacts(floats: Path, picture: np.ndarray, tmp_path: Path) -> None:
    source = onnx.load(floats / "model.onnx")
    name = next(node.name for node in source.graph.node if node.op_type == "Conv")
    shop(floats, picture, named=[name]).write(tmp_path, Way())
    int8 = read_types(tmp_path / "model.xml")
    assert int8[name if name in int8 else f"{name}/WithoutBiases"] == "f32"
    model = onnx.load(tmp_path / "model.onnx")
    kept = next(node for node in model.graph.node if node.name == name)
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    assert makers.get(kept.input[1]) != "DequantizeLinear"


def read_types(xml: Path) -> dict[str, str]:
    """Return for each convolution of an IR the type its weights are stored in."""
    import openvino as ov

    found = {}
    for op in ov.Core().read_model(xml).get_ops():
        if op.get_type_name() in ("Convolution", "GroupConvolution"):
            node = op.input_value(1).get_node()
            while node.get_type_name() != "Constant":
                node = node.input_value(0).get_node()
            found[op.get_friendly_name()] = node.get_element_type().get_type_name()
    return found


def test_name_that_matches_nothing_is_an_error(floats: Path, picture: np.ndarray) -> None:
    with pytest.raises(QuantizeError, match=r"no layer 'model.99' to keep in float among 8[0-9]"):
        shop(floats, picture, named=["model.99"])


@pytest.mark.slow
def test_losses_name_parts_that_can_be_named_again(floats: Path, picture: np.ndarray, tmp_path: Path) -> None:
    bench = shop(floats, picture)
    bench.write(tmp_path, Way())
    assert str(Path(__file__).parents[3]).encode() not in (tmp_path / "model.onnx").read_bytes()
    parts = bench.losses()
    gains = [loss.gain for loss in parts]
    assert gains == sorted(gains, reverse=True)
    assert max(map(abs, gains)) > 1e-4, "some part must matter"
    names = [loss.part for loss in parts]
    assert {"model.0", "model.10", "model.22", "model.23.one2one_cv2.0", "model.23.one2one_cv3.2"} <= set(names)
    nodes = [node for loss in parts for node in loss.nodes]
    assert len(nodes) == len(set(nodes)) > 70
    model = onnx.load(floats / "model.onnx")
    assert set(named_nodes(model, names)) >= set(nodes)
    assert openvino_names(read_openvino(floats / "model.onnx", OUTPUTS), nodes)


def test_tail_is_matched_by_exact_names_with_the_dfl(floats: Path) -> None:
    model = onnx.load(floats / "model.onnx")
    nodes = {node.name: node for node in model.graph.node}
    tail = tail_onnx(model)
    kinds = [nodes[name].op_type for name in tail]
    assert kinds.count("Conv") == 6
    assert {"Exp", "Div", "Sigmoid", "MatMul"} <= set(kinds)
    assert "Relu" not in kinds
    assert len(tail_openvino(read_openvino(floats / "model.onnx", OUTPUTS))) > 10


def test_softmax_of_an_answer_is_no_attention() -> None:
    """An SSD ends in one; trying it both ways would quantize and judge everything twice for nothing."""
    steps = (("Conv", ["images", "w"], ["c"]), ("Softmax", ["c"], ["y"]))
    nodes = [onnx.helper.make_node(*step, name=step[0]) for step in steps]
    graph = onnx.helper.make_graph(nodes, "g", [], [])
    graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w"))
    graph.input.append(onnx.helper.make_tensor_value_info("images", 1, [1, 3, 4, 4]))
    graph.output.append(onnx.helper.make_tensor_value_info("y", 1, [1, 2, 4, 4]))
    assert attention_onnx(onnx.helper.make_model(graph)) == []


def test_graph_without_a_head_is_refused() -> None:
    class Other(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = x.flatten(2)
            return y, y.sigmoid()

    with pytest.raises(QuantizeError, match="reached the input"):
        tail_openvino(to_openvino(Other().eval(), input_of(SIZE), OUTPUTS))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Sigmoid", ["images"], ["y"], "s")], "g", [], [])
    graph.input.append(onnx.helper.make_tensor_value_info("images", 1, [1]))
    graph.output.append(onnx.helper.make_tensor_value_info("y", 1, [1]))
    with pytest.raises(QuantizeError, match="reached the input images"):
        tail_onnx(onnx.helper.make_model(graph))


def test_golden_candidates_fit_the_input() -> None:
    pytest.importorskip("skimage", reason="needs the extra demo")
    assert {view.shape for view in golden_pictures(320)} == {(1, 320, 320, 3)}


def test_pick_takes_the_same_items_every_time() -> None:
    assert pick(range(100), 5) == pick(range(100), 5)
    assert pick([1, 2], 5) == [1, 2]


@pytest.mark.slow
def test_latency_alone_is_measured_anew_and_nothing_else_changes(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="needs the extra convert")
    import shutil

    from converters.cli import main
    from edge.models.bundle import load_bundle

    shipped = Path(__file__).parents[3] / "models_int8" / "yolov10n-face-320"
    folder = Path(shutil.copytree(shipped, tmp_path / shipped.name))
    before = load_bundle(folder).manifest
    assert main(["detector", str(folder / "checkpoint.pt"), "--latency"]) == 0
    after = load_bundle(folder).manifest
    assert {line.metric for line in after.latency} >= {"median_ms", "cpu_ms"}
    assert after.latency != before.latency
    assert (after.files, after.accuracy, after.score_threshold) == (
        before.files, before.accuracy, before.score_threshold
    )  # fmt: skip


class Steady:
    """A runtime that takes its time."""

    device = artefact = "fake"

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def infer(self, images: np.ndarray) -> list[np.ndarray]:
        self.calls += 1
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass
        return []


def test_runtimes_are_timed_in_runs_and_in_turn() -> None:
    slow, fast = Steady(0.004), Steady(0.001)
    found = in_turn({"slow": slow, "fast": fast}, np.zeros((1, 8, 8, 3), np.uint8), rounds=3, run=6)
    assert slow.calls == fast.calls == 4 * 6
    assert found["slow"].low >= 4.0
    assert found["slow"].median > found["fast"].median
    assert found["fast"].low <= found["fast"].median <= found["fast"].high
    assert found["slow"].cpu > 0
