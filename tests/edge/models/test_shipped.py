"""What lies in models_int8 keeps the promises of its manifests on this machine, with every artefact it ships."""

from pathlib import Path

import numpy as np
import pytest

from edge.models.bundle import load_bundle
from edge.models.golden import blind_spot, difference, load_golden
from edge.models.runtime import LIBRARIES, RESEARCH_ONLY, candidates, load_model

SHIPPED = sorted(path.parent for path in (Path(__file__).parents[3] / "models_int8").glob("*/manifest.yaml"))

pytestmark = pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)


def test_shipped_bundle_is_whole_and_runs(folder: Path):
    told: list[str] = []
    loaded = load_model(load_bundle(folder), ["CPU"], threads=1, log=told.append)
    assert loaded.attempts == (), "the first choice on the CPU must pass"
    assert (loaded.bundle.manifest.licence == RESEARCH_ONLY) == any("not for commercial use" in line for line in told)


def test_every_cpu_artefact_computes_the_golden_output(folder: Path):
    bundle = load_bundle(folder)
    golden = load_golden(bundle)
    ways = list(candidates(bundle, "CPU"))
    assert [way.library for way in ways] == ["openvino", "onnxruntime"]
    for way in ways:
        runtime = LIBRARIES[way.library](bundle, way, 1, None)
        assert difference(bundle.manifest, golden.outputs, runtime.infer(golden.image)) is None, str(way)


def test_golden_input_with_swapped_channels_fails(folder: Path):
    bundle = load_bundle(folder)
    runtime = load_model(bundle, ["CPU"], threads=1, log=lambda _: None).runtime
    assert blind_spot(bundle.manifest, load_golden(bundle), runtime.infer) is None


def test_free_batch_is_free(folder: Path):
    """A student answers five faces as it answers each alone, on both runtimes."""
    bundle = load_bundle(folder)
    if bundle.manifest.input.batch:
        pytest.skip("fixed batch")
    source = bundle.manifest.input
    images = np.random.default_rng(5).integers(0, 256, (5, source.height, source.width, 3), np.uint8)
    for way in candidates(bundle, "CPU"):
        runtime = LIBRARIES[way.library](bundle, way, 1, None)
        alone = np.concatenate([runtime.infer(images[i : i + 1])[0] for i in range(5)])
        np.testing.assert_allclose(runtime.infer(images)[0], alone, atol=1e-3, err_msg=str(way))
