"""`make chaos`, `python -m tests.chaos`: does every accepted event reach the database once, whatever happens?

Simulated boxes with the real outbox and publisher, a real broker, the real bridge, a real PostgreSQL; faults drawn
from a seeded list. At the end a ledger; exit status 1 when an event is missing without a reason, or there twice.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.chaos import sabotage
from tests.chaos.run import Result, run
from tests.chaos.world import Options

SAY_EVERY_S = 15.0  # where there is no terminal


def main(argv: list[str] | None = None) -> int:
    """Run and print the ledger.

    Returns:
        0 when it is green, 1 when it is red, 130 when interrupted.
    """
    given = _parser().parse_args(argv)
    options = Options(
        events=given.events, kills=given.kills, seconds=given.seconds, seed=given.seed, protocol=given.protocol,
        broker=given.broker, fleets=given.fleets, boxes=given.boxes, sabotage=given.sabotage, script=given.script,
        all_small=given.all_small, keep=given.keep,
    )  # fmt: skip
    if options.broker == "amqtt" and options.protocol == "5":
        print("amqtt speaks MQTT 3.1.1 only; give --protocol 3.1.1", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: nothing is left running
    console = Console(stderr=True)
    said_s = 0.0
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    try:
        with bar:
            task = bar.add_task("starting", total=1.0)

            def progress(phase: str, share: float, accepted: int, kills: int) -> None:
                nonlocal said_s
                line = f"{phase}: {accepted:,} events, {kills} kills"
                bar.update(task, completed=share, description=line)
                if bar.disable and time.monotonic() - said_s > SAY_EVERY_S:
                    said_s = time.monotonic()
                    print(f"{share:4.0%}  {line}", file=sys.stderr, flush=True)

            result = run(options, progress)
    except KeyboardInterrupt:
        print("interrupted; everything is stopped", file=sys.stderr)
        return 130
    show(options, result)
    return 0 if result.green else 1


def show(options: Options, result: Result) -> None:
    """Print the ledger."""
    verdict = result.verdict
    table = Table(
        title=f"{options.broker}, MQTT {options.protocol}, seed {options.seed}, "
        f"{options.fleets * options.boxes} boxes, {result.seconds:.0f} s"
        + ("" if options.sabotage == sabotage.HONEST else f", SABOTAGED: {options.sabotage}")
    )
    table.add_column("ledger")
    table.add_column("", justify="right")
    rows: list[tuple[str, object]] = [
        ("accepted by the outboxes (events)", verdict.accepted),
        ("arrived as rows, each once", verdict.arrived),
        ("  of these in quarantine (clock stepped or unset)", verdict.quarantined),
        *((f"missing, reported lost: {reason}", n) for reason, n in verdict.lost.items() if n),
        *((f"missing, taken by us: {reason}", n) for reason, n in verdict.excused.items() if n),
        ("UNEXPLAINED", verdict.unexplained),
        ("still unacked after the drain", sum(said["pending"] for said in result.undelivered.values())),
        ("twice in the database", verdict.twice),
        ("rows nobody accepted", verdict.invented),
        ("rows with other content", verdict.altered),
        ("rows and the bridge's ledger disagree", verdict.disagreeing),
        ("rollups that miscount (visits, ms)", verdict.miscounted),
        ("dead letters: conflict, second end", verdict.conflicts),
        ("duplicates the bridge refused (at least)", result.duplicates),
        ("batches said again by the echo", result.echoed),
        ("times a box took acked events back (last lives)", result.retakes),
        *((f"refused before acceptance: {reason} (last lives)", n) for reason, n in result.refused.items()),
        ("streams (lives of boxes)", verdict.streams),
        ("kills", sum(result.kills.values())),
        *((f"  of {victim}", n) for victim, n in sorted(result.kills.items())),
        *((f"fault: {what}", n) for what, n in sorted(result.faults.items()) if not what.startswith("kill")),
        ("processes that died by themselves", len(result.deaths)),
    ]
    for name, number in rows:
        table.add_row(name, f"{number:,}")
    Console().print(table)
    for name in result.deaths:
        print(name)
    for box, said in result.undelivered.items():
        print(f"unacked: {box}: {said}")
    for stream, box, missing in verdict.where:
        print(f"unexplained: box {box}, stream {stream}: {missing[:200]}")
    print("green: nothing lost, nothing twice" if result.green else "RED")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000, help="how many to accept (default 100000)")
    parser.add_argument("--kills", type=int, default=40, help="how many SIGKILLs (default 40)")
    parser.add_argument("--seconds", type=float, default=240.0, help="of havoc, at most (default 240)")
    parser.add_argument("--seed", type=int, default=1, help="of the list of faults (default 1)")
    parser.add_argument("--protocol", choices=("5", "3.1.1"), default="5", help="of MQTT (default 5)")
    parser.add_argument("--broker", choices=("mosquitto", "amqtt"), default="mosquitto", help="(default mosquitto)")
    parser.add_argument("--fleets", type=int, default=5, help="processes of boxes, one on a small disk (default 5)")
    parser.add_argument("--boxes", type=int, default=4, help="in each process (default 4)")
    parser.add_argument("--keep", type=Path, help="folder for logs, ledger and the list of faults done")
    parser.add_argument(
        "--sabotage", choices=(sabotage.HONEST, sabotage.ACK_BEFORE_COMMIT, sabotage.DELETE_ON_PUBACK),
        default=sabotage.HONEST, help="break the product on purpose: the ledger must turn red",
    )  # fmt: skip
    parser.add_argument(
        "--script", choices=("drawn", "stalled bridge", "read-only", "unheard restore"), default="drawn",
        help="drawn from the seed; the others are short stories, two of which sabotaged builds must fail",
    )  # fmt: skip
    parser.add_argument("--all-small", action="store_true", help="small outboxes everywhere: acked batches go soon")
    return parser


if __name__ == "__main__":
    sys.exit(main())
