"""`facefleet-edge clips`: one person's part of a recording, nobody else's face, all of it or nothing."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge.box import video as writing
from edge.cli import main
from edge.clips import cut
from tests.edge.conftest import BundleMaker

FRAMES, FPS = 160, 10
ME_S, OTHER_S = ((3, 6), (10, 13)), ((7.5, 9.2),)  # when the person is there, and when only others are
CONSENT = {"who": "staff no. 4711", "given": "2026-01-31", "until": "2199-12-31", "record": "personnel office, C-12"}
# The tiny detector finds two boxes in a reddish picture; here they are doubled four times, in pixels of 128×128.
LEFT, RIGHT = (slice(16, 56), slice(16, 48)), (slice(24, 80), slice(72, 112))
RED, GREEN, BLUE = (20, 40, 230), (20, 230, 40), (150, 90, 40)


def within(spans: tuple[tuple[float, float], ...], at_s: float) -> bool:
    return any(a <= at_s < b for a, b in spans)


def picture(rng: np.random.Generator, at_s: float) -> NDArray[np.uint8]:
    """Draw the person red on the left and somebody else green on the right, or green both, or blue: nobody is found."""
    me, other = within(ME_S, at_s), within(OTHER_S, at_s)
    colours = np.full((128, 128, 3), RED if me or other else BLUE, np.float64)
    if me or other:
        colours[LEFT] = RED if me else GREEN
        colours[RIGHT] = GREEN
    return (colours + rng.normal(0, 22, colours.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a detector of two fixed boxes and a head that calls red `me`."""
    maker = BundleMaker(tmp_path_factory.mktemp("models"))
    maker.detector()
    maker.classifier(labels=("me", "green", "blue"))
    maker.classifier(name="tiny-two", labels=("anna", "ben", "other"), identifies=("anna", "ben"))
    maker.classifier(name="tiny-nobody")
    return maker.root


@pytest.fixture(scope="module")
def party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return sixteen seconds in which the person comes twice, the second time right after others."""
    folder = tmp_path_factory.mktemp("video") / "party"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(FRAMES):
        cv2.imwrite(str(folder / f"{i:03}.png"), picture(rng, i / FPS))
    return folder


@pytest.fixture
def config(tmp_path: Path, models: Path) -> Any:
    """Return a function that writes a box's config."""

    def made(*heads: dict[str, Any], **camera: Any) -> Path:
        me = {"name": "me", "bundle": "tiny-colour", "min_face_px": 16, "consent": {"me": CONSENT}}
        door = {"id": "door", "detector": "tiny-detector", "source": {"uri": "rtsp://192.0.2.1/s"}} | camera
        text = {
            "site": "demo",
            "box": "lobby-1",
            "database": "6c6f6361-6c00-4000-8000-000000000000",
            "models_dir": str(models),
            "state_dir": str(models / "state"),
            "heads": list(heads) or [me],
            "cameras": [door | {"sort": {"max_age": 3}}],
        }
        (tmp_path / "box.yaml").write_text(json.dumps(text))
        return tmp_path / "box.yaml"

    return made


def clips(*argv: object) -> int:
    return main(["clips", *map(str, argv)])


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(np.asarray(read[1], np.uint8))
    return frames


def detail(frame: NDArray[np.uint8], where: tuple[slice, slice]) -> float:
    """Return how much neighbouring pixels differ inside a face: nothing is left of it under a blur."""
    inside = frame[where][4:-4, 4:-4].astype(float)
    return float(np.abs(np.diff(inside, axis=1)).mean())


def test_a_clip_per_stretch_with_the_person_and_a_list_of_them(
    config: Any, party: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clips"
    assert clips(config(), party, "--out", out) == 0
    told = capsys.readouterr()
    listed = json.loads((out / "clips.json").read_text())
    names = [clip["file"] for clip in listed["clips"]]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "clips.json"])
    for clip, (start_s, end_s) in zip(listed["clips"], ME_S, strict=True):
        assert clip["start_s"] == pytest.approx(start_s - 1, abs=0.15)
        assert clip["end_s"] == pytest.approx(end_s + 0.9, abs=0.15)
        assert clip["confidence"] > 0.8
        frames = frames_of(out / clip["file"])
        assert len(frames) == pytest.approx((clip["end_s"] - clip["start_s"]) * FPS, abs=1.01)
    assert (listed["head"], listed["label"], listed["others"]) == ("me", "me", "blurred")
    assert listed["consent_until"] == "2199-12-31"
    assert f"2 clips, {sum(c['end_s'] - c['start_s'] for c in listed['clips']):.1f} s of 15.9 s" in told.out
    assert "'me' agrees until 2199-12-31: delete them by then" in told.out
    assert "4711" not in told.out + told.err + (out / "clips.json").read_text()
    assert out.stat().st_mode & 0o077 == 0  # it shows a person: others on this machine may not look


def test_nobody_else_can_be_recognized_and_the_person_can(config: Any, party: Path, tmp_path: Path) -> None:
    assert clips(config(), party, "--out", tmp_path / "hidden") == 0
    assert clips(config(), party, "--out", tmp_path / "shown", "--show-others") == 0
    hidden, shown = (frames_of(next((tmp_path / name).glob("party-02.*"))) for name in ("hidden", "shown"))
    assert len(hidden) == len(shown)
    there = [i for i, frame in enumerate(shown) if frame[RIGHT].mean(axis=(0, 1))[1] > 150]
    assert len(there) >= 20
    assert min(detail(shown[i], RIGHT) for i in there) > 6
    assert max(detail(hidden[i], RIGHT) for i in there) < 3  # in the very first frame too
    both = [i for i in there if shown[i][LEFT].mean(axis=(0, 1))[2] > 150]
    assert min(detail(hidden[i], LEFT) for i in both) > 6
    others = [i for i in there if i not in both]  # the person has not come yet
    assert len(others) == 2
    assert max(detail(hidden[i], LEFT) for i in others) < 3


def test_privacy_masks_are_painted_into_the_clips(config: Any, party: Path, tmp_path: Path) -> None:
    path = config(masks=[[[0, 0.8], [1, 0.8], [1, 1], [0, 1]]])
    assert clips(path, party, "--out", tmp_path / "clips") == 0
    clip = next((tmp_path / "clips").glob("party-01.*"))
    assert max(frame[106:].mean() for frame in frames_of(clip)) < 10


def test_a_dry_run_only_lists(config: Any, party: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config()
    before = sorted(tmp_path.iterdir())
    assert clips(path, party, "--out", tmp_path / "clips", "--dry-run", "--gap", "9") == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert told[0].startswith("  1  0:00:0")
    assert told[1].endswith("nothing was written")
    assert sorted(tmp_path.iterdir()) == before


def test_nobody_found_is_a_failure_that_writes_nothing(
    config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for i in range(5):
        cv2.imwrite(str(tmp_path / "empty" / f"{i}.png"), np.full((64, 64, 3), BLUE, np.uint8))
    assert clips(config(), tmp_path / "empty", "--out", tmp_path / "clips") == 1
    assert "head me recognizes nobody as 'me'; it was asked about 0 of 0 tracks" in capsys.readouterr().err
    assert not (tmp_path / "clips").exists()


def test_control_c_leaves_nothing(config: Any, party: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, count = config(), [0]

    def interrupt(*_: object) -> None:
        count[0] += 1
        if count[0] > 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(cut, "pixelate", interrupt)
    before = sorted(tmp_path.iterdir())
    assert clips(path, party, "--out", tmp_path / "clips") == 130
    assert sorted(tmp_path.iterdir()) == before


def test_without_pyav_it_says_that_browsers_will_not_play_them(
    config: Any, party: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writing, "CODECS", ())
    assert clips(config(), party, "--out", tmp_path / "clips") == 0
    assert "browsers do not play" in capsys.readouterr().out
    assert len(frames_of(tmp_path / "clips" / "party-01.mp4")) > 40


def test_of_a_damaged_recording_all_that_can_be_read_is_cut_and_then_it_is_told(
    config: Any, party: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torn").mkdir()
    for path in sorted(party.iterdir())[:70]:
        (tmp_path / "torn" / path.name).write_bytes(path.read_bytes() if path.name != "045.png" else b"torn")
    assert clips(config(), tmp_path / "torn", "--out", tmp_path / "clips") == 1
    assert "1 images could not be decoded: 045.png" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "clips" / "clips.json").read_text())["clips"]) == 1


NOBODY = {"name": "colour", "bundle": "tiny-nobody"}
ME = {"name": "me", "bundle": "tiny-colour", "consent": {"me": CONSENT}}
TWO = {"name": "us", "bundle": "tiny-two", "consent": {"anna": CONSENT, "ben": CONSENT}}
ENDED = {"name": "me", "bundle": "tiny-colour", "consent": {"me": CONSENT | {"until": "2026-03-01"}}}


@pytest.mark.parametrize(
    ("heads", "options", "told"),
    [
        ([ME], ["--head", "mine"], "no head 'mine', expected one of me"),
        ([NOBODY], [], "no head does, expected one, or --head NAME"),
        ([ME, TWO], [], "2 heads recognize a person (me, us)"),
        ([NOBODY], ["--head", "colour"], "head colour recognizes nobody (its labels are red, green, blue)"),
        ([TWO], [], "head us recognizes anna, ben; say whom: --label LABEL"),
        ([ME], ["--label", "green"], "head me recognizes no 'green', expected one of me"),
        ([{"name": "me", "bundle": "tiny-colour"}], [], "heads[0].consent is missing"),
        ([ENDED], [], "heads[0].consent.me.until is 2026-03-01, expected a day that is not over"),
        ([{"name": "me", "bundle": "gone"}], ["--head", "me"], "the bundle of head me cannot be read"),
    ],
)
def test_whom_to_look_for_must_be_known_and_agree(
    config: Any,
    party: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    heads: list[dict[str, Any]],
    options: list[str],
    told: str,
) -> None:
    assert clips(config(*heads), party, "--out", tmp_path / "clips", *options) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "clips").exists()


@pytest.mark.parametrize(
    ("case", "code", "told"),
    [
        ("missing", 1, "no such file"),
        ("junk", 1, "no video FFmpeg can read"),
        ("recording", 2, "clips are cut out of a video or a folder"),
        ("full", 2, "is not empty, expected a new folder"),
        ("file", 2, "is a file, expected a new folder"),
        ("nowhere", 2, "--out FOLDER is missing"),
    ],
)
def test_what_cannot_be_read_or_written_is_named(
    config: Any, party: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str, code: int, told: str
) -> None:
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 100)
    (tmp_path / "found.jsonl").write_text("{}\n")
    video = {"missing": tmp_path / "gone.mp4", "junk": tmp_path / "junk.mp4", "recording": tmp_path / "found.jsonl"}
    out = {"full": party, "file": tmp_path / "junk.mp4"}.get(case, tmp_path / "clips")
    assert clips(config(), video.get(case, party), *(() if case == "nowhere" else ("--out", out))) == code
    assert told in capsys.readouterr().err
    assert not (tmp_path / "clips").exists()


@pytest.mark.parametrize("seconds", ["-1", "nan", "x"])
def test_a_gap_is_a_number_of_seconds(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        clips("box.yaml", "a.mp4", f"--gap={seconds}")
    assert ended.value.code == 2
    assert "--gap" in capsys.readouterr().err
