"""How a box gets its certificate through the broker: at its first boot with a one-time claim.

    claim.pem ──► own key ──► request ──► answer ──► box.pem ──► the claim is thrown away ──► own identity

Power may fail at each arrow. The key stays; the authority answers a request again that it has answered before, with
the same certificate; and a claim is thrown away only when the certificate it brought is on the disk.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge.box import certificate
from edge.box.certificate import CLAIM
from edge.box.keystore import KeyStore, key_store
from edge.config import OWN_CERTIFICATE, LoadedConfig, TlsFiles, refuse_open_key
from edge.errors import EdgeError
from edge.link import Link, LinkSettings, Message
from edge.publish.publisher import publisher_settings
from edge.wire import CertificateAnswer, CertificateRequest, signed_request, topic

log = logging.getLogger(__name__)

AGAIN_S = 30.0  # a request that nobody answered is said again
TURN_S = 1.0
CLOCK_S = 2.0  # how often a clock that must be wrong is looked at

Say = Callable[[str], None]


class Step(StrEnum):
    """What comes next; announced before each, so that a test can cut the power there."""

    CLOCK = "clock"
    KEY = "key"
    ASK = "ask"
    STORE = "store"
    FORGET = "forget"
    DONE = "done"


class RefusedError(EdgeError):
    """The authority will not give a certificate."""


@dataclass(frozen=True)
class Claim:
    """A one-time claim: whoever has it may ask once for the certificate of one box.

    Attributes:
        path: its file: key, certificate, authority, PEM.
        begins: when it was made, and a day before: clocks of boxes lag.
    """

    path: Path
    site: str
    box: str
    begins: datetime
    ends: datetime
    certificate: str
    authority: bytes
    key: ec.EllipticCurvePrivateKey


def read_claim(path: Path) -> Claim:
    """Read a claim.

    Raises:
        EdgeError: it is damaged.
        ConfigError: others than its owner may read it.
    """
    refuse_open_key(path)
    try:
        data = path.read_bytes()
        own, ca = x509.load_pem_x509_certificates(data)
        key = serialization.load_pem_private_key(data, None)
        (site,) = own.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        (box,) = own.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    except OSError as error:
        raise EdgeError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise EdgeError(f'{path} is no claim; expected what "facefleet-bridge ca claim SITE/BOX" wrote') from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise EdgeError(f"{path} has a key of another kind than an elliptic curve's")
    begins, ends = own.not_valid_before_utc, own.not_valid_after_utc
    pem = serialization.Encoding.PEM
    shown = own.public_bytes(pem).decode()
    return Claim(path, str(site.value), str(box.value), begins, ends, shown, ca.public_bytes(pem), key)


def enroll(
    config: LoadedConfig,
    *,
    store: KeyStore | None = None,
    stop: threading.Event | None = None,
    say: Say = log.info,
    at: Callable[[Step], None] = lambda _: None,
) -> str:
    """Turn the claim that waits in a box's folder into a certificate; patient with broker, authority and clock.

    Args:
        config: of the box: who it is, and where its broker is.
        store: of its key; the one that belongs to the folder unless given.
        stop: ends the waiting.
        say: told once of each thing it waits for.
        at: told of each step before it is taken.

    Returns:
        Who the box is now and until when, for a person.

    Raises:
        RefusedError: the authority refuses it, with the reason.
        EdgeError: there is no claim, or it has ended, or is another box's.
    """
    stop = stop or threading.Event()
    site, box, folder = config.box.site, config.box.box, config.own_tls_dir
    if not (folder / CLAIM).exists() and (found := certificate.held(folder)):
        return f"{found.site}/{found.box} is enrolled already, until {found.until:%Y-%m-%d}"
    claim = read_claim(folder / CLAIM)
    if (claim.site, claim.box) != (site, box):
        raise EdgeError(f"{claim.path} is for {claim.site}/{claim.box}, this box is {site}/{box}; make one for it")
    store = store or key_store(folder)
    if _came_of(claim, folder, store):
        at(Step.FORGET)
        certificate.forget_claim(folder)
        return f"{site}/{box} was enrolled before the power went"
    at(Step.CLOCK)
    _wait_for_clock(claim, stop, say)
    at(Step.KEY)
    csr = certificate.request(folder, site, box, store)
    at(Step.ASK)
    with TemporaryDirectory(prefix="facefleet-enroll-") as scratch:
        (ca := Path(scratch) / "ca.pem").write_bytes(claim.authority)
        settings = own_settings(config, TlsFiles(ca, claim.path, claim.path), "claim")
        chain = ask(settings, sign(site, box, claim.certificate, claim.key, csr), site, box, stop, say=say)
    at(Step.STORE)
    said = certificate.accept(folder, chain, store, pinned=claim.authority)
    at(Step.DONE)
    return said


def sign(site: str, box: str, shown: str, key: ec.EllipticCurvePrivateKey, csr: bytes) -> CertificateRequest:
    """Return a request that the broker can pass on, and not make."""
    text = csr.decode()
    return CertificateRequest(shown, text, key.sign(signed_request(site, box, text), ec.ECDSA(hashes.SHA256())).hex())


def ask(
    settings: LinkSettings,
    request: CertificateRequest,
    site: str,
    box: str,
    stop: threading.Event,
    *,
    say: Say,
    patience_s: float = float("inf"),
) -> bytes:
    """Ask until there is an answer; return the certificate and its authority's (PEM).

    Raises:
        RefusedError: the answer is no.
        EdgeError: told to stop, or out of patience, before there was one.
    """
    heard: queue.SimpleQueue[Message | str | None] = queue.SimpleQueue()
    link = Link(
        settings,
        on_message=heard.put,
        on_up=lambda *_: heard.put(None),
        on_down=heard.put,
        subscriptions=[(topic(site, box, "certificate"), 1)],
    )
    payload, digest = msgspec.json.encode(request), sha256(request.csr.encode()).hexdigest()
    asked_s, last, give_up_s = float("-inf"), "", time.monotonic() + patience_s
    link.start()
    try:
        while not stop.is_set() and time.monotonic() < give_up_s:
            link.check()
            try:
                said = heard.get(timeout=TURN_S)
            except queue.Empty:
                said = None
            if isinstance(said, Message):
                if (chain := _chain(said, digest)) is not None:
                    return chain
            elif isinstance(said, str):
                asked_s = float("-inf")
                if said != last:
                    say(f"broker {settings.host}:{settings.port}: {said}")
                    last = said
            elif link.connected and time.monotonic() - asked_s > AGAIN_S:
                if asked_s > 0:
                    say('no answer yet; is "facefleet-bridge ca serve" running?')
                link.publish(topic(site, box, "request"), payload, qos=1)
                asked_s = time.monotonic()
    finally:
        link.stop()
    raise EdgeError(f"no certificate yet ({last or 'nobody answered'}); the next try comes by itself")


def _chain(message: Message, digest: str) -> bytes | None:
    """Return the certificate that an answer brings, None when it is to another request."""
    try:
        answer = msgspec.json.decode(message.payload, type=CertificateAnswer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("an answer to a request cannot be read: %s", error)
        return None
    if answer.csr != digest:
        return None
    if answer.refused:
        raise RefusedError(f"the authority refuses: {answer.refused}")
    return answer.chain.encode()


def own_settings(config: LoadedConfig, files: TlsFiles, suffix: str) -> LinkSettings:
    """Return how to reach the box's broker with these files, under a client id of its own."""
    settings = publisher_settings(config, 1)
    client_id = f"{settings.client_id}-{suffix}"
    return replace(settings.link, client_id=client_id, ca=files.ca, cert=files.cert, key=files.key)


def _came_of(claim: Claim, folder: Path, store: KeyStore) -> bool:
    """Tell whether the certificate that is there came after the claim was made, for the key that is there."""
    try:
        own = x509.load_pem_x509_certificate((folder / OWN_CERTIFICATE).read_bytes())
    except (OSError, ValueError):
        return False
    pem = store.read()
    fits = pem is not None and certificate.read_key(pem).public_key() == own.public_key()
    return fits and own.not_valid_before_utc >= claim.begins


def _wait_for_clock(claim: Claim, stop: threading.Event, say: Say) -> None:
    """Wait while the clock says a time at which the claim, and so the broker's certificate, was not made yet.

    Raises:
        EdgeError: told to stop, or the claim has ended.
    """
    said = False
    while (now := certificate.now()) < claim.begins:
        if not said:
            say(
                f"the clock here says {now:%Y-%m-%d %H:%M}, and the claim was made after {claim.begins:%Y-%m-%d}: "
                "waiting until NTP has set it"
            )
            said = True
        if stop.wait(CLOCK_S):
            raise EdgeError("told to end while waiting for the clock to be set")
    if now >= claim.ends:
        raise EdgeError(
            f"the claim ended at {claim.ends:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M} here; make a new one: "
            f'"facefleet-bridge ca claim {claim.site}/{claim.box}", and put it on the card: "facefleet-edge flash … '
            '--claim FILE"'
        )
