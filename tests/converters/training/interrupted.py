"""A training whose user presses Ctrl-C."""


class StopsAfter:
    """Material whose reader is interrupted by the user after some batches: on reading `name` once too often."""

    def __init__(self, material: object, name: str, batches: int) -> None:
        self._material, self._name, self._left = material, name, batches

    def __getattr__(self, name: str) -> object:
        if name == self._name:
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
        return getattr(self._material, name)
