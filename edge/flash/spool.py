"""An inbox on the box: bundles that were put there, by whatever means, are taken as if they had been sent."""

import logging
import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from edge.errors import FlashError
from edge.flash.archive import read_head
from edge.flash.manifest import Kind
from edge.flash.signing import load_trust
from edge.flash.slots import SUFFIX, BusyError, Result, Slots, sync_folder
from edge.flash.updater import Parcel, Updater

log = logging.getLogger(__name__)


def take_spool(updater: Updater, software: Updater | None = None) -> Iterator[tuple[str, Result | FlashError]]:
    """Apply every `*.ffbundle` of the spool in order of name, and remove it whatever came of it.

    Args:
        updater: takes configs, and refuses what it cannot understand.
        software: takes programs.

    Whoever puts one there writes it under another name and renames it.
    """
    updater.slots.prepare()
    for path in sorted(updater.slots.spool.glob(f"*{SUFFIX}")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as bundle:
                if not stat.S_ISREG(os.fstat(bundle.fileno()).st_mode):
                    raise FlashError(f"{path} is no plain file")
                brings = kind_of(bundle, updater.slots)
                taker = software if software is not None and brings == "software" else updater
                # Gone before it is tried: one that takes the whole box down is not tried again at each boot.
                parcel = Parcel(bundle, {}, on_trial=partial(_forget, path))
                yield path.name, taker.apply(parcel)
        except BusyError as error:
            yield path.name, error
            return  # it stays for the next time
        except FlashError as error:
            log.error("spool: %s refused: %s", path.name, error)
            yield path.name, error
        except OSError as error:
            yield path.name, FlashError(f"{path} cannot be read ({error.strerror})")
        _forget(path)


def _forget(path: Path) -> None:
    """Remove a bundle, durably."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def kind_of(bundle: BinaryIO, slots: Slots) -> Kind:
    """Return what a bundle brings, as far as its signature is trusted; the stream stands at its beginning again."""
    try:
        return read_head(bundle, load_trust(slots.trust)).manifest.kind
    except FlashError:
        return "config"  # whose updater says what is wrong with it
    finally:
        bundle.seek(0)
