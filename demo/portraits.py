"""Two public-domain portraits that come inside packages, cut out of their backgrounds: NASA's Eileen Collins from
scikit-image, the US Navy's Grace Hopper from matplotlib. Nothing is downloaded. The outlines are drawn by hand.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from demo.errors import DemoError

Point = tuple[int, int]
FEATHER_PX = 1.4  # standard deviation of the soft edge, at the portrait's own size
EXTEND_PX = 260  # clothes continued below the portrait, so that a far person still reaches behind the counter


@dataclass(frozen=True, slots=True)
class Portrait:
    """Where a portrait lies and what is on it.

    Attributes:
        package: The package that ships it.
        path: The file inside that package.
        face_xyxy: The face in portrait pixels, as detectors draw it: brow to chin, ear to ear.
        outline: Head and shoulders, clockwise or not, in portrait pixels.
        suit_hue: Hues (OpenCV, 0–179) that a look may turn into another colour: the clothes and never the skin.
        suit_top: Row below which clothes are.
    """

    package: str
    path: str
    face_xyxy: tuple[float, float, float, float]
    outline: tuple[Point, ...]
    suit_hue: tuple[int, int] | None
    suit_top: int


@dataclass(frozen=True, slots=True)
class Look:
    """How a person is shown, so that two portraits make more than two people.

    Attributes:
        portrait: Key of `PORTRAITS`.
        mirrored: Looks the other way.
        gain: Brightness; above 1 brighter.
        warmth: Red up and blue down for positive values, as a fraction.
        suit_shift: Turns the suit's hue by so much (OpenCV units, half degrees).
    """

    portrait: str
    mirrored: bool = False
    gain: float = 1.0
    warmth: float = 0.0
    suit_shift: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Cutout:
    """A person without a background.

    Attributes:
        levels: (h, w, 4) uint8 premultiplied BGRA, each half as large as the one before.
        face_xyxy: The face in pixels of level 0.
    """

    levels: tuple[NDArray[np.uint8], ...]
    face_xyxy: tuple[float, float, float, float]

    @property
    def face_h(self) -> float:
        """Return the height of the face at level 0, pixels."""
        return self.face_xyxy[3] - self.face_xyxy[1]


# fmt: off
PORTRAITS = {
    "collins": Portrait(
        "skimage", "data/astronaut.png", (178, 65, 269, 176),
        ((248, 18), (237, 16), (207, 20), (176, 40), (157, 60), (155, 98), (158, 106), (170, 118), (173, 127),
         (183, 138), (186, 152), (186, 166), (160, 171), (147, 183), (127, 184), (126, 198), (116, 199), (113, 206),
         (66, 247), (45, 282), (40, 306), (32, 328), (28, 374), (24, 408), (26, 478), (30, 493), (37, 502), (37, 511),
         (509, 511), (507, 478), (496, 430), (480, 395), (455, 367), (425, 351), (390, 345), (359, 347), (358, 335),
         (355, 302), (346, 281), (341, 266), (330, 254), (303, 234), (299, 219), (291, 207), (272, 188), (257, 178),
         (254, 165), (262, 148), (272, 133), (283, 122), (295, 107), (299, 92), (299, 81), (295, 58), (285, 41),
         (276, 32)),
        (0, 18), 190,
    ),
    "hopper": Portrait(
        "matplotlib", "mpl-data/sample_data/grace_hopper.jpg", (177, 123, 355, 335),
        ((222, 33), (217, 44), (205, 50), (192, 58), (182, 70), (178, 84), (160, 94), (150, 112), (149, 150),
         (152, 178), (158, 186), (156, 206), (160, 226), (167, 246), (170, 270), (182, 284), (198, 298), (205, 312),
         (201, 330), (186, 341), (150, 352), (129, 356), (96, 364), (62, 380), (48, 389), (40, 411), (31, 430),
         (28, 459), (19, 526), (13, 599), (508, 599), (509, 500), (506, 450), (500, 420), (492, 398), (482, 388),
         (456, 376), (422, 367), (366, 337), (338, 323), (334, 308), (338, 300), (343, 288), (350, 270), (359, 258),
         (364, 232), (369, 210), (373, 194), (369, 182), (369, 160), (370, 134), (368, 104), (363, 91), (352, 86),
         (346, 71), (334, 58), (313, 46), (294, 37), (281, 28), (270, 25), (249, 24), (237, 26)),
        None, 340,
    ),
}
# fmt: on


@cache
def cutout(look: Look) -> Cutout:
    """Return a person cut out, in one look.

    Raises:
        DemoError: a package that ships a portrait is not installed, or no longer ships it.
    """
    portrait = PORTRAITS[look.portrait]
    image = _read(portrait)
    image = _dress(image, portrait, look.suit_shift)
    alpha = _mask(portrait.outline, image.shape[:2])
    image = np.vstack([image, _cloth(image)])
    alpha = cv2.copyMakeBorder(alpha, 0, EXTEND_PX, 0, 0, cv2.BORDER_REPLICATE).astype(np.float32)
    gains = look.gain * np.array([1 - look.warmth, 1.0, 1 + look.warmth], dtype=np.float32)
    bgr = np.clip(image.astype(np.float32) * gains, 0, 255) * alpha[..., None]
    bgra = np.dstack([bgr, alpha * 255]).round().astype(np.uint8)
    x0, y0, x1, y1 = portrait.face_xyxy
    if look.mirrored:
        width = image.shape[1]
        bgra = np.ascontiguousarray(bgra[:, ::-1])
        x0, x1 = width - x1, width - x0
    return Cutout(_pyramid(bgra), (x0, y0, x1, y1))


def portrait_path(portrait: Portrait) -> Path:
    """Return where the installed package keeps a portrait."""
    spec = find_spec(portrait.package)
    if spec is None or spec.origin is None:
        raise DemoError(f"the demo clip needs the package {portrait.package}; install facefleet[demo]")
    return Path(spec.origin).parent / portrait.path


def _read(portrait: Portrait) -> NDArray[np.uint8]:
    path = portrait_path(portrait)
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DemoError(f"the demo clip needs {path}, which {portrait.package} ships; reinstall facefleet[demo]")
    return np.asarray(image, dtype=np.uint8)


def _mask(outline: tuple[Point, ...], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a soft (h, w) mask in [0, 1], pulled in a little so that no old background shines around the edge."""
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.array(outline, np.int32)], 255, cv2.LINE_AA)
    mask = np.asarray(cv2.erode(mask, np.ones((3, 3), np.uint8), borderValue=255), dtype=np.uint8)
    mask[-4:] = mask[-5]  # the outline's lower edge is no edge: the clothes go on
    soft = cv2.GaussianBlur(mask, (0, 0), FEATHER_PX, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(soft, dtype=np.float32) / np.float32(255)


def _dress(image: NDArray[np.uint8], portrait: Portrait, shift: int) -> NDArray[np.uint8]:
    """Turn the hue of saturated clothes, leaving skin, hair and metal as they are."""
    if not shift or portrait.suit_hue is None:
        return image
    hsv = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), dtype=np.uint8)
    low, high = portrait.suit_hue
    suit = (hsv[..., 0] >= low) & (hsv[..., 0] <= high) & (hsv[..., 1] > 110)
    suit[: portrait.suit_top] = False
    weight = cv2.GaussianBlur(suit.astype(np.float32), (0, 0), 1.5)[..., None]
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + shift) % 180
    turned = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), dtype=np.float32)
    return np.asarray(turned * weight + image * (1 - weight), dtype=np.float32).round().astype(np.uint8)


def _cloth(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what goes on below the portrait: the colours of its lowest part, without buttons or badges."""
    row = cv2.GaussianBlur(np.median(image[-90:], axis=0, keepdims=True).astype(np.float32), (0, 0), 5.0)
    return np.repeat(np.asarray(row, dtype=np.float32).round().astype(np.uint8), EXTEND_PX, axis=0)


def _pyramid(bgra: NDArray[np.uint8], levels: int = 4) -> tuple[NDArray[np.uint8], ...]:
    """Return the picture at 1, 1/2, 1/4 … of its size: far people are drawn from a smaller one, without shimmer."""
    result = [bgra]
    for _ in range(levels - 1):
        height, width = result[-1].shape[:2]
        half = cv2.resize(result[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        result.append(np.asarray(half, dtype=np.uint8))
    return tuple(result)
