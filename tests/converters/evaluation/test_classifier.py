"""The figures of a head, on answers counted by hand."""

import numpy as np
import pytest

pytest.importorskip("torch")

from converters.data.attributes import HEADS, Label
from converters.errors import ConvertError
from converters.evaluation.classifier import groups_of, head_of, measurements, report, threshold_for
from edge.models.manifest import Input, Manifest

pytestmark = pytest.mark.convert

CHANCES = np.array([[0.9, 0.1, 0.0], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.1, 0.55, 0.35]], np.float32)
TRUTHS = [(0,), (1,), (1,), (2,)]


def test_accuracy_recalls_and_confusion_are_those_of_the_answers() -> None:
    found = report("a set", CHANCES, TRUTHS, ("a", "b", "c"), threshold=0.0)
    assert found.accuracy == 0.5
    assert found.recalls == {"a": 1.0, "b": 0.5, "c": 0.0}
    assert found.balanced == pytest.approx(0.5)
    assert found.confusion == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]


def test_abstaining_leaves_the_sure_answers() -> None:
    found = report("a set", CHANCES, TRUTHS, ("a", "b", "c"), threshold=0.6)
    assert (found.answered, found.answered_accuracy) == (0.5, 1.0)


def test_any_overlapping_band_counts_as_right() -> None:
    found = report("groups", CHANCES, [(0, 1), (0, 1), (0, 1), (0, 1)], ("a", "b", "c"), threshold=0.0)
    assert found.accuracy == 1.0


def test_a_class_without_faces_has_no_recall() -> None:
    found = report("a set", CHANCES[:1], TRUTHS[:1], ("a", "b", "c"), threshold=0.0)
    assert found.recalls == {"a": 1.0}


def test_threshold_lets_the_wanted_share_through() -> None:
    chances = np.stack([np.linspace(0.5, 1, 101), np.linspace(0.5, 0, 101)], axis=1).astype(np.float32)
    threshold = threshold_for(chances, share=0.8)
    assert threshold == pytest.approx(0.6)
    assert (chances.max(axis=1) >= threshold).mean() == pytest.approx(0.8, abs=0.02)


def test_measurements_name_the_set_the_artefact_and_the_command() -> None:
    lines = measurements([report("a set", CHANCES, TRUTHS, ("a", "b", "c"), 0.6)], "int8_onnx", "repeat me")
    by_metric = {line.metric: line for line in lines}
    assert by_metric["accuracy"].value == 0.5
    assert by_metric["recall b"].value == 0.5
    assert {(line.dataset, line.artefact, line.command, line.images) for line in lines} == {
        ("a set", "int8_onnx", "repeat me", 4)
    }


def test_labels_say_which_head_a_bundle_is() -> None:
    def of(labels: tuple[str, ...]) -> Manifest:
        return Manifest("x", "1", "classifier", "softmax", Input(64, 64), ("logits",), {}, "", "", labels=labels)

    assert head_of(of(HEADS["gender"])) == "gender"
    with pytest.raises(ConvertError, match="labels"):
        head_of(of(("male", "female")))


def test_groups_are_told_apart_and_small_ones_left_out() -> None:
    """Ten women with one error, ten men with five, two children that say nothing."""
    chances = np.tile(np.array([[0.9, 0.1]], np.float32), (22, 1))
    truths = [(1,)] + [(0,)] * 9 + [(1,)] * 5 + [(0,)] * 5 + [(0,)] * 2
    groups = [["gender female"]] * 10 + [["gender male"]] * 10 + [["age 1-6"]] * 2
    found = report("a set", chances, truths, ("a", "b"), 0.0, groups)
    assert found.group_errors == pytest.approx({"gender female": 0.1, "gender male": 0.5})


def test_a_heads_own_question_is_no_group() -> None:
    label = Label("x", "test", ages=(30, 30), gender=0, race=1)
    assert groups_of(label, "gender") == ["race black", "age 26-45"]
    assert groups_of(label, "emotion") == ["gender female", "race black", "age 26-45"]
    assert groups_of(Label("y", "test", ages=(20, 29)), "gender") == []  # two bands overlap: neither is known
