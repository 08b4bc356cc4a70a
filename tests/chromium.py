"""A real Chromium without a window, spoken to over its debugging pipe: one page, its scripts' answers, a picture."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ANSWER_S = 60.0


def program() -> str | None:
    """Return the browser's path, None where there is none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Tab:
    """One open page.

    Source: the DevTools protocol; messages are JSON, each ended by a zero byte, on descriptors 3 (in) and 4 (out).
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._rest = b""
        self._number = 0
        self._session: str | None = None

    def open(self, url: str) -> None:
        """Go to an address; returns before it has loaded."""
        target = self._ask("Target.createTarget", url=url)["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        return self._ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def screenshot(self) -> bytes:
        """Return what the page looks like, a PNG."""
        return base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"])

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline_s = time.monotonic() + ANSWER_S
        while True:
            answer = self._hear(deadline_s)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def _hear(self, deadline_s: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline_s - time.monotonic()))
            assert ready, f"Chromium did not answer within {ANSWER_S:g} s"
            read = os.read(self._from, 1 << 16)
            assert read, "Chromium has ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


@contextmanager
def browser(path: str, profile: Path) -> Iterator[Tab]:
    """Start Chromium with a profile of its own, and end it with all it started."""
    command_in, to_browser = os.pipe()
    from_browser, command_out = os.pipe()
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
        "--no-first-run", "--window-size=1280,800", f"--user-data-dir={profile}", "--remote-debugging-pipe",
    ]  # fmt: skip
    # Bash, because dash knows no descriptors above 9, and a child gets ours only under the numbers they have here.
    shell = ["bash", "-c", f'exec "$0" "$@" 3<&{command_in} 4>&{command_out}', path, *flags]
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            shell,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(command_in, command_out),
            start_new_session=True,
        )
    os.close(command_in)
    os.close(command_out)
    try:
        yield Tab(to_browser, from_browser)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait(10)
        os.close(to_browser)
        os.close(from_browser)
