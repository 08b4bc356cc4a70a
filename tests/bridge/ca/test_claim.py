"""P43 to P46: a one-time claim, from `ca claim` to a box that lives: a real Mosquitto, `ca serve`, and real boxes."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.ca import authority, files, requests
from bridge.ca.authority import Authority
from bridge.ca.names import parse_name
from bridge.cli import main as bridge
from bridge.errors import ConfigError
from edge.box import certificate, enrollment
from edge.box.doctor import examine
from edge.box.enrollment import Step, read_claim, sign
from edge.cli import main as edge
from edge.config import LoadedConfig, load_box
from edge.errors import EdgeError
from edge.link import Message
from edge.wire import CertificateAnswer, CertificateRequest
from tests.bridge.ca.site import ROOT, Site
from tests.broker import MOSQUITTO
from tests.product import Process, box_yaml, wait_for

needs_broker = pytest.mark.skipif(MOSQUITTO is None, reason="Mosquitto is not installed")
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    with made.broker:
        yield made


@pytest.fixture(scope="module")
def answered(site: Site) -> Iterator[Site]:
    """Return the site with `ca serve` at work."""
    with site.serving():
        yield site


def box(folder: Path, site: Site | int, name: str = "lobby-9", **more: Any) -> LoadedConfig:
    """Return a box as a card leaves it: a config that wants a certificate, and nothing else."""
    port = site if isinstance(site, int) else site.port
    mqtt = {"host": "localhost", "port": port, "tls": {"own": True}}
    words = {"site": "munich", "box": name, "heads": [], "health_s": 1, "mqtt": mqtt}
    config = load_box(box_yaml(folder, 0, "rtsp://127.0.0.1:1/door", **(words | more)))
    config.own_tls_dir.mkdir(parents=True)
    return config


def enroll(config: LoadedConfig, log: Path, *words: str) -> Process:
    return Process(["edge.cli", "certificate", "enroll", str(config.path), *words], log).start()


def key_of(config: LoadedConfig) -> bytes:
    return (config.own_tls_dir / "box.key").read_bytes()


# -- what a claim can do at the broker -------------------------------------------------------------------------------


@needs_broker
def test_a_claim_reaches_its_boxs_provisioning_and_nothing_else(site: Site, tmp_path: Path) -> None:
    claim = site.claim("munich/lobby-9", tmp_path / "claim.pem")
    own = f"{ROOT}/munich/lobby-9"
    with (
        site.member("reader:anna", f"{ROOT}/#") as reader,
        site.client(site.claim_settings(claim), f"{own}/certificate", f"{ROOT}/#", f"{own}/ack") as claimant,
        site.member("lobby-1") as other,
    ):
        for topic in (f"{own}/events", f"{own}/state", f"{ROOT}/munich/lobby-1/request", f"{own}/certificate"):
            claimant.say(topic, "forged")
        claimant.say(f"{own}/request", "mine")
        assert reader.next(30.0) == (f"{own}/request", "mine"), "the forged ones came first if they came at all"
        other.say(f"{ROOT}/munich/lobby-1/events", "not for a claim")
        assert claimant.next(1.0) is None


@needs_broker
def test_a_claim_that_was_taken_back_does_not_get_in(site: Site, tmp_path: Path) -> None:
    claim = site.claim("munich/lobby-8", tmp_path / "claim.pem")
    assert site.refusal(claim) == ""
    site.authority.revoke(parse_name("munich/lobby-8"), authority.now())
    site.broker.reload()
    assert site.refusal(claim) == "SSLV3_ALERT_CERTIFICATE_REVOKED"


@needs_broker
def test_an_expired_claim_does_not_get_in(site: Site, tmp_path: Path) -> None:
    claim = site.claim("munich/lobby-8", tmp_path / "claim.pem", ago=timedelta(days=3))
    assert site.refusal(claim) == "SSLV3_ALERT_CERTIFICATE_EXPIRED"


# -- a box and its claim ---------------------------------------------------------------------------------------------


@needs_broker
@pytest.mark.timeout(180)
def test_a_box_enrolls_is_born_and_its_claim_is_worth_nothing_any_more(answered: Site, tmp_path: Path) -> None:
    site, config = answered, box(tmp_path, answered)
    claim = site.claim("munich/lobby-9", config.own_tls_dir / "claim.pem")
    stolen = tmp_path / "stolen.pem"
    stolen.write_bytes(claim.read_bytes())
    stolen.chmod(0o600)
    enrolling = enroll(config, tmp_path / "enroll.log")
    assert enrolling.wait(90) == 0, enrolling.text()
    assert "CN=lobby-9" in enrolling.text()
    assert "box.key, mode 0600, not encrypted" in enrolling.text()
    assert "PRIVATE" not in enrolling.text()
    assert sorted(p.name for p in config.own_tls_dir.iterdir()) == ["box.key", "box.pem", "ca.pem", "claim.used"]
    assert (config.own_tls_dir / "box.key").stat().st_mode & 0o777 == 0o600

    (tmp_path / "thief").mkdir()
    thief = box(tmp_path / "thief", site)
    (thief.own_tls_dir / "claim.pem").write_bytes(stolen.read_bytes())
    (thief.own_tls_dir / "claim.pem").chmod(0o600)
    refused = enroll(thief, tmp_path / "thief.log")
    assert refused.wait(90) == 1
    assert "the claim was used already, for another key: was its card copied?" in refused.text()

    own = f"{ROOT}/munich/lobby-9"
    with site.member("reader:anna", f"{own}/state") as reader:
        running = Process(["edge.cli", "run", str(config.path)], tmp_path / "box.log").start()
        try:
            assert reader.birth() == f"{own}/state", running.text()
            wait_for("the claim is closed", lambda: site.refusal(stolen) == "SSLV3_ALERT_CERTIFICATE_REVOKED")
            wait_for("the box knows", lambda: not (config.own_tls_dir / "claim.used").exists())
        finally:
            running.stop()
    centre = b"".join(p.read_bytes() for p in site.authority.folder.rglob("*") if p.is_file())
    assert key_of(config) not in centre


@needs_broker
@pytest.mark.timeout(240)
@pytest.mark.parametrize("step", [*Step, "after asked", "after key on the disk", "after half stored"])
def test_a_power_cut_at_any_step_leads_to_a_box_that_is_or_can_be_enrolled(
    step: str, answered: Site, tmp_path: Path
) -> None:
    """P45."""
    name = f"cut-{step.replace(' ', '-')}"
    config = box(tmp_path, answered, name)
    answered.claim(f"munich/{name}", config.own_tls_dir / "claim.pem")
    # Only a second start finds a claim that has done its work and is to be forgotten.
    for cut_at in ["after half stored", step] if step == Step.FORGET else [step]:
        command = [sys.executable, "-m", "tests.bridge.ca.claim_cut", str(config.path), cut_at]
        cut = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=90, check=False)
        assert cut.returncode == -signal.SIGKILL, cut.stderr
    again = enroll(config, tmp_path / "again.log")
    assert again.wait(90) == 0, again.text()
    found = certificate.held(config.own_tls_dir)
    assert found is not None
    assert found.box == name
    assert not (config.own_tls_dir / "claim.pem").exists()
    book = json.loads((answered.authority.folder / "register.json").read_text())
    assert len(book["issued"][name]) == 1, "it was signed once, however often it was asked for"


@needs_broker
@pytest.mark.timeout(180)
def test_a_running_box_renews_its_certificate_untouched(answered: Site, tmp_path: Path) -> None:
    site, config = answered, box(tmp_path, answered, "renewed-1")
    folder = config.own_tls_dir
    chain = site.authority.enroll(
        parse_name("munich/renewed-1"), certificate.request(folder, "munich", "renewed-1"), authority.now(), 20.0
    )
    certificate.accept(folder, chain)
    key = key_of(config)
    running = Process(["edge.cli", "run", str(config.path)], tmp_path / "box.log").start()
    try:
        wait_for("a new certificate", lambda: _days(folder) > 300)
    finally:
        running.stop()
    assert key_of(config) == key


def _days(folder: Path) -> float:
    found = certificate.held(folder)
    return found.days(certificate.now()) if found else 0.0


@needs_broker
def test_whoever_answers_also_keeps_the_brokers_certificate_good(tmp_path: Path) -> None:
    """Else a fleet that renews itself would stand before a broker that has expired."""
    site = Site(tmp_path, ago=timedelta(days=360))
    with site.broker:
        assert site.broker_days() < 45
        with site.serving():
            wait_for("a broker with a new certificate", lambda: site.broker_days() > 300)


@needs_broker
def test_the_verb_answers_until_systemd_ends_it(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(str(tmp_path / "notify"))
    heard.settimeout(60)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    words = ["bridge.cli", "ca", "serve", "--dir", str(site.authority.folder), "--reload", site.broker.reload_command]
    serving = Process(words, tmp_path / "serve.log").start()
    with heard:
        try:
            while f"READY=1\nSTATUS=answering at localhost:{site.port}" not in (said := heard.recv(4096).decode()):
                assert serving.running, serving.text()
            while said != "WATCHDOG=1":
                said = heard.recv(4096).decode()
        finally:
            assert serving.stop() == 0, serving.text()
    assert "PRIVATE" not in serving.text()


def test_a_reload_that_fails_is_said_and_the_change_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--dir", str(tmp_path / "ca")]
    assert bridge(["ca", "init", "--host", "localhost", *folder, "--reload", "false"]) == 0
    assert bridge(["ca", "claim", "munich/lobby-1", *folder, "--out", str(tmp_path / "c")]) == 1
    assert '"false" failed' in capsys.readouterr().err
    assert bridge(["ca", "list", *folder]) == 0
    assert re.search(r"munich/lobby-1 claim:[0-9a-f]{16} .* [67] days", capsys.readouterr().out)
    assert bridge(["ca", "revoke", "munich/lobby-1", *folder, "--reload", "true"]) == 0
    assert bridge(["ca", "list", *folder]) == 0
    assert capsys.readouterr().out == ""


# -- what the authority refuses, whoever passes it on ----------------------------------------------------------------


class Claimed:
    """An authority with a claim, and a box with a key."""

    def __init__(self, folder: Path) -> None:
        self.now = authority.now()
        self.name = parse_name("munich/lobby-1")
        self.authority = Authority.make(folder / "ca", ["localhost"], 8883, folder / "broker", self.now)
        self.box = folder / "box" / "tls"
        self.claim = self.new_claim(folder / "claim.pem")

    def new_claim(self, path: Path, name: str = "munich/lobby-1") -> enrollment.Claim:
        files.write(path, self.authority.claim(parse_name(name), self.now), mode=0o600)
        return read_claim(path)

    def request(self, claim: enrollment.Claim | None = None, csr: bytes = b"") -> CertificateRequest:
        claim = claim or self.claim
        return sign("munich", "lobby-1", claim.certificate, claim.key, csr or self.csr())

    def csr(self, folder: str = "tls", name: str = "lobby-1") -> bytes:
        return certificate.request(self.box.with_name(folder), "munich", name)

    def refused(self, request: CertificateRequest, message: str, after: timedelta = timedelta(0)) -> None:
        before = (self.authority.folder / "register.json").read_bytes()
        with pytest.raises(ConfigError, match=message):
            self.authority.answer(self.name, request, self.now + after)
        assert (self.authority.folder / "register.json").read_bytes() == before


@pytest.fixture
def claimed(tmp_path: Path) -> Claimed:
    return Claimed(tmp_path)


@pytest.fixture
def honest(claimed: Claimed) -> CertificateRequest:
    return claimed.request()


def test_a_request_is_answered_once_and_again_with_the_same(claimed: Claimed) -> None:
    first = claimed.authority.answer(claimed.name, claimed.request(), claimed.now)
    assert claimed.authority.answer(claimed.name, claimed.request(), claimed.now + timedelta(hours=5)) == first
    claimed.refused(claimed.request(csr=claimed.csr("another")), "used already, for another key")


def test_an_expired_claim_is_refused_with_the_next_step(claimed: Claimed) -> None:
    told = r'was good until .*; make a new claim: "facefleet-bridge ca claim munich/lobby-1"'
    claimed.refused(claimed.request(), told, after=timedelta(days=8))


def test_a_request_for_another_box_is_refused(claimed: Claimed, tmp_path: Path) -> None:
    claimed.refused(
        claimed.request(csr=claimed.csr("other", "lobby-2")), "the request is of 'lobby-2', not of 'lobby-1'"
    )
    foreign = claimed.new_claim(tmp_path / "foreign.pem", "munich/lobby-2")
    claimed.refused(claimed.request(foreign), "is no claim of munich/lobby-1")


def test_a_broker_cannot_put_its_own_key_into_a_request(claimed: Claimed) -> None:
    """P44."""
    honest = claimed.request()
    forged = msgspec.structs.replace(honest, csr=claimed.csr("brokers").decode())
    claimed.refused(forged, "not signed by the key of the certificate shown")
    claimed.refused(msgspec.structs.replace(honest, signature="zz"), "not signed by the key")
    claimed.refused(msgspec.structs.replace(honest, certificate="junk"), "not of this authority")


def test_a_claim_of_another_authority_is_refused(claimed: Claimed, tmp_path: Path) -> None:
    other = Authority.make(tmp_path / "other", ["localhost"], 8883, tmp_path / "b", claimed.now)
    files.write(tmp_path / "c.pem", other.claim(claimed.name, claimed.now), mode=0o600)
    claimed.refused(claimed.request(read_claim(tmp_path / "c.pem")), "not of this authority")


def test_a_second_claim_closes_the_first(claimed: Claimed, tmp_path: Path) -> None:
    second = claimed.new_claim(tmp_path / "second.pem")
    claimed.refused(claimed.request(), "the claim was closed at")
    assert claimed.authority.answer(claimed.name, claimed.request(second), claimed.now)


def test_enrolling_by_hand_closes_the_claim(claimed: Claimed) -> None:
    claimed.authority.enroll(claimed.name, claimed.csr(), claimed.now)
    claimed.refused(claimed.request(), "the claim was closed at")


def test_a_revoked_box_renews_nothing(claimed: Claimed) -> None:
    chain = claimed.authority.answer(claimed.name, claimed.request(), claimed.now)
    certificate.accept(claimed.box, chain)
    key = certificate.read_key((claimed.box / "box.key").read_bytes())
    own = sign("munich", "lobby-1", (claimed.box / "box.pem").read_text(), key, claimed.csr())
    assert claimed.authority.answer(claimed.name, own, claimed.now) == chain, "good for long: the same one"
    later = claimed.now + timedelta(days=380)
    assert claimed.authority.answer(claimed.name, own, later) != chain
    new_key = sign("munich", "lobby-1", (claimed.box / "box.pem").read_text(), key, claimed.csr("another"))
    claimed.refused(new_key, "a new key needs a claim")
    claimed.authority.revoke(claimed.name, claimed.now)
    claimed.refused(own, "is none that munich/lobby-1 has now; enroll it again")


def test_the_first_word_with_its_own_certificate_closes_the_claim(claimed: Claimed) -> None:
    certificate.accept(claimed.box, claimed.authority.answer(claimed.name, claimed.request(), claimed.now))
    assert [m.used for m in claimed.authority.members()] == [False, True]
    key = certificate.read_key((claimed.box / "box.key").read_bytes())
    own = sign("munich", "lobby-1", (claimed.box / "box.pem").read_text(), key, claimed.csr())
    claimed.authority.answer(claimed.name, own, claimed.now)
    assert [str(m.name) for m in claimed.authority.members()] == ["munich/lobby-1"]
    claimed.refused(claimed.request(), "the claim was closed at")


@pytest.mark.parametrize("junk", [b"", b"{}", b"\xff", b"[]", b'{"certificate": 1}', b"x" * (1 << 20)])
def test_what_is_no_request_is_refused(junk: bytes) -> None:
    with pytest.raises(ConfigError, match=r"no request for a certificate|bytes, expected at most"):
        requests.read(junk)


@given(
    junk=st.binary(max_size=300), where=st.sampled_from(["certificate", "csr", "signature"]), text=st.text(max_size=80)
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_request_with_anything_in_it_is_refused_and_crashes_nothing(
    claimed: Claimed, honest: CertificateRequest, junk: bytes, where: str, text: str
) -> None:
    with pytest.raises(ConfigError):
        requests.read(junk)
    with pytest.raises(ConfigError):
        claimed.authority.answer(claimed.name, msgspec.structs.replace(honest, **{where: text}), claimed.now)
    with pytest.raises(ConfigError):  # signed by the holder of the claim, who may be the attacker
        claimed.authority.answer(claimed.name, claimed.request(csr=b"-" + text.encode("utf-8", "replace")), claimed.now)


# -- what a box refuses ----------------------------------------------------------------------------------------------


def test_an_answer_to_another_request_is_not_taken(claimed: Claimed) -> None:
    mine = sha256(b"mine").hexdigest()
    answer = CertificateAnswer(mine, refused="no")
    message = Message("t", msgspec.json.encode(answer), 1, False, 1, 1, False)
    assert enrollment._chain(message, "other") is None
    with pytest.raises(enrollment.RefusedError, match="the authority refuses: no"):
        enrollment._chain(message, mine)


def test_a_certificate_from_another_authority_than_the_claims_is_not_taken(claimed: Claimed, tmp_path: Path) -> None:
    other = Authority.make(tmp_path / "other", ["localhost"], 8883, tmp_path / "b", claimed.now)
    chain = other.enroll(claimed.name, claimed.csr(), claimed.now)
    with pytest.raises(EdgeError, match="another authority than the one this box believes"):
        certificate.accept(claimed.box, chain, pinned=claimed.claim.authority)
    assert certificate.held(claimed.box) is None


def test_a_box_whose_clock_is_at_1970_waits_for_the_time_and_says_so(tmp_path: Path) -> None:
    """Seen from the claim, which is of the year after next; nothing is asked, and the claim stays."""
    later = authority.now() + timedelta(days=700)
    made = Authority.make(tmp_path / "ca", ["localhost"], 1, tmp_path / "broker", later)
    config = box(tmp_path, 1)
    files.write(config.own_tls_dir / "claim.pem", made.claim(parse_name("munich/lobby-9"), later), mode=0o600)
    waiting = enroll(config, tmp_path / "enroll.log")
    wait_for("a word about the clock", lambda: "waiting until NTP has set it" in waiting.text())
    assert waiting.stop() == 1
    assert "told to end while waiting for the clock" in waiting.text()
    assert [p.name for p in config.own_tls_dir.iterdir()] == ["claim.pem"]


def test_a_claim_that_has_ended_says_what_to_do(tmp_path: Path) -> None:
    earlier = authority.now() - timedelta(days=30)
    made = Authority.make(tmp_path / "ca", ["localhost"], 1, tmp_path / "broker", earlier)
    config = box(tmp_path, 1)
    files.write(config.own_tls_dir / "claim.pem", made.claim(parse_name("munich/lobby-9"), earlier), mode=0o600)
    with pytest.raises(EdgeError, match=r'the claim ended at .*"facefleet-bridge ca claim munich/lobby-9", and put it'):
        enrollment.enroll(config)


def test_a_claim_others_may_read_and_one_for_another_box_are_refused(tmp_path: Path) -> None:
    made = Authority.make(tmp_path / "ca", ["localhost"], 1, tmp_path / "broker", authority.now())
    config = box(tmp_path, 1)
    path = config.own_tls_dir / "claim.pem"
    files.write(path, made.claim(parse_name("munich/lobby-2"), authority.now()), mode=0o640)
    with pytest.raises(EdgeError, match=r"has mode 0640 and can be read by others, expected 0600"):
        enrollment.enroll(config)
    path.chmod(0o600)
    with pytest.raises(EdgeError, match=r"is for munich/lobby-2, this box is munich/lobby-9"):
        enrollment.enroll(config)
    path.unlink()
    with pytest.raises(EdgeError, match=r"claim.pem cannot be read"):
        enrollment.enroll(config)


def test_a_box_without_a_certificate_does_not_start_and_names_the_ways_to_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = box(tmp_path, 1)
    assert edge(["run", str(config.path)]) == 2
    assert "this box has no certificate" in capsys.readouterr().err
    made = Authority.make(tmp_path / "ca", ["localhost"], 1, tmp_path / "broker", authority.now())
    folder = config.own_tls_dir
    csr = certificate.request(folder, "munich", "lobby-2")
    certificate.accept(folder, made.enroll(parse_name("munich/lobby-2"), csr, authority.now()))
    assert edge(["run", str(config.path)]) == 2
    assert "is of munich/lobby-2, the config of munich/lobby-9" in capsys.readouterr().err


def test_a_key_that_others_may_read_stops_a_box_with_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = box(tmp_path, 1)
    made = Authority.make(tmp_path / "ca", ["localhost"], 1, tmp_path / "broker", authority.now())
    csr = certificate.request(config.own_tls_dir, "munich", "lobby-9")
    certificate.accept(config.own_tls_dir, made.enroll(parse_name("munich/lobby-9"), csr, authority.now()))
    (config.own_tls_dir / "box.key").chmod(0o644)
    for words in (["run"], ["check"]):
        assert edge([*words, str(config.path)]) == 2
        said = capsys.readouterr().err
        assert "box.key has mode 0644 and can be read by others, expected 0600" in said
        assert "chmod 600" in said


def test_the_doctor_tells_how_long_a_certificate_is_good(tmp_path: Path) -> None:
    config = box(tmp_path, 1)
    made = Authority.make(tmp_path / "ca", ["localhost"], 1, tmp_path / "broker", authority.now())
    name, csr = parse_name("munich/lobby-9"), certificate.request(config.own_tls_dir, "munich", "lobby-9")

    def finding() -> tuple[bool, str]:
        (found,) = (f for f in examine(config) if f.thing == "certificate")
        return found.ok, found.text

    assert finding()[0] is False
    certificate.accept(config.own_tls_dir, made.enroll(name, csr, authority.now(), 100.5))
    assert finding() == (True, "munich/lobby-9, good for 100 days")
    certificate.accept(config.own_tls_dir, made.enroll(name, csr, authority.now() - timedelta(days=3), 1.0))
    assert finding()[0] is False
    assert "enroll this box anew, or set its clock" in finding()[1]
