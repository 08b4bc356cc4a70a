"""Each role can do its own and nothing else."""

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from bridge.migrate import migrate
from bridge.store import Store
from tests.bridge.events import NOW, birth, count, ended, presence, query, sent, update

TABLES = ["visits", "open_visits", "track_updates", "dead_letters", "quarantine", "attribute_hours", "settings"]


def as_role(dsn: str, role: str) -> str:
    return make_conninfo(dsn, options=f"-c role=facefleet_{role}")


def refused(dsn: str, role: str, statement: str) -> bool:
    """Tell whether the role may not do this; anything but a missing right is a failure of the test."""
    with psycopg.connect(as_role(dsn, role)) as connection:
        try:
            connection.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege:
            return True
        finally:
            connection.rollback()
    return False


def views(dsn: str, schema: str) -> list[str]:
    rows = query(dsn, "SELECT viewname FROM pg_views WHERE schemaname = %(s)s ORDER BY 1", {"s": schema})
    return [f"{schema}.{row['viewname']}" for row in rows]


def test_ingest_does_everything_the_store_does(dsn: str) -> None:
    with Store(as_role(dsn, "ingest")) as store:
        store.maintain(NOW)
        store.write_state("lab", "b1", birth(70), NOW)
        store.write([sent(ended(1), presence(), update(2), ended(3, score=300), ended(4, 10**12), stream=70)])
        store.write_state("lab", "b1", birth(71), NOW)
        store.write_health(
            "lab", "b1", b'{"stream":"1","nonce":"n","t_ms":0,"uptime_s":1,"cameras":{},"models":{}}', NOW
        )
        store.maintain(NOW)
        assert store.covered("lab", "b1")
        assert store.database_uuid()
    assert [count(dsn, table) for table in ("visits", "dead_letters", "quarantine", "health")] == [2, 1, 1, 1]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE facefleet.mine (x int)",
        "DROP TABLE facefleet.visits",
        "ALTER TABLE facefleet.visits DROP CONSTRAINT visits_score_check",
        "UPDATE facefleet.settings SET value = 1",
        "UPDATE facefleet.database_identity SET uuid = gen_random_uuid()",
        "DELETE FROM facefleet.losses",
        "DELETE FROM facefleet.boxes",
        "INSERT INTO facefleet.migrations VALUES (99, 'x', 'x')",
        "SELECT * FROM report.box_status",
        "SELECT * FROM compat.object_detection",
        "TRUNCATE facefleet.visits",
    ],
)
def test_ingest_changes_no_schema_no_setting_and_reads_no_report(dsn: str, statement: str) -> None:
    assert refused(dsn, "ingest", statement)


def test_reader_reads_every_report_and_no_table(dsn: str) -> None:
    reports = views(dsn, "report")
    assert "report.attribute_hours" in reports
    assert not any(refused(dsn, "reader", f"SELECT * FROM {view}") for view in reports)
    for table in TABLES:
        assert refused(dsn, "reader", f"SELECT * FROM facefleet.{table}"), table
    assert refused(dsn, "reader", "SELECT * FROM facefleet.visit_list")
    assert refused(dsn, "reader", "SELECT * FROM compat.object_detection")
    assert refused(dsn, "reader", "DELETE FROM report.settings")
    assert refused(dsn, "reader", "SELECT facefleet.drop_partitions('visits', '2000-01-01')")
    assert refused(dsn, "reader", "CREATE TABLE report.mine (x int)")


def test_compat_reads_its_two_views_and_nothing_else(dsn: str) -> None:
    assert views(dsn, "compat") == ["compat.object_detection", "compat.object_detection_idx"]
    assert not any(refused(dsn, "compat", f"SELECT * FROM {view}") for view in views(dsn, "compat"))
    assert all(refused(dsn, "compat", f"SELECT * FROM {view}") for view in views(dsn, "report"))
    assert all(refused(dsn, "compat", f"SELECT * FROM facefleet.{table}") for table in TABLES)


def test_migrator_migrates_and_owns_everything(dsn: str) -> None:
    assert migrate(as_role(dsn, "migrator")) == []
    foreign = query(
        dsn,
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname IN ('facefleet', 'report', 'compat') AND pg_get_userbyid(c.relowner) <> 'facefleet_migrator'",
    )
    assert foreign == []


def test_group_roles_cannot_log_in(dsn: str) -> None:
    rows = query(dsn, "SELECT rolname, rolcanlogin OR rolsuper AS risky FROM pg_roles WHERE rolname ~ '^facefleet_'")
    assert {row["rolname"]: row["risky"] for row in rows} == {
        f"facefleet_{name}": False for name in ("migrator", "ingest", "reader", "compat")
    }


def test_public_may_call_no_function_of_ours(dsn: str) -> None:
    rows = query(
        dsn,
        "SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
        "WHERE n.nspname = 'facefleet' AND has_function_privilege('public', p.oid, 'EXECUTE')",
    )
    assert rows == []


PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
# All that the bridge's role may do to each table; whatever is not here, it may not.
INGEST = {
    "SELECT": ["camera_zones", "database_identity", "partitioned", "settings", "tombstones"],
    "SELECT INSERT": ["batches", "camera_health", "health", "losses", "presence"],
    "SELECT INSERT DELETE": ["erased_tracks", "track_updates"],
    "SELECT INSERT UPDATE": [
        "boxes", "cameras", "health_latest", "job_runs", "rollup_days", "rollup_hours", "rollup_minutes", "sites",
        "vocabularies", "vocabulary_labels",
    ],
    "SELECT INSERT UPDATE DELETE": [
        "attribute_days", "attribute_hours", "dead_letters", "open_visits", "quarantine", "streams", "visits",
    ],
}  # fmt: skip
OF_OTHERS = ("rollout",)  # tables of other parts of the centre, held to their own tests


def privileges(dsn: str, role: str) -> dict[str, str]:
    """Return what a role may do to each table and view of schema facefleet, partitions aside."""
    rows = query(
        dsn,
        "SELECT c.relname AS name, p AS privilege FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, "
        "unnest(%(privileges)s::text[]) p WHERE n.nspname = 'facefleet' AND c.relkind IN ('r', 'p', 'v') "
        "AND NOT c.relispartition AND has_table_privilege(%(role)s, c.oid, p) ORDER BY 1",
        {"privileges": list(PRIVILEGES), "role": f"facefleet_{role}"},
    )
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["name"], set()).add(row["privilege"])
    return {
        name: " ".join(p for p in PRIVILEGES if p in held)
        for name, held in found.items()
        if not name.startswith(OF_OTHERS)
    }


def test_ingest_holds_these_rights_and_no_others(dsn: str) -> None:
    assert privileges(dsn, "ingest") == {name: held for held, names in INGEST.items() for name in names}


@pytest.mark.parametrize("role", ["reader", "compat"])
def test_readers_hold_no_right_on_any_table(dsn: str, role: str) -> None:
    assert privileges(dsn, role) == {}


def test_ingest_may_count_what_it_drops_and_nothing_else_about_an_erasure(dsn: str) -> None:
    assert not refused(dsn, "ingest", "UPDATE facefleet.tombstones SET dropped = dropped + 1")
    assert refused(dsn, "ingest", "UPDATE facefleet.tombstones SET to_at = now()")
    assert refused(dsn, "ingest", "DELETE FROM facefleet.tombstones")
    assert refused(dsn, "ingest", "DELETE FROM facefleet.presence")
