"""A tiny random student through quantization and packaging, and back through the runtimes of a box."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("nncf")

from converters.bundles.package import (  # noqa: E402
    FILES,
    digest_of,
    open_runtimes,
    save_checkpoint,
    seal,
    staging,
    write_data_list,
    write_golden,
)
from converters.errors import PackageError, QuantizeError  # noqa: E402
from converters.nets.student import Student  # noqa: E402
from converters.quantization.losses import layers, own_errors  # noqa: E402
from converters.quantization.quantize import (  # noqa: E402
    export_onnx,
    network_input,
    onnx_nodes,
    openvino_nodes,
    quantize_onnx,
    quantize_openvino,
    save_openvino,
    to_openvino,
)
from edge.errors import ModelError  # noqa: E402
from edge.models.bundle import load_bundle  # noqa: E402
from edge.models.golden import blind_spot, load_golden  # noqa: E402
from edge.models.manifest import Calibration, Input, Manifest  # noqa: E402
from edge.models.runtime import load_model  # noqa: E402

# The exporters of torch, OpenVINO and NNCF warn about their own dependencies.
pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("ignore")]

SPEC = Input(32, 32, batch=0, fit="stretch")
PICTURES = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)


def sharp_student() -> Student:
    """A random student with logits spread over several units, as trained ones have."""
    torch.manual_seed(3)
    student = Student(3, (8, 16))
    x = torch.from_numpy(network_input(PICTURES, SPEC))
    for _ in range(40):
        student.train()(x)
    logits = student.eval()(x)
    with torch.no_grad():
        student.classify.weight.mul_(2 / logits.std())
        student.classify.bias.sub_((logits * 2 / logits.std()).mean(dim=0) - student.classify.bias)
    return student.eval()


def manifest() -> Manifest:
    return Manifest(
        name="tiny", version="1", task="classifier", decoder="softmax", input=SPEC, outputs=("logits",), files={},
        licence="Apache-2.0", source="a test", labels=("a", "b", "c"), calibration=Calibration("random", 24),
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    student = sharp_student()
    with staging(folder) as aside:
        quantized = quantize_openvino(to_openvino(student.fused(), SPEC, ["logits"]), SPEC, [PICTURES])
        save_openvino(quantized, aside / FILES["xml"])
        export_onnx(student.fused(), SPEC, ["logits"], folder.parent / "float.onnx")
        quantize_onnx(folder.parent / "float.onnx", aside / FILES["onnx"], SPEC, [PICTURES])
        save_checkpoint(student, aside / FILES["checkpoint"])
        runtime = open_runtimes(aside, manifest())["int8_openvino"]
        write_golden(aside, manifest(), [p[None] for p in PICTURES], runtime.infer)
        write_data_list(aside / "data.json", {"random": ["ab" * 32]}, {"random": "nothing"})
        seal(aside, manifest())
    return folder


def float_logits() -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = sharp_student()(torch.from_numpy(network_input(PICTURES, SPEC))).numpy()
    return logits


@pytest.mark.parametrize("artefact", ["int8_openvino", "int8_onnx"])
def test_int8_follows_float_on_every_runtime(bundle: Path, artefact: str) -> None:
    """Half a unit of logits that spread over ±4: 8-bit steps through five layers; a wrong scale is off by more."""
    loaded = load_bundle(bundle)
    logits = open_runtimes(bundle, loaded.manifest)[artefact].infer(PICTURES)[0]
    assert logits.shape == (24, 3)
    assert np.abs(logits - float_logits()).max() < 0.5


def test_float_onnx_equals_torch(bundle: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(bundle.parent / "float.onnx")
    (logits,) = session.run(None, {"images": network_input(PICTURES, SPEC)})
    np.testing.assert_allclose(logits, float_logits(), atol=1e-4)


def test_graphs_really_are_int8(bundle: Path) -> None:
    assert b"QuantizeLinear" in (bundle / "model.onnx").read_bytes()
    assert "FakeQuantize" in (bundle / "model.xml").read_text()


def test_checkpoint_loads_without_running_code_and_gives_the_same_answers(bundle: Path) -> None:
    saved = torch.load(bundle / "checkpoint.pt", weights_only=True)
    student = Student(3, (8, 16))
    student.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in saved.items()})
    logits = student.eval()(torch.from_numpy(network_input(PICTURES, SPEC))).detach().numpy()
    assert np.abs(logits - float_logits()).max() < 0.05


def test_a_box_accepts_the_bundle_and_its_golden_output(bundle: Path) -> None:
    loaded = load_model(load_bundle(bundle), ["CPU"], threads=1, log=lambda _: None)
    assert loaded.golden == "ok"
    assert loaded.runtime.artefact == "int8_openvino"


def test_a_box_refuses_a_golden_output_that_means_something_else(bundle: Path, tmp_path: Path) -> None:
    with staging(tmp_path / "wrong") as aside:
        for file in bundle.iterdir():
            (aside / file.name).write_bytes(file.read_bytes())
        arrays = dict(np.load(aside / "golden.npz"))
        np.savez(aside / "golden.npz", input=arrays["input"], logits=arrays["logits"][:, ::-1])
        seal(aside, load_bundle(bundle).manifest)
    with pytest.raises(ModelError, match="golden check failed"):
        load_model(load_bundle(tmp_path / "wrong"), ["CPU"], threads=1, log=lambda _: None)


def test_golden_input_notices_swapped_colour_channels(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    runtime = open_runtimes(bundle, loaded.manifest)["int8_openvino"]
    assert blind_spot(loaded.manifest, load_golden(loaded), runtime.infer) is None


def test_a_colour_blind_model_is_said_to_be_one(tmp_path: Path) -> None:
    def blind(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        grey = images.astype(np.float32).mean(axis=(1, 2, 3))
        return [np.stack([grey, -grey, np.zeros_like(grey)], axis=1) / 100]

    note = write_golden(tmp_path, manifest(), [PICTURES[:1]], blind)
    assert "cannot tell swapped colour channels" in note
    assert (tmp_path / "golden.npz").is_file()


def interrupted(folder: Path) -> None:
    with staging(folder) as aside:
        (aside / "model.xml").write_text("half")
        raise RuntimeError("power cut")


def test_a_failure_half_way_leaves_the_old_bundle_and_nothing_aside(tmp_path: Path) -> None:
    folder = tmp_path / "head"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("the old one")
    with pytest.raises(RuntimeError, match="power cut"):
        interrupted(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["head"]
    assert (folder / "manifest.yaml").read_text() == "the old one"


def test_a_bundle_that_was_never_sealed_is_not_put_in_place(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="was not written"), staging(tmp_path / "head") as aside:
        (aside / "model.xml").write_text("no manifest beside it")
    assert list(tmp_path.iterdir()) == []


def test_sealing_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"neither model\.onnx nor model\.xml"):
        seal(tmp_path, manifest())


def test_sealing_a_manifest_that_contradicts_itself_is_refused(bundle: Path, tmp_path: Path) -> None:
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).write_bytes((bundle / name).read_bytes())
    with pytest.raises(PackageError, match="labels"):
        seal(tmp_path, msgspec.structs.replace(manifest(), labels=("only one",)))


def test_a_newer_bundle_replaces_the_older_as_a_whole(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in ("manifest.yaml", "left over"):
        (folder / name).touch()
    with staging(folder) as aside:
        for file in bundle.iterdir():
            (aside / file.name).write_bytes(file.read_bytes())
    assert {f.name for f in folder.iterdir()} == {f.name for f in bundle.iterdir()}


def test_a_folder_or_file_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/aunt.jpg").touch()
    with pytest.raises(PackageError, match=r"holds aunt\.jpg and no manifest\.yaml, .*photos/NAME"):
        interrupted(tmp_path / "photos")
    with pytest.raises(PackageError, match="a file is there"):
        interrupted(tmp_path / "photos/aunt.jpg")
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "aunt.jpg"]


def test_ignoring_a_node_that_does_not_exist_is_an_error() -> None:
    model = to_openvino(sharp_student().fused(), SPEC, ["logits"])
    with pytest.raises(QuantizeError, match="no node"):
        quantize_openvino(model, SPEC, [PICTURES], ignored=["head.dfl"])
    with pytest.raises(QuantizeError, match="no node matches 'dfl'"):
        openvino_nodes(model, "dfl")


def test_layers_read_all_at_once_give_what_each_gives_alone() -> None:
    """They did not: OpenVINO loses a scale behind a convolution that an output reads beside its bias."""
    plain = to_openvino(sharp_student().fused(), SPEC, ["logits"])
    int8 = quantize_openvino(to_openvino(sharp_student().fused(), SPEC, ["logits"]), SPEC, [PICTURES], ranges="minmax")
    picture = network_input(PICTURES[:1], SPEC)
    together = own_errors(plain, int8, picture)
    assert len(together) == 7  # two blocks of three convolutions, one linear layer
    assert together[0][1] < 0.5
    names = [name for name, _ in together]
    for name, read in zip(names, layers(int8, names, picture, True), strict=True):
        (alone,) = layers(int8, [name], picture, True)
        assert np.abs(read - alone).mean() < 0.05 * np.abs(alone).mean()


def test_an_ignored_node_stays_float() -> None:
    model = to_openvino(sharp_student().fused(), SPEC, ["logits"])
    convolutions = [op for op in openvino_nodes(model, r"blocks\.0\.conv1") if op.endswith("Convolution")]
    assert convolutions
    quantized = quantize_openvino(model, SPEC, [PICTURES], ignored=convolutions)
    (first,) = (op for op in quantized.get_ops() if op.get_friendly_name() == convolutions[0])
    assert first.input_value(0).get_node().get_type_name() != "FakeQuantize"


def test_excluding_onnx_nodes_goes_by_module_path_and_misses_loudly(bundle: Path, tmp_path: Path) -> None:
    source = bundle.parent / "float.onnx"
    kept = onnx_nodes(source, "classify")
    assert kept
    quantize_onnx(source, tmp_path / "mixed.onnx", SPEC, [PICTURES], exclude=kept)
    assert (tmp_path / "mixed.onnx").stat().st_size > (bundle / "model.onnx").stat().st_size - 20_000
    with pytest.raises(QuantizeError, match="no node matches 'dfl'"):
        onnx_nodes(source, "dfl")
    with pytest.raises(QuantizeError, match="has no node"):
        quantize_onnx(source, tmp_path / "never.onnx", SPEC, [PICTURES], exclude=["dfl"])
    assert not (tmp_path / "never.onnx").exists()


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        pytest.param([], "no calibration pictures", id="empty folder"),
        pytest.param([PICTURES[:, :16]], "expected uint8", id="wrong size"),
        pytest.param([PICTURES.astype(np.float32)], "float32", id="wrong type"),
        pytest.param([PICTURES[..., :1]], "expected uint8", id="grey"),
    ],
)
def test_unusable_calibration_pictures_are_named(pictures: list[NDArray[np.uint8]], said: str) -> None:
    model = to_openvino(sharp_student().fused(), SPEC, ["logits"])
    with pytest.raises(QuantizeError, match=said):
        quantize_openvino(model, SPEC, pictures)


def test_digest_of_a_data_list_does_not_depend_on_its_order() -> None:
    assert digest_of(["b", "a"]) == digest_of(["a", "b"]) != digest_of(["a", "c"])
