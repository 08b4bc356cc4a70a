"""A card's first boot for real, in a Debian tree under systemd-nspawn: a claim becomes a certificate, a key is sealed.

The broker and `ca serve` run outside of the container, on the network it shares.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge.box import certificate
from edge.cli import main
from edge.install import system
from tests import wheelhouse
from tests.bridge.ca.site import ROOT, Site
from tests.broker import MOSQUITTO
from tests.product import wait_for
from tests.systemd.test_boot import DATABASE, debian  # noqa: F401  (a fixture)
from tests.systemd.test_boot import tree as tree

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(MOSQUITTO is None, reason="Mosquitto is not installed"),
]
BOOT_S = 120.0
MQTT = {"host": "127.0.0.1", "tls": {"own": True}}
CONFIG = {
    "site": "munich", "box": "lobby-9", "database": DATABASE, "heads": [], "threads": 1,
    "cameras": [{"id": "door", "source": {"uri": "rtsp://127.0.0.1:1/door"}}],
}  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (folder := tmp_path / "site").mkdir()
    made = Site(folder)
    with made.broker, made.serving():
        yield made


@contextmanager
def booted(tree: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Boot a tree on this machine's network, as long as the block runs."""
    command = ["systemd-nspawn", "--quiet", "-D", str(tree), "--boot", "--register=no", "--keep-unit"]
    with log.open("ab") as out:
        container = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield container
    finally:
        container.terminate()  # systemd-nspawn passes it on: the container's systemd powers off, in order
        try:
            container.wait(BOOT_S)
        except subprocess.TimeoutExpired:
            container.terminate()  # a second one does not ask
            container.wait(30)


def secrets_in_clear(folder: Path) -> list[str]:
    """Return the files below a folder that hold a private key for everybody with the card to read."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return [p.relative_to(folder).as_posix() for p in files if b"PRIVATE KEY-----" in p.read_bytes()]


def test_a_card_with_a_claim_becomes_a_box_that_is_born(tree: Path, site: Site, tmp_path: Path) -> None:
    system.install(tree, wheelhouse.make(tmp_path / "wheels", "edge"), "edge", print)
    born(tree, site, tmp_path)
    assert secrets_in_clear(tree / "etc") == []
    assert (tree / "etc/credstore.encrypted/facefleet.box.key").stat().st_mode & 0o777 == 0o600

    # The same box without systemd-creds, as if its certificate had been lost.
    (tree / "usr/bin/systemd-creds").unlink()
    (tree / "etc/credstore.encrypted/facefleet.box.key").unlink()
    shutil.rmtree(tree / "var/lib/facefleet/tls")
    born(tree, site, tmp_path)
    assert secrets_in_clear(tree / "etc") == ["credstore/facefleet.box.plain.key"]
    assert (tree / "etc/credstore/facefleet.box.plain.key").stat().st_mode & 0o777 == 0o600
    assert not (tree / "etc/credstore.encrypted/facefleet.box.key").exists()


def born(tree: Path, site: Site, folder: Path) -> None:
    """Flash a tree with a fresh claim, boot it, hear its birth, power it off; check what is left on its disk."""
    (desk := folder / "desk").mkdir(exist_ok=True)
    (desk / "box.yaml").write_text(json.dumps(CONFIG | {"mqtt": MQTT | {"port": site.port}}))
    if not (desk / "signing.key").exists():
        assert main(["keys", "new", str(desk / "signing.key")]) == 0
    claim = site.claim("munich/lobby-9", desk / "lobby-9.claim")
    flash = ["flash", str(desk / "box.yaml"), str(tree), "--yes", "--key", str(desk / "signing.key")]
    assert main([*flash, "--claim", str(claim)]) == 0
    state, own, console = tree / "var/lib/facefleet", f"{ROOT}/munich/lobby-9", folder / "console.log"
    with site.member("reader:anna", f"{own}/state") as reader, booted(tree, console) as container:
        heard = reader.birth(BOOT_S)
        assert "rdering cycle" not in console.read_text(errors="replace")
        if heard is None and container.poll() is not None:
            pytest.skip(f"no container can be booted here: {console.read_text()[-300:]}")
        assert heard is not None, journal(tree)
        wait_for("the claim is closed", lambda: not (state / "tls/claim.used").exists(), BOOT_S)
        wait_for("the broker knows", lambda: site.refusal(claim) == "SSLV3_ALERT_CERTIFICATE_REVOKED")
    assert sorted(p.name for p in (state / "tls").iterdir()) == ["box.pem", "ca.pem"]
    found = certificate.held(state / "tls")
    assert found is not None
    assert found.box == "lobby-9"
    assert secrets_in_clear(state) == []
    said = journal(tree)
    assert "PRIVATE" not in said
    assert re.search(r"CN=lobby-9.*until \d{4}", said)


def journal(tree: Path) -> str:
    """Return what our units said in the container."""
    if shutil.which("journalctl") is None:
        return ""
    command = ["journalctl", "-D", str(tree / "var/log/journal"), "--no-pager", "-o", "cat", "-u", "facefleet-*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout[-6000:]
