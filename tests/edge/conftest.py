"""Model bundles small enough to build in a test, from OpenVINO operations or around a foreign ONNX."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edge.models.bundle import MANIFEST, Bundle, describe, load_bundle
from edge.models.golden import Golden, save_golden
from edge.models.manifest import File, Input, Manifest
from edge.models.runtime import Candidate
from edge.models.runtime_onnx import OnnxRuntime
from edge.models.runtime_openvino import OpenVinoRuntime

RED, BLUE = (20, 40, 230), (230, 40, 20)


class BundleMaker:
    """Writes bundles into a temporary folder; every one is a real bundle with digests and a golden file."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def classifier(self, **changes: Any) -> Bundle:
        """Build a colour classifier (red, green, blue): 8×8 RGB, batch 0, softmax of 6 × the channel means."""
        import openvino as ov
        from openvino import opset13 as ops

        x = ops.parameter([-1, 3, 8, 8], np.float32, name="pixels")
        mean = ops.reduce_mean(x, ops.constant(np.array([2, 3])), keep_dims=False)
        logits = ops.matmul(mean, ops.constant(6 * np.eye(3, dtype=np.float32)), False, False)
        manifest = Manifest(
            name="tiny-colour", version="1", task="classifier", decoder="softmax", input=Input(8, 8, batch=0),
            outputs=("logits",), files={}, licence="Apache-2.0", source="test", labels=("red", "green", "blue"),
        )  # fmt: skip
        return self._ir(ov.Model([_named(logits, "logits")], [x]), manifest, changes)

    def nearest(self, crops: NDArray[np.uint8], labels: tuple[str, ...], **changes: Any) -> Bundle:
        """Build a classifier that names the nearest of these crops, (K, 16, 16, 3) BGR: 16×16 RGB, batch 0."""
        import openvino as ov
        from openvino import opset13 as ops

        x = ops.parameter([-1, 3, 16, 16], np.float32, name="pixels")
        rows = crops[..., ::-1].transpose(0, 3, 1, 2).reshape(len(crops), -1).astype(np.float32) / 255
        flat = ops.reshape(x, [-1, rows.shape[1]], False)
        likeness = ops.matmul(flat, ops.constant(rows), False, True)
        logits = ops.subtract(likeness, ops.constant((rows**2).sum(axis=1, keepdims=True).T / 2))
        manifest = Manifest(
            name="tiny-nearest", version="1", task="classifier", decoder="softmax", input=Input(16, 16, batch=0),
            outputs=("logits",), files={}, licence="Apache-2.0", source="test", labels=labels,
        )  # fmt: skip
        return self._ir(ov.Model([_named(logits, "logits")], [x]), manifest, changes)

    def detector(self, **changes: Any) -> Bundle:
        """Build a detector that sees two fixed boxes, the surer the redder the picture is: 32×32 RGB, yolov10."""
        import openvino as ov
        from openvino import opset13 as ops

        x = ops.parameter([1, 3, 32, 32], np.float32, name="pixels")
        mean = ops.reduce_mean(x, ops.constant(np.array([2, 3])), keep_dims=False)
        redness = ops.matmul(mean, ops.constant(np.array([[6], [0], [-6]], np.float32)), False, False)
        score = ops.multiply(ops.sigmoid(redness), ops.constant(np.array([[[1.0], [0.9], [0.1]]], np.float32)))
        fixed = np.array([[[4, 4, 12, 14], [18, 6, 28, 20], [0, 0, 5, 5]]], np.float32)
        nothing = ops.multiply(ops.reshape(redness, [1, 1, 1], False), ops.constant(np.zeros((1, 1, 1), np.float32)))
        boxes = ops.add(nothing, ops.constant(fixed))
        manifest = Manifest(
            name="tiny-detector", version="1", task="detector", decoder="yolov10", input=Input(32, 32),
            outputs=("boxes", "scores"), files={}, licence="Apache-2.0", source="test", labels=("face",),
        )  # fmt: skip
        return self._ir(ov.Model([_named(score, "scores"), _named(boxes, "boxes")], [x]), manifest, changes)

    def foreign(self, onnx: Path, manifest: Manifest, image: NDArray[np.uint8]) -> Bundle:
        """Wrap an ONNX file as it is; the golden output is what onnxruntime makes of `image` (1, H, W, 3)."""
        folder = self.root / manifest.name
        folder.mkdir(parents=True)
        shutil.copy(onnx, folder / "model.onnx")
        manifest = msgspec.structs.replace(manifest, files={"onnx": describe(folder, folder / "model.onnx")})
        runtime = OnnxRuntime(Bundle(folder, manifest), Candidate("CPU", "fp32_onnx", "onnxruntime", "onnx"), 1)
        return self.write(folder, manifest, Golden(image, tuple(runtime.infer(image))))

    def write(self, folder: Path, manifest: Manifest, golden: Golden) -> Bundle:
        """Write golden file and manifest; return the bundle as `load_bundle` reads it."""
        save_golden(folder / "golden.npz", manifest, golden)
        files: dict[Any, File] = {**manifest.files, "golden": describe(folder, folder / "golden.npz")}
        (folder / MANIFEST).write_bytes(msgspec.yaml.encode(msgspec.structs.replace(manifest, files=files)))
        return load_bundle(folder)

    def _ir(self, model: Any, manifest: Manifest, changes: dict[str, Any]) -> Bundle:
        import openvino as ov

        folder = self.root / changes.get("name", manifest.name)
        folder.mkdir(parents=True)
        ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
        files: dict[Any, File] = {role: describe(folder, folder / f"model.{role}") for role in ("xml", "bin")}
        manifest = msgspec.structs.replace(manifest, files=files, **changes)
        image = np.full((1, manifest.input.height, manifest.input.width, 3), RED, np.uint8)
        runtime = OpenVinoRuntime(
            Bundle(folder, manifest), Candidate("CPU", "fp32_openvino", "openvino", "xml"), 1, None
        )
        return self.write(folder, manifest, Golden(image, tuple(runtime.infer(image))))


def _named(output: Any, name: str) -> Any:
    output.output(0).tensor.set_names({name})
    return output


@pytest.fixture
def bundles(tmp_path: Path) -> BundleMaker:
    """Return a maker of bundles under the test's own folder."""
    return BundleMaker(tmp_path / "bundles")


@pytest.fixture
def yunet(bundles: BundleMaker, shared: Path, portrait: NDArray[np.uint8]) -> Callable[[int], Bundle]:
    """Return a maker of YuNet bundles of an input size (320 or 640)."""

    def make(size: int) -> Bundle:
        from edge.track.letterbox import Letterbox

        names = tuple(f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32))
        manifest = Manifest(
            name=f"yunet-n-{size}", version="1", task="detector", decoder="yunet",
            input=Input(size, size, color="BGR", scale=(1.0,) * 3), outputs=names, files={}, licence="Apache-2.0",
            source="OpenCV zoo", labels=("face",), score_threshold=0.6,
        )  # fmt: skip
        onnx = shared / "weights" / "yunet_apache2" / f"yunet_n_{size}_{size}.onnx"
        return bundles.foreign(onnx, manifest, Letterbox(size, size)(portrait))

    return make


@pytest.fixture
def portrait(shared: Path) -> NDArray[np.uint8]:
    """Return a photograph with several faces, (H, W, 3) uint8 BGR."""
    import cv2

    path = shared / "detection" / "small_multiface" / "images" / "azure_identification1.jpg"
    return np.asarray(cv2.imread(str(path)), np.uint8)
