"""The units booted for real, in a Debian tree under systemd-nspawn: started, killed, hung, stopped.

The tree is made once (a minute, from Debian's mirror) and kept under /var/tmp. What a container cannot show: devices,
and a power cut.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.cli import main
from edge.install import system
from tests import wheelhouse

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


def boot(tree: Path, unit: str) -> dict[str, Any]:
    """Boot a tree with the scenario in it; return what it wrote."""
    shutil.copy(Path(__file__).with_name("scenario.py"), tree / "scenario.py")
    drop_in = tree / f"etc/systemd/system/{unit}.d/test.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(DROP_IN)
    (tree / "etc/systemd/system/probe.service").write_text(PROBE.format(unit=unit))
    (tree / "etc/systemd/system/multi-user.target.wants/probe.service").symlink_to("/etc/systemd/system/probe.service")
    done = subprocess.run(
        ["systemd-nspawn", "--quiet", "-D", str(tree), "--boot", "--register=no", "--keep-unit", "--private-network"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=BOOT_S, check=False,
    )  # fmt: skip
    if not (tree / "result.json").exists():
        if "is-system-running" not in done.stdout and "Welcome to" not in done.stdout:
            pytest.skip(f"no container can be booted here: {(done.stdout + done.stderr)[-300:]}")
        raise AssertionError(f"the scenario wrote nothing:\n{done.stdout[-3000:]}")
    told: dict[str, Any] = json.loads((tree / "result.json").read_text())
    return told


def judge(told: dict[str, Any]) -> None:
    """Check what holds for both services."""
    assert "error" not in told, f"{told['error']}\n{told.get('journal')}"
    assert told["lived_through"], f"not fed while everything around it was away:\n{told['journal']}"
    assert told["after_hang_s"] >= WATCHDOG_S / 2, "the watchdog, and not something else"
    assert told["restarts"] == 2
    assert told["undisturbed"]
    assert told["stopped"] == "success"
    assert told["gone"]
    assert told["failed"] == []
    assert told["process"]["CapEff"] == ["0000000000000000"]
    assert told["process"]["NoNewPrivs"] == ["1"]
    assert told["process"]["Seccomp"] == ["2"]
    assert told["core_limit"] == "0"
    assert told["process"]["Uid"][0] != "0"


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
    told = boot(tree, "facefleet-bridge.service")
    judge(told)
    assert told["status_text"] == "paused, broker away"
    assert "hidden-in-the-store" not in told["journal"]


def test_a_flashed_box_is_started_killed_hung_rolled_back_and_stopped(tree: Path, tmp_path: Path) -> None:
    system.install(tree, wheelhouse.make(tmp_path / "wheels", "edge"), "edge", print)
    desk = tmp_path / "desk"
    desk.mkdir()
    config = desk / "box.yaml"
    config.write_text(
        json.dumps(
            {
                "site": "demo",
                "box": "lobby-1",
                "database": DATABASE,
                "heads": [],
                "threads": 1,
                "cameras": [{"id": "door", "source": {"uri": "rtsp://127.0.0.1:1/door"}}],
                "mqtt": {"port": 1},
            }
        )
    )
    key = str(desk / "signing.key")
    assert main(["keys", "new", key]) == 0
    assert main(["flash", str(config), str(tree), "--yes", "--key", key]) == 0
    config.write_text(config.read_text().replace('"threads": 1', '"threads": 2'))
    assert main(["bundle", "build", str(config), "--key", key, "-o", str(tree / "second.ffbundle")]) == 0
    impatient = tree / "etc/systemd/system/facefleet-spool.service.d/test.conf"
    impatient.parent.mkdir()
    impatient.write_text(
        "[Service]\nExecStart=\nExecStart=/opt/facefleet/current/bin/facefleet-edge apply --spool --start 6 --hold 2\n"
    )
    told = boot(tree, "facefleet-edge.service")
    judge(told)
    assert told["status_text"].startswith("1 cameras, config ")
    assert json.loads(told["refused"])["outcome"] == "refused", "junk in the spool is taken, refused and removed"
    assert json.loads(told["rolled_back"])["outcome"] == "rolled_back", "no broker, so it cannot prove itself"
    assert "publisher is disconnected" in json.loads(told["rolled_back"])["reason"]
    assert told["same_slot"]
    assert told["restarted_for_it"]
    status = json.loads((tree / "var/lib/facefleet/health.json").read_text())
    assert status["cameras"]["door"]["state"] != "streaming"
    assert (tree / "var/lib/facefleet").stat().st_uid == int(told["process"]["Uid"][0])
