"""The authority as its verbs show it: what they print, what they refuse, what they leave on the disk."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from bridge.ca import authority, files
from bridge.ca.authority import Authority
from bridge.ca.names import parse_name
from bridge.cli import main
from bridge.errors import ConfigError
from edge.box import certificate, facts

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an authority's folder, made by the verb."""
    monkeypatch.setenv("FACEFLEET_CA", str(tmp_path / "ca"))
    assert main(["ca", "init", "--host", "mqtt.example.org", "--host", "192.0.2.7"]) == 0
    return tmp_path / "ca"


def box_request(folder: Path, site: str, box: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{box}.csr"
    path.write_bytes(certificate.request(folder / box / "tls", site, box))
    return path


def test_a_box_is_enrolled_by_a_request_and_its_key_stays_on_the_box(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csr = box_request(tmp_path, "munich", "lobby-1")
    capsys.readouterr()
    assert main(["ca", "enroll", "munich/lobby-1", "--csr", str(csr)]) == 0
    printed = capsys.readouterr()
    assert "reload" in printed.err
    said = certificate.accept(tmp_path / "lobby-1/tls", printed.out.encode())
    assert said.startswith("O=munich,CN=lobby-1")
    assert stat.S_IMODE((tmp_path / "lobby-1/tls/box.key").stat().st_mode) == 0o600
    assert 396 < (facts.certificate_days(tmp_path / "lobby-1/tls/box.pem") or 0) <= 397
    everything = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    assert (tmp_path / "lobby-1/tls/box.key").read_bytes() not in everything


def test_a_second_request_uses_the_same_key(tmp_path: Path) -> None:
    box_request(tmp_path, "munich", "lobby-1")
    first = (tmp_path / "lobby-1/tls/box.key").read_bytes()
    box_request(tmp_path, "munich", "lobby-1")
    assert (tmp_path / "lobby-1/tls/box.key").read_bytes() == first


def test_the_brokers_files_say_who_may_what(folder: Path, tmp_path: Path) -> None:
    assert main(["ca", "enroll", "munich/lobby-1", "--csr", str(box_request(tmp_path, "munich", "lobby-1"))]) == 0
    acl = (folder / "broker/facefleet.acl").read_text()
    assert "user lobby-1\ntopic write facefleet/1/munich/lobby-1/events\n" in acl
    assert "topic readwrite" in acl
    assert "write facefleet/1/munich/lobby-1/ack" not in acl
    conf = (folder / "broker/facefleet.conf").read_text()
    for line in ("require_certificate true", "use_identity_as_username true", "allow_anonymous false"):
        assert line in conf
    assert stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "broker/broker.key").stat().st_mode) & 0o007 == 0


def test_a_bridge_beside_the_authority_gets_its_key_made(folder: Path, tmp_path: Path) -> None:
    assert main(["ca", "enroll", "bridge:centre", "--out", str(tmp_path / "etc")]) == 0
    assert sorted(p.name for p in (tmp_path / "etc").iterdir()) == ["ca.pem", "centre.key", "centre.pem"]
    assert stat.S_IMODE((tmp_path / "etc/centre.key").stat().st_mode) == 0o600


def test_revoked_and_enrolled_again_the_old_certificate_stays_revoked(folder: Path, tmp_path: Path) -> None:
    csr = str(box_request(tmp_path, "munich", "lobby-1"))
    for words in (["enroll", "munich/lobby-1", "--csr", csr], ["revoke", "munich/lobby-1"]):
        assert main(["ca", *words]) == 0
    first = issued(folder, "lobby-1")
    assert serials(folder) == {first.serial_number}
    assert "lobby-1" not in (folder / "broker/facefleet.acl").read_text()
    assert main(["ca", "enroll", "munich/lobby-1", "--csr", csr]) == 0
    assert serials(folder) == {first.serial_number}
    assert issued(folder, "lobby-1").serial_number != first.serial_number


def test_a_box_that_moves_is_revoked_first_because_ids_are_unique_in_the_fleet(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csr = str(box_request(tmp_path, "munich", "lobby-1"))
    assert main(["ca", "enroll", "munich/lobby-1", "--csr", csr]) == 0
    assert main(["ca", "enroll", "berlin/lobby-1", "--csr", csr]) == 2
    assert "lobby-1 is enrolled as munich/lobby-1" in capsys.readouterr().err
    assert main(["ca", "revoke", "munich/lobby-1"]) == 0
    assert main(["ca", "enroll", "berlin/lobby-1", "--csr", csr]) == 0
    assert "facefleet/1/munich/" not in (folder / "broker/facefleet.acl").read_text()


def test_only_what_ends_soon_is_renewed_for_the_key_it_has(tmp_path: Path) -> None:
    made = Authority.make(tmp_path / "ca", ["localhost"], 8883, tmp_path / "broker", NOW)
    keys = {}
    for name, days in (("munich/old-1", 20.0), ("munich/young-1", 300.0)):
        site, box = name.split("/")
        request = certificate.request(tmp_path / name, site, box)
        made.enroll(parse_name(name), request, NOW, days)
        keys[name] = x509.load_pem_x509_csr(request).public_key()
    later = NOW + timedelta(days=5)
    assert [p.name for p in made.renew([], later, within_days=45)] == ["old-1.pem"]
    renewed = issued(tmp_path / "ca", "old-1")
    assert renewed.public_key() == keys["munich/old-1"]
    assert renewed.not_valid_after_utc == later + timedelta(days=397)


def test_the_brokers_certificate_is_renewed_along(tmp_path: Path) -> None:
    made = Authority.make(tmp_path / "ca", ["localhost"], 8883, tmp_path / "broker", NOW)
    before = (tmp_path / "broker/broker.pem").read_bytes()
    made.renew([], NOW + timedelta(days=300), within_days=45)
    assert (tmp_path / "broker/broker.pem").read_bytes() == before
    made.renew([], NOW + timedelta(days=360), within_days=45)
    assert (tmp_path / "broker/broker.pem").read_bytes() != before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["enroll", "lobby-1"], "is no name, expected SITE/BOX", id="no site"),
        pytest.param(["enroll", "munich/+"], "is no name, expected SITE/BOX", id="wildcard"),
        pytest.param(["enroll", "bridge/centre"], 'no site can be called "bridge"', id="the bridges' topic"),
        pytest.param(["enroll", f"bridge:{'x' * 60}"], "expected at most 64", id="longer than X.520 allows"),
        pytest.param(["revoke", "munich/never-1"], "was never enrolled; enrolled are: nobody", id="unknown"),
        pytest.param(["init", "--host", "x"], "holds an authority already", id="a second authority"),
        pytest.param(["enroll", "a/b", "--csr", "/nowhere"], "/nowhere cannot be read", id="no request"),
        pytest.param(["enroll", "a/b", "--csr", "/etc/hostname"], "this is no signing request", id="not a request"),
    ],
)
def test_a_mistake_is_one_message_and_changes_nothing(
    folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert main(["ca", *words]) == 2
    assert said in capsys.readouterr().err
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}
    assert after == {p: data for p, data in before.items() if p.name != "lock"}


def test_a_request_of_another_box_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the request is of 'lobby-1', not of 'lobby-2'"):
        Authority(folder).enroll(
            parse_name("munich/lobby-2"), box_request(tmp_path, "munich", "lobby-1").read_bytes(), NOW
        )


def test_a_key_that_others_may_read_is_refused(folder: Path) -> None:
    (folder / "ca.key").chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others"):
        Authority(folder)


def test_list_shows_everybody_and_how_long(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for box in ("lobby-1", "lobby-2"):
        main(["ca", "enroll", f"munich/{box}", "--csr", str(box_request(tmp_path, "munich", box))])
    main(["ca", "revoke", "munich/lobby-2"])
    capsys.readouterr()
    assert main(["ca", "list"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("munich/lobby-1 ")
    assert first.endswith(" days")
    assert second.startswith("munich/lobby-2 ")
    assert second.endswith("revoked")


def test_the_authority_makes_a_request_for_whoever_lives_beside_it() -> None:
    _, request = authority.request(parse_name("bridge:centre"))
    (name,) = x509.load_pem_x509_csr(request).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "bridge:centre"


def issued(folder: Path, user: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "issued" / f"{user}.pem").read_bytes())


def serials(folder: Path) -> set[int]:
    revoked = x509.load_pem_x509_crl((folder / "broker/crl.pem").read_bytes())
    return {entry.serial_number for entry in revoked}


def test_enrolling_the_same_key_again_leaves_the_certificate_it_has_good_until_the_new_one_came(
    folder: Path, tmp_path: Path
) -> None:
    made, name = Authority(folder), parse_name("munich/lobby-1")
    csr = box_request(tmp_path, "munich", "lobby-1").read_bytes()
    made.enroll(name, csr, NOW)
    made.enroll(name, csr, NOW)
    assert serials(folder) == set()
    made.enroll(name, box_request(tmp_path / "new", "munich", "lobby-1").read_bytes(), NOW)
    assert len(serials(folder)) == 2, "another key locks the one before out"


@pytest.mark.parametrize("since", ["cut before its files", "cut between its files", "renewed by hand"])
def test_who_answers_goes_to_the_broker_with_the_newest_certificate_and_its_key(folder: Path, since: str) -> None:
    there, now = Authority(folder), authority.now()
    pem, key = there.serving(now)
    if since == "renewed by hand":
        there.renew([authority.SERVE], now, within_days=45)
    else:
        made, asked = authority.request(authority.SERVE)
        there.enroll(authority.SERVE, asked, now)  # which revokes the one in serve.pem
        if since == "cut between its files":
            files.write(key, made, mode=0o600)
    assert there.serving(now) == (pem, key)
    shown = x509.load_pem_x509_certificate(pem.read_bytes())
    assert certificate.read_key(key.read_bytes()).public_key() == shown.public_key()
    crl = x509.load_pem_x509_crl((there.broker_folder / "crl.pem").read_bytes())
    assert crl.get_revoked_certificate_by_serial_number(shown.serial_number) is None
    whole = pem.read_bytes()
    assert there.serving(now)[0].read_bytes() == whole, "one that is whole stays"


def test_whoever_reads_the_files_of_ca_serve_while_they_are_renewed_finds_a_pair_that_fits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, now, written = Authority(folder), authority.now(), []
    pem, key = there.serving(now)
    before, write = pem.read_bytes(), files.write

    def watched(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        write(path, data, mode=mode)
        written.append(path.name)
        ssl.create_default_context().load_cert_chain(pem, key)  # as a reconnect does

    monkeypatch.setattr(files, "write", watched)
    there.serving(now + timedelta(days=authority.DAYS - authority.RENEW_DAYS + 1))
    assert "serve.pem" in written
    assert pem.read_bytes() != before


def test_a_revoked_key_of_ca_serve_is_replaced(folder: Path) -> None:
    there, now = Authority(folder), authority.now()
    pem, key = there.serving(now)
    before = key.read_bytes()
    there.revoke(authority.SERVE, now)
    there.serving(now)
    assert key.read_bytes() != before
    ssl.create_default_context().load_cert_chain(pem, key)
