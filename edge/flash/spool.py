"""An inbox on the box: bundles that were put there, by whatever means, are taken as if they had been sent."""

import logging
import os
import stat
from collections.abc import Iterator

from edge.errors import FlashError
from edge.flash.slots import SUFFIX, BusyError, Result
from edge.flash.updater import Parcel, Updater

log = logging.getLogger(__name__)


def take_spool(updater: Updater) -> Iterator[tuple[str, Result | FlashError]]:
    """Apply every `*.ffbundle` of the spool in order of name, and remove it whatever came of it.

    Whoever puts one there writes it under another name and renames it.
    """
    updater.slots.prepare()
    for path in sorted(updater.slots.spool.glob(f"*{SUFFIX}")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as bundle:
                if not stat.S_ISREG(os.fstat(bundle.fileno()).st_mode):
                    raise FlashError(f"{path} is no plain file")
                yield path.name, updater.apply(Parcel(bundle, {}))
        except BusyError as error:
            yield path.name, error
            return  # it stays for the next time
        except FlashError as error:
            log.error("spool: %s refused: %s", path.name, error)
            yield path.name, error
        except OSError as error:
            yield path.name, FlashError(f"{path} cannot be read ({error.strerror})")
        path.unlink(missing_ok=True)
