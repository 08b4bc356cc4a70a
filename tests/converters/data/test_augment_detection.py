"""Views keep boxes on the faces they belong to."""

import numpy as np
import pytest

from converters.data.augment_detection import (
    PADDING,
    Pool,
    Rates,
    backdrop,
    beside,
    mosaic,
    moved,
    paste,
    shapes,
    view,
    visible,
    warp,
    weathered,
    whole,
    zoomed,
)
from converters.data.detection import Sample

RED = (0, 0, 255)


def red_square(source: str = "face_mask", side: int = 40) -> Sample:
    """A grey picture with one red face at (60, 30)."""
    image = np.full((120, 160, 3), 90, np.uint8)
    image[30 : 30 + side, 60 : 60 + side] = RED
    boxes = np.array([[60, 30, 60 + side, 30 + side]], np.float32)
    return Sample(f"{source}/x", image, boxes, source, "")


def grey(size: int) -> np.ndarray:
    """The letterbox's empty frame."""
    return backdrop(size, Rates(backdrop=0.0), np.random.default_rng(0))


def covered(image: np.ndarray) -> list[int]:
    """Bounding box of what is red."""
    rows, columns = np.nonzero((image[..., 2] > 180) & (image[..., 0] < 60))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_warp_moves_pixels_and_box_alike(scale: float) -> None:
    sample, canvas = red_square(), grey(450)
    boxes = warp(sample.image, sample.boxes, scale, (12.0, 7.0), canvas)
    assert np.abs(boxes[0] - covered(canvas)).max() <= 2
    assert (canvas[-1, -1] == PADDING).all()


def test_mosaic_keeps_boxes_on_faces_in_all_quarters() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        image = grey(256)
        boxes = mosaic([red_square()] * 4, image, rng)
        for x0, y0, x1, y1 in boxes.round().astype(int):
            inner = image[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
            assert (inner[..., 2] > 180).mean() > 0.9


def test_zoom_makes_faces_that_fill_the_frame() -> None:
    rng = np.random.default_rng(0)
    sides = [np.ptp(boxes[0, [0, 2]]) / 256 for _ in range(60) if len(boxes := zoomed(red_square(), grey(256), rng))]
    assert max(sides) > 0.85
    assert min(sides) < 0.45


def test_faces_mostly_cut_away_are_dropped() -> None:
    boxes = np.array([[-30, 0, 10, 40], [-10, 0, 30, 40], [5, 5, 7, 7]], np.float32)
    assert visible(boxes, 100, 100).tolist() == [[0, 0, 30, 40]]


def test_kinds_come_at_their_rates_however_many_pictures_they_have() -> None:
    samples = [red_square("face_mask")] * 90 + [red_square("negative")] * 10
    pool = Pool(samples, Rates(sources=(("face_mask", 0.5), ("negative", 0.5), ("absent", 0.3))))
    rng = np.random.default_rng(0)
    share = np.mean([pool.draw(rng).source == "negative" for _ in range(1000)])
    assert share == pytest.approx(0.5, abs=0.05)


def test_views_are_the_same_for_the_same_seed() -> None:
    pool = Pool([red_square()], Rates())
    a, b = (view(pool, 128, Rates(), np.random.default_rng([7, 1])) for _ in range(2))
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


def test_weather_keeps_shape_and_sometimes_takes_the_colour_away() -> None:
    image = weathered(red_square().image, True, Rates(grey=1.0, blur=0.0, motion=0.0), np.random.default_rng(0))
    assert image.shape == (120, 160, 3)
    assert image.dtype == np.uint8
    spread = np.ptp(image.astype(int) - image[0, 0].astype(int), axis=2)
    assert spread.max() <= 60, "white balance alone may tint a grey picture"


def test_pasted_face_lies_in_its_box_and_leaves_others_alone() -> None:
    donor = red_square("fairface", side=60)
    for seed in range(30):
        canvas, taken = grey(256), np.array([[20, 20, 90, 90]], np.float32)
        boxes = paste(donor.image, donor.boxes[0], canvas, taken, np.random.default_rng(seed))
        assert (canvas[30:80, 30:80] == PADDING).all(), "a face that was there is covered"
        if not len(boxes):
            continue
        x0, y0, x1, y1 = boxes[0].round().astype(int)
        middle = canvas[(y0 + y1) // 2, (x0 + x1) // 2].astype(int)
        assert middle[2] - middle[0] > 80, "the face is where its box says"
        outside = np.ones((256, 256), bool)
        w, h = x1 - x0, y1 - y0
        outside[max(y0 - h, 0) : y1 + h, max(x0 - w, 0) : x1 + w] = False
        assert (canvas[outside] == PADDING).all()


def test_smear_blurs_one_direction_and_keeps_the_mean() -> None:
    image = np.zeros((200, 200, 3), np.uint8)
    image[100, 100] = 255
    longest = []
    for seed in range(20):
        smeared = moved(image, np.random.default_rng(seed))
        rows, columns = np.nonzero(smeared[..., 0])
        assert abs(int(smeared.sum()) - 255 * 3) < 200
        longest.append(max(np.ptp(rows), np.ptp(columns)))
    assert max(longest) <= 11
    assert max(longest) >= 6


def test_pictures_without_faces_are_smeared_more_often() -> None:
    rates = Rates(grey=0.0, blur=0.0, motion=1.0, still=0.0)
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)

    def rough(faces: bool) -> float:
        return float(
            np.abs(np.diff(weathered(image, faces, rates, np.random.default_rng(1)).astype(int), axis=1)).mean()
        )

    assert rough(faces=False) < 0.8 * rough(faces=True)


def test_backdrop_is_mostly_the_letterbox_and_never_a_face() -> None:
    rng = np.random.default_rng(0)
    frames = [backdrop(64, Rates(backdrop=0.25), rng) for _ in range(400)]
    plain = np.mean([bool((frame == PADDING).all()) for frame in frames])
    assert plain == pytest.approx(0.75, abs=0.07)
    assert all(frame.shape == (64, 64, 3) and frame.dtype == np.uint8 for frame in frames)


def test_faces_are_only_taken_from_pictures_where_they_are_large() -> None:
    pool = Pool([red_square("fairface", side=20), red_square("face_mask", side=80)], Rates())
    assert pool.draw_face(np.random.default_rng(0)) is None
    pool = Pool([red_square("fairface", side=70)], Rates())
    assert pool.draw_face(np.random.default_rng(0)) is not None


def test_a_picture_without_faces_is_shown_enlarged() -> None:
    empty = red_square()
    empty = type(empty)(empty.name, empty.image, np.zeros((0, 4), np.float32), "negative", "")
    for seed in range(10):
        canvas = grey(128)
        assert not len(zoomed(empty, canvas, np.random.default_rng(seed)))
        assert (canvas == PADDING).all(axis=2).mean() < 0.3
    assert len(whole(red_square(), grey(256), np.random.default_rng(0), (1.0, 1.0))) == 1


def test_a_part_beside_the_faces_shows_none_of_them() -> None:
    sample, found = red_square(side=30), 0
    for seed in range(40):
        canvas = grey(96)
        if beside(sample, canvas, np.random.default_rng(seed)):
            found += 1
            assert np.ptp(canvas, axis=2).max() == 0, "only grey was beside the red face"
    assert found > 30


def test_no_part_is_found_beside_a_face_that_fills_the_picture() -> None:
    sample = red_square(side=90)
    boxes = np.array([[0, 0, 160, 120]], np.float32)
    sample = type(sample)(sample.name, sample.image, boxes, sample.source, "")
    canvas = grey(96)
    assert not beside(sample, canvas, np.random.default_rng(0))
    assert (canvas == PADDING).all()


def test_made_up_shapes_cover_the_frame_and_differ_every_time() -> None:
    frames = []
    for seed in range(5):
        frames.append(grey(96))
        shapes(frames[-1], np.random.default_rng(seed))
    assert all(np.ptp(frame) > 20 for frame in frames)
    assert len({frame.tobytes() for frame in frames}) == 5


def test_views_without_a_face_come_at_their_rate() -> None:
    pool = Pool([red_square()], Rates())
    rates = Rates(mosaic=0.0, zoom=0.0, paste=0.0, empty=0.5)
    without = np.mean([not len(view(pool, 64, rates, np.random.default_rng(seed))[1]) for seed in range(300)])
    assert without == pytest.approx(0.5, abs=0.1)
