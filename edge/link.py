"""One MQTT connection, kept alive: what boxes and bridges share of paho, and the only module that imports it.

paho 2 has traps that this module exists to close: its own reconnect loop resends and retries unseen, an exception in
a callback ends its thread while it still says "connected", and writing from two threads can interleave packets. So
each connection is a fresh paho client, driven by one thread of ours; nothing survives from one *generation* (one
successful CONNACK) to the next, and whoever owns a Link calls `check()` in its loop to hear of a death inside it.
"""

import contextlib
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge.errors import EdgeError
from edge.validity import explain

log = logging.getLogger(__name__)

CONNECT_S = 10.0  # for TCP, TLS, CONNACK and SUBACK together
FAREWELL_S = 3.0  # how long a clean stop waits for the PUBACK of its farewell
WINDOW_311 = 20  # MQTT 3.1.1 cannot say its window: Mosquitto's default
STABLE_S = 10.0  # a connection shorter than this does not reset the backoff: two boxes with one id would hammer


class LinkError(EdgeError):
    """The connection cannot be set up as configured: a certificate that is not there, a protocol unknown."""


class LinkDied(LinkError):
    """A callback raised, or the network thread is gone. The process should end: what it believes is no longer true."""


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes when this client vanishes."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Where and how to connect. With `ca` or `cert` the connection is TLS.

    Attributes:
        keep_alive_s: smaller notices a half-open connection sooner and costs a ping each period.
        session_expiry_s: MQTT 5 only: how long the broker keeps the session of a client that is away.
        receive_maximum: MQTT 5 only: how many unacknowledged deliveries the broker may have under way to us.
        backoff_s: first and longest wait between attempts; the wait is drawn uniformly below it (full jitter).
    """

    host: str
    client_id: str
    port: int = 1883
    protocol: Literal["5", "3.1.1"] = "5"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    keep_alive_s: int = 30
    clean_start: bool = True
    session_expiry_s: int = 0
    receive_maximum: int = 64
    will: Will | None = None
    backoff_s: tuple[float, float] = (1.0, 60.0)


@dataclass(frozen=True, slots=True)
class Message:
    """One delivery. `generation` says over which connection it came: an ack must go back over the same one."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    mid: int
    generation: int
    dup: bool


class Link:
    """One MQTT connection with bounded, jittered reconnects.

    All callbacks run on the network thread and must be short; an exception in one is logged, ends the connection and
    makes `check` raise. `publish`, `ack` and `check` may be called from any thread.

    Args:
        on_message: one delivery; without `manual_ack` it is acknowledged to the broker when the callback returns.
        on_up: (generation, how many QoS 1 messages the broker lets us have in flight); subscriptions are in place.
        on_down: why there is no connection, after each failed attempt and each loss; holds no secret.
        on_puback: (mid, generation). May come before `publish` has returned: put it into a queue of your own.
        subscriptions: (topic filter, qos), renewed on each connect.
        manual_ack: acknowledge by `ack`, which is how a slow reader pushes back.
    """

    def __init__(
        self,
        settings: LinkSettings,
        *,
        on_message: Callable[[Message], None],
        on_up: Callable[[int, int], None],
        on_down: Callable[[str], None],
        on_puback: Callable[[int, int], None] | None = None,
        subscriptions: Sequence[tuple[str, int]] = (),
        manual_ack: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self.turned_at_s = time.monotonic()  # the network thread's last turn: stands still when it hangs
        self.generation = 0
        self._on_message, self._on_up, self._on_down, self._on_puback = on_message, on_up, on_down, on_puback
        self._subscriptions = tuple(subscriptions)
        self._manual_ack = manual_ack
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._client: Client | None = None  # set while the connection is up
        self._why = ""
        self._peer_receive_maximum = WINDOW_311
        self._alias_maximum = 0  # topics the broker lets us number on this connection
        self._aliases: dict[str, int] = {}
        self._died: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"mqtt {settings.client_id}", daemon=True)
        self._tls()  # a missing certificate is a mistake of the config, not a state of the network

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and holds our subscriptions."""
        return self._client is not None

    def start(self) -> None:
        """Begin to connect, in the background. A broker that is down is a state, not an error."""
        self._thread.start()

    def stop(self, farewell: tuple[str, bytes, int, bool] | None = None) -> None:
        """Publish `farewell` (topic, payload, qos, retain), wait for its PUBACK, disconnect, join the thread.

        A clean disconnect discards the will, so whoever has one says goodbye itself.
        """
        if farewell is not None:
            topic, payload, qos, retain = farewell
            info = self._publish(topic, payload, qos, retain, None, None)
            if info is not None:
                with contextlib.suppress(ValueError, RuntimeError):  # lost meanwhile: the will speaks for us
                    info.wait_for_publish(FAREWELL_S)
        self._stopping.set()
        with self._lock:
            if self._client is not None:
                self._client.disconnect()  # only queued, and wakes the network thread, which writes it
        if self._thread.is_alive():
            self._thread.join(CONNECT_S + 5.0)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        expiry_s: int | None = None,
        often: bool = False,
        generation: int | None = None,
    ) -> int | None:
        """Hand a message to the current connection; nothing is kept for a later one.

        Args:
            topic: without wildcards.
            payload: at most what the broker takes.
            qos: 0 or 1.
            retain: whether the broker keeps it for later subscribers.
            expiry_s: MQTT 5 only, else ignored: the broker drops the message after this time.
            often: MQTT 5 only, else ignored: this topic is worth a number, which stands for it from its second message
                on. Such messages come from one thread only: the first must be on its way before the others.
            generation: publish only while this is still the current connection.

        Returns:
            The message id, as `on_puback` will name it; None when not connected.
        """
        info = self._publish(topic, payload, qos, retain, expiry_s, generation, often=often)
        return None if info is None else info.mid

    def ack(self, message: Message) -> bool:
        """Acknowledge a delivery to the broker; False when its connection is gone and the broker will deliver again."""
        with self._lock:
            client = self._client if message.generation == self.generation else None
        return client is not None and client.ack(message.mid, message.qos) is MQTTErrorCode.MQTT_ERR_SUCCESS

    def renew(self, why: str) -> None:
        """Drop the connection and make a new one, for an owner who knows that this one is good for nothing."""
        with self._lock:
            if self._client is not None:
                self._why = why

    def check(self) -> None:
        """Raise LinkDied when a callback raised or the network thread is gone; the owner calls this in its loop."""
        if self._died is not None:
            raise LinkDied(f"MQTT link {self.settings.client_id} died: {self._died!r}") from self._died
        if self._thread.ident is not None and not self._thread.is_alive() and not self._stopping.is_set():
            raise LinkDied(f"MQTT link {self.settings.client_id}: its network thread is gone")

    # -- the network thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        first_s, longest_s = self.settings.backoff_s
        failures, said = 0, ""
        try:
            while not self._stopping.is_set():
                began_s = time.monotonic()
                self._why = ""
                self._connection()
                if self._stopping.is_set():
                    return
                why = self._why or "connection lost"
                if dates := explain(self.settings.cert, self.settings.ca):
                    why = f"{why}; {dates}"
                log.log(
                    logging.DEBUG if why == said else logging.WARNING,
                    "broker %s:%d, as %s: %s", self.settings.host, self.settings.port, self.settings.client_id, why,
                    extra={"EVENT": "broker_lost"},
                )  # fmt: skip
                said = why
                self._on_down(why)
                failures = 1 if time.monotonic() - began_s > STABLE_S else failures + 1
                wait_s = self._rng.uniform(0.0, min(longest_s, first_s * 2.0 ** min(failures - 1, 16)))
                while wait_s > 0 and not self._stopping.wait(min(wait_s, 1.0)):
                    self.turned_at_s = time.monotonic()
                    wait_s -= 1.0
        except BaseException as error:
            self._died = self._died or error
            log.exception("MQTT link %s died", self.settings.client_id)

    def _connection(self) -> None:
        """Live through one connection, from TCP to its end; `_why` says how it ended."""
        client = self._new_client()
        try:
            self._connect(client)
            give_up_s = time.monotonic() + CONNECT_S
            leave_s: float | None = None
            while client.loop(0.5) is MQTTErrorCode.MQTT_ERR_SUCCESS:
                self.turned_at_s = time.monotonic()
                if self._stopping.is_set():
                    leave_s = leave_s or self.turned_at_s + FAREWELL_S
                    if not self.connected or self.turned_at_s > leave_s:
                        return
                if self._why:
                    return
                if not self.connected and time.monotonic() > give_up_s:
                    self._why = f"no answer within {CONNECT_S:.0f} s"
                    return
        except (OSError, ssl.CertificateError) as error:  # ssl.SSLError is an OSError
            if self._died is not None:
                raise
            self._why = self._why or _reason(error)
        finally:
            with self._lock:
                self._client = None
            sock = client.socket()
            if sock is not None:
                sock.close()

    def _new_client(self) -> Client:
        s = self.settings
        five = s.protocol == "5"
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=s.client_id,
            clean_session=None if five else s.clean_start,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=self._manual_ack,
        )
        client.connect_timeout = CONNECT_S
        client.max_inflight_messages = 0  # the owner keeps the window: it knows the peer's
        if s.user is not None:
            client.username_pw_set(s.user, s.password)
        context = self._tls()  # read anew: certificates are renewed under a running process
        if context is not None:
            client.tls_set_context(context)
        if s.will is not None:
            client.will_set(s.will.topic, s.will.payload, s.will.qos, s.will.retain)
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_disconnect = self._disconnected
        client.on_message = self._message
        client.on_publish = self._published
        client.on_socket_register_write = _leave_writing_to_the_loop
        return client

    def _connect(self, client: Client) -> None:
        s = self.settings
        if s.protocol == "5":
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = s.session_expiry_s
            properties.ReceiveMaximum = s.receive_maximum
            client.connect(s.host, s.port, s.keep_alive_s, clean_start=s.clean_start, properties=properties)
        else:
            client.connect(s.host, s.port, s.keep_alive_s)

    def _tls(self) -> ssl.SSLContext | None:
        s = self.settings
        if s.ca is None and s.cert is None:
            return None
        try:
            context = ssl.create_default_context(cafile=s.ca)
            if s.cert is not None:
                context.load_cert_chain(s.cert, s.key)
        except (OSError, ssl.SSLError) as error:
            raise LinkError(
                f"TLS for {s.host}:{s.port} cannot use ca {s.ca}, cert {s.cert}, key {s.key}: {_reason(error)}; "
                "expected readable PEM files that belong together"
            ) from error
        return context

    # -- paho's callbacks --------------------------------------------------------------------------------------------

    def _connected(
        self, client: Client, _: Any, __: ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        if code.is_failure:
            self._why = f"refused: {code}"
            return
        if self.settings.protocol == "5":
            self._peer_receive_maximum = getattr(properties, "ReceiveMaximum", 65_535)
        with self._lock:
            self.generation += 1
            self._alias_maximum, self._aliases = getattr(properties, "TopicAliasMaximum", 0), {}
        if not self._subscriptions:
            self._up(client)
        elif self.settings.protocol == "5":
            client.subscribe([(name, SubscribeOptions(qos=qos)) for name, qos in self._subscriptions])
        else:
            client.subscribe(list(self._subscriptions))

    def _subscribed(self, client: Client, _: Any, __: int, codes: list[ReasonCode], ___: Properties | None) -> None:
        refused = [name for (name, _qos), code in zip(self._subscriptions, codes, strict=False) if code.is_failure]
        if refused:
            self._why = f"refused: subscription to {', '.join(refused)}; does the broker's access list allow it?"
        else:
            self._up(client)

    def _up(self, client: Client) -> None:
        with self._lock:
            self._client = client
        broker = self.settings.host, self.settings.port, self.settings.client_id
        log.info("connected to %s:%d as %s", *broker, extra={"EVENT": "broker_connected"})
        self._guard(self._on_up, self.generation, self._peer_receive_maximum)

    def _disconnected(
        self, _: Client, __: Any, flags: DisconnectFlags, code: ReasonCode, ___: Properties | None
    ) -> None:
        with self._lock:
            self._client = None
        if flags.is_disconnect_packet_from_server:
            self._why = self._why or f"closed by the broker: {code}"
        else:
            self._why = self._why or "connection lost"

    def _message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            log.warning("dropped a message whose topic is not UTF-8")
            return
        delivery = Message(
            topic, bytes(message.payload), message.qos, message.retain, message.mid, self.generation, message.dup
        )
        self._guard(self._on_message, delivery)

    def _published(self, _: Client, __: Any, mid: int, code: ReasonCode, ___: Properties | None) -> None:
        if code.is_failure:
            log.warning("broker %s:%d refused a message: %s", self.settings.host, self.settings.port, code)
        if self._on_puback is not None:
            self._guard(self._on_puback, mid, self.generation)

    def _guard(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            callback(*args)
        except BaseException as error:
            self._died = error
            raise

    def _publish(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool,
        expiry_s: int | None,
        generation: int | None,
        *,
        often: bool = False,
    ) -> MQTTMessageInfo | None:
        with self._lock:
            client = self._client
            if client is None or generation not in (None, self.generation):
                return None
            alias = self._aliases.get(topic)
            known = alias is not None
            if often and not known and len(self._aliases) < self._alias_maximum:
                alias = self._aliases[topic] = len(self._aliases) + 1
        properties = None
        if self.settings.protocol == "5" and (expiry_s is not None or alias is not None):
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if expiry_s is not None:
                properties.MessageExpiryInterval = expiry_s
            if alias is not None:
                properties.TopicAlias = alias
        info = client.publish("" if known else topic, payload, qos, retain, properties)
        return info if info.rc is MQTTErrorCode.MQTT_ERR_SUCCESS else None


def _leave_writing_to_the_loop(*_: Any) -> None:
    """Stand in for a write notifier: without one paho writes from the publishing thread, beside its own loop."""


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
