"""A config moves from the desk to a slot: folders are set, comments stay, secrets are gathered beside it."""

from pathlib import Path

import pytest

from edge.config import load_box
from edge.errors import ConfigError
from edge.flash.portable import edit, gather
from tests.edge.flash.desk import DATABASE, Desk

HANDWRITTEN = f"""\
# The lobby.
site: demo   # ours
box: lobby-1
database: {DATABASE}
models_dir: models  # beside this file
cameras:
  - id: door
    detector: tiny
    source: {{uri: "rtsp://cam/door", user: me, password: {{credential: cam1}}}}
mqtt: {{host: broker, tls: {{ca: ca.pem, cert: /var/lib/facefleet/tls/box.crt, key: /var/lib/facefleet/tls/box.key}}}}
heads: []
"""


def gathered(desk: Desk, text: str) -> tuple[str, dict[str, bytes]]:
    path = desk.folder / "lobby.yaml"
    path.write_text(text)
    contents = gather(load_box(path))
    config = contents.files["config.yaml"]
    assert isinstance(config, bytes)
    return config.decode(), contents.secrets


def test_comments_stay_and_folders_are_those_of_a_slot(desk: Desk) -> None:
    (desk.folder / "ca.pem").write_text("certificate")
    text, _ = gathered(desk, HANDWRITTEN)
    assert (
        text
        == HANDWRITTEN.replace("models_dir: models", 'models_dir: "models"').replace(
            "ca: ca.pem", 'ca: "credentials/ca.pem"'
        )
        + "\n# Where things lie on a flashed box.\ncredentials_dir: credentials\nstate_dir: ../..\n"
    )


def test_secrets_and_tls_files_travel_beside_the_config(desk: Desk) -> None:
    (desk.folder / "ca.pem").write_text("certificate")
    desk.secret("cam1", "pw")
    text, secrets = gathered(desk, HANDWRITTEN)
    assert secrets == {"cam1": b"pw", "ca.pem": b"certificate"}
    assert "pw" not in text.replace("password", "")


def test_a_secret_that_others_can_read_stops_the_flash(desk: Desk) -> None:
    (desk.folder / "ca.pem").write_text("certificate")
    desk.secret("cam1", "pw")
    (desk.folder / "credentials" / "cam1").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        gathered(desk, HANDWRITTEN)


def test_a_missing_tls_file_is_named(desk: Desk) -> None:
    with pytest.raises(ConfigError, match=r"mqtt.tls.ca .*ca.pem not found"):
        gathered(desk, HANDWRITTEN)


def test_an_absolute_state_folder_stays(desk: Desk) -> None:
    (desk.folder / "ca.pem").write_text("certificate")
    text, _ = gathered(desk, HANDWRITTEN + "state_dir: /data/facefleet\n")
    assert "state_dir: /data/facefleet\n" in text
    assert "../.." not in text


def test_a_recording_of_the_desk_is_refused(desk: Desk) -> None:
    source = HANDWRITTEN.replace("rtsp://cam/door", "clips/door.mp4")
    with pytest.raises(ConfigError, match=r"cameras\[0\].source.uri is 'clips/door.mp4', a file on this desk"):
        gathered(desk, source)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\n", "a: 1\n\n# Where things lie on a flashed box.\nk: v\n"),
        ("k: old # why\na: 1\n", 'k: "v" # why\na: 1\n'),
        ("'k': 'o''ld'\n", "'k': \"v\"\n"),
        ('{"a": 1, "k": "old"}', '{"a": 1, "k": "v"}'),
        ('{"a": 1}', '{"k": "v", "a": 1}'),
        ("é: ü\nk: old\n", 'é: ü\nk: "v"\n'),
    ],
)
def test_a_value_is_set_in_place(text: str, expected: str) -> None:
    assert edit(text, {("k",): "v"}) == expected


def test_checkpoints_stay_at_the_desk(desk: Desk) -> None:
    names = gather(load_box(desk.write())).files
    assert not any("checkpoint" in name for name in names)
    assert isinstance(names["models/tiny/model.onnx"], Path)
