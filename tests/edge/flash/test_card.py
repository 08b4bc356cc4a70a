"""A card at the integrator's desk: what is written on it, what is said, and what happens to a bad card."""

import os
import re
import stat
import subprocess
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import msgspec
import pytest

from edge.cli import main
from edge.config import load_box
from edge.errors import FlashError
from edge.flash import targets
from edge.flash.desk import build
from edge.flash.slots import Slots
from edge.flash.updater import Parcel
from edge.link import Link, LinkSettings
from edge.wire import BoxState, topic
from tests.broker import MOSQUITTO, Amqtt, Mosquitto
from tests.edge.flash.desk import Box, Desk, light_model


@pytest.fixture
def card(tmp_path: Path) -> Path:
    (mounted := tmp_path / "card").mkdir()
    return mounted


def words(desk: Desk, config: Path, card: Path, *more: str) -> list[str]:
    return ["flash", str(config), str(card), "--key", str(desk.key), "--yes", *more]


def state(card: Path) -> Slots:
    return Slots(card / "var/lib/facefleet")


def test_a_card_gets_config_models_secrets_and_the_key(
    desk: Desk, card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.secret("broker", "s3cret")
    config = desk.write(mqtt={"user": "box", "password": {"credential": "broker"}})
    assert main(words(desk, config, card)) == 0
    said = capsys.readouterr().out
    assert "secrets written anew: broker" in said
    assert "s3cret" not in said
    assert re.search(r"3 files, \d+ bytes, read back with equal digests\n.*: committed, counter \d+", said)
    slots = state(card)
    box = load_box(slots.current / "config.yaml")
    assert (box.state_dir, box.models_dir) == (slots.root, slots.current.resolve() / "models")
    assert box.box.mqtt.password is not None
    assert box.box.mqtt.password.read(box.credential_dirs) == "s3cret"
    secret = slots.current / "credentials" / "broker"
    assert [stat.S_IMODE(p.stat().st_mode) for p in (secret.parent, secret)] == [0o700, 0o600]


def test_the_next_flash_of_a_card_shows_only_what_changed(
    desk: Desk, card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(desk, desk.write(), card)) == 0
    capsys.readouterr()
    assert main(words(desk, desk.write(), card)) == 0
    assert "nothing would change; nothing is sent" in capsys.readouterr().out
    assert main(words(desk, desk.write(presence_s=30), card)) == 0
    said = capsys.readouterr().out
    assert "presence_s" in said
    assert "model" not in re.sub(r"^to flash: .*$|^[ +-].*$", "", said, flags=re.MULTILINE)


def test_a_dry_run_writes_nothing(desk: Desk, card: Path) -> None:
    assert main(words(desk, desk.write(), card, "--dry-run")) == 0
    assert list(card.iterdir()) == []


def test_a_card_of_another_box_is_refused(desk: Desk, card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(desk, desk.write(), card)) == 0
    assert main(words(desk, desk.write(box="lobby-2"), card)) == 1
    assert "bundle is for demo/lobby-2, this box is demo/lobby-1" in capsys.readouterr().err


def test_a_card_that_reads_back_something_else_is_refused(
    desk: Desk, card: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(words(desk, desk.write(), card)) == 0
    before = os.readlink(state(card).current)

    def worn_out(manifest: object, folder: Path) -> list[str]:
        path = folder / "models/tiny/model.onnx"
        path.write_bytes(b"\xff" + path.read_bytes()[1:])
        return real(manifest, folder)  # type: ignore[arg-type]

    real = targets.damaged
    monkeypatch.setattr(targets, "damaged", worn_out)
    assert main(words(desk, desk.write(presence_s=30), card)) == 1
    assert "models/tiny/model.onnx; the card is failing, use another" in capsys.readouterr().err
    assert os.readlink(state(card).current) == before


def test_a_target_that_is_neither_folder_nor_host_is_named(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(desk, desk.write(), Path("/no/such/card"))) == 1
    assert "is neither a folder here nor user@host; is the card mounted?" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 2 MB."""
    (mounted := tmp_path / "small").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount: hardware or container without it")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


@pytest.mark.root
def test_a_disk_that_is_full_half_way_leaves_the_box_as_it_was(
    desk: Desk, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slots, "free_bytes", lambda _: 1 << 40)  # somebody else takes the room after we looked
    box = Box(small_disk / "state")
    box.updater.apply(desk.parcel(1))
    (desk.folder / "models/tiny/model.onnx").unlink()
    light_model(desk.folder / "models", "tiny", os.urandom(3 << 20))
    before = box.contents()
    with pytest.raises(FlashError, match=r"model.onnx cannot be written \(No space left on device\); make room"):
        box.updater.apply(desk.parcel(2))
    assert (box.contents(), box.running()) == (before, 1)
    light_model(desk.folder / "models", "tiny", b"small again")
    assert box.updater.apply(desk.parcel(3)).outcome == "committed"


@pytest.mark.root
def test_a_read_only_root_is_named(desk: Desk, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slots, "free_bytes", lambda _: 1 << 40)
    box = Box(small_disk / "state")
    box.updater.apply(desk.parcel(1))
    parcel = desk.parcel(2)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(FlashError, match=r"cannot be written \(Read-only file system\)"):
        box.updater.apply(parcel)
    assert box.running() == 1


def test_a_clock_at_1970_on_the_box_changes_nothing(desk: Desk, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A box without a clock battery takes bundles all the same: newness is a counter, not a date."""
    monkeypatch.setattr("time.time", lambda: 3.0)
    assert box.updater.apply(Parcel(BytesIO(desk.made(1).path.read_bytes()), {}, desk.public)).outcome == "committed"


def test_wait_ends_with_the_first_birth_and_complains_without_one(
    desk: Desk, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "broker").mkdir()
    with (Mosquitto if MOSQUITTO else Amqtt)(folder) as broker:
        config = desk.write(mqtt={"port": broker.port, "protocol": "3.1.1"})
        assert main(words(desk, config, card, "--wait", "1")) == 1
        assert "is the card in the box, is the box on" in capsys.readouterr().err

        config = desk.write(mqtt={"port": broker.port, "protocol": "3.1.1"}, presence_s=30)

        def boot() -> None:
            while len(list(state(card).slots.glob("*"))) < 2:
                done.wait(0.05)
            done.wait(0.5)
            born = BoxState("online", "0" * 16, "boot", "machine-7", "n", config_digest=load_box(
                state(card).current / "config.yaml").digest)  # fmt: skip
            link.publish(topic("demo", "lobby-1", "state"), msgspec.json.encode(born), qos=1, retain=True)

        done = threading.Event()
        link = Link(
            LinkSettings("127.0.0.1", "box", broker.port, "3.1.1"),
            on_message=lambda _: None, on_up=lambda *_: None, on_down=lambda _: None,
        )  # fmt: skip
        link.start()
        thread = threading.Thread(target=boot)
        thread.start()
        assert main(words(desk, config, card, "--wait", "20")) == 0
        thread.join()
        link.stop()
        assert "born: machine machine-7" in capsys.readouterr().out


def test_bundle_and_keys_at_the_command_line(desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "own.key"
    assert main(["keys", "new", str(key)]) == 0
    assert main(["keys", "show", str(key)]) == 0
    name = re.findall(r"^key ([0-9a-f]{32})$", capsys.readouterr().out, re.MULTILINE)
    assert name[0] == name[1]
    out = tmp_path / "lobby.ffbundle"
    assert main(["bundle", "build", str(desk.write()), "-o", str(out), "--key", str(key)]) == 0
    assert main(["bundle", "verify", str(out), "--key", str(key) + ".pub"]) == 0
    assert f"signed by {name[0]}, all digests fit" in capsys.readouterr().out
    assert main(["bundle", "show", str(out), "--key", str(key)]) == 0
    assert '"box": "lobby-1"' in capsys.readouterr().out
    assert main(["bundle", "verify", str(out), "--key", str(desk.key)]) == 1
    assert "which is not trusted here" in capsys.readouterr().err
    out.write_bytes(out.read_bytes()[:-1])
    assert main(["bundle", "verify", str(out), "--key", str(key)]) == 1
    assert "too early; copy it again" in capsys.readouterr().err


def test_counters_of_a_key_only_grow(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = desk.write()
    first = build(path, tmp_path / "a", desk.key).head.manifest.counter
    monkeypatch.setattr("time.time", lambda: 100.0)  # the desk's clock fell back
    assert build(path, tmp_path / "b", desk.key).head.manifest.counter == first + 1
