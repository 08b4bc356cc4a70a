"""What a flash does for a box's certificate: a claim goes onto a card; over SSH a request comes back and is signed.

The private key never leaves the box. The authority's key is opened by the authority's own command only, here or on
another machine.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from edge.box import certificate
from edge.box.certificate import CLAIM, RENEW_DAYS
from edge.box.enrollment import Claim, read_claim
from edge.box.keystore import make_folder
from edge.config import OWN_TLS, LoadedConfig
from edge.errors import ConfigError, FlashError
from edge.flash.desk import Seen
from edge.flash.slots import write_durably
from edge.flash.targets import CardTarget, Say, SshTarget, Target

ENROLL = (sys.executable, "-m", "bridge.cli", "ca", "enroll")
ENROLL_S = 120.0


@dataclass(frozen=True)
class Errand:
    """One thing to do for a certificate, as it is shown, and done when all is agreed on.

    Attributes:
        text: for a person, before.
        bring: does it; returns how it ended, for a person.
        first: before the config is sent, because the config is proven with it.
    """

    text: str
    bring: Callable[[Say], str]
    first: bool


def errand(args: argparse.Namespace, config: LoadedConfig, target: Target, seen: Seen) -> Errand | None:
    """Return what a flash was asked to do for the certificate, None when that is nothing.

    Args:
        args: `claim`, `ca`, `certificate`.
        config: of the box, on the desk.
        target: where it goes.
        seen: what is there.

    Raises:
        ConfigError: the config would not use a certificate of its own, or others may read the claim.
        EdgeError: the claim is damaged, of another box or over; the target is of the other kind.
    """
    if args.wait is not None and config.has_own_tls and args.reader is None:
        raise FlashError(
            "the box's certificate is not on this desk, so its birth cannot be heard here; "
            'name a reader\'s: "--reader DIR", from "facefleet-bridge ca enroll reader:NAME --out DIR"'
        )
    if not (args.claim or args.ca or args.certificate):
        return None
    if not config.has_own_tls:
        raise ConfigError(
            f"{config.path}: mqtt.tls.own is not true, so the box would not use a certificate of its own; "
            "write `tls: {own: true}` below mqtt"
        )
    if args.claim:
        if not isinstance(target, CardTarget):
            raise FlashError('--claim is for a card; over SSH the request is fetched and signed: "--ca DIR"')
        return _claim(read_claim(args.claim), config, target)
    if not isinstance(target, SshTarget):
        raise FlashError('--ca and --certificate go over SSH; a card gets a claim: "--claim FILE"')
    if args.certificate:
        chain = _read(args.certificate)
        return Errand(f"certificate: {args.certificate} is brought", lambda say: _bring(target, chain, say), True)
    return _sign(args.ca, config, target, seen)


def fetch_request(target: Target, config: LoadedConfig, out: Path) -> str:
    """Fetch a box's signing request into a file; return what to do with it.

    Raises:
        FlashError: the box cannot be asked, or the file not written.
    """
    if not isinstance(target, SshTarget):
        raise FlashError('--csr asks a box over SSH; a card gets a claim: "--claim FILE"')
    site, box = config.box.site, config.box.box
    try:
        out.write_bytes(target.certificate("request", site, box))
    except OSError as error:
        raise FlashError(f"{out} cannot be written ({error.strerror})") from error
    return (
        f"{out}: a request, no secret. Where the authority is: "
        f'"facefleet-bridge ca enroll {site}/{box} --csr {out.name} > {box}.pem"; then: '
        f'"facefleet-edge flash {config.path.name} {target.host} --certificate {box}.pem"'
    )


def _claim(claim: Claim, config: LoadedConfig, target: CardTarget) -> Errand:
    site, box = config.box.site, config.box.box
    if (claim.site, claim.box) != (site, box):
        raise FlashError(f"{claim.path} is for {claim.site}/{claim.box}, the config for {site}/{box}; make one for it")
    if certificate.now() >= claim.ends:
        raise FlashError(
            f"{claim.path} ended at {claim.ends:%Y-%m-%d %H:%M} UTC; "
            f'make a new one: "facefleet-bridge ca claim {site}/{box}"'
        )

    def bring(say: Say) -> str:
        folder = target.slots.root / OWN_TLS
        say("writing the claim")
        make_folder(folder)
        data = _read(claim.path)
        try:
            write_durably(folder / CLAIM, data, mode=0o600)
        except OSError as error:
            raise FlashError(f"{folder / CLAIM} cannot be written ({error.strerror})") from error
        if _read(folder / CLAIM) != data:
            raise FlashError(f"{folder / CLAIM} reads back as something else; the card is failing, use another")
        return f"claim written, mode 0600; the box uses it up at its first boot, until {claim.ends:%Y-%m-%d %H:%M} UTC"

    return Errand(f"claim {claim.path}: put beside the bundle", bring, first=False)


def _sign(authority: Path, config: LoadedConfig, target: SshTarget, seen: Seen) -> Errand | None:
    site, box = config.box.site, config.box.box
    try:
        ca = certificate.fingerprint(x509.load_pem_x509_certificate(_read(authority / "ca.pem")))
    except ValueError as error:
        raise FlashError(f"{authority / 'ca.pem'} is no certificate; is {authority} an authority's folder?") from error
    had = seen.certificate
    if had is None:
        text = "certificate: the box has none; it makes a request, which is signed here"
    elif (had.site, had.box) != (site, box) or had.authority != ca:
        text = f"certificate: the box has one of {had.site}/{had.box}, from another time; it asks for a new one"
    elif (days := had.days(certificate.now())) > RENEW_DAYS:
        return None
    else:
        text = f"certificate: good for {days:.0f} days more; it asks for a new one"

    def bring(say: Say) -> str:
        say("fetching the box's request")
        csr = target.certificate("request", site, box)
        say("signing it")
        return _bring(target, _enroll(authority, f"{site}/{box}", csr, say), say)

    return Errand(text, bring, first=True)


def _bring(target: SshTarget, chain: bytes, say: Say) -> str:
    say("bringing the certificate")
    return f"certificate: {target.certificate('accept', '-', given=chain).decode().strip()}"


def _enroll(authority: Path, name: str, csr: bytes, say: Say) -> bytes:
    """Have the authority's own command sign a request; this package opens no authority's key."""
    command = [*ENROLL, name, "--dir", str(authority)]
    try:
        done = subprocess.run(command, input=csr, capture_output=True, timeout=ENROLL_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise FlashError(f'"facefleet-bridge ca enroll {name}" did not end within {ENROLL_S:g} s') from error
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode:
        if "No module named" in said:
            said = f'{said.splitlines()[-1]}; pip install "facefleet[bridge]" here, or go in two steps with --csr'
        raise FlashError(f"the authority in {authority} did not sign: {said[-600:]}")
    for line in said.splitlines():
        say(line)
    return done.stdout


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FlashError(f"{path} cannot be read ({error.strerror})") from error
