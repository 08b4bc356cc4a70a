"""Read a folder of calibration pictures for a foreign checkpoint, and refuse one that would fix useless ranges."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from converters.errors import QuantizeError
from converters.quantization.detector_artefacts import pick
from edge.models.bundle import sha256

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
Images = NDArray[np.uint8]
LIMIT = 160


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures under a folder, sorted.

    Raises:
        QuantizeError: no folder, or none in it.
    """
    if not folder.is_dir():
        raise QuantizeError(f"{folder}: no such folder; expected one with 128 to 300 pictures to calibrate on")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise QuantizeError(f"{folder}: no pictures ({', '.join(SUFFIXES)}); 128 to 300 from where the box will stand")
    return found


def read_picture(path: Path) -> Images:
    """Return (H, W, 3) uint8 BGR.

    Raises:
        QuantizeError: not a readable picture.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise QuantizeError(f"{path}: not a readable picture; remove it or replace it")
    return np.asarray(image, np.uint8)


def calibration_pictures(
    folder: Path, fit: Callable[[Images], Images], *, colour: bool, limit: int = LIMIT
) -> tuple[list[Images], list[str]]:
    """Return at most `limit` pictures, the same ones every time, and their files' SHA-256.

    Args:
        folder: searched with everything below it.
        fit: letterboxes or stretches (H, W, 3) uint8 BGR to (1, height, width, 3).
        colour: the network eats colour, so pictures without any would fix the wrong ranges.
        limit: pictures used.

    Raises:
        QuantizeError: an empty folder, an unreadable picture, only grey ones, or only uniform ones.
    """
    files: Sequence[Path] = pick(picture_files(folder), limit)
    images = [fit(read_picture(path)) for path in files]
    if all(image.std(axis=(1, 2)).max() < 2 for image in images):
        raise QuantizeError(f"{folder}: all {len(images)} pictures are of one shade; give pictures of real scenes")
    if colour and all(not np.ptp(image.astype(np.int16), axis=3).any() for image in images):
        raise QuantizeError(f"{folder}: all {len(images)} pictures are grey, but this network eats colour; give colour")
    return images, [sha256(path) for path in files]
