"""The live page over real HTTP: who may see it, what it shows, and that faces are blurred off loopback."""

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from urllib.error import HTTPError

import cv2
import numpy as np
import pytest

from edge.box.annotate import draw
from edge.box.preview import LivePage
from edge.capture.frames import Frame
from edge.config import Preview
from edge.errors import EdgeError
from edge.pipeline import Seen
from edge.strict_yaml import Credential
from edge.track.attributes import Vote
from edge.track.sort import Tracks


def seen(box: tuple[float, ...] = (100, 100, 200, 220)) -> Seen:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (360, 640, 3), dtype=np.uint8)
    tracks = Tracks(np.array([7]), np.array([box], np.float64), np.array([0]))
    votes = {7: {"age": Vote("26-45", 3, 0.9, 4), "gender": Vote(None, -1, 0.4, 1)}}
    return Seen(Frame(image, 0, 0.0, 0.0), tracks, tracks.xyxy, np.array([0.9], np.float32), True, (), votes, 1)


@pytest.fixture
def page() -> Iterator[LivePage]:
    with LivePage(Preview(enabled=True, port=0), "demo/lobby", ("door",), lambda: {"publisher": "connected"}) as live:
        yield live


def test_the_page_names_the_box_and_its_cameras(page: LivePage) -> None:
    with urllib.request.urlopen(page.url, timeout=5) as answer:
        text = answer.read().decode()
    assert "demo/lobby" in text
    assert "/camera/door" in text


def test_the_status_is_json(page: LivePage) -> None:
    with urllib.request.urlopen(page.url + "status.json", timeout=5) as answer:
        assert json.load(answer)["publisher"] == "connected"


def test_the_picture_is_a_stream_of_jpegs(page: LivePage) -> None:
    page.show("door", seen())
    with urllib.request.urlopen(page.url + "camera/door", timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("multipart/x-mixed-replace")
        assert answer.readline().startswith(b"--frame")
        answer.readline()
        length = int(answer.readline().split(b":")[1])
        answer.readline()
        picture = cv2.imdecode(np.frombuffer(answer.read(length), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (360, 640, 3)


def test_an_unknown_camera_is_not_found(page: LivePage) -> None:
    with pytest.raises(HTTPError) as caught:
        urllib.request.urlopen(page.url + "camera/yard", timeout=5)
    assert caught.value.code == 404
    caught.value.close()


def test_off_loopback_a_token_is_asked_for_once() -> None:
    settings = Preview(enabled=True, host="0.0.0.0", port=0, token=Credential("page"))
    with LivePage(settings, "demo/lobby", ("door",), dict, token="s3cret") as live:
        base = live.url.replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(HTTPError) as caught:
            urllib.request.urlopen(base, timeout=5)
        assert caught.value.code == 403
        caught.value.close()
        with urllib.request.urlopen(base + "?token=s3cret", timeout=5) as answer:
            cookie = answer.headers["Set-Cookie"]
        with urllib.request.urlopen(urllib.request.Request(base, headers={"Cookie": cookie}), timeout=5) as answer:
            assert answer.status == 200
    assert settings.blurred


def test_a_foreign_name_for_this_machine_opens_nothing(page: LivePage) -> None:
    asked = urllib.request.Request(page.url, headers={"Host": "rebound.example:8088"})
    with pytest.raises(HTTPError) as caught:
        urllib.request.urlopen(asked, timeout=5)
    assert caught.value.code == 403
    caught.value.close()
    port = page.url.rstrip("/").rpartition(":")[2]
    asked = urllib.request.Request(page.url, headers={"Host": f"localhost:{port}"})
    with urllib.request.urlopen(asked, timeout=5) as answer:
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["Cache-Control"] == "no-store"


def test_a_port_in_use_is_named(page: LivePage) -> None:
    port = int(page.url.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(EdgeError, match=f"cannot listen on 127.0.0.1:{port}"):
        LivePage(Preview(enabled=True, port=port), "t", (), dict)


def test_blurring_leaves_nothing_of_the_face() -> None:
    frame = seen()
    blurred = draw(frame, width=640, blur=True)
    inside = np.s_[110:210, 110:190]
    assert len(np.unique(blurred[inside].reshape(-1, 3), axis=0)) <= 36
    assert len(np.unique(frame.frame.image[inside].reshape(-1, 3), axis=0)) > 1000


def test_a_face_that_is_no_visit_yet_is_blurred_too_and_a_little_around_it() -> None:
    nobody = Tracks(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64))
    frame = replace(seen(), tracks=nobody)
    before, after = frame.frame.image, draw(frame, width=640, blur=True)
    assert len(np.unique(after[100:220, 100:200].reshape(-1, 3), axis=0)) <= 36
    assert not np.array_equal(after[80:96, 90:210], before[80:96, 90:210])


def test_a_blurred_page_shows_only_pictures_in_which_faces_were_looked_for() -> None:
    settings = Preview(enabled=True, port=0, blur=True)
    live = LivePage(settings, "demo/lobby", ("door",), dict)
    with live:
        live.show("door", replace(seen(), searched=False))
        assert live.shown["door"].next(0, 0.0) == (0, None)
        live.show("door", seen())
        assert live.shown["door"].next(0, 0.0)[0] == 1


def test_the_page_listens_on_ipv6_too() -> None:
    with LivePage(Preview(enabled=True, host="::1", port=0), "demo/lobby", ("door",), dict) as live:
        assert live.url.startswith("http://[::1]:")
        with urllib.request.urlopen(live.url, timeout=5) as answer:
            assert answer.status == 200


def test_a_viewer_with_a_broken_cookie_is_refused_and_nothing_else() -> None:
    settings = Preview(enabled=True, host="0.0.0.0", port=0, token=Credential("page"))
    with LivePage(settings, "demo/lobby", ("door",), dict, token="s3cret") as live:
        asked = urllib.request.Request(live.url.replace("0.0.0.0", "127.0.0.1"), headers={"Cookie": 'a b=c; "=;'})
        with pytest.raises(HTTPError) as caught:
            urllib.request.urlopen(asked, timeout=5)
        assert caught.value.code == 403
        caught.value.close()


def test_drawing_leaves_the_frame_alone_and_never_enlarges() -> None:
    frame = seen()
    before = frame.frame.image.copy()
    assert draw(frame, width=320).shape == (180, 320, 3)
    assert draw(frame, width=4000).shape == (360, 640, 3)
    assert np.array_equal(frame.frame.image, before)


def test_a_box_half_outside_is_drawn_and_blurred_without_complaint() -> None:
    assert draw(seen((-50, -50, 30, 40)), width=640, blur=True).shape == (360, 640, 3)
    assert draw(seen((700, 400, 900, 500)), width=640, blur=True).shape == (360, 640, 3)
