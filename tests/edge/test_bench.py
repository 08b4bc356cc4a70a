"""The benchmark on a scene of a second: every row is there, every figure can be one. How good they are is no test."""

import argparse
import math
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from edge.assembly import load_models
from edge.bench import FIGURES, SHIPPED, STAGES, bench, made_clips, measure_all, ratio, show
from edge.box.made_scene import Scene, golden_face, untinted
from edge.box.measurement import Rig, prepared
from edge.config import LoadedConfig, load_box
from edge.errors import EdgeError, ModelError
from edge.models.bundle import load_bundle
from edge.models.golden import Golden
from tests.edge.conftest import BundleMaker

CONFIG = """\
site: bench
box: bench
database: 00000000-0000-0000-0000-000000000000
models_dir: bundles
cameras:
  - {id: a, source: {uri: nowhere.mp4}, detector: tiny-detector, fps: 5, masks: [[[0, 0], [1, 0], [1, 0.08]]]}
heads:
  - {name: colour, bundle: tiny-colour, min_face_px: 16}
"""


@pytest.fixture
def config(tmp_path: Path, bundles: BundleMaker) -> LoadedConfig:
    """Return a box with bundles small enough to measure in a second."""
    bundles.detector()
    bundles.classifier()
    (tmp_path / "box.yaml").write_text(CONFIG)
    return load_box(tmp_path / "box.yaml")


@pytest.fixture
def clip(tmp_path: Path, config: LoadedConfig) -> Path:
    """Return the made scene, one second of it, small."""
    return made_clips(config, tmp_path, {"small": (160, 96)}, period_s=1.0)["small"]


def test_table_has_every_stage_and_every_figure_can_be_one(tmp_path: Path, config: LoadedConfig, clip: Path) -> None:
    results = measure_all(config, {"small": clip}, tmp_path, seconds=0.3, rounds=2)
    assert [(r.clip, r.detector, len(r.warm.rounds)) for r in results] == [("small", "tiny-detector", 2)]
    report = results[0].warm
    for round_ in report.rounds:
        assert round_.frames > 0
        assert set(round_.stage_s) == set(STAGES)
        assert all(math.isfinite(s) and s >= 0 for s in round_.stage_s.values())
        assert sum(round_.stage_s.values()) <= round_.wall_s
        assert all(math.isfinite(figure(round_)) for _, figure, _ in FIGURES)
        assert 0 < round_.inference_cpu_s <= round_.cpu_s
        assert round_.repeated_cpu_s > 0
        assert ratio(round_) > 0
    assert 20e6 < report.rss_bytes <= report.peak_rss_bytes
    assert 0 < report.start_s < 120
    assert 0 < results[0].cold.start_s < 120
    shown = StringIO()
    show(results, config, Console(file=shown, width=120))
    for row in (*STAGES.values(), *(label for label, _, _ in FIGURES), "RSS now, peak", "start, warm cache"):
        assert row in shown.getvalue()


def test_bench_measures_a_clip_of_the_users_own(
    tmp_path: Path, config: LoadedConfig, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(argparse.Namespace(config=config.path, clip=clip, seconds=0.2, rounds=1)) == 0
    assert "small.mp4" in capsys.readouterr().out


def test_clip_that_cannot_be_read_is_named(tmp_path: Path, config: LoadedConfig) -> None:
    with pytest.raises(EdgeError, match=r"gone\.mp4: no such file"):
        bench(argparse.Namespace(config=config.path, clip=tmp_path / "gone.mp4", seconds=0.2, rounds=1))


def test_no_rounds_and_no_time_are_refused(config: LoadedConfig, clip: Path) -> None:
    for seconds, rounds in ((0.0, 1), (1.0, 0)):
        with pytest.raises(EdgeError, match="at least one round"):
            bench(argparse.Namespace(config=config.path, clip=clip, seconds=seconds, rounds=rounds))


def test_every_frame_is_searched_whatever_the_config_says(tmp_path: Path, config: LoadedConfig, clip: Path) -> None:
    measured = prepared(config, "tiny-detector", tmp_path / "state")
    rig = Rig(measured, load_models(measured, log=lambda _: None), clip)
    rig.keep()
    rig.run(frames=40)  # more than the clip has: it goes round
    assert rig.frames == 40
    assert rig.searched == 40
    rig.close()


def test_shipped_config_is_valid_and_names_both_detectors(tmp_path: Path) -> None:
    (tmp_path / "bench.yaml").write_text(SHIPPED)
    box = load_box(tmp_path / "bench.yaml").box
    assert [camera.detector for camera in box.cameras] == ["yolov10n-face-640", "yolov10n-face-320"]
    assert [head.name for head in box.heads] == ["age", "gender", "race", "emotion"]


def test_scene_comes_round_and_always_shows_as_many_faces() -> None:
    face = np.full((20, 16, 3), (0, 0, 255), np.uint8)
    scene = Scene(face, (640, 360), faces=3, period_s=4.0)
    assert np.array_equal(scene.frame(0.0), scene.frame(4.0))
    assert not np.array_equal(scene.frame(0.0), scene.frame(1.9))
    for at_s in np.arange(0, 4, 0.25):
        red = (scene.frame(float(at_s)) == (0, 0, 255)).all(axis=2)
        assert _islands(red) == 3


def test_a_tint_is_taken_off_and_a_flat_channel_left_alone() -> None:
    natural = np.linspace(0, 255, 30 * 20 * 3).reshape(30, 20, 3).astype(np.uint8)
    tinted = (natural * (0.6, 1.0, 0.4) + (0, 0, 60)).astype(np.uint8)
    assert np.ptp(untinted(tinted).mean(axis=(0, 1))) < 5 < np.ptp(tinted.mean(axis=(0, 1)))
    natural[..., 1] = 7
    assert (untinted(natural)[..., 1] == 7).all()


def test_golden_picture_without_a_face_asks_for_a_clip(bundles: BundleMaker) -> None:
    bundle = bundles.detector()
    blind = Golden(
        np.zeros((1, 32, 32, 3), np.uint8), (np.zeros((1, 3, 4), np.float32), np.zeros((1, 3, 1), np.float32))
    )
    bundle = bundles.write(bundle.folder, bundle.manifest, blind)
    with pytest.raises(ModelError, match="--clip"):
        golden_face(load_bundle(bundle.folder))


def _islands(mask: np.ndarray) -> int:
    import cv2

    return int(cv2.connectedComponents(mask.astype(np.uint8))[0]) - 1
