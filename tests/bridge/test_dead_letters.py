"""Dead letters as an operator meets them."""

from datetime import UTC, datetime

import psycopg
import pytest

from bridge.cli import main
from bridge.dead_letters import newest
from bridge.store import Incoming, Store
from edge.wire import encode_batch
from tests.bridge.box import replace_vocabulary, visits

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


def test_single_event_is_not_written_again_because_its_key_is_taken(
    dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    write(dsn, encode_batch(replace_vocabulary(visits(7, 1, 3, now_ms))))
    write(dsn, encode_batch(replace_vocabulary(visits(7, 1, 3, now_ms + 1))))  # same keys, other times: conflicts
    letters = newest(dsn, 10)
    assert {letter.reason for letter in letters} == {"conflict"}
    assert main(["dead-letters", "replay", str(letters[0].id), "--dsn", dsn]) == 1
    assert "a single event, whose number counts as covered" in capsys.readouterr().err


def test_letter_that_is_not_there_and_missing_dsn_are_told(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dead-letters", "show", "99", "--dsn", dsn]) == 1
    assert "no dead letter 99" in capsys.readouterr().err
    assert main(["dead-letters", "list"]) == 2
    assert "give either CONFIG or --dsn" in capsys.readouterr().err
