"""From a frame to boxes in its own pixels; foreign detectors against their own post-processing on real images."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.errors import ModelError
from edge.geometry import iou
from edge.models.manifest import Input, Manifest
from edge.models.runtime import load_model
from edge.track.detector import Detector


def load(bundle, devices=("CPU",)):
    return load_model(bundle, devices, threads=1, log=lambda _: None)


@pytest.fixture
def red_frame():
    return np.full((48, 64, 3), (20, 40, 230), np.uint8)


def test_boxes_come_back_in_frame_pixels(bundles, red_frame):
    """64×48 into 32×32: halved, 4 px of padding above; input (4, 4, 12, 14) is frame (8, 0, 24, 20)."""
    found = Detector(load(bundles.detector()))(red_frame)
    np.testing.assert_allclose(found.xyxy, [[8, 0, 24, 20], [36, 4, 56, 32]], atol=1e-4)
    assert (np.diff(found.score) < 0).all()


def test_resolution_may_change_between_frames(bundles, red_frame):
    detector = Detector(load(bundles.detector()))
    first = detector(red_frame)
    doubled = detector(np.repeat(np.repeat(red_frame, 2, axis=0), 2, axis=1))
    np.testing.assert_allclose(doubled.xyxy, first.xyxy * 2, atol=1e-3)
    np.testing.assert_allclose(detector(red_frame).xyxy, first.xyxy, atol=1e-4)


def test_boxes_in_the_padding_are_dropped_and_others_clipped(bundles):
    """A 64×16 frame covers input rows 12 to 20: (4, 4, 12, 14) is cut to its lower edge."""
    detector = Detector(load(bundles.detector()))
    clipped = detector(np.full((16, 64, 3), (20, 40, 230), np.uint8))
    np.testing.assert_allclose(clipped.xyxy, [[8, 0, 24, 4], [36, 0, 56, 16]], atol=1e-4)
    dropped = detector(np.full((4, 64, 3), (20, 40, 230), np.uint8))
    np.testing.assert_allclose(dropped.xyxy, [[36, 0, 56, 4]], atol=1e-4)


def test_threshold_and_limit_are_the_callers(bundles, red_frame):
    loaded = load(bundles.detector())
    assert len(Detector(loaded, score_threshold=0.999)(red_frame).score) == 0
    assert len(Detector(loaded, max_detections=1)(red_frame).score) == 1
    assert len(Detector(loaded, score_threshold=0.05)(red_frame).score) == 3


def test_no_face_is_an_empty_array(bundles):
    found = Detector(load(bundles.detector()))(np.full((48, 64, 3), (230, 40, 20), np.uint8))
    assert found.xyxy.shape == (0, 4)


def test_stage_times_of_the_last_call_are_readable(bundles, red_frame):
    detector = Detector(load(bundles.detector()))
    detector(red_frame)
    assert min(detector.letterbox_s, detector.infer_s, detector.decode_s) > 0


def test_classifier_is_refused_as_detector(bundles):
    with pytest.raises(ModelError, match=r"tiny-colour: a classifier, expected a detector"):
        Detector(load(bundles.classifier()))


@pytest.mark.shared
@pytest.mark.parametrize("size", [320, 640])
def test_yunet_finds_what_opencv_finds_with_the_same_weights(yunet, shared: Path, size):
    """Every face of 15 group photographs, boxes within IoU 0.97, scores within 0.01, landmarks within 1 % of the box.

    OpenCV gets the letterboxed picture, so that only decoding and suppression are compared.
    """
    bundle = yunet(size)
    detector = Detector(load(bundle), max_detections=1000)
    oracle = cv2.FaceDetectorYN.create(str(bundle.path("onnx")), "", (size, size), 0.6, 0.3, 5000)
    faces = 0
    for path in sorted((shared / "detection" / "small_multiface" / "images").glob("*.jpg")):
        ours = detector(cv2.imread(str(path)))
        placement = detector._letterbox.placement
        theirs = oracle.detect(detector._letterbox.buffer[0])[1]
        if theirs is None:
            assert not len(ours.score)
            continue
        corners = np.concatenate([theirs[:, :2], theirs[:, :2] + theirs[:, 2:4]], axis=1)
        boxes = placement.to_input(ours.xyxy.reshape(-1, 2, 2)).reshape(-1, 4)
        size_wh = np.array([size, size, size, size], np.float32)
        overlap = iou(np.clip(corners, 0, size_wh).astype(np.float32), boxes)
        match = overlap.argmax(axis=1)
        assert len(ours.score) == len(theirs)
        assert (overlap.max(axis=1) > 0.97).mean() > 0.95, path.name
        assert np.abs(ours.score[match] - theirs[:, 14]).max() < 0.01
        points = placement.to_input(ours.landmarks[match])
        width = (corners[:, 2] - corners[:, 0])[:, None, None]
        assert (np.abs(points - theirs[:, 4:14].reshape(-1, 5, 2)) / width).max() < 0.01
        faces += len(theirs)
    assert faces > 30


@pytest.mark.shared
def test_yunet_with_swapped_channels_fails_its_golden_check_or_is_called_no_test(yunet, shared: Path):
    """A natural golden picture may be blind to a swap; then `choose_golden` must find a tint that is not."""
    from edge.models.golden import blind_spot, choose_golden, load_golden

    bundle = yunet(320)
    runtime = load(bundle).runtime
    golden = choose_golden(bundle.manifest, [load_golden(bundle).image], runtime.infer)
    assert blind_spot(bundle.manifest, golden, runtime.infer) is None


@pytest.mark.shared
def test_ultralight_ssd_finds_the_faces_yunet_finds(bundles, yunet, shared: Path, portrait):
    manifest = Manifest(
        name="rfb-320", version="1", task="detector", decoder="ssd",
        input=Input(320, 240, color="RGB", mean=(127.0,) * 3, scale=(128.0,) * 3, fit="stretch"),
        outputs=("scores", "boxes"), files={}, licence="MIT", source="Ultra-Light", score_threshold=0.7,
    )  # fmt: skip
    pixels = cv2.resize(portrait, (320, 240))[None]
    onnx = shared / "weights" / "ultralight_rfb_mit" / "version-RFB-320.onnx"
    rfb = Detector(load(bundles.foreign(onnx, manifest, pixels)))(portrait)
    reference = Detector(load(yunet(640)))(portrait)
    assert len(reference.score) >= 3
    assert (iou(reference.xyxy, rfb.xyxy).max(axis=1) > 0.5).all()
