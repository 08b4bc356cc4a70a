"""A running box keeps its certificate good: it asks its authority for the next one before the end of this one.

The key stays the same. The first question after an enrolment also tells the authority that the claim may be closed.
"""

import logging
import random
import threading
from typing import Self

from edge.box import certificate
from edge.box.certificate import CLAIMED, RENEW_DAYS
from edge.box.enrollment import RefusedError, ask, own_settings, sign
from edge.box.keystore import KeyFile
from edge.config import OWN_CERTIFICATE, LoadedConfig
from edge.errors import EdgeError

log = logging.getLogger(__name__)

FIRST_S = (1.0, 10.0)  # after the start, so that a fleet does not ask in the same second
LOOK_S = 3600.0  # how often the end is looked at
RETRY_S = (60.0, 12 * 3600.0)  # first and longest wait after a question that nobody answered
PATIENCE_S = 60.0  # for one answer


class Renewal:
    """A thread that sleeps until there is something to ask; only then has it a connection.

    Args:
        config: of a box with a certificate of its own.
        rng: jitter.
    """

    def __init__(self, config: LoadedConfig, rng: random.Random | None = None) -> None:
        self._config, self._rng = config, rng or random.SystemRandom()
        self._folder = config.own_tls_dir
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10.0)

    def due(self) -> bool:
        """Tell whether there is something to ask: a claim to be closed, or an end that is near."""
        found = certificate.held(self._folder)
        soon = found is not None and 0 < found.days(certificate.now()) < RENEW_DAYS
        return soon or (self._folder / CLAIMED).exists()

    def renew(self) -> str:
        """Ask, and take what comes; return until when the certificate is good, for a person.

        Raises:
            EdgeError: nobody answered, it was refused, or it cannot be written.
        """
        site, box, files = self._config.box.site, self._config.box.box, self._config.tls_files()
        assert files is not None, "only a box with a certificate renews it"
        assert files.key is not None, "its own has one"
        store = KeyFile(files.key)
        if (pem := store.read()) is None:
            raise EdgeError(f"{files.key} is not there, so nothing can be renewed")
        key = certificate.read_key(pem)
        shown = (self._folder / OWN_CERTIFICATE).read_text()
        request = sign(site, box, shown, key, certificate.csr(key, site, box))
        settings = own_settings(self._config, files, "renew")
        chain = ask(settings, request, site, box, self._stop, say=log.info, patience_s=PATIENCE_S)
        if chain.startswith(shown.encode()):
            said = "the certificate is good for long"  # the authority has heard of us, and that was all
        else:
            said = certificate.accept(self._folder, chain, store, pinned=files.ca.read_bytes())
        (self._folder / CLAIMED).unlink(missing_ok=True)
        return said

    def _run(self) -> None:
        wait_s, retry_s = self._rng.uniform(*FIRST_S), RETRY_S[0]
        while not self._stop.wait(wait_s):
            wait_s = self._rng.uniform(LOOK_S / 2, LOOK_S)
            try:
                if self.due():
                    log.info("certificate: %s", self.renew(), extra={"EVENT": "certificate"})
                    retry_s = RETRY_S[0]
            except (EdgeError, OSError) as error:
                level = logging.WARNING if isinstance(error, RefusedError) else logging.INFO
                log.log(level, "certificate: %s", error)
                wait_s, retry_s = self._rng.uniform(retry_s / 2, retry_s), min(2 * retry_s, RETRY_S[1])
            except Exception:
                log.exception("certificate: a bug must not take the box down with it")
