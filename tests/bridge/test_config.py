"""The bridge's YAML: the example works, and every mistake is named with its line."""

from pathlib import Path

import pytest

from bridge.config import full_dsn, link_settings, load_bridge
from bridge.errors import ConfigError
from edge.link import Will

ROOT = Path(__file__).resolve().parents[2]
GOOD = "id: centre\ndsn: postgresql://ingest@db/facefleet\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "bridge.yaml"
    path.write_text(text)
    return path


def message(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_bridge(write(tmp_path, text))
    return str(caught.value)


def test_example_config_loads_with_its_documented_defaults() -> None:
    example = load_bridge(ROOT / "config/bridge.yaml")
    assert (example.id, example.ack, example.sites, example.retention_days) == ("centre", True, (), 90)


def test_example_names_every_key_once_its_comments_are_taken_off(tmp_path: Path) -> None:
    lines = (ROOT / "config/bridge.yaml").read_text().splitlines()
    keys = ("password:", "database:", "user:", "tls:", "  ca:", "  cert:", "  key:")
    live = [
        line.replace("# ", "", 1) if line.strip().startswith(tuple(f"# {k}" for k in keys)) else line for line in lines
    ]
    config = load_bridge(write(tmp_path, "\n".join(live)))
    assert config.password is not None
    assert config.mqtt.password is not None
    assert config.mqtt.tls is not None
    assert config.database_uuid is not None


def test_all_mistakes_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = message(tmp_path, "id: a/b\ndsn: postgresql://db/x\nretention: 5\nmqtt:\n  port: 99999\n")
    assert "bridge.yaml:1: id is 'a/b'" in text
    assert 'bridge.yaml:3: retention is not a known key, expected "retention_days"' in text
    assert "bridge.yaml:5: mqtt.port is '99999', expected a whole number, 1–65535" in text


@pytest.mark.parametrize("dsn", ["postgresql://ingest:hunter2@db/facefleet", "host=db password=hunter2"])
def test_inline_password_is_refused_and_not_repeated(tmp_path: Path, dsn: str) -> None:
    text = message(tmp_path, f"id: centre\ndsn: {dsn}\n")
    assert "bridge.yaml:2: dsn is an address with a password in it" in text
    assert "{credential: NAME}" in text
    assert "hunter2" not in text


def test_dsn_that_cannot_be_parsed_is_not_quoted(tmp_path: Path) -> None:
    text = message(tmp_path, 'id: centre\ndsn: "host=db pass word=hunter2"\n')
    assert "dsn is not a dsn" in text
    assert "hunter2" not in text


def test_database_that_is_no_uuid_and_site_bridge_are_refused(tmp_path: Path) -> None:
    text = message(tmp_path, GOOD + "database: mine\nsites: [bridge]\n")
    assert "bridge.yaml:3: database is 'mine', expected a UUID" in text
    assert "bridge.yaml:4: sites" in text


def test_password_comes_from_a_private_file_beside_the_config(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "password: {credential: db}\nmqtt: {user: u, password: {credential: mq}}\n")
    config = load_bridge(path)
    with pytest.raises(ConfigError, match="credential 'db' was not found"):
        full_dsn(config, tmp_path)
    folder = tmp_path / "credentials"
    folder.mkdir()
    for name, secret in (("db", "se cret'\n"), ("mq", "other")):
        (folder / name).write_text(secret)
        (folder / name).chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        full_dsn(config, tmp_path)
    for name in ("db", "mq"):
        (folder / name).chmod(0o600)
    assert r"password='se cret\''" in full_dsn(config, tmp_path)
    settings = link_settings(config, tmp_path, Will("t", b""))
    assert settings.password == "other"
    assert "other" not in repr(settings)


def test_p2_client_id_derives_from_the_id_alone(tmp_path: Path) -> None:
    settings = link_settings(load_bridge(write(tmp_path, GOOD)), tmp_path, Will("t", b""))
    assert settings.client_id == "facefleet-bridge-centre"
    assert not settings.clean_start
    assert settings.session_expiry_s > 0
