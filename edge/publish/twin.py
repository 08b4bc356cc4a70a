"""Two boxes with one id: how a box notices, and which of the two falls silent (P29). Pure; `now_s` is an argument.

A broker throws the older of two clients with one client id out, so twins never hear each other: they take turns. A box
that finds a foreign birth or death on its own state topic after its own birth had arrived there was thrown out by a
twin, or its broker was restored. When that happens twice, the younger one connects under another client id and only
listens. There it hears the foreign health, or hears nothing for two heartbeats and goes on as before.
"""

from dataclasses import dataclass, field

CONTESTS = 2  # foreign states after our own birth, before listening


@dataclass(slots=True)
class _Foreign:
    born_ms: int
    state_s: float
    health_s: float | None = None
    proven: bool = False  # heard in both within two heartbeats


@dataclass(slots=True)
class TwinWatch:
    """What one process knows of others under its id.

    Attributes:
        nonce: ours.
        born_ms: when we started, as our birth message says it; of two boxes the one with the larger value yields.
        heartbeat_s: between two health messages.
    """

    nonce: str
    born_ms: int
    heartbeat_s: float
    listening_until_s: float | None = None
    _foreign: dict[str, _Foreign] = field(default_factory=dict)
    _health: dict[str, float] = field(default_factory=dict)  # of nonces not heard in state yet
    _contests: list[float] = field(default_factory=list)

    def heard_state(self, nonce: str, born_ms: int, after_our_birth: bool, now_s: float) -> bool:
        """Note a message on our state topic; return whether it is foreign.

        Args:
            nonce: of whom it speaks.
            born_ms: when that process started.
            after_our_birth: our own birth had been acknowledged before this connection began, so this came later.
            now_s: monotonic.
        """
        if nonce == self.nonce:
            return False
        known = self._foreign.get(nonce) or _Foreign(born_ms, now_s, self._health.pop(nonce, None))
        known.state_s = now_s
        self._foreign = {nonce: known}  # a topic has one state: the last one
        self._prove(known)
        if after_our_birth and self.yields_to(nonce, born_ms):
            self._contests = [at for at in self._contests if now_s - at < 4 * self.heartbeat_s] + [now_s]
        return True

    def heard_health(self, nonce: str, now_s: float) -> bool:
        """Note a message on our health topic; return whether it is foreign."""
        if nonce == self.nonce:
            return False
        known = self._foreign.get(nonce)
        if known is None:
            self._health = {nonce: now_s}
        else:
            known.health_s = now_s
            self._prove(known)
        return True

    def duplicate(self, now_s: float) -> bool:
        """Return whether an older process lives under our id: we must not publish events."""
        return any(
            twin.proven and twin.health_s is not None and now_s - twin.health_s <= 2 * self.heartbeat_s
            for nonce, twin in self._foreign.items()
            if self.yields_to(nonce, twin.born_ms)
        )

    def listening(self, now_s: float) -> bool:
        """Return whether to leave our id to the other and only listen: to find out, or because we know."""
        if len(self._contests) >= CONTESTS or self.duplicate(now_s):
            self.listening_until_s = now_s + 2 * self.heartbeat_s
            self._contests.clear()
        elif self.listening_until_s is not None and now_s >= self.listening_until_s:
            self.listening_until_s = None
        return self.listening_until_s is not None

    def _prove(self, twin: _Foreign) -> None:
        if twin.health_s is not None and abs(twin.health_s - twin.state_s) <= 2 * self.heartbeat_s:
            twin.proven = True

    def yields_to(self, nonce: str, born_ms: int) -> bool:
        """Return whether of the two it is we who fall silent: the younger one."""
        return (self.born_ms, self.nonce) > (born_ms, nonce)
