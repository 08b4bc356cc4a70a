"""Names ↔ ids: sites, boxes, cameras, vocabularies. Driven by `store.py` inside its transactions.

What was looked up is remembered only once the transaction that may have written it has committed.
"""

from collections import ChainMap
from collections.abc import Iterable
from typing import Literal

import msgspec

from bridge.connection import Connection
from bridge.meaning import Meaning
from edge.wire import Head, Vocabulary

Policy = Literal["auto", "strict"]
REMEMBERED = 200_000  # entries; a fleet of 100,000 boxes fits


class Registry:
    """The ids of one database, remembered."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._boxes: dict[tuple[str, str], int] = {}
        self._meanings: dict[tuple[int, int], Meaning] = {}
        self._new_boxes: dict[tuple[str, str], int] = {}
        self._new_meanings: dict[tuple[int, int], Meaning] = {}

    def forget(self) -> None:
        """Drop what the transaction that now begins, or has failed, would add."""
        self._new_boxes.clear()
        self._new_meanings.clear()

    def keep(self) -> None:
        """Remember what the committed transaction found."""
        if len(self._boxes) + len(self._meanings) > REMEMBERED:
            self._boxes.clear()
            self._meanings.clear()
        self._boxes |= self._new_boxes
        self._meanings |= self._new_meanings
        self.forget()

    def boxes(self, connection: Connection, names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Return the ids of boxes; with policy `auto` unknown ones are registered, with `strict` left out."""
        known = ChainMap(self._new_boxes, self._boxes)
        wanted = sorted(set(names))
        unknown = [name for name in wanted if name not in known]
        if unknown:
            sites, boxes = [site for site, _ in unknown], [box for _, box in unknown]
            if self._policy == "auto":
                connection.execute(
                    "INSERT INTO sites (name) SELECT DISTINCT n FROM unnest(%s::text[]) n "
                    "WHERE NOT EXISTS (SELECT FROM sites WHERE name = n) ORDER BY n ON CONFLICT DO NOTHING",
                    (sites,),
                )
                connection.execute(
                    "INSERT INTO boxes (site_id, name) SELECT s.site_id, n.box "
                    "FROM unnest(%s::text[], %s::text[]) AS n (site, box) JOIN sites s ON s.name = n.site "
                    "WHERE NOT EXISTS (SELECT FROM boxes b WHERE b.site_id = s.site_id AND b.name = n.box) "
                    "ORDER BY s.name, n.box ON CONFLICT DO NOTHING",
                    (sites, boxes),
                )
            rows = connection.execute(
                "SELECT s.name, b.name, b.box_id FROM unnest(%s::text[], %s::text[]) AS n (site, box) "
                "JOIN sites s ON s.name = n.site JOIN boxes b ON b.site_id = s.site_id AND b.name = n.box",
                (sites, boxes),
            )
            self._new_boxes |= {(site, box): box_id for site, box, box_id in rows}
        return {name: known[name] for name in wanted if name in known}

    def cameras(self, connection: Connection, names: Iterable[tuple[int, str]]) -> dict[tuple[int, str], int]:
        """Return the ids of cameras by (box_id, name), registering those not seen before."""
        wanted = sorted(set(names))
        columns = {"boxes": [box_id for box_id, _ in wanted], "names": [name for _, name in wanted]}
        connection.execute(
            "INSERT INTO cameras (box_id, name) "
            "SELECT n.* FROM unnest(%(boxes)s::integer[], %(names)s::text[]) AS n (box_id, name) "
            "WHERE NOT EXISTS (SELECT FROM cameras c WHERE c.box_id = n.box_id AND c.name = n.name) "
            "ORDER BY 1, 2 ON CONFLICT DO NOTHING",
            columns,
        )
        rows = connection.execute(
            "SELECT box_id, name, camera_id FROM cameras "
            "JOIN unnest(%(boxes)s::integer[], %(names)s::text[]) AS n (box_id, name) USING (box_id, name)",
            columns,
        )
        return {(box_id, name): camera_id for box_id, name, camera_id in rows}

    def learn(self, connection: Connection, box_id: int, digest: int, vocabulary: Vocabulary) -> None:
        """Write a vocabulary down. The digest is the box's word: a newer one hashes fields unknown to us."""
        if (box_id, digest) in self._meanings or (box_id, digest) in self._new_meanings:
            return
        self.cameras(connection, ((box_id, name) for name in vocabulary.cameras))
        row = connection.execute(
            "INSERT INTO vocabularies (box_id, digest, cameras, heads) VALUES (%s, %s, %s, %s) "
            "ON CONFLICT DO NOTHING RETURNING vocabulary_id",
            (box_id, digest, list(vocabulary.cameras), _heads_json(vocabulary.heads)),
        ).fetchone()
        if row is not None:
            labels = [(head.name, label, i) for head in vocabulary.heads for i, label in enumerate(head.labels)]
            connection.execute(
                "INSERT INTO vocabulary_labels SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::integer[]) "
                "ON CONFLICT DO NOTHING",
                (row[0], [n for n, _, _ in labels], [n for _, n, _ in labels], [i for _, _, i in labels]),
            )

    def meanings(self, connection: Connection, keys: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Meaning]:
        """Return what (box_id, digest) means; what the database does not know is left out."""
        known = ChainMap(self._new_meanings, self._meanings)
        wanted = sorted(set(keys))
        unknown = [key for key in wanted if key not in known]
        if unknown:
            rows = connection.execute(
                "SELECT v.box_id, v.digest, v.vocabulary_id, v.heads, "
                "ARRAY(SELECT c.camera_id FROM unnest(v.cameras) WITH ORDINALITY AS n (name, i) "
                "JOIN cameras c ON c.box_id = v.box_id AND c.name = n.name ORDER BY n.i) "
                "FROM unnest(%s::integer[], %s::bigint[]) AS w (box_id, digest) "
                "JOIN vocabularies v ON v.box_id = w.box_id AND v.digest = w.digest",
                ([box_id for box_id, _ in unknown], [digest for _, digest in unknown]),
            )
            for box_id, digest, vocabulary_id, heads, cameras in rows:
                read = tuple(Head(head["name"], tuple(head["labels"]), head["purpose"]) for head in heads)
                self._new_meanings[box_id, digest] = Meaning(vocabulary_id, box_id, tuple(cameras), read)
        return {key: known[key] for key in wanted if key in known}


def _heads_json(heads: tuple[Head, ...]) -> str:
    named = [{"name": head.name, "labels": head.labels, "purpose": head.purpose} for head in heads]
    return msgspec.json.encode(named).decode()
