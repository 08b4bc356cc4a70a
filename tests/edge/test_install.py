"""Install into the root of another system and take it away again: nothing may stay, nothing foreign may go."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from edge.box import keystore
from edge.cli import main
from edge.errors import EdgeError
from edge.flash.manifest import counter_of
from edge.flash.slots import FlashState, Slots
from edge.install import program, system, users
from edge.publish.outbox import Outbox
from edge.wire import Covered, Presence, Vocabulary
from tests import wheelhouse
from tests.edge.publish.lives import kill

DATABASE, PRESENCE = UUID(int=1), Presence(0, 0, 60_000, 1, 500, 1)
PASSWD = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
GROUP = "root:x:0:\nvideo:x:44:anna\nnogroup:x:65534:\n"
SHADOW = "root:!:20000:0:99999:7:::\n"
GSHADOW = "root:*::\nvideo:*::anna\n"
SYSUSERS = (Path(__file__).parents[2] / "systemd/facefleet.sysusers").read_text()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what a bridge needs, as wheels; a box's would be 600 MB."""
    return wheelhouse.make(tmp_path_factory.mktemp("wheels"), "bridge")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the skeleton of a system with this Python."""
    made = tmp_path / "card"
    for folder in (
        "etc/systemd/system/multi-user.target.wants",
        "usr/bin",
        "usr/lib/systemd",
        "usr/local/bin",
        "var/lib",
    ):
        (made / folder).mkdir(parents=True)
    for name, text, mode in (
        ("passwd", PASSWD, 0o644), ("group", GROUP, 0o644), ("shadow", SHADOW, 0o640), ("gshadow", GSHADOW, 0o640),
    ):  # fmt: skip
        (made / "etc" / name).write_text(text)
        (made / "etc" / name).chmod(mode)
    python = made / f"usr/bin/python3.{sys.version_info.minor}"
    with Path(sys.executable).resolve().open("rb") as real:
        python.write_bytes(real.read(64))  # the ELF header is all that is looked at
    (made / "usr/lib/systemd/libsystemd-shared-252.so").touch()
    return made


def tree(root: Path) -> dict[str, tuple[int, bytes | str]]:
    """Return everything below a folder: mode, and content or where a link leads."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found[str(path.relative_to(root))] = (mode, content)
    return found


def test_a_bridge_is_installed_without_a_network_and_leaves_nothing_behind(
    root: Path, wheels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(root)
    assert main(["install", str(wheels), "--bridge", "--root", str(root)]) == 0
    assert os.readlink(root / "usr/local/bin/facefleet-bridge") == "/opt/facefleet/proven/bin/facefleet-bridge"
    name = os.readlink(root / "opt/facefleet/current")
    assert os.readlink(root / "opt/facefleet/proven") == name
    command = (root / "opt/facefleet" / name / "bin/facefleet-bridge").read_text()
    assert command.startswith(f"#!/opt/facefleet/{name}/bin/python -sE\n")
    wanted = root / "etc/systemd/system/multi-user.target.wants/facefleet-bridge.service"
    unit = os.readlink(root / os.readlink(wanted).lstrip("/"))
    assert unit == "/opt/facefleet/current/systemd/facefleet-bridge.service", "the unit comes and goes with the program"
    assert (root / unit.lstrip("/")).is_file()
    assert not list((root / "usr/local").rglob("backoff.conf")), "systemd 252 does not know RestartSteps="

    # The program itself, run with this Python in the place of the card's.
    packages = next((root / "opt/facefleet" / name).glob("lib/*/site-packages"))
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(packages)!r})\n"
         "from bridge.cli import main; sys.exit(main(['ca', '--help']))"],
        capture_output=True, text=True, check=False, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "enroll" in done.stdout

    assert main(["install", str(wheels), "--bridge", "--root", str(root)]) == 0, "a second time changes nothing"
    assert os.readlink(root / "opt/facefleet/current") == name
    assert main(["uninstall", "--root", str(root)]) == 0
    assert "facefleet is gone" in capsys.readouterr().out
    assert tree(root) == before


def box(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Install a box whose program is only its units: what pip does is tried with a bridge."""

    def units_only(wheels: Path, target: Path, what: str, python: Path) -> None:
        source = Path(__file__).parents[2] / "systemd"
        (target / program.SHARE).mkdir(parents=True)
        for file in source.iterdir():
            (target / program.SHARE / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(program, "_pip", units_only)
    wheels = tmp_path / "wheels"
    wheels.mkdir(exist_ok=True)
    (wheels / "facefleet-0.1.0-py3-none-any.whl").write_bytes(b"")
    system.install(root, wheels, "edge", print)


def test_a_box_gets_units_user_and_groups_and_loses_them_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = tree(root)
    box(root, monkeypatch, tmp_path)
    assert "facefleet:x:998:998:facefleet camera box:/var/lib/facefleet:" in (root / "etc/passwd").read_text()
    group = (root / "etc/group").read_text()
    assert "video:x:44:anna,facefleet\n" in group
    assert "render:x:999:facefleet\n" in group
    assert "facefleet:!*:" in (root / "etc/shadow").read_text(), "nobody logs in"
    assert stat.S_IMODE((root / "etc/shadow").stat().st_mode) == 0o640
    if os.geteuid() == 0:
        assert (root / "var/lib/facefleet").stat().st_uid == 998
    enabled = sorted(p.name for p in (root / "etc/systemd/system/multi-user.target.wants").iterdir())
    assert enabled == [
        "facefleet-edge.service",
        "facefleet-enroll.path",
        "facefleet-recover.service",
        "facefleet-spool.path",
    ]
    system.uninstall(root, print)
    assert tree(root) == before


def test_what_a_box_has_gathered_stays_unless_purged(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(root)
    box(root, monkeypatch, tmp_path)
    (root / "var/lib/facefleet/outbox.db").write_text("events")
    system.uninstall(root, print)
    assert "kept:" in capsys.readouterr().out
    assert (root / "var/lib/facefleet/outbox.db").exists()
    assert "facefleet:x:" in (root / "etc/passwd").read_text(), "its owner stays with it"
    box(root, monkeypatch, tmp_path)
    system.uninstall(root, print, purge=True)
    assert "outbox.db" not in str(tree(root))
    assert tree(root).keys() - before.keys() <= {"var/lib/facefleet", "var/lib/facefleet/spool"}


def test_a_newer_systemd_backs_off(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (root / "usr/lib/systemd/libsystemd-shared-252.so").rename(root / "usr/lib/systemd/libsystemd-shared-257.7.so")
    box(root, monkeypatch, tmp_path)
    drop_in = root / "usr/local/lib/systemd/system/facefleet-edge.service.d/backoff.conf"
    assert "RestartSteps=6" in drop_in.read_text()


def test_the_version_before_stays_and_older_ones_go(root: Path) -> None:
    for name in ("1", "2", "3"):
        (root / program.HOME / "slots" / name).mkdir(parents=True)
        program.make_current(root, name)
    programs = program.Programs(root / program.HOME)
    assert sorted(p.name for p in programs.slots.iterdir()) == ["2", "3"]
    assert (programs.current_slot, programs.proven_slot, programs.previous_slot) == ("3", "3", "2")
    assert programs.state() == FlashState(slot="3"), "a recovery does not take it for somebody's doing by hand"


def test_a_user_that_was_there_is_not_removed(root: Path) -> None:
    (root / "etc/passwd").write_text(PASSWD + "facefleet:x:500:500::/srv:/bin/sh\n")
    (root / "etc/group").write_text(GROUP + "facefleet:x:500:\n")
    made = users.make(root, SYSUSERS)
    assert made.users == ()
    users.remove(root, made)
    assert (root / "etc/passwd").read_text() == PASSWD + "facefleet:x:500:500::/srv:/bin/sh\n"


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        pytest.param(lambda root: (root / "etc/passwd").unlink(), "is no root of a Linux system", id="not a system"),
        pytest.param(
            lambda root: next((root / "usr/bin").iterdir()).rename(root / "usr/bin/python3.9"),
            "has python3.9, expected Python 3.11", id="old Python",
        ),
        pytest.param(lambda root: next((root / "usr/bin").iterdir()).unlink(), "has no usr/bin/python3.X", id="none"),
        pytest.param(
            lambda root: next((root / "usr/bin").iterdir()).write_bytes(b"\x7fELF" + bytes(14) + b"\xff\0"),
            "for another processor", id="another processor",
        ),
    ],
)  # fmt: skip
def test_a_root_that_does_not_fit_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prepare: object, said: str
) -> None:
    assert callable(prepare)
    prepare(root)
    with pytest.raises(EdgeError, match=said.replace(".", r"\.")):
        box(root, monkeypatch, tmp_path)


def test_a_programs_digest_is_never_taken_for_a_counter(tmp_path: Path) -> None:
    wheel, all_digits = tmp_path / "facefleet-0.1.0-py3-none-any.whl", 0
    for number in range(300):
        wheel.write_bytes(str(number).encode())
        name = program._name(tmp_path, "edge")
        all_digits += name[-8:].isdecimal()
        assert counter_of(name) == 0, name
    assert all_digits, "one in forty"
    assert [counter_of(name) for name in ("", "0.1.0-1a2b3c4d", "0.1.0-1790000000", "17")] == [0, 0, 1790000000, 17]


def test_a_lost_state_file_gives_no_counter_to_a_program_that_was_not_flashed(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    slots.prepare()
    slots.new_folder(name := "0.1.0-12345678")  # an older `install` could name it so
    slots.seal(name)
    slots.point_current(name)
    assert slots.state() == FlashState(slot=name)
    (slots.folder(name) / "manifest.sig").write_text("key signature")
    assert slots.state() == FlashState(slot=name, counters={"key": 12345678})


def test_an_empty_wheelhouse_says_how_to_fill_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(EdgeError, match=r"expected one; where there is a network, make it with .pip wheel"):
        system.install(root, tmp_path / "none", "edge", print)


def test_a_wheelhouse_without_a_needed_package_is_refused_and_leaves_no_program(root: Path, wheels: Path) -> None:
    with pytest.raises(EdgeError, match="do not make a program for python3"):
        system.install(root, wheels, "edge", print)  # the bridge's wheels: no model runtime
    assert not (root / "opt/facefleet/current").exists()


def test_uninstalling_what_is_not_there_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["uninstall", "--root", str(root)]) == 1
    assert "has no facefleet" in capsys.readouterr().err


def test_a_box_that_is_reset_is_nobody_and_keeps_its_program(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box(root, monkeypatch, tmp_path)
    installed = tree(root)
    state = root / "var/lib/facefleet"
    for name in (
        "identity.json",
        "flash.json",
        "trust/a.pub",
        "slots/1/config.yaml",
        "tls/box.pem",
        "spool/x.ffbundle",
    ):
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_text("x")
    (state / "current").symlink_to("slots/1")
    stores = [root / "etc/credstore", root / "etc/credstore.encrypted"]
    for store, name in zip(stores, (keystore.PLAIN_NAME, keystore.NAME), strict=True):
        store.mkdir(mode=0o700)
        (store / name).write_text("key")
        (store / "somebody.else").write_text("x")
    assert main(["reset", "--root", str(root)]) == 0
    for store in stores:
        assert [p.name for p in store.iterdir()] == ["somebody.else"]
        (store / "somebody.else").unlink()
        store.rmdir()
    assert tree(root) == installed
    assert "this box is nobody now" in capsys.readouterr().out


def open_outbox(state: Path, stream: int) -> Outbox:
    """Return the outbox of a running box."""
    made = Outbox(state / "outbox.db", stream=stream, vocabulary=Vocabulary(("cam",), ()), reserve_bytes=0)
    made.use(DATABASE)
    return made


def test_a_box_whose_events_the_centre_does_not_have_is_not_reset_unless_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box(root, monkeypatch, tmp_path)
    state = root / "var/lib/facefleet"
    running = open_outbox(state, stream=1)
    running.append([PRESENCE] * 7)
    running.commit(0.0)
    assert main(["reset", "--root", str(root)]) == 1
    assert "is in use by another process; stop that one first" in capsys.readouterr().err
    kill(running)
    assert main(["reset", "--root", str(root)]) == 1
    assert "7 events wait in " in capsys.readouterr().err
    again = open_outbox(state, stream=2)
    assert again.state.events == 7, "counting took nothing"
    again.commit(0.0)
    again.cover(DATABASE, [Covered(1, 7)], 0.0)
    again.close(1.0)
    assert main(["reset", "--root", str(root)]) == 0
    assert not (state / "outbox.db").exists()
    (state / "outbox.db").write_text("no outbox at all" * 100)
    assert main(["reset", "--root", str(root)]) == 1
    assert "nobody can say how many events wait" in capsys.readouterr().err
    assert main(["reset", "--root", str(root), "--discard-events"]) == 0
    assert not (state / "outbox.db").exists()
    assert main(["reset", "--root", str(tmp_path / "nothing")]) == 1


def test_an_event_that_comes_while_a_box_is_being_reset_is_counted_and_the_refused_box_runs_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box(root, monkeypatch, tmp_path)
    running = open_outbox(root / "var/lib/facefleet", stream=1)
    running.commit(0.0)
    asked: list[tuple[str, ...]] = []

    def systemctl(*words: str) -> None:
        if words[0] == "stop" and not asked:  # its last one, as it ends
            running.append([PRESENCE])
            running.close(1.0)
        asked.append(words)

    monkeypatch.setattr(system, "_live", lambda root: True)
    monkeypatch.setattr(system, "_systemctl", systemctl)
    assert main(["reset", "--root", str(root)]) == 1
    assert "1 events wait in " in capsys.readouterr().err
    (stop, *stopped), (start, *started) = asked
    assert (stop, start) == ("stop", "start")
    assert "facefleet-edge.service" in stopped
    assert started == [
        "facefleet-recover.service", "facefleet-edge.service", "facefleet-enroll.path", "facefleet-spool.path",
    ]  # fmt: skip
    assert main(["reset", "--root", str(root), "--discard-events"]) == 0
    assert asked[2:] == [("stop", *stopped), ("start", "facefleet-enroll.path", "facefleet-spool.path")]
