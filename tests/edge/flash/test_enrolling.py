"""How a flash brings a certificate: a request comes back over a real SSH and is signed; a claim goes onto a card."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.ca import authority
from bridge.ca.names import parse_name
from bridge.cli import main as bridge
from edge.box import certificate
from edge.cli import main
from tests.bridge.ca.site import ROOT
from tests.bridge.ca.site import Site as Fleet
from tests.broker import MOSQUITTO
from tests.edge.flash.desk import Desk
from tests.edge.flash.sshd import SSH, SSHD, Sshd
from tests.edge.flash.test_ssh import Site
from tests.mjpeg_server import MjpegServer

over_ssh = pytest.mark.skipif(
    None in (SSHD, SSH, MOSQUITTO), reason="no OpenSSH server or no Mosquitto: apt install openssh-server mosquitto"
)
OWN: dict[str, Any] = {"host": "localhost", "port": 8883, "tls": {"own": True}}


# -- over SSH --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    with made.broker:
        yield made


@pytest.fixture(scope="module")
def camera() -> Iterator[MjpegServer]:
    made = MjpegServer(fps=10)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def site(fleet: Fleet, camera: MjpegServer, tmp_path: Path) -> Iterator[Site]:
    """Return a box that was never flashed, behind a real sshd, whose broker wants certificates."""
    sshd = Sshd(tmp_path / "ssh")
    sshd.start()
    made = Site(tmp_path, fleet.broker, camera, sshd)
    try:
        yield made
    finally:
        subprocess.run([made.systemctl, "stop", "unit"], check=False)
        sshd.stop()


def words(site: Site, fleet: Fleet, *more: str, box: str = "lobby-7", **changes: Any) -> list[str]:
    mqtt = OWN | {"port": fleet.port}
    return site.words(site.config("own.yaml", site="munich", box=box, mqtt=mqtt, **changes), *more, "--yes")


def everything(*folders: Path) -> bytes:
    return b"".join(path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file())


@pytest.mark.timeout(240)
@over_ssh
def test_a_first_flash_over_ssh_enrolls_the_box_and_its_key_stays_there(
    site: Site, fleet: Fleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = ["--ca", str(fleet.authority.folder)]
    fleet.authority.claim(parse_name("munich/lobby-7"), authority.now())  # its topics, for the broker
    fleet.broker.reload()
    own = f"{ROOT}/munich/lobby-7"
    with fleet.member("reader:anna", f"{own}/state") as reader:
        assert main(words(site, fleet, *ca)) == 0
        said = capsys.readouterr().out
        assert "certificate: the box has none; it makes a request, which is signed here" in said
        assert re.search(r"certificate: .*CN=lobby-7, until \d{4}", said)
        assert re.search(r"committed, counter \d+", said)
        assert reader.birth() == f"{own}/state"
    key = (site.root / "tls/box.key").read_bytes()
    assert (site.root / "tls/box.key").stat().st_mode & 0o777 == 0o600
    assert key not in everything(site.desk.folder, fleet.authority.folder)
    before = (site.root / "tls/box.pem").read_bytes()

    assert main(words(site, fleet, *ca)) == 0
    assert "nothing would change; nothing is sent" in capsys.readouterr().out
    monkeypatch.setattr("edge.flash.enrolling.RENEW_DAYS", 1000.0)
    assert main(words(site, fleet, *ca)) == 0
    said = capsys.readouterr().out
    assert re.search(r"certificate: good for 39\d days more; it asks for a new one\nthe config stays", said)
    assert (site.root / "tls/box.pem").read_bytes() != before
    assert (site.root / "tls/box.key").read_bytes() == key


@pytest.mark.timeout(240)
@over_ssh
def test_where_the_authority_is_elsewhere_request_and_certificate_travel_as_files(
    site: Site, fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csr, chain = tmp_path / "lobby-6.csr", tmp_path / "lobby-6.pem"
    assert main(words(site, fleet, box="lobby-6")) == 1
    assert "mqtt.tls.own is true and this box has no certificate" in capsys.readouterr().err
    assert main(words(site, fleet, "--csr", str(csr), box="lobby-6")) == 0
    assert '--csr lobby-6.csr > lobby-6.pem"; then: "facefleet-edge flash own.yaml' in capsys.readouterr().out
    enroll = ["ca", "enroll", "munich/lobby-6", "--dir", str(fleet.authority.folder), "--csr", str(csr)]
    assert bridge([*enroll, "--reload", fleet.broker.reload_command]) == 0
    chain.write_text(capsys.readouterr().out)
    assert main(words(site, fleet, "--certificate", str(chain), box="lobby-6")) == 0
    assert "committed" in capsys.readouterr().out


@pytest.mark.timeout(240)
@over_ssh
def test_an_authority_that_does_not_sign_leaves_the_box_as_it_was(
    site: Site, fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(site, fleet, "--ca", str(tmp_path), box="lobby-5")) == 1
    assert f"{tmp_path}/ca.pem cannot be read" in capsys.readouterr().err
    fleet.enroll("berlin/lobby-5")
    assert main(words(site, fleet, "--ca", str(fleet.authority.folder), box="lobby-5")) == 1
    said = capsys.readouterr().err
    assert "did not sign" in said
    assert "lobby-5 is enrolled as berlin/lobby-5, and ids are unique in the fleet" in said
    assert certificate.held(site.root / "tls") is None
    assert not (site.root / "current").exists()


# -- a card ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def card(tmp_path: Path) -> Path:
    (mounted := tmp_path / "card").mkdir()
    return mounted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an authority's folder."""
    made = tmp_path / "ca"
    assert bridge(["ca", "init", "--dir", str(made), "--host", "localhost"]) == 0
    return made


def claim(folder: Path, out: Path, name: str = "demo/lobby-1", *more: str) -> Path:
    assert bridge(["ca", "claim", name, "--dir", str(folder), "--out", str(out), *more]) == 0
    return out


def put(desk: Desk, card: Path, *more: str, **changes: Any) -> int:
    config = desk.write(**({"mqtt": OWN} | changes))
    return main(["flash", str(config), str(card), "--key", str(desk.key), "--yes", *more])


def test_a_claim_travels_beside_the_bundle_and_only_its_owner_may_read_it(
    desk: Desk, card: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = claim(folder, tmp_path / "lobby-1.claim")
    assert made.stat().st_mode & 0o777 == 0o600
    assert put(desk, card, "--claim", str(made)) == 0
    said = capsys.readouterr().out
    assert f"claim {made}: put beside the bundle" in said
    assert "claim written, mode 0600; the box uses it up at its first boot, until" in said
    there = card / "var/lib/facefleet/tls/claim.pem"
    assert there.read_bytes() == made.read_bytes()
    assert there.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE KEY" not in everything(card / "var/lib/facefleet/slots")
    assert "PRIVATE" not in said
    there.unlink()
    assert put(desk, card, "--claim", str(made)) == 0
    assert "the config stays" in capsys.readouterr().out
    assert there.read_bytes() == made.read_bytes(), "also where nothing else changed"


def test_a_claim_that_is_no_good_never_leaves_the_desk(
    desk: Desk, card: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, message: str, **changes: Any) -> None:
        capsys.readouterr()
        assert put(desk, card, "--claim", str(path), **changes) != 0
        assert re.search(message, capsys.readouterr().err)
        assert list(card.iterdir()) == []

    other = claim(folder, tmp_path / "other.claim", "demo/lobby-2")
    refused(other, r"is for demo/lobby-2, the config for demo/lobby-1; make one for it")
    old = claim(folder, tmp_path / "old.claim", "demo/lobby-1", "--days", "-1")
    refused(old, r'ended at .* UTC; make a new one: "facefleet-bridge ca claim demo/lobby-1"')
    good = claim(folder, tmp_path / "good.claim")
    refused(good, r"mqtt.tls.own is not true", mqtt={"port": 1883})
    good.chmod(0o644)
    refused(good, r'has mode 0644 and can be read by others, expected 0600; run "chmod 600')
    (junk := tmp_path / "junk.claim").write_text("junk")
    junk.chmod(0o600)
    refused(junk, r'is no claim; expected what "facefleet-bridge ca claim SITE/BOX" wrote')
    refused(tmp_path / "none.claim", r"none.claim cannot be read \(No such file")


def test_what_belongs_to_a_card_and_what_to_ssh_is_told(
    desk: Desk, card: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert put(desk, card, "--ca", str(folder)) == 1
    assert 'a card gets a claim: "--claim FILE"' in capsys.readouterr().err
    assert put(desk, card, "--csr", str(tmp_path / "x")) == 1
    assert 'a card gets a claim: "--claim FILE"' in capsys.readouterr().err
    assert put(desk, card, "--software", "--ca", str(folder)) == 1
    assert "a certificate comes with a config, not with --software" in capsys.readouterr().err
    assert put(desk, card, "--wait", "1") == 1
    assert 'name a reader\'s: "--reader DIR"' in capsys.readouterr().err
    assert list(card.iterdir()) == []


def test_a_refused_card_gets_no_claim(desk: Desk, card: Path, folder: Path, tmp_path: Path) -> None:
    assert put(desk, card) == 0
    assert put(desk, card, "--claim", str(claim(folder, tmp_path / "c", "demo/lobby-2")), box="lobby-2") == 1
    assert not (card / "var/lib/facefleet/tls").exists()


@pytest.mark.skipif(MOSQUITTO is None, reason="Mosquitto is not installed")
def test_wait_hears_the_first_birth_with_a_readers_certificate(
    desk: Desk, card: Path, fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = tmp_path / "reader"
    enroll = ["ca", "enroll", "reader:otto", "--dir", str(fleet.authority.folder), "--out", str(reader)]
    assert bridge([*enroll, "--reload", fleet.broker.reload_command]) == 0
    assert put(desk, card, "--wait", "2", "--reader", str(reader), mqtt=OWN | {"port": fleet.port}) == 1
    said = capsys.readouterr().err
    assert "no birth with config" in said
    assert "(nothing was heard)" in said, "it was let in, and nobody was born"


def test_an_authority_whose_key_is_open_signs_no_claim(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "ca.key").chmod(0o644)
    assert bridge(["ca", "claim", "demo/lobby-1", "--dir", str(folder)]) == 2
    assert "can be read by others" in capsys.readouterr().err
