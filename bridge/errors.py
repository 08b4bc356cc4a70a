"""What can go wrong in the centre, for a person to read."""


class BridgeError(Exception):
    """Root of everything the bridge reports to its user without a traceback."""


class ConfigError(BridgeError):
    """The bridge's YAML does not say what it needs to know."""


class StoreError(BridgeError):
    """The database refuses something a retry cannot mend: a missing grant, schema or table."""


class LocalError(BridgeError):
    """The embedded broker or database cannot be started, or does not stay up."""
