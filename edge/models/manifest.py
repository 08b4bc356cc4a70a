"""The manifest of a model bundle: the only thing the runtime believes about a model.

`converters` writes it, `edge.models.bundle` reads it and checks the files beside it against it.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

Task = Literal["detector", "classifier", "landmarks", "embedder"]
Decoder = Literal["yolov10", "yunet", "ssd", "single_box", "softmax", "sigmoid", "points", "vector"]
Fit = Literal["letterbox", "stretch", "align"]
ME = "me"
Role = Literal["onnx", "xml", "bin", "fp16_xml", "fp16_bin", "golden", "checkpoint"]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the bundle; `path` is relative to the manifest and stays inside its folder."""

    path: str
    sha256: str
    bytes: int


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the network itself eats: the runtimes turn (N, H, W, 3) uint8 BGR into this.

    Each channel becomes `(x - mean) / scale`, x in 0–255. `batch` 0 means dynamic. `fit` says how a picture or a face
    gets in: whole and undistorted, stretched, or turned upright by five landmarks (`edge.track.alignment`, embedders).
    """

    width: int
    height: int
    batch: int = 1
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    color: Literal["BGR", "RGB", "GRAY"] = "RGB"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    scale: tuple[float, ...] = (255.0, 255.0, 255.0)
    fit: Fit = "letterbox"


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The images that fixed the quantization ranges; `digest` is SHA-256 over their sorted SHA-256 list."""

    dataset: str
    images: int
    digest: str = ""


class Measurement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One figure: `accuracy` on `dataset`, or `latency` on `cpu`, of one artefact, with the command that repeats it."""

    metric: str
    value: float
    artefact: Literal["source", "fp32", "int8_onnx", "int8_openvino", "fp16_openvino"]
    command: str
    dataset: str = ""
    cpu: str = ""
    threads: int = 0
    images: int = 0


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model, its files, how to feed it, how to read its answer, where it comes from and how good it is.

    `outputs` lists the output tensor names in the order the decoder wants them. `score_threshold` is that of this
    quantized artefact (detector: keep a box; classifier: below it the head abstains). `crop_margin` is the fraction
    of the face box added on every side, as the student was trained. `identifies` are the labels that each stand for one
    person, such as `me`; () says that none does. A bundle that says nothing is not written with the key, so that a
    program from before it still reads the bundle; it refuses one that recognizes somebody, as it must.
    """

    name: str
    version: str
    task: Task
    decoder: Decoder
    input: Input
    outputs: tuple[str, ...]
    files: dict[Role, File]
    licence: str
    source: str
    labels: tuple[str, ...] = ()
    score_threshold: float = 0.5
    crop_margin: float = 0.0
    opset: int = 0
    architecture: str = ""
    calibration: Calibration | None = None
    accuracy: tuple[Measurement, ...] = ()
    latency: tuple[Measurement, ...] = ()
    notes: str = ""
    schema: int = 1
    identifies: tuple[str, ...] | UnsetType = UNSET

    @property
    def people(self) -> tuple[str, ...]:
        """Return the labels that each stand for one person: as stated, else one that is called `me`."""
        if self.identifies is UNSET:
            return tuple(label for label in self.labels if label.strip().lower() == ME)
        return self.identifies
