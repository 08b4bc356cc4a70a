"""The demo's box: `facefleet-edge run` with an annotated video, and news of its progress for the demo to show.

`python -m demo.box CONFIG` prints one JSON object a line. A line on its standard input lets it end its visits, deliver
and exit; a standard input that is closed without one says that the demo is dead, and the box does not outlive it.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from demo.errors import DemoError
from demo.video import AnnotatedVideo
from edge.app import Box, run_box
from edge.box.logs import set_up
from edge.camera import Observer
from edge.config import load_box
from edge.errors import EdgeError
from edge.pipeline import Seen
from edge.wire import Confirmed

NEWS_S = 0.25


class News:
    """An observer that says four times a second how far the box is."""

    def __init__(self) -> None:
        self._told_s = 0.0
        self._frames = 0
        self._visits = 0
        self._lock = threading.Lock()

    def __call__(self, camera: str, seen: Seen) -> None:
        """Take in what became of one frame."""
        self._frames += 1
        self._visits += sum(isinstance(event, Confirmed) for event in seen.events)
        if time.monotonic() - self._told_s >= NEWS_S:
            self._told_s = time.monotonic()
            self.tell(media_s=round(seen.frame.media_s, 2), people=seen.people)

    def tell(self, **news: Any) -> None:
        """Print one line."""
        with self._lock:
            try:
                print(json.dumps({"frames": self._frames, "visits": self._visits} | news), flush=True)
            except OSError:  # nobody listens any more; standard input will say so too
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Ending:
    """Ends a box gently: cameras first, so that it still waits for the last acknowledgements."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._box: Box | None = None
        self._asked = False

    def ready(self, box: Box) -> None:
        """Remember the box that is to end."""
        self._box = box
        if self._asked:
            self.ask()

    def ask(self) -> None:
        """End soon."""
        self._asked = True
        for camera in self._box.cameras if self._box else ():
            camera.stop()

    def follow_stdin(self) -> None:
        """End gently on a line, at once when the other end of standard input is gone."""
        while os.read(0, 4096):
            self.ask()
        self.stop.set()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one box until its recording ends or it is asked to stop; 0 when everything was delivered."""
    parser = argparse.ArgumentParser(prog="python -m demo.box", description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--video", type=Path, help="write the annotated video here")
    parser.add_argument("--live", action="store_true", help="leave pictures out of the video rather than wait for it")
    options = parser.parse_args(argv)
    set_up()
    news, ending = News(), Ending()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; the demo decides
    signal.signal(signal.SIGTERM, lambda *_: ending.ask())
    threading.Thread(target=ending.follow_stdin, name="stdin", daemon=True).start()
    try:
        with ExitStack() as stack:
            video = AnnotatedVideo(options.video, live=options.live) if options.video else None
            observers: list[Observer] = [news, stack.enter_context(video)] if video else [news]

            def ready(box: Box) -> None:
                ending.ready(box)
                news.tell(page=box.page.url if box.page else None)

            code = run_box(load_box(options.config), observers=observers, stop=ending.stop, on_ready=ready)
        if video is not None:
            error = str(video.error) if video.error else None
            paths = [str(path) for path in video.written.values()]
            news.tell(videos=paths, left_out=video.left_out, video_error=error)
    except (EdgeError, DemoError) as error:
        news.tell(error=str(error))
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
