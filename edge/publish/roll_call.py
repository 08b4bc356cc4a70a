"""Before a box starts: does another one live under its id? It is asked, and refuses to start when it answers (P42).

A retained birth proves nothing, it outlives a dead box. So the newcomer, beside the other's connection and under a
client id of its own, says on their state topic what makes a living box say its birth again at once, and the dead none.
What cannot be asked, without a broker or over a cut link, is left to `twin`: then both run, and the younger is silent.
"""

import queue
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Self

import msgspec

from edge.errors import DuplicateIdError
from edge.link import Link, Message
from edge.publish.publisher import PublisherSettings
from edge.wire import BoxState, stream_name, topic

ANSWER_S = 5.0  # for a box that lives, to say so
GRACE_S = 0.3  # for a retained state, after what was said later has come
YOUNGEST_MS = 2**47  # in the year 6429: whoever hears it is older, and so it is he who answers (P29)


class RollCall:
    """One question: asked when made, answered while models load; leave it (`with`) to drop the connection."""

    def __init__(self, settings: PublisherSettings) -> None:
        """Connect and ask, in the background."""
        self._settings = settings
        self._topic = topic(settings.site, settings.box, "state")
        self._heard: queue.SimpleQueue[Message | None] = queue.SimpleQueue()  # None: there is no connection
        self._link = Link(
            replace(
                settings.link, client_id=f"{settings.client_id}-{settings.nonce}", clean_start=True,
                session_expiry_s=0, will=None,
            ),
            on_message=self._heard.put,
            on_up=lambda *_: self._ask(),
            on_down=lambda _: self._heard.put(None),
            subscriptions=[(self._topic, 1)],
        )  # fmt: skip
        self._link.start()

    def conclude(self, answer_s: float = ANSWER_S) -> None:
        """Wait for the answer.

        Args:
            answer_s: the longest to wait, for a connection too.

        Raises:
            DuplicateIdError: another process lives under our id.
        """
        alive = self._listen(time.monotonic() + answer_s)
        if alive is not None:
            s, since = self._settings, datetime.fromtimestamp(min(max(0, alive.t_ms), YOUNGEST_MS) / 1000, UTC)
            raise DuplicateIdError(
                f"another box lives under the id {s.site}/{s.box}: up since {since:%Y-%m-%d %H:%M:%S} UTC, machine "
                f"{alive.machine[:12] or 'unknown'}, software {alive.software or 'unknown'}, expected none; give this "
                "box an id of its own, or stop that one: then this one can start"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Not waited for: a broker that does not answer would hold up the start of a box that has nothing to fear.
        threading.Thread(target=self._link.stop, name="roll call ends", daemon=True).start()

    def _listen(self, end_s: float) -> BoxState | None:
        """Return the state of a living box, None when nobody is there."""
        suspect = ""
        while (wait_s := end_s - time.monotonic()) > 0:
            try:
                message = self._heard.get(timeout=wait_s)
            except queue.Empty:
                return None
            if message is None:
                return None  # who cannot be asked; the publisher says what is wrong with the broker
            try:
                state = msgspec.json.decode(message.payload, type=BoxState)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            if state.nonce == self._settings.nonce:
                if not suspect:  # our own question is back, so what was retained should be here
                    end_s = min(end_s, time.monotonic() + GRACE_S)
            elif state.t_ms == YOUNGEST_MS:
                continue  # somebody else asks, too
            elif state.state == "offline":
                if suspect in ("", state.nonce):
                    return None
            elif message.retain:
                suspect = state.nonce
            else:
                return state
        return None

    def _ask(self) -> None:
        """Say what a living box must answer: the death, not retained, of a process that never was born.

        A bridge does not heed the death of a stream that is not the newest (P27).
        """
        s = self._settings
        question = BoxState(
            "offline", stream_name(s.stream), s.boot, s.machine, s.nonce, "asks who lives here", YOUNGEST_MS
        )
        self._link.publish(self._topic, msgspec.json.encode(question), qos=1)
