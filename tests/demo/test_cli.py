"""What a person may ask of the demo, and what it says to what cannot be; whole runs are in test_run.py."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from demo import cli, subject
from demo.cli import main
from demo.errors import DemoError
from demo.folder import results, scratch
from demo.subject import Ports, builtin, look_at, write_config
from edge.capture.spec import SourceSpec
from edge.config import load_box
from edge.errors import ConfigError

PORTS = Ports(broker=18830, page=18088)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for level in range(50):
        video.write(np.full((48, 64, 3), level, np.uint8))
    video.release()
    return path


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for word in ("--source", "--seconds", "--keep", "--out", "rtsp://", "Ctrl-C"):
        assert word in text


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("missing.mp4", None, "no such file"),
        ("empty.mp4", b"", "is empty (0 bytes)"),
        ("notes.txt", b"not a video at all\n" * 9, "no video FFmpeg can read"),
        ("folder/", None, "no such file"),
    ],
)
def test_bad_source_is_one_line_and_status_2_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["--source", f"{tmp_path}/{name}", "--out", str(tmp_path / "out")]) == cli.USAGE
    error = capsys.readouterr().err.strip()
    assert told in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_camera_that_is_not_there_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--source", "73", "--out", str(tmp_path / "out")]) == cli.USAGE
    assert "/dev/video73" in capsys.readouterr().err


def test_password_in_an_address_is_never_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--source", "rtsp://me:hunter2@127.0.0.1:9/x", "--out", str(tmp_path / "out")]) == cli.USAGE
    captured = capsys.readouterr()
    assert "127.0.0.1:9" in captured.err
    assert "hunter2" not in captured.err + captured.out


@pytest.mark.parametrize(
    "arguments", [["--seconds", "0"], ["--seconds", "soon"], ["--port", "99999"], ["--sauce", "x"]]
)
def test_arguments_that_make_no_sense_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == cli.USAGE


def test_a_video_is_looked_at_once_and_its_length_known(clip: Path) -> None:
    found = look_at(str(clip))
    assert not found.builtin
    assert not found.live
    assert found.duration_s == pytest.approx(2.0)


def test_config_of_the_builtin_clip_has_all_heads_with_their_purpose(tmp_path: Path) -> None:
    config, notes = write_config(tmp_path, builtin(tmp_path / "clip.mp4", 37.0), PORTS, tmp_path / "state")
    assert notes == []
    assert [head.name for head in config.box.heads] == ["age", "gender", "race", "emotion"]
    assert {head.purpose for head in config.box.heads if head.purpose} == {"demonstration on public-domain portraits"}
    assert (config.box.mqtt.port, config.box.preview.port) == (PORTS.broker, PORTS.page)
    assert config.box.cameras[0].source.location(config.base) == tmp_path / "clip.mp4"
    assert config.state_dir == tmp_path / "state"


def test_race_and_emotion_stay_off_for_a_persons_own_video(tmp_path: Path, clip: Path) -> None:
    config, notes = write_config(tmp_path, look_at(str(clip)), PORTS, tmp_path / "state")
    assert [head.name for head in config.box.heads] == ["age", "gender"]
    assert "race and emotion stay off" in notes[0]


def test_password_of_a_camera_goes_to_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    spec = SourceSpec.from_text("rtsp://me:hunter2@camera/1")
    config, _ = write_config(tmp_path, subject.Subject(spec, False, True, None), PORTS, tmp_path / "state")
    assert "hunter2" not in config.path.read_text()
    source = config.box.cameras[0].source
    assert source.user == "me"
    assert source.password is not None
    assert source.password.read(config.credential_dirs) == "hunter2"
    assert (tmp_path / subject.CREDENTIAL).stat().st_mode & 0o777 == 0o600


def test_heads_without_a_shipped_model_are_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = subject._shipped
    monkeypatch.setattr(subject, "_shipped", lambda bundle: bundle != "age-student" and shipped(bundle))
    config, notes = write_config(tmp_path, builtin(tmp_path / "clip.mp4", 37.0), PORTS, tmp_path / "state")
    assert "age" not in [head.name for head in config.box.heads]
    assert "no model for age" in notes[0]


def test_shipped_demo_config_is_read_as_it_stands() -> None:
    loaded = load_box(subject.TEMPLATE)
    assert loaded.box.preview.enabled
    assert loaded.box.preview.loopback


def test_a_checkout_without_its_detector_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "SHIPPED_MODELS", tmp_path)
    with pytest.raises(DemoError, match=r"yolov10n-face-320 is not in .*; fetch a complete checkout"):
        write_config(tmp_path, builtin(tmp_path / "clip.mp4", 37.0), PORTS, tmp_path / "state")


def test_two_demos_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with results(tmp_path / "out"):
        with pytest.raises(DemoError, match="another demo writes into"), results(tmp_path / "out"):
            pass
        with results(tmp_path / "other"):
            pass


def test_scratch_folder_goes_away_and_so_does_what_a_killed_run_left() -> None:
    with scratch() as first:
        (first / "file").write_text("x")
        with scratch() as second:  # a run beside it takes nothing away
            assert (first / "file").is_file()
            assert first != second
    assert not first.exists()
    first.mkdir()
    (first / "owner.lock").touch()  # as after SIGKILL: the lock is there, and nobody holds it
    with scratch():
        assert not first.exists()


def test_news_and_ending_of_a_box_follow_its_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from demo.box import Ending

    lines = iter([b"end\n", b""])
    monkeypatch.setattr("demo.box.os.read", lambda _fd, _n: next(lines))
    ending = Ending()
    asked = threading.Event()
    monkeypatch.setattr(ending, "ask", asked.set)
    ending.follow_stdin()
    assert asked.is_set()
    assert ending.stop.is_set()


def test_wrong_demo_config_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "demo.yaml"
    broken.write_text(subject.TEMPLATE.read_text().replace("presence_s: 1", "presence_s: 0"))
    monkeypatch.setattr(subject, "TEMPLATE", broken)
    with pytest.raises(ConfigError, match="presence_s"):
        write_config(tmp_path, builtin(tmp_path / "clip.mp4", 37.0), PORTS, tmp_path / "state")
