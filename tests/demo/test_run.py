"""Whole demos as a user starts them, in processes of their own; ended, interrupted, and with parts killed."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest

from demo.clip import render, version
from demo.story import DURATION_S
from tests.product import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@dataclass
class Demo:
    """A running `facefleet-demo`; what it prints goes to a file."""

    popen: subprocess.Popen[bytes]
    out: Path
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout_s: float = 120.0) -> int:
        return self.popen.wait(timeout_s)

    def family(self, part: str = "") -> list[int]:
        """Return the process ids of the demo's children whose command has `part` in it."""
        lines = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in lines.splitlines()[1:]]
        found = {self.popen.pid}
        for _ in range(5):
            found |= {int(pid) for pid, parent, _ in rows if int(parent) in found}
        return [int(pid) for pid, _, command in rows if int(pid) in found - {self.popen.pid} and part in command]

    def watching(self) -> None:
        """Wait until the box gives news."""
        wait_for("the live page's address", lambda: "live page" in self.text or self.popen.poll() is not None, 90)
        assert self.popen.poll() is None, self.text
        wait_for("the box", lambda: self.family("demo.box"), 30)
        log = self.out / "box.log"
        wait_for("the box's connection", lambda: log.exists() and "connected to" in log.read_text(), 60)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render the built-in clip once for all demos of this module."""
    return render(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture
def demo(tmp_path: Path, clip: Path) -> Iterator[Callable[..., Demo]]:
    """Return a starter of demos; whatever they leave running is killed, and fails the test."""
    started: list[Demo] = []

    def start(*arguments: str) -> Demo:
        out, log = tmp_path / f"out{len(started)}", tmp_path / f"demo{len(started)}.txt"
        out.mkdir()
        shutil.copy(clip, out / clip.name)
        command = [sys.executable, "-m", "demo.cli", "--out", str(out), *arguments]
        with log.open("wb") as file:
            popen = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        started.append(Demo(popen, out, log))
        return started[-1]

    yield start
    for one in started:
        left = one.family()
        for pid in [*left, *([one.popen.pid] if one.popen.poll() is None else [])]:
            os.kill(pid, signal.SIGKILL)
        assert left == []


def told(text: str) -> dict[str, int]:
    """Return the numbers of the summary's last line."""
    match = re.findall(r"(\d+) events? in (\d+) batch(?:es)? over MQTT, (\d+) lost, (\d+) doubled, (\d+) unread", text)
    assert match, text
    return dict(zip(("events", "batches", "lost", "doubled", "unreadable"), map(int, match[-1]), strict=True))


def visits(text: str) -> int:
    counts = re.findall(r"(\d+) visits?, staying", text)
    return int(counts[-1]) if counts else 0


def scratch_folders() -> list[Path]:
    return list(Path("/var/tmp").glob(f"facefleet-demo-{os.getuid()}/run-*"))


def test_own_video_ends_with_table_video_and_chart_and_leaves_nothing_running(
    demo: Callable[..., Demo], tmp_path: Path
) -> None:
    own = render(tmp_path / "own.mp4", duration_s=12.0)
    before = scratch_folders()
    run = demo("--source", str(own))
    assert run.wait() == 0, run.text
    assert "Visits, read back from PostgreSQL" in run.text
    assert "race and emotion stay off" in run.text
    assert visits(run.text) == 3
    assert told(run.text) | {"events": 0, "batches": 0} == dict.fromkeys(told(run.text), 0)
    video = cv2.VideoCapture(str(run.out / "annotated.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == (12 * 25)
    chart = cv2.imread(str(run.out / "people.png"))
    assert chart is not None
    assert chart.shape == (900, 1600, 3)
    assert set(scratch_folders()) <= set(before)


def test_builtin_clip_ends_after_its_seconds(demo: Callable[..., Demo]) -> None:
    run = demo("--seconds", "8", "--broker", "amqtt")  # as where no Mosquitto is installed
    assert run.wait() == 0, run.text
    assert "amqtt broker" in run.text
    assert 1 <= visits(run.text) <= 3
    assert "stopped" in run.text  # why those visits ended


def test_ctrl_c_in_the_middle_still_tells_what_is_there(demo: Callable[..., Demo]) -> None:
    run = demo()
    run.watching()
    wait_for("some seconds of the clip", lambda: (run.out / ".annotated.mp4.part").exists(), 30)
    os.killpg(run.popen.pid, signal.SIGINT)
    assert run.wait(60) == 130, run.text
    assert told(run.text)["doubled"] == 0
    assert (run.out / "annotated.mp4").is_file()
    assert (run.out / "people.png").is_file()


def test_kept_demo_plays_on_until_ctrl_c_which_is_its_natural_end(demo: Callable[..., Demo], tmp_path: Path) -> None:
    own = render(tmp_path / "own.mp4", duration_s=4.0)
    run = demo("--source", str(own), "--keep")
    wait_for("the first report", lambda: "Everything keeps running" in run.text, 120)
    first = visits(run.text)
    wait_for("another pass", lambda: (run.out / "box.log").read_text().count("live page on") >= 3, 60)
    os.killpg(run.popen.pid, signal.SIGINT)
    assert run.wait(60) == 0, run.text
    assert visits(run.text) > first


@pytest.mark.parametrize(
    ("part", "said"), [("demo.box", "the box was killed (SIGKILL)"), ("bridge.cli", "the bridge was killed")]
)
def test_a_part_that_is_killed_comes_back_and_nothing_is_lost_or_doubled(
    demo: Callable[..., Demo], part: str, said: str
) -> None:
    run = demo("--seconds", "16")
    run.watching()
    wait_for("some seconds of the clip", lambda: (run.out / ".annotated.mp4.part").exists(), 30)
    [victim] = run.family(f"-m {part}")[:1]
    os.kill(victim, signal.SIGKILL)
    assert run.wait() == 0, run.text
    assert said in run.text
    numbers = told(run.text)
    assert numbers["events"] > 0
    assert numbers["lost"] == numbers["doubled"] == numbers["unreadable"] == 0
    assert visits(run.text) >= 1


def test_box_does_not_outlive_a_demo_that_is_killed(demo: Callable[..., Demo]) -> None:
    run = demo()
    run.watching()
    family = run.family()
    assert len(family) >= 3
    run.popen.kill()
    wait_for("the children's end", lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), 30)


def test_rendered_clip_is_of_this_version_and_not_made_again(clip: Path) -> None:
    """The demos above would otherwise each have spent most of their time on rendering."""
    assert version().startswith("facefleet built-in clip")
    video = cv2.VideoCapture(str(clip))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == round(DURATION_S * 25)
