"""What the demo cannot go on with."""


class DemoError(Exception):
    """The demo cannot start or go on; the message names the thing, what was found and the next step."""
