"""The units booted for real, in a Debian tree under systemd-nspawn: started, killed, hung, flashed, cut off, stopped.

The tree is made once (a minute, from Debian's mirror) and kept under /var/tmp. A power cut is the death of the whole
container. What one cannot show: devices, and what a disk forgets when the power goes.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.cli import main
from edge.install import system
from tests import wheelhouse
from tests.broker import MOSQUITTO, Amqtt, Broker, Mosquitto, free_port
from tests.mjpeg_server import MjpegServer

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]

CACHE = Path("/var/tmp/facefleet-nspawn")
WATCHDOG_S = 8
BOOT_S = 300
DATABASE = "6c6f6361-6c00-4000-8000-000000000000"

DROP_IN = f"""[Service]
WatchdogSec={WATCHDOG_S}
RestartSec=1
TimeoutAbortSec=2
"""
PROBE = """[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 /scenario.py {unit}
TimeoutStartSec=infinity
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture(scope="module")
def debian() -> Path:
    """Return a minimal Debian with systemd and Python, to be copied."""
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")
    for tool in ("debootstrap", "systemd-nspawn"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    tree = CACHE / "bookworm"
    if not tree.is_dir():
        aside = CACHE / "bookworm.new"
        shutil.rmtree(aside, ignore_errors=True)
        CACHE.mkdir(exist_ok=True)
        command = ["debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus,python3", "bookworm"]
        done = subprocess.run([*command, str(aside)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"debootstrap failed here: {done.stdout[-300:]}")
        aside.rename(tree)
    if not (tree / f"usr/bin/python3.{sys.version_info.minor}").exists():
        pytest.skip("the wheels of this Python do not fit Debian's")
    return tree


@pytest.fixture
def tree(debian: Path, tmp_path: Path) -> Iterator[Path]:
    """Return a tree of one's own; a gigabyte, so it goes at once."""
    made = tmp_path / "tree"
    subprocess.run(["cp", "-a", "--reflink=auto", str(debian), str(made)], check=True)
    yield made
    shutil.rmtree(made)
    shutil.rmtree(tmp_path / "wheels")


def prepare(tree: Path, unit: str) -> None:
    """Put the scenario into a tree."""
    shutil.copy(Path(__file__).with_name("scenario.py"), tree / "scenario.py")
    (tree / "ask").mkdir()
    drop_in(tree, unit, DROP_IN)
    (tree / "etc/systemd/system/probe.service").write_text(PROBE.format(unit=unit))
    (tree / "etc/systemd/system/multi-user.target.wants/probe.service").symlink_to("/etc/systemd/system/probe.service")


def drop_in(tree: Path, unit: str, text: str) -> None:
    path = tree / f"etc/systemd/system/{unit}.d/test.conf"
    path.parent.mkdir()
    path.write_text(text)


def boot(tree: Path, *options: str, serve: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Boot a tree with the scenario in it, and do what it asks for; return what it wrote.

    Args:
        tree: the root.
        options: of systemd-nspawn.
        serve: starts what stands around a box.
    """
    (tree / "result.json").unlink(missing_ok=True)
    command = ["systemd-nspawn", "--quiet", "-D", str(tree), "--boot", "--register=no", "--keep-unit", *options]
    console = tree.parent / "console"
    give_up_s = time.monotonic() + BOOT_S
    with console.open("wb") as out, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as it:
        while it.poll() is None:
            if (tree / "ask/cut").exists():
                cut_the_power(it)
                (tree / "ask/cut").unlink()
            elif (tree / "ask/servers").exists():
                serve()
                (tree / "ask/servers").unlink()
            elif time.monotonic() > give_up_s:
                cut_the_power(it)
            time.sleep(0.05)
    said = console.read_text(errors="replace")
    if not (tree / "result.json").exists():
        if "is-system-running" not in said and "Welcome to" not in said:
            pytest.skip(f"no container can be booted here: {said[-300:]}")
        raise AssertionError(f"the scenario wrote nothing:\n{said[-3000:]}")
    told: dict[str, Any] = json.loads((tree / "result.json").read_text())
    assert "error" not in told, f"{told['error']}\n{told.get('journal')}"
    return told


def cut_the_power(container: subprocess.Popen[bytes]) -> None:
    """Stop all processes of a container where they are, then kill the first, which takes the others along.

    Killing systemd-nspawn would leave them running; and without the stop, one could see another die and note it. When
    the parent has seen the first die, none of them lives any more (pid_namespaces(7)).
    """
    (first,) = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
    inside = os.readlink(f"/proc/{first}/ns/pid")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "ns/pid") == inside:
                os.kill(int(process.name), signal.SIGSTOP)
    os.kill(int(first), signal.SIGKILL)
    container.wait(30)


def judge(told: dict[str, Any]) -> None:
    """Check what holds for both services."""
    assert told["lived_through"], f"not fed while everything around it was away:\n{told.get('journal')}"
    assert told["after_hang_s"] >= WATCHDOG_S / 2, "the watchdog, and not something else"
    assert told["restarts"] == 2
    assert told["process"]["CapEff"] == ["0000000000000000"]
    assert told["process"]["NoNewPrivs"] == ["1"]
    assert told["process"]["Seccomp"] == ["2"]
    assert told["core_limit"] == "0"
    assert told["process"]["Uid"][0] != "0"


def ended_well(told: dict[str, Any]) -> None:
    assert told["stopped"] == "success"
    assert told["gone"]
    assert told["failed"] == []


def test_a_bridge_is_started_killed_hung_and_stopped(tree: Path, tmp_path: Path) -> None:
    system.install(tree, wheelhouse.make(tmp_path / "wheels", "bridge"), "bridge", print)
    (tree / "etc/facefleet").mkdir()
    (tree / "etc/facefleet/bridge.yaml").write_text(
        "id: centre\ndsn: postgresql://facefleet_ingest@127.0.0.1:1/facefleet\n"
        "password: {credential: database}\nmqtt: {host: 127.0.0.1, port: 1}\n"
    )
    store = tree / "etc/credstore"
    store.mkdir(exist_ok=True, mode=0o700)
    (store / "facefleet-bridge.database").write_text("hidden-in-the-store")
    (store / "facefleet-bridge.database").chmod(0o600)
    prepare(tree, "facefleet-bridge.service")
    told = boot(tree, "--private-network")
    judge(told)
    ended_well(told)
    assert told["status_text"] == "paused, broker away"
    assert "hidden-in-the-store" not in told["journal"]


class Around:
    """Camera and broker of a box in a container that shares our network; not there before they are asked for."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.broker: Broker = Mosquitto(folder) if MOSQUITTO else Amqtt(folder)
        self.camera = MjpegServer(fps=10)
        self.camera.port = free_port()

    def start(self) -> None:
        self.broker.start()
        self.camera.start()

    def stop(self) -> None:
        self.camera.stop()
        self.broker.stop()


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Around]:
    made = Around(tmp_path / "around")
    yield made
    made.stop()


class Desk:
    """Makes bundles for the box in a tree."""

    def __init__(self, folder: Path, tree: Path, around: Around) -> None:
        self.folder, self.tree, self.around = folder, tree, around
        (tree / "bundles").mkdir()
        folder.mkdir()
        self.key = str(folder / "signing.key")
        assert main(["keys", "new", self.key]) == 0

    def config(self, **changes: Any) -> Path:
        box = {
            "site": "demo", "box": "lobby-1", "database": DATABASE, "heads": [], "threads": 1,
            "cameras": [{"id": "door", "source": {"uri": self.around.camera.url}, "fps": 5}],
            "mqtt": {"port": self.around.broker.port, "protocol": "3.1.1"},
        }  # fmt: skip
        path = self.folder / "box.yaml"
        path.write_text(json.dumps(box | changes))
        return path

    def bundle(self, name: str, source: Path, *more: str) -> None:
        out = self.tree / f"bundles/{name}.ffbundle"
        assert main(["bundle", "build", str(source), "--key", self.key, "-o", str(out), *more]) == 0

    def program(self, name: str, version: str, wheel: Path, **changes: bytes) -> None:
        other = wheelhouse.another(wheel, version, self.folder / "wheels", changes)
        self.bundle(name, other, "--software")


def test_a_box_is_flashed_taken_back_updated_and_cut_off(tree: Path, tmp_path: Path, around: Around) -> None:
    """One tree and three boots; each thing that may happen to a box in its turn."""
    wheels = wheelhouse.make(tmp_path / "wheels", "edge")
    system.install(tree, wheels, "edge", print)
    (wheel,) = wheels.glob("facefleet-*.whl")
    desk = Desk(tmp_path / "desk", tree, around)
    assert main(["flash", str(desk.config()), str(tree), "--yes", "--key", desk.key]) == 0
    first = Path(os.readlink(tree / "var/lib/facefleet/current")).name
    desk.bundle("good", desk.config(presence_s=30))
    desk.bundle("bad", desk.config(presence_s=30, mqtt={"port": 1}))
    desk.bundle("good-2", desk.config(presence_s=20))
    desk.program("program", "0.1.1", wheel)
    desk.program("bad-program", "0.1.2", wheel, **{"edge/app.py": b"def run_box(*_, **__): raise SystemExit(7)\n"})
    hang = b"import time\ndef run_box(*_, **__): time.sleep(1e6)\n"
    desk.program("hanging-program", "0.1.3", wheel, **{"edge/app.py": hang})
    (tree / "bundles/junk.ffbundle").write_bytes(b"no bundle at all")
    prepare(tree, "facefleet-edge.service")
    drop_in(
        tree, "facefleet-spool.service",
        "[Service]\nExecStart=\n"
        "ExecStart=/opt/facefleet/proven/bin/facefleet-edge apply --spool --start 20 --hold 2\nExecStopPost=\n",
    )  # fmt: skip

    told = boot(tree, serve=around.start)
    judge(told)
    assert told["status_text"].startswith("1 cameras, config ")
    assert (tree / "var/lib/facefleet").stat().st_uid == int(told["process"]["Uid"][0])
    installed = told["junk"]["program"]
    assert told["junk"]["outcome"] == "refused", "junk in the spool is taken, refused and removed"
    assert told["undisturbed"]
    assert told["good"]["outcome"] == "committed", told["good"]
    good = told["good"]["slot"]
    assert good != first
    assert told["bad"]["outcome"] == "rolled_back"
    assert "publisher is disconnected" in told["bad"]["reason"]
    assert (told["bad"]["slot"], told["bad"]["restarted"]) == (good, True)

    updated = told["program"]
    assert updated["outcome"] == "committed", updated
    assert (updated["version"], updated["program"], updated["proven"]) == ("0.1.1", *[updated["program"]] * 2)
    assert updated["program"].startswith("0.1.1-")
    assert updated["process"] == f"/opt/facefleet/slots/{updated['program']}/bin/python"
    assert updated["kept"] == sorted([installed, updated["program"]])
    bad = told["bad_program"]
    assert (bad["outcome"], bad["program"], bad["version"]) == ("rolled_back", updated["program"], "0.1.1")
    assert "facefleet-edge.service" in bad["reason"]
    assert bad["kept"] == updated["kept"]
    assert told["fields"].items() >= {"BOX": "demo/lobby-1", "EVENT": "broker_connected"}.items()

    assert told["cut"]["slot"] != good, "the power went with the new config in place"
    told = boot(tree)
    assert (told["recovered"]["slot"], told["recovered"]["outcome"]) == (good, "rolled_back")
    assert "the power went" in told["recovered"]["reason"]
    assert told["recovered"]["left"] == [], "what was cut off while on trial is not tried at each boot"
    assert told["cut"]["program"].startswith("0.1.3-"), "the power went with the new program in place"
    assert told["cut"]["proven"] == updated["program"]
    told = boot(tree)
    assert told["recovered"]["program"] == told["recovered"]["proven"] == updated["program"]
    assert told["recovered"]["process"] == updated["process"]
    assert (told["recovered"]["outcome"], told["settled"]) == ("rolled_back", "settled")
    assert "the power went" in told["recovered"]["reason"]
    assert told["reset"] == {"code": 0, "left": ["spool"], "active": "inactive", "program": updated["program"]}, told
    ended_well(told)
