"""One MQTT connection against real brokers, and what becomes of it when things break."""

import queue
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from edge.link import Link, LinkDied, LinkError, LinkSettings, Message, Will
from tests.broker import MOSQUITTO, Amqtt, Mosquitto, free_port
from tests.edge.publish.centre import until
from tests.edge.publish.conftest import broker, wired  # noqa: F401  fixtures

Wired = tuple[Mosquitto | Amqtt, Literal["5", "3.1.1"]]
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


class Ear:
    """Collects what a link says."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.ups: list[tuple[int, int]] = []
        self.downs: list[str] = []
        self.pubacks: list[tuple[int, int]] = []


@contextmanager
def a_link(port: int, protocol: Literal["5", "3.1.1"] = "3.1.1", **settings: Any) -> Iterator[tuple[Link, Ear]]:
    ear = Ear()
    options = {key: settings.pop(key) for key in ("subscriptions", "manual_ack", "on_message") if key in settings}
    callbacks: dict[str, Any] = {
        "on_message": ear.messages.append,
        "on_up": lambda generation, window: ear.ups.append((generation, window)),
        "on_down": ear.downs.append,
        "on_puback": lambda mid, generation: ear.pubacks.append((mid, generation)),
    }
    host = settings.pop("host", "127.0.0.1")
    client_id = settings.pop("client_id", "test-link")
    link = Link(
        LinkSettings(host, client_id, port, protocol, **({"backoff_s": (0.02, 0.2)} | settings)),
        **(callbacks | options),
    )
    link.start()
    try:
        yield link, ear
    finally:
        link.stop()


def test_messages_and_pubacks_go_round(wired: Wired) -> None:  # noqa: F811
    port, protocol = wired[0].port, wired[1]
    with a_link(port, protocol, subscriptions=[("t/#", 1)]) as (link, ear):
        until(lambda: link.connected)
        mid = link.publish("t/a", b"hello", qos=1, expiry_s=60)
        until(lambda: bool(ear.messages and ear.pubacks))
        assert (ear.messages[0].topic, ear.messages[0].payload, ear.messages[0].qos) == ("t/a", b"hello", 1)
        assert ear.pubacks == [(mid, 1)]
        link.check()


@pytest.mark.parametrize("most", [0, 1, 10])
@needs_mosquitto
def test_topics_often_used_arrive_whole_however_many_numbers_the_broker_gives_out(tmp_path: Path, most: int) -> None:
    server = Mosquitto(tmp_path, extra=f"max_topic_alias {most}")
    with server, a_link(server.port, "5", subscriptions=[("t/#", 1)]) as (link, ear):
        until(lambda: link.connected)
        sent = [(f"t/{name}", b"%d" % i) for i in range(3) for name in "ab"]
        for name, payload in sent:
            link.publish(name, payload, qos=1, often=True)
        until(lambda: len(ear.messages) == len(sent))
        assert [(message.topic, message.payload) for message in ear.messages] == sent
        link.check()


@needs_mosquitto
def test_a_new_connection_names_its_topics_again(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as server, a_link(server.port, "5", subscriptions=[("t", 1)]) as (link, ear):
        for generation in (1, 2):
            until(lambda: link.connected)
            for _ in range(2):
                link.publish("t", b"x", qos=1, often=True)
            until(lambda: len(ear.messages) == 2 * link.generation)
            assert link.generation == generation
            server.kill()
            until(lambda: not link.connected)
            server.start()


def test_broker_down_at_start_is_a_state_and_its_coming_is_noticed(tmp_path: Path) -> None:
    server = (Mosquitto if MOSQUITTO else Amqtt)(tmp_path)
    with a_link(server.port) as (link, ear):
        until(lambda: "Connection refused" in ear.downs)
        assert not link.connected
        assert link.publish("t", b"x", qos=1) is None
        with server:
            until(lambda: link.connected)
            link.check()


def test_reconnects_after_the_broker_was_killed_with_a_new_generation(wired: Wired) -> None:  # noqa: F811
    server, protocol = wired
    with a_link(server.port, protocol, subscriptions=[("t", 1)]) as (link, ear):
        until(lambda: link.connected)
        server.kill()
        until(lambda: not link.connected)
        server.start()
        until(lambda: link.connected)
        assert [generation for generation, _ in ear.ups] == [1, 2]
        link.publish("t", b"subscriptions are renewed", qos=1)
        until(lambda: bool(ear.messages))


def test_p37_acks_of_an_older_generation_are_dropped(broker: Mosquitto | Amqtt) -> None:  # noqa: F811
    with a_link(broker.port, subscriptions=[("t", 1)], manual_ack=True) as (link, ear):
        until(lambda: link.connected)
        link.publish("t", b"x", qos=1)
        until(lambda: bool(ear.messages))
        broker.kill()
        until(lambda: not link.connected)
        broker.start()
        until(lambda: link.connected)
        assert not link.ack(ear.messages[0])
        link.publish("t", b"y", qos=1)
        until(lambda: len(ear.messages) > 1)
        assert link.ack(ear.messages[-1])


def test_p37_nothing_is_published_for_an_older_generation(broker: Mosquitto | Amqtt) -> None:  # noqa: F811
    with a_link(broker.port) as (link, _):
        until(lambda: link.connected)
        assert link.publish("t", b"x", qos=1, generation=0) is None
        assert link.publish("t", b"x", qos=1, generation=1) is not None


@pytest.mark.parametrize("error", [RuntimeError("a bug of ours"), OSError("looks like the network")])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_in_a_callback_ends_the_link_loudly(
    broker: Mosquitto | Amqtt,  # noqa: F811
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: Message) -> None:
        raise error

    with a_link(broker.port, subscriptions=[("t", 1)], on_message=fail) as (link, _):
        until(lambda: link.connected)
        link.publish("t", b"x", qos=1)
        until(lambda: not link.connected)
        until(lambda: "died" in caplog.text)
        with pytest.raises(LinkDied, match=str(error)):
            link.check()


@pytest.mark.parametrize("where", ["on_up", "on_down"])
def test_an_exception_on_the_way_up_or_down_is_no_silence_either(
    broker: Mosquitto | Amqtt,  # noqa: F811
    where: str,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    port = broker.port if where == "on_up" else free_port()
    callbacks: dict[str, Callable[..., None]] = dict.fromkeys(("on_message", "on_up", "on_down"), lambda *_: None)
    link = Link(LinkSettings("127.0.0.1", "x", port, "3.1.1"), **{**callbacks, where: fail})
    link.start()
    with pytest.raises(LinkDied, match="a bug of ours"):
        until(lambda: bool(link.check()))
    link.stop()


@needs_mosquitto
def test_p22_the_peers_window_is_told(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, extra="max_inflight_messages 7") as server:
        with a_link(server.port, "5") as (link, ear):
            until(lambda: link.connected)
            assert ear.ups == [(1, 7)]
        with a_link(server.port, "3.1.1") as (link, ear):
            until(lambda: link.connected)
            assert ear.ups == [(1, 20)], "MQTT 3.1.1 cannot say its window"


@needs_mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_wrong_credentials_are_told_without_the_secret(
    tmp_path: Path, protocol: Literal["5", "3.1.1"], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Mosquitto(tmp_path, anonymous=False) as server,
        a_link(server.port, protocol, user="u", password="s3cret") as (link, ear),
    ):
        until(lambda: bool(ear.downs))
        assert ear.downs[0].startswith("refused: Not authorized")
        assert "s3cret" not in caplog.text + repr(link.settings) + str(ear.downs)
        assert not link.connected


def test_a_refused_subscription_is_told_and_is_not_up(broker: Mosquitto | Amqtt) -> None:  # noqa: F811
    """Mosquitto grants what its access list will never deliver, so a broker that refuses has to be played."""

    class Refused(Link):
        def _subscribed(self, client: Any, _: Any, mid: int, __: Any, ___: Any) -> None:
            super()._subscribed(client, _, mid, [ReasonCode(PacketTypes.SUBACK, identifier=0x87)], None)

    downs: list[str] = []
    link = Refused(
        LinkSettings("127.0.0.1", "x", broker.port, "3.1.1"),
        on_message=lambda _: None, on_up=lambda *_: None, on_down=downs.append, subscriptions=[("t/a", 1)],
    )  # fmt: skip
    link.start()
    until(lambda: bool(downs))
    assert downs[0] == "refused: subscription to t/a; does the broker's access list allow it?"
    assert not link.connected
    link.stop()


def test_will_is_published_for_who_vanishes_and_not_for_who_says_goodbye(wired: Wired) -> None:  # noqa: F811
    port, protocol = wired[0].port, wired[1]
    with a_link(port, protocol, subscriptions=[("w", 1)], client_id="ear") as (link, ear):
        until(lambda: link.connected)
        leaver = Link(
            LinkSettings("127.0.0.1", "leaver", port, protocol, will=Will("w", b"vanished")),
            on_message=lambda _: None, on_up=lambda *_: None, on_down=lambda _: None,
        )  # fmt: skip
        leaver.start()
        until(lambda: leaver.connected)
        leaver.stop(("w", b"goodbye", 1, True))
        until(lambda: bool(ear.messages))
        time.sleep(0.2)
        assert [message.payload for message in ear.messages] == [b"goodbye"]


class Mute(threading.Thread):
    """A server that accepts TCP and never says a word."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.held: list[socket.socket] = []

    def run(self) -> None:
        while True:
            try:
                self.held.append(self.server.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        for one in self.held:
            one.close()


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.link.CONNECT_S", 0.6)
    mute = Mute()
    mute.start()
    with a_link(mute.port) as (_, ear):
        until(lambda: bool(ear.downs))
        assert ear.downs[0].startswith("no answer within")
    mute.close()
    mute.join(2.0)


class HalfOpen(threading.Thread):
    """A proxy that can stop forwarding without closing anything, as a dead route does."""

    def __init__(self, target: int) -> None:
        super().__init__(daemon=True)
        self.target = target
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.frozen = threading.Event()
        self.ends: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            try:
                near = self.server.accept()[0]
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.target))
            for a, b in ((near, far), (far, near)):
                self.ends.put(a)
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, a: socket.socket, b: socket.socket) -> None:
        try:
            while data := a.recv(65536):
                if not self.frozen.is_set():
                    b.sendall(data)
        except OSError:
            pass
        if not self.frozen.is_set():
            b.close()

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        while not self.ends.empty():
            self.ends.get().close()


def test_a_half_open_connection_is_noticed_by_the_keep_alive(broker: Mosquitto | Amqtt) -> None:  # noqa: F811
    proxy = HalfOpen(broker.port)
    proxy.start()
    with a_link(proxy.port, keep_alive_s=1) as (link, ear):
        until(lambda: link.connected)
        proxy.frozen.set()
        until(lambda: not link.connected, 8.0)
        assert ear.downs
        proxy.frozen.clear()
        until(lambda: link.connected)
    proxy.close()
    proxy.join(2.0)


def test_certificates_that_are_not_there_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=r"TLS for h:8883 cannot use ca .*nowhere.pem.*readable PEM"):
        Link(
            LinkSettings("h", "x", 8883, ca=tmp_path / "nowhere.pem"),
            on_message=lambda _: None, on_up=lambda *_: None, on_down=lambda _: None,
        )  # fmt: skip


@needs_mosquitto
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # paho leaves the refused socket to the GC
def test_tls_connects_to_the_right_broker_and_to_no_other(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
         "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key,
         "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    with Mosquitto(tmp_path, extra=f"certfile {cert}\nkeyfile {key}") as server:
        with a_link(server.port, "5", ca=cert) as (link, _):
            until(lambda: link.connected)
        with a_link(server.port, "5", ca=Path("/etc/ssl/certs/ca-certificates.crt")) as (link, ear):
            until(lambda: bool(ear.downs))
            assert "certificate verify failed" in ear.downs[0].lower()
            assert not link.connected


def test_stop_is_quick_while_waiting_to_reconnect() -> None:
    with a_link(free_port(), backoff_s=(60.0, 60.0)) as (link, ear):
        until(lambda: bool(ear.downs))
        began_s = time.monotonic()
        link.stop()
        assert time.monotonic() - began_s < 2.0
        link.check()
