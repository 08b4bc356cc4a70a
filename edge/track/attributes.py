"""Age, gender and the like belong to the track, not to the frame: few good crops, one vote, then silence.

The pipeline shows every detected frame to `Attributes.observe`; `visits` reads `votes` when an event is due. Of a
crop only its probabilities are kept, and those die with the track: no pixels outlive the call.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge.errors import ModelError
from edge.models.decoders import probabilities
from edge.models.runtime import Loaded
from edge.track.ballot import NOTHING, Ballot, Sample
from edge.track.ballot import HeadParams as HeadParams
from edge.track.ballot import Vote as Vote
from edge.track.crops import cut, frontality, sharpness, side_px

Floats = NDArray[np.float32]
View = tuple[float, int, int, str]
# From (H, W, 3) uint8 BGR and (N, 4) boxes to (N, 5, 2) points, in pixels of the frame; see `track.landmarks`.
FindPoints = Callable[[NDArray[np.uint8], NDArray[np.floating]], Floats]


class Head:
    """One classifier bundle and its ballots."""

    def __init__(self, loaded: Loaded, params: HeadParams) -> None:
        manifest = loaded.bundle.manifest
        if manifest.task != "classifier":
            raise ModelError(
                f"{manifest.name}: a {manifest.task}, expected a classifier; correct heads.{params.name} in the config"
            )
        self.params = params
        self.labels = manifest.labels
        self.margin = manifest.crop_margin if params.crop_margin is None else params.crop_margin
        self.threshold = manifest.score_threshold if params.score_threshold is None else params.score_threshold
        self.ballots: dict[int, Ballot] = {}
        self.source = manifest.input
        self._decoder = manifest.decoder
        self._runtime = loaded.runtime

    @property
    def view(self) -> View:
        """Return what decides the pixels of a crop; heads of one view share their crops."""
        return self.margin, self.source.width, self.source.height, self.source.fit

    def classify(self, crops: NDArray[np.uint8]) -> Floats:
        """Return the (N, C) probabilities of (N, H, W, 3) crops, in one batch."""
        return probabilities(self._runtime.infer(crops), self._decoder)


class Quality:
    """How good the crops of one frame promise to be; sharpness (50 µs a face) is looked at only where it decides."""

    def __init__(self, frame: NDArray[np.uint8], xyxy: NDArray[np.floating], promise: Floats) -> None:
        """Take `promise`, (N,) size × frontality: the upper bound of the quality, since sharpness is below 1."""
        self._frame, self._xyxy, self._promise = frame, xyxy, promise
        self._known: dict[int, float] = {}

    def __getitem__(self, row: int) -> float:
        if row not in self._known:
            self._known[row] = float(self._promise[row]) * sharpness(self._frame, self._xyxy[row])
        return self._known[row]

    def beats(self, row: int, bar: float) -> bool:
        """Say whether a face's quality is above the bar."""
        return bool(self._promise[row] > bar) and self[row] > bar


class Attributes:
    """All heads of one camera; not shared between cameras, for ids are the tracker's own.

    `crop_s` and `infer_s` are the wall-clock seconds of the last `observe`, for the per-stage benchmark.
    """

    def __init__(
        self,
        heads: Mapping[str, Loaded],
        params: Mapping[str, HeadParams] | None = None,
        find_points: FindPoints | None = None,
    ) -> None:
        """Prepare the heads.

        Args:
            heads: classifier bundles by head name.
            params: how each looks at a track; a head not named here uses the defaults.
            find_points: five points of the faces that a head may be asked about, where the detector brings none.

        Raises:
            ModelError: a bundle is no classifier.
        """
        given = params or {}
        self._heads = {name: Head(loaded, given.get(name, HeadParams(name))) for name, loaded in heads.items()}
        self._find_points = find_points
        self.crop_s = self.infer_s = 0.0
        self._turn = 0
        self._off: frozenset[str] = frozenset()

    def switch_off(self, names: Iterable[str]) -> None:
        """Silence these heads and no others, from any thread: they are not asked, abstain, and forget what they saw."""
        self._off = frozenset(names)

    def observe(
        self,
        frame: NDArray[np.uint8],
        track_ids: NDArray[np.int64],
        xyxy: NDArray[np.floating],
        landmarks: Floats | None = None,
    ) -> None:
        """Look at the faces that deserve it: large enough, better than the crops in hand, not yet settled.

        Args:
            frame: (H, W, 3) uint8 BGR.
            track_ids: (N,) of tracks detected in this frame (a predicted box shows no face for sure).
            xyxy: (N, 4) their boxes in pixels of the frame.
            landmarks: (N, 5, 2) or None, as the detector gave them; NaN rows where a track has none.
        """
        self.crop_s = self.infer_s = 0.0
        self._turn += 1
        started = time.perf_counter()
        sides = side_px(xyxy)
        bars = {name: self._bars(head, track_ids.tolist(), sides.tolist()) for name, head in self._asked().items()}
        if not any(bars.values()):
            return
        if landmarks is None and self._find_points is not None:
            landmarks = self._points(self._find_points, bars, frame, xyxy, sides)
        quality = Quality(frame, xyxy, sides * frontality(xyxy, landmarks))
        rows = {name: self._deserving(self._heads[name], track_ids, bars[name], quality) for name in bars}
        self.crop_s = time.perf_counter() - started
        for view in dict.fromkeys(head.view for head in self._heads.values()):
            asked = {name: rows[name] for name in rows if self._heads[name].view == view and rows[name]}
            if asked:
                self._ask(asked, frame, track_ids, xyxy, sides)

    def votes(self, track_id: int) -> dict[str, Vote]:
        """Return every head's vote on a track; one that is off abstains, and all do of a face never seen well."""
        off = self._off
        return {
            name: ballot.vote(head.labels, head.threshold)
            if name not in off and (ballot := head.ballots.get(track_id))
            else NOTHING
            for name, head in self._heads.items()
        }

    def forget(self, track_id: int) -> None:
        """Drop all that is known of a track."""
        for head in self._heads.values():
            head.ballots.pop(track_id, None)

    def _asked(self) -> dict[str, Head]:
        """Return the heads that are on; the others lose their ballots, here where nobody else turns them over."""
        off = self._off
        for name in off & self._heads.keys():
            self._heads[name].ballots.clear()
        return {name: head for name, head in self._heads.items() if name not in off}

    def _bars(self, head: Head, track_ids: Sequence[int], sides: Sequence[float]) -> dict[int, float]:
        """Return, for each row large enough and not settled, the quality it must beat to be worth an inference."""
        bars: dict[int, float] = {}
        for row, (track_id, side) in enumerate(zip(track_ids, sides, strict=True)):
            if side < head.params.min_face_px:
                continue
            ballot = head.ballots.get(track_id)
            bar = ballot.bar(head.params, self._turn) if ballot else 0.0
            if bar < float("inf"):
                bars[row] = bar
        return bars

    def _points(
        self,
        find_points: FindPoints,
        bars: Mapping[str, Mapping[int, float]],
        frame: NDArray[np.uint8],
        xyxy: NDArray[np.floating],
        sides: Floats,
    ) -> Floats:
        """Return (N, 5, 2) points, NaN for faces that would beat no bar even if they looked straight at us."""
        rows = sorted({row for each in bars.values() for row, bar in each.items() if sides[row] > bar})
        points = np.full((len(xyxy), 5, 2), np.nan, np.float32)
        if rows:
            points[rows] = find_points(frame, xyxy[rows])
        return points

    def _deserving(
        self, head: Head, track_ids: NDArray[np.int64], bars: Mapping[int, float], quality: Quality
    ) -> dict[int, float]:
        """Return the quality of each row above its bar; the others are not looked at again for `spacing` frames."""
        rows: dict[int, float] = {}
        for row, bar in bars.items():
            if quality.beats(row, bar):
                rows[row] = quality[row]
            elif ballot := head.ballots.get(int(track_ids[row])):
                ballot.not_before = self._turn + head.params.spacing
        return rows

    def _ask(
        self,
        asked: Mapping[str, Mapping[int, float]],
        frame: NDArray[np.uint8],
        track_ids: NDArray[np.int64],
        xyxy: NDArray[np.floating],
        sides: Floats,
    ) -> None:
        """Cut each face once for all heads of a view, run one batch per head, hand each answer to its track."""
        started = time.perf_counter()
        heads = [self._heads[name] for name in asked]
        rows = sorted(set().union(*asked.values()))
        crops = np.empty((len(rows), heads[0].source.height, heads[0].source.width, 3), np.uint8)
        for crop, row in zip(crops, rows, strict=True):
            cut(frame, xyxy[row], heads[0].margin, heads[0].source, out=crop)
        ready = time.perf_counter()
        for head, qualities in zip(heads, asked.values(), strict=True):
            mine = crops if len(qualities) == len(rows) else crops[[rows.index(row) for row in qualities]]
            for chance, (row, quality) in zip(head.classify(mine), qualities.items(), strict=True):
                ballot = head.ballots.setdefault(int(track_ids[row]), Ballot())
                ballot.add(Sample(quality, float(sides[row]) ** 2, chance), head.params, head.threshold, self._turn)
        self.crop_s += ready - started
        self.infer_s += time.perf_counter() - ready
