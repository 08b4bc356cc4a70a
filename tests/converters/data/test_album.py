"""An integrator's own pictures: folders and CSVs, people held out whole, faces found or named as missing."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra convert")
pytest.importorskip("rich", reason="needs the extra convert")

from converters.data.album import BoxFinder, Picture, cut_faces, listed, whole, with_splits
from converters.data.attributes import CONTEXT, CONTEXT_PX
from converters.errors import ConvertError
from edge.config import SHIPPED_MODELS

pytestmark = pytest.mark.convert


def save(path: Path, shade: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((40, 40, 3), shade, np.uint8)
    picture[10:30, 10:30] = 255 - shade
    cv2.imwrite(str(path), picture)


def album_folder(folder: Path, counts: dict[str, int]) -> Path:
    for label, count in counts.items():
        for k in range(count):
            save(folder / label / f"{k}.png", 40 + 10 * k)
    return folder


def people(pictures: Sequence[Picture], split: str) -> set[str]:
    return {picture.person for picture in pictures if picture.split == split}


def test_every_subfolder_is_a_label_and_a_folder_inside_it_one_person(tmp_path: Path) -> None:
    save(tmp_path / "me" / "a.png")
    save(tmp_path / "other" / "anna" / "1.png")
    save(tmp_path / "other" / "anna" / "2.png")
    pictures, labels = listed(tmp_path)
    assert labels == ("me", "other")
    assert [picture.person for picture in pictures] == ["me/a.png", "other/anna", "other/anna"]


def test_labels_fix_the_order_of_the_outputs_and_leave_other_folders_out(tmp_path: Path) -> None:
    album_folder(tmp_path, {"a": 1, "b": 1, "c": 1})
    pictures, labels = listed(tmp_path, ["c", "a"])
    assert labels == ("c", "a")
    assert {picture.label for picture in pictures} == {"a", "c"}


def test_a_csv_may_say_who_is_on_a_picture_and_what_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file,label,person,split\nx/1.png,me,m,test\nx/2.png,other,o,train\n")
    pictures, labels = listed(tmp_path / "list.csv")
    assert labels == ("me", "other")
    assert pictures[0] == Picture(tmp_path / "x/1.png", "me", "m", "test")
    assert with_splits(pictures, 0.5) == pictures


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("name,class\na,b\n", r"columns \['name', 'class'\], expected file, label", id="other columns"),
        pytest.param("", "rows missing, expected file, label", id="empty"),
        pytest.param("file,label,split\na.png,me,half\n", r"list\.csv:2: split is half", id="unknown split"),
        pytest.param("file,label\na.png,me\n", r"1 label\(s\) found \(me\), expected at least two", id="one label"),
    ],
)
def test_a_csv_that_does_not_say_what_is_needed_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ConvertError, match=said):
        listed(tmp_path / "list.csv")


def test_a_label_without_pictures_and_a_missing_source_are_named(tmp_path: Path) -> None:
    album_folder(tmp_path / "faces", {"me": 1, "other": 1})
    with pytest.raises(ConvertError, match="no pictures labelled you; found me, other"):
        listed(tmp_path / "faces", ["me", "you"])
    (tmp_path / "faces" / "nobody").mkdir()
    with pytest.raises(ConvertError, match=r"nobody: no pictures .* expected those labelled nobody"):
        listed(tmp_path / "faces")
    with pytest.raises(ConvertError, match="no such folder or CSV"):
        listed(tmp_path / "elsewhere")


def test_people_are_held_out_whole_and_stay_where_they_are_when_pictures_are_added() -> None:
    def pictures(count: int) -> list[Picture]:
        return [Picture(Path(f"{p}{k}.png"), "me", f"person {p}") for p in range(20) for k in range(count)]

    few, many = with_splits(pictures(1), 0.25, 0.1), with_splits(pictures(3), 0.25, 0.1)
    assert [len(people(few, split)) for split in ("test", "val", "train")] == [5, 2, 13]
    for split in ("test", "val", "train"):
        assert people(few, split) == people(many, split)


def test_two_people_are_one_on_each_side_and_one_person_cannot_be_split() -> None:
    two = [Picture(Path(f"{k}.png"), "me", f"p{k % 2}") for k in range(6)]
    assert len(people(with_splits(two, 0.9), "train")) == 1
    one = [Picture(Path(f"{k}.png"), "me", "Ada") for k in range(6)]
    with pytest.raises(ConvertError, match="me: all 6 pictures are of Ada, and people are held out whole"):
        with_splits(one, 0.25)


def test_a_face_that_was_cut_already_becomes_a_context_crop_whose_middle_it_is(tmp_path: Path) -> None:
    pictures, labels = listed(album_folder(tmp_path, {"a": 5, "b": 5}))
    album, without = cut_faces(with_splits(pictures, 0.25), labels, whole)
    assert not without
    assert album.faces.pictures.shape == (10, CONTEXT_PX, CONTEXT_PX, 3)
    edge = CONTEXT / (1 + 2 * CONTEXT)
    np.testing.assert_allclose(album.faces.inside[0], [edge, edge, 1 - edge, 1 - edge], atol=0.01)
    crop = album.faces.crops(0.0, 40)[0]
    assert abs(crop.astype(int) - cv2.imread(str(pictures[0].path))).mean() < 12
    assert album.split("train").counts() == "4 a, 4 b"


def test_too_few_faces_of_a_label_name_the_pictures_without_one(tmp_path: Path) -> None:
    pictures, labels = listed(album_folder(tmp_path, {"a": 9, "b": 9}))
    with pytest.raises(ConvertError) as error:
        cut_faces(with_splits(pictures, 0.25), labels, lambda _: None)
    said = "a: 0 faces to learn from and 0 to report on, expected at least 3 and 1; no face found in "
    assert str(error.value).startswith(said)
    assert str(error.value).count(".png") == 5
    assert str(error.value).endswith("and 4 more")


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    album_folder(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "2.png").write_bytes(b"no picture")
    pictures, labels = listed(tmp_path)
    with pytest.raises(ConvertError, match=r"2\.png: not a readable picture"):
        cut_faces(with_splits(pictures, 0.25), labels, whole)


def test_the_shipped_detector_finds_a_portrait_face_even_where_it_fills_the_picture() -> None:
    data = pytest.importorskip("skimage.data", reason="needs the extra demo")
    picture = np.ascontiguousarray(data.astronaut()[..., ::-1])
    find = BoxFinder(SHIPPED_MODELS / "yolov10n-face-320")
    box = find(picture)
    assert box is not None
    assert 150 < box[0] < 220 < 240 < box[2] < 300
    tight = find(np.ascontiguousarray(picture[60:180, 176:280]))
    assert tight is not None
    assert tight[2] - tight[0] > 60
    assert find(np.full((200, 200, 3), 127, np.uint8)) is None


def test_a_split_for_some_pictures_only_is_refused(tmp_path: Path) -> None:
    some = [Picture(tmp_path / "a.png", "me", "a", "test"), Picture(tmp_path / "b.png", "other", "b")]
    with pytest.raises(ConvertError, match="1 of 2 pictures have a split; give every row of the CSV one, or none"):
        with_splits(some, 0.25)
