"""Roll-outs in the database: one at a time, each box with its wave and what came of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.errors import UniqueViolation

from bridge.errors import BridgeError
from bridge.rollout.plan import BoxState, Bundle
from edge.wire import Offer

_BOXES = (
    "SELECT site, box, wave, counter, state, reason, coalesce(extract(epoch FROM now() - offered_at), 0)::float8 "
    "FROM facefleet.rollout_boxes WHERE rollout_id = %s ORDER BY wave, site, box"
)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One roll-out as a whole."""

    id: int
    state: str
    reason: str
    tolerated: int
    patience_s: int


class Records:
    """A connection of a member of `facefleet_ingest`; every call is one transaction."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    def start(self, bundles: Sequence[Bundle], sizes: Sequence[int], tolerated: int, patience_s: int) -> int:
        """Write down a new roll-out and return its number.

        Raises:
            BridgeError: another one is running.
        """
        waves = [wave for wave, size in enumerate(sizes, 1) for _ in range(size)]
        try:
            with self._connection.transaction(), self._connection.cursor() as cursor:
                row = cursor.execute(
                    "INSERT INTO facefleet.rollouts (tolerated, patience_s) VALUES (%s, %s) RETURNING rollout_id",
                    (tolerated, patience_s),
                ).fetchone()
                assert row is not None, "RETURNING gives the row"
                cursor.executemany(
                    "INSERT INTO facefleet.rollout_boxes (rollout_id, site, box, wave, counter, url, sha256, bytes, "
                    "kind) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                    [
                        (row[0], b.site, b.box, wave, b.counter, b.url, b.sha256, b.bytes, b.kind)
                        for b, wave in zip(bundles, waves, strict=True)
                    ],
                )
        except UniqueViolation as error:
            raise BridgeError('another roll-out is running; "facefleet-bridge rollout status" shows it') from error
        return int(row[0])

    def newest(self, *, running: bool = False) -> Rollout | None:
        """Return the roll-out that began last, or the one that runs."""
        where = "WHERE state = 'running' " if running else ""
        row = self._one(
            f"SELECT rollout_id, state, reason, tolerated, patience_s FROM facefleet.rollouts {where}"
            "ORDER BY rollout_id DESC LIMIT 1"
        )
        return Rollout(*row) if row else None

    def get(self, rollout_id: int) -> Rollout:
        """Return one roll-out."""
        row = self._one(
            "SELECT rollout_id, state, reason, tolerated, patience_s FROM facefleet.rollouts WHERE rollout_id = %s",
            rollout_id,
        )
        assert row is not None, "roll-outs are never deleted"
        return Rollout(*row)

    def boxes(self, rollout_id: int) -> list[BoxState]:
        """Return where every box stands."""
        return [BoxState(*row) for row in self._connection.execute(_BOXES, (rollout_id,))]

    def retired(self) -> set[tuple[str, str]]:
        """Return (site, box) of the boxes that were taken out of service."""
        query = "SELECT s.name, b.name FROM facefleet.boxes b JOIN facefleet.sites s USING (site_id) " \
                "WHERE b.retired_at IS NOT NULL"  # fmt: skip
        return {(site, box) for site, box in self._connection.execute(query)}

    def offers(self, rollout_id: int, states: Iterable[str]) -> list[tuple[str, str, Offer]]:
        """Return (site, box, offer) of the boxes in these states."""
        rows = self._connection.execute(
            "SELECT site, box, url, sha256, bytes, counter, kind FROM facefleet.rollout_boxes "
            "WHERE rollout_id = %s AND state = ANY(%s) ORDER BY site, box",
            (rollout_id, list(states)),
        )
        return [
            (site, box, Offer(url, sha256, size, counter, kind=kind))
            for site, box, url, sha256, size, counter, kind in rows
        ]

    def open_wave(self, rollout_id: int, wave: int) -> None:
        """Note that the boxes of a wave are offered their bundles."""
        self._connection.execute(
            "UPDATE facefleet.rollout_boxes SET state = 'offered', offered_at = now(), changed_at = now() "
            "WHERE rollout_id = %s AND wave = %s AND state = 'waiting'",
            (rollout_id, wave),
        )

    def set_box(self, rollout_id: int, box: BoxState) -> None:
        """Note where a box stands."""
        self._connection.execute(
            "UPDATE facefleet.rollout_boxes SET state = %s, reason = %s, changed_at = now() "
            "WHERE rollout_id = %s AND site = %s AND box = %s AND (state, reason) <> (%s, %s) AND state <> 'retired'",
            (box.state, box.reason, rollout_id, box.site, box.box, box.state, box.reason),
        )

    def end(self, rollout_id: int, state: str, reason: str) -> bool:
        """End a running roll-out; False when it had ended already."""
        done = self._connection.execute(
            "UPDATE facefleet.rollouts SET state = %s, reason = %s, ended_at = now() "
            "WHERE rollout_id = %s AND state = 'running'",
            (state, reason, rollout_id),
        )
        return done.rowcount == 1

    def _one(self, query: str, *args: Any) -> tuple[Any, ...] | None:
        return self._connection.execute(query.encode(), args or None).fetchone()
