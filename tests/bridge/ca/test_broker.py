"""A real Mosquitto with the files the authority writes: who gets in, and who may say what."""

import json
import queue
import shutil
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from bridge.ca import authority, files
from bridge.ca.authority import Authority
from bridge.ca.names import parse_name
from edge.link import Link, LinkSettings
from tests.bridge.ca.site import ROOT, Member, Site
from tests.broker import MOSQUITTO, free_port
from tests.product import Process, box_yaml

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="Mosquitto is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    with made.broker:
        yield made


def test_a_box_is_heard_on_its_own_topics_and_hears_its_acks(site: Site) -> None:
    own, said = f"{ROOT}/munich/lobby-1", ("events", "state", "health", "flash")
    with (
        site.member("bridge:centre", *(f"{ROOT}/+/+/{kind}" for kind in said)) as bridge,
        site.member("lobby-1", f"{own}/ack", f"{own}/offer", f"{ROOT}/bridge/+/state", f"{own}/health") as box,
    ):
        for kind in said:
            box.say(f"{own}/{kind}", kind)
            assert bridge.next() == (f"{own}/{kind}", kind)
        assert box.next() == (f"{own}/health", "health"), "a box must hear its own echo to find a twin"
        bridge.say(f"{own}/ack", "covered")
        assert box.next() == (f"{own}/ack", "covered")
        bridge.say(f"{own}/offer", "a bundle")
        assert box.next() == (f"{own}/offer", "a bundle")
        bridge.say(f"{ROOT}/bridge/centre/state", "accepting")
        assert box.next() == (f"{ROOT}/bridge/centre/state", "accepting")


@pytest.mark.parametrize(
    "topic",
    [
        pytest.param(f"{ROOT}/munich/lobby-2/events", id="another box"),
        pytest.param(f"{ROOT}/berlin/lobby-1/events", id="another site"),
        pytest.param(f"{ROOT}/munich/lobby-1/ack", id="its own ack"),
        pytest.param(f"{ROOT}/munich/lobby-1/offer", id="an offer to itself"),
        pytest.param(f"{ROOT}/munich/lobby-2/offer", id="an offer to another box"),
        pytest.param(f"{ROOT}/bridge/centre/state", id="a bridge's state"),
        pytest.param("elsewhere", id="outside of facefleet"),
    ],
)
def test_what_a_box_says_on_a_foreign_topic_reaches_nobody(site: Site, topic: str) -> None:
    own = f"{ROOT}/munich/lobby-1"
    with site.member("reader:anna", f"{ROOT}/#") as reader, site.member("lobby-1") as box:
        box.say(topic, "forged")
        box.say(f"{own}/events", "mine")
        assert reader.next() == (f"{own}/events", "mine"), "the forged one came first if it came at all"


def test_a_box_does_not_hear_other_boxes(site: Site) -> None:
    with site.member("lobby-2", f"{ROOT}/#", f"{ROOT}/+/+/events") as curious, site.member("lobby-1") as box:
        box.say(f"{ROOT}/munich/lobby-1/events", "private")
        assert curious.next(1.0) is None


def test_the_younger_of_two_boxes_with_one_id_may_listen_under_another_client_id(site: Site) -> None:
    own = f"{ROOT}/munich/lobby-1"
    with (
        site.member("lobby-1") as elder,
        site.member("lobby-1", f"{own}/health", client_id="client-lobby-1-4f21") as younger,
    ):
        elder.say(f"{own}/health", "elder")
        assert younger.next() == (f"{own}/health", "elder")


def test_a_bridge_may_not_say_events_nor_speak_for_another_bridge(site: Site) -> None:
    with site.member("reader:anna", f"{ROOT}/#") as reader, site.member("bridge:centre") as bridge:
        bridge.say(f"{ROOT}/munich/lobby-1/events", "forged")
        bridge.say(f"{ROOT}/bridge/other/state", "forged")
        bridge.say(f"{ROOT}/bridge/centre/state", "accepting")
        assert reader.next() == (f"{ROOT}/bridge/centre/state", "accepting")


def test_nobody_gets_in_without_a_certificate(site: Site) -> None:
    assert site.refusal(None) == "SSLV3_ALERT_HANDSHAKE_FAILURE"
    with pytest.raises(queue.Empty):
        Member(site.settings(None), (), answer_s=3.0)


def test_a_certificate_of_another_authority_is_refused(site: Site, tmp_path: Path) -> None:
    other = Authority.make(tmp_path / "ca", ["localhost"], 1, tmp_path / "broker", authority.now())
    key, request = authority.request(parse_name("munich/lobby-1"))
    files.write(site.keys / "stranger.key", key, mode=0o600)
    files.write(site.keys / "stranger.pem", other.enroll(parse_name("munich/lobby-1"), request, authority.now()))
    assert site.refusal("stranger") == "TLSV1_ALERT_UNKNOWN_CA"


def test_an_expired_certificate_is_refused(site: Site) -> None:
    site.enroll("munich/old-1", days=1.0, ago=timedelta(days=3))
    assert site.refusal("old-1") == "SSLV3_ALERT_CERTIFICATE_EXPIRED"


def test_the_brokers_own_certificate_lets_nobody_in(site: Site) -> None:
    for suffix, file in ((".key", "broker.key"), (".pem", "broker.pem")):
        shutil.copy(site.authority.broker_folder / file, site.keys / f"broker{suffix}")
    assert site.refusal("broker") == "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"


def test_a_revoked_box_falls_silent_at_once_and_does_not_get_in_again(site: Site) -> None:
    site.enroll("munich/stolen-1")
    site.broker.reload()
    own = f"{ROOT}/munich/stolen-1"
    with site.member("reader:anna", f"{ROOT}/munich/#") as reader, site.member("stolen-1") as box:
        box.say(f"{own}/events", "honest")
        assert reader.next() == (f"{own}/events", "honest")
        site.authority.revoke(parse_name("munich/stolen-1"), authority.now())
        site.broker.reload()
        box.say(f"{own}/events", "from the thief")
        assert reader.next(1.0) is None
    assert site.refusal("stolen-1") == "SSLV3_ALERT_CERTIFICATE_REVOKED"
    assert site.refusal("lobby-1") == "", "the others are let in as before"


def test_a_box_enrolled_later_is_let_in_after_a_reload(site: Site) -> None:
    site.enroll("munich/new-1")
    site.broker.reload()
    own = f"{ROOT}/munich/new-1"
    with site.member("reader:anna", f"{own}/state") as reader, site.member("new-1") as box:
        box.say(f"{own}/state", "born")
        assert reader.next() == (f"{own}/state", "born")


def test_a_renewed_certificate_works_with_the_key_that_is_there(site: Site) -> None:
    (path,) = site.authority.renew([parse_name("munich/lobby-2")], authority.now(), within_days=45)
    shutil.copy(path, site.keys / "lobby-2.pem")
    site.broker.reload()
    assert site.refusal("lobby-2") == ""


def test_a_client_that_expects_another_host_refuses_the_broker(site: Site, tmp_path: Path) -> None:
    context = ssl.create_default_context(cafile=str(site.authority.folder / "ca.pem"))
    with (
        socket.create_connection(("127.0.0.1", site.port)) as raw,
        pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"),
    ):
        context.wrap_socket(raw, server_hostname="elsewhere.example")


def test_a_real_box_speaks_with_its_certificate_and_says_how_long_it_lasts(site: Site, tmp_path: Path) -> None:
    tls = {"ca": str(site.authority.folder / "ca.pem")}
    tls |= {"cert": str(site.keys / "lobby-1.pem"), "key": str(site.keys / "lobby-1.key")}
    config = box_yaml(
        tmp_path, site.port, "rtsp://127.0.0.1:1/door",
        site="munich", heads=[], health_s=1, mqtt={"host": "localhost", "port": site.port, "tls": tls},
    )  # fmt: skip
    with site.member("reader:anna", f"{ROOT}/munich/lobby-1/#") as reader:
        box = Process(["edge.cli", "run", str(config)], tmp_path / "box.log").start()
        try:
            heard = [reader.next(60) or pytest.fail(box.text()) for _ in range(5)]
        finally:
            box.stop()
    assert {topic.rpartition("/")[2] for topic, _ in heard} == {"state", "health"}
    health = [json.loads(text) for topic, text in heard if topic.endswith("health")][-1]
    assert 29 < health["certificate_days"] < 398
    assert health["publisher"] == "waiting for a bridge"


def why(settings: LinkSettings) -> str:
    """Try to connect once; return why it failed, as a box's health says it."""
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    link = Link(settings, on_message=lambda _: None, on_up=lambda *_: None, on_down=said.put)
    link.start()
    try:
        return said.get(timeout=30)
    finally:
        link.stop()


def test_a_box_whose_certificate_has_ended_says_so_itself(site: Site) -> None:
    site.enroll("munich/old-2", days=1.0, ago=timedelta(days=3))
    said = why(site.settings("old-2"))
    assert "old-2.pem ended on" in said
    assert "enroll anew, or set the clock" in said


def test_a_box_whose_clock_is_before_every_certificate_asks_for_ntp(site: Site) -> None:
    """As at a first boot in 1970: seen from the certificates, which are of the year after next."""
    site.enroll("munich/early-1", ago=timedelta(days=-700))
    said = why(site.settings("early-1"))
    assert "the clock here says" in said
    assert "no certificate is valid before NTP has set it" in said


def test_a_failure_that_dates_do_not_explain_is_told_as_it_is(site: Site) -> None:
    said = why(replace(site.settings("lobby-1"), port=free_port()))
    assert "refused" in said.lower()
    assert "clock" not in said
