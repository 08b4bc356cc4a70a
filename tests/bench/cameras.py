"""How many live cameras one box sustains: `python -m tests.bench.cameras`. At most three minutes.

Real RTSP streams, 720p at 25 frames a second, people in the picture 30 % of the time; gate on, 5 detections a second
wanted of each camera. Cameras are added until one of them falls behind. The server that plays the cameras shares the
cores with the box; what it uses is printed beside.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from edge.assembly import Models, build_pipeline, find_bundle, load_models
from edge.bench import shipped_config
from edge.box import facts
from edge.box.made_scene import FPS, Scene, golden_face
from edge.camera import Camera, Timeline
from edge.capture.frames import Source
from edge.capture.sources import open_source
from edge.capture.spec import SourceSpec
from edge.config import GateConfig, LoadedConfig, load_box
from edge.pipeline import Pipeline, Seen
from edge.publish.outbox import Outbox
from tests.bench.rtsp_files import FileCameras
from tests.rtsp_server import free_port, interpreter

FRAME_WH = (1280, 720)
DETECTIONS_HZ = 5.0
PERIOD_S, ACTIVE_S = 10.0, 3.0
PHASES = 5  # files, each the same clip begun elsewhere, so that not all cameras are busy at once
NOISE = 2.0  # luma steps of sensor noise: without it a still picture would cost the decoder nothing
BITRATE = 2_000_000
# A camera is sustained when nothing it should have looked at was dropped, and what was looked at was not stale.
LEAST_SHARE = 0.97
MOST_LATE_S = 0.2
OPEN_S = 20.0
MARGIN_S = 5.0  # what opening usually takes


@dataclass(slots=True)
class Live:
    """One running camera and what it has done since `restart`."""

    camera: Camera
    pipeline: Pipeline
    source: Source | None = None
    late_s: list[float] = field(default_factory=list)
    index: int = 0
    before: tuple[int, int, int, int] = (0, 0, 0, 0)

    def observe(self, _name: str, seen: Seen) -> None:
        """Take note of a frame that went through."""
        self.index = seen.frame.index
        self.late_s.append(time.monotonic() - seen.frame.captured_at_s)

    def counts(self) -> tuple[int, int, int, int]:
        """Return frames received, processed, searched and dropped so far."""
        dropped = self.source.dropped if self.source else 0
        return self.index, self.camera.frames, self.pipeline.spent.searched, dropped

    def restart(self) -> None:
        """Count from here."""
        self.before = self.counts()
        self.late_s.clear()


@dataclass(frozen=True, slots=True)
class Step:
    """What a number of cameras did for a while, per second; `received`, `processed` of the worst camera."""

    cameras: int
    received_hz: float
    processed_hz: float
    detections_hz: float
    dropped: int
    late_s: float
    box_cores: float
    server_cores: float
    machine_cores: float

    @property
    def trouble(self) -> str:
        """Say what was not sustained, or nothing."""
        if self.received_hz < LEAST_SHARE * FPS:
            return f"a stream was decoded at {self.received_hz:.1f} of {FPS} frames a second"
        if self.processed_hz < LEAST_SHARE * DETECTIONS_HZ or self.dropped:
            return f"a camera was looked at {self.processed_hz:.2f} times a second, {self.dropped} frames dropped"
        if self.late_s > MOST_LATE_S:
            return f"one frame in twenty was {self.late_s:.2f} s old when it was done"
        return ""


class Fleet:
    """The cameras of one box, more or fewer of them; events go to an outbox as they do on a box."""

    def __init__(self, config: LoadedConfig, models: Models, urls: Sequence[str], outbox: Outbox) -> None:
        self._config, self._models, self._urls, self._outbox = config, models, urls, outbox
        self.running: list[Live] = []

    def resize(self, count: int) -> None:
        """Start or stop cameras until there are so many."""
        stopping, self.running = self.running[count:], self.running[:count]
        for live in stopping:
            live.camera.stop()
        for live in stopping:
            live.camera.join(10)
        while len(self.running) < count:
            self.running.append(self._start(len(self.running)))

    def _start(self, number: int) -> Live:
        pipeline = build_pipeline(self._config, 0, self._models, random.Random(number), grid_s=0.0)
        spec = SourceSpec("rtsp", self._urls[number % len(self._urls)], fps=DETECTIONS_HZ)

        def begin() -> Source:
            live.source = open_source(spec, name=f"cam{number}")
            return live.source

        camera = Camera(f"cam{number}", begin, pipeline, lambda _: Timeline(0.0, live=True), self._outbox.append)
        live = Live(camera, pipeline)
        camera.add_observer(live.observe)
        camera.start()
        return live


def encode(path: Path, scene: Scene) -> None:
    """Write one period of what the cameras see as H.264: a still wall, and for 3 s of 10 two people before it."""
    import av

    rng = np.random.default_rng(0)
    noise = [rng.normal(0, NOISE, (*scene.frame_wh[::-1], 1)).astype(np.float32) for _ in range(7)]
    settings = {"preset": "veryfast", "tune": "zerolatency", "x264-params": f"keyint={FPS}:min-keyint={FPS}:scenecut=0"}
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options=settings)
        stream.width, stream.height = scene.frame_wh
        stream.pix_fmt, stream.bit_rate = "yuv420p", BITRATE
        for i in range(round(PERIOD_S * FPS)):
            image = scene.frame(i / FPS) if i < ACTIVE_S * FPS else scene.wall(0.0)
            noisy = np.clip(image + noise[i % len(noise)], 0, 255).astype(np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="bgr24")))
        output.mux(stream.encode())


def repeat(period: Path, path: Path, phase: int, seconds: float) -> None:
    """Play a period again and again into a file, without encoding it again, beginning at one of its `PHASES`."""
    import av

    with av.open(str(path), "w") as output, av.open(str(period)) as first:
        stream = output.add_stream_from_template(first.streams.video[0])
        tick = round(1 / (FPS * first.streams.video[0].time_base))
        count = round(PERIOD_S * FPS)
        begin, written = phase * count // PHASES, 0
        while written < seconds * FPS:
            with av.open(str(period)) as source:
                for packet in source.demux(video=0):
                    if packet.dts is None:
                        continue  # the end of the file
                    begin -= 1
                    if begin >= 0:
                        continue  # at a key frame: a phase is two seconds
                    packet.pts = packet.dts = written * tick
                    packet.stream = stream
                    output.mux(packet)
                    written += 1


def ramp(watch: Callable[[int], Step], first: int, step: int, time_left: Callable[[], bool]) -> Iterator[Step]:
    """Yield what more and more cameras did, then numbers between, until the largest sustained one is known.

    Args:
        watch: runs so many cameras and says how they did.
        first: how many to begin with.
        step: how many to add as long as all goes well.
        time_left: asked before each step; no more is taken when it says no.
    """
    good, bad, count = 0, None, first
    while (bad is None or bad - good > 1) and time_left():
        done = watch(count)
        yield done
        if done.trouble:
            bad = count
        else:
            good = count
        count = good + step if bad is None else (good + bad) // 2


def measure(fleet: Fleet, server: FileCameras, outbox: Outbox, args: argparse.Namespace, count: int) -> Step:
    """Run so many cameras, let them open and settle, then watch them."""
    fleet.resize(count)
    open_by_s = time.monotonic() + OPEN_S
    while any(live.camera.state != "streaming" for live in fleet.running) and time.monotonic() < open_by_s:
        _wait(0.2, outbox)
    _wait(args.settle_s, outbox)
    for live in fleet.running:
        live.restart()
    began_s, box_s, server_s, machine_s = time.monotonic(), time.process_time(), server.cpu_s(), _machine_cpu_s()
    _wait(args.seconds, outbox)
    elapsed_s = time.monotonic() - began_s
    box_s, server_s, machine_s = time.process_time() - box_s, server.cpu_s() - server_s, _machine_cpu_s() - machine_s
    done = [[now - then for now, then in zip(live.counts(), live.before, strict=True)] for live in fleet.running]
    late = np.concatenate([live.late_s or [args.seconds] for live in fleet.running])
    return Step(
        len(fleet.running),
        min(received for received, *_ in done) / elapsed_s,
        min(processed for _, processed, *_ in done) / elapsed_s,
        sum(searched for _, _, searched, _ in done) / elapsed_s,
        sum(dropped for *_, dropped in done),
        float(np.quantile(late, 0.95)),
        box_s / elapsed_s,
        server_s / elapsed_s,
        machine_s / elapsed_s,
    )


def table(steps: Sequence[Step], caption: str) -> Table:
    """Lay the steps out in the order they were taken."""
    table = Table(title="Live cameras on one box", caption=caption, caption_justify="left")
    for name in ("cameras", "decoded /s", "looked at /s", "detections /s", "dropped", "late, ms"):
        table.add_column(name, justify="right")
    for name in ("cores: box", "server", "all", ""):
        table.add_column(name, justify="right" if name else "left")
    for s in steps:
        figures = (f"{s.received_hz:.1f}", f"{s.processed_hz:.2f}", f"{s.detections_hz:.1f}", f"{s.dropped}")
        cores = (f"{s.box_cores:.2f}", f"{s.server_cores:.2f}", f"{s.machine_cores:.2f}")
        table.add_row(str(s.cameras), *figures, f"{1000 * s.late_s:.0f}", *cores, s.trouble or "sustained")
    return table


def verdict(steps: Sequence[Step]) -> str:
    """Say how many cameras were sustained, and what stopped the next one."""
    good = max((s.cameras for s in steps if not s.trouble), default=0)
    bad = min((s for s in steps if s.trouble), key=lambda s: s.cameras, default=None)
    text = f"{good} live 720p cameras sustained"
    if bad is None:
        return f"{text}; the time was up before a number was found that is not"
    others = bad.machine_cores - bad.box_cores - bad.server_cores
    return (
        f"{text}; with {bad.cameras} {bad.trouble}: {bad.machine_cores:.2f} of {os.cpu_count()} cores were busy, "
        f"{bad.box_cores:.2f} by the box, {bad.server_cores:.2f} by the server that plays the cameras, {others:.2f} by "
        f"others"
    )


def cameras_config(folder: Path, given: Path | None, detector: str | None) -> LoadedConfig:
    """Return a config whose first camera is gated, with one inference thread: many cameras want throughput."""
    config = load_box(given or shipped_config(folder))
    change = msgspec.structs.replace
    camera = change(config.box.cameras[0], detector=detector or config.box.cameras[-1].detector, fps=None, masks=())
    camera = change(camera, gate=GateConfig(enabled=True))
    heads = tuple(head for head in config.box.heads if not head.purpose)
    box = change(config.box, cameras=(camera,), heads=heads, threads=1, state_dir=str(folder / "state"))
    return change(config, box=box)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and the number."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, help="a box's YAML instead of the shipped bundles")
    parser.add_argument("--detector", help="bundle (default: the config's last, yolov10n-face-320)")
    parser.add_argument("--first", type=int, default=8, help="cameras to begin with (default: %(default)s)")
    parser.add_argument("--step", type=int, default=4, help="cameras to add at a time (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="to watch each number (default: %(default)s)")
    parser.add_argument("--settle-s", type=float, default=4.0, help="to wait before (default: %(default)s)")
    parser.add_argument("--most-s", type=float, default=170.0, help="for all of it (default: %(default)s)")
    args = parser.parse_args(argv)

    console = Console(highlight=False)
    python = interpreter()
    if python is None:
        console.print("cameras: not run, no Python with GStreamer's RTSP server here")
        return 0
    with tempfile.TemporaryDirectory(prefix="facefleet-cameras-") as name, ExitStack() as closing:
        folder = Path(name)
        config = cameras_config(folder, args.config, args.detector)
        detector = config.box.cameras[0].detector
        face = golden_face(find_bundle(config.models_dir, detector, "detector"))
        encode(folder / "period.mp4", Scene(face, FRAME_WH, faces=2, period_s=ACTIVE_S, slides=False))
        files = [folder / f"phase{i}.mp4" for i in range(PHASES)]
        for i, file in enumerate(files):
            repeat(folder / "period.mp4", file, i, args.most_s + 60)
        models = load_models(config, log=lambda _: None)
        outbox = Outbox(folder / "outbox.db", stream=1, vocabulary=models.vocabulary)
        server = closing.enter_context(FileCameras(python, files, free_port()))
        fleet = Fleet(config, models, server.urls, outbox)
        closing.callback(fleet.resize, 0)
        with console.status("adding cameras …") as status:
            steps = []
            until_s = time.monotonic() + args.most_s - args.settle_s - args.seconds - MARGIN_S
            watch = partial(measure, fleet, server, outbox, args)
            for step in ramp(watch, args.first, args.step, lambda: time.monotonic() < until_s):
                steps.append(step)
                status.update(f"{step.cameras} cameras: {step.trouble or 'sustained'} …")
        fleet.resize(0)
        outbox.close()
    heads = ", ".join(head.name for head in config.box.heads)
    caption = (
        f"{facts.cpu_name()}, {os.cpu_count()} cores; {detector}, one inference thread; heads: {heads}; RTSP, H.264, "
        f"720p at {FPS} frames/s, {BITRATE / 1e6:g} Mbit/s; people there {ACTIVE_S / PERIOD_S:.0%} of the time; "
        f"gate on, {DETECTIONS_HZ:g} looks a second wanted of each; worst camera where it says /s, except detections"
    )
    console.print(table(steps, caption))
    console.print(verdict(steps))
    return 0


def _wait(seconds: float, outbox: Outbox) -> None:
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(1.0, left_s))
        outbox.commit(time.monotonic())


def _machine_cpu_s() -> float:
    """Return the processor time that everything on this machine has used; 0 where it cannot be known."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return 0.0
    busy = [int(f) for i, f in enumerate(fields[:8]) if i not in (3, 4)]  # all but idle and iowait
    return sum(busy) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    raise SystemExit(main())
