"""Crops go through an artefact in folds, and answers come back in their order."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("openvino")

from converters.bundles.package import FILES  # noqa: E402
from converters.evaluation.artefacts import Floats, predictors  # noqa: E402
from edge.models.manifest import Input, Manifest  # noqa: E402

pytestmark = pytest.mark.convert


def manifest(batch: int) -> Manifest:
    return Manifest(
        name="x", version="1", task="classifier", decoder="softmax", input=Input(4, 2, batch=batch), outputs=("y",),
        files={}, licence="Apache-2.0", source="a test", labels=("a", "b"),
    )  # fmt: skip


@pytest.mark.parametrize("fold", [1, 3, 7, 64])
def test_answers_are_the_same_however_many_crops_a_call_takes(fold: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4 * 2 * 3, 2))
    (tmp_path / FILES["checkpoint"]).touch()
    crops = np.random.default_rng(0).integers(0, 256, (7, 2, 4, 3), np.uint8)
    calls: list[int] = []

    def decode(outputs: Sequence[Floats]) -> Floats:
        calls.append(len(outputs[0]))
        return outputs[0]

    found = predictors(tmp_path, manifest(0), lambda _: net, decode, fold=fold)
    assert list(found) == ["fp32"]
    answers = found["fp32"](crops)
    assert (len(calls), sum(calls), max(calls)) == (-(-7 // fold), 7, min(fold, 7))
    with torch.inference_mode():
        picture = torch.from_numpy(crops[..., ::-1].copy()).permute(0, 3, 1, 2) / 255
        np.testing.assert_allclose(answers, net(picture).numpy(), atol=1e-5)
