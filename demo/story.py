"""Who walks where in the demo clip, and the visits that a box must therefore count: pure arithmetic, no pictures.

All faces are near one horizon, as a camera at eye height sees them; who is nearer is larger and in front.
"""

from bisect import bisect_right
from dataclasses import dataclass
from math import pi, sin

import numpy as np
from numpy.typing import NDArray

from demo.portraits import PORTRAITS, Look

FPS = 25
FRAME_WH = (1280, 720)
DURATION_S = 37.0
HORIZON_PX = 292.0  # where the middle of a far face is
VISIBLE = 0.5  # part of a face that must be inside the frame for its person to be there

COLLINS = Look("collins")
COLLINS_BLUE = Look("collins", mirrored=True, gain=0.92, suit_shift=98)
HOPPER = Look("hopper", gain=1.04, warmth=-0.04)
HOPPER_MIRRORED = Look("hopper", mirrored=True, gain=0.93)


@dataclass(frozen=True, slots=True)
class Key:
    """Where a face is at one moment: time in seconds, middle as a fraction of the frame's width, height in pixels."""

    t_s: float
    x: float
    face_h: float


@dataclass(frozen=True, slots=True)
class Walk:
    """One person coming by once; `stature` moves the face up (positive) or down, in face heights."""

    name: str
    look: Look
    keys: tuple[Key, ...]
    stature: float = 0.0

    @property
    def start_s(self) -> float:
        """Return when the walk begins, outside the frame."""
        return self.keys[0].t_s

    @property
    def end_s(self) -> float:
        """Return when the walk ends, outside the frame."""
        return self.keys[-1].t_s


@dataclass(frozen=True, slots=True)
class Pose:
    """A person in one frame: the middle of the face in pixels, its height, and the tilt of the body in degrees."""

    x_px: float
    y_px: float
    face_h: float
    tilt_deg: float


@dataclass(frozen=True, slots=True, eq=False)
class Visit:
    """One person from entering to leaving the frame.

    Attributes:
        name: The walk's name.
        person: Which portrait; several visits may be of one person.
        first: Number of the first frame in which at least half of the face is visible.
        boxes: (N, 4) float32, xyxy, pixels, clipped to the frame: the face in frames `first` … `last`.
        hidden: (N,) float32 in [0, 1]: part of the face behind faces of nearer people.
    """

    name: str
    person: str
    first: int
    boxes: NDArray[np.float32]
    hidden: NDArray[np.float32]

    @property
    def last(self) -> int:
        """Return the number of the last frame of the visit."""
        return self.first + len(self.boxes) - 1

    @property
    def enter_s(self) -> float:
        """Return when the person entered, seconds into the clip."""
        return self.first / FPS

    @property
    def leave_s(self) -> float:
        """Return when the person left, seconds into the clip."""
        return self.last / FPS


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What happens in the clip."""

    frames: int
    visits: tuple[Visit, ...]

    def boxes_at(self, frame: int) -> dict[str, NDArray[np.float32]]:
        """Return the (4,) face box of everybody who is there in one frame, by name of the visit."""
        return {v.name: v.boxes[frame - v.first] for v in self.visits if v.first <= frame <= v.last}

    def people_at(self, frame: int) -> int:
        """Return how many are there in one frame."""
        return sum(v.first <= frame <= v.last for v in self.visits)


# Whoever is hidden for a moment stands still, who passes in front is lower so that shoulders hide nobody, and a side
# of the frame is left alone for two seconds between a leaving and an entering: otherwise the truth would ask a tracker
# without appearance for what only appearance tells.
STORY = (
    # Comes in, looks around while somebody passes in front, goes back.
    Walk("collins-looks", COLLINS, (
        Key(0.6, -0.12, 124), Key(3.4, 0.30, 126), Key(7.2, 0.31, 126), Key(10.4, -0.14, 126)), stature=0.2),
    # Walks straight through, nearer to the camera.
    Walk("hopper-crosses", HOPPER, (Key(2.6, 1.14, 150), Key(8.0, -0.14, 156)), stature=-0.2),
    # Stays still for a long time.
    Walk("hopper-waits", HOPPER_MIRRORED, (
        Key(4.4, 1.10, 116), Key(7.0, 0.845, 118), Key(23.4, 0.845, 118), Key(26.0, 1.12, 118)), stature=-0.2),
    # Comes towards the camera until the face is twice as large.
    Walk("collins-approaches", COLLINS_BLUE, (
        Key(12.2, -0.08, 92), Key(14.6, 0.16, 100), Key(18.4, 0.46, 215), Key(20.0, 0.48, 222), Key(23.6, -0.26, 200)),
        stature=0.05),
    # The one who crossed comes back: a new visit.
    Walk("hopper-returns", HOPPER, (
        Key(25.0, -0.12, 122), Key(27.6, 0.36, 124), Key(32.0, 0.37, 124), Key(35.4, -0.14, 124)), stature=0.2),
    # Crosses in front of the one who is back.
    Walk("collins-hurries", COLLINS, (Key(27.8, 1.12, 142), Key(32.4, -0.14, 142)), stature=-0.5),
)  # fmt: skip


def frame_count(duration_s: float = DURATION_S) -> int:
    """Return how many frames the clip has."""
    return round(duration_s * FPS)


def pose(walk: Walk, t_s: float) -> Pose | None:
    """Return where a person is at a time, None outside the walk. Motion starts and stops gently; walking bobs."""
    if not walk.start_s <= t_s <= walk.end_s:
        return None
    i = min(max(bisect_right([k.t_s for k in walk.keys], t_s) - 1, 0), len(walk.keys) - 2)
    a, b = walk.keys[i], walk.keys[i + 1]
    u = (t_s - a.t_s) / (b.t_s - a.t_s)
    first, last = i == 0, i == len(walk.keys) - 2
    eased = _ease(u, from_rest=not first, to_rest=not last)
    face_h = a.face_h * (b.face_h / a.face_h) ** eased
    moving = 0.0 if abs(b.x - a.x) < 0.03 else sin(pi * u) if not (first or last) else 1.0
    step = 2 * pi * 1.7 * (t_s - walk.start_s)
    y = HORIZON_PX + (face_h - 110) * 0.35 - walk.stature * face_h
    breath = 0.006 * face_h * sin(2 * pi * 0.27 * t_s)
    x = (a.x + (b.x - a.x) * eased) * FRAME_WH[0] + 0.01 * face_h * sin(2 * pi * 0.19 * t_s)
    return Pose(x, y + moving * 0.022 * face_h * sin(step) + breath, face_h, moving * 0.9 * sin(step / 2))


def face_aspect(look: Look) -> float:
    """Return width over height of a portrait's face."""
    x0, y0, x1, y1 = PORTRAITS[look.portrait].face_xyxy
    return (x1 - x0) / (y1 - y0)


def face_box(walk: Walk, at: Pose) -> NDArray[np.float32]:
    """Return the whole face, (4,) float32 xyxy in pixels, also where it is outside the frame."""
    w, h = face_aspect(walk.look) * at.face_h, at.face_h
    return np.array([at.x_px - w / 2, at.y_px - h / 2, at.x_px + w / 2, at.y_px + h / 2], dtype=np.float32)


def ground_truth(story: tuple[Walk, ...] = STORY, duration_s: float = DURATION_S) -> GroundTruth:
    """Return the visits of a story, in order of entering."""
    frames = frame_count(duration_s)
    visits = [v for walk in story if (v := _visit(walk, story, frames)) is not None]
    return GroundTruth(frames, tuple(sorted(visits, key=lambda v: v.first)))


def _visit(walk: Walk, story: tuple[Walk, ...], frames: int) -> Visit | None:
    boxes, hidden, first = [], [], None
    for frame in range(frames):
        at = pose(walk, frame / FPS)
        if at is None:
            continue
        whole = face_box(walk, at)
        inside = _clip(whole)
        if _area(inside) < VISIBLE * _area(whole):
            continue
        first = frame if first is None else first
        boxes.append(inside)
        hidden.append(_hidden(walk, at, inside, story, frame / FPS))
    if first is None:
        return None
    return Visit(walk.name, walk.look.portrait, first, np.array(boxes), np.array(hidden, dtype=np.float32))


def _hidden(walk: Walk, at: Pose, box: NDArray[np.float32], story: tuple[Walk, ...], t_s: float) -> float:
    worst = 0.0
    for other in story:
        before = pose(other, t_s) if other is not walk else None
        if before is not None and before.face_h > at.face_h:
            theirs = face_box(other, before)
            both = np.array([*np.maximum(box[:2], theirs[:2]), *np.minimum(box[2:], theirs[2:])])
            worst = max(worst, _area(both) / max(_area(box), 1e-6))
    return worst


def _ease(u: float, *, from_rest: bool, to_rest: bool) -> float:
    """Cubic Hermite on [0, 1] with slope 0 where the motion rests, else a slope near that of a straight line."""
    m0, m1 = (0.0 if from_rest else 1.0), (0.0 if to_rest else 1.0)
    u2, u3 = u * u, u * u * u
    return (u3 - 2 * u2 + u) * m0 + (3 * u2 - 2 * u3) + (u3 - u2) * m1


def _clip(box: NDArray[np.float32]) -> NDArray[np.float32]:
    w, h = FRAME_WH
    return np.array([*box[:2].clip(0, [w, h]), *box[2:].clip(0, [w, h])], dtype=np.float32)


def _area(box: NDArray[np.generic]) -> float:
    x0, y0, x1, y1 = (float(v) for v in box)
    return max(0.0, x1 - x0) * max(0.0, y1 - y0)
