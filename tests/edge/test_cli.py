"""The command line of a box: what it prints, what it exits with, and that no mistake of a user shows a traceback."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.cli import main
from tests.edge.conftest import BundleMaker

VERBS = ("run", "check", "schema", "doctor", "replay", "clips", "bench", "tail", "bundle", "keys", "flash", "apply")


@pytest.fixture
def models(bundles: BundleMaker) -> Path:
    """Return a folder with a detector that sees two fixed boxes in red pictures, and a classifier of colours."""
    bundles.detector()
    bundles.classifier()
    return bundles.root


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Write ten red frames, with grey before and after, so that two visits begin and end."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(40):
        colour = (20, 40, 230) if 10 <= i < 30 else (90, 90, 90)
        cv2.imwrite(str(folder / f"{i:03}.png"), np.full((64, 64, 3), colour, np.uint8))
    return folder


def write(tmp_path: Path, models: Path, source: object, **more: Any) -> Path:
    config = {
        "site": "demo",
        "box": "lobby-1",
        "database": "6c6f6361-6c00-4000-8000-000000000000",
        "models_dir": str(models),
        "state_dir": str(tmp_path / "state"),
        "heads": [],
        "mqtt": {"port": 9},
        "cameras": [
            {"id": "door", "detector": "tiny-detector", "source": {"uri": str(source)}, "sort": {"max_age": 3}}
        ],
    }
    path = tmp_path / "box.yaml"
    path.write_text(json.dumps(config | more))
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches_itself_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"Example: facefleet-edge {verb}" in capsys.readouterr().out


def test_the_schema_is_json_with_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"cameras", "heads", "mqtt", "outbox", "preview"} <= schema["$defs"]["Box"]["properties"].keys()


class TestCheck:
    """`check` finds at the desk what would stop the box in the field."""

    def test_a_sound_config_is_summed_up(
        self, tmp_path: Path, models: Path, clip: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["check", str(write(tmp_path, models, clip))]) == 0
        told = capsys.readouterr().out
        assert "ok, demo/lobby-1" in told
        assert f"camera door: folder {clip}, tiny-detector, every frame" in told

    def test_all_mistakes_are_listed_and_the_exit_code_is_2(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "box.yaml"
        path.write_text("site: demo\nbocks: x\nthreads: many\n")
        assert main(["check", str(path)]) == 2
        told = capsys.readouterr().err
        for words in ("box.yaml:2: bocks", "box.yaml:3: threads is 'many'", "cameras is missing", "5 mistakes"):
            assert words in told

    def test_a_missing_bundle_names_those_that_are_there(
        self, tmp_path: Path, models: Path, clip: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = write(tmp_path, models, clip, heads=[{"name": "age"}])
        assert main(["check", str(config)]) == 2
        told = capsys.readouterr().err
        assert "heads[0].bundle is 'age-student'" in told
        assert "tiny-colour, tiny-detector" in told

    def test_a_damaged_bundle_is_found(
        self, tmp_path: Path, models: Path, clip: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with (models / "tiny-detector" / "model.bin").open("ab") as file:
            file.write(b"!")
        assert main(["check", str(write(tmp_path, models, clip))]) == 2
        assert "model.bin" in capsys.readouterr().err

    def test_a_missing_recording_and_a_missing_secret_are_told_together(
        self, tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cameras = [
            {"id": "a", "detector": "tiny-detector", "source": {"uri": "gone.mp4"}},
            {
                "id": "b",
                "detector": "tiny-detector",
                "source": {"uri": "rtsp://h/s", "password": {"credential": "cam1"}},
            },
        ]
        assert main(["check", str(write(tmp_path, models, "", cameras=cameras))]) == 2
        told = capsys.readouterr().err
        assert "camera a: source.uri" in told
        assert "gone.mp4 does not exist" in told
        assert "camera b: credential 'cam1' was not found" in told

    def test_secrets_and_certificates_of_broker_and_live_page_are_looked_for_too(
        self, tmp_path: Path, models: Path, clip: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        mqtt = {"user": "u", "password": {"credential": "broker"}, "tls": {"ca": "gone.pem"}}
        preview = {"enabled": True, "host": "0.0.0.0", "token": {"credential": "page"}}
        assert main(["check", str(write(tmp_path, models, clip, mqtt=mqtt, preview=preview))]) == 2
        told = capsys.readouterr().err
        for words in ("mqtt.password: credential 'broker'", "gone.pem does not exist", "preview.token: credential"):
            assert words in told

    def test_a_classifier_is_no_detector(
        self, tmp_path: Path, models: Path, clip: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cameras = [{"id": "a", "detector": "tiny-colour", "source": {"uri": str(clip)}}]
        assert main(["check", str(write(tmp_path, models, "", cameras=cameras))]) == 2
        assert "cameras[0].detector is 'tiny-colour', a classifier; expected a detector" in capsys.readouterr().err


class TestReplay:
    """Equal input, equal events."""

    def events(self, capsys: pytest.CaptureFixture[str], *argv: object) -> list[dict[str, Any]]:
        assert main(["replay", *map(str, argv)]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    def test_two_replays_give_equal_events(
        self, tmp_path: Path, models: Path, clip: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = write(tmp_path, models, clip)
        first = self.events(capsys, config)
        assert [e["event"] for e in first].count("ended") == 2
        assert self.events(capsys, config) == first

    def test_recorded_detections_give_the_events_of_the_clip(
        self, tmp_path: Path, models: Path, clip: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = write(tmp_path, models, clip)
        live = self.events(capsys, config, clip, "--record", tmp_path / "found.jsonl")
        assert self.events(capsys, config, tmp_path / "found.jsonl") == live

    def test_a_mot_file_replays(self, tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = [f"{frame},-1,{100 + frame},200,80,90,0.9,-1,-1,-1" for frame in range(1, 30)]
        (tmp_path / "det.txt").write_text("\n".join(rows))
        events = self.events(capsys, write(tmp_path, models, "x.mp4"), tmp_path / "det.txt")
        assert [e["event"] for e in events if e["event"] != "presence"] == ["confirmed", "ended"]

    @pytest.mark.parametrize(
        ("name", "content", "told"),
        [
            ("a.jsonl", b"", "is empty"),
            ("a.jsonl", b'{"facefleet": "tracks"}\n', "expected"),
            ("a.jsonl", b'{"facefleet": "detections", "version": 1}\n{"t_s": 1}\n', "a.jsonl:2 is damaged"),
            (
                "a.jsonl",
                b'{"facefleet": "detections", "version": 1}\n{"t_s": 1, "wh": [0, 9]}\n',
                "a.jsonl:2 is damaged (time 1, frame 0×9)",
            ),
            (
                "a.jsonl",
                b'{"facefleet": "detections", "version": 1}\n'
                b'{"t_s": 1, "wh": [9, 9], "xyxy": [[1, 1, 2, 2]], "score": []}\n',
                "1 boxes with 0 scores",
            ),
            ("a.txt", b"once upon a time", "neither JSON lines nor a MOT"),
            ("a.txt", b"nan,-1,1,1,1,1,1", "numbers that are none"),
            ("a.txt", b"1e15,-1,1,1,1,1,1", "frames outside"),
            ("a.mp4", b"", "is empty (0 bytes)"),
            ("a.mp4", b"not a video at all", "no video FFmpeg can read"),
        ],
    )
    def test_what_cannot_be_replayed_is_named(
        self, tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, told: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        assert main(["replay", str(write(tmp_path, models, "x.mp4")), str(tmp_path / name)]) == 1
        said = capsys.readouterr().err
        assert told in said
        assert name in said

    def test_a_damaged_clip_tells_all_it_has_and_then_what_is_wrong(
        self, tmp_path: Path, models: Path, clip: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (clip / "015.png").write_bytes(b"no picture any more")
        for i in range(25, 40):  # nobody has left when it ends
            (clip / f"{i:03}.png").unlink()
        assert main(["replay", str(write(tmp_path, models, clip))]) == 1
        told = capsys.readouterr()
        kinds = [json.loads(line)["event"] for line in told.out.splitlines()]
        assert kinds.count("ended") == 2
        assert "1 images could not be decoded: 015.png" in told.err

    def test_a_recording_is_not_overwritten_by_recording_it_again(
        self, tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = tmp_path / "found.jsonl"
        found.write_text('{"facefleet": "detections", "version": 1}\n')
        assert main(["replay", str(write(tmp_path, models, "x.mp4")), str(found), "--record", str(found)]) == 2
        assert found.stat().st_size > 0
        assert "--record wants a video or a folder" in capsys.readouterr().err

    def test_a_record_that_cannot_be_written_is_one_line(
        self, tmp_path: Path, models: Path, clip: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        argv = ["replay", str(write(tmp_path, models, clip)), "--record", str(tmp_path / "gone" / "found.jsonl")]
        assert main(argv) == 1
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_live_camera_cannot_be_replayed(
        self, tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["replay", str(write(tmp_path, models, "rtsp://127.0.0.1:9/x"))]) == 2
        assert "name a clip, folder or recording" in capsys.readouterr().err


class TestDoctor:
    """One line a thing: ok, or what to do."""

    def test_without_a_config_the_machine_is_examined(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor"]) == 0
        told = capsys.readouterr().out
        for thing in ("python", "openvino", "devices", "systemd-python"):
            assert f"ok    {thing}" in told

    def test_with_a_config_models_cameras_and_broker_too(
        self, tmp_path: Path, models: Path, clip: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["doctor", str(write(tmp_path, models, clip))]) == 1  # nobody listens on port 9
        lines = {line[6:34].strip(): line for line in capsys.readouterr().out.splitlines()}
        assert "golden ok" in lines["model tiny-detector"]
        assert "64×64" in lines["camera door"]
        assert lines["broker"].startswith("FAIL")
        assert "facefleet-bridge local" in lines["broker"]


class TestRun:
    """A box that cannot start says why and leaves."""

    @pytest.mark.parametrize(
        ("content", "told"),
        [(None, "no such file"), (b"", "is empty (0 bytes)"), (b"junk" * 100, "no video FFmpeg can read")],
        ids=["missing", "zero-length", "corrupt"],
    )
    def test_a_recording_that_cannot_be_read(
        self, tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, told: str
    ) -> None:
        if content is not None:
            (tmp_path / "clip.mp4").write_bytes(content)
        assert main(["run", str(write(tmp_path, models, tmp_path / "clip.mp4"))]) == 1
        said = capsys.readouterr().err
        assert told in said
        assert "Traceback" not in said

    def test_a_model_file_that_is_missing_or_damaged(
        self, tmp_path: Path, models: Path, clip: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        weights = models / "tiny-detector" / "model.bin"
        whole = weights.read_bytes()
        weights.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        assert main(["run", str(write(tmp_path, models, clip))]) == 1
        weights.unlink()
        assert main(["run", str(write(tmp_path, models, clip))]) == 1
        lines = capsys.readouterr().err.splitlines()  # the broker that is not there may be told of, too
        damaged, missing = (line for line in lines if line.startswith("facefleet-edge:"))
        assert "model.bin" in damaged
        assert "model.bin" in missing
        assert damaged != missing

    def test_a_state_folder_that_cannot_be_made(
        self, tmp_path: Path, models: Path, clip: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = write(tmp_path, models, clip, state_dir="/proc/facefleet")
        assert main(["run", str(config)]) == 2
        assert "state_dir /proc/facefleet cannot be made" in capsys.readouterr().err
