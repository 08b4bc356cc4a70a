"""Makes the users and groups of a sysusers.d(5) file in a root folder, and takes them away again.

`systemd-sysusers --root` does the first and nothing does the second; and a card may be written where it is missing.
"""

import fcntl
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edge.errors import EdgeError

HIGHEST, LOWEST = 999, 100  # system ids, as Debian hands them out
NOBODY_LOGS_IN = "/usr/sbin/nologin"


class Made(msgspec.Struct, frozen=True):
    """What was really added, and so may be removed."""

    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    memberships: tuple[tuple[str, str], ...] = ()  # user, group

    def __or__(self, other: "Made") -> "Made":
        def both(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(dict.fromkeys((*a, *b)))

        memberships = tuple(dict.fromkeys((*self.memberships, *other.memberships)))
        return Made(both(self.users, other.users), both(self.groups, other.groups), memberships)


def make(root: Path, sysusers: str) -> Made:
    """Add what a sysusers file asks for and is not there.

    Args:
        root: of the system; its etc/passwd is edited.
        sysusers: lines of the kinds u, g and m.

    Raises:
        EdgeError: this is no root of a system, or may not be written.
    """
    users: list[str] = []
    groups: list[str] = []
    memberships: list[tuple[str, str]] = []
    with _tables(root) as tables:
        for kind, name, *rest in filter(None, (shlex.split(line, comments=True) for line in sysusers.splitlines())):
            if kind in ("g", "u") and name not in tables.group:
                tables.group[name] = ["x", str(_free(tables.group, tables.passwd)), ""]
                tables.gshadow[name] = ["!*", "", ""]
                groups.append(name)
            if kind == "u" and name not in tables.passwd:
                gid = tables.group[name][1]
                taken = {entry[1] for entry in tables.passwd.values()}
                uid = gid if gid not in taken else str(_free(tables.passwd, tables.group))
                tables.passwd[name] = ["x", uid, gid, rest[1], rest[2], NOBODY_LOGS_IN]
                tables.shadow[name] = ["!*", str(int(time.time() // 86400)), "", "", "", "", "", ""]
                users.append(name)
            if kind == "m" and name not in (members := _members(tables.group[rest[0]])):
                for table in (tables.group, tables.gshadow):
                    if rest[0] in table:
                        table[rest[0]][-1] = ",".join([*members, name])
                memberships.append((name, rest[0]))
    return Made(tuple(users), tuple(groups), tuple(memberships))


def remove(root: Path, made: Made) -> None:
    """Take away what was added."""
    with _tables(root) as tables:
        for user, group in made.memberships:
            for table in (tables.group, tables.gshadow):
                if group in table:
                    table[group][-1] = ",".join(m for m in _members(table[group]) if m != user)
        for user in made.users:
            tables.passwd.pop(user, None)
            tables.shadow.pop(user, None)
        for group in made.groups:
            if not (group in tables.group and _members(tables.group[group])):  # somebody else joined meanwhile
                tables.group.pop(group, None)
                tables.gshadow.pop(group, None)


def ids(root: Path, user: str) -> tuple[int, int] | None:
    """Return the user and group number of a user of that system."""
    with _tables(root) as tables:
        entry = tables.passwd.get(user)
    return (int(entry[1]), int(entry[2])) if entry else None


Table = dict[str, list[str]]


class _Tables:
    def __init__(self, etc: Path) -> None:
        self.etc = etc
        self.passwd = self._read("passwd")
        self.group = self._read("group")
        self.shadow = self._read("shadow")
        self.gshadow = self._read("gshadow")
        self._before = {name: self._text(name) for name in ("passwd", "group", "shadow", "gshadow")}

    def write(self) -> None:
        """Replace the files that changed; group before passwd, so that no user is ever without."""
        for name in ("group", "gshadow", "passwd", "shadow"):
            path, text = self.etc / name, self._text(name)
            if text == self._before[name] or not path.exists():
                continue
            found, aside = path.stat(), path.with_name(f"{name}.facefleet")
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                if os.geteuid() == 0:
                    os.fchown(descriptor, found.st_uid, found.st_gid)
                os.fchmod(descriptor, found.st_mode & 0o7777)
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            os.replace(aside, path)

    def _read(self, name: str) -> Table:
        path = self.etc / name
        lines = path.read_text().splitlines() if path.exists() else []
        return {line.split(":")[0]: line.split(":")[1:] for line in lines if ":" in line}

    def _text(self, name: str) -> str:
        table: Table = getattr(self, name)
        return "".join(":".join([key, *values]) + "\n" for key, values in table.items())


@contextmanager
def _tables(root: Path) -> Iterator[_Tables]:
    etc = root / "etc"
    if not (etc / "passwd").is_file() or not (etc / "group").is_file():
        raise EdgeError(f"{root} is no root of a Linux system: it has no etc/passwd; is the card mounted there?")
    lock = etc / ".pwd.lock"  # lckpwdf(3)
    try:
        with (lock if lock.exists() else etc / "passwd").open("rb+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            tables = _Tables(etc)
            yield tables
            tables.write()
    except PermissionError as error:
        raise EdgeError(f"{error.filename} cannot be changed; are you root?") from error


def _free(*tables: Table) -> int:
    taken = {entry[1] for table in tables for entry in table.values()}
    return next(i for i in range(HIGHEST, LOWEST, -1) if str(i) not in taken)


def _members(entry: list[str]) -> list[str]:
    return [member for member in entry[-1].split(",") if member]
