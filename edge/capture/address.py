"""Secrets that stand in the address of a camera: found, so that a config is refused, or moved out of every text.

Many cameras take a password nowhere but in their address, as `?user=…&password=…` or `/user=…_password=…_channel=1`.
Such an address is written with `{user}` and `{password}`, which are filled in when the camera is opened.
"""

import re
from urllib.parse import quote, unquote

USER, PASSWORD = "{user}", "{password}"
_SECRETS = "password|passwd|pass|passw|pwd|pw|psw|loginpas|token|authtoken|apikey|key|secret"
_USERS = "user|usr|username|login|loginuse"
_VALUE = r"([^&;#?/]+?)(?=[&;#?/]|_\w+=|$)"
# "access_token" and "user=a_password=b" both: what stands before a name is anything but a letter or digit.
_SECRET = re.compile(rf"(?<![A-Za-z0-9])({_SECRETS})={_VALUE}", re.IGNORECASE)
_USER = re.compile(rf"(?<![A-Za-z0-9])({_USERS})={_VALUE}", re.IGNORECASE)


def secrets_in(address: str) -> list[str]:
    """Return the names in an address, such as `password`, that a secret follows; `{password}` is none."""
    return [name for name, value in _SECRET.findall(_behind_host(address)) if value != PASSWORD]


def filled(address: str, user: str | None, password: str | None) -> str:
    """Return an address with user and password in the places kept for them."""
    return address.replace(USER, quote(user or "", safe="")).replace(PASSWORD, quote(password or "", safe=""))


def keeps_places(address: str) -> bool:
    """Tell whether an address wants the password in itself, and not beside it."""
    return PASSWORD in address


def emptied(address: str) -> tuple[str, str | None, set[str]]:
    """Return an address with user and secrets replaced by their places; the user, and the secrets that stood there."""
    behind = _behind_host(address)
    front = address[: len(address) - len(behind)]
    users = [unquote(value) for _, value in _USER.findall(behind) if value != USER]
    secrets = {unquote(value) for _, value in _SECRET.findall(behind) if value != PASSWORD}
    behind = _SECRET.sub(rf"\1={PASSWORD}", _USER.sub(rf"\1={USER}", behind))
    return front + behind, users[0] if users else None, secrets


def _behind_host(address: str) -> str:
    rest = address.partition("://")[2] or address
    cut = re.search(r"[/?;#]", rest)
    return rest[cut.start() :] if cut else ""
