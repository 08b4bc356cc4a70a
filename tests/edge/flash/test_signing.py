"""Keys on disk: made once, private to their owner, understood by openssl, refused in every other shape."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from edge.errors import FlashError
from edge.flash import signing


def test_a_new_key_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "signing.key"
    public = signing.new_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert signing.load_public(public) == signing.load_private(path).public_key() == signing.load_public(path)
    before = path.read_bytes()
    with pytest.raises(FlashError, match="a key is never overwritten"):
        signing.new_key(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o610])
def test_a_key_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    signing.new_key(path := tmp_path / "k")
    path.chmod(mode)
    with pytest.raises(FlashError, match=f"mode 0{mode:o}.*chmod 600"):
        signing.load_private(path)


def test_what_is_no_signing_key_is_refused_by_name(tmp_path: Path) -> None:
    other = generate_private_key(SECP256R1())
    path = tmp_path / "k"
    path.touch(mode=0o600)
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(FlashError, match="expected Ed25519"):
        signing.load_private(path)
    path.write_bytes(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(FlashError, match="expected Ed25519"):
        signing.load_public(path)
    for junk in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff" * 100):
        path.write_bytes(junk)
        with pytest.raises(FlashError):
            signing.load_private(path)
        with pytest.raises(FlashError):
            signing.load_public(path)
    with pytest.raises(FlashError, match='make one: "facefleet-edge keys new'):
        signing.load_private(tmp_path / "missing")


def test_a_signature_for_something_else_says_nothing_about_a_bundle(tmp_path: Path) -> None:
    signing.new_key(path := tmp_path / "k")
    key = signing.load_private(path)
    trusted = {(name := signing.key_id(key.public_key())): key.public_key()}
    signing.verify(trusted, name, signing.sign(key, b"manifest"), b"manifest")
    with pytest.raises(FlashError, match="altered or damaged"):
        signing.verify(trusted, name, key.sign(b"manifest"), b"manifest")


def test_trust_becomes_exactly_the_keys_named(tmp_path: Path) -> None:
    keys = []
    for name in ("a", "b", "c"):
        signing.new_key(tmp_path / name)
        keys.append(signing.load_public(tmp_path / name))
    (folder := tmp_path / "trust").mkdir()
    signing.write_trust(folder, keys[:2])
    signing.write_trust(folder, keys[1:])
    assert set(signing.load_trust(folder)) == {signing.key_id(key) for key in keys[1:]}
