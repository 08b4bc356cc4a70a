"""Take a box out of service, and back. Driven by `facefleet-bridge retire`.

A retirement is a time on the box's row; that it hides the box until it speaks again is said by views (migration 0010).
No bridge has to know of it: what a retired box sends is written and acknowledged like any other's.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from psycopg.rows import class_row

from bridge.ca.authority import Authority, now
from bridge.ca.names import ClaimName, Name
from bridge.connection import Connection
from bridge.errors import BridgeError, ConfigError
from edge.wire import WireError, check_id

OPTIONS = "-c search_path=facefleet,pg_temp -c TimeZone=UTC -c lock_timeout=60s"
NEAR = 3  # names that are suggested

# Not the state: the broker says that again whenever a bridge comes.
_HEARD = (
    "greatest((SELECT max(last_at) FROM streams t WHERE t.box_id = b.box_id), "
    "(SELECT received_at FROM health_latest h WHERE h.box_id = b.box_id))"
)
_SELECT = f"""
SELECT b.box_id AS id, s.name AS site, b.name, b.state, b.retired_at, {_HEARD} AS heard_at,
    (SELECT (health->>'outbox_events')::bigint FROM health_latest h WHERE h.box_id = b.box_id) AS waiting
FROM boxes b JOIN sites s USING (site_id)"""


@dataclass(frozen=True, slots=True)
class Box:
    """One box of the registry, with what an operator should know before deciding.

    Attributes:
        state: what its newest birth or death said; None when none was ever heard.
        heard_at: its last event, new birth or health.
        waiting: events in its outbox, as its last health said.
    """

    id: int
    site: str
    name: str
    state: str | None
    retired_at: datetime | None
    heard_at: datetime | None
    waiting: int | None

    def __str__(self) -> str:
        return f"{self.site}/{self.name}"

    @property
    def returned(self) -> bool:
        """Tell whether it spoke after it was retired."""
        return self.retired_at is not None and self.heard_at is not None and self.heard_at > self.retired_at

    @property
    def seems_alive(self) -> bool:
        """Tell whether its last word was not a farewell, or it spoke although it is retired."""
        return self.returned or (self.state == "online" and self.retired_at is None)

    @property
    def standing(self) -> str:
        """Return where it stands, in a few words."""
        spoke = f"last heard {when(self.heard_at)}" if self.heard_at else "never heard"
        said = [self.state or "no birth heard", spoke]
        if self.retired_at is not None:
            said.append(f"retired since {when(self.retired_at)}")
        return ", ".join(said)


@contextmanager
def registry(dsn: str) -> Iterator[Connection]:
    """Connect as a member of `facefleet_ingest`, the bridge's own role; what follows is one transaction."""
    options = f"{OPTIONS} {psycopg.conninfo.conninfo_to_dict(dsn).get('options') or ''}"
    with psycopg.connect(dsn, options=options, application_name="facefleet-retire") as connection:
        yield connection


def find(connection: Connection, text: str, site: str | None) -> Box:
    """Return the box that a person names: "munich/lobby-1", or "lobby-1", which mostly is enough.

    Raises:
        ConfigError: it cannot be a name.
        BridgeError: there is none of that name, or one at each of several sites.
    """
    before, slash, name = text.rpartition("/")
    if slash and site not in (None, before):
        raise ConfigError(f"{text} is at the site {before}, and --site says {site}; give one of them")
    site = before if slash else site
    try:
        check_id(name, "box")
        if site is not None:
            check_id(site, "site")
    except WireError as error:
        raise ConfigError(f"{text!r} is no BOX or SITE/BOX: {error}") from error
    with connection.cursor(row_factory=class_row(Box)) as cursor:
        query = f"{_SELECT} WHERE b.name = %s AND s.name = coalesce(%s, s.name) ORDER BY s.name"
        found = cursor.execute(query.encode(), (name, site)).fetchall()
    if len(found) == 1:
        return found[0]
    wanted = f"{site}/{name}" if site else name
    if found:
        raise BridgeError(f"there is a box {wanted} at {len(found)} sites: {_listed(map(str, found))}; add --site")
    near = _near(connection, wanted)
    hint = f"did you mean {_listed(near)}?" if near else "report.box_status lists all there are"
    raise BridgeError(f"there is no box {wanted}; {hint}")


def retire(connection: Connection, box: Box) -> datetime:
    """Mark a box as retired and leave it out of the roll-out that runs; return since when it is.

    One that is retired and kept silent stays so since then. The time is never before the box's last word, whatever the
    bridge's clock and the database's think of each other.
    """
    row = connection.execute(
        f"UPDATE boxes b SET retired_at = greatest(now(), {_HEARD}), retired_by = session_user WHERE box_id = %s "
        f"AND (retired_at IS NULL OR {_HEARD} > retired_at) RETURNING retired_at".encode(),
        (box.id,),
    ).fetchone()
    connection.execute(
        "UPDATE rollout_boxes SET state = 'retired', reason = 'taken out of service', changed_at = now() "
        "WHERE site = %s AND box = %s AND state IN ('waiting', 'offered', 'taken') "
        "AND rollout_id = (SELECT rollout_id FROM rollouts WHERE state = 'running')",
        (box.site, box.name),
    )
    since = row[0] if row else box.retired_at
    assert since is not None, "what was not updated is retired"
    return since


def undo(connection: Connection, box: Box) -> None:
    """Put a retired box back into service.

    Raises:
        BridgeError: it is in service.
    """
    if box.retired_at is None:
        raise BridgeError(f"{box} is not retired ({box.standing})")
    connection.execute("UPDATE boxes SET retired_at = NULL, retired_by = NULL WHERE box_id = %s", (box.id,))


def shut_out(there: Authority, box: Box, reload: str = "") -> list[str]:
    """Revoke a box's certificates and claims, and let the broker hear of it, by `reload` or the authority's command.

    Returns:
        What was done and what a person still has to do.

    Raises:
        BridgeError: the broker's files cannot be written, or it did not take the news.
    """
    name = Name("box", box.name, box.site)
    known = (member.name.box if isinstance(member.name, ClaimName) else member.name for member in there.members())
    if name not in known:
        return [f"the authority in {there.folder} has given it no certificate, so none was revoked"]
    there.revoke(name, now())
    todo = there.reload(reload)
    return ["its certificate is revoked", *([f"left to do: {todo}"] if todo else [])]


def when(at: datetime) -> str:
    """Return a time as a person reads it."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _near(connection: Connection, wanted: str) -> list[str]:
    """Return the names most like one that does not exist; the same box at another site before all others."""
    rows = connection.execute(
        "SELECT s.name, b.name FROM boxes b JOIN sites s USING (site_id) ORDER BY 1, 2"
    ).fetchall()
    site, _, name = wanted.rpartition("/")
    full = {(f"{s}/{b}" if site else b): f"{s}/{b}" for s, b in rows}
    same = [f"{s}/{b}" for s, b in rows if b == name]
    close = [full[found] for found in difflib.get_close_matches(wanted, full, n=NEAR)]
    return list(dict.fromkeys([*same, *close]))[:NEAR]


def _listed(names: Iterator[str] | list[str]) -> str:
    return " or ".join(names)
