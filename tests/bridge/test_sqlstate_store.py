"""The matrix of SQLSTATE classes, raised by a real database while events are written."""

import psycopg
import pytest

from bridge.sqlstate import Verdict, classify
from bridge.store import Store
from tests.bridge.events import count, ended, query, sent
from tests.bridge.test_roles import as_role

TRAP = """
CREATE OR REPLACE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'trapped' USING ERRCODE = '{state}'; END $$;
CREATE OR REPLACE TRIGGER trap BEFORE INSERT ON visits FOR EACH ROW WHEN (NEW.track = 13) EXECUTE FUNCTION trap();
"""
MESSAGES = [sent(ended(12), ended(13), ended(14)), sent(ended(15), stream=78)]


def run(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, options="-c search_path=facefleet") as connection:
        connection.execute(statement.encode())


@pytest.mark.parametrize("states", [("08006", "25006", "40001", "53100", "55P03", "57014", "58030")])
def test_what_passes_writes_nothing_and_succeeds_later(dsn: str, states: tuple[str, ...]) -> None:
    with Store(as_role(dsn, "ingest")) as store:
        for state in states:
            run(dsn, TRAP.format(state=state))
            with pytest.raises(psycopg.Error) as caught:
                store.write(MESSAGES)
            assert (caught.value.sqlstate, classify(caught.value)) == (state, Verdict.RETRY)
            assert [count(dsn, table) for table in ("visits", "streams", "dead_letters", "batches")] == [0] * 4
        run(dsn, "DROP TRIGGER trap ON visits")
        assert store.write(MESSAGES).inserted == 4


@pytest.mark.parametrize("state", ["22003", "23514"])
def test_bad_row_is_found_and_buried_with_its_bytes_and_its_neighbours_live(dsn: str, state: str) -> None:
    run(dsn, TRAP.format(state=state))
    with Store(as_role(dsn, "ingest")) as store:
        written = store.write(MESSAGES)
    assert (written.inserted, written.dead_letters) == (3, 1)
    assert written.covered["lab", "b1"][0].upto == 3
    assert [(r["reason"], r["seq"]) for r in query(dsn, "SELECT reason, seq FROM dead_letters")] == [("refused", 2)]


@pytest.mark.parametrize("states", [("42501", "42P01", "28000", "XX000", "P0001", "0A000")])
def test_what_a_person_must_mend_buries_nobody(dsn: str, states: tuple[str, ...]) -> None:
    with Store(as_role(dsn, "ingest")) as store:
        for state in states:
            run(dsn, TRAP.format(state=state))
            with pytest.raises(psycopg.Error) as caught:
                store.write(MESSAGES)
            assert classify(caught.value) is Verdict.STOP
            assert count(dsn, "dead_letters") == count(dsn, "visits") == 0
