"""One demo from start to end: centre, clip, box, then what the database says: both sides, as a user sees them."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bridge.child import Child
from bridge.errors import BridgeError
from bridge.local_servers import free_port, port_is_taken
from demo import report
from demo.chart import write_chart
from demo.children import BoxProcess, centre, read_ready
from demo.clip import render, rendered_before
from demo.errors import DemoError, DemoFailure
from demo.folder import results, scratch
from demo.story import DURATION_S
from demo.subject import Ports, Subject, builtin, look_at, write_config
from edge.box.video import suffix

OK, FAILED, INTERRUPTED = 0, 1, 130
PAGE_PORT = 8088
MOST_DEATHS = 5
TURN_S = 0.2


@dataclass(frozen=True, slots=True)
class Options:
    """What a person asked for.

    Attributes:
        source: A file, folder, USB index or address; None is the built-in clip.
        seconds: End after so long; None when the recording ends, or at Ctrl-C.
        keep: Play on and leave everything running until Ctrl-C.
        out: Folder of the results.
        page_port: Of the live page; None takes 8088, or a free one where that is taken.
        broker_port: None takes a free one.
        broker: "mosquitto" or "amqtt"; None takes Mosquitto where it is installed.
    """

    source: str | None
    seconds: float | None
    keep: bool
    out: Path
    page_port: int | None = None
    broker_port: int | None = None
    broker: str | None = None


def run(options: Options, console: Console) -> int:
    """Run a demo.

    Returns:
        0 when it came to its natural end, 130 when Ctrl-C cut it short, 1 when something gave up.

    Raises:
        DemoError: what was asked is not possible.
        DemoFailure: a part gave up.
    """
    subject = look_at(options.source) if options.source is not None else None  # before anything slow is started
    ports = Ports(options.broker_port or free_port(), _page_port(options.page_port))
    with ExitStack() as stack:
        out = stack.enter_context(results(options.out.resolve()))
        subject = subject or builtin((out / "clip").with_suffix(suffix()), DURATION_S)
        folder = stack.enter_context(scratch())
        _clear(out)
        config, notes = write_config(folder, subject, ports, out / "state")
        stop = stack.enter_context(stop_signals())
        demo = Demo(options, console, subject, out, config.path, stop)
        demo.greet(ports, notes)
        with demo.centre(folder, ports.broker):
            return demo.watch()


class Demo:
    """What happens once a source is known to give pictures."""

    def __init__(
        self, options: Options, console: Console, subject: Subject, out: Path, config: Path, stop: threading.Event
    ) -> None:
        self.options, self.console, self.subject, self.out = options, console, subject, out
        self.config, self.stop = config, stop
        self.videos: list[Path] = []
        self._centre: Child | None = None
        self._ready: dict[str, Any] = {}
        self._ready_file = config.with_name("ready.json")
        self._deaths = 0
        self._deadline_s: float | None = None

    def greet(self, ports: Ports, notes: list[str]) -> None:
        """Say what is going to happen, and where to look."""
        what = "the built-in clip" if self.subject.builtin else self.subject.spec.shown
        self.console.print(
            f"[bold]facefleet demo[/bold]  {what} → detector → SORT → MQTT → PostgreSQL", highlight=False
        )
        for note in notes:
            self.console.print(f"  [dim]{note}[/dim]", highlight=False)
        self.page = f"http://127.0.0.1:{ports.page}/"

    @contextmanager
    def centre(self, folder: Path, port: int) -> Iterator[None]:
        """Run broker, PostgreSQL and bridge, and stop them in the end."""
        child = centre(folder / "centre", port, self.out / "bridge.log", self._ready_file, broker=self.options.broker)
        began_s = time.monotonic()
        with self.console.status("starting PostgreSQL, broker and bridge …"):
            try:
                child.start()
            except BridgeError as error:
                raise DemoFailure(f"{error}\nall of its log: {self.out / 'bridge.log'}") from error
        self._centre = child
        logging.getLogger("bridge.child").setLevel(logging.CRITICAL)  # what dies is told below, once
        try:
            self._ready = read_ready(self._ready_file) or {}
            report.open_up(self._ready["dsn"])
            took_s = time.monotonic() - began_s
            self._done(f"PostgreSQL, {self._ready['broker']} broker and bridge", f"{took_s:.1f} s")
            yield
        finally:
            with self.console.status("stopping broker, PostgreSQL and bridge …"):
                child.stop()

    def watch(self) -> int:
        """Let the box watch, again and again where it is to be kept, and tell what came of it."""
        if self.subject.builtin and not self._render():
            self.console.print("interrupted before there was anything to watch")
            return INTERRUPTED
        self.console.print(f"  live page   [bold]{self.page}[/bold]", highlight=False)
        code, told = self._pass(first=True), False
        while code == OK and self.options.keep and not self._over():
            if not told:
                self.tell()
                self.console.print(self._kept(), highlight=False, soft_wrap=True)
                told = True
            code = self._pass(first=False)
        self.tell()
        cut_short = self.stop.is_set() and not (self.options.keep or self.subject.live)
        return INTERRUPTED if code == OK and cut_short else code

    def tell(self) -> None:
        """Print the table and write the chart, from what the database says now."""
        try:
            outcome = report.read(self._ready["dsn"])
        except psycopg.Error as error:
            raise DemoFailure(f"the database cannot be read: {error}; its log is {self.out / 'bridge.log'}") from error
        self.console.print()
        report.show(self.console, outcome)
        chart = write_chart(outcome, self.out / "people.png")
        for name, path in [*(("video", video) for video in self.videos), ("chart", chart)]:
            self.console.print(f"  {name:<10}  [bold]{_shown(path)}[/bold]", highlight=False, soft_wrap=True)
        if outcome.heads:
            self.console.print(Padding(K_NOTE, (0, 0, 0, 2)), style="dim", highlight=False)

    def _render(self) -> bool:
        """Render the built-in clip unless it lies there already; tell whether there is one."""
        path = Path(self.subject.spec.location)
        if rendered_before(path):
            return True
        began_s = time.monotonic()
        try:
            with self._progress() as progress:
                task = progress.add_task("rendering the clip, once", total=1, detail="")
                render(
                    path,
                    progress=lambda done, all_: progress.update(task, completed=done, total=all_),
                    stopping=self.stop.is_set,
                )
        except KeyboardInterrupt:
            return False
        self._done("clip rendered", f"{time.monotonic() - began_s:.1f} s")
        return True

    def _pass(self, *, first: bool) -> int:
        """Let a box watch the source once, starting it again if it is killed."""
        while True:
            code = self._box(first=first)
            if code >= 0 or self.stop.is_set():
                return OK if code == OK else FAILED
            self._deaths += 1
            if self._deaths > MOST_DEATHS:
                self.console.print("[red]the box died too often[/red]; see " + _shown(self.out / "box.log"))
                return FAILED
            self.console.print(f"[yellow]the box was killed ({signal.Signals(-code).name})[/yellow]: {BOX_AGAIN}")

    def _box(self, *, first: bool) -> int:
        """Run one box to its end; return its exit status, negative for the signal that killed it."""
        video = self.out / "annotated.mp4" if first else None
        box = BoxProcess(self.config, self.out / "box.log", video=video, live=self.subject.live)
        try:
            with self._progress() as progress:
                task = progress.add_task("starting the box", total=self._total(), detail="")
                code = None
                while code is None:
                    code = box.wait(TURN_S)
                    if self._over():
                        box.ask_to_end()
                    self._mend_centre()
                    self._show(progress, task, box.news)
        finally:
            code = box.close()
        self._after(box, code)
        return code

    def _after(self, box: BoxProcess, code: int) -> None:
        """Say what a box that ended left behind."""
        self.videos += [Path(path) for path in box.news.get("videos", ()) if Path(path) not in self.videos]
        if error := box.news.get("video_error"):
            self.console.print(f"[yellow]the video could not be written[/yellow]: {error}")
        if left_out := box.news.get("left_out"):
            self.console.print(f"[dim]{left_out} pictures are missing from the video, none from the counting[/dim]")
        if error := box.news.get("error"):
            self.console.print(f"[red]the box gave up[/red]: {error}")
        elif code > 0:
            self.console.print(f"[red]the box ended with status {code}[/red]; its last words:\n{box.tail()}")

    def _mend_centre(self) -> None:
        """Bring the centre back if it was killed: on the same data and port, so that nothing is lost."""
        try:
            if self._centre is not None and self._centre.check():
                self._ready = read_ready(self._ready_file) or self._ready
                self.console.print("[yellow]the bridge was killed[/yellow] and runs again on the same database")
        except BridgeError as error:
            raise DemoFailure(f"{error}\nall of its log: {self.out / 'bridge.log'}") from error

    def _over(self) -> bool:
        return self.stop.is_set() or (self._deadline_s is not None and time.monotonic() >= self._deadline_s)

    def _total(self) -> float | None:
        lengths = [s for s in (self.options.seconds, self.subject.duration_s) if s is not None]
        return min(lengths, default=None)

    def _show(self, progress: Progress, task: TaskID, news: dict[str, Any]) -> None:
        if "media_s" not in news:
            return
        if self._deadline_s is None and self.options.seconds is not None:
            self._deadline_s = time.monotonic() + self.options.seconds  # starting up is not on the user's time
        detail = f"{news['people']} here, {news['visits']} visit{'s' if news['visits'] != 1 else ''}"
        what = "ending, waiting for the last acknowledgement" if self._over() else "watching"
        progress.update(task, completed=news["media_s"], description=what, detail=detail)

    def _progress(self) -> Progress:
        columns = (
            TextColumn("  {task.description:<24}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
        )
        return Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)

    def _done(self, what: str, how: str) -> None:
        self.console.print(f"  [green]✓[/green] {what}  [dim]{how}[/dim]", highlight=False)

    def _kept(self) -> str:
        again = "" if self.subject.live else " The recording is played again and again; each time makes new visits."
        return (
            f"\n[bold]Everything keeps running[/bold] until Ctrl-C.{again}\n"
            f"  live page   {self.page}\n"
            f'  database    psql "{self._ready["dsn"]}"\n'
            f"  broker      mqtt://127.0.0.1:{self._ready['port']}"
        )


BOX_AGAIN = (
    "starting it again, as a new stream, from the beginning of the source. What had reached its outbox is in the "
    "database once; who was there is ended as “box restarted”"
)
K_NOTE = (
    "Counts by attribute are shown however small here: the demo sets k to 1 in its own database. A real one hides "
    "every count below k = 10 visits and rounds the others, so that nobody can be picked out of them."
)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set; a second one, more than a second later, interrupts at once.

    A wrapper such as make or timeout may pass on what the terminal has sent us already: that is still the first.
    """
    stop = threading.Event()
    heard_s = 0.0

    def heard(_number: int, _frame: FrameType | None) -> None:
        nonlocal heard_s
        if stop.is_set() and time.monotonic() - heard_s > 1.0:
            raise KeyboardInterrupt
        heard_s = heard_s or time.monotonic()
        stop.set()

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _page_port(asked: int | None) -> int:
    if asked is None:
        return free_port() if port_is_taken(PAGE_PORT) else PAGE_PORT
    if port_is_taken(asked):
        raise DemoError(f"port {asked} is in use; give another --port, or none for a free one")
    return asked


def _clear(out: Path) -> None:
    """Remove what an earlier run left: its results, and its box's outbox, whose events belong to another database."""
    for pattern in ("annotated*", "people.png", "*.log", "state/outbox.db*"):
        for path in out.glob(pattern):
            path.unlink(missing_ok=True)


def _shown(path: Path) -> str:
    """Return a path as short as it can be named from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
