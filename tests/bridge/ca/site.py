"""A site for tests: an authority, a real Mosquitto that reads its files, and clients with certificates."""

import json
import queue
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from bridge.ca import authority, files
from bridge.ca.authority import Authority
from bridge.ca.broker import CONF
from bridge.ca.names import parse_name
from bridge.ca.serve import serve
from edge.link import Link, LinkSettings, Message
from tests.broker import Mosquitto, free_port

ROOT = "facefleet/1"
ANSWER_S = 30.0


class Site:
    """An authority, a broker that reads its files, and a folder of keys."""

    def __init__(self, folder: Path, ago: timedelta = timedelta(0)) -> None:
        self.port = free_port()
        self.keys = folder / "keys"
        self.keys.mkdir()
        self.authority = Authority.make(
            folder / "ca", ["localhost", "127.0.0.1"], self.port, folder / "ca" / "broker", authority.now() - ago
        )
        self.broker = TlsMosquitto(folder, self.port, folder / "ca" / "broker" / CONF)
        for name in ("munich/lobby-1", "munich/lobby-2", "bridge:centre", "reader:anna"):
            self.enroll(name)

    def enroll(self, text: str, *, days: float = 30.0, ago: timedelta = timedelta(0)) -> None:
        name = parse_name(text)
        key, request = authority.request(name)
        chain = self.authority.enroll(name, request, authority.now() - ago, days)
        files.write(self.keys / f"{name.user}.key", key, mode=0o600)
        files.write(self.keys / f"{name.user}.pem", chain)

    def settings(self, user: str | None, client_id: str = "") -> LinkSettings:
        return LinkSettings(
            host="localhost",
            port=self.port,
            client_id=client_id or f"client-{user}",
            ca=self.authority.folder / "ca.pem",
            cert=self.keys / f"{user}.pem" if user else None,
            key=self.keys / f"{user}.key" if user else None,
            backoff_s=(0.2, 0.4),
        )

    @contextmanager
    def member(self, user: str, *topics: str, client_id: str = "") -> Iterator["Member"]:
        with self.client(self.settings(user, client_id), *topics) as made:
            yield made

    @contextmanager
    def client(self, settings: LinkSettings, *topics: str) -> Iterator["Member"]:
        made = Member(settings, topics)
        try:
            yield made
        finally:
            made.link.stop()

    def claim(self, text: str, path: Path, *, days: float = 1.0, ago: timedelta = timedelta(0)) -> Path:
        """Make a claim, as `ca claim` does; the broker hears of it."""
        files.write(path, self.authority.claim(parse_name(text), authority.now() - ago, days), mode=0o600)
        self.broker.reload()
        return path

    def claim_settings(self, path: Path) -> LinkSettings:
        return replace(self.settings(None, "claimant"), cert=path, key=path)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run `ca serve` in a thread."""
        stop = threading.Event()
        words = (self.authority.folder, stop, authority.now, self.broker.reload_command)
        thread = threading.Thread(target=serve, args=words)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()

    def broker_days(self) -> float:
        """Return how long the certificate that the broker shows is still good."""
        context = ssl.create_default_context(cafile=str(self.authority.folder / "ca.pem"))
        context.load_cert_chain(self.keys / "lobby-1.pem", self.keys / "lobby-1.key")
        with (
            socket.create_connection(("127.0.0.1", self.port)) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as secure,
        ):
            shown = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
        return (shown.not_valid_after_utc - authority.now()).total_seconds() / 86400

    def refusal(self, user: str | Path | None) -> str:
        """Shake hands; return the broker's reason for refusing, "" when it lets us in.

        TLS 1.2, because in 1.3 a client's handshake has ended before the broker judges its certificate.
        """
        context = ssl.create_default_context(cafile=str(self.authority.folder / "ca.pem"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        if isinstance(user, Path):
            context.load_cert_chain(user)
        elif user:
            context.load_cert_chain(self.keys / f"{user}.pem", self.keys / f"{user}.key")
        with socket.create_connection(("127.0.0.1", self.port)) as raw:
            try:
                context.wrap_socket(raw, server_hostname="localhost").close()
            except ssl.SSLError as error:
                return str(error.reason)
        return ""


class TlsMosquitto(Mosquitto):
    """Mosquitto with the written config; as root it stays root, because tests' folders are closed to others."""

    def __init__(self, folder: Path, port: int, config: Path) -> None:
        super().__init__(folder, port)
        self._config.write_text(f"include_dir {config.parent}\nuser root\nlog_type all\n")

    @property
    def reload_command(self) -> str:
        """Return what `ca` runs to make it read its files again."""
        assert self._child is not None
        return f"kill -HUP {self._child.pid}"

    def reload(self) -> None:
        assert self._child is not None
        self._child.send_signal(signal.SIGHUP)
        time.sleep(0.5)


class Member:
    """One client with a certificate."""

    def __init__(self, settings: LinkSettings, topics: tuple[str, ...], answer_s: float = ANSWER_S) -> None:
        self.heard: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.ups: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.link = Link(
            settings,
            on_message=self.heard.put,
            on_up=lambda generation, _window: self.ups.put(generation),
            on_down=lambda _: None,
            subscriptions=[(topic, 1) for topic in topics],
        )
        self.link.start()
        try:
            self.ups.get(timeout=answer_s)
        except queue.Empty:
            self.link.stop()
            raise

    def say(self, topic: str, text: str) -> None:
        assert self.link.publish(topic, text.encode(), qos=1) is not None

    def birth(self, timeout_s: float = 60.0) -> str | None:
        """Return the topic of the next birth; before it a box asks whether another lives under its id (P42)."""
        give_up_s = time.monotonic() + timeout_s
        while (heard := self.next(max(0.1, give_up_s - time.monotonic()))) is not None:
            if json.loads(heard[1]).get("state") == "online":
                return heard[0]
        return None

    def next(self, timeout_s: float = 3.0) -> tuple[str, str] | None:
        try:
            message = self.heard.get(timeout=timeout_s)
        except queue.Empty:
            return None
        return message.topic, message.payload.decode()
