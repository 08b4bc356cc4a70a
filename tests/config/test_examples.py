"""The example configs: each is accepted as it stands, given its credentials; nothing else about them is special."""

import shutil
from pathlib import Path

import pytest

from bridge.config import load_bridge
from edge.box.check import check
from edge.config import load_box
from edge.errors import ConfigError

CONFIG = Path(__file__).parents[2] / "config"
BOXES = sorted(p for p in CONFIG.glob("*.yaml") if p.name not in ("bridge.yaml", "demo.yaml"))


def credentials(path: Path) -> set[str]:
    box = load_box(path).box
    named = [*(c.source.password for c in box.cameras), box.mqtt.password, box.preview.token]
    return {c.credential for c in named if c is not None}


@pytest.mark.parametrize("example", BOXES, ids=lambda p: p.stem)
def test_an_example_passes_the_check_once_its_credentials_are_there(example: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(example, tmp_path))
    (tmp_path / "credentials").mkdir()
    for name in credentials(example):
        (tmp_path / "credentials" / name).write_text("secret")
        (tmp_path / "credentials" / name).chmod(0o600)
    box = load_box(example).box
    said = check(path)
    assert f"ok, {box.site}/{box.box}" in said
    assert "secret" not in said


@pytest.mark.parametrize("example", [p for p in BOXES if credentials(p)], ids=lambda p: p.stem)
def test_without_them_every_missing_camera_credential_is_named(example: Path, tmp_path: Path) -> None:
    cameras = {c.source.password.credential for c in load_box(example).box.cameras if c.source.password}
    if not cameras:
        return
    with pytest.raises(ConfigError) as refused:
        check(Path(shutil.copy(example, tmp_path)))
    for name in cameras:
        assert name in str(refused.value)


def test_there_is_an_example_for_each_kind_of_box() -> None:
    assert {p.stem for p in BOXES} >= {"rtsp-two-cameras", "usb", "npu"}
    devices = load_box(CONFIG / "npu.yaml").box.devices
    assert devices[0] == "NPU"
    assert devices[-1] == "CPU", "a way out"


def test_the_bridges_example_is_accepted() -> None:
    assert load_bridge(CONFIG / "bridge.yaml").ack
