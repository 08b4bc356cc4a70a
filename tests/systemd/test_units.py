"""The units as systemd itself judges them, wherever its tools are installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
SYSTEM = Path("/usr/lib/systemd/system")
ANALYZE = shutil.which("systemd-analyze")

analyzed = pytest.mark.skipif(ANALYZE is None or not SYSTEM.is_dir(), reason="systemd-analyze is not installed")


@analyzed
def test_systemd_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    shutil.copytree(SYSTEM, tmp_path / "usr/lib/systemd/system", symlinks=True)
    installed = tmp_path / "etc/systemd/system"
    installed.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    programs = ["current/bin/facefleet-edge", "current/bin/facefleet-bridge", "proven/bin/facefleet-edge"]
    for program in (
        *(tmp_path / "opt/facefleet" / name for name in programs),
        tmp_path / "bin/sh",
        tmp_path / "bin/sleep",
    ):
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    units = [shutil.copy(unit, installed) for unit in sorted(UNITS.glob("*.service")) + sorted(UNITS.glob("*.path"))]
    command = [str(ANALYZE), "verify", f"--root={tmp_path}", "--man=no", "--recursive-errors=no"]
    done = subprocess.run([*command, *(Path(u).name for u in units)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "facefleet" in line]
    assert not ours
    assert done.returncode == 0, done.stderr


@analyzed
@pytest.mark.parametrize(
    ("unit", "most"),
    [
        ("facefleet-edge.service", 2.0),
        ("facefleet-bridge.service", 1.5),
        ("facefleet-ca.service", 2.0),
        ("facefleet-enroll.service", 3.0),
    ],
)
def test_a_service_is_exposed_no_more_than_promised(unit: str, most: float) -> None:
    done = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", f"--threshold={int(most * 10)}", "--no-pager", str(UNITS / unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert level, done.stdout + done.stderr
    assert float(level[1]) <= most
    assert done.returncode == 0


def test_a_box_keeps_trying_for_ever_and_says_when_it_hangs() -> None:
    for unit in ("facefleet-edge.service", "facefleet-bridge.service"):
        text = (UNITS / unit).read_text()
        for line in ("Type=notify", "Restart=always", "StartLimitIntervalSec=0", "PYTHONFAULTHANDLER=1"):
            assert line in text, f"{unit}: {line}"
        assert re.search(r"^WatchdogSec=\d+$", text, re.MULTILINE)


def test_the_watchdog_is_slower_than_what_the_program_calls_stuck() -> None:
    from bridge.heartbeat import STUCK_S as BRIDGE_STUCK_S
    from edge.app import STUCK_S

    for unit, stuck_s in (("edge", STUCK_S), ("bridge", BRIDGE_STUCK_S)):
        found = re.search(r"^WatchdogSec=(\d+)$", (UNITS / f"facefleet-{unit}.service").read_text(), re.MULTILINE)
        assert found
        assert int(found[1]) >= 2 * stuck_s


def test_whom_the_recovery_precedes_waits_for_it() -> None:
    assert (
        "After=network-online.target time-sync.target facefleet-recover.service"
        in (UNITS / "facefleet-edge.service").read_text()
    )
    assert "Before=facefleet-edge.service" in (UNITS / "facefleet-recover.service").read_text()
