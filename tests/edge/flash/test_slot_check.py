"""The check on the box runs in a process of its own and, when root flashes, as the user of the service."""

import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest

from edge.errors import FlashError
from edge.flash.slot_check import check_slot
from edge.flash.slots import Slots
from edge.flash.updater import Parcel, Updater
from tests.edge.conftest import BundleMaker
from tests.edge.flash.desk import QUICK, Desk, FileService
from tests.mjpeg_server import MjpegServer

NOBODY = 65534
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Return a folder that other users can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="facefleet-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def camera() -> Iterator[MjpegServer]:
    with MjpegServer(fps=20, user="eye", password="s3cret") as server:
        yield server


def everybodys_python(folder: Path) -> str:
    """Return an interpreter with our packages that `nobody` may run: ours may lie in root's home."""
    packages = sysconfig.get_paths()["purelib"]
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info[1]}"):
        wrapper = folder / "python"
        wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY}:{packages} exec {python} "$@"\n')
        wrapper.chmod(0o755)
        command = [wrapper, "-c", "import cv2, edge.cli, openvino"]
        with suppress(OSError):
            if subprocess.run(command, user=NOBODY, group=NOBODY, capture_output=True, check=False).returncode == 0:
                return str(wrapper)
    pytest.skip("no Python here that another user may run: lies with this machine's hardware and homes")


def real_desk(folder: Path) -> Desk:
    desk = Desk(folder)
    BundleMaker(folder / "models").detector()
    return desk


@pytest.mark.root
def test_root_flashes_and_the_services_user_checks_and_owns_what_it_needs(
    open_folder: Path, camera: MjpegServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user: not a matter of missing hardware")
    monkeypatch.setattr("sys.executable", everybodys_python(open_folder))
    desk = real_desk(open_folder / "desk")
    desk.folder.chmod(0o700)  # nothing of the desk may be needed
    (root := open_folder / "state").mkdir(mode=0o755)
    os.chown(root, NOBODY, NOBODY)
    desk.secret("cam1", "s3cret")
    source = {"uri": camera.url, "user": "eye", "password": {"credential": "cam1"}}
    made = desk.made(1, cameras=[{"id": "door", "detector": "tiny-detector", "source": source}])
    slots = Slots(root)
    updater = Updater(slots, FileService(slots), check_slot, QUICK)
    result = updater.apply(Parcel(BytesIO(made.path.read_bytes()), made.contents.secrets, desk.public))
    assert result.outcome == "committed"
    owners = {path.relative_to(root).as_posix(): path.stat().st_uid for path in root.rglob("*")}
    assert {uid for name, uid in owners.items() if name.startswith("cache")} == {NOBODY}  # compiled by the check
    assert (owners["slots/1/credentials"], owners["slots/1/credentials/cam1"]) == (NOBODY, NOBODY)
    assert (owners["slots/1"], owners["slots/1/config.yaml"], owners["trust"]) == (0, 0, 0)


def test_everything_that_is_wrong_with_a_slot_is_said_at_once(open_folder: Path, camera: MjpegServer) -> None:
    desk = real_desk(open_folder / "desk")
    wrong = {"uri": camera.url, "user": "eye", "password": {"credential": "forgotten"}}
    closed = {"uri": "http://127.0.0.1:1/video"}
    cameras = [
        {"id": name, "detector": "tiny-detector", "source": source}
        for name, source in (("door", wrong), ("yard", closed), ("roof", closed))
    ]
    made = desk.made(1, cameras=cameras)
    slots = Slots(open_folder / "state")
    updater = Updater(slots, FileService(slots), lambda folder, _, owner: check_slot(folder, ["roof"], owner), QUICK)
    with pytest.raises(FlashError) as refused:
        updater.apply(Parcel(BytesIO(made.path.read_bytes()), made.contents.secrets, desk.public))
    lines = str(refused.value).splitlines()
    assert len(lines) == 2
    assert "camera door: credential 'forgotten' was not found" in lines[0]
    assert "camera yard: " in lines[1]


def test_a_check_that_crashes_refuses_the_slot_and_not_the_updater(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = open_folder / "python"
    fake.write_text("#!/bin/sh\nkill -SEGV $$\n")
    fake.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(fake))
    with pytest.raises(FlashError, match="the check ended with signal 11"):
        check_slot(open_folder, (), (os.geteuid(), os.getegid()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user: hardware or rights")
def test_a_check_does_not_stand_where_the_services_user_may_not(
    open_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over SSH root stands in its home, and OpenVINO aborts where it cannot look around."""
    (private := tmp_path / "root").mkdir(mode=0o700)
    monkeypatch.chdir(private)
    monkeypatch.setenv("HOME", str(private))
    teller = open_folder / "teller"
    teller.write_text('#!/bin/sh\necho "in $(pwd), home $HOME" >&2\nls . > /dev/null && exit 1\n')
    teller.chmod(0o755)
    with pytest.raises(FlashError, match=r"^in /, home /nonexistent$"):
        check_slot(open_folder, [], (NOBODY, NOBODY), (str(teller),))
