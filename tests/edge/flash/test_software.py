"""The program itself is flashed like a config: tried, proven, kept or taken back; the last good one always runs."""

import json
import os
import random
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.errors import FlashError
from edge.flash.desk import Seen
from edge.flash.manifest import File, Manifest, read_manifest
from edge.flash.slots import BusyError, Slots
from edge.flash.software import look_at_programs
from edge.flash.spool import take_spool
from edge.flash.updater import Parcel
from edge.flash.wheelhouse import build, difference
from edge.install import wheels
from tests.edge.flash.desk import Desk
from tests.edge.flash.programs import BAD, ProgramBox, our_wheel, wheel

INSTALLED = "1.0-abcdef12"


@pytest.fixture
def it(desk: Desk, tmp_path: Path) -> ProgramBox:
    return ProgramBox(desk, tmp_path / "it")


def test_a_good_program_is_committed_beside_the_old_one(it: ProgramBox) -> None:
    result = it.updater.apply(it.parcel("1.1", 5))
    assert (result.outcome, result.counter, result.slot) == ("committed", 5, "1.1-5")
    programs = it.programs
    assert (programs.current_slot, programs.proven_slot, programs.previous_slot) == ("1.1-5", "1.1-5", INSTALLED)
    assert it.service.restarts == [INSTALLED, "1.1-5"]
    assert it.tried == ["1.1-5"], "the new code itself was asked"
    assert wheels.packages_in(programs.packages("1.1-5")) == {"facefleet": "1.1", "tinylib": "1.5"}
    folder = programs.folder("1.1-5")
    assert (folder / "systemd/facefleet-edge.service").read_text() == "# 1.1 \n"
    assert (folder / "bin/facefleet-edge").read_text().startswith(f"#!{folder}/bin/python -sE\n")
    assert not (folder / "wheels").exists()
    assert it.box.slots.result() == result, "dashboards and offers look there"


def test_steps_come_in_the_order_that_a_power_cut_survives(it: ProgramBox) -> None:
    it.updater.apply(it.parcel("1.1", 5))
    order = [step for i, (step, _) in enumerate(it.steps) if i == 0 or step != it.steps[i - 1][0]]
    assert order == [
        "tidy", "stage", "build", "seal", "check", "trial", "swap", "restart", "prove", "commit", "previous", "proven",
        "tidy", "report",
    ]  # fmt: skip


def test_what_a_wheel_alone_does_not_bring_is_shared_with_the_old_program(it: ProgramBox) -> None:
    it.updater.apply(it.parcel("1.1", 5))
    old, new = (it.programs.packages(slot) / "tinylib/data.bin" for slot in (INSTALLED, "1.1-5"))
    assert old.stat().st_ino == new.stat().st_ino, "a link: no bytes on the disk, and none over the air"


def test_a_wheelhouse_brings_other_versions(it: ProgramBox, tmp_path: Path) -> None:
    house = tmp_path / "house"
    our_wheel(house, "2.0", needs="tinylib>=2")
    wheel(house, "tinylib", "2.1", {"tinylib/__init__.py": b"NEW = 1\n"})
    made = build(house, tmp_path / "house.ffbundle", it.desk.key, counter=9)
    assert it.updater.apply(Parcel(BytesIO(made.path.read_bytes()), {})).outcome == "committed"
    assert wheels.packages_in(it.programs.packages("2.0-9")) == {"facefleet": "2.0", "tinylib": "2.1"}
    assert not (it.programs.packages("2.0-9") / "tinylib/data.bin").exists()


def test_a_program_that_does_not_get_well_is_taken_back_with_its_reason(it: ProgramBox) -> None:
    result = it.updater.apply(it.parcel("1.1", 5, BAD))
    assert (result.outcome, result.counter, it.programs.current_slot) == ("rolled_back", 5, INSTALLED)
    assert "the publisher is disconnected: bad program" in result.reason
    assert it.service.restarts == [INSTALLED, "1.1-5", INSTALLED]
    assert it.programs.proven_slot == INSTALLED
    assert [p.name for p in it.programs.slots.iterdir()] == [INSTALLED]


def test_a_program_that_does_not_start_is_taken_back(it: ProgramBox) -> None:
    it.service.fails = "1.1"
    result = it.updater.apply(it.parcel("1.1", 5))
    assert (result.outcome, it.programs.current_slot) == ("rolled_back", INSTALLED)
    assert "unit failed on 1.1-5" in result.reason


def test_a_service_that_still_runs_the_old_program_proves_nothing(
    it: ProgramBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(it.service, "programs", it.programs)
    real = it.service.restart

    def restart() -> None:  # a unit whose ExecStart= somebody changed
        if it.programs.current_slot == "1.1-5":
            it.programs.point_current(INSTALLED)
            real()
            it.programs.point_current("1.1-5")
        else:
            real()

    monkeypatch.setattr(it.service, "restart", restart)
    result = it.updater.apply(it.parcel("1.1", 5))
    assert result.outcome == "rolled_back"
    assert f"the service runs program {INSTALLED}, not 1.1-5" in result.reason


def test_two_bad_programs_in_a_row_leave_the_last_good_one(it: ProgramBox) -> None:
    it.updater.apply(it.parcel("1.1", 5))
    for counter in (6, 7):
        assert it.updater.apply(it.parcel("1.2", counter, BAD)).outcome == "rolled_back"
    assert (it.programs.current_slot, it.programs.proven_slot) == ("1.1-5", "1.1-5")
    assert it.updater.apply(it.parcel("1.3", 8)).outcome == "committed"
    assert sorted(p.name for p in it.programs.slots.iterdir()) == ["1.1-5", "1.3-8"], "what runs, and what ran before"


def test_the_same_bundle_again_changes_nothing(it: ProgramBox) -> None:
    path = it.made("1.1", 5)
    it.updater.apply(Parcel(BytesIO(path.read_bytes()), {}))
    result = it.updater.apply(Parcel(BytesIO(path.read_bytes()), {}))
    assert result.outcome == "unchanged"
    assert it.service.restarts == [INSTALLED, "1.1-5"]


def refused(it: ProgramBox, parcel: Parcel, message: str) -> None:
    before = (it.programs.current_slot, sorted(it.programs.slots.iterdir()), list(it.service.restarts))
    with pytest.raises(FlashError, match=message):
        it.updater.apply(parcel)
    assert (it.programs.current_slot, sorted(it.programs.slots.iterdir()), it.service.restarts) == before
    assert json.loads((it.programs.root / "result.json").read_text())["outcome"] == "refused"


def test_a_downgrade_is_taken_only_when_it_was_asked_for(it: ProgramBox) -> None:
    it.updater.apply(it.parcel("1.10", 5))
    refused(it, it.parcel("1.9", 6), r"brings facefleet 1\.9, this box runs 1\.10: a downgrade is refused; where it is")
    assert it.updater.apply(it.parcel("1.9", 7, downgrade=True)).outcome == "committed"
    assert it.programs.current_slot == "1.9-7"


def test_an_old_bundle_again_is_refused_even_if_it_was_a_downgrade(it: ProgramBox) -> None:
    old = it.made("0.9", 5, downgrade=True)
    it.updater.apply(it.parcel("1.1", 6))
    refused(it, Parcel(BytesIO(old.read_bytes()), {}), "counter 5, this box has taken 6 already")


def test_a_program_for_another_architecture_is_refused_before_anything_is_staged(it: ProgramBox) -> None:
    refused(
        it, it.parcel("1.1", 5, tag="cp311-cp311-manylinux_2_28_s390x"),
        r"facefleet-1\.1-cp311-cp311-manylinux_2_28_s390x\.whl does not fit this box \(cp3\d+-cp3\d+-.*\); make",
    )  # fmt: skip
    assert "stage" not in dict(it.steps)


def test_a_program_for_another_python_is_refused(it: ProgramBox) -> None:
    refused(it, it.parcel("1.1", 5, tag="cp38-cp38-linux_x86_64"), "does not fit this box")


def test_a_program_for_another_box_or_class_is_refused(it: ProgramBox) -> None:
    refused(it, it.parcel("1.1", 5, addressee="demo/lobby-2"), "is for demo/lobby-2, this box is demo/lobby-1")
    refused(it, it.parcel("1.1", 5, device_class="aarch64"), "is for aarch64, this box is a x86_64")
    assert it.updater.apply(it.parcel("1.1", 5, addressee="demo/lobby-1")).outcome == "committed"


def test_a_program_whose_packages_are_missing_is_refused(it: ProgramBox) -> None:
    refused(
        it, it.parcel("1.1", 5, needs="tinylib>=2"), r"cannot run here: tinylib>=2.* is wanted, 1\.5 is there; send"
    )
    refused(it, it.parcel("1.1", 6, needs="otherlib"), r"cannot run here: otherlib.* is missing")


def test_a_program_that_the_new_code_itself_finds_wanting_is_refused(it: ProgramBox) -> None:
    def fails(*_: object) -> None:
        raise FlashError("tiny: no device computes the golden output")

    it.updater.try_out = fails
    refused(it, it.parcel("1.1", 5), "no device computes the golden output")


def test_a_config_is_no_program_and_a_program_no_config(it: ProgramBox) -> None:
    refused(it, it.desk.parcel(2), "bundle brings a config, expected a software")
    with pytest.raises(FlashError, match="bundle brings a software, expected a config"):
        it.box.updater.apply(it.parcel("1.1", 5))


def test_a_stranger_brings_no_program(it: ProgramBox, tmp_path: Path) -> None:
    stranger = Desk(tmp_path / "stranger")
    made = build(our_wheel(tmp_path / "evil", "9.9"), tmp_path / "evil.ffbundle", stranger.key)
    refused(it, Parcel(BytesIO(made.path.read_bytes()), {}), "which is not trusted here")


def test_a_disk_without_room_for_what_it_grows_to_is_refused(it: ProgramBox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slots, "free_bytes", lambda _: 5 << 20)
    refused(it, it.parcel("1.1", 5), r"has 5 MB free, 65 MB are needed")


def test_a_box_that_was_not_flashed_yet_takes_no_program(it: ProgramBox) -> None:
    (it.box.root / "identity.json").unlink()
    refused(it, it.parcel("1.1", 5), "was not flashed yet.*flash its config first")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../etc/cron.d/evil", "which lies outside of it; refused"),
        ("/etc/passwd", "which lies outside of it; refused"),
        ("edge/../../evil.py", "which lies outside of it; refused"),
        ("facefleet-1.1.data/purelib/../../../evil.py", "which lies outside of it; refused"),
    ],
)
def test_a_wheel_that_names_a_file_elsewhere_is_refused(it: ProgramBox, name: str, message: str) -> None:
    source = our_wheel(it.folder / "evil", "1.1")
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(name, "evil")
    made = build(source, it.folder / "evil.ffbundle", it.desk.key, counter=5)
    refused(it, Parcel(BytesIO(made.path.read_bytes()), {}), message)
    assert not list(it.folder.parent.rglob("*evil.py"))


def test_a_link_in_a_wheel_is_refused(it: ProgramBox) -> None:
    source = our_wheel(it.folder / "evil", "1.1")
    with zipfile.ZipFile(source, "a") as archive:
        link = zipfile.ZipInfo("edge/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    made = build(source, it.folder / "evil.ffbundle", it.desk.key, counter=5)
    refused(it, Parcel(BytesIO(made.path.read_bytes()), {}), "is no plain file; refused")


def test_a_wheel_that_grows_beyond_what_was_signed_is_refused(tmp_path: Path) -> None:
    bomb = wheel(tmp_path, "bomb", "1", {"bomb.bin": bytes(5 << 20)})
    with pytest.raises(FlashError, match="grows beyond the 1048576 bytes its bundle says"):
        wheels.unpack(bomb, tmp_path / "into", 1 << 20)


def test_programs_are_readable_for_the_services_user_whatever_the_umask(it: ProgramBox) -> None:
    before = os.umask(0o077)
    try:
        it.updater.apply(it.parcel("1.1", 5))
    finally:
        os.umask(before)
    folder = it.programs.folder("1.1-5")
    for path in (folder / "bin", *(folder / "lib").rglob("*"), folder / "pyvenv.cfg"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044, path
    assert list((it.programs.packages("1.1-5") / "edge/__pycache__").glob("*.pyc")), "the service may not write there"


def test_a_program_comes_through_the_spool_like_a_config(it: ProgramBox) -> None:
    spool = it.box.slots.spool
    (spool / "a.ffbundle").write_bytes(it.made("1.1", 5).read_bytes())
    (spool / "b.ffbundle").write_bytes(it.desk.made(6).path.read_bytes())
    came = dict(take_spool(it.box.updater, it.updater))
    assert {name: getattr(result, "outcome", result) for name, result in came.items()} == {
        "a.ffbundle": "committed", "b.ffbundle": "committed",
    }  # fmt: skip
    assert (it.programs.current_slot, it.box.running()) == ("1.1-5", 6)


def test_a_bundle_leaves_the_spool_before_it_is_tried_and_not_earlier(it: ProgramBox) -> None:
    """One that takes the box down is not tried again at every boot; one that was cut off before is."""
    path = it.box.slots.spool / "a.ffbundle"
    path.write_bytes(it.made("1.1", 5).read_bytes())
    there: dict[str, bool] = {}
    it.updater.at = lambda step, _what: there.setdefault(str(step), path.exists())  # type: ignore[assignment,return-value]
    (_,) = take_spool(it.box.updater, it.updater)
    assert (there["seal"], there["check"], there["trial"]) == (True, True, True)
    assert (there["swap"], there["restart"], there["prove"]) == (False, False, False)


def test_a_recovery_of_what_is_well_writes_nothing(it: ProgramBox) -> None:
    it.updater.apply(it.parcel("1.1", 5))

    def times() -> dict[str, int]:
        return {str(p): p.lstat().st_mtime_ns for p in it.programs.root.rglob("*")}

    before = times()
    assert it.updater.recover() is None
    assert times() == before


def test_the_desk_says_what_would_change(it: ProgramBox, tmp_path: Path) -> None:
    house = tmp_path / "house"
    our_wheel(house, "2.0")
    wheel(house, "tinylib", "2.1", {"tinylib/__init__.py": b""})
    wheel(house, "zlib_new", "3", {"zlib_new.py": b""})
    made = build(house, tmp_path / "house.ffbundle", it.desk.key, counter=9)
    seen = Seen(software=look_at_programs(it.programs))
    assert difference(seen, made) == ["facefleet: 1.0 → 2.0", "tinylib: 1.5 → 2.1", "zlib-new: 3 added"]
    it.updater.apply(Parcel(BytesIO(made.path.read_bytes()), {}))
    assert difference(Seen(software=look_at_programs(it.programs)), made) == []
    our_wheel(house, "2.0", "another")
    again = build(house, tmp_path / "again.ffbundle", it.desk.key, counter=10)
    assert difference(Seen(software=look_at_programs(it.programs)), again) == ["facefleet: 2.0, built anew"]
    with pytest.raises(FlashError, match="no program of ours"):
        difference(Seen(), made)


def test_the_desk_refuses_what_is_no_program(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlashError, match=r"holds 0 wheels of facefleet, expected one; make it with .pip wheel"):
        build(tmp_path / "empty", tmp_path / "x", desk.key)
    (tmp_path / "odd.whl").write_bytes(b"rubbish")
    with pytest.raises(FlashError, match=r"odd\.whl is no wheel"):
        build(tmp_path / "odd.whl", tmp_path / "x", desk.key)
    (tmp_path / "facefleet-1-py3-none-any.whl").write_bytes(b"rubbish")
    with pytest.raises(FlashError, match="is no wheel that can be read"):
        build(tmp_path / "facefleet-1-py3-none-any.whl", tmp_path / "x", desk.key)
    our_wheel(tmp_path / "two", "1.0")
    our_wheel(tmp_path / "two", "1.1")
    with pytest.raises(FlashError, match="holds 2 wheels of facefleet"):
        build(tmp_path / "two", tmp_path / "x", desk.key)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 2 MB where programs lie."""
    (mounted := tmp_path / "it" / "opt").mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount: hardware or container without it")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("where", ["staging", "unpacking"])
def test_a_disk_that_is_full_half_way_leaves_the_old_program(
    where: str, desk: Desk, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slots, "free_bytes", lambda _: 1 << 40)  # somebody else takes the room after we looked
    it = ProgramBox(desk, small_disk.parent)
    house = small_disk.parent / "house"
    our_wheel(house, "1.1")
    data = os.urandom(3 << 20) if where == "staging" else bytes(3 << 20)
    wheel(house, "tinylib", "2", {"tinylib/__init__.py": b"", "tinylib/big.bin": data})
    made = build(house, small_disk.parent / "big.ffbundle", desk.key, counter=5)
    refused(it, Parcel(BytesIO(made.path.read_bytes()), {}), "No space left on device")
    assert it.updater.apply(it.parcel("1.1", 6)).outcome == "committed"


@pytest.mark.root
def test_a_read_only_file_system_of_programs_refuses_them_and_lets_configs_through(
    desk: Desk, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slots, "free_bytes", lambda _: 1 << 40)
    it = ProgramBox(desk, small_disk.parent)
    parcel = it.parcel("1.1", 5)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(FlashError, match=r"cannot be written \(Read-only file system\)"):
        it.updater.apply(parcel)
    assert it.programs.current_slot == INSTALLED
    assert it.updater.recover() is None, "what `apply` does before it takes a config"
    assert it.box.updater.apply(desk.parcel(6)).outcome == "committed"


def test_no_program_is_tried_while_a_config_is_and_the_other_way_round(it: ProgramBox) -> None:
    with it.box.slots.locked(), pytest.raises(BusyError, match="another update is at work"):
        it.updater.apply(it.parcel("1.1", 5))
    seen = []

    def meanwhile(*_: object) -> None:
        with pytest.raises(BusyError):
            it.box.updater.apply(it.desk.parcel(7))
        seen.append(True)

    it.updater.try_out = meanwhile
    it.updater.apply(it.parcel("1.1", 6))
    assert seen


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"version": ""}, "its program is '' with", id="no version"),
        pytest.param({"version": "../1"}, r"its program is '\.\./1' with", id="a path as version"),
        pytest.param({"unpacked_bytes": 0}, "with 0 bytes, expected", id="no size"),
        pytest.param({"unpacked_bytes": 5 << 30}, "with 5368709120 bytes, expected", id="too large"),
        pytest.param({"site": "demo"}, "box is '', expected", id="half an addressee"),
        pytest.param(
            {"files": (File("config.yaml", 1, "0" * 64),)}, "'config.yaml' is refused, expected wheels/", id="config"
        ),
        pytest.param({"files": (File("wheels/../x.whl", 1, "0" * 64),)}, "is refused, expected wheels/", id="outside"),
        pytest.param({"files": ()}, "lists 0 files", id="nothing"),
        pytest.param({"kind": "config", "site": "a", "box": "b"}, "is refused, expected config.yaml", id="as a config"),
    ],
)
def test_a_programs_manifest_that_breaks_a_rule_is_refused(changed: dict[str, Any], message: str) -> None:
    good = Manifest(
        site="", box="", device_class="any", counter=1, kind="software", version="1.1", unpacked_bytes=10,
        files=(File("wheels/facefleet-1.1-py3-none-any.whl", 1, "0" * 64),),
    )  # fmt: skip
    assert read_manifest(msgspec.json.encode(good)) == good
    with pytest.raises(FlashError, match=message):
        read_manifest(msgspec.json.encode(msgspec.structs.replace(good, **changed)))


def test_no_damaged_wheel_crashes_the_box_or_leaves_its_folder(tmp_path: Path) -> None:
    """A thousand wheels with some bytes changed, as a signed bundle never brings them: refused, or taken."""
    rng, original = random.Random(7), our_wheel(tmp_path, "1.1", "x" * 300).read_bytes()
    (tmp_path / "in").mkdir()
    path, outcomes = tmp_path / "in" / "facefleet-1.1-py3-none-any.whl", set()
    for case in range(1000):
        data = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x2E, 0x2F, 0x7F, 0xFF, rng.randrange(256)))
        path.write_bytes(data[: rng.randrange(len(data))] if case % 10 == 0 else data)
        into = tmp_path / "in" / str(case)
        into.mkdir()
        try:
            wheels.unpacked_bytes(path)
            wheels.unpack(path, into, 1 << 20)
            outcomes.add("taken")
        except (FlashError, OSError):  # the updater refuses for both
            outcomes.add("refused")
        shutil.rmtree(into)
    assert outcomes == {"taken", "refused"}
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == [path.name]
