"""The built-in clip: rendered on the spot, so that a demo needs neither a camera nor a download."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from demo.portraits import PORTRAITS, portrait_path
from demo.scene import Scene
from demo.story import DURATION_S, FPS, FRAME_WH, frame_count
from edge.box import video as writing
from edge.box.video import VideoWriter, comment_of, suffix

SOURCES = ("portraits.py", "story.py", "scene.py")  # what a rendered clip depends on


def render(
    path: Path,
    *,
    duration_s: float = DURATION_S,
    progress: Callable[[int, int], None] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Path:
    """Render the clip as a video that OpenCV reads and browsers play.

    Args:
        path: Where to; the ending follows the codec.
        duration_s: Length; the story ends after `DURATION_S`.
        progress: Told (frames done, frames in all) now and then.
        stopping: Asked before every frame; True gives up and leaves no file.

    Returns:
        The path written.

    Raises:
        DemoError: a portrait is missing; EdgeError: an encoder is.
        KeyboardInterrupt: `stopping` said so.
    """
    frames = frame_count(duration_s)
    scene = Scene()
    with VideoWriter(path, FRAME_WH, FPS, crf=19, comment=version()) as video:
        for index in range(frames):
            if stopping():
                raise KeyboardInterrupt
            video.write(scene.frame(index), index / FPS)
            if progress is not None and (index % 10 == 9 or index + 1 == frames):
                progress(index + 1, frames)
    return video.path


def rendered_before(path: Path) -> Path | None:
    """Return the rendered clip at a path, if it is of this very version of the story; its ending follows the codec."""
    path = path.with_suffix(suffix())
    return path if path.is_file() and comment_of(path) == version() else None


def version() -> str:
    """Return the name of what a rendered clip depends on: our modules and the portraits."""
    digest = hashlib.sha256()
    for path in (*(Path(__file__).with_name(name) for name in SOURCES), Path(writing.__file__)):
        digest.update(path.read_bytes())
    for portrait in PORTRAITS.values():
        digest.update(portrait_path(portrait).read_bytes())
    return f"facefleet built-in clip {digest.hexdigest()[:12]}"
