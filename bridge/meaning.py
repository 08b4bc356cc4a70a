"""What the indices in a box's events mean, as the database knows it: camera ids, labels as JSON. Pure."""

from dataclasses import dataclass, field

import msgspec

from bridge.copy import jsonb
from edge.wire import Head, WireError

EMPTY = jsonb(b"{}")
REMEMBERED = 4096  # combinations of labels; few occur unless somebody makes them up


@dataclass(frozen=True, slots=True)
class Meaning:
    """A vocabulary as the database knows it: camera ids instead of names."""

    vocabulary_id: int
    box_id: int
    camera_ids: tuple[int, ...]
    heads: tuple[Head, ...]
    _known: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[bytes, bytes]] = field(
        default_factory=dict, compare=False
    )

    def camera_id(self, index: int) -> int:
        """Return the id of the camera an event names by index."""
        if not 0 <= index < len(self.camera_ids):
            raise WireError(f"camera {index} is not in the vocabulary of {len(self.camera_ids)} cameras")
        return self.camera_ids[index]

    def attributes(self, flat: tuple[int, ...]) -> tuple[bytes, bytes]:
        """Return labels and confidences as jsonb columns; `flat` is head, label, confidence in 1/255, …"""
        if not flat:
            return EMPTY, EMPTY
        if len(flat) % 3:
            raise WireError(f"{len(flat)} attribute numbers, expected triples")
        key = (flat[::3], flat[1::3])
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known[key] = self._name(*key)
        labels, template = known
        return labels, jsonb(template % tuple([confidence / 255 for confidence in flat[2::3]]))

    def _name(self, heads: tuple[int, ...], labels: tuple[int, ...]) -> tuple[bytes, bytes]:
        """Return the labels as a jsonb column, and JSON with a place for each confidence; few combinations occur."""
        named, places = {}, []
        for head, label in zip(heads, labels, strict=True):
            if not (0 <= head < len(self.heads) and 0 <= label < len(self.heads[head].labels)):
                raise WireError(f"head {head}, label {label} is not in the vocabulary")
            named[self.heads[head].name] = self.heads[head].labels[label]
            places.append(msgspec.json.encode(self.heads[head].name).replace(b"%", b"%%") + b":%.3f")
        return jsonb(msgspec.json.encode(named)), b"{" + b",".join(places) + b"}"
