"""How fast the bridge writes: `Store.write` against the raw path and against one INSERT and commit per event.

    python -m tests.bench.bridge_store --events 60000

All on one PostgreSQL with its default durability (fsync on), same events, fresh database each. The raw path gets rows
packed beforehand: binary COPY into temp tables, INSERT … ON CONFLICT into the same partitioned tables, with the same
rollups, summed by PostgreSQL or beforehand. What Store.write adds: decoding, digests, dedup, open visits, coverage.
"""

import argparse
from collections.abc import Sequence

import psycopg

from bridge.batches import Incoming
from bridge.bench import write_all
from bridge.bench_load import NOW, PER_BATCH, workload
from bridge.bench_plain import Figure, one_by_one, raw, timed
from bridge.migrate import migrate
from bridge.store import OPTIONS, Store
from tests.postgres import create_database, running


def compare(postgres: str, messages: Sequence[Incoming], per_write: int) -> list[Figure]:
    """Time ours, ours again, and the raw path with either kind of sums, on a fresh database each."""
    size, count = f"{per_write * PER_BATCH} events a transaction", len(messages)
    with Store(fresh(postgres, f"ours_{per_write}")) as store:
        connection = store._connection()
        ours = timed(f"Store.write, {size}", count, connection, lambda: write_all(store, messages, per_write))
        again = timed("  again, all duplicates", count, connection, lambda: write_all(store, messages, per_write))
    counted, sums = (
        raw(fresh(postgres, f"raw{number}_{per_write}"), messages, per_write, beforehand=number == 1)
        for number in range(2)
    )
    print(
        f"{size}: ours / raw {ours.rate / counted.rate:.2f} "
        f"({counted.total_s / ours.total_s:.2f} by CPU), "
        f"/ raw with sums beforehand {ours.rate / sums.rate:.2f} ({sums.total_s / ours.total_s:.2f} by CPU)",
        flush=True,
    )
    return [ours, again, counted, sums]


def fresh(postgres: str, name: str) -> str:
    """Return the DSN of a migrated database with partitions for today."""
    dsn = create_database(postgres, name)
    migrate(dsn)
    with Store(dsn) as store:
        store.maintain(NOW)
    return dsn


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=60_000, help="how many events (default 60000)")
    parser.add_argument("--boxes", type=int, default=40, help="how many boxes send them (default 40)")
    parser.add_argument("--per-write", type=int, nargs="*", default=[4, 20, 100], help="messages per transaction")
    parser.add_argument("--single", type=int, default=2000, help="events for one commit each (default 2000)")
    given = parser.parse_args()
    messages = workload(given.events, given.boxes)
    figures: list[Figure] = []
    with running() as postgres:
        for per_write in given.per_write:
            figures += compare(postgres, messages, per_write)
        few = messages[: given.single // PER_BATCH]
        with psycopg.connect(fresh(postgres, "simple"), autocommit=True, options=OPTIONS) as single:
            name = "one INSERT and commit per event"
            figures.append(timed(name, len(few), single, lambda: one_by_one(single, few)))
    print(f"\n{'':44} events/s   CPU µs per event: bridge  PostgreSQL")
    for figure in figures:
        own, theirs = (1e6 * seconds / figure.events for seconds in (figure.cpu_s, figure.backend_s))
        print(f"{figure.name:44} {figure.rate:8,.0f} {own:26.1f} {theirs:11.1f}")


if __name__ == "__main__":
    main()
