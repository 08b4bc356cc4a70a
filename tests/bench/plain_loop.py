"""The loop that a face counter usually is, written afresh as the peer of our pipeline: everything, on every frame.

Predict, track, and then for each tracked face: four classifier calls one after the other, SELECT, UPDATE or INSERT,
COMMIT. Detector, pre- and post-processing and tracker parameters are the same as ours.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import psycopg
from numpy.typing import NDArray

from edge.box.measurement import endless
from edge.capture.frames import Image
from edge.models.decoders import probabilities
from edge.models.runtime import Loaded
from edge.pipeline import Spent
from edge.track.crops import cut
from edge.track.detector import Detector
from edge.track.sort import SortParams
from tests.bench.sort_peer import PeerSort

STAGES = ("decode", "detect", "SORT", "classify", "database")
COLUMNS = {"age": "age_category", "gender": "gender", "race": "race", "emotion": "face"}
TABLE = """
DROP TABLE IF EXISTS object_detection;
CREATE TABLE object_detection (
    object_id serial PRIMARY KEY, tracked_object_id integer, object_class text, age_category text, gender text,
    race text, face text, last_updated timestamptz
);
CREATE INDEX ON object_detection (tracked_object_id);
"""
SELECT = "SELECT object_id FROM object_detection WHERE tracked_object_id = %s"
UPDATE = (
    "UPDATE object_detection SET age_category = %s, gender = %s, race = %s, face = %s, last_updated = now() "
    "WHERE object_id = %s"
)
INSERT = (
    "INSERT INTO object_detection (age_category, gender, race, face, tracked_object_id, object_class, last_updated) "
    "VALUES (%s, %s, %s, %s, %s, 'face', now())"
)


class PlainLoop:
    """Driven like `edge.box.measurement.Rig`: `run` for some seconds, again and again.

    Args:
        detector: any runtime.
        heads: by name; those of `COLUMNS` have a column.
        params: of the tracker.
        clip: a video file, played in a circle.
        connection: of a database that may have our table; not in autocommit.
    """

    def __init__(
        self,
        detector: Loaded,
        heads: Mapping[str, Loaded],
        params: SortParams,
        clip: Path,
        connection: psycopg.Connection[tuple[int]],
    ) -> None:
        self.spent = Spent(seconds=dict.fromkeys(STAGES, 0.0))
        self.rows = 0
        self._detector, self._heads = Detector(detector), heads
        self._sort = PeerSort(params)
        self._clip = endless(clip, ahead=0)
        self._connection = connection
        connection.execute(TABLE)
        connection.commit()

    def run(self, seconds: float) -> int:
        """Work for so long; return how many frames that were."""
        frames, until_s = self.spent.frames, time.perf_counter() + seconds
        while time.perf_counter() < until_s:
            self._step()
        return self.spent.frames - frames

    @property
    def stage_s(self) -> dict[str, float]:
        """Seconds spent per stage so far."""
        return self.spent.seconds

    def close(self) -> None:
        """Let go of the clip."""
        self._clip.close()

    def _step(self) -> None:
        stage = self.spent.stage
        with stage("decode"):
            image = next(self._clip).image
        with stage("detect"):
            found = self._detector(image)
        with stage("SORT"):
            tracks = self._sort.update(found.xyxy.astype(np.float64))
        for track_id, xyxy in tracks:
            with stage("classify"):
                labels = {name: self._classify(head, image, xyxy) for name, head in self._heads.items()}
            with stage("database"):
                self._write(track_id, [labels.get(name) for name in COLUMNS])
        self.spent.frames += 1

    def _classify(self, head: Loaded, image: Image, xyxy: NDArray[np.float64]) -> str:
        manifest = head.bundle.manifest
        crop = cut(image, xyxy, manifest.crop_margin, manifest.input)
        chances = probabilities(head.runtime.infer(crop[None]), manifest.decoder)[0]
        return manifest.labels[int(chances.argmax())]

    def _write(self, track_id: int, labels: list[str | None]) -> None:
        known = self._connection.execute(SELECT, (track_id,)).fetchone()
        if known is None:
            self._connection.execute(INSERT, (*labels, track_id))
        else:
            self._connection.execute(UPDATE, (*labels, known[0]))
        self._connection.commit()
        self.rows += 1
