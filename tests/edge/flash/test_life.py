"""docs/LIFE.md, command by command: a box is renamed, replaced and decommissioned, and its signing key is rotated."""

import os
import time
from pathlib import Path

import pytest

from edge.cli import main
from edge.config import load_box
from edge.flash.signing import key_id, load_public, load_trust
from edge.flash.slots import Identity, Slots
from tests.edge.flash.desk import Desk
from tests.edge.test_install import box as install_box
from tests.edge.test_install import root, tree
from tests.product import wait_for

__all__ = ["root"]  # a fixture


@pytest.fixture
def card(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, desk: Desk) -> Path:
    """Return the root of an installed box that was flashed as demo/lobby-1."""
    install_box(root, monkeypatch, tmp_path)
    desk.secret("broker", "s3cret")
    assert (
        flash(desk, desk.write("lobby-1.yaml", mqtt={"user": "box", "password": {"credential": "broker"}}), root) == 0
    )
    return root


def flash(desk: Desk, config: Path, target: Path, *more: str) -> int:
    words = ["flash", str(config), str(target), "--yes", *more]
    return main(words if "--key" in more else [*words, "--key", str(desk.key)])


def slots(card: Path) -> Slots:
    return Slots(card / "var/lib/facefleet")


def test_rename_or_move(desk: Desk, card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = desk.write("lobby-9.yaml", box="lobby-9", site="bonn")
    assert flash(desk, moved, card) == 1
    assert "bundle is for bonn/lobby-9, this box is demo/lobby-1" in capsys.readouterr().err
    program = os.readlink(card / "opt/facefleet/current")
    assert main(["reset", "--root", str(card)]) == 0
    assert not list(card.rglob("broker")), "no secret of the old site goes along"
    assert flash(desk, moved, card) == 0
    assert slots(card).identity() == Identity("bonn", "lobby-9", "any")
    assert os.readlink(card / "opt/facefleet/current") == program


def test_new_hardware_under_the_old_name(
    desk: Desk, card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config is flashed once more; the new box takes the name, the secrets and the key on."""
    new = tmp_path / "new"
    for folder in ("etc/systemd/system", "usr/bin", "usr/local/bin", "var/lib"):
        (new / folder).mkdir(parents=True)
    for name in ("etc/passwd", "etc/group"):
        (new / name).write_bytes((card / name).read_bytes())
    (python,) = (card / "usr/bin").glob("python3.*")
    (new / "usr/bin" / python.name).write_bytes(python.read_bytes())
    install_box(new, monkeypatch, tmp_path)
    assert flash(desk, desk.folder / "lobby-1.yaml", new) == 0
    assert slots(new).identity() == slots(card).identity()
    assert (slots(new).current / "credentials/broker").read_text() == "s3cret"
    assert load_box(slots(new).current / "config.yaml").digest == load_box(slots(card).current / "config.yaml").digest


def test_decommission(desk: Desk, card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["uninstall", "--purge", "--root", str(card)]) == 0
    left = {path: content for path, (_, content) in tree(card).items() if "facefleet" in path or b"facefleet" in bytes(
        content if isinstance(content, bytes) else content.encode())}  # fmt: skip
    assert left == {}
    assert "facefleet is gone" in capsys.readouterr().out


def test_rotate_the_signing_key(desk: Desk, card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = desk.folder / "lobby-1.yaml"
    old, new = desk.key, desk.folder / "new.key"
    assert main(["keys", "new", str(new)]) == 0
    new_id = key_id(load_public(new))
    assert flash(desk, config, card, "--key", str(new)) == 1, "not yet"
    assert "which is not trusted here" in capsys.readouterr().err

    assert flash(desk, config, card, "--trust", f"{new}.pub", "--dry-run") == 0
    assert f"keys believed afterwards: {new_id}" in capsys.readouterr().out
    assert flash(desk, config, card, "--trust", f"{new}.pub") == 0, "signed by the old one"
    assert set(load_trust(slots(card).trust)) == {new_id}
    capsys.readouterr()

    changed = desk.write("lobby-1.yaml", presence_s=30)
    assert flash(desk, changed, card, "--key", str(old)) == 1
    assert "which is not trusted here" in capsys.readouterr().err
    assert flash(desk, changed, card, "--key", str(new)) == 0
    assert flash(desk, changed, card, "--key", str(new), "--trust", f"{new}.pub") == 0
    assert "nothing would change" in capsys.readouterr().out


def test_both_keys_may_be_believed_while_a_fleet_changes_over(desk: Desk, card: Path) -> None:
    old, new = desk.key, desk.folder / "new.key"
    assert main(["keys", "new", str(new)]) == 0
    config = desk.folder / "lobby-1.yaml"
    assert flash(desk, config, card, "--trust", f"{old}.pub", "--trust", f"{new}.pub") == 0
    wait_for("the next second", lambda: time.time() >= int(slots(card).current_slot) + 1)  # each key counts for itself
    assert flash(desk, desk.write("lobby-1.yaml", presence_s=30), card, "--key", str(new)) == 0
    wait_for("the next second", lambda: time.time() >= int(slots(card).current_slot) + 1)
    assert flash(desk, desk.write("lobby-1.yaml", presence_s=40), card, "--key", str(old)) == 0
