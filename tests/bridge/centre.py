"""A real PostgreSQL and bridges as processes, all of which can be killed, for end-to-end tests."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import yaml
from psycopg import conninfo

from bridge.app import Bridge
from bridge.child import Child
from bridge.config import load_bridge
from bridge.local_servers import postgres_program
from bridge.migrate import migrate
from tests.bridge.box import wait_until

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """Yield a folder that users of other names may pass through: servers run as such when tests run as root."""
    folder = Path(tempfile.mkdtemp(prefix="facefleet-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Cluster:
    """A running PostgreSQL that can be killed, with one migrated database that the others are copied from."""

    def __init__(self, child: Child, dsn: str) -> None:
        self.child, self.dsn, self.uuid = child, dsn, uuid4()
        self._execute("CREATE DATABASE migrated")
        migrate(conninfo.make_conninfo(dsn, dbname="migrated"), database_uuid=self.uuid)
        self._execute("CREATE ROLE test_ingest LOGIN IN ROLE facefleet_ingest")

    def database(self) -> "Database":
        """Make a fresh database."""
        name = f"t{uuid4().hex[:12]}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE migrated STRATEGY file_copy")
        return Database(conninfo.make_conninfo(self.dsn, dbname=name), self.uuid)

    def _execute(self, sql: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(sql.encode())


class Database:
    """A database of its own, filled through a role that may only ingest."""

    def __init__(self, admin_dsn: str, uuid: UUID) -> None:
        self.admin_dsn, self.uuid = admin_dsn, uuid
        self.dsn = conninfo.make_conninfo(admin_dsn, user="test_ingest")

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Run SQL as the administrator."""
        with psycopg.connect(self.admin_dsn, autocommit=True, options="-c search_path=facefleet") as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def visits(self) -> list[tuple[int, int]]:
        """Return (stream, seq) of every visit, sorted; a duplicate would stand here twice."""
        return [(int(stream), int(seq)) for stream, seq in self.rows("SELECT stream, seq FROM visits ORDER BY 1, 2")]


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Yield a running PostgreSQL of its own."""
    with fresh_folder() as folder:
        program, dsn = postgres_program(folder, durable=False)  # processes die here, machines do not
        child = Child(program)
        child.start()
        try:
            yield Cluster(child, dsn)
        finally:
            child.stop()


def config_file(folder: Path, target: Database, port: int, **more: Any) -> Path:
    """Write a bridge's config and return its path."""
    mqtt = {"port": port, **more.pop("mqtt", {})}
    values = {"id": "local", "dsn": target.dsn, "database": str(target.uuid), "mqtt": mqtt, **more}
    path = folder / "bridge.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class BridgeProcess:
    """`facefleet-bridge run` as users have it."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.log = config.with_name("bridge.log")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            argv = [sys.executable, "-m", "bridge.cli", "run", str(self.config)]
            self.process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)

    def end(self, how: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        assert self.process is not None
        self.process.send_signal(how)
        status = self.process.wait(20)
        self.process = None
        return status

    def said(self) -> str:
        return self.log.read_text()

    def __enter__(self) -> "BridgeProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.end(signal.SIGKILL)


@contextmanager
def bridge_in_thread(config: Path, *, stop_retry_s: float = 0.3) -> Iterator[Bridge]:
    """Run a bridge in this process, so that a test can look inside."""
    bridge = Bridge(load_bridge(config), config.parent, backoff_s=(0.05, 0.3), stop_retry_s=stop_retry_s)
    stop, raised = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            bridge.run(stop)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: bridge.connected or bool(raised), what="the bridge's connection")
        yield bridge
    finally:
        stop.set()
        thread.join(20)
    assert not raised, raised


def kill_now(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)
