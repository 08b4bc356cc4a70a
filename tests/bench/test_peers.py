"""The peers do the same work as we do; how fast anybody is, is no test."""

import math
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from bridge.store import Store
from edge.bench import made_clips
from edge.config import load_box
from tests.bench.peers import OURS, PLAIN, compare, remarks, table
from tests.bench.plain_loop import STAGES
from tests.edge.conftest import BundleMaker

from tests.edge.conftest import bundles as bundles  # isort: skip
from tests.postgres import dsn as dsn  # isort: skip
from tests.postgres import postgres as postgres  # isort: skip
from tests.postgres import template as template  # isort: skip

CONFIG = """\
site: bench
box: bench
database: 00000000-0000-0000-0000-000000000000
models_dir: bundles
cameras:
  - {id: a, source: {uri: nowhere.mp4}, detector: tiny-detector, sort: {max_age: 3, min_hits: 2}}
heads:
  - {name: age, bundle: tiny-colour, min_face_px: 16}
"""


def test_both_sides_see_all_frames_and_both_leave_rows(tmp_path: Path, bundles: BundleMaker, dsn: str) -> None:
    bundles.detector()
    bundles.classifier()
    (tmp_path / "box.yaml").write_text(CONFIG)
    config = load_box(tmp_path / "box.yaml")
    clip = made_clips(config, tmp_path, {"small": (160, 96)}, period_s=2.0)["small"]
    with Store(dsn) as store:
        store.maintain(datetime.now(UTC))
    turns = compare(config, "tiny-detector", clip, tmp_path / "state", dsn, seconds=0.5, rounds=2)
    assert {OURS, PLAIN} <= turns.keys()
    for turn in turns.values():
        assert turn.frames > 0
        assert len(turn.fps) == 2
        assert all(math.isfinite(fps) and fps > 0 for fps in turn.fps)
        assert set(turn.stage_s) == set(STAGES)
        assert all(seconds >= 0 for seconds in turn.stage_s.values())
    assert table("tiny-detector", turns).row_count == 2 + len(STAGES)
    assert any("plain loop" in line for line in remarks(turns))
    with psycopg.connect(dsn) as connection:
        theirs = connection.execute("SELECT count(*), count(age_category) FROM object_detection").fetchone()
        ours = connection.execute("SELECT max(upto) FROM facefleet.streams").fetchone()
    assert theirs is not None
    assert ours is not None
    assert theirs[0] == theirs[1] > 0
    assert ours[0] > 0
