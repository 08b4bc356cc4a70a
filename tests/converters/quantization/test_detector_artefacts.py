"""What torch computes, ONNX and IR compute too; the head's arithmetic stays float in INT8."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")
onnx = pytest.importorskip("onnx", reason="needs the extra convert")
pytest.importorskip("openvino", reason="needs the extra convert")

from converters.bundles.detector import describe_bundle, golden_pictures  # noqa: E402
from converters.bundles.package import open_runtimes  # noqa: E402
from converters.errors import QuantizeError  # noqa: E402
from converters.nets.yolov10 import YOLOv10  # noqa: E402
from converters.quantization.detector_artefacts import (  # noqa: E402
    OUTPUTS,
    exported,
    head_nodes_onnx,
    head_nodes_openvino,
    input_of,
    pick,
    write_float,
    write_int8,
)
from converters.quantization.quantize import to_openvino  # noqa: E402
from edge.models.preprocess import to_tensor  # noqa: E402

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("ignore")]

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


@pytest.mark.slow
def test_both_float_runtimes_agree_with_torch(net: YOLOv10, picture: np.ndarray, tmp_path: Path) -> None:
    write_float(net, SIZE, tmp_path)
    manifest = describe_bundle(net, SIZE, "a test", [])
    plain = manifest.__class__(**{f: getattr(manifest, f) for f in manifest.__struct_fields__} | {"calibration": None})
    with torch.inference_mode():
        expected = exported(net, SIZE)(torch.from_numpy(to_tensor(picture, input_of(SIZE))))
    runtimes = open_runtimes(tmp_path, plain)
    assert set(runtimes) == {"fp32_openvino", "fp32_onnx"}
    for runtime in runtimes.values():
        boxes, scores = runtime.infer(picture)
        assert boxes.shape == (1, 189, 4)
        assert scores.shape == (1, 189, 1)
        np.testing.assert_allclose(boxes, expected[0].numpy(), atol=2e-3)
        np.testing.assert_allclose(scores, expected[1].numpy(), atol=1e-3)


@pytest.mark.slow
def test_int8_keeps_the_head_in_float_and_stays_near(net: YOLOv10, picture: np.ndarray, tmp_path: Path) -> None:
    images = [np.random.default_rng(k).integers(0, 256, (70, 90, 3), np.uint8) for k in range(4)]
    write_int8(net, SIZE, [*images, picture[0]], tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    head = set(head_nodes_onnx(model))
    kinds = {node.op_type for node in model.graph.node if node.name in head}
    assert {"Sigmoid", "Softmax", "Conv"} <= kinds
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"}
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) > 50
    expected = exported(net, SIZE)(torch.from_numpy(to_tensor(picture, input_of(SIZE))))
    for runtime in open_runtimes(tmp_path, describe_bundle(net, SIZE, "a test", [])).values():
        boxes, scores = runtime.infer(picture)
        assert float(np.abs(boxes - expected[0].detach().numpy()).mean()) < 3.0
        assert float(np.abs(scores - expected[1].detach().numpy()).mean()) < 0.05


@pytest.mark.slow
def test_head_is_matched_by_exact_names_with_the_dfl(net: YOLOv10) -> None:
    names = head_nodes_openvino(to_openvino(exported(net, SIZE), input_of(SIZE), OUTPUTS))
    assert any("dfl.conv" in name for name in names)
    assert any(name.endswith("Sigmoid") for name in names)
    assert not any("cv2.0.0" in name or "model.22" in name for name in names)


def test_graph_without_the_head_is_refused() -> None:
    class Other(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.conv(x).flatten(2)
            return y, y.sigmoid()

    with pytest.raises(QuantizeError, match="the head ends in 1 convolutions"):
        head_nodes_openvino(to_openvino(Other().eval(), input_of(SIZE), OUTPUTS))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Sigmoid", ["images"], ["y"], "s")], "g", [], [])
    graph.input.append(onnx.helper.make_tensor_value_info("images", 1, [1]))
    graph.output.append(onnx.helper.make_tensor_value_info("y", 1, [1]))
    with pytest.raises(QuantizeError, match="reached the input images"):
        head_nodes_onnx(onnx.helper.make_model(graph))


def test_golden_candidates_fit_the_input() -> None:
    pytest.importorskip("skimage", reason="needs the extra demo")
    assert {view.shape for view in golden_pictures(320)} == {(1, 320, 320, 3)}


def test_pick_takes_the_same_items_every_time() -> None:
    assert pick(range(100), 5) == pick(range(100), 5)
    assert pick([1, 2], 5) == [1, 2]
