"""Who is whom: pairs read off file names and lists, and the two looks of a face."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from converters.data.augment_identity import SIZE_PX, looks  # noqa: E402
from converters.data.identity import CONTEXT_PX, all_pairs, pair_sets, without_context  # noqa: E402
from converters.errors import ConvertError  # noqa: E402

pytestmark = pytest.mark.convert


def touch(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())
    return [folder / name for name in names]


def test_all_pairs_of_three_pictures_of_two_people(tmp_path: Path) -> None:
    a1, a2, b1 = touch(tmp_path, "a1", "a2", "b1")
    pairs = all_pairs({a1: "a", a2: "a", b1: "b"})
    assert pairs.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert pairs.same.tolist() == [True, False, False]
    assert len(set(pairs.digests)) == 3


def test_people_are_read_off_the_file_names(tmp_path: Path) -> None:
    touch(tmp_path / "attributes/london/neutral", "001.jpg", "002.jpg")
    touch(tmp_path / "attributes/london/smiling", "001.jpg")
    lines = "a,b,same\nneutral/001.jpg,smiling/001.jpg,1\nneutral/002.jpg,smiling/001.jpg,0\n"
    (tmp_path / "attributes/london/verification_pairs.csv").write_text(lines)
    touch(tmp_path / "verification/azure", "Family1-Dad1.jpg", "Family1-Dad2.jpg", "Family2-Dad1.jpg", "faces.jpg")
    touch(tmp_path / "verification/lisa_zoom", "lisa_lisa1.jpg", "lisa_lisa2.jpg", "zoom_15cm.jpg")
    sets = pair_sets(tmp_path)
    assert sets["london"].same.tolist() == [True, False]
    assert [path.name for path in sets["azure"].files] == ["Family1-Dad1.jpg", "Family1-Dad2.jpg", "Family2-Dad1.jpg"]
    assert sets["azure"].same.tolist() == [True, False, False]
    assert sets["lisa_zoom"].same.tolist() == [True, False, False]


def test_a_folder_of_ones_own_lists_its_pairs(tmp_path: Path) -> None:
    touch(tmp_path, "x.png", "y.png", "z.png")
    (tmp_path / "pairs.csv").write_text("a,b,same\nx.png,y.png,1\nx.png,z.png,0\n")
    (pairs,) = pair_sets(tmp_path).values()
    assert pairs.same.tolist() == [True, False]
    assert [path.name for path in pairs.files] == ["x.png", "y.png", "z.png"]


def test_a_folder_without_pairs_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"neither verification/ nor pairs\.csv"):
        pair_sets(tmp_path)


@pytest.mark.shared
def test_pairs_of_the_data_folder_have_both_kinds(shared: Path) -> None:
    counts = {name: (int(p.same.sum()), int((~p.same).sum())) for name, p in pair_sets(shared).items()}
    assert counts == {"london": (80, 628), "azure": (10, 110), "lisa_zoom": (12, 16)}


def test_looks_have_the_embedders_size_and_follow_the_generator() -> None:
    pictures = torch.randint(0, 256, (6, CONTEXT_PX, CONTEXT_PX, 3), dtype=torch.uint8)
    one, same, other = (looks(pictures, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == (6, 3, SIZE_PX, SIZE_PX)
    assert 0 <= one.min() <= one.max() <= 1
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_context_is_cut_off_evenly() -> None:
    pictures = np.zeros((1, CONTEXT_PX, CONTEXT_PX, 3), np.uint8)
    pictures[:, 14:-14, 14:-14] = 9
    assert without_context(pictures).shape == (1, SIZE_PX, SIZE_PX, 3)
    assert (without_context(pictures) == 9).all()
