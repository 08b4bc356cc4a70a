"""Pull: a flashed box takes bundles that its broker offers, and says how its updates ended. Part of the running box.

The offer is a retained reference (`…/offer`); the bundle is fetched into the spool, where the updater takes it like any
other: what is offered is as little trusted as what lies there. The report (`…/flash`) is retained too.
"""

import hashlib
import logging
import os
import queue
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import msgspec

from edge.config import LoadedConfig
from edge.flash.manifest import MAX_TOTAL_BYTES, counter_of
from edge.flash.slots import SUFFIX, FlashState, Result, read_json
from edge.install.program import HOME
from edge.link import Link, Message
from edge.publish.publisher import publisher_settings
from edge.wire import FlashReport, Offer, topic

log = logging.getLogger(__name__)

SCHEMES = ("https", "file")
FETCH_S = 30.0  # of silence
CHUNK_BYTES = 1 << 20
LOOK_S = 1.0  # how often result.json is looked at
RETRY_S = (30.0, 1800.0)  # first and longest wait after a failed fetch
PROGRAMS = Path("/") / HOME
SPARE_BYTES = 128 << 20  # beside the bundle: its slot comes on top, the updater judges that


class OfferError(Exception):
    """An offer cannot be fetched; the message says why."""


class Offers:
    """A thread with a broker connection of its own: an update must not wait for events, nor events for an update.

    Args:
        config: of a flashed box, whose state folder holds `identity.json`.
        rng: jitter of retries: a fleet must not fetch in the same second.
        programs: the folder of the program's versions.
    """

    def __init__(self, config: LoadedConfig, rng: random.Random | None = None, programs: Path = PROGRAMS) -> None:
        self.state_dir, self._programs = config.state_dir, programs
        self._rng = rng or random.SystemRandom()
        self._heard: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        site, box = config.box.site, config.box.box
        self._topic = topic(site, box, "flash")
        settings = publisher_settings(config, 1)
        self._ca = settings.link.ca
        self._link = Link(
            replace(settings.link, client_id=f"{settings.client_id}-offers"),
            on_message=self._message,
            on_up=lambda *_: self._heard.put(None),
            on_down=lambda _: None,
            subscriptions=[(topic(site, box, "offer"), 1)],
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="offers", daemon=True)
        self._said = b""
        self._failed: FlashReport | None = None

    def __enter__(self) -> Self:
        self._link.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._heard.put(None)
        self._thread.join(5.0)
        self._link.stop()

    def _message(self, message: Message) -> None:
        self._heard.put(message.payload)

    def _run(self) -> None:
        offer: Offer | None = None
        wait_s, due_s = RETRY_S[0], 0.0
        while not self._stop.is_set():
            try:
                said = self._heard.get(timeout=LOOK_S)
                if said is None:
                    self._said = b""  # a new connection: say it again
                else:
                    offer, wait_s, due_s = read_offer(said), RETRY_S[0], 0.0
            except queue.Empty:
                pass
            try:
                if offer is not None and time.monotonic() >= due_s and wanted(self.state_dir, offer, self._programs):
                    log.info("offered counter %d, fetching %s", offer.counter, shown(offer.url))
                    fetch(offer, self.state_dir, self._stop, self._ca)
                    self._failed = None
            except OfferError as error:
                assert offer is not None
                log.warning("offer %d: %s", offer.counter, error)
                self._failed = FlashReport(offer.counter, "unreachable", str(error))
                due_s, wait_s = time.monotonic() + self._rng.uniform(wait_s / 2, wait_s), min(2 * wait_s, RETRY_S[1])
            except Exception:
                log.exception("offers: a bug must not take the box down with it")
                offer = None
            self._report()

    def _report(self) -> None:
        report = self._failed or standing(self.state_dir)
        data = msgspec.json.encode(report) if report else b""
        if data and data != self._said and self._link.publish(self._topic, data, qos=1, retain=True) is not None:
            self._said = data


def read_offer(payload: bytes) -> Offer | None:
    """Read an offer; None where it was taken back (an empty message) or cannot be one."""
    if not payload:
        return None
    try:
        offer = msgspec.json.decode(payload, type=Offer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("an offer cannot be read: %s", error)
        return None
    if offer.counter <= 0 or not 0 < offer.bytes <= MAX_TOTAL_BYTES or len(offer.sha256) != 64:
        log.warning("an offer of %d bytes with counter %d is ignored", offer.bytes, offer.counter)
        return None
    return offer


def wanted(state_dir: Path, offer: Offer, programs: Path = PROGRAMS) -> bool:
    """Tell whether an offer is newer than what runs of its kind, and was not in the spool before.

    Configs and programs of one key share a counter: a program may be older than the config, and still be news here.
    """
    states = {
        "config": read_json(state_dir / "flash.json", FlashState),
        "software": read_json(programs / "flash.json", FlashState),
    }
    if any(state is not None and state.phase != "settled" for state in states.values()):
        return False  # one thing at a time: the proof of what is tried restarts the box
    state = states[offer.kind]
    if state is not None and offer.counter <= counter_of(state.slot):
        return False
    return read_json(state_dir / "offer.json", Offer) != offer


def fetch(offer: Offer, state_dir: Path, stop: threading.Event, ca: Path | None = None) -> None:
    """Put an offered bundle into the spool.

    Args:
        offer: what is where.
        state_dir: of the box; the spool is in it.
        stop: ends it.
        ca: the fleet's own authority, which may vouch for a server as the system's authorities may: what is fetched is
            believed for its signature, not for where it lay.

    Raises:
        OfferError: it cannot be had, or is another than was offered.
    """
    if shown(offer.url).partition(":")[0] not in SCHEMES:
        raise OfferError(f"{shown(offer.url)} is refused, expected one of {', '.join(SCHEMES)}")
    part = state_dir / "spool" / f".{offer.counter}.part"
    digest, size = hashlib.sha256(), 0
    try:
        space = os.statvfs(part.parent)
        if space.f_bavail * space.f_frsize < offer.bytes + SPARE_BYTES:
            raise OfferError(f"no room for {offer.bytes >> 20} MB; make some")
        with _opener(ca).open(offer.url, timeout=FETCH_S) as source, part.open("wb") as out:
            while chunk := source.read(CHUNK_BYTES):
                size += len(chunk)
                if size > offer.bytes or stop.is_set():
                    break
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if stop.is_set():
            raise OfferError("the box is ending; the next start fetches it")
        if size != offer.bytes or digest.hexdigest() != offer.sha256:
            raise OfferError(f"{shown(offer.url)} holds something else than was offered; offer it again")
        aside = state_dir / ".offer.json.new"
        aside.write_bytes(msgspec.json.encode(offer))  # first: a bundle that kills the box is not fetched for ever
        os.replace(aside, state_dir / "offer.json")
        os.replace(part, part.with_name(f"{offer.counter}{SUFFIX}"))
    except (OSError, ValueError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise OfferError(
            f"{shown(offer.url)} cannot be fetched ({_why(error)}); the next try comes by itself"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def standing(state_dir: Path) -> FlashReport | None:
    """Return how the last update ended, or that an offer waits for the updater."""
    result, offer = read_json(state_dir / "result.json", Result), read_json(state_dir / "offer.json", Offer)
    try:
        newer = offer is not None and (
            result is None
            or (state_dir / "offer.json").stat().st_mtime_ns > (state_dir / "result.json").stat().st_mtime_ns
        )
    except OSError:
        newer = False
    if newer and offer is not None:
        return FlashReport(offer.counter, "taken")
    if result is None:
        return None
    counter = result.counter or (offer.counter if offer is not None else 0)
    return FlashReport(counter, result.outcome, result.reason, result.at)


def shown(url: str) -> str:
    """Return an address as it may stand in a log: without user, password and query."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError:
        return "what is no address"


def _why(error: Exception) -> str:
    """Return why a fetch failed, in words that do not repeat its address: that may hold a password."""
    inner = getattr(error, "reason", None)
    found = inner if isinstance(inner, OSError) else error
    if isinstance(found, urllib.error.HTTPError):
        return f"HTTP {found.code}"
    if isinstance(found, OSError) and not isinstance(found, urllib.error.URLError):
        return found.strerror or str(found)
    return str(inner) if isinstance(inner, str) else type(found).__name__


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects to HTTPS only: urllib would follow one to http or ftp."""

    def redirect_request(  # type: ignore[no-untyped-def]
        self, req, fp, code, msg, headers, newurl
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme != "https":
            fp.close()
            raise urllib.error.URLError(f"redirected to {shown(newurl)}, expected https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(ca: Path | None) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    if ca is not None:
        context.load_verify_locations(ca)
    return urllib.request.build_opener(_NoDowngrade, urllib.request.HTTPSHandler(context=context))
