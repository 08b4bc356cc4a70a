"""A real box behind a real sshd: flashed, refused, rolled back, cut off; camera, broker and service are real too."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.box.status import BoxStatus, read_status
from edge.cli import main
from edge.flash.desk import build
from edge.models.bundle import load_bundle
from edge.models.golden import Golden, load_golden
from tests.broker import MOSQUITTO, Amqtt, Broker, Mosquitto, free_port
from tests.edge.conftest import BundleMaker
from tests.edge.flash.desk import DATABASE, Desk
from tests.edge.flash.sshd import SSH, SSHD, Sshd
from tests.mjpeg_server import MjpegServer

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(SSHD is None or SSH is None, reason="no OpenSSH server: apt install openssh-server"),
]
REPOSITORY = Path(__file__).resolve().parents[3]
HOLD_S = "2"


class Site:
    """A desk, a box behind SSH, its camera and its broker."""

    def __init__(self, folder: Path, broker: Broker, camera: MjpegServer, sshd: Sshd) -> None:
        self.folder, self.broker, self.camera, self.sshd = folder, broker, camera, sshd
        self.desk = Desk(folder / "desk")
        shutil.rmtree(self.desk.folder / "models")
        self.maker = BundleMaker(self.desk.folder / "models")
        self.maker.detector()
        self.root = folder / "box" / "state"
        self.root.parent.mkdir()
        (bin_folder := folder / "bin").mkdir()
        self.systemctl = bin_folder / "systemctl"
        self.systemctl.write_text(
            f'#!/bin/sh\ncd {REPOSITORY} && exec {sys.executable} -m tests.edge.flash.systemctl {self.root} "$@"\n'
        )
        self.systemctl.chmod(0o755)
        self.remote = f"env PATH={bin_folder}:/usr/bin:/bin {sys.executable} -m edge.cli"

    def config(self, name: str, **changes: Any) -> Path:
        camera = {"id": "door", "detector": "tiny-detector", "source": {"uri": self.camera.url}, "fps": 5}
        mqtt = {"port": self.broker.port, "protocol": "3.1.1"}
        return self.desk.write(name, **({"cameras": [camera], "mqtt": mqtt, "database": DATABASE} | changes))

    def words(self, config: Path, *more: str) -> list[str]:
        """Return the command line of a flash."""
        return [
            "flash", str(config), self.sshd.host, "--key", str(self.desk.key), "--root", str(self.root),
            "--ssh", self.sshd.ssh, "--remote", self.remote, "--start", "60", "--hold", HOLD_S, *more,
        ]  # fmt: skip

    def status(self) -> BoxStatus:
        found = read_status(self.root)
        assert found is not None, (self.root.parent / "unit.log").read_text()
        return found

    def running(self) -> str:
        return os.readlink(self.root / "current")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Return a site whose box was flashed once."""
    folder = tmp_path_factory.mktemp("site")
    broker: Broker = Mosquitto(folder) if MOSQUITTO else Amqtt(folder)
    camera, sshd = MjpegServer(fps=10), Sshd(folder / "ssh")
    broker.start()
    camera.start()
    sshd.start()
    made = Site(folder, broker, camera, sshd)
    try:
        yield made
    finally:
        subprocess.run([made.systemctl, "stop", "unit"], check=False)
        sshd.stop()
        camera.stop()
        broker.stop()


@pytest.fixture
def flashed(site: Site) -> Site:
    """Return the site with a box that runs something."""
    if not (site.root / "current").exists():
        assert main(site.words(site.config("first.yaml"), "--yes")) == 0
    return site


def test_a_first_flash_ends_with_the_boxs_own_health(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert not site.root.exists()
    code = main(site.words(site.config("first.yaml"), "--yes", "--wait", "30"))
    said = capsys.readouterr()
    assert code == 0, said.err + said.out
    assert "nothing flashed yet; it will take on this box's name and trust your key" in said.out
    assert "model tiny-detector: added" in said.out
    assert re.search(r"camera door: streaming, \d+ frames, models have looked", said.out)
    assert re.search(r"model tiny-detector: CPU .*golden ok", said.out)
    assert re.search(r"committed, counter \d+\nwaiting .*\nborn: machine", said.out)
    assert [line.split(":")[0] for line in said.err.splitlines()][:3] == ["tidy", "adopt", "stage"]
    assert site.status().config_digest in said.out


def test_an_update_shows_its_difference_and_is_proven(flashed: Site, capsys: pytest.CaptureFixture[str]) -> None:
    before = flashed.status()
    assert main(flashed.words(flashed.config("second.yaml", presence_s=30), "--yes")) == 0
    assert re.search(r"^\+.*\"presence_s\": 30", capsys.readouterr().out, re.MULTILINE)
    assert flashed.status().nonce != before.nonce
    assert main(flashed.words(flashed.config("second.yaml", presence_s=30), "--yes")) == 0
    assert "nothing would change; nothing is sent" in capsys.readouterr().out


def untouched(site: Site, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a flash that must change nothing."""
    before, nonce = site.running(), site.status().nonce
    assert main(words) == code
    said = capsys.readouterr()
    assert re.search(message, said.err + said.out), said.err + said.out
    assert (site.running(), site.status().nonce) == (before, nonce)
    return said.out + said.err


def test_a_dry_run_and_a_no_send_nothing(
    flashed: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = flashed.words(flashed.config("other.yaml", presence_s=7))
    untouched(flashed, [*words, "--dry-run"], 0, "bytes to send, then the service restarts and proves itself", capsys)
    for answer in ("n\n", "", "maybe\n"):
        monkeypatch.setattr("sys.stdin", StringIO(answer))
        untouched(flashed, words, 1, "nothing was sent", capsys)


def test_a_config_with_mistakes_never_leaves_the_desk(flashed: Site, capsys: pytest.CaptureFixture[str]) -> None:
    words = flashed.words(flashed.config("odd.yaml", presence_s=0), "--yes")
    untouched(flashed, words, 2, r"odd.yaml:1: presence_s is '0', expected a whole number, 1–3600", capsys)


def test_a_new_camera_that_does_not_open_is_refused(flashed: Site, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}/video"
    cameras = [{"id": "door", "detector": "tiny-detector", "source": {"uri": url}}]
    words = flashed.words(flashed.config("camera.yaml", cameras=cameras), "--yes")
    untouched(flashed, words, 1, "refused it: camera door: ", capsys)


def test_a_model_that_does_not_compute_its_golden_output_is_refused(
    flashed: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = flashed.maker.root / "tiny-detector"
    shutil.copytree(detector, flashed.maker.root / "liar")
    liar = load_bundle(flashed.maker.root / "liar")
    golden = load_golden(liar)
    swapped = msgspec.structs.replace(liar.manifest, name="liar")
    flashed.maker.write(liar.folder, swapped, Golden(np.ascontiguousarray(golden.image[..., ::-1]), golden.outputs))
    cameras = [{"id": "door", "detector": "liar", "source": {"uri": flashed.camera.url}}]
    words = flashed.words(flashed.config("liar.yaml", cameras=cameras), "--yes")
    untouched(flashed, words, 1, "refused it: liar: no device computes the golden output", capsys)


def test_a_config_that_loses_the_broker_is_rolled_back(flashed: Site, capsys: pytest.CaptureFixture[str]) -> None:
    before = flashed.running()
    words = flashed.words(flashed.config("broker.yaml", mqtt={"port": free_port()}), "--yes", "--start", "6")
    assert main(words) == 3
    said = capsys.readouterr().out
    assert re.search(r"rolled_back, counter \d+: not well within 6 s: the publisher is disconnected", said)
    assert flashed.running() == before
    deadline_s = time.monotonic() + 30
    while flashed.status().publisher.startswith("disconnected") and time.monotonic() < deadline_s:
        time.sleep(0.2)
    assert flashed.status().publisher == "waiting for a bridge"
    assert flashed.status().cameras["door"].state == "streaming"


def test_a_box_whose_connection_breaks_goes_on_and_is_asked_again(flashed: Site, tmp_path: Path) -> None:
    """The client dies while the box proves itself; the desk comes back for the verdict."""
    pid = tmp_path / "ssh.pid"
    wrapper = tmp_path / "ssh"
    wrapper.write_text(f'#!/bin/sh\necho $$ > {pid}\nexec {flashed.sshd.ssh} "$@"\n')
    wrapper.chmod(0o755)
    words = flashed.words(flashed.config("cut.yaml", presence_s=11), "--yes", "--ssh", str(wrapper))
    command = [sys.executable, "-u", "-m", "edge.cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as desk:
        assert desk.stderr is not None
        assert desk.stdout is not None
        for line in desk.stderr:
            if line.startswith("restart"):
                os.kill(int(pid.read_text()), signal.SIGKILL)
                break
        rest, said = desk.stderr.read(), desk.stdout.read()
        assert desk.wait(120) in (0, 1), rest
    assert "committed" in said, rest


def test_a_bundle_in_the_spool_is_taken_and_gone(flashed: Site) -> None:
    made = build(flashed.config("spool.yaml", presence_s=13), flashed.folder / "s.ffbundle", flashed.desk.key)
    shutil.copy(made.path, flashed.root / "spool" / "b.ffbundle")
    (flashed.root / "spool" / "a.ffbundle").write_bytes(b"rubbish")
    os.symlink("/etc/passwd", flashed.root / "spool" / "c.ffbundle")
    command = f"{flashed.remote} apply --spool --root {flashed.root} --hold {HOLD_S}"
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a.ffbundle: this is no bundle" in done.stdout
    assert f"b.ffbundle: committed, counter {made.head.manifest.counter}" in done.stdout
    assert "c.ffbundle" in done.stdout
    assert list((flashed.root / "spool").iterdir()) == []
    assert Path("/etc/passwd").exists()
    assert flashed.running() == f"slots/{made.head.manifest.counter}"


def test_a_box_that_cannot_be_reached_is_named(flashed: Site, capsys: pytest.CaptureFixture[str]) -> None:
    words = flashed.words(flashed.config("other.yaml", presence_s=7), "--yes")
    words[words.index("--ssh") + 1] = flashed.sshd.ssh.replace(str(flashed.sshd.port), str(free_port()))
    untouched(flashed, words, 1, r"cannot be reached \(.*refused.*\); the box was not touched", capsys)


def test_a_box_without_our_program_is_named(flashed: Site, capsys: pytest.CaptureFixture[str]) -> None:
    words = flashed.words(flashed.config("other.yaml", presence_s=7), "--yes", "--remote", "no-such-program")
    untouched(flashed, words, 1, 'has no no-such-program .*Install it, or name it with "--remote"', capsys)


def test_a_user_without_a_key_is_told(flashed: Site, capsys: pytest.CaptureFixture[str]) -> None:
    words = flashed.words(flashed.config("other.yaml", presence_s=7), "--yes")
    (flashed.folder / "ssh" / "authorized").rename(flashed.folder / "ssh" / "aside")
    try:
        untouched(flashed, words, 1, "does not let us in .*Put your SSH key on the box", capsys)
    finally:
        (flashed.folder / "ssh" / "aside").rename(flashed.folder / "ssh" / "authorized")


def test_a_host_key_that_is_unknown_or_changed_stops_everything(
    flashed: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    words = flashed.words(flashed.config("other.yaml", presence_s=7), "--yes")
    (flashed.folder / "ssh" / "known_hosts").write_text("")
    untouched(flashed, words, 1, "host key of 127.0.0.1 is not known here", capsys)
    flashed.sshd.know_host()
    flashed.sshd.change_host_key()
    said = untouched(flashed, words, 1, "the host key of 127.0.0.1 changed: .*somebody stands in between", capsys)
    assert "ssh-keygen -R 127.0.0.1" in said
