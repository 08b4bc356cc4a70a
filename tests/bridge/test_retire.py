"""Taking a box out of service: it is gone from the fleet until it speaks again, and nothing it says is lost."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from bridge import cli
from bridge.ca import authority
from bridge.ca.authority import Authority
from bridge.ca.names import parse_name
from bridge.dashboards.alerts import BOXES
from bridge.dashboards.ask import ask, firing, reader
from bridge.errors import BridgeError, ConfigError
from bridge.retire import find, registry, retire, undo
from bridge.rollout.driver import UNCOMMITTED
from bridge.rollout.plan import Bundle
from bridge.rollout.records import Records, Rollout
from bridge.store import Store
from edge.wire import CameraHealth, Health, ModelHealth
from tests.bridge.events import birth, confirmed, count, death, ended, presence, query, sent
from tests.bridge.test_roles import as_role

STREAM = 77
BROKEN = Health(
    "0" * 15 + "1", "n", 0, 12.5, {"door": CameraHealth("reconnecting", "no answer")},
    {"detector": ModelHealth("1", "CPU", "model.onnx", "failed")}, refused={"buffer": 3}, outbox_events=9,
    outbox_fill=0.95, publisher="duplicate_id", certificate_days=2.0, disk_free_bytes=1, throttled=True,
    outbox_trouble="disk full",
)  # fmt: skip
TABLES = ("box_status", "camera_status", "models", "box_counters", "people_now")


@pytest.fixture(autouse=True)
def no_authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No authority is at hand unless a test makes one, whatever the machine has."""
    monkeypatch.setenv("FACEFLEET_CA", str(tmp_path / "nowhere"))


@pytest.fixture
def store(dsn: str) -> Iterator[Store]:
    """Give a fleet of one box in every kind of trouble, b1, and one that is well, b2."""
    with Store(as_role(dsn, "ingest")) as opened:
        opened.maintain(datetime.now(UTC))
        opened.write_state("lab", "b2", birth(88), datetime.now(UTC))
        opened.write_state("lab", "b1", birth(STREAM), datetime.now(UTC))
        opened.write([sent(confirmed(1), ended(2), presence(), stream=STREAM)])
        opened.write_health("lab", "b1", msgspec.json.encode(BROKEN), datetime.now(UTC))
        opened.write_state("lab", "b1", death(STREAM), datetime.now(UTC))
        yield opened


def put_away(dsn: str, box: str = "b1") -> datetime:
    with registry(as_role(dsn, "ingest")) as connection:
        return retire(connection, find(connection, box, "lab"))


def statuses(dsn: str) -> dict[str, str]:
    return {row["box"]: row["status"] for row in query(dsn, "SELECT box, status FROM report.box_status")}


def alarmed(dsn: str, box: str) -> set[str]:
    """Return the alarms that fire for a box."""
    with reader(dsn) as connection:
        fired = {alert.uid: firing(alert, ask(connection, alert.sql)) for alert in BOXES}
    return {uid.removeprefix("facefleet-") for uid, rows in fired.items() if any(box in row for row in rows)}


# What is shown --------------------------------------------------------------------------------------------------------


def test_retired_box_leaves_every_table_and_alarm_and_its_history_stays(store: Store, dsn: str) -> None:
    assert {"offline", "camera", "outbox", "outbox-disk", "golden", "certificate"} <= alarmed(dsn, "b1")
    before = {view: query(dsn, f"SELECT * FROM report.{view}") for view in ("visits_hours", "cameras", "box_health")}
    put_away(dsn)
    assert [query(dsn, f"SELECT * FROM report.{view} WHERE box = 'b1'") for view in TABLES] == [[]] * len(TABLES)
    assert alarmed(dsn, "b1") == set()
    assert {view: query(dsn, f"SELECT * FROM report.{view}") for view in before} == before
    assert statuses(dsn) == {"b2": "stale"}
    [row] = query(dsn, "SELECT * FROM report.retired_boxes")
    assert (row["site"], row["box"], row["retired_by"], row["heard_at"]) == ("lab", "b1", "postgres", None)


def test_what_the_broker_kept_of_it_does_not_bring_it_back(store: Store, dsn: str) -> None:
    put_away(dsn)
    for state in (death(STREAM), birth(STREAM)):  # as every bridge that comes hears them again
        store.write_state("lab", "b1", state, datetime.now(UTC) + timedelta(minutes=1))
    assert "b1" not in statuses(dsn)
    assert query(dsn, "SELECT people FROM report.people_now WHERE box = 'b1'") == []


def test_retired_box_that_speaks_is_shown_at_once_and_calls_a_person(store: Store, dsn: str) -> None:

    def health(now: datetime) -> None:
        store.write_health("lab", "b1", msgspec.json.encode(BROKEN), now)

    def events(now: datetime) -> None:
        with Store(as_role(dsn, "ingest"), clock=lambda: now) as bridge:
            bridge.write([sent(ended(3), stream=STREAM, first_seq=4)])

    def birth_of_a_new_process(now: datetime) -> None:
        store.write_state("lab", "b1", birth(STREAM + 1), now)

    for speak in (health, events, birth_of_a_new_process):
        now = put_away(dsn) + timedelta(seconds=1)
        assert "b1" not in statuses(dsn)
        speak(now)
        assert statuses(dsn)["b1"] == "returned", speak.__name__
        assert "returned" in alarmed(dsn, "b1")
        assert "offline" not in alarmed(dsn, "b1"), "one alarm says it"
        assert query(dsn, "SELECT heard_at FROM report.retired_boxes") == [{"heard_at": now}]


def test_events_of_a_retired_box_are_written_once_and_acknowledged(store: Store, dsn: str) -> None:
    """What was in its outbox when it was retired arrives like any other's."""
    put_away(dsn)
    late = [sent(ended(track), stream=STREAM, first_seq=track + 1) for track in range(3, 8)]
    for _ in range(2):
        written = store.write(late)
    assert (written.inserted, written.duplicates) == (0, 5)
    assert written.covered["lab", "b1"][0].upto == 8
    assert (count(dsn, "visits"), count(dsn, "dead_letters")) == (6, 0)


def test_box_that_returned_stays_so_until_somebody_decides(store: Store, dsn: str) -> None:
    first = put_away(dsn)
    assert put_away(dsn) == first, "said twice, it is retired since the first time"
    store.write_health("lab", "b1", msgspec.json.encode(BROKEN), first + timedelta(seconds=1))
    store.write_state("lab", "b1", death(STREAM), first + timedelta(seconds=2))
    assert statuses(dsn)["b1"] == "returned"
    assert put_away(dsn) > first
    assert "b1" not in statuses(dsn)


def test_box_put_back_is_as_it_was(store: Store, dsn: str) -> None:
    before = query(dsn, "SELECT box, status, cameras, lost_events FROM report.box_status ORDER BY 1")
    put_away(dsn)
    with registry(as_role(dsn, "ingest")) as connection:
        undo(connection, find(connection, "b1", None))
    assert query(dsn, "SELECT box, status, cameras, lost_events FROM report.box_status ORDER BY 1") == before
    with registry(dsn) as connection, pytest.raises(BridgeError, match="lab/b1 is not retired"):
        undo(connection, find(connection, "b1", None))


def test_bridge_whose_clock_is_ahead_does_not_bring_it_back(store: Store, dsn: str) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    store.write_health("lab", "b1", msgspec.json.encode(BROKEN), ahead)
    assert put_away(dsn) == ahead
    assert "b1" not in statuses(dsn)
    store.write_health("lab", "b1", msgspec.json.encode(BROKEN), ahead + timedelta(minutes=1))
    assert statuses(dsn)["b1"] == "returned"


# Which box ------------------------------------------------------------------------------------------------------------


def found(dsn: str, text: str, site: str | None = None) -> str:
    with registry(dsn) as connection:
        return str(find(connection, text, site))


def test_box_is_named_with_or_without_its_site(store: Store, dsn: str) -> None:
    assert {found(dsn, "b1"), found(dsn, "lab/b1"), found(dsn, "b1", "lab"), found(dsn, "lab/b1", "lab")} == {"lab/b1"}
    store.write_state("yard", "b1", birth(99), datetime.now(UTC))
    assert found(dsn, "b1", "yard") == "yard/b1"
    with pytest.raises(BridgeError, match="a box b1 at 2 sites: lab/b1 or yard/b1; add --site"):
        found(dsn, "b1")


def test_unknown_box_is_refused_with_the_names_that_are_near(store: Store, dsn: str) -> None:
    for text, site, said in (
        ("lab/b11", None, "there is no box lab/b11; did you mean lab/b1 or lab/b2?"),
        ("b1", "lob", "there is no box lob/b1; did you mean lab/b1"),
        ("yard/b2", None, "did you mean lab/b2"),
        ("zebra", None, "there is no box zebra; report.box_status lists all there are"),
    ):
        with pytest.raises(BridgeError) as refused:
            found(dsn, text, site)
        assert said in str(refused.value)


def test_what_is_no_name_is_a_mistake_in_the_command(dsn: str) -> None:
    for text, site in (("lab/b1", "yard"), ("b 1", None), ("a/b/c", None), ("", None)):
        with pytest.raises(ConfigError, match="--site says yard" if site else "is no BOX or SITE/BOX"):
            found(dsn, text, site)


# Roll-outs ------------------------------------------------------------------------------------------------------------


def bundles(*boxes: str) -> list[Bundle]:
    return [Bundle("lab", box, 7, f"https://centre/{box}.ffbundle", "0" * 64, 1) for box in boxes]


def test_roll_out_under_way_goes_on_without_it_and_takes_its_offer_back(store: Store, dsn: str) -> None:
    with closing(Records(as_role(dsn, "ingest"))) as records:
        number = records.start(bundles("b1", "b2"), [1, 1], 0, 60)
        records.open_wave(number, 1)
        put_away(dsn)
        [first, second] = records.boxes(number)
        assert (first.state, first.reason, second.state) == ("retired", "taken out of service", "waiting")
        records.set_box(number, replace(first, state="silent"))
        assert records.boxes(number)[0].state == "retired", "a driver that had read it before"
        assert [box for _, box, _ in records.offers(number, ("offered", "taken"))] == []
        assert [box for _, box, _ in records.offers(number, UNCOMMITTED)] == ["b1", "b2"], "withdrawn in the end"


def test_outcome_of_a_box_that_was_retired_later_stays(store: Store, dsn: str) -> None:
    with closing(Records(as_role(dsn, "ingest"))) as records:
        number = records.start(bundles("b1"), [1], 0, 60)
        records.open_wave(number, 1)
        [box] = records.boxes(number)
        records.set_box(number, replace(box, state="committed"))
        put_away(dsn)
        assert [box.state for box in records.boxes(number)] == ["committed"]


class Ended:
    """A driver whose roll-out has run its course already."""

    def __init__(self, records: Records, _settings: object, number: int) -> None:
        self._records, self._number = records, number

    def run(self, _stop: object) -> Rollout:
        return replace(self._records.get(self._number), state="done")


def test_new_roll_out_leaves_it_out_and_says_so(
    store: Store, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bridge.rollout.verbs.Driver", Ended)
    config = tmp_path / "bridge.yaml"
    config.write_text(yaml.safe_dump({"id": "b", "dsn": as_role(dsn, "ingest")}))
    start = ["rollout", "start", str(config), "--bundles", str(tmp_path), "--url", "https://centre/"]
    put_away(dsn)
    for boxes, status in ((["b1"], 1), (["b1", "b2"], 0)):
        monkeypatch.setattr("bridge.rollout.verbs.read_bundles", lambda *_, boxes=boxes: bundles(*boxes))
        assert cli.main(start) == status
        said = capsys.readouterr()
        assert "left out: lab/b1 is retired" in said.out
        assert ("every bundle is for a retired box" in said.err) == bool(status)
    assert query(dsn, "SELECT box FROM rollout_boxes") == [{"box": "b2"}]


# The verb -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def at_hand(tmp_path: Path) -> Authority:
    """Make an authority that has let lab/b1 in; its broker hears by a file that appears."""
    made = Authority.make(
        tmp_path / "ca", ["localhost"], 8883, tmp_path / "ca" / "broker", authority.now(), f"touch {tmp_path}/heard"
    )
    name = parse_name("lab/b1")
    made.enroll(name, authority.request(name)[1], authority.now())
    return made


def revoked(there: Authority, name: str) -> bool:
    [member] = [member for member in there.members() if str(member.name) == name]
    return member.revoked


def test_verb_asks_and_without_anybody_to_ask_does_nothing(
    store: Store, dsn: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verb = ["retire", "b1", "--dsn", dsn]
    assert cli.main(verb) == 2
    said = capsys.readouterr()
    assert "lab/b1: offline, last heard 20" in said.out
    assert "nothing was retired: there is nobody to ask, so give --yes" in said.err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for typed, status in (("b1", 1), ("lab/b1", 0)):
        monkeypatch.setattr("builtins.input", lambda _, typed=typed: typed)
        assert cli.main(verb) == status
        assert ("b1" in statuses(dsn)) == bool(status)


def test_verb_revokes_the_certificate_and_lets_the_broker_hear(
    store: Store, dsn: str, at_hand: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["retire", "lab/b1", "--dsn", as_role(dsn, "ingest"), "--ca", str(at_hand.folder), "--yes"]
    assert cli.main(words) == 0
    assert "lab/b1: retired since 20" in (said := capsys.readouterr().out)
    assert "its certificate is revoked" in said
    assert "left to do" not in said
    assert revoked(at_hand, "lab/b1")
    assert (tmp_path / "heard").exists()
    assert "b1" not in statuses(dsn)
    assert cli.main(words) == 0, "once more changes nothing"
    assert cli.main([*words, "--undo"]) == 0
    assert "in service again. A certificate that was revoked stays so" in capsys.readouterr().out
    assert statuses(dsn)["b1"] == "offline"
    assert revoked(at_hand, "lab/b1")


def test_verb_finds_the_authority_that_the_environment_names(
    store: Store, dsn: str, at_hand: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACEFLEET_CA", str(at_hand.folder))
    assert cli.main(["retire", "lab/b1", "--dsn", dsn, "--yes"]) == 0
    assert revoked(at_hand, "lab/b1")


def test_verb_without_an_authority_says_what_is_left_to_do(
    store: Store, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["retire", "lab/b1", "--dsn", dsn, "--yes"]) == 0
    assert 'left to do, where the authority is: "facefleet-bridge ca revoke lab/b1"' in capsys.readouterr().out


def test_certificate_of_the_same_id_at_its_new_site_is_left_alone(
    store: Store, dsn: str, at_hand: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a box was moved, it is the old site's row that is retired."""
    store.write_state("old", "b1", birth(99), datetime.now(UTC))
    assert cli.main(["retire", "old/b1", "--dsn", dsn, "--ca", str(at_hand.folder), "--yes"]) == 0
    assert "has given it no certificate, so none was revoked" in capsys.readouterr().out
    assert not revoked(at_hand, "lab/b1")
    assert [row["site"] for row in query(dsn, "SELECT site FROM report.box_status WHERE box = 'b1'")] == ["lab"]


def test_broker_that_does_not_hear_of_it_is_a_failure_and_the_box_is_retired_all_the_same(
    store: Store, dsn: str, at_hand: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["retire", "lab/b1", "--dsn", dsn, "--ca", str(at_hand.folder), "--reload", "false", "--yes"]
    assert cli.main(words) == 1
    said = capsys.readouterr()
    assert '"false" failed' in said.err
    assert "lab/b1: retired since" in said.out
    assert (revoked(at_hand, "lab/b1"), "b1" in statuses(dsn)) == (True, False)


def test_verb_warns_of_a_box_that_seems_to_live(
    store: Store, dsn: str, at_hand: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    store.write_state("lab", "b1", birth(STREAM), datetime.now(UTC))
    assert cli.main(["retire", "lab/b1", "--dsn", dsn, "--ca", str(at_hand.folder)]) == 2
    said = capsys.readouterr().out
    assert "It has not said that it ends" in said
    assert "9 events wait in its outbox and will stay there" in said
    assert not revoked(at_hand, "lab/b1")


def test_mistakes_are_named_and_change_nothing(store: Store, dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    before: list[dict[str, Any]] = query(dsn, "SELECT * FROM boxes ORDER BY 1")
    for more, status, why in (
        (["lab/b9", "--yes"], 1, "there is no box lab/b9; did you mean lab/b"),
        (["b 1", "--yes"], 2, "is no BOX"),
        (["lab/b1", "--yes", "--ca", "/nowhere/ca"], 2, "/nowhere/ca holds no authority"),
        (["lab/b1", "--undo"], 1, "lab/b1 is not retired"),
    ):
        assert cli.main(["retire", *more, "--dsn", dsn]) == status
        assert why in capsys.readouterr().err
    assert query(dsn, "SELECT * FROM boxes ORDER BY 1") == before


def test_help_says_what_stays_on_the_broker_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["retire", "--help"]) == 0
    said = capsys.readouterr().out
    assert "  facefleet-bridge retire munich/lobby-1 config/bridge.yaml" in said
    assert "What the broker keeps of it (state, ack) stays there." in said
