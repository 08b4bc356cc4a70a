"""A model runs only where it computes its golden output; every refusal is said aloud."""

from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest

from edge.errors import ModelError
from edge.models.golden import Golden, blind_spot, choose_golden, difference, load_golden
from edge.models.manifest import Input, Manifest
from edge.models.runtime import LIBRARIES, Candidate, candidates, load_model


@dataclass
class FakeRuntime:
    """Answers every batch with the same outputs; stands for hardware that is not there."""

    outputs: list
    device: str = "NPU"
    artefact: str = "fp16_openvino"

    def infer(self, images):
        return [np.repeat(a, len(images), axis=0) for a in self.outputs]


@dataclass
class FakeLibrary:
    """Compiles to `FakeRuntime`s, one answer per device; an exception as answer is raised."""

    answers: dict
    asked: list = field(default_factory=list)

    def __call__(self, bundle, candidate, threads, cache_dir):
        self.asked.append(str(candidate))
        answer = self.answers[candidate.device]
        if isinstance(answer, Exception):
            raise answer
        return FakeRuntime(answer, candidate.device, candidate.artefact)


def with_roles(bundle, **roles):
    """Return the bundle claiming more model files than it has; fakes do not open them."""
    files = {**bundle.manifest.files, **dict.fromkeys(roles, bundle.manifest.files["xml"])}
    return type(bundle)(bundle.folder, msgspec.structs.replace(bundle.manifest, files=files))


def test_openvino_on_the_cpu_passes_and_says_so(bundles):
    told = []
    loaded = load_model(bundles.detector(), ["CPU"], threads=1, log=told.append)
    assert (loaded.runtime.device, loaded.runtime.artefact) == ("CPU", "fp32_openvino")
    assert (loaded.golden, loaded.attempts) == ("ok", ())
    assert len(told) == 1
    assert "tiny-detector: runs on CPU fp32_openvino, golden check passed" in told[0]


def test_missing_accelerators_fall_back_to_the_cpu_aloud(bundles):
    told = []
    bundle = with_roles(bundles.classifier(), fp16_xml=1, fp16_bin=1)
    loaded = load_model(bundle, ["NPU", "GPU", "CPU"], threads=1, log=told.append)
    assert loaded.runtime.device == "CPU"
    assert [attempt.split(":")[0] for attempt in loaded.attempts] == [
        "NPU fp16_openvino", "GPU fp16_openvino", "GPU fp32_openvino",
    ]  # fmt: skip
    assert "no such device here, OpenVINO sees CPU" in loaded.attempts[0]
    assert "tiny-colour: refused NPU fp16_openvino: no such device here" in told[0]


def test_npu_gets_no_int8_and_the_reason_is_said(bundles):
    loaded = load_model(bundles.classifier(), ["NPU", "CPU"], threads=1, log=lambda _: None)
    assert loaded.attempts == ("NPU: the bundle has no model file for it, found ['bin', 'golden', 'xml']",)


def test_device_that_computes_something_else_is_refused(bundles):
    bundle = with_roles(bundles.classifier(), fp16_xml=1, fp16_bin=1)
    wrong = [np.array([[0.0, 0.0, 9.0]], np.float32)]
    right = list(load_golden(bundle).outputs)
    library = FakeLibrary({"NPU": wrong, "CPU": right})
    loaded = load_model(bundle, ["NPU", "CPU"], libraries={"openvino": library}, log=lambda _: None)
    assert loaded.runtime.device == "CPU"
    assert loaded.attempts == ("NPU fp16_openvino: golden check failed: label blue, expected red",)
    assert library.asked == ["NPU fp16_openvino", "CPU fp32_openvino"]


def test_device_that_computes_it_right_is_taken_and_nothing_else_compiled(bundles):
    bundle = with_roles(bundles.classifier(), fp16_xml=1, fp16_bin=1)
    library = FakeLibrary({"NPU": list(load_golden(bundle).outputs)})
    loaded = load_model(bundle, ["NPU", "CPU"], libraries={"openvino": library}, log=lambda _: None)
    assert (loaded.runtime.device, loaded.attempts, library.asked) == ("NPU", (), ["NPU fp16_openvino"])


def test_openvino_failing_on_the_cpu_leaves_onnxruntime(bundles):
    bundle = with_roles(bundles.classifier(), onnx=1)
    library = FakeLibrary({"CPU": ModelError("openvino is not installed")})
    other = FakeLibrary({"CPU": list(load_golden(bundle).outputs)})
    loaded = load_model(bundle, ["CPU"], libraries={"openvino": library, "onnxruntime": other}, log=lambda _: None)
    assert loaded.runtime.artefact == "fp32_onnx"
    assert loaded.attempts == ("CPU fp32_openvino: openvino is not installed",)


def test_nothing_left_lists_every_attempt(bundles):
    bundle = with_roles(bundles.classifier(), onnx=1)
    failing = FakeLibrary({"CPU": ModelError("kaput")})
    with pytest.raises(ModelError) as caught:
        load_model(bundle, ["NPU", "CPU"], libraries=dict.fromkeys(LIBRARIES, failing), log=lambda _: None)
    text = str(caught.value)
    assert "tiny-colour: no device computes the golden output" in text
    for attempt in ("NPU: the bundle has no model file", "CPU fp32_openvino: kaput", "CPU fp32_onnx: kaput"):
        assert attempt in text
    assert "facefleet-edge doctor" in text


def test_unknown_device_is_a_config_mistake(bundles):
    with pytest.raises(ModelError, match=r"device is 'TPU', expected one of NPU, GPU, CPU"):
        load_model(bundles.classifier(), ["TPU"])


def test_research_only_licence_is_repeated_at_start(bundles):
    told = []
    load_model(bundles.classifier(licence="research-only"), ["CPU"], threads=1, log=told.append)
    assert any("licence is research-only, not for commercial use" in line for line in told)


@pytest.mark.parametrize("make", ["classifier", "detector"])
def test_runtime_that_swaps_channels_fails_the_golden_check(bundles, make):
    """The manifest says BGR where the network was trained on RGB: red and blue change places."""
    bundle = getattr(bundles, make)()
    swapped = msgspec.structs.replace(
        bundle.manifest, input=msgspec.structs.replace(bundle.manifest.input, color="BGR")
    )
    with pytest.raises(ModelError, match="golden check failed"):
        load_model(type(bundle)(bundle.folder, swapped), ["CPU"], threads=1, log=lambda _: None)


def test_wrong_mean_fails_the_golden_check(bundles):
    bundle = bundles.detector()
    shifted = msgspec.structs.replace(
        bundle.manifest, input=msgspec.structs.replace(bundle.manifest.input, mean=(127.0, 0.0, 0.0))
    )
    with pytest.raises(ModelError, match=r"off by .* in score|no counterpart"):
        load_model(type(bundle)(bundle.folder, shifted), ["CPU"], threads=1, log=lambda _: None)


def test_golden_of_grey_pixels_is_no_test(bundles):
    bundle = bundles.classifier()
    grey = np.full((1, 8, 8, 3), 128, np.uint8)
    runtime = load_model(bundle, ["CPU"], threads=1, log=lambda _: None).runtime
    reason = blind_spot(bundle.manifest, Golden(grey, tuple(runtime.infer(grey))), runtime.infer)
    assert reason == "swapping red and blue in the golden input changes nothing beyond the tolerance"
    assert blind_spot(bundle.manifest, load_golden(bundle), runtime.infer) is None


def test_output_name_that_is_not_in_the_model_is_told(bundles):
    bundle = bundles.classifier()
    renamed = type(bundle)(bundle.folder, msgspec.structs.replace(bundle.manifest, outputs=("probs",)))
    candidate = next(candidates(renamed, "CPU"))
    with pytest.raises(ModelError, match=r"output probs of the manifest is not in the model, found \['logits'\]"):
        LIBRARIES["openvino"](renamed, candidate, 1, None)


def test_free_batch_gives_each_image_its_own_row(bundles):
    """1 to 9 images cross the static batch sizes of 4 and 1; nothing is lost, repeated or reordered."""
    runtime = load_model(bundles.classifier(), ["CPU"], threads=1, log=lambda _: None).runtime
    for count in (1, 3, 4, 5, 9):
        images = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), np.uint8)
        (logits,) = runtime.infer(images)
        expected = 6 * images.astype(np.float32).mean(axis=(1, 2))[:, ::-1] / 255
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_outputs_are_not_overwritten_by_the_next_inference(bundles):
    runtime = load_model(bundles.classifier(), ["CPU"], threads=1, log=lambda _: None).runtime
    (first,) = runtime.infer(np.zeros((1, 8, 8, 3), np.uint8))
    kept = first.copy()
    runtime.infer(np.full((1, 8, 8, 3), 255, np.uint8))
    np.testing.assert_array_equal(first, kept)


def test_warm_cache_gives_the_same_answer_and_damage_is_survived(bundles, tmp_path):
    bundle, cache = bundles.detector(), tmp_path / "cache"
    for damage in (False, False, True):
        if damage:
            for blob in cache.rglob("*.blob"):
                blob.chmod(0o600)
                blob.write_bytes(b"rubbish" + blob.read_bytes()[: blob.stat().st_size // 2])
        loaded = load_model(bundle, ["CPU"], threads=1, cache_dir=cache, log=lambda _: None)
        assert loaded.attempts == ()
        assert list(cache.rglob("*.blob"))


def test_cache_entry_that_computes_nonsense_is_wiped_once(bundles, tmp_path):
    bundle, cache = bundles.classifier(), tmp_path / "cache" / "tiny-colour" / "CPU-fp32_openvino"
    cache.mkdir(parents=True)
    (cache / "1.blob").write_bytes(b"compiled by another driver")
    right, wrong = list(load_golden(bundle).outputs), [np.array([[0.0, 9.0, 0.0]], np.float32)]

    def library(bundle, candidate, threads, cache_dir):
        return FakeRuntime(wrong if (cache_dir / "1.blob").exists() else right, candidate.device)

    loaded = load_model(
        bundle, ["CPU"], cache_dir=tmp_path / "cache", libraries={"openvino": library}, log=lambda _: None
    )
    assert loaded.attempts == ()
    assert not (cache / "1.blob").exists()


def test_library_that_is_not_installed_names_the_extra(bundles, monkeypatch):
    bundle = bundles.classifier()
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(ModelError, match=r'openvino is not installed; pip install "facefleet\[edge\]"'):
        load_model(bundle, ["CPU"], log=lambda _: None)


def test_candidates_prefer_int8_ir_then_onnx_on_the_cpu_and_fp16_elsewhere(bundles):
    bundle = with_roles(bundles.classifier(), fp16_xml=1, fp16_bin=1, onnx=1)
    assert [str(c) for d in ("NPU", "GPU", "CPU") for c in candidates(bundle, d)] == [
        "NPU fp16_openvino", "GPU fp16_openvino", "GPU fp32_openvino", "CPU fp32_openvino", "CPU fp32_onnx",
    ]  # fmt: skip


@pytest.mark.convert
@pytest.mark.convert
@pytest.mark.parametrize("source", [
    Input(12, 8, color="RGB", mean=(10.0, 20.0, 30.0), scale=(58.0, 57.0, 59.0)),
    Input(12, 8, color="BGR", mean=(0.0, 0.0, 0.0), scale=(255.0, 255.0, 255.0)),
    Input(12, 8, color="GRAY", mean=(127.0,), scale=(128.0,)),
    Input(12, 8, layout="NHWC", color="RGB", mean=(127.0, 127.0, 127.0), scale=(128.0, 128.0, 128.0)),
    Input(12, 8, layout="NHWC", color="GRAY", mean=(0.0,), scale=(255.0,), batch=0),
], ids=lambda s: f"{s.layout}-{s.color}")  # fmt: skip
def test_both_runtimes_feed_the_network_the_same_pixels(tmp_path, source):
    """An identity network shows what arrives: onnxruntime's numpy and OpenVINO's graph agree to 1e-3 of a step."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    from edge.models.bundle import Bundle, describe
    from edge.models.preprocess import tensor_shape, to_tensor

    shape = list(tensor_shape(source, 1))
    shape[0] = "N" if source.batch == 0 else 1
    pixels, seen = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("pixels", "seen"))
    graph = helper.make_graph([helper.make_node("Identity", ["pixels"], ["seen"])], "identity", [pixels], [seen])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    manifest = Manifest(
        name="identity", version="1", task="embedder", decoder="vector", input=source, outputs=("seen",),
        files={"onnx": describe(tmp_path, tmp_path / "model.onnx")}, licence="Apache-2.0", source="test",
    )  # fmt: skip
    bundle = Bundle(tmp_path, manifest)
    images = np.random.default_rng(1).integers(0, 256, (1, 8, 12, 3), np.uint8)
    results = [
        LIBRARIES[library](bundle, Candidate("CPU", "fp32", library, "onnx"), 1, None).infer(images)[0]
        for library in ("openvino", "onnxruntime")
    ]
    expected = to_tensor(images, source)
    for result in results:
        np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.convert
def test_onnx_that_reads_pixels_gets_pixels(tmp_path):
    """The converters' INT8 detectors take (1, H, W, 3) uint8 BGR as it is; a view that is not contiguous too."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    from edge.models.bundle import Bundle, describe

    entrance = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 8, 12, 3])
    seen = helper.make_tensor_value_info("seen", TensorProto.FLOAT, [1, 8, 12, 3])
    cast = helper.make_node("Cast", ["images"], ["seen"], to=TensorProto.FLOAT)
    graph = helper.make_graph([cast], "pixels", [entrance], [seen])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "model.onnx"
    )
    manifest = Manifest(
        name="pixels", version="1", task="detector", decoder="yolov10", input=Input(12, 8), outputs=("seen",),
        files={"onnx": describe(tmp_path, tmp_path / "model.onnx")}, licence="Apache-2.0", source="test",
    )  # fmt: skip
    way = Candidate("CPU", "int8_onnx", "onnxruntime", "onnx")
    runtime = LIBRARIES["onnxruntime"](Bundle(tmp_path, manifest), way, 1, None)
    images = np.random.default_rng(2).integers(0, 256, (1, 8, 24, 3), np.uint8)[:, :, ::2]
    np.testing.assert_array_equal(runtime.infer(images)[0], images.astype(np.float32))


def test_golden_is_tinted_until_swapped_channels_show(bundles):
    """A grey picture is no test for the colour classifier; a tint makes one, and the answer still is the runtime's."""
    bundle = bundles.classifier()
    infer = load_model(bundle, ["CPU"], threads=1, log=lambda _: None).runtime.infer
    golden = choose_golden(bundle.manifest, [np.full((1, 8, 8, 3), 200, np.uint8)], infer)
    assert golden.image.min() < 200
    assert blind_spot(bundle.manifest, golden, infer) is None
    np.testing.assert_array_equal(golden.outputs[0], infer(golden.image)[0])


def test_golden_on_which_the_artefacts_differ_is_refused(bundles):
    bundle = bundles.classifier()
    infer = load_model(bundle, ["CPU"], threads=1, log=lambda _: None).runtime.infer
    with pytest.raises(ModelError, match=r"no golden input found, .*; give more or other images"):
        choose_golden(bundle.manifest, [load_golden(bundle).image], infer, [lambda x: [-a for a in infer(x)]])


@pytest.mark.parametrize(
    ("task", "expected", "found", "told"),
    [
        ("embedder", [[1.0, 0.0]], [[1.0, 0.1]], None),
        ("embedder", [[1.0, 0.0]], [[1.0, 0.3]], "cosine 0.958, expected ≥ 0.98"),
        ("landmarks", [[0.5, 0.5, 0.1, 0.1]], [[0.5, 0.51, 0.1, 0.1]], None),
        ("landmarks", [[0.5, 0.5, 0.1, 0.1]], [[0.5, 0.5, 0.1, 0.13]], "a point is 3.0 px off, allowed 2.0"),
        ("classifier", [[0.0, 1.0]], [[0.0, 1.3]], None),
        ("classifier", [[0.0, 1.0]], [[0.0, 2.0]], "probability off by 0.15, allowed 0.1"),
        ("classifier", [[0.0, 0.1]], [[0.1, 0.0]], "label a, expected b"),
        ("classifier", [[0.0, 1.0]], [[0.0, float("nan")]], "outputs contain NaN or infinity"),
        ("classifier", [[0.0, 1.0]], [[0.0, 1.0, 0.0]], "output shapes ((1, 3),), expected ((1, 2),)"),
    ],
)
def test_outputs_are_compared_on_the_level_of_the_task(task, expected, found, told):
    decoder = {"embedder": "vector", "landmarks": "points", "classifier": "softmax"}[task]
    manifest = Manifest(
        name="x", version="1", task=task, decoder=decoder, input=Input(100, 100), outputs=("y",), files={},
        licence="Apache-2.0", source="test", labels=("a", "b"),
    )  # fmt: skip
    assert difference(manifest, *([np.array(a, np.float32)] for a in (expected, found))) == told


@pytest.mark.parametrize(
    ("scores", "shift_px", "told"),
    [
        ((0.8, 0.55), 0.0, None),
        ((0.72, 0.47), 0.3, None),  # the second box falls below the threshold of 0.5, within the tolerance
        ((0.8, 0.3), 0.0, "has no counterpart"),
        ((0.65, 0.55), 0.0, "off by 0.15 in score"),
        ((0.8, 0.55), 2.0, "best IoU 0.68"),
    ],
    ids=["the same", "within the tolerance", "box lost", "score off", "box moved"],
)
def test_boxes_are_compared_by_overlap_and_score(scores, shift_px, told):
    manifest = Manifest(
        name="x", version="1", task="detector", decoder="yolov10", input=Input(64, 64), outputs=("b", "s"), files={},
        licence="Apache-2.0", source="test",
    )  # fmt: skip
    boxes = np.array([[[0, 0, 20, 20], [30, 30, 50, 50]]], np.float32)
    expected = [boxes, np.array([[[0.8], [0.55]]], np.float32)]
    found = [boxes + np.float32(shift_px), np.array(scores, np.float32).reshape(1, 2, 1)]
    reason = difference(manifest, expected, found)
    assert reason is None if told is None else told in (reason or "")
