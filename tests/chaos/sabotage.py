"""Two mistakes that a centre and a box must never make, put in on purpose: the ledger has to turn red.

They are patched into a child process of the tool, never into the product.
"""

from typing import Any

HONEST = "none"
ACK_BEFORE_COMMIT = "ack-before-commit"
DELETE_ON_PUBACK = "delete-on-puback"


def apply(name: str) -> None:
    """Break this process in the named way."""
    match name:
        case "none":
            return
        case "ack-before-commit":
            _ack_before_commit()
        case "delete-on-puback":
            _delete_on_puback()
        case _:
            raise ValueError(f"sabotage {name!r}, expected {HONEST}, {ACK_BEFORE_COMMIT} or {DELETE_ON_PUBACK}")


def _ack_before_commit() -> None:
    """Acknowledge, to broker and box, what has only been taken into memory."""
    from bridge.inbox import Delivery
    from bridge.subscriber import Subscriber
    from edge.wire import Covered, WireError, decode_batch, encode_ack, topic

    honest = Subscriber._write_first

    def write_first(self: Subscriber, store: Any) -> None:
        for delivery in list(self._round):
            if delivery.kind == "events":
                _say(self, delivery)
        honest(self, store)

    def _say(self: Subscriber, delivery: Delivery) -> None:
        try:
            batch = decode_batch(delivery.message.payload)
        except WireError:
            return
        assert self.database is not None
        held = Covered(batch.stream, batch.first_seq + len(batch.events) - 1)
        payload = encode_ack(self.database, (held,))
        self._outlet.publish(topic(delivery.site, delivery.box, "ack"), payload, qos=1, retain=True)
        self._outlet.ack(delivery.message)

    Subscriber._write_first = write_first  # type: ignore[method-assign]


def _delete_on_puback() -> None:
    """Take the broker's word for the database's."""
    from edge.publish.delivery import Delivery

    honest = Delivery.puback

    def puback(self: Delivery, mid: int) -> None:
        key = self._in_flight.get(mid)
        sent = self._sent.get(key) if key is not None else None
        honest(self, mid)
        if sent is not None:
            outbox: Any = self.outbox
            stream = outbox._held.streams[sent.row.place]
            stream.covered.add(sent.row.first, sent.row.last)
            with outbox._held.file.transaction():
                outbox._held.file.delete([sent.row])
            stream.gone.add(sent.row.first, sent.row.last)
            outbox._coverage.unsaved.add(sent.row.place)

    Delivery.puback = puback  # type: ignore[method-assign]
