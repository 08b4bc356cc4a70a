"""What can go wrong on a box, for a person to read: every message names the thing, the finding and the next step."""


class EdgeError(Exception):
    """Root of everything a box reports to its user without a traceback."""


class ConfigError(EdgeError):
    """The YAML config does not say what a box needs to know."""


class ModelError(EdgeError):
    """A model bundle is missing, damaged, or computes something else than its golden output."""


class CameraError(EdgeError):
    """A source cannot be opened, or ended in a way its kind does not allow."""


class OutboxError(EdgeError):
    """The outbox cannot keep an event."""


class FlashError(EdgeError):
    """A bundle, key or target is not what a flash needs; the box stays as it was."""


class DuplicateIdError(EdgeError):
    """Another box lives under this one's id."""
