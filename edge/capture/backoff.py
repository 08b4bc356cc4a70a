"""How long to wait before a camera is tried again. Pure: clock and randomness are handed in."""

from dataclasses import dataclass
from random import Random


@dataclass(slots=True)
class Backoff:
    """Bounded exponential backoff with full jitter, so that a fleet does not knock on a rebooted camera in step.

    Attributes:
        base_s: the first wait is drawn from (0, base_s); turning it up is kinder to the camera, but slower.
        cap_s: no wait is longer.
        floor_s: no wait is shorter, so that a camera that refuses at once costs no CPU.
        stable_s: a connection that held for so long counts as good, and the waits start small again. One that dies
            after its first frame does not, or a camera in a boot loop would be hammered.
        refused_s: the wait after a refused password. Cameras lock an account after five to seven wrong tries, and
            the person who repairs the password should not find it locked.
    """

    base_s: float = 0.5
    cap_s: float = 30.0
    floor_s: float = 0.1
    stable_s: float = 10.0
    refused_s: float = 300.0
    failures: int = 0
    _up_since_s: float | None = None

    def connected(self, now_s: float) -> None:
        """Take note that the first frame of a connection has come."""
        self._up_since_s = now_s

    def failed(self, now_s: float, rng: Random, *, refused: bool = False) -> float:
        """Take note of a loss or a failed try, and return how long to wait, seconds.

        Args:
            now_s: monotonic time.
            rng: where the jitter comes from.
            refused: the camera is there and does not want us.
        """
        if self._up_since_s is not None and now_s - self._up_since_s >= self.stable_s:
            self.failures = 0
        self._up_since_s = None
        ceiling_s = min(self.cap_s, self.base_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        if refused:
            return rng.uniform(0.8, 1.0) * self.refused_s
        return max(self.floor_s, rng.uniform(0.0, ceiling_s))
