"""Write a bundle folder aside and rename it: a box, or an interrupted conversion, never meets half a bundle."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from converters.errors import PackageError
from edge.errors import ModelError
from edge.models.bundle import MANIFEST, Bundle, contradiction, describe, load_bundle
from edge.models.golden import Golden, Infer, choose_golden, save_golden
from edge.models.manifest import Manifest, Role
from edge.models.runtime import LIBRARIES, Candidate, Runtime, candidates

FILES: dict[Role, str] = {
    "onnx": "model.onnx",
    "xml": "model.xml",
    "bin": "model.bin",
    "fp16_xml": "model_fp16.xml",
    "fp16_bin": "model_fp16.bin",
    "golden": "golden.npz",
    "checkpoint": "checkpoint.pt",
}
DATA = "data.json"
# YuNet's box of Eileen Collins in scikit-image's `astronaut` (512×512, NASA, public domain), xyxy in pixels.
ASTRONAUT_FACE = (181.0, 65.0, 273.0, 175.0)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder`; on success it takes `folder`'s place, on an error it vanishes.

    Raises:
        PackageError: when something else than a bundle lies there, or the finished folder is no valid bundle.
    """
    _refuse_what_is_no_bundle(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield aside
        try:
            load_bundle(aside)
        except ModelError as error:
            raise PackageError(f"{folder} was not written: {error}") from error
        aside.chmod(0o755)  # mkdtemp makes it private, and a box's service has another user
        old = folder.with_name(f".{folder.name}-old")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_what_is_no_bundle(folder: Path) -> None:
    """Keep `--out photos/` from replacing somebody's pictures, and `--out models_int8` every bundle at once."""
    if folder.is_dir():
        found = sorted(path.name for path in folder.iterdir())
        if found and MANIFEST not in found:
            some = f"{', '.join(found[:3])}{' …' if len(found) > 3 else ''}"
            raise PackageError(
                f"{folder}: holds {some} and no {MANIFEST}, so it is no bundle to be replaced; name a new folder, such "
                f"as {folder / 'NAME'}"
            )
    elif folder.exists():
        raise PackageError(f"{folder}: a file is there, expected the name of a bundle's folder")


def seal(aside: Path, manifest: Manifest) -> Manifest:
    """Write `manifest.yaml` with path, size and SHA-256 of every file of FILES that lies in the folder.

    Raises:
        PackageError: when the manifest contradicts itself or a runnable model is missing.
    """
    files = {role: describe(aside, aside / name) for role, name in FILES.items() if (aside / name).is_file()}
    if not {"onnx", "xml"} & files.keys():
        raise PackageError(f"{manifest.name}: neither {FILES['onnx']} nor {FILES['xml']} was written, one is needed")
    sealed = msgspec.structs.replace(manifest, files=files)
    if problem := contradiction(sealed):
        raise PackageError(f"{manifest.name}: {problem}; correct what the converter was told")
    text = yaml.safe_dump(msgspec.to_builtins(sealed), sort_keys=False, allow_unicode=True, width=120)
    (aside / MANIFEST).write_text(text, encoding="utf-8")
    return sealed


def save_checkpoint(module: torch.nn.Module, path: Path) -> None:
    """Write the float weights as an fp16 state dict; `torch.load(path, weights_only=True)` reads it."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()}
    torch.save({k: v.contiguous().clone() for k, v in half.items()}, path)


def write_data_list(
    path: Path, sets: Mapping[str, Mapping[str, str] | Sequence[str]], purpose: Mapping[str, str]
) -> None:
    """Write which pictures a model has learnt from.

    Args:
        path: usually `data.json` in the bundle.
        sets: per data set the SHA-256 of each picture, by name or, for thousands, without; the first 16 digits of
            each are kept, and the digest over all of them whole.
        purpose: per data set what it was used for, and its licence.
    """
    content = {}
    for name, pictures in sets.items():
        digests = list(pictures.values()) if isinstance(pictures, Mapping) else list(pictures)
        content[name] = {
            "used_for": purpose.get(name, ""),
            "pictures": len(digests),
            "digest": digest_of(digests),
            "sha256_first_16": {key: pictures[key][:16] for key in sorted(pictures)}
            if isinstance(pictures, Mapping)
            else " ".join(sorted(digest[:16] for digest in digests)),
        }
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def digest_of(digests: Sequence[str]) -> str:
    """Return the SHA-256 over a sorted list of SHA-256 digests: the same pictures give the same value."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def astronaut() -> NDArray[np.uint8]:
    """Return scikit-image's public-domain portrait, (512, 512, 3) uint8 BGR.

    Raises:
        PackageError: when scikit-image is not installed.
    """
    try:
        from skimage.data import astronaut as picture
    except ImportError as error:
        raise PackageError('the golden picture comes with scikit-image; pip install "facefleet[demo]"') from error
    return np.ascontiguousarray(picture()[..., ::-1])


def write_golden(aside: Path, manifest: Manifest, pictures: Sequence[NDArray[np.uint8]], infer: Infer) -> str:
    """Choose and write the golden pair; return a note for the manifest, empty when all is well.

    Args:
        aside: the staging folder.
        manifest: with its final score threshold.
        pictures: candidates, each (1, H, W, 3) uint8 BGR of the input's size, made from pictures we may publish.
        infer: the runtime whose outputs become the expected ones: the artefact most boxes will run.
    """
    try:
        golden, note = choose_golden(manifest, pictures, infer), ""
    except ModelError as error:
        image = pictures[0]
        golden = Golden(image, tuple(np.array(a, np.float32) for a in infer(image)))
        note = f"The golden input cannot tell swapped colour channels: {error}"
    save_golden(aside / FILES["golden"], manifest, golden)
    return note


def open_runtimes(folder: Path, manifest: Manifest, threads: int = 1) -> dict[str, Runtime]:
    """Compile every CPU artefact in a folder as a box would, by artefact name (`int8_openvino`, `int8_onnx`).

    The folder need not be sealed: `manifest` says how to feed the files that lie there.
    """
    bundle = _unsealed(folder, manifest)
    return {c.artefact: LIBRARIES[c.library](bundle, c, threads, None) for c in candidates(bundle, "CPU")}


def open_fp16(folder: Path, manifest: Manifest, threads: int = 1) -> Runtime:
    """Compile the FP16 IR meant for an NPU, on the CPU, so that its accuracy is known even where no NPU is."""
    candidate = Candidate("CPU", "fp16_openvino", "openvino", "fp16_xml")
    return LIBRARIES["openvino"](_unsealed(folder, manifest), candidate, threads, None)


def _unsealed(folder: Path, manifest: Manifest) -> Bundle:
    files = {role: describe(folder, folder / name) for role, name in FILES.items() if (folder / name).is_file()}
    return Bundle(folder, msgspec.structs.replace(manifest, files=files))
