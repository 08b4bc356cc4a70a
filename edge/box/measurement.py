"""One pipeline measured in a process of its own, so that its start and its memory are those of a box.

`edge.bench` starts it with a job on the command line and reads the report, JSON both, from its output.
"""

import itertools
import random
import secrets
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.assembly import Models, build_pipeline, load_models
from edge.box import facts
from edge.capture.frames import Frame
from edge.capture.sources import open_source
from edge.capture.spec import SourceSpec
from edge.config import GateConfig, LoadedConfig, load_box
from edge.errors import EdgeError
from edge.models.runtime import Loaded, Runtime
from edge.publish.clock import MediaClock
from edge.publish.outbox import Outbox

KEPT_BYTES = 64 << 20  # of inputs, to be inferred again
WARM_FRAMES = 30
EPOCH_MS = 1_577_836_800_000
# The gate looks at every frame and lets every frame through: its cost is seen, and nothing is saved by it.
ALWAYS = GateConfig(enabled=True, luma_step=1, motion_area=1e-6, recheck_s=0.001, idle_s=0.001)


class Job(msgspec.Struct, frozen=True):
    """What to measure; `started_s` is `time.monotonic()` just before the process was started.

    Without rounds only the start is measured. Caches and the outbox go to `state_dir`.
    """

    config: str
    detector: str
    state_dir: str
    started_s: float
    clip: str = ""
    seconds: float = 10.0
    rounds: int = 0


class Round(msgspec.Struct, frozen=True):
    """One round: sums over its frames.

    `inference_cpu_s` is the processor time of its inferences where they happened, students' included;
    `repeated_cpu_s` that of as many inferences afterwards with nothing between them, which find their weights and
    pixels in the caches: less than any pipeline can reach.
    """

    frames: int
    faces: int
    events: int
    wall_s: float
    cpu_s: float
    inference_cpu_s: float
    repeated_cpu_s: float
    stage_s: dict[str, float]


class Report(msgspec.Struct, frozen=True):
    """What was found. `start_s` runs from the start of the process to the last golden check passed."""

    start_s: float
    rss_bytes: int
    peak_rss_bytes: int
    runs_on: dict[str, str]
    rounds: tuple[Round, ...] = ()


class Watched:
    """A runtime that adds up what its inferences cost, and remembers some, so that the same can be asked again.

    `cpu_s` is the processor time, of all threads of the process, while an inference ran. In this process nothing else
    runs meanwhile; what a worker thread does after the answer is there counts as the pipeline's.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.device, self.artefact = runtime.device, runtime.artefact
        self.keeping = False
        self.cpu_s = 0.0
        self._runtime = runtime
        self._kept: list[NDArray[np.uint8]] = []
        self._kept_bytes = self._images = 0

    def infer(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Run the model; see `Runtime.infer`."""
        if self.keeping and self._kept_bytes < KEPT_BYTES:
            self._kept.append(images.copy())
            self._kept_bytes += images.nbytes
        self._images += len(images)
        began_s = time.process_time()
        answer = self._runtime.infer(images)
        self.cpu_s += time.process_time() - began_s
        return answer

    def begin(self) -> None:
        """Count from here."""
        self.cpu_s, self._images = 0.0, 0

    def again(self) -> None:
        """Infer as many pictures as were since `begin`, of those kept, one after the other and nothing between."""
        kept = itertools.cycle(self._kept)
        while self._images > 0 and self._kept:
            images = next(kept)
            self._runtime.infer(images)
            self._images -= len(images)


class Rig:
    """A camera's pipeline with its outbox, fed from a clip that is played in a circle, every frame searched.

    Args:
        config: with one camera, as `prepared` returns it.
        models: what `load_models` returned for it.
        clip: a video file.
        epoch_ms: what the dates of events count from.
        ahead: frames decoded ahead, as `run` does; 0 makes the stage "decode" the decoder's own time.
        deliver: called after each commit with the outbox and the media time; the time it takes counts as publishing.
    """

    def __init__(
        self,
        config: LoadedConfig,
        models: Models,
        clip: Path,
        *,
        epoch_ms: int = EPOCH_MS,
        ahead: int = 2,
        deliver: Callable[[Outbox, float], None] = lambda _outbox, _now_s: None,
    ) -> None:
        self.runtimes = [Watched(m.runtime) for m in (*models.detectors.values(), *models.heads.values())]
        watched = iter(self.runtimes)
        self._pipeline = build_pipeline(
            config,
            0,
            replace(models, detectors=_watch(models.detectors, watched), heads=_watch(models.heads, watched)),
            random.Random(0),
            grid_s=0.0,
        )
        self._outbox = Outbox(
            config.state_dir / "outbox.db",
            stream=secrets.randbits(63) or 1,
            vocabulary=models.vocabulary,
            clock=MediaClock(epoch_ms),
        )
        self._commit_s = config.box.outbox.commit_s
        self._committed_s = 0.0
        self._deliver = deliver
        self._clip = endless(clip, ahead)

    def run(self, *, seconds: float = float("inf"), frames: float = float("inf")) -> Round:
        """Take frames through all stages, event by event into the outbox, until one of the bounds is reached."""
        spent, attributes = self._pipeline.spent, self._pipeline.attributes
        before = dict(spent.seconds)
        for runtime in self.runtimes:
            runtime.begin()
        decode_s = students_s = publish_s = 0.0
        count = faces = events = 0
        cpu_s, started_s = time.process_time(), time.perf_counter()
        while count < frames and (read_s := time.perf_counter()) - started_s < seconds:
            frame = next(self._clip)
            decoded_s = time.perf_counter()
            seen = self._pipeline.step(frame, frame.media_s)
            stepped_s = time.perf_counter()
            if seen.events:
                self._outbox.append(seen.events)
            if frame.media_s - self._committed_s >= self._commit_s:
                self._outbox.commit(frame.media_s)
                self._deliver(self._outbox, frame.media_s)
                self._committed_s = frame.media_s
            publish_s += time.perf_counter() - stepped_s
            decode_s += decoded_s - read_s
            students_s += attributes.infer_s
            count, faces, events = count + 1, faces + len(seen.scores), events + len(seen.events)
        wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
        stage_s = {"decode": decode_s, **{name: s - before[name] for name, s in spent.seconds.items()}}
        stage_s["attributes"] -= students_s
        stage_s |= {"students": students_s, "publish": publish_s}
        inference_cpu_s = sum(runtime.cpu_s for runtime in self.runtimes)
        return Round(count, faces, events, wall_s, cpu_s, inference_cpu_s, self._repeated_cpu_s(), stage_s)

    @property
    def frames(self) -> int:
        """Frames taken so far."""
        return self._pipeline.spent.frames

    @property
    def searched(self) -> int:
        """Frames the detector looked at."""
        return self._pipeline.spent.searched

    def keep(self, keeping: bool = True) -> None:
        """From now on remember what is inferred, or no longer; costs memory, and time while it does."""
        for runtime in self.runtimes:
            runtime.keeping = keeping

    def close(self) -> None:
        """Let go of the clip and the outbox."""
        self._clip.close()
        self._outbox.close()

    def _repeated_cpu_s(self) -> float:
        """Return the processor time, all threads, of as many inferences and nothing else; 0 if none is kept."""
        before_s = time.process_time()
        for runtime in self.runtimes:
            runtime.again()
        return time.process_time() - before_s


def measure(job: Job) -> Report:
    """Do a job in this process.

    Raises:
        EdgeError: the config, a bundle or the clip is not what it should be.
    """
    config = prepared(load_box(Path(job.config)), job.detector, Path(job.state_dir))
    models = load_models(config, log=lambda _: None)
    start_s = time.monotonic() - job.started_s
    loaded = {**models.detectors, **models.heads}
    runs_on = {name: f"{m.runtime.device} {m.runtime.artefact}" for name, m in loaded.items()}
    rounds: list[Round] = []
    rss_bytes = peak_bytes = 0
    if job.rounds:
        rig = Rig(config, models, Path(job.clip), ahead=0)
        rig.run(frames=WARM_FRAMES, seconds=job.seconds)
        rig.run(seconds=job.seconds / 2)
        rss_bytes, peak_bytes = facts.rss_bytes() or 0, facts.peak_rss_bytes() or 0
        rig.keep()
        rig.run(seconds=job.seconds / 2)
        rig.keep(False)
        rounds = [rig.run(seconds=job.seconds) for _ in range(job.rounds)]
        rig.close()
    return Report(start_s, rss_bytes, peak_bytes, runs_on, tuple(rounds))


def prepared(config: LoadedConfig, detector: str, state_dir: Path) -> LoadedConfig:
    """Return the config of a box with one camera, the first that uses this detector, which searches every frame."""
    change = msgspec.structs.replace
    camera = next(camera for camera in config.box.cameras if camera.detector == detector)
    camera = change(camera, fps=None, gate=ALWAYS)
    return change(config, box=change(config.box, cameras=(camera,), state_dir=str(state_dir)))


def endless(clip: Path, ahead: int) -> Generator[Frame, None, None]:
    """Yield the frames of a clip again and again; media time goes on.

    Raises:
        CameraError: the clip cannot be read.
    """
    offset_s, period_s = 0.0, 0.04
    while True:
        with open_source(SourceSpec("file", str(clip)), ahead=ahead) as source:
            last_s = 0.0
            while (frame := source.read(0.0)) is not None:
                period_s = frame.media_s - last_s or period_s
                last_s = frame.media_s
                yield replace(frame, media_s=offset_s + last_s, captured_at_s=offset_s + last_s)
        offset_s += last_s + period_s


def _watch(models: Mapping[str, Loaded], watched: Iterator[Watched]) -> dict[str, Loaded]:
    return {name: replace(loaded, runtime=next(watched)) for name, loaded in models.items()}


def main(argv: list[str]) -> int:
    """Do the job in the first argument and print the report."""
    # What a running box has in memory besides: publisher, MQTT, live page.
    with suppress(ImportError):
        import edge.app  # noqa: F401
    try:
        report = measure(msgspec.json.decode(argv[0], type=Job))
    except EdgeError as error:
        print(str(error).replace("\n", "; "), file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
