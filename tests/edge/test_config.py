"""A box's config: what a person writes wrong is named, and privacy is on by default."""

import json
from pathlib import Path

import msgspec
import pytest

from edge.config import Box, GateConfig, OutboxConfig, Preview, load_box
from edge.errors import ConfigError

SOUND = """\
site: demo
box: lobby-1
database: 6c6f6361-6c00-4000-8000-000000000000
cameras:
  - id: door
    source: {uri: clip.mp4}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "box.yaml"
    path.write_text(text)
    return path


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_box(write(tmp_path, text))
    return str(caught.value)


def test_defaults_are_age_and_gender_and_no_live_page(tmp_path: Path) -> None:
    config = load_box(write(tmp_path, SOUND))
    assert [h.bundle_name for h in config.box.heads] == ["age-student", "gender-student"]
    assert not config.box.preview.enabled
    assert config.box.preview.loopback
    assert config.state_dir == Path("/var/lib/facefleet")


@pytest.mark.parametrize("head", ["race", "emotion"])
def test_a_sensitive_head_needs_a_purpose(tmp_path: Path, head: str) -> None:
    told = refusal(tmp_path, SOUND + f"heads: [{{name: {head}}}]\n")
    assert f"box.yaml:7: heads[0].purpose is missing, expected one sentence why this site infers {head}" in told
    config = load_box(write(tmp_path, SOUND + f"heads: [{{name: {head}, purpose: a study}}]\n"))
    assert config.box.heads[0].purpose == "a study"


def test_a_sensitive_bundle_under_another_name_needs_a_purpose_too(tmp_path: Path) -> None:
    assert "heads[0].purpose" in refusal(tmp_path, SOUND + "heads: [{name: mood, bundle: emotion-student}]\n")


@pytest.mark.parametrize(
    "uri",
    [
        "rtsp://admin:hunter2@10.0.0.9/s1",
        "http://:hunter2@cam/mjpeg",
        "RTSP://admin:hunter2@cam/s1",
        "rtsp://admin:12/hunter2@cam/s1",
        "rtsp://admin:hunter2@cam:port/s1",
        "http://cam/video?user=admin&password=hunter2",
        "https://cam/video?size=2&access_token=hunter2",
        "http://cam/videostream.cgi?loginuse=admin&loginpas=hunter2",
        "rtsp://cam:554/user=admin_password=hunter2_channel=1_stream=0.sdp",
    ],
    ids=[
        "user and password",
        "password alone",
        "capitals",
        "a slash in it",
        "a port that is none",
        "in the query",
        "a token",
        "abbreviated",
        "in the path",
    ],
)
def test_an_inline_password_is_refused_and_not_repeated(tmp_path: Path, uri: str) -> None:
    told = refusal(tmp_path, SOUND.replace("clip.mp4", f"'{uri}'"))
    assert "credentials in it" in told
    assert "{credential: NAME}" in told
    assert "hunter2" not in told


def test_a_camera_that_takes_its_password_in_the_address_has_a_place_kept_for_it(tmp_path: Path) -> None:
    uri = "http://cam/video?user={user}&password={password}&tokens=2&monkey=1"
    told = refusal(tmp_path, SOUND.replace("clip.mp4", f"'{uri}'"))
    assert "password" in told
    assert "{password} stands in the uri" in told
    (tmp_path / "box.yaml").write_text(
        SOUND.replace("uri: clip.mp4", f"uri: '{uri}', user: admin, password: {{credential: cam}}")
    )
    assert load_box(tmp_path / "box.yaml").box.cameras[0].source.uri == uri


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("''", "is empty"),
        ("ftp://cam/s1", "an address of kind 'ftp'"),
        ("rtsp:///s1", "without a host"),
        ("'rtsp://cam:many/s1'", "a port that is no number"),
        ("'http://[::1/mjpeg'", "without a host"),
    ],
)
def test_an_address_that_cannot_be_one_is_a_mistake_with_its_line(tmp_path: Path, uri: str, told: str) -> None:
    refused = refusal(tmp_path, SOUND.replace("clip.mp4", uri))
    assert "source.uri" in refused
    assert told in refused


def test_a_recording_s_time_without_a_zone_is_refused(tmp_path: Path) -> None:
    told = refusal(tmp_path, SOUND.replace("clip.mp4", "clip.mp4, recorded_at: 2026-01-31T08:00:00"))
    assert "recorded_at is '2026-01-31T08:00:00', expected a date and time with a zone" in told


def test_a_plain_text_password_is_refused_and_not_repeated(tmp_path: Path) -> None:
    told = refusal(tmp_path, SOUND.replace("clip.mp4", "rtsp://cam/s1, password: hunter2"))
    assert "password" in told
    assert "credential" in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        ("[[0, 0], [1, 1]]", "a polygon of 2 points, expected at least 3"),
        ("[[0, 0], [0.5, 0.5], [1, 1]]", "a polygon without area"),
        ("[[0, 0], [2, 0], [1, 1]]", "a polygon that leaves the frame at (2, 0)"),
        ("[[0, 0], [1]]", "masks[0][1]"),
    ],
)
def test_a_mask_that_hides_nothing_is_refused(tmp_path: Path, mask: str, told: str) -> None:
    text = refusal(tmp_path, SOUND + f"    masks: [{mask}]\n")
    assert "box.yaml:7: cameras[0].masks[0]" in text
    assert told in text


def test_the_last_line_counts_the_mistakes_and_says_what_to_do(tmp_path: Path) -> None:
    told = refusal(tmp_path, SOUND.replace("lobby-1", "a/b").replace("id: door", "id: '#'") + "threds: 2\n")
    assert told.splitlines()[-1].startswith('3 mistakes; edit the file and run "facefleet-edge check')
    assert 'threds is not a known key, expected "threads" (did you mean that?)' in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("preview: {enabled: true, host: 0.0.0.0}\n", "preview.token is missing"),
        ("presence_s: 0\n", "presence_s is '0', expected a whole number, 1–3600"),
        ("devices: [TPU]\n", "devices[0] is 'TPU', expected one of"),
        ("update_s: 5\n", "update_s is '5', expected a whole number, 60–86400"),
    ],
)
def test_limits_are_named(tmp_path: Path, change: str, told: str) -> None:
    assert told in refusal(tmp_path, SOUND + change)


def test_two_cameras_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = SOUND + "  - id: door\n    source: {uri: 0}\n"
    assert "cameras is a list that names door twice" in refusal(tmp_path, twice)


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("0", "usb"),
        ("/dev/video2", "usb"),
        ("rtsp://h/s", "rtsp"),
        ("https://h/m", "http"),
        ("a.mp4", "file"),
        ("d/", "folder"),
    ],
)
def test_the_kind_of_a_source_follows_from_its_address(tmp_path: Path, uri: str, kind: str) -> None:
    config = load_box(write(tmp_path, SOUND.replace("clip.mp4", uri)))
    assert config.box.cameras[0].source.kind(tmp_path) == kind


def test_the_digest_names_the_text(tmp_path: Path) -> None:
    first = load_box(write(tmp_path, SOUND)).digest
    assert load_box(write(tmp_path, SOUND)).digest == first
    assert load_box(write(tmp_path, SOUND + "# more\n")).digest != first


def test_the_schema_knows_every_key() -> None:
    schema = json.dumps(msgspec.json.schema(Box))
    for key in Box.__struct_fields__:
        assert f'"{key}"' in schema


def test_the_example_is_sound_and_shows_every_key() -> None:
    example = Path(__file__).parents[2] / "config" / "box.yaml"
    load_box(example)
    text = example.read_text()
    structs = msgspec.json.schema(Box)["$defs"].values()
    keys = {key for struct in structs for key in struct["properties"]} - {"credential"}
    assert not {key for key in keys if f"{key}:" not in text}


def test_the_example_shows_the_defaults_it_does_not_mean_to_change() -> None:
    example = load_box(Path(__file__).parents[2] / "config" / "box.yaml").box
    camera = example.cameras[0]
    for section in (example.outbox, camera.source.silence_s, example.preview, example.presence_s, example.health_s):
        assert section in (OutboxConfig(), 20.0, Preview(), 60)
    assert camera.gate == GateConfig(enabled=True)


def test_a_certificate_without_its_key_is_a_mistake(tmp_path: Path) -> None:
    told = refusal(tmp_path, SOUND + "mqtt: {tls: {ca: ca.pem, cert: box.pem}}\n")
    assert "mqtt.tls.key is missing, expected cert and key together" in told
