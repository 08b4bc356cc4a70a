"""An address is checked once, and its credentials never show."""

from pathlib import Path

import pytest

from edge.capture.spec import SourceSpec
from edge.errors import ConfigError


def test_credentials_written_into_an_address_move_out_of_it() -> None:
    spec = SourceSpec("rtsp", "rtsp://ad%40min:p%3Ass@cam:8554/a?channel=1")
    assert spec.location == "rtsp://cam:8554/a?channel=1"
    assert (spec.user, spec.password) == ("ad@min", "p:ss")


@pytest.mark.parametrize(
    ("address", "location", "user"),
    [
        ("http://cam/?user=a%40b&password=p%26ss&size=2", "http://cam/?user={user}&password={password}&size=2", "a@b"),
        ("rtsp://cam/user=a@b_password=p%26ss_stream=1", "rtsp://cam/user={user}_password={password}_stream=1", "a@b"),
        ("http://cam/v?access_token=p%26ss", "http://cam/v?access_token={password}", None),
        ("http://u:p%26ss@cam/v?pwd=p%26ss", "http://cam/v?pwd={password}", "u"),
    ],
    ids=["query", "path", "token", "twice the same"],
)  # fmt: skip
def test_a_secret_within_an_address_leaves_its_place_there(address: str, location: str, user: str | None) -> None:
    spec = SourceSpec("rtsp" if address.startswith("rtsp") else "http", address)
    assert (spec.location, spec.user, spec.password) == (location, user, "p&ss")
    assert spec.address == address.replace("u:p%26ss@", "").replace("=a@b", "=a%40b")
    for text in (repr(spec), spec.shown, spec.scrub(f"cannot open {spec.url}: p&ss")):
        assert "ss" not in text.replace("password", "").replace("access", "")


def test_two_secrets_are_more_than_a_source_has_room_for() -> None:
    with pytest.raises(ConfigError, match="more than one secret, besides pwd, token in its address") as caught:
        SourceSpec("http", "http://cam/v?pwd=geheim&token=noch-eins")
    assert "geheim" not in str(caught.value)


def test_configured_credentials_win_over_those_in_the_address() -> None:
    spec = SourceSpec("rtsp", "rtsp://a:b@cam/", user="u", password="p")
    assert (spec.user, spec.password, spec.location) == ("u", "p", "rtsp://cam/")


def test_repr_hides_the_password() -> None:
    spec = SourceSpec("http", "http://admin:geheim@cam/video", password=None)
    assert "geheim" not in repr(spec)
    assert "geheim" not in repr(SourceSpec("rtsp", "rtsp://cam/", user="u", password="geheim"))


def test_shown_has_neither_user_nor_query() -> None:
    assert SourceSpec("http", "http://u:p@[::1]:81/v.cgi?usr=u&pwd=p").shown == "http://[::1]:81/v.cgi"


def test_url_carries_percent_encoded_credentials() -> None:
    assert SourceSpec("rtsp", "rtsp://cam/a", user="u", password="p@:/ ").url == "rtsp://u:p%40%3A%2F%20@cam/a"


def test_scrub_takes_credentials_out_of_foreign_text() -> None:
    spec = SourceSpec("rtsp", "rtsp://cam/a", user="u", password="p@ss")
    assert "p@ss" not in spec.scrub(f"cannot open {spec.url}: p@ss p%40ss")
    assert "p%40ss" not in spec.scrub(f"cannot open {spec.url}: p@ss p%40ss")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("0", "usb"),
        ("/dev/video2", "usb"),
        ("rtsp://cam/live", "rtsp"),
        ("RTSP://cam/live", "rtsp"),
        ("http://phone:8080/video", "http"),
        ("https://phone/video", "http"),
        ("clip.mp4", "file"),
    ],
)
def test_one_word_is_understood(text: str, kind: str) -> None:
    assert SourceSpec.from_text(text).kind == kind


def test_an_existing_folder_is_a_folder(tmp_path: Path) -> None:
    assert SourceSpec.from_text(str(tmp_path)).kind == "folder"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "webcam", "location": "0"}, "expected one of file, folder, usb, rtsp, http"),
        ({"kind": "rtsp", "location": "cam/live"}, "expected rtsp://host"),
        ({"kind": "rtsp", "location": "http://cam/live"}, "expected rtsp://host"),
        ({"kind": "file", "location": ""}, "has no location"),
        ({"kind": "file", "location": "a.mp4", "fps": 0}, "fps is 0"),
        ({"kind": "rtsp", "location": "rtsp://cam", "silence_s": 0}, "silence_s is 0"),
        ({"kind": "rtsp", "location": "rtsp://cam", "transport": "quic"}, "expected tcp or udp"),
        ({"kind": "usb", "location": "0", "fourcc": "MJPEG"}, "four letters"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SourceSpec(**settings)  # type: ignore[arg-type]


def test_an_address_that_cannot_be_read_is_not_repeated() -> None:
    """A slash in a password makes the rest of it look like a port."""
    with pytest.raises(ConfigError) as caught:
        SourceSpec("rtsp", "rtsp://admin:geh/eim@cam/live")
    assert "geh" not in str(caught.value)
    assert "port" in str(caught.value)
