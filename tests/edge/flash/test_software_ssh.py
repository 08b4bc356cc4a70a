"""`flash --software` at the command line: a real box behind a real sshd gets a new program, keeps it, or goes back."""

import re
import sysconfig
from pathlib import Path

import pytest

from edge.cli import main
from edge.flash.slots import FlashState
from edge.install import wheels
from edge.install.program import Programs, assemble
from tests.edge.flash.programs import PYTHON, wheel
from tests.edge.flash.sshd import SSH, SSHD
from tests.edge.flash.test_ssh import REPOSITORY, Site, site

__all__ = ["site"]  # a fixture

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(SSHD is None or SSH is None, reason="no OpenSSH server: apt install openssh-server"),
]


def real_wheel(folder: Path, version: str, **changes: bytes) -> Path:
    """Write a wheel of this checkout's code; what it needs is found in this environment, by a .pth file."""
    files = {p.relative_to(REPOSITORY).as_posix(): p.read_bytes() for p in (REPOSITORY / "edge").rglob("*.py")}
    files |= {
        f"facefleet-{version}.data/data/share/facefleet/systemd/{p.name}": p.read_bytes()
        for p in (REPOSITORY / "systemd").iterdir()
    }
    files["needed.pth"] = f"{sysconfig.get_paths()['purelib']}\n".encode()
    return wheel(folder, "facefleet", version, files | changes, Provides_Extra=["edge"])


@pytest.fixture
def updatable(site: Site) -> tuple[Site, Programs]:
    """Return a site whose box runs an installed program 1.0."""
    programs = Programs(site.folder / "opt")
    if not programs.current_slot:
        programs.prepare()
        old = real_wheel(site.folder / "wheels", "1.0")

        def fill(into: Path) -> None:
            wheels.unpack(old, into, 1 << 30)

        assemble(programs.new_folder("1.0-installed"), programs.folder("1.0-installed"), PYTHON, "edge", fill)
        programs.seal("1.0-installed")
        programs.point_current("1.0-installed")
        programs.point_proven("1.0-installed")
        programs.write_state(FlashState(slot="1.0-installed"))
        text = site.systemctl.read_text()
        program = programs.current / "bin/facefleet-edge"
        site.systemctl.write_text(text.replace("exec ", f"FACEFLEET_TEST_PROGRAM={program} exec ", 1))
        assert main(site.words(site.config("first.yaml"), "--yes")) == 0
    return site, programs


def words(site: Site, programs: Programs, source: Path, *more: str) -> list[str]:
    return [*site.words(source, "--software", "--programs", str(programs.root)), *more]


def test_a_program_is_shown_flashed_and_proven(
    updatable: tuple[Site, Programs], capsys: pytest.CaptureFixture[str]
) -> None:
    site, programs = updatable
    before = site.status()
    assert before.program == "1.0-installed"
    capsys.readouterr()
    new = real_wheel(site.folder / "new", "1.1")
    assert main(words(site, programs, new, "--dry-run")) == 0
    said = capsys.readouterr().out
    assert "facefleet: 1.0 → 1.1" in said
    assert "to flash: facefleet 1.1 in 1 wheels for every box, counter" in said
    assert "bytes to send, then the service restarts and proves itself" in said
    assert site.status().nonce == before.nonce, "a dry run"

    assert main(words(site, programs, new, "--yes")) == 0
    said = capsys.readouterr()
    assert re.search(r"committed, counter \d+", said.out), said
    assert "camera door: streaming" in said.out, "the box's own health report"
    steps = list(dict.fromkeys(line.split(":")[0] for line in said.err.splitlines()))
    assert steps == [
        "tidy", "stage", "build", "seal", "check", "trial", "swap", "restart", "prove", "commit", "previous", "proven",
        "report",
    ]  # fmt: skip
    after = site.status()
    assert after.program == programs.current_slot == programs.proven_slot
    assert after.health is not None
    assert after.health.software == "1.1"
    assert after.config_digest == before.config_digest

    assert main(words(site, programs, new, "--yes")) == 0
    assert "nothing would change; nothing is sent" in capsys.readouterr().out


def test_a_program_that_cannot_serve_is_taken_back_with_exit_code_3(
    updatable: tuple[Site, Programs], capsys: pytest.CaptureFixture[str]
) -> None:
    site, programs = updatable
    before = programs.current_slot
    bad = real_wheel(site.folder / "bad", "1.2", **{"edge/app.py": b"def run_box(*_, **__): raise SystemExit(7)\n"})
    assert main(words(site, programs, bad, "--yes")) == 3
    assert re.search(r"rolled_back, counter \d+: .*unit ended with 7", capsys.readouterr().out)
    assert (programs.current_slot, site.status().program) == (before, before)


def test_a_program_that_does_not_understand_the_config_is_refused_by_its_own_code(
    updatable: tuple[Site, Programs], capsys: pytest.CaptureFixture[str]
) -> None:
    site, programs = updatable
    nonce = site.status().nonce
    picky = (REPOSITORY / "edge/config.py").read_bytes() + b"\ndef load_box(path): raise ConfigError('too old')\n"
    source = real_wheel(site.folder / "picky", "1.3", **{"edge/config.py": picky})
    assert main(words(site, programs, source, "--yes")) == 1
    assert "refused it: too old" in capsys.readouterr().err
    assert site.status().nonce == nonce, "nothing was restarted"


def test_options_that_make_no_sense_together_are_refused(
    updatable: tuple[Site, Programs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, programs = updatable
    source = real_wheel(site.folder / "odd", "1.4")
    assert main(words(site, programs, source, "--wait")) == 1
    assert main(["flash", str(source), str(tmp_path), "--software", "--key", str(site.desk.key)]) == 1
    assert main([*site.words(site.config("first.yaml")), "--downgrade"]) == 1
    said = capsys.readouterr().err
    assert "--wait belongs to a card" in said
    assert f'is a card: write its program with "facefleet-edge install WHEELS --root {tmp_path}"' in said
    assert "--downgrade belongs to --software" in said
