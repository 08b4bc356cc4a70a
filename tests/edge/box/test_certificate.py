"""A box's key and certificate; the good case, with a real authority, is in tests/bridge/ca/test_authority.py."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from bridge.ca.authority import Authority
from bridge.ca.names import parse_name
from edge.box import certificate, facts
from edge.cli import main
from edge.errors import EdgeError

NOW = datetime.now(UTC).replace(microsecond=0)


def chain(folder: Path, request: bytes, name: str = "munich/lobby-1") -> bytes:
    made = Authority.make(folder, ["localhost"], 8883, folder / "broker", NOW)
    return made.enroll(parse_name(name), request, NOW)


def test_a_certificate_for_another_key_is_refused(tmp_path: Path) -> None:
    certificate.request(tmp_path / "mine", "munich", "lobby-1")
    foreign = chain(tmp_path / "ca", certificate.request(tmp_path / "other", "munich", "lobby-1"))
    with pytest.raises(EdgeError, match="for another key than the one of this box"):
        certificate.accept(tmp_path / "mine", foreign)
    assert not (tmp_path / "mine/box.pem").exists()


def test_a_certificate_beside_a_foreign_authority_is_refused(tmp_path: Path) -> None:
    request = certificate.request(tmp_path / "mine", "munich", "lobby-1")
    end = b"-----END CERTIFICATE-----\n"
    own = chain(tmp_path / "a", request).split(end)[0] + end
    foreign = chain(tmp_path / "b", request).split(end)[1] + end
    with pytest.raises(EdgeError, match="not signed by the authority beside it"):
        certificate.accept(tmp_path / "mine", own + foreign)


@pytest.mark.parametrize("junk", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_junk_is_refused_with_what_was_expected(tmp_path: Path, junk: bytes) -> None:
    certificate.request(tmp_path, "munich", "lobby-1")
    with pytest.raises(EdgeError, match="no certificate with its authority's"):
        certificate.accept(tmp_path, junk)


def test_a_damaged_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "box.key").write_text("half a k")
    (tmp_path / "box.key").chmod(0o600)
    with pytest.raises(EdgeError, match=r"box\.key is damaged; remove it, and enroll this box again"):
        certificate.request(tmp_path, "munich", "lobby-1")


def test_the_verb_asks_for_an_id_that_can_stand_in_a_topic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certificate", "request", "munich", "lobby/1", "--folder", str(tmp_path)]) == 2
    assert "box 'lobby/1' cannot be used in a topic" in capsys.readouterr().err


def test_a_certificate_that_cannot_be_read_has_no_days(tmp_path: Path) -> None:
    assert facts.certificate_days(tmp_path / "none.pem") is None
    (tmp_path / "junk.pem").write_text("junk")
    assert facts.certificate_days(tmp_path / "junk.pem") is None
