"""Dead letters as an operator meets them."""

from datetime import UTC, datetime

import msgspec
import psycopg
import pytest

from bridge import batches, columns
from bridge.cli import main
from bridge.dead_letters import newest
from bridge.store import Incoming, Store
from edge.wire import Presence, encode_batch
from tests.bridge.box import replace_vocabulary, visits
from tests.bridge.events import query, rollups

TOPIC = "facefleet/1/lab/b1/events"


def write(dsn: str, payload: bytes, policy: str = "auto") -> None:
    store = Store(dsn, registry="strict" if policy == "strict" else "auto")
    store.write([Incoming("lab", "b1", payload, TOPIC, datetime.now(UTC))])
    store.close()


def count(dsn: str, table: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(f"SELECT count(*) FROM facefleet.{table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_letters_are_listed_and_shown_readable_or_as_hexadecimal(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dead-letters", "list", "--dsn", dsn]) == 0
    assert capsys.readouterr().out == "no dead letters\n"
    write(dsn, b"\xc1garbage")
    write(dsn, encode_batch(visits(7, 1, 2)), "strict")
    for letter in newest(dsn, 10):
        assert main(["dead-letters", "show", str(letter.id), "--dsn", dsn]) == 0
    shown = capsys.readouterr().out
    assert "unreadable: c167617262616765" in shown
    assert "box lab/b1 is not registered" in shown
    assert '"events": [' in shown or "[1, 7, 1," in shown
    assert main(["dead-letters", "list", "--dsn", dsn, "--limit", "1"]) == 0
    assert capsys.readouterr().out.count(TOPIC) == 1


def test_message_of_a_box_registered_later_is_written_once_more_and_leaves_the_table(
    dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(dsn, encode_batch(replace_vocabulary(visits(7, 1, 3))), "strict")
    (letter,) = newest(dsn, 10)
    assert main(["dead-letters", "replay", str(letter.id), "--dsn", dsn]) == 1
    assert "is not registered" in capsys.readouterr().err
    with psycopg.connect(dsn) as connection:
        connection.execute("INSERT INTO facefleet.sites (name) VALUES ('lab')")
        connection.execute("INSERT INTO facefleet.boxes (site_id, name) SELECT site_id, 'b1' FROM facefleet.sites")
    assert main(["dead-letters", "replay", str(letter.id), "--dsn", dsn]) == 0
    assert "3 events new" in capsys.readouterr().out
    assert (count(dsn, "visits"), count(dsn, "dead_letters")) == (3, 0)


def test_what_is_still_refused_stays_in_the_table(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(dsn, encode_batch(replace_vocabulary(visits(6, 1, 1))))
    write(dsn, b"\xc1garbage")
    (letter,) = newest(dsn, 10)
    assert main(["dead-letters", "replay", str(letter.id), "--dsn", dsn]) == 1
    assert "is refused again: not a batch" in capsys.readouterr().err
    assert count(dsn, "dead_letters") == 1


def execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, options="-c search_path=facefleet") as connection:
        connection.execute(statement.encode())


def test_single_event_whose_cause_is_mended_is_written_once_and_its_visit_counted(
    dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = encode_batch(replace_vocabulary(visits(7, 1, 3)))
    execute(dsn, "ALTER TABLE visits ADD CONSTRAINT mistake CHECK (seq <> 2)")
    write(dsn, payload)
    (letter,) = newest(dsn, 10)
    assert (letter.reason, letter.stream, letter.seq, count(dsn, "visits")) == ("refused", 7, 2, 2)
    before = rollups(dsn)

    assert main(["dead-letters", "replay", str(letter.id), "--dsn", dsn]) == 1
    assert 'refused again: new row for relation "visits' in capsys.readouterr().err
    assert [(one.id, one.times) for one in newest(dsn, 10)] == [(letter.id, 1)], "what failed has changed nothing"
    assert rollups(dsn) == before
    assert query(dsn, "SELECT upto, ranges FROM streams") == [{"upto": 3, "ranges": []}]

    execute(dsn, "ALTER TABLE visits DROP CONSTRAINT mistake")
    assert main(["dead-letters", "replay", str(letter.id), "--dsn", dsn]) == 0
    assert "1 events new, 0 known" in capsys.readouterr().out
    assert main(["dead-letters", "replay", str(letter.id), "--dsn", dsn]) == 1
    assert f"no dead letter {letter.id}" in capsys.readouterr().err
    write(dsn, payload)  # the box, which has not heard the ack
    assert (count(dsn, "visits"), count(dsn, "dead_letters")) == (3, 0)
    assert sum(row["visits"] for row in query(dsn, "SELECT visits FROM rollup_days")) == 3
    assert query(dsn, "SELECT upto, ranges FROM streams") == [{"upto": 3, "ranges": []}]


def test_event_of_a_newer_box_is_written_once_the_bridge_knows_its_kind(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = visits(7, 1, 3)
    with monkeypatch.context() as older:
        older.setattr(batches, "_event", msgspec.msgpack.Decoder(Presence))
        older.setattr(columns, "KINDS", {4: Presence})
        raw = msgspec.msgpack.decode(encode_batch(replace_vocabulary(known)))
        raw[6][1] = [99, 1, 2, 3]
        write(dsn, msgspec.msgpack.encode(raw))
    letters = newest(dsn, 10)
    assert {letter.seq for letter in letters} == {1, 2, 3}
    for letter in letters:
        assert main(["dead-letters", "replay", str(letter.id), "--dsn", dsn]) == int(letter.seq == 2)
    assert [letter.seq for letter in newest(dsn, 10)] == [2], "nobody knows what this one is"
    assert [row["seq"] for row in query(dsn, "SELECT seq FROM visits ORDER BY 1")] == [1, 3]


def test_conflict_is_not_written_because_its_key_has_a_row(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    write(dsn, encode_batch(replace_vocabulary(visits(7, 1, 3, now_ms))))
    write(dsn, encode_batch(replace_vocabulary(visits(7, 1, 3, now_ms + 1))))  # same keys, other times: conflicts
    letters = newest(dsn, 10)
    assert {letter.reason for letter in letters} == {"conflict"}
    assert main(["dead-letters", "replay", str(letters[0].id), "--dsn", dsn]) == 1
    assert "other content came first and stands" in capsys.readouterr().err
    assert (count(dsn, "visits"), count(dsn, "dead_letters")) == (3, 3)


def test_letter_that_is_not_there_and_missing_dsn_are_told(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dead-letters", "show", "99", "--dsn", dsn]) == 1
    assert "no dead letter 99" in capsys.readouterr().err
    assert main(["dead-letters", "list"]) == 2
    assert "give either CONFIG or --dsn" in capsys.readouterr().err
