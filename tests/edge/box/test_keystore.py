"""A box's key at rest: encrypted by the real systemd-creds where it is installed, else 0600; never made twice."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from edge.box import certificate, keystore
from edge.box.keystore import NAME, PLAIN_NAME, KeyFile, SystemStore, key_store
from edge.errors import EdgeError

CREDS = shutil.which("systemd-creds")
needs_creds = pytest.mark.skipif(CREDS is None, reason="systemd-creds is not installed: systemd 250 or newer has it")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SystemStore:
    """Return a store of its own, with a host key of its own: this machine's is left alone."""
    monkeypatch.setenv("SYSTEMD_CREDENTIAL_SECRET", str(tmp_path / "host.secret"))
    return SystemStore(tmp_path / "credstore", tmp_path / "credstore.encrypted")


def files(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("credstore*/*")}


@needs_creds
def test_a_key_is_encrypted_at_rest_and_used_again(store: SystemStore, tmp_path: Path) -> None:
    first = certificate.request(tmp_path / "tls", "munich", "lobby-1", store)
    assert files(tmp_path) == {f"credstore.encrypted/{NAME}": 0o600}
    pem = store.read()
    assert pem is not None
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    at_rest = store.encrypted.read_bytes()
    assert b"PRIVATE" not in at_rest
    assert not list((tmp_path / "tls").iterdir()), "nothing of it lies beside the certificate"
    second = certificate.request(tmp_path / "tls", "munich", "lobby-1", store)
    keys = {x509.load_pem_x509_csr(csr).public_key().public_numbers() for csr in (first, second)}  # type: ignore[union-attr]
    assert len(keys) == 1
    assert store.encrypted.read_bytes() == at_rest


@needs_creds
def test_systemd_opens_it_under_the_name_the_unit_gives_it(store: SystemStore, tmp_path: Path) -> None:
    store.write(b"the key")
    unit = (Path(__file__).parents[3] / "systemd/facefleet-edge.service").read_text()
    assert f"LoadCredentialEncrypted=box.key:{NAME}\n" in unit
    opened = subprocess.run(
        ["systemd-creds", "decrypt", "--name=box.key", str(store.encrypted), "-"], capture_output=True, check=True
    )
    assert opened.stdout == b"the key"
    other = subprocess.run(["systemd-creds", "decrypt", "--name=other", str(store.encrypted), "-"], capture_output=True)
    assert other.returncode != 0


@needs_creds
def test_a_key_from_another_machine_is_named_with_the_way_out(
    store: SystemStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(b"the key")
    subprocess.run(["systemd-creds", "setup"], env={"SYSTEMD_CREDENTIAL_SECRET": str(tmp_path / "other")}, check=True,
                   capture_output=True)  # fmt: skip
    monkeypatch.setenv("SYSTEMD_CREDENTIAL_SECRET", str(tmp_path / "other"))
    with pytest.raises(
        EdgeError, match=r"systemd-creds decrypt failed: .*; a key from another machine.*enroll this box"
    ):
        store.read()


def test_without_systemd_creds_it_is_a_file_that_the_unit_loads(tmp_path: Path) -> None:
    store = SystemStore(tmp_path / "credstore", tmp_path / "credstore.encrypted", command="no-such-program")
    assert "mode 0600, not encrypted (systemd-creds is not installed)" in store.write(b"the key")
    assert files(tmp_path) == {f"credstore/{PLAIN_NAME}": 0o600}
    assert store.read() == b"the key"
    unit = (Path(__file__).parents[3] / "systemd/facefleet-edge.service").read_text()
    assert f"LoadCredential=box.plain.key:{PLAIN_NAME}\n" in unit


def test_where_systemd_creds_fails_the_key_is_kept_all_the_same(tmp_path: Path) -> None:
    (broken := tmp_path / "systemd-creds").write_text("#!/bin/sh\necho no TPM here >&2\nexit 1\n")
    broken.chmod(0o755)
    store = SystemStore(tmp_path / "credstore", tmp_path / "credstore.encrypted", command=str(broken))
    assert "systemd-creds encrypt failed: no TPM here" in store.write(b"the key")
    assert store.read() == b"the key"
    assert not store.encrypted.exists()


def test_what_systemd_creds_cannot_read_back_is_not_believed(tmp_path: Path) -> None:
    (forgetful := tmp_path / "systemd-creds").write_text("#!/bin/sh\ncat > /dev/null\necho something else\n")
    forgetful.chmod(0o755)
    store = SystemStore(tmp_path / "credstore", tmp_path / "credstore.encrypted", command=str(forgetful))
    assert "read back as something else" in store.write(b"the key")
    assert files(tmp_path) == {f"credstore/{PLAIN_NAME}": 0o600}


def test_a_plain_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    store = SystemStore(tmp_path / "credstore", tmp_path / "credstore.encrypted", command="no-such-program")
    store.write(b"the key")
    (tmp_path / "credstore" / PLAIN_NAME).chmod(0o604)
    with pytest.raises(EdgeError, match=r"has mode 0604 and can be read by others"):
        store.read()


def test_only_an_installed_box_uses_the_systems_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(key_store(tmp_path), KeyFile)
    monkeypatch.setattr(keystore, "INSTALLED", tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(keystore, "BOOTED", tmp_path / "no systemd")
    assert isinstance(key_store(tmp_path), KeyFile), "in a container nobody would hand it over"
    monkeypatch.setattr(keystore, "BOOTED", tmp_path)
    assert isinstance(key_store(tmp_path), SystemStore)
    (tmp_path / "box.key").write_bytes(b"made before, and named by its config")
    assert isinstance(key_store(tmp_path), KeyFile)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    (tmp_path / "box.key").unlink()
    assert isinstance(key_store(tmp_path), KeyFile)


def test_the_running_box_finds_its_key_where_systemd_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.config import load_box
    from tests.product import box_yaml

    config = load_box(box_yaml(tmp_path, 1, "rtsp://127.0.0.1:1/door", mqtt={"host": "b", "tls": {"own": True}}))
    tls = tmp_path / "state/tls"

    def key() -> Path | None:
        found = config.tls_files()
        assert found is not None
        assert (found.ca, found.cert) == (tls / "ca.pem", tls / "box.pem")
        return found.key

    assert key() == tls / "box.key"
    (given := tmp_path / "given").mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    assert key() == tls / "box.key", "an older box keeps it there"
    for name in ("box.plain.key", "box.key"):
        (given / name).write_bytes(b"key")
        assert key() == given / name
