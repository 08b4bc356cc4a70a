"""A config becomes running parts: the optional landmark bundle from the config to the heads that use it."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edge.assembly import build_pipeline, load_models
from edge.cli import main
from edge.config import LoadedConfig, load_box
from edge.flash.portable import gather
from edge.models.bundle import Bundle
from edge.models.runtime import Loaded, load_model
from edge.track.landmarks import Landmarks

SHIPPED = Path(__file__).resolve().parents[2] / "models_int8"


def write(tmp_path: Path, **more: Any) -> Path:
    config = {
        "site": "demo",
        "box": "lobby-1",
        "database": "6c6f6361-6c00-4000-8000-000000000000",
        "models_dir": str(SHIPPED),
        "state_dir": str(tmp_path / "state"),
        "heads": [{"name": "gender"}],
        "cameras": [{"id": "door", "source": {"uri": "rtsp://192.0.2.1/s"}}],
    }
    path = tmp_path / "box.yaml"
    path.write_text(json.dumps(config | more))
    return path


def box(tmp_path: Path, **more: Any) -> LoadedConfig:
    return load_box(write(tmp_path, **more))


def test_without_landmarks_in_the_config_none_are_loaded(tmp_path: Path) -> None:
    config = box(tmp_path)
    assert [name for name, _, _ in config.box.bundles()] == ["yolov10n-face-320", "gender-student"]
    models = load_models(config, log=lambda _: None)
    assert models.landmarks is None
    assert "landmarks" not in models.health()


@pytest.mark.parametrize(("said", "cores", "threads"), [(0, 1, 1), (0, 2, 1), (0, 8, 4), (3, 2, 3)])
def test_half_of_the_cores_detect_and_students_never_wait_for_a_second_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: int, cores: int, threads: int
) -> None:
    asked: dict[str, int] = {}

    def watched(bundle: Bundle, devices: Sequence[str], *, threads: int, **more: Any) -> Loaded:
        asked[bundle.manifest.task] = threads
        return load_model(bundle, devices, threads=threads, **more)

    monkeypatch.setattr("edge.assembly.load_model", watched)
    monkeypatch.setattr("edge.assembly._cores", lambda: cores)
    load_models(box(tmp_path, threads=said, landmarks="landmarks-student"), log=lambda _: None)
    assert asked == {"detector": threads, "classifier": 1, "landmarks": 1}


def test_landmarks_of_the_config_reach_the_heads_and_the_health_message(tmp_path: Path) -> None:
    config = box(tmp_path, landmarks="landmarks-student")
    models = load_models(config, log=lambda _: None)
    assert models.health()["landmarks"].golden == "ok"
    pipeline = build_pipeline(config, 0, models, random.Random(0), grid_s=0.0)
    assert isinstance(pipeline.attributes._find_points, Landmarks)


def test_landmarks_that_are_none_are_refused_at_the_desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(write(tmp_path, landmarks="gender-student"))]) == 2
    assert "landmarks is 'gender-student', a classifier; expected a landmarks bundle" in capsys.readouterr().err


def test_a_box_is_flashed_with_its_landmarks(tmp_path: Path) -> None:
    plain, more = (gather(box(tmp_path, **extra)).files for extra in ({}, {"landmarks": "landmarks-student"}))
    added = {name.rpartition("/")[2] for name in more.keys() - plain.keys()}
    assert {"manifest.yaml", "model.xml", "model.onnx", "golden.npz"} <= added
    assert "checkpoint.pt" not in added
