"""Nobody is recognized who has not agreed: at the desk, when a box starts, and on the day after a consent ends."""

import json
import logging
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

from edge.app import Box, run_box
from edge.assembly import load_models
from edge.box.doctor import examine
from edge.cli import main
from edge.config import Box as BoxConfig
from edge.config import HeadConfig, LoadedConfig, load_box
from edge.consent import Consent, heads_off
from edge.errors import ConfigError, ModelError
from edge.identity import faults, head_manifests
from edge.models.bundle import MANIFEST, load_bundle
from edge.models.manifest import Manifest
from edge.pipeline import Seen
from edge.publish.clock import BoxClock
from edge.wire import Clock
from tests.edge.conftest import BundleMaker
from tests.edge.flash.desk import Desk

GIVEN, UNTIL, FAR = date(2026, 1, 31), date(2027, 1, 30), "2199-12-31"
RECORD = {"who": "staff no. 4711", "given": str(GIVEN), "until": FAR, "record": "personnel office, file C-12"}
TEXT = """\
site: demo
box: lobby-1
database: 6c6f6361-6c00-4000-8000-000000000000
models_dir: bundles
state_dir: state
mqtt: {port: 9}
cameras:
  - {id: door, detector: tiny-detector, source: {uri: frames}}
heads:
  - name: me
    bundle: tiny-colour
    min_face_px: 16
"""


@pytest.fixture
def folder(tmp_path: Path, bundles: BundleMaker) -> Path:
    """Return a folder with red pictures, in which two faces are found, and a head that calls red `me`."""
    bundles.detector()
    bundles.classifier(labels=("me", "green", "blue"))
    (tmp_path / "frames").mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):  # noise, for a face without any contrast is not worth asking about
        picture = rng.normal((20, 40, 230), 20, (64, 64, 3)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "frames" / f"{i:03}.png"), picture)
    return tmp_path


def write(folder: Path, consent: dict[str, Any] | None) -> Path:
    lines = [f"    consent:\n      me: {json.dumps(consent)}\n"] if consent is not None else []
    (folder / "box.yaml").write_text(TEXT + "".join(lines))
    return folder / "box.yaml"


def checked(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["check", str(path)]) == 2
    return capsys.readouterr().err


def manifest(**changes: Any) -> Manifest:
    made = msgspec.convert({"width": 8, "height": 8}, type=Manifest.__annotations__["input"])
    fields: dict[str, Any] = {"labels": ("anna", "ben", "other")} | changes
    return Manifest("us", "1", "classifier", "softmax", made, ("logits",), {}, "", "", **fields)


class TestAtTheDesk:
    """`check` names file, line, key, what was found and what is expected."""

    def test_a_head_that_recognizes_a_person_is_refused_without_a_consent(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        told = checked(write(folder, None), capsys)
        assert "box.yaml:10: heads[0].consent is missing, expected `me: {who: …, given: DAY, until: DAY" in told

    def test_a_sound_consent_is_taken_and_its_end_is_shown(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["check", str(write(folder, RECORD))]) == 0
        told = capsys.readouterr().out
        assert f"head me: tiny-colour, consent of 'me' until {FAR}" in told
        assert "4711" not in told

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"until": "2026-03-01"}, "box.yaml:14: heads[0].consent.me.until is 2026-03-01, expected a day that is"),
            ({"until": "2026-01-01"}, "heads[0].consent.me.until is 2026-01-01, expected a day not before 2026-01-31"),
            ({"given": "2199-01-01"}, "heads[0].consent.me.given is 2199-01-01, expected a day that has come"),
            ({"until": "one day"}, "heads[0].consent.me.until is 'one day', expected a day, such as 2026-01-31"),
            ({"until": "2027-02-30"}, "heads[0].consent.me.until is '2027-02-30', expected a day"),
            ({"given": "2026-01-31T08:00:00Z"}, "heads[0].consent.me.given is '2026-01-31T08:00:00Z', expected a day"),
            ({"who": " "}, "heads[0].consent.me.who is empty, expected the person, or a number for her"),
            ({"record": ""}, "heads[0].consent.me.record is empty, expected where the record is kept"),
            ({"face": "me.jpg"}, "heads[0].consent.me.face is not a known key"),
        ],
    )
    def test_a_consent_that_is_none_is_refused(
        self, folder: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], told: str
    ) -> None:
        assert told in checked(write(folder, RECORD | change), capsys)

    @pytest.mark.parametrize("key", ["who", "given", "until", "record"])
    def test_every_part_of_the_record_is_needed(
        self, folder: Path, capsys: pytest.CaptureFixture[str], key: str
    ) -> None:
        record = {k: v for k, v in RECORD.items() if k != key}
        assert f"box.yaml:14: heads[0].consent.me.{key} is missing" in checked(write(folder, record), capsys)

    def test_a_day_is_written_without_quotes_too(self, folder: Path) -> None:
        path = write(folder, None)
        path.write_text(TEXT + "    consent: {me: {who: x, given: 2026-01-31, until: 2027-01-30, record: y}}\n")
        assert load_box(path).box.heads[0].consent["me"] == Consent("x", GIVEN, UNTIL, "y")

    def test_a_consent_for_nobody_whom_the_bundle_knows_is_refused(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write(folder, RECORD)
        path.write_text(path.read_text().replace("me: {", "you: {"))
        told = checked(path, capsys)
        assert "box.yaml:14: heads[0].consent.you is a consent, expected one of me" in told
        assert "heads[0].consent.me is missing" in told

    def test_everybody_whom_a_bundle_recognizes_is_asked(self, folder: Path) -> None:
        config = load_box(write(folder, RECORD))
        wrong = faults(config, {"me": manifest(identifies=("anna", "ben"))})
        assert [line.split(" is ")[0].partition(": ")[2] for line in wrong] == [
            "heads[0].consent.anna", "heads[0].consent.ben", "heads[0].consent.me",
        ]  # fmt: skip

    def test_the_doctor_counts_the_days_and_says_when_they_are_over(self, folder: Path) -> None:
        for record, ok, told in (
            (RECORD, True, f"me: 'me' until {FAR}, "),
            (RECORD | {"until": "2026-03-01"}, False, "heads[0].consent.me.until is 2026-03-01, expected"),
            (None, False, "heads[0].consent is missing"),
        ):
            (found,) = (f for f in examine(load_box(write(folder, record))) if f.thing == "consents")
            assert (found.ok, told in found.text) == (ok, True), found.text

    def test_the_schema_knows_the_record(self) -> None:
        schema = msgspec.json.schema(BoxConfig)["$defs"]
        assert schema["Consent"]["required"] == ["who", "given", "until", "record"]
        assert schema["HeadConfig"]["properties"]["consent"]["additionalProperties"] == {"$ref": "#/$defs/Consent"}


class TestWhatABundleSays:
    """A bundle that recognizes a person can be told apart by its manifest."""

    def test_a_class_called_me_is_a_person_unless_the_manifest_says_otherwise(self) -> None:
        assert manifest(labels=("other", "Me")).people == ("Me",)
        assert manifest(labels=("other", "me"), identifies=()).people == ()
        assert manifest(labels=("mask", "none")).people == ()
        assert manifest(identifies=("anna",)).people == ("anna",)

    def test_a_bundle_that_says_nothing_can_be_read_by_a_program_from_before(self) -> None:
        assert b"identifies" not in msgspec.yaml.encode(manifest())
        assert b"identifies" in msgspec.yaml.encode(manifest(identifies=()))

    def test_a_person_who_is_no_label_is_a_contradiction(self, folder: Path) -> None:
        with (folder / "bundles" / "tiny-colour" / MANIFEST).open("a") as file:
            file.write("identifies: [anna]\n")
        with pytest.raises(ModelError, match="identifies names anna, expected labels out of me, green, blue"):
            load_bundle(folder / "bundles" / "tiny-colour")


class TestWhenAHeadIsOff:
    """From the day after its last, and before its first; one person of several is enough."""

    @pytest.mark.parametrize(
        ("today", "why"),
        [
            (date(2026, 1, 30), "the consent of 'me' is given for 2026-01-31 on"),
            (GIVEN, None),
            (UNTIL, None),
            (date(2027, 1, 31), "the consent of 'me' ended on 2027-01-30"),
        ],
        ids=["the day before", "the first day", "the last day", "the day after"],
    )
    def test_both_ends_belong_to_a_consent(self, today: date, why: str | None) -> None:
        head = HeadConfig("me", consent={"me": Consent("4711", GIVEN, UNTIL, "C-12")})
        assert heads_off([head, HeadConfig("age")], today) == ({"me": why} if why else {})

    def test_one_person_of_several_puts_out_the_head(self) -> None:
        anna, ben = Consent("1", GIVEN, date(2026, 6, 1), "C-1"), Consent("2", GIVEN, UNTIL, "C-2")
        assert heads_off([HeadConfig("us", consent={"anna": anna, "ben": ben})], date(2026, 7, 1)) == {
            "us": "the consent of 'anna' ended on 2026-06-01"
        }


class Later(BoxClock):
    """A clock that stands on the day after a consent."""

    def stamp(self, at_s: float) -> tuple[int, Clock]:
        """Return 2200-01-01, and that it is to be trusted."""
        return 7_258_118_400_000, Clock.SYNCHRONIZED


class TestOnABox:
    """A box does not start without, and goes on counting when a consent has ended."""

    def test_a_box_does_not_start_without_a_consent(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match=r"box.yaml:10: heads\[0\].consent is missing"):
            load_models(load_box(write(folder, None)), log=lambda _: None)

    def test_a_box_whose_consent_is_over_starts_with_that_head_off(self, folder: Path) -> None:
        config = self.slow(write(folder, RECORD | {"until": "2026-03-01"}))
        seen, box = self.watch(config, lambda box, seen: len(seen) >= 6)
        assert seen[-1].votes
        assert not [v for s in seen for v in s.votes.values() if v["me"].samples]
        assert box.heads_off == {"me": "the consent of 'me' ended on 2026-03-01"}

    def test_a_running_box_silences_the_head_and_says_so_once(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        before: list[Seen] = []

        def turn(box: Box, seen: list[Seen]) -> bool:
            if not before and any(v["me"].label == "me" for v in seen[-1].votes.values()):
                before.extend(seen)
                box.clock = Later()
            silent = [s for s in seen[len(before) :] if all(v["me"].samples == 0 for v in s.votes.values())]
            return bool(before) and len(silent) >= 4

        seen, box = self.watch(self.slow(write(folder, RECORD)), turn)
        assert before, "the head recognized nobody before"
        assert seen[-1].votes.keys() == seen[len(before)].votes.keys()  # the visits go on
        assert [r.getMessage() for r in caplog.records if "head me is off" in r.getMessage()] == [
            f"head me is off: the consent of 'me' ended on {FAR}"
        ]
        model = box.health().models["me"]
        assert (model.device, model.golden) == ("off", "ok")
        assert model.attempts[-1] == f"off: the consent of 'me' ended on {FAR}"
        assert b"4711" not in msgspec.json.encode(box.health())

    def slow(self, path: Path) -> LoadedConfig:
        path.write_text(path.read_text().replace("{uri: frames}", "{uri: frames, realtime: true, fps: 8}"))
        return load_box(path)

    def watch(self, config: LoadedConfig, enough: Any) -> tuple[list[Seen], Box]:
        """Run a box until `enough(box, seen)`; return what its camera saw, and the box."""
        stop, seen, boxes = threading.Event(), [], []

        def observe(_: str, one: Seen) -> None:
            deadline_s = time.monotonic() + 20
            while not boxes and time.monotonic() < deadline_s:
                time.sleep(0.01)
            seen.append(one)
            if enough(boxes[0], seen):
                stop.set()

        assert run_box(config, observers=[observe], stop=stop, on_ready=boxes.append) == 0
        assert stop.is_set(), f"{len(seen)} frames did not do"
        return seen, boxes[0]


@pytest.mark.parametrize(
    ("consent", "told"),
    [({}, r"heads\[0\].consent is missing"), ({"me": RECORD | {"until": "2026-03-01"}}, "me.until is 2026-03-01")],
    ids=["without", "over"],
)
def test_a_config_without_a_consent_that_holds_does_not_leave_the_desk(
    folder: Path, tmp_path: Path, consent: dict[str, Any], told: str
) -> None:
    desk = Desk(tmp_path / "desk")
    camera = {"id": "door", "detector": "tiny-detector", "source": {"uri": "rtsp://127.0.0.1:1/door"}}
    changes = {"models_dir": str(folder / "bundles"), "cameras": [camera]}
    with pytest.raises(ConfigError, match=told):
        desk.made(1, heads=[{"name": "me", "bundle": "tiny-colour", "consent": consent}], **changes)
    assert not list(desk.folder.glob("*.ffbundle"))
    desk.made(2, heads=[{"name": "me", "bundle": "tiny-colour", "consent": {"me": RECORD}}], **changes)


def test_a_manifest_that_cannot_be_read_is_not_this_check_s_to_find(folder: Path) -> None:
    (folder / "bundles" / "tiny-colour" / MANIFEST).unlink()
    assert head_manifests(load_box(write(folder, RECORD))) == {}
