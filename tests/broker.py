"""Real brokers on free loopback ports: Mosquitto where it is installed, amqtt everywhere. Run as a script: amqtt."""

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """Return a TCP port nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def shipped(*names: str) -> str:
    """Return what config/mosquitto.conf says about these settings, as lines for `Mosquitto.extra`."""
    text = (Path(__file__).parents[1] / "config/mosquitto.conf").read_text()
    said = {line.split()[0]: line for line in text.splitlines() if line and not line.startswith("#")}
    return "\n".join(said[name] for name in names)


class Broker(Protocol):
    """A broker process that can be stopped, killed and started again on the same port."""

    port: int
    protocols: Sequence[str]

    def start(self) -> Self: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


class _Process:
    """A broker as a child process; `start` returns when the port answers."""

    protocols: Sequence[str] = ("5", "3.1.1")

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self._child: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> Self:
        log = (self.folder / "broker.log").open("ab")
        with log:
            self._child = subprocess.Popen(self.command(), stdout=log, stderr=log)
        give_up_s = time.monotonic() + 15.0
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.5):
                return self
            if time.monotonic() > give_up_s or self._child.poll() is not None:
                raise RuntimeError(f"broker did not start:\n{(self.folder / 'broker.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._child is None:
            return
        self._child.send_signal(how)
        try:
            self._child.wait(10.0)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(10.0)
        self._child = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Mosquitto(_Process):
    """Debian's Mosquitto, without persistence unless asked: a SIGKILL then loses all it had acknowledged.

    Args:
        folder: where its config, log and store go.
        port: a free one unless given.
        extra: further lines of its config.
        anonymous: without it, only the users of `passwords` get in.
    """

    def __init__(self, folder: Path, port: int | None = None, extra: str = "", anonymous: bool = True) -> None:
        super().__init__(folder, port)
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous {'true' if anonymous else 'false'}\n"
            f"user root\nset_tcp_nodelay true\n{extra}\n"
        )

    def command(self) -> list[str]:
        assert MOSQUITTO is not None
        return [MOSQUITTO, "-c", str(self._config)]


class Amqtt(_Process):
    """amqtt: MQTT 3.1.1 only, forgets anonymous sessions, has no window, and comes from PyPI."""

    protocols: Sequence[str] = ("3.1.1",)

    def command(self) -> list[str]:
        return [sys.executable, __file__, str(self.port)]


async def _serve_amqtt(port: int) -> None:
    from amqtt.broker import Broker as AmqttBroker

    broker = AmqttBroker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    await broker.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve_amqtt(int(sys.argv[1])))
