"""The table of `facefleet-edge bench`, with H.264 beside MPEG-4 where PyAV is: `python -m tests.bench.pipeline`.

Cameras send H.264, which costs about twice as much to decode; OpenCV's wheels cannot write it, so a box measures itself
with MPEG-4.
"""

import argparse
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from edge.bench import SIZES, made_clips, measure_all, shipped_config, show
from edge.capture.sources import open_source
from edge.capture.spec import SourceSpec
from edge.config import load_box

BITS_A_PIXEL = 0.08  # 4.1 Mbit/s for 1080p at 25 frames a second, as cameras are set


def as_h264(clip: Path, path: Path) -> None:
    """Write a clip again as cameras send it: H.264, no B-frames, a key frame every two seconds."""
    import av

    with av.open(str(path), "w") as output, open_source(SourceSpec("file", str(clip))) as source:
        stream = None
        while (frame := source.read(0.0)) is not None:
            height, width = frame.image.shape[:2]
            if stream is None:
                stream = output.add_stream("libx264", rate=25, options={"preset": "veryfast", "tune": "zerolatency"})
                stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 50
                stream.bit_rate = round(BITS_A_PIXEL * width * height * 25)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame.image, format="bgr24")))
        if stream is not None:
            output.mux(stream.encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table per detector."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, help="a box's YAML instead of the shipped bundles")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    args = parser.parse_args(argv)
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="facefleet-bench-") as name, console.status("making the scene …") as status:
        folder = Path(name)
        config = load_box(args.config or shipped_config(folder))
        clips = made_clips(config, folder)
        if find_spec("av") is not None:
            for size in SIZES:
                clips[f"{size} H.264"] = folder / f"{size}-h264.mp4"
                as_h264(clips[size], clips[f"{size} H.264"])
        results = measure_all(config, clips, folder, args.seconds, args.rounds, status.update)
    show(results, config, console)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
