"""What a box takes, what it refuses, and that it runs the last good config whatever was tried on it."""

import errno
import json
import os
import stat
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from edge.box.status import BoxStatus, CameraStatus
from edge.config import LoadedConfig, load_box
from edge.errors import FlashError
from edge.flash import archive
from edge.flash.desk import build
from edge.flash.signing import key_id, load_private, load_public, load_trust, new_key
from edge.flash.slots import BusyError, FlashState, Identity, Slots
from edge.flash.updater import Parcel, Updater
from tests.edge.flash.desk import BAD_PORT, QUICK, Box, Desk, light_model, says

WITH_SECRET = {"mqtt": {"user": "box", "password": {"credential": "broker"}}}


def test_a_good_config_is_committed_and_runs(desk: Desk, box: Box) -> None:
    result = box.updater.apply(desk.parcel(1))
    assert (result.outcome, result.counter, box.running()) == ("committed", 1, 1)
    assert box.service.restarts == ["1"]
    assert box.slots.identity() == Identity("demo", "lobby-1", "x86_64")
    assert load_box(box.slots.current / "config.yaml").state_dir == box.root
    slot = box.slots.current.resolve()
    assert {p.relative_to(slot).as_posix() for p in slot.rglob("*") if p.is_file()} == {
        "manifest.json", "manifest.sig", "config.yaml", "models/tiny/manifest.yaml", "models/tiny/model.onnx",
    }  # fmt: skip


def test_steps_come_in_the_order_that_a_power_cut_survives(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))
    box.steps.clear()
    box.updater.apply(desk.parcel(2))
    order = [step for i, (step, _) in enumerate(box.steps) if i == 0 or step != box.steps[i - 1][0]]
    assert order == [
        "tidy", "stage", "secrets", "seal", "check", "trial", "swap", "restart", "prove", "commit", "previous", "tidy",
        "report",
    ]  # fmt: skip


def test_a_bad_config_is_taken_back_with_its_reason(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))
    result = box.updater.apply(desk.parcel(2, mqtt={"port": BAD_PORT}))
    assert (result.outcome, result.counter, box.running()) == ("rolled_back", 2, 1)
    assert "the publisher is disconnected: refused" in result.reason
    assert box.service.restarts == ["1", "2", "1"]
    assert json.loads((box.root / "result.json").read_text())["reason"] == result.reason


def test_two_bad_flashes_in_a_row_leave_the_last_good_one(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))
    for counter in (2, 3):
        assert box.updater.apply(desk.parcel(counter, mqtt={"port": BAD_PORT})).outcome == "rolled_back"
    assert box.running() == 1
    assert box.updater.apply(desk.parcel(4)).outcome == "committed"
    assert (box.running(), box.slots.previous_slot) == (4, "1")
    assert sorted(p.name for p in box.slots.slots.iterdir()) == ["1", "4"]


def test_a_service_that_does_not_come_up_is_taken_back(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))
    box.service.fails = "2"
    result = box.updater.apply(desk.parcel(2))
    assert (result.outcome, box.running()) == ("rolled_back", 1)
    assert "unit failed on 2" in result.reason


def test_a_disk_that_can_take_no_more_notes_does_not_keep_a_box_from_going_back(
    desk: Desk, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.updater.apply(desk.parcel(1))
    real = Slots.write_state

    def full(slots: Slots, state: FlashState) -> None:
        if slots.current_slot in ("2", "4") or state.phase == "rolling_back":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(slots, state)

    monkeypatch.setattr(Slots, "write_state", full)
    result = box.updater.apply(desk.parcel(2, mqtt={"port": BAD_PORT}))
    assert (result.outcome, box.running(), box.service.restarts) == ("rolled_back", 1, ["1", "2", "1"])
    result = box.updater.apply(desk.parcel(4))  # well, but that it was kept cannot be noted
    assert (result.outcome, box.running()) == ("rolled_back", 1)
    assert "No space left on device" in result.reason
    assert box.updater.apply(desk.parcel(5)).outcome == "committed"


def test_a_first_flash_that_is_no_good_leaves_nothing_running(desk: Desk, box: Box) -> None:
    result = box.updater.apply(desk.parcel(1, mqtt={"port": BAD_PORT}))
    assert (result.outcome, box.running(), box.service.stopped) == ("rolled_back", 0, True)
    assert box.updater.apply(desk.parcel(2)).outcome == "committed"


def test_a_camera_that_is_worse_than_before_is_taken_back_and_one_that_was_lost_is_not(desk: Desk, box: Box) -> None:
    lost = {"door"}

    def status(config: LoadedConfig, nonce: str) -> BoxStatus:
        found = says(config, nonce)
        cameras = {
            name: CameraStatus("reconnecting" if name in lost else "streaming", 1, True) for name in found.cameras
        }
        return BoxStatus(
            found.pid,
            found.boot,
            found.at_s,
            found.fed_at_s,
            found.nonce,
            found.config_digest,
            found.publisher,
            cameras,
        )

    two = [
        {"id": name, "detector": "tiny", "source": {"uri": f"rtsp://127.0.0.1:1/{name}"}} for name in ("door", "yard")
    ]
    lost.clear()
    box.service.status = status
    box.updater.apply(desk.parcel(1, cameras=two))
    lost.add("door")
    result = box.updater.apply(desk.parcel(2, cameras=two))
    assert (result.outcome, "camera door is reconnecting" in result.reason) == ("rolled_back", True)
    assert box.updater.apply(desk.parcel(3, cameras=two)).outcome == "committed"  # it was lost before this one


def test_the_same_bundle_again_changes_nothing(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))
    before = box.contents()
    made = desk.folder / "1.ffbundle"
    result = box.updater.apply(Parcel(BytesIO(made.read_bytes()), {}))
    assert (result.outcome, box.contents(), box.service.restarts) == ("unchanged", before, ["1"])


def refused(box: Box, parcel: Parcel, message: str) -> None:
    before, restarts = box.contents(), list(box.service.restarts)
    with pytest.raises(FlashError, match=message):
        box.updater.apply(parcel)
    assert box.contents() == before
    assert box.service.restarts == restarts
    assert json.loads((box.root / "result.json").read_text())["outcome"] == "refused"


def test_a_downgrade_is_refused(desk: Desk, box: Box) -> None:
    old = desk.made(1).path.read_bytes()
    box.updater.apply(desk.parcel(2))
    refused(box, Parcel(BytesIO(old), {}), "counter 1, this box has taken 2 already: a downgrade is refused")


def test_a_downgrade_is_refused_even_when_the_state_file_is_lost(desk: Desk, box: Box) -> None:
    old = desk.made(1).path.read_bytes()
    box.updater.apply(desk.parcel(2))
    (box.root / "flash.json").write_bytes(b"\0\0\0")
    refused(box, Parcel(BytesIO(old), {}), "a downgrade is refused")


def test_a_bundle_for_another_box_is_refused(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))
    refused(box, desk.parcel(2, box="lobby-2"), "for demo/lobby-2, this box is demo/lobby-1")


def test_a_bundle_for_another_device_class_is_refused(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))
    refused(box, desk.parcel(2, device_class="aarch64"), "for aarch64, this box is a x86_64")


def test_a_bundle_signed_by_a_stranger_is_refused(desk: Desk, box: Box, tmp_path: Path) -> None:
    box.updater.apply(desk.parcel(1))
    stranger = Desk(tmp_path / "stranger")
    refused(box, stranger.parcel(2), "signed by key [0-9a-f]{32}, which is not trusted here")


def test_an_unsigned_bundle_is_refused(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))
    data = bytearray(desk.made(2).path.read_bytes())
    data[24:88] = bytes(64)
    refused(box, Parcel(BytesIO(data), {}), "not signed")


def test_a_tampered_file_is_refused_and_leaves_no_trace(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))
    data = bytearray(desk.made(2).path.read_bytes())
    data[-1] ^= 1
    refused(box, Parcel(BytesIO(data), {}), "does not have the digest")


def test_a_bundle_cut_short_is_refused(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))
    data = desk.made(2).path.read_bytes()
    refused(box, Parcel(BytesIO(data[:-10]), {}), "too early; copy it again")


def test_a_disk_without_room_is_refused_before_anything_is_written(
    desk: Desk, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.updater.apply(desk.parcel(1))
    monkeypatch.setattr(Slots, "free_bytes", lambda _: 5 << 20)
    refused(box, desk.parcel(2), "has 5 MB free, 65 MB are needed")


def test_a_check_that_fails_is_refused(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))

    def check(*_: object) -> None:
        raise FlashError("camera door: no picture")

    box.updater.check = check
    refused(box, desk.parcel(2), "camera door: no picture")


def test_a_config_this_software_does_not_understand_is_refused(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))
    path = desk.write("odd.yaml")
    made = build(path, desk.folder / "odd.ffbundle", desk.key, counter=2)
    files = dict(made.contents.files) | {"config.yaml": b"site: demo\nfuture: 1\n"}
    manifest = replace(made.head.manifest, files=tuple(archive.describe(p, s) for p, s in files.items()))
    archive.write_bundle(made.path, manifest, files, load_private(desk.key))
    refused(
        box,
        Parcel(BytesIO(made.path.read_bytes()), {}),
        "here does not understand the config: .*\n.*\n.*\n.*future is not a known key",
    )


def test_only_one_updater_works_at_a_time(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))
    with Slots(box.root).locked(), pytest.raises(BusyError, match="another update is at work"):
        box.updater.apply(desk.parcel(2))


def test_secrets_lie_in_the_slot_and_only_the_service_may_read_them(desk: Desk, box: Box) -> None:
    desk.secret("broker", "s3cret")
    box.updater.apply(desk.parcel(1, **WITH_SECRET))
    file = box.slots.current / "credentials" / "broker"
    assert file.read_text() == "s3cret"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert b"s3cret" not in (desk.folder / "1.ffbundle").read_bytes()


def test_secrets_are_carried_over_and_go_back_with_the_config(desk: Desk, box: Box) -> None:
    desk.secret("broker", "old")
    box.updater.apply(desk.parcel(1, **WITH_SECRET))
    made = desk.made(2, **WITH_SECRET, presence_s=30)
    box.updater.apply(Parcel(BytesIO(made.path.read_bytes()), {}))  # through the spool: no secrets beside it
    assert (box.running(), (box.slots.current / "credentials/broker").read_text()) == (2, "old")
    desk.secret("broker", "new")
    bad: dict[str, Any] = {"mqtt": {**WITH_SECRET["mqtt"], "port": BAD_PORT}}
    assert box.updater.apply(desk.parcel(3, **bad)).outcome == "rolled_back"
    assert (box.slots.current / "credentials/broker").read_text() == "old"


def test_a_secret_that_the_config_does_not_name_is_not_stored(desk: Desk, box: Box) -> None:
    made = desk.made(1)
    parcel = Parcel(BytesIO(made.path.read_bytes()), {"../../evil": b"x", "other": b"y"}, desk.public)
    box.updater.apply(parcel)
    assert os.listdir(box.slots.current / "credentials") == []
    assert not list(box.root.rglob("evil"))


def test_a_signing_key_is_rotated_by_a_bundle_of_the_old_one(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))
    new_key(new := desk.folder / "new.key")
    box.updater.apply(desk.parcel(2, trust=(new,)))
    assert set(load_trust(box.slots.trust)) == {key_id(load_public(new))}
    refused(box, desk.parcel(3), "not trusted here")
    desk.key = new
    assert box.updater.apply(desk.parcel(3)).outcome == "committed"


def test_a_box_that_knows_no_key_takes_nothing_by_itself(desk: Desk, box: Box) -> None:
    with pytest.raises(FlashError, match="no key at all"):
        box.updater.apply(Parcel(BytesIO(desk.made(1).path.read_bytes()), {}))


def test_a_link_where_a_folder_belongs_is_not_followed(desk: Desk, box: Box, tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    box.root.mkdir()
    (box.root / "slots").symlink_to(elsewhere)
    with pytest.raises(FlashError, match="is a link, expected a folder"):
        box.updater.apply(desk.parcel(1))
    assert list(elsewhere.iterdir()) == []


def test_everything_in_a_slot_is_synced_before_current_leads_to_it(
    desk: Desk, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename survives a power cut before the data behind it does, unless the data was synced first."""
    synced: set[str] = set()
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        real_fsync(descriptor)

    swaps = []

    def checked_replace(source: Any, target: Any) -> None:
        if Path(target).name == "current":
            slot = box.slots.slots / Path(os.readlink(source)).name
            everything = {slot, *slot.rglob("*")}
            was = {str(p).replace(f"/slots/{slot.name}", f"/slots/{slot.name}.new") for p in everything}
            swaps.append(was - synced)
            assert str(box.slots.slots) in synced
            assert str(box.root / ".flash.json.new") in synced
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", checked_replace)
    desk.secret("broker", "x")
    box.updater.apply(desk.parcel(1, **WITH_SECRET))
    assert swaps == [set()]
    assert str(box.root) in synced


def test_what_somebody_moved_by_hand_is_put_back(desk: Desk, box: Box) -> None:
    box.updater.apply(desk.parcel(1))
    box.updater.apply(desk.parcel(2))
    box.slots.point_current("1")
    box.updater.recover()
    assert box.running() == 2


def test_models_may_be_added_and_removed(desk: Desk, box: Box) -> None:
    light_model(desk.folder / "models", "other", b"other weights")
    box.updater.apply(desk.parcel(1))
    camera = {"id": "door", "detector": "other", "source": {"uri": "rtsp://127.0.0.1:1/door"}}
    box.updater.apply(desk.parcel(2, cameras=[camera]))
    assert [p.name for p in (box.slots.current / "models").iterdir()] == ["other"]


def test_a_card_is_written_without_service_or_proof(desk: Desk, tmp_path: Path) -> None:
    updater = Updater(Slots(tmp_path / "card"), None, None, QUICK)
    assert updater.apply(desk.parcel(1)).outcome == "committed"
    assert updater.apply(desk.parcel(2)).outcome == "committed"
    assert updater.slots.state().slot == "2"
