"""The life of a vote: first crops, better crops, certainty, silence, oblivion."""

import weakref
from pathlib import Path

import numpy as np
import pytest

from edge.errors import ModelError
from edge.models.bundle import Bundle
from edge.models.manifest import Input, Manifest
from edge.models.runtime import Loaded
from edge.track.attributes import Attributes, HeadParams

LABELS = ("female", "male")


class FakeStudent:
    """Answers each crop with the next scripted chance of `male`, and counts calls and crops."""

    device, artefact = "CPU", "fake"

    def __init__(self, chances=(0.9,)):
        self.chances = list(chances)
        self.batches = []

    def infer(self, images):
        self.batches.append(images.copy())
        asked = [self.chances.pop(0) if len(self.chances) > 1 else self.chances[0] for _ in images]
        return [np.array([[0.0, np.log(p / (1 - p))] for p in asked], np.float32)]

    @property
    def crops(self):
        return sum(len(batch) for batch in self.batches)


def head(student, task="classifier", **changes):
    fields = {"score_threshold": 0.6, "crop_margin": 0.0, "labels": LABELS} | changes
    manifest = Manifest(
        name="fake", version="1", task=task, decoder="softmax", input=Input(8, 8, batch=0), outputs=("logits",),
        files={}, licence="Apache-2.0", source="test", **fields,
    )  # fmt: skip
    return Loaded(student, Bundle(Path("fake"), manifest), "ok", ())


@pytest.fixture
def frame():
    return np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)


def box(side=100, x=10, y=10):
    """A frontal box whose equal-area square has this side."""
    return [x, y, x + side * 0.78**0.5, y + side / 0.78**0.5]


def boxes(*rows):
    return np.array(rows, np.float64).reshape(-1, 4)


def ids(*track_ids):
    return np.array(track_ids, np.int64)


def watch(attributes, frame, times, track_id=1, side=100):
    for _ in range(times):
        attributes.observe(frame, ids(track_id), boxes(box(side)))


def gender(student, **params):
    return Attributes({"gender": head(student)}, {"gender": HeadParams("gender", **{"spacing": 1} | params)})


def test_unknown_track_abstains_on_every_head():
    attributes = Attributes({"age": head(FakeStudent()), "gender": head(FakeStudent())})
    votes = attributes.votes(7)
    assert set(votes) == {"age", "gender"}
    assert (votes["age"].label, votes["age"].index, votes["age"].samples) == (None, -1, 0)


def test_sure_answer_becomes_the_label(frame):
    attributes = gender(FakeStudent([0.9]))
    watch(attributes, frame, 1)
    vote = attributes.votes(1)["gender"]
    assert (vote.label, vote.index, vote.samples) == ("male", 1, 1)
    assert vote.confidence == pytest.approx(0.9, abs=1e-5)


def test_answer_below_the_threshold_abstains_but_tells_its_confidence(frame):
    attributes = gender(FakeStudent([0.55]))
    watch(attributes, frame, 3)
    vote = attributes.votes(1)["gender"]
    assert (vote.label, vote.index) == (None, -1)
    assert vote.confidence == pytest.approx(0.55, abs=1e-5)


def test_threshold_of_the_config_wins_over_the_manifest(frame):
    attributes = gender(FakeStudent([0.55]), score_threshold=0.5)
    watch(attributes, frame, 1)
    assert attributes.votes(1)["gender"].label == "male"


@pytest.mark.parametrize(("side", "asked"), [(63, 0), (65, 1)])
def test_small_faces_are_not_asked_about(frame, side, asked):
    student = FakeStudent()
    attributes = gender(student)
    watch(attributes, frame, 1, side=side)
    assert student.crops == asked
    assert (attributes.votes(1)["gender"].label is None) == (not asked)


def test_larger_faces_weigh_by_their_area(frame):
    """100 px says 0.9 male, 200 px says 0.1: (0.9 · 1 + 0.1 · 4) / 5 = 0.26, so female with 0.74."""
    attributes = gender(FakeStudent([0.9, 0.1]))
    watch(attributes, frame, 1, side=100)
    watch(attributes, frame, 1, side=200)
    vote = attributes.votes(1)["gender"]
    assert vote.label == "female"
    assert vote.confidence == pytest.approx(0.74, abs=1e-3)


def test_looking_stops_once_the_vote_is_stable(frame):
    student = FakeStudent([0.9])
    attributes = gender(student, stable_after=3, best_k=10)
    watch(attributes, frame, 50)
    assert student.crops == 4  # one to find the label, three that leave it where it is


def test_an_undecided_face_is_given_up_after_max_samples(frame):
    student = FakeStudent([0.55])
    attributes = gender(student, max_samples=6, best_k=10)
    watch(attributes, frame, 50)
    assert student.crops == 6


def test_only_better_crops_are_asked_about_once_best_k_are_in(frame):
    student = FakeStudent([0.55])
    attributes = gender(student, best_k=2, better_by=1.1)
    watch(attributes, frame, 20, side=100)
    assert student.crops == 2
    watch(attributes, frame, 1, side=105)
    assert student.crops == 2
    watch(attributes, frame, 1, side=180)
    assert student.crops == 3


def test_the_worst_of_the_best_k_makes_room(frame):
    """After 0.9 (small), 0.1 and 0.1 (large) with k = 2 nothing is left of the first answer."""
    attributes = gender(FakeStudent([0.9, 0.1, 0.1]), best_k=2, score_threshold=0.5)
    for side in (80, 150, 200):
        watch(attributes, frame, 1, side=side)
    assert attributes.votes(1)["gender"].confidence == pytest.approx(0.9, abs=1e-3)
    assert attributes.votes(1)["gender"].label == "female"


def test_samples_of_a_track_are_spaced_in_time(frame):
    student = FakeStudent([0.55])
    attributes = gender(student, spacing=4, best_k=10)
    watch(attributes, frame, 9)
    assert student.crops == 3  # frames 1, 5 and 9


def test_each_head_runs_one_batch_per_frame_for_all_faces(frame):
    age, sex = FakeStudent(), FakeStudent()
    attributes = Attributes({"age": head(age), "gender": head(sex)})
    rows = boxes(box(80, 10, 10), box(80, 200, 10), box(30, 400, 10), box(90, 300, 200))
    attributes.observe(frame, ids(1, 2, 3, 4), rows)
    assert [len(batch) for batch in age.batches] == [3]
    assert [len(batch) for batch in sex.batches] == [3]


def test_no_face_no_inference(frame):
    student = FakeStudent()
    attributes = gender(student)
    attributes.observe(frame, ids(), boxes())
    assert student.batches == []


def test_a_profile_gives_way_to_a_frontal_face(frame):
    """With landmarks a frontal crop of the same size displaces a half turned one."""
    student = FakeStudent([0.55])
    attributes = gender(student, best_k=1)
    turned = np.array([[[20, 40], [60, 40], [54, 60], [30, 80], [50, 80]]], np.float32)
    frontal = turned.copy()
    frontal[0, 2, 0] = 40
    for points in (turned, turned, frontal, frontal):
        attributes.observe(frame, ids(1), boxes(box(100)), points)
    assert student.crops == 2


def points_like(nose):
    """Upright eyes 40 px apart with the nose so far along from one to the other."""
    return np.array([[20, 40], [60, 40], [20 + 40 * nose, 60], [30, 80], [50, 80]], np.float32)


def test_a_landmark_bundle_tells_profile_from_front_where_the_detector_does_not(frame):
    student, noses = FakeStudent([0.55]), [0.9, 0.9, 0.5, 0.5]

    def find(_frame, xyxy):
        return np.stack([points_like(noses.pop(0)) for _ in xyxy])

    params = {"gender": HeadParams("gender", spacing=1, best_k=1)}
    attributes = Attributes({"gender": head(student)}, params, find)
    for _ in range(4):
        attributes.observe(frame, ids(1), boxes(box(100)))
    assert student.crops == 2


def test_landmarks_are_sought_only_on_faces_a_head_may_ask_about(frame):
    asked = []

    def find(_frame, xyxy):
        asked.append(len(xyxy))
        return np.stack([points_like(0.5) for _ in xyxy])

    params = {"gender": HeadParams("gender", spacing=1, stable_after=1, best_k=1)}
    attributes = Attributes({"gender": head(FakeStudent())}, params, find)
    small, large = box(30, 300, 10), box(100)
    for _ in range(6):
        attributes.observe(frame, ids(1, 2), boxes(small, large))
    assert set(asked) == {1}
    assert len(asked) < 6  # the large face settles, and then nobody is asked about


def test_points_of_the_detector_are_believed_before_a_bundle(frame):
    def find(_frame, _xyxy):
        raise AssertionError("asked although the detector knew")

    attributes = Attributes({"gender": head(FakeStudent())}, None, find)
    attributes.observe(frame, ids(1), boxes(box(100)), points_like(0.5)[None])
    assert attributes.votes(1)["gender"].label == "male"


def test_crops_are_cut_where_the_faces_are(frame):
    student = FakeStudent()
    frame[:] = 0
    frame[100:300, 300:500, 2] = np.random.default_rng(0).integers(200, 256, (200, 200), np.uint8)
    gender(student).observe(frame, ids(1), boxes([340, 140, 440, 260]))
    assert student.batches[0][..., 2].min() > 190
    assert not student.batches[0][..., :2].any()


def test_forgotten_track_leaves_nothing(frame):
    attributes = gender(FakeStudent())
    watch(attributes, frame, 3)
    attributes.forget(1)
    attributes.forget(99)
    assert attributes.votes(1)["gender"].samples == 0
    assert all(not head.ballots for head in attributes._heads.values())


def test_no_pixels_outlive_the_call(frame):
    """The crops a student was shown are gone when `observe` returns."""
    shown = []

    class Watcher(FakeStudent):
        def infer(self, images):
            shown.append(weakref.ref(images))
            return super().infer(images)

    watch(gender(Watcher()), frame, 3)
    assert len(shown) == 3
    assert all(images() is None for images in shown)


def test_heads_of_one_view_share_the_crop_and_others_get_their_own(frame):
    age, sex, wide = FakeStudent(), FakeStudent(), FakeStudent()
    heads = {"age": head(age), "gender": head(sex), "emotion": head(wide, crop_margin=0.5)}
    Attributes(heads).observe(frame, ids(1), boxes(box(100, 200, 100)))
    np.testing.assert_array_equal(age.batches[0], sex.batches[0])
    assert (age.batches[0] != wide.batches[0]).any()


def test_a_settled_head_is_left_out_of_the_others_batch(frame):
    """Gender is sure after two looks and stops; age never is and goes on, each with its own rows."""
    age, sex = FakeStudent([0.55]), FakeStudent([0.9])
    params = {name: HeadParams(name, spacing=1, stable_after=1, best_k=9) for name in ("age", "gender")}
    attributes = Attributes({"age": head(age), "gender": head(sex)}, params)
    watch(attributes, frame, 3)
    attributes.observe(frame, ids(1, 2), boxes(box(100), box(100, 300)))
    assert [len(batch) for batch in age.batches] == [1, 1, 1, 2]
    assert [len(batch) for batch in sex.batches] == [1, 1, 1]
    np.testing.assert_array_equal(sex.batches[2][0], age.batches[3][1])


def test_a_flat_patch_is_no_face(frame):
    student = FakeStudent()
    gender(student).observe(np.full_like(frame, 128), ids(1), boxes(box()))
    assert student.crops == 0


def test_two_cameras_do_not_share_tracks(frame):
    first, second = gender(FakeStudent()), gender(FakeStudent())
    watch(first, frame, 1)
    assert second.votes(1)["gender"].samples == 0


def test_detector_bundle_is_refused_as_head():
    with pytest.raises(ModelError, match=r"fake: a detector, expected a classifier; correct heads\.gender"):
        Attributes({"gender": head(FakeStudent(), task="detector")})


def test_real_runtime_classifies_a_batch_of_faces(bundles, frame):
    """The colour classifier sees three faces of three colours; each track gets its own."""
    from edge.models.runtime import load_model

    loaded = load_model(bundles.classifier(score_threshold=0.6), ["CPU"], threads=1, log=lambda _: None)
    attributes = Attributes({"colour": loaded})
    noise = np.random.default_rng(0).integers(0, 20, frame.shape, np.uint8)
    for column, channel in enumerate((2, 1, 0)):
        noise[:, column * 200 : (column + 1) * 200, channel] += 220
    rows = boxes(box(100, 30, 50), box(100, 230, 50), box(100, 430, 50))
    attributes.observe(noise, ids(5, 6, 7), rows)
    assert [attributes.votes(t)["colour"].label for t in (5, 6, 7)] == ["red", "green", "blue"]


def test_a_head_that_is_switched_off_is_not_asked_abstains_and_forgets(frame):
    student, other = FakeStudent(), FakeStudent()
    attributes = Attributes(
        {"me": head(student), "age": head(other)}, {n: HeadParams(n, spacing=1) for n in ("me", "age")}
    )
    watch(attributes, frame, 2)
    assert attributes.votes(1)["me"].label == "male"
    attributes.switch_off(["me"])
    assert attributes.votes(1)["me"].index == -1  # at once, without another frame
    watch(attributes, frame, 2)
    assert (student.crops, other.crops) == (2, 4)
    attributes.switch_off([])
    assert attributes.votes(1)["me"].samples == 0  # what it had seen before is gone
    watch(attributes, frame, 1)
    assert attributes.votes(1)["me"].label == "male"
