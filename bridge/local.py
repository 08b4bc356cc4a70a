"""A whole centre on this machine: embedded PostgreSQL, a broker, the schema and the bridge. `facefleet-bridge local`.

The two servers are children of this process and are started again when they die; the bridge runs in the process
itself. Everything ends in reverse order, and nothing is left behind, also when this process is killed.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self
from uuid import UUID

from bridge.app import Bridge
from bridge.child import Child
from bridge.config import BridgeConfig, Mqtt
from bridge.errors import LocalError
from bridge.local_servers import (
    Broker,
    broker_program,
    find_broker,
    free_port,
    needs_socket_folder,
    port_is_taken,
    postgres_program,
    postmaster_lives,
)
from bridge.migrate import migrate

log = logging.getLogger(__name__)

LOCAL_DATABASE = UUID("6c6f6361-6c00-4000-8000-000000000000")  # spells "local": config/demo.yaml names it too
PARENT = Path("/var/tmp/facefleet-local")  # short, on a disk, and readable by the user that PostgreSQL runs as
_OWNER = "owner.lock"
PREDECESSOR_S, PREDECESSOR_PORT_S = 20.0, 3.0  # servers of a centre that was killed take a moment to end


@dataclass(frozen=True, slots=True)
class Ready:
    """What was started, for a person to read and for a program to use (`--ready-file`)."""

    host: str
    port: int
    protocol: str
    broker: Broker
    dsn: str
    database: str
    data: str
    pid: int

    def json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))


class Local:
    """The servers and the bridge of a local centre; `with` starts the servers, `run` bridges.

    Args:
        data: folder to keep everything in; None takes a fresh one and removes it at the end.
        keep: do not remove a fresh folder.
        port: of the broker; None takes a free one.
        broker: None takes Mosquitto where it is installed, else amqtt.
    """

    def __init__(
        self,
        *,
        data: Path | None = None,
        keep: bool = False,
        port: int | None = None,
        broker: Broker | None = None,
        database: UUID = LOCAL_DATABASE,
        retention_days: int = 90,
    ) -> None:
        self._data, self._keep, self._port = data, keep, port
        self._kind = broker or find_broker()
        self._database, self._retention_days = database, retention_days
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start database and broker and bring the schema up to date.

        Raises:
            LocalError: one of them does not start.
            BridgeError: the schema cannot be made.
        """
        if self._port is not None and not _wait(lambda: not port_is_taken(self._port or 0), PREDECESSOR_PORT_S):
            raise LocalError(f"port {self._port} is in use; give another --port, or none for a free one")
        with self._stack as stack:
            folder = stack.enter_context(_state_folder(self._data, self._keep))
            sockets = stack.enter_context(tempfile.TemporaryDirectory()) if needs_socket_folder(folder) else None
            durable = self._keep or self._data is not None
            if not _wait(lambda: not postmaster_lives(folder), PREDECESSOR_S):
                raise LocalError(f"another PostgreSQL runs on {folder}; stop it, or give another --data")
            program, dsn = postgres_program(folder, Path(sockets) if sockets else None, durable=durable)
            self.postgres = self._child(stack, Child(program))
            migrate(dsn, database_uuid=self._database)
            self.broker = self._start_broker(stack, folder)
            self.config = BridgeConfig(
                id="local",
                dsn=dsn,
                mqtt=Mqtt(port=self.port, protocol="5" if self._kind == "mosquitto" else "3.1.1"),
                database=str(self._database),
                retention_days=self._retention_days,
            )
            self.folder = folder
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop broker and database, in this order, and remove a folder that need not be kept."""
        self._stack.close()

    @property
    def ready(self) -> Ready:
        """What a box or a program needs to know."""
        return Ready(
            host="127.0.0.1",
            port=self.port,
            protocol=self.config.mqtt.protocol,
            broker=self._kind,
            dsn=self.config.dsn,
            database=str(self._database),
            data=str(self.folder),
            pid=os.getpid(),
        )

    def run(self, stop: threading.Event, *, on_ready: Callable[[Ready], None] = lambda _: None) -> None:
        """Bridge until `stop` is set, and bring back a server that dies; `on_ready` is called once events flow.

        Raises:
            LocalError: a server dies again and again.
            BridgeError: the database refuses us.
        """
        bridge = Bridge(self.config, self.folder)
        told = False

        def watch() -> None:
            nonlocal told
            self.postgres.check()
            self.broker.check()
            if not told and bridge.connected and bridge.status == "accepting":
                told = True
                on_ready(self.ready)

        bridge.run(stop, watch=watch)

    def _start_broker(self, stack: contextlib.ExitStack, folder: Path) -> Child:
        """Start the broker; a free port may be taken by somebody else before the broker gets to it."""
        attempts = 1 if self._port is not None else 3
        for attempt in range(attempts):
            self.port = self._port or free_port()
            try:
                return self._child(stack, Child(broker_program(self._kind, folder, self.port)))
            except LocalError:
                if attempt + 1 == attempts:
                    raise
        raise AssertionError("unreachable")

    def _child(self, stack: contextlib.ExitStack, child: Child) -> Child:
        child.start()
        stack.callback(child.stop)
        return child


def _wait(done: Callable[[], bool], most_s: float) -> bool:
    """Return whether `done` became true in time."""
    give_up_s = time.monotonic() + most_s
    while not done():
        if time.monotonic() > give_up_s:
            return False
        time.sleep(0.1)
    return True


@contextlib.contextmanager
def _state_folder(data: Path | None, keep: bool) -> Iterator[Path]:
    """Yield the folder everything lives in; a fresh one goes away at the end."""
    if data is not None:
        try:
            data.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalError(f"folder {data} cannot be made: {error.strerror}; give another --data") from error
        yield data.resolve()
        return
    PARENT.mkdir(parents=True, exist_ok=True)
    _sweep(PARENT)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=PARENT))
    folder.chmod(0o755)  # PostgreSQL and Mosquitto run as users of their own; their data is closed to others below
    if keep:
        yield folder
        log.info("kept %s", folder)
        return
    with (folder / _OWNER).open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)  # goes with this process, however it ends
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what earlier runs could not: they were killed, so nobody holds their lock any more."""
    for mark in parent.glob(f"run-*/{_OWNER}"):
        with contextlib.suppress(OSError), mark.open() as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(mark.parent, ignore_errors=True)
