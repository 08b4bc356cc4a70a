"""The box's end of the wire: one thread that commits events, sends them while a bridge accepts, and says we live.

It owns the outbox and the link. Everything that decides is elsewhere and pure: which batch goes next in `delivery`,
whether a twin lives under our id in `twin`, what may be forgotten in `outbox`. A broker or a bridge that is away is a
state, never an error.
"""

import logging
import queue
import random
import secrets
import threading
import time
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Literal
from uuid import UUID

import msgspec

from edge.box.facts import boot_id, machine_id
from edge.config import LoadedConfig, refuse_open_key
from edge.link import Link, LinkSettings, Message, Will
from edge.publish.delivery import Delivery, DeliverySettings
from edge.publish.outbox import Outbox
from edge.publish.twin import TwinWatch
from edge.wire import ROOT, BoxState, BridgeState, WireError, check_id, decode_ack, stream_name, topic

log = logging.getLogger(__name__)

SETTLE_S = 0.5  # the shortest time between two health messages or two births


@dataclass(frozen=True, slots=True)
class PublisherSettings:
    """Who we are and whom we believe.

    Attributes:
        link: how to reach the broker; client id and will are filled in here.
        database: the one database whose acks and bridge states count (P18).
        heartbeat_s: between two health messages.
        commit_s: longest time an event waits in memory before it is on the disk.
        linger_s: how long a clean stop waits for the last acks.
    """

    site: str
    box: str
    stream: int
    database: UUID
    link: LinkSettings
    heartbeat_s: float = 60.0
    commit_s: float = 1.0
    linger_s: float = 3.0
    boot: str = ""
    machine: str = ""
    software: str = ""
    config_digest: str = ""
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    delivery: DeliverySettings = field(default_factory=DeliverySettings)

    @property
    def client_id(self) -> str:
        """The client id, from the ids alone (P2)."""
        return f"facefleet-{check_id(self.site, 'site')}-{check_id(self.box, 'box')}"


@dataclass(frozen=True, slots=True)
class _Up:
    generation: int
    window: int


@dataclass(frozen=True, slots=True)
class _Down:
    why: str


@dataclass(frozen=True, slots=True)
class _Puback:
    mid: int
    generation: int


class Publisher:
    """Sends what an outbox holds, and the box's birth, health and death.

    `status`, `ack_age_s`, `turned_at_s` and `nonce` may be read from any thread.
    """

    def __init__(self, settings: PublisherSettings, outbox: Outbox, *, rng: random.Random | None = None) -> None:
        self.nonce = settings.nonce
        self.status = "disconnected: not tried yet"
        self.turned_at_s = time.monotonic()
        self._settings, self._outbox, self._rng = settings, outbox, rng or random.Random()
        self._topics = {kind: topic(settings.site, settings.box, kind) for kind in ("events", "state", "health", "ack")}
        self._born_ms = time.time_ns() // 1_000_000
        self._inbox: queue.SimpleQueue[tuple[int, _Up | _Down | _Puback | Message] | None] = queue.SimpleQueue()
        self._delivery = Delivery(outbox, settings.delivery, self._rng)
        self._twins = TwinWatch(self.nonce, self._born_ms, settings.heartbeat_s)
        self._bridges: dict[str, BridgeState] = {}
        self._health = b""
        self._health_new = False
        self._health_s = self._birth_s = float("-inf")
        self._birth_mid: int | None = None
        self._birth_answered = False  # a bridge has said what it holds of this life (P23)
        self._birth_wait_s = settings.delivery.resend_s
        self._birth_known = False  # the broker has once had our birth
        self._echoes = False  # we are allowed to hear our own health
        self._unheard_s: float | None = None  # when we said what we have not heard yet
        self._retakes = outbox.retakes
        self._acked_at_s: float | None = None
        self._committed_s = float("-inf")
        self._links = 0
        self._generation = 0  # the connection whose birth we have said; 0 while there is none
        self._listener = False
        self._link = self._new_link()
        self._stopping = threading.Event()
        self._died: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    # -- any thread --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect, commit and send, in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Commit what was appended, give the bridge a moment to ack it, publish our death, close the outbox."""
        self._stopping.set()
        self._inbox.put(None)
        if self._thread.ident is None:
            self._outbox.close()
        elif self._thread.is_alive():
            self._thread.join(self._settings.linger_s + 20.0)

    def check(self) -> None:
        """Raise what ended the publisher thread, if anything did; the owner calls this in its loop."""
        if self._died is not None:
            raise self._died
        if self._thread.ident is not None and not self._thread.is_alive() and not self._stopping.is_set():
            raise RuntimeError("the publisher thread is gone")

    def set_health(self, payload: bytes) -> None:
        """Publish this health soon, and again each heartbeat until the next one."""
        self._health, self._health_new = payload, True
        self._inbox.put(None)

    @property
    def ack_age_s(self) -> float | None:
        """Seconds since the database last acknowledged anything; None before."""
        at_s = self._acked_at_s
        return None if at_s is None else round(time.monotonic() - at_s, 1)

    def wait_delivered(self, timeout_s: float) -> bool:
        """Wait until every event appended so far is acked, or counted as lost; False when the time is over."""
        give_up_s = time.monotonic() + timeout_s
        while not self._outbox.idle():
            self.check()
            if time.monotonic() >= give_up_s:
                return False
            time.sleep(0.02)
        return True

    # -- the publisher's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._outbox.use(self._settings.database)
            self._link.start()
            stop_s: float | None = None
            while True:
                now_s = time.monotonic()
                if stop_s is None and self._stopping.is_set():
                    stop_s = now_s + self._settings.linger_s
                self._turn(now_s, commit_now=stop_s is not None)
                if stop_s is not None and (now_s > stop_s or self._outbox.idle() or not self._may_send()):
                    break
                self._hear(0.05 if stop_s is not None else max(0.0, self._wake_s(now_s) - time.monotonic()))
            dead = self._state("offline", "shutdown")
            self._link.stop(None if self._listener else (self._topics["state"], dead, 1, True))
        except BaseException as error:
            log.exception("the publisher died")
            self._died = error
            self._link.stop()
        finally:
            self._outbox.close(time.monotonic())

    def _turn(self, now_s: float, *, commit_now: bool) -> None:
        """Commit, send what may be sent, say what is due."""
        self.turned_at_s = now_s
        self._link.check()
        if commit_now or now_s - self._committed_s >= self._settings.commit_s:
            self._outbox.gather = not self._may_send()
            self._outbox.commit(now_s)
            self._committed_s = now_s
        if self._outbox.retakes != self._retakes:
            self._retakes = self._outbox.retakes
            self._delivery.rewind()
        if self._twins.listening(now_s) != self._listener:
            self._change_link()
        self._send(now_s)
        self._repeat_birth(now_s)
        self._say_health(now_s)
        self._check_ears(now_s)
        self.status = self._status(now_s)

    def _hear(self, wait_s: float) -> None:
        """Handle what the link has said, waiting for the first of it."""
        wait = True
        while True:
            try:
                said = self._inbox.get(timeout=wait_s) if wait else self._inbox.get_nowait()
            except queue.Empty:
                return
            wait = False
            if said is not None and said[0] == self._links:  # not of a link we have left
                self._handle(said[1])

    def _handle(self, said: _Up | _Down | _Puback | Message) -> None:
        match said:
            case _Up(generation, window):
                self._generation = generation
                if not self._listener:
                    self._birth_wait_s = self._settings.delivery.resend_s
                    self._be_born(generation)
                    self._delivery.connected(max(1, window - 2))  # births are messages too
                self._health_s, self._unheard_s = float("-inf"), None
            case _Down(why):
                self._generation = 0
                self._delivery.disconnected()
                self._bridges.clear()
                self.status = f"disconnected: {why}"
            case _Puback(mid, generation):
                if generation == self._generation:
                    self._birth_known |= mid == self._birth_mid
                    self._delivery.puback(mid)
            case Message() if said.generation == self._link.generation:  # P37
                self._message(said)

    def _message(self, message: Message) -> None:
        now_s = time.monotonic()
        try:
            if message.topic == self._topics["ack"]:
                ack = decode_ack(message.payload)
                if ack.database == self._settings.database.bytes:
                    self._outbox.cover(self._settings.database, ack.covered, now_s, complete=ack.complete)
                    ours = any(covered.stream == self._settings.stream for covered in ack.covered)
                    self._birth_answered |= ack.complete and ours and not message.retain
                    self._delivery.acked(now_s)
                    self._acked_at_s = self._acked_at_s if message.retain else now_s
            elif message.topic == self._topics["state"]:
                self._hear_state(msgspec.json.decode(message.payload, type=BoxState), message.retain, now_s)
            elif message.topic == self._topics["health"]:
                if not self._twins.heard_health(msgspec.json.decode(message.payload, type=_Who).nonce, now_s):
                    self._unheard_s, self._echoes = None, True
            elif message.topic.startswith(f"{ROOT}/bridge/"):
                self._hear_bridge(msgspec.json.decode(message.payload, type=BridgeState))
        except (WireError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            if message.payload:  # an empty one clears a retained message
                log.warning("ignored a message on %s: %s", message.topic, error)

    def _hear_bridge(self, state: BridgeState) -> None:
        if state.database != str(self._settings.database):
            return
        before = self._bridges.get(state.bridge)
        self._bridges[state.bridge] = state
        if state.state == "accepting" and (before is None or before.state != "accepting"):
            self._delivery.rewind()  # P20: it may have lost what was on its way

    def _hear_state(self, state: BoxState, retained: bool, now_s: float) -> None:
        foreign = self._twins.heard_state(state.nonce, state.t_ms, self._birth_known, now_s)
        buried = state.nonce == self.nonce and state.state == "offline" and not self._stopping.is_set()
        older = foreign and not self._twins.yields_to(state.nonce, state.t_ms)
        if (buried or (older and not retained)) and not self._listener and now_s - self._birth_s >= SETTLE_S:
            self._be_born(self._generation)  # our topic must say that we live

    # -- what we say -------------------------------------------------------------------------------------------------

    def _may_send(self) -> bool:
        """Return whether a bridge of our database accepts and acknowledges (P18, P19), and no twin is older (P29)."""
        return (
            self._generation > 0
            and self._link.connected
            and not self._listener
            and not self._twins.duplicate(time.monotonic())
            and any(bridge.state == "accepting" and bridge.ack for bridge in self._bridges.values())
        )

    def _send(self, now_s: float) -> None:
        if not self._may_send():
            return
        while (row := self._delivery.next(now_s)) is not None:
            payload = self._outbox.payload(row, inline_vocabulary=not self._delivery.first_time(row))
            if payload is None:
                continue
            mid = self._link.publish(self._topics["events"], payload, qos=1, often=True, generation=self._generation)
            if mid is None:  # the connection went meanwhile: everything is due again on the next
                return
            self._delivery.sent(row, mid, now_s)

    def _be_born(self, generation: int) -> None:
        self._birth_s, self._birth_answered = time.monotonic(), False
        birth = self._state("online", "")
        self._birth_mid = self._link.publish(self._topics["state"], birth, qos=1, retain=True, generation=generation)

    def _repeat_birth(self, now_s: float) -> None:
        """Say a birth again that no bridge has answered: a broker whose queue is full drops it, and says it was taken.

        Without it the events of this life would pass for those of an older one (P28).
        """
        if not self._birth_answered and now_s - self._birth_s >= self._birth_wait_s and self._may_send():
            self._birth_wait_s = min(2 * self._birth_wait_s, self._settings.delivery.resend_most_s)
            self._be_born(self._generation)

    def _say_health(self, now_s: float) -> None:
        due_s = self._health_s + (SETTLE_S if self._health_new else self._settings.heartbeat_s)
        if now_s < due_s or not self._health or not self._generation:
            return
        said = self._link.publish(
            self._topics["health"],
            self._health,
            qos=0,
            expiry_s=max(1, round(2 * self._settings.heartbeat_s)),
            generation=self._generation,
        )
        if said is not None:
            self._health_new = False
            self._health_s = now_s
            self._unheard_s = now_s if self._unheard_s is None else self._unheard_s

    def _check_ears(self, now_s: float) -> None:
        """Renew a connection that delivers nothing: amqtt lets the older of two twins speak on, but not hear."""
        if self._echoes and self._unheard_s is not None and now_s - self._unheard_s > 2 * self._settings.heartbeat_s:
            self._unheard_s = None
            self._link.renew("nothing comes back, not even our own health")

    def _status(self, now_s: float) -> str:
        if self._listener or self._twins.duplicate(now_s):
            return "duplicate_id"
        if not self._link.connected:
            return self.status if self.status.startswith("disconnected") else "disconnected: connection lost"
        return "connected" if self._may_send() else "waiting for a bridge"

    def _state(self, state: Literal["online", "offline"], reason: str) -> bytes:
        s = self._settings
        return msgspec.json.encode(
            BoxState(
                state=state,
                stream=stream_name(s.stream),
                boot=s.boot,
                machine=s.machine,
                nonce=s.nonce,
                reason=reason,
                t_ms=self._born_ms,
                software=s.software,
                config_digest=s.config_digest,
                vocabulary=self._outbox.vocabulary if state == "online" else None,
            )
        )

    # -- links -------------------------------------------------------------------------------------------------------

    def _new_link(self) -> Link:
        """Make the link: as ourselves, or beside a suspected twin as a listener without a will."""
        s = self._settings
        self._links += 1
        number = self._links
        own = [(self._topics["state"], 1), (self._topics["health"], 0)]
        listener = self._listener
        return Link(
            replace(
                s.link,
                client_id=f"{s.client_id}-{s.nonce}" if listener else s.client_id,
                clean_start=True,
                session_expiry_s=0,
                will=None if listener else Will(self._topics["state"], self._state("offline", "vanished")),
            ),
            on_message=lambda message: self._inbox.put((number, message)),
            on_up=lambda generation, window: self._inbox.put((number, _Up(generation, window))),
            on_down=lambda why: self._inbox.put((number, _Down(why))),
            on_puback=lambda mid, generation: self._inbox.put((number, _Puback(mid, generation))),
            # An ack is retained and says all there is of a stream, so the next one, or a resend, makes up for a lost
            # one: at QoS 0 it costs no PUBACK.
            subscriptions=own if listener else [*own, (self._topics["ack"], 0), (f"{ROOT}/bridge/+/state", 1)],
            rng=self._rng,
        )

    def _change_link(self) -> None:
        self._listener = not self._listener
        log.warning("%s", "another box seems to live under our id: listening" if self._listener else "alone again")
        self._generation = 0
        self._delivery.disconnected()
        self._bridges.clear()
        self._link.stop()
        self._link = self._new_link()
        self._link.start()

    def _wake_s(self, now_s: float) -> float:
        return min(self._committed_s + self._settings.commit_s, now_s + 1.0)


class _Who(msgspec.Struct):
    nonce: str


def publisher_settings(config: LoadedConfig, stream: int) -> PublisherSettings:
    """Return the settings of a box from its config.

    Raises:
        ConfigError: the broker's password is nowhere to be found, or others may read the key.
    """
    box, mqtt = config.box, config.box.mqtt
    tls = config.tls_files()
    if tls is not None and tls.key is not None:
        refuse_open_key(tls.key)
    link = LinkSettings(
        host=mqtt.host,
        client_id="",
        port=mqtt.port,
        protocol=mqtt.protocol,
        user=mqtt.user,
        password=config.secret(mqtt.password, "mqtt.password"),
        ca=tls.ca if tls else None,
        cert=tls.cert if tls else None,
        key=tls.key if tls else None,
        keep_alive_s=mqtt.keep_alive_s,
    )
    try:
        software = version("facefleet")
    except PackageNotFoundError:
        software = ""
    return PublisherSettings(
        site=box.site,
        box=box.box,
        stream=stream,
        database=UUID(box.database),
        link=link,
        heartbeat_s=box.health_s,
        commit_s=box.outbox.commit_s,
        boot=boot_id() or "",
        machine=machine_id(),
        software=software,
        config_digest=config.digest,
    )
