"""A config becomes running parts: models are loaded and checked, and each camera gets its stages.

`app.py` (live), `replay.py` and the benchmark all build their pipelines here, so that they run the very same code.
"""

import os
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.capture.gate import Gate, GateParams
from edge.capture.masks import Masks
from edge.capture.spec import SourceSpec
from edge.config import Camera, HeadConfig, LoadedConfig
from edge.config import Source as SourceConfig
from edge.consent import heads_off
from edge.errors import ModelError
from edge.identity import require_consents, today_utc
from edge.models.bundle import Bundle, load_bundle
from edge.models.runtime import Loaded, Runtime, load_model
from edge.pipeline import Pipeline, flat_attributes
from edge.track.attributes import Attributes, HeadParams
from edge.track.detector import Detector
from edge.track.landmarks import Landmarks
from edge.track.recording import Recorder
from edge.track.sort import Sort, SortParams
from edge.track.visits import VisitParams, Visits
from edge.wire import Head, ModelHealth, Vocabulary


class SharedRuntime:
    """One compiled model for several cameras, one inference at a time: on a box they would fight for the same cores."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._turn = threading.Lock()
        self.device, self.artefact = runtime.device, runtime.artefact

    def infer(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Run the model when its turn comes; see `Runtime.infer`."""
        with self._turn:
            return self._runtime.infer(images)


@dataclass(frozen=True, slots=True)
class Models:
    """All models of a box: detectors by bundle name, heads by head name, and the five points where asked for."""

    detectors: Mapping[str, Loaded]
    heads: Mapping[str, Loaded]
    vocabulary: Vocabulary
    landmarks: Loaded | None = None

    def health(self, off: Mapping[str, str] | None = None) -> dict[str, ModelHealth]:
        """Return what runs where, for the health message; `off` says why a head is silent, by its name."""
        points = {"landmarks": self.landmarks} if self.landmarks else {}
        running = {n: _model_health(m) for n, m in {**self.detectors, **self.heads, **points}.items()}
        silent = {n: _silent(running[n], why) for n, why in (off or {}).items() if n in running}
        return running | silent


def load_models(config: LoadedConfig, *, log: Callable[[str], None]) -> Models:
    """Load every bundle a config names, each once.

    Raises:
        ModelError: a bundle is missing, damaged, of the wrong task, or nothing computes its golden output.
        ConfigError: a head recognizes a person of whom the config has no consent.
    """
    box = config.box
    cache = config.state_dir / "cache"

    def load(name: str, key: str, task: str) -> Loaded:
        bundle = find_bundle(config.models_dir, name, key)
        if bundle.manifest.task != task:
            raise ModelError(f"{key} is {name!r}, a {bundle.manifest.task}; expected a {task} bundle")
        loaded = load_model(bundle, box.devices, threads=model_threads(config, task), cache_dir=cache, log=log)
        return Loaded(SharedRuntime(loaded.runtime), loaded.bundle, loaded.golden, loaded.attempts)

    names = {camera.detector: f"cameras[{i}].detector" for i, camera in enumerate(box.cameras)}
    detectors = {name: load(name, key, "detector") for name, key in names.items()}
    heads = {h.name: load(h.bundle_name, f"heads[{i}].bundle", "classifier") for i, h in enumerate(box.heads)}
    require_consents(config, {name: loaded.bundle.manifest for name, loaded in heads.items()})
    points = load(box.landmarks, "landmarks", "landmarks") if box.landmarks else None
    words = tuple(Head(h.name, heads[h.name].bundle.manifest.labels, h.purpose or "") for h in box.heads)
    return Models(detectors, heads, Vocabulary(tuple(c.id for c in box.cameras), words), points)


def model_threads(config: LoadedConfig, task: str) -> int:
    """Return how many threads compute a model.

    A detector gets half of the cores, unless the config says otherwise; the others decode. On two cores one at 320
    takes 2.9 ms with one thread, and 2.5 with two that wait for each other: a whole frame of 720p then costs 4.8 ms of
    processor time, or 6.8. At 640 and 1080p it is 16.4 or 20.4.

    A student computes for 0.2 ms. OpenVINO's second thread takes nothing off that and then looks for more work for a
    whole millisecond: 0.9 ms of processor time each, instead of 0.2 with one.
    """
    if task != "detector":
        return 1
    return config.box.threads or max(1, _cores() // 2)


def _cores() -> int:
    """Return how many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_bundle(models_dir: Path, name: str, key: str) -> Bundle:
    """Open a bundle by name; the message of a missing one lists what there is."""
    if not (models_dir / name / "manifest.yaml").is_file():
        there = ", ".join(sorted(p.parent.name for p in models_dir.glob("*/manifest.yaml"))) or "a folder with bundles"
        raise ModelError(f"{key} is {name!r}, which is no bundle in {models_dir}; expected one of {there}")
    return load_bundle(models_dir / name)


def source_spec(config: LoadedConfig, camera: Camera) -> SourceSpec:
    """Return a camera's source with its credentials resolved.

    Raises:
        ConfigError: the named credential cannot be read.
    """
    source: SourceConfig = camera.source
    kind = source.kind(config.base)
    return SourceSpec(
        kind=kind,
        location=str(source.location(config.base)) if kind in ("file", "folder") else str(source.uri),
        user=source.user,
        password=config.secret(source.password, f"camera {camera.id}"),
        fps=source.fps,
        hw_decode=source.hw_decode,
        transport=source.transport,
        silence_s=source.silence_s,
    )


def preview_token(config: LoadedConfig) -> str | None:
    """Return what the live page asks its viewers for, None where it asks for nothing.

    Raises:
        ConfigError: the named credential cannot be read.
    """
    settings = config.box.preview
    return config.secret(settings.token, "preview.token") if settings.enabled else None


def build_pipeline(
    config: LoadedConfig,
    index: int,
    models: Models,
    rng: random.Random,
    *,
    grid_s: float,
    recorder: Recorder | None = None,
    today: date | None = None,
) -> Pipeline:
    """Put the stages of one camera together.

    Args:
        config: The box.
        index: Of the camera in the config.
        models: What `load_models` returned.
        rng: Draws the first track number; seeded in a replay.
        grid_s: A boundary of the presence grid on the process's timeline.
        recorder: Keeps what the detector found.
        today: Heads whose consents do not hold on that day begin silent; the present day unless given.
    """
    camera = config.box.cameras[index]
    attributes = build_attributes(config.box.heads, models.heads, models.landmarks)
    attributes.switch_off(heads_off(config.box.heads, today or today_utc()))
    return Pipeline(
        masks=Masks(camera.masks),
        gate=Gate(gate_params(camera)),
        detector=Detector(models.detectors[camera.detector], score_threshold=camera.score_threshold),
        sort=Sort(SortParams(camera.sort.max_age, camera.sort.min_hits, camera.sort.iou_threshold)),
        attributes=attributes,
        visits=build_visits(config, index, attributes, models.vocabulary, rng, grid_s=grid_s),
        recorder=recorder,
    )


def build_attributes(
    heads: tuple[HeadConfig, ...], loaded: Mapping[str, Loaded], landmarks: Loaded | None = None
) -> Attributes:
    """Return the heads of one camera; with landmarks they prefer faces that look into it."""
    params = {h.name: HeadParams(h.name, min_face_px=h.min_face_px, score_threshold=h.threshold) for h in heads}
    return Attributes(loaded, params, Landmarks(landmarks) if landmarks else None)


def build_visits(
    config: LoadedConfig,
    index: int,
    attributes: Attributes,
    vocabulary: Vocabulary,
    rng: random.Random,
    *,
    grid_s: float,
) -> Visits:
    """Return the visits of one camera; its track numbers start at random, so that they cannot be joined."""
    names = tuple(h.name for h in vocabulary.heads)
    params = VisitParams(
        min_hits=config.box.cameras[index].sort.min_hits,
        update_s=config.box.update_s,
        presence_s=config.box.presence_s,
        grid_s=grid_s,
    )
    return Visits(index, params, lambda i: flat_attributes(attributes.votes(i), names), rng.getrandbits(32))


def gate_params(camera: Camera) -> GateParams:
    """Return a camera's gate: without one, and without a rate, every frame is searched."""
    gate = camera.gate
    return GateParams(
        enabled=gate.enabled,
        fps=camera.fps,
        luma_step=gate.luma_step,
        motion_area=gate.motion_area,
        linger_s=gate.linger_s,
        recheck_s=gate.recheck_s,
        idle_s=gate.idle_s,
    )


def _silent(health: ModelHealth, why: str) -> ModelHealth:
    """Return the health of a head that runs nowhere now; the reason stands where other refusals do."""
    return msgspec.structs.replace(health, device="off", attempts=(*health.attempts, f"off: {why}"))


def _model_health(loaded: Loaded) -> ModelHealth:
    manifest = loaded.bundle.manifest
    return ModelHealth(
        version=manifest.version,
        device=loaded.runtime.device,
        artefact=loaded.runtime.artefact,
        golden=loaded.golden,
        attempts=loaded.attempts,
        licence=manifest.licence,
    )
