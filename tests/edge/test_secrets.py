"""Secrets go in; everything that comes out of a running box is searched for them."""

import base64
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.link import Link, LinkSettings, Message
from tests.broker import MOSQUITTO, Amqtt, Mosquitto, _Process
from tests.product import Process, box_yaml, wait_for

SECRETS = {
    "door": "rtsp-Tu7hunter2",
    "phone": "http-Kw3correcthorse",
    "broker": "mqtt-Bx9swordfish",
    "page": "token-Qz5opensesame",
}
ENCODED = {"basic": base64.b64encode(f"facefleet:{SECRETS['phone']}".encode()).decode()}  # a secret still


@pytest.fixture(params=["mosquitto", "amqtt"] if MOSQUITTO else ["amqtt"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[_Process]:
    folder = tmp_path / "broker"
    folder.mkdir()
    kind = Mosquitto if request.param == "mosquitto" else Amqtt
    with kind(folder) as made:
        yield made


def test_no_secret_comes_out_of_a_box_whatever_it_says(tmp_path: Path, broker: _Process) -> None:
    store = tmp_path / "credentials"
    store.mkdir()
    for name, value in SECRETS.items():
        (store / name).write_text(value)
        (store / name).chmod(0o600)
    sources = {
        "door": {"uri": "rtsp://127.0.0.1:1/stream1", "user": "facefleet", "password": {"credential": "door"}},
        "phone": {"uri": "http://127.0.0.1:1/video", "user": "facefleet", "password": {"credential": "phone"}},
    }
    config = box_yaml(
        tmp_path, broker.port, "",
        cameras=[{"id": name, "source": source} for name, source in sources.items()],
        mqtt={"port": broker.port, "protocol": "3.1.1", "user": "box", "password": {"credential": "broker"}},
        preview={"enabled": True, "host": "127.0.0.1", "port": 0, "token": {"credential": "page"}},
        heads=[], health_s=1,
    )  # fmt: skip
    heard: list[Message] = []
    ear = Link(
        LinkSettings("127.0.0.1", "ear", broker.port, "3.1.1"),
        on_message=heard.append, on_up=lambda *_: None, on_down=lambda _: None, subscriptions=[("#", 1)],
    )  # fmt: skip
    ear.start()
    box = Process(["edge.cli", "run", "-v", str(config)], tmp_path / "box.log").start()
    try:
        wait_for("both cameras to have failed", lambda: all(_errors(heard, name) for name in sources), 90)
        wait_for("the live page", lambda: "live page on" in box.text(), 10)
        time.sleep(1)
    finally:
        box.stop()
        ear.stop()
    for verb in ("check", "doctor"):
        asked = Process(["edge.cli", verb, str(config)], tmp_path / f"{verb}.log").start()
        asked.wait(90)

    assert any(m.topic.endswith("/state") for m in heard)
    came_out = {f"message on {m.topic}": m.payload for m in heard}
    came_out |= {str(p): p.read_bytes() for p in tmp_path.glob("*.log")}
    came_out |= {str(p): p.read_bytes() for p in (tmp_path / "state").rglob("*") if p.is_file()}
    assert sum(map(len, came_out.values())) > 2000, "there must be something to search"
    assert len(list((tmp_path / "state").rglob("outbox.db*"))) >= 1
    for name, secret in (SECRETS | ENCODED).items():
        pattern = re.compile(re.escape(secret.encode()), re.IGNORECASE)
        leaks = [where for where, data in came_out.items() if pattern.search(data)]
        assert not leaks, f"the secret {name} came out in {leaks}"


def _errors(heard: list[Message], camera: str) -> bool:
    return any(m.topic.endswith("/health") and b'"error"' in m.payload and camera.encode() in m.payload for m in heard)
