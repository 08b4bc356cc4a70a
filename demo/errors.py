"""What the demo cannot go on with."""


class DemoError(Exception):
    """The demo cannot do what was asked; the message names the thing, what was found and the next step."""


class DemoFailure(DemoError):
    """What was asked is possible, but a part of the demo gave up."""
