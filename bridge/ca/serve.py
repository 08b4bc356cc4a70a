"""`ca serve`: answers boxes that ask through the broker, in a process of its own beside the authority's key.

It knows no database, and the bridge that feeds the database knows no key. Requests come in and answers go out over one
connection of the authority's own (`enroller:ca`), which may do nothing else.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import msgspec

from bridge.ca import requests
from bridge.ca.authority import Authority
from bridge.ca.names import parse_name
from bridge.errors import BridgeError, ConfigError
from edge.link import Link, LinkSettings, Message
from edge.notify import Notifier
from edge.wire import ROOT, CertificateAnswer, WireError, parse_topic, topic

log = logging.getLogger(__name__)

WAITING = 1000  # requests; boxes ask again, so what comes on top may be dropped
TURN_S = 1.0
RETRY_S = 60.0  # after a broker that could not be told
KEEP_S = 86400.0  # how often it is looked whether the broker's own certificate ends


def serve(folder: Path, stop: threading.Event, now: Callable[[], datetime], reload: str = "") -> None:
    """Answer until told to stop.

    Args:
        folder: of the authority.
        stop: ends it.
        now: aware UTC.
        reload: what makes the broker read its files again; the one `ca init` was given unless set.

    Raises:
        BridgeError: there is no authority, or the connection died in a way that only a new process mends.
    """
    authority, notifier = Authority(folder), Notifier()
    certificate, key = authority.keep(now())
    broker = _Broker(authority, reload)
    broker.told(now())
    host, port = authority.broker_address
    asked: queue.Queue[Message] = queue.Queue(WAITING)

    def take(message: Message) -> None:
        try:
            asked.put_nowait(message)
        except queue.Full:
            log.warning("more requests than can be answered: one is dropped, and asked again by its box")

    link = Link(
        LinkSettings(host, "facefleet-ca", port, ca=folder / "ca.pem", cert=certificate, key=key),
        on_message=take,
        on_up=lambda *_: notifier.ready(f"answering at {host}:{port}"),
        on_down=lambda why: notifier.ready(f"broker away: {why}"),
        subscriptions=[(f"{ROOT}/+/+/request", 1)],
    )
    link.start()
    kept_s = time.monotonic()
    try:
        while not stop.is_set():
            link.check()
            notifier.alive()
            broker.told(now())
            if time.monotonic() - kept_s > KEEP_S:
                authority.keep(now())
                kept_s = time.monotonic()
            try:
                message = asked.get(timeout=TURN_S)
            except queue.Empty:
                continue
            _answer(authority, link, message, now())
    finally:
        notifier.stopping()
        link.stop()


def _answer(authority: Authority, link: Link, message: Message, now: datetime) -> None:
    try:
        site, box, _ = parse_topic(message.topic)
        name, request = parse_name(f"{site}/{box}"), requests.read(message.payload)
        digest = sha256(request.csr.encode()).hexdigest()
    except (WireError, ConfigError, UnicodeEncodeError) as error:
        log.warning("%s: %s", message.topic, error)
        return
    try:
        said = CertificateAnswer(digest, chain=authority.answer(name, request, now).decode())
        log.info("%s has its certificate", name)
    except ConfigError as error:
        said = CertificateAnswer(digest, refused=str(error))
        log.warning("%s: refused: %s", name, error)
    except (BridgeError, OSError) as error:  # a full disk: it asks again, and what was written holds
        log.error("%s: cannot be answered now: %s", name, error)
        return
    if link.publish(topic(site, box, "certificate"), msgspec.json.encode(said), qos=1) is None:
        log.warning("%s: the connection went before it was told; it asks again", name)


class _Broker:
    """Has the broker read its files again when they say something else, whoever wrote them: this process or a verb.

    A failure is said once, and tried again with the next change or after a while: a box that was just enrolled needs no
    reload, but a broker that never hears of its renewed certificate ends up with one that has run out.
    """

    def __init__(self, authority: Authority, command: str) -> None:
        self._authority, self._command = authority, command
        self._written_ns, self._knows = 0, object()
        self._again_s, self._said = math.inf, ""

    def told(self, now: datetime) -> None:
        """Look, and tell it."""
        try:
            written_ns = self._authority.written_ns()
            if written_ns == self._written_ns and time.monotonic() < self._again_s:
                return
            self._written_ns, self._again_s = written_ns, math.inf
            knows = self._authority.admits(now)
            if knows != self._knows and (todo := self._authority.reload(self._command)):
                log.warning("%s", todo)
            self._knows = knows
        except (BridgeError, OSError) as error:
            self._again_s, why = time.monotonic() + RETRY_S, str(error)
            level = logging.DEBUG if why == self._said else logging.ERROR
            log.log(level, "the broker was not told: %s; tried again every %.0f s", why, RETRY_S)
            self._said = why
        else:
            if self._said:
                log.info("the broker was told after all")
            self._said = ""
