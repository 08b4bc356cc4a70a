"""Exactly once, against a real PostgreSQL: replay, disorder, two writers, bad rows, conflicts."""

import random
import struct
import threading
from collections.abc import Iterator
from datetime import timedelta
from hashlib import blake2b
from uuid import UUID

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings

from bridge.batches import read
from bridge.errors import StoreError
from bridge.migrate import migrate
from bridge.ranges import Coverage
from bridge.sqlstate import Verdict, classify
from bridge.store import RECENT_STREAMS, Incoming, Store, Written
from edge.wire import (
    MAX_BYTES,
    AnyEvent,
    Covered,
    Loss,
    LossReason,
    Vocabulary,
    WireError,
    encode_ack,
    encode_batch,
)
from tests.bridge.events import (
    BASE_MS,
    NOW,
    absurd_batches,
    batch,
    confirmed,
    count,
    ended,
    message,
    pieces,
    presence,
    query,
    rollups,
    sent,
    update,
)


@pytest.fixture
def store(dsn: str) -> Iterator[Store]:
    with Store(dsn) as opened:
        yield opened


def test_each_kind_of_event_becomes_its_row(store: Store, dsn: str) -> None:
    written = store.write([sent(confirmed(5), update(6), ended(7), presence())])
    assert written == Written(4, 0, 0, 0, 0, {("lab", "b1"): (Covered(77, 4),)})
    assert [row["track"] for row in query(dsn, "SELECT track FROM open_visits ORDER BY 1")] == [5, 6]
    [visit] = query(dsn, "SELECT * FROM visit_list WHERE track = 7")
    assert (visit["site"], visit["box"], visit["camera"], visit["reason"]) == ("lab", "b1", "door", "left")
    assert visit["started_at"] == NOW - timedelta(seconds=60)
    assert visit["ended_at"] == NOW - timedelta(seconds=40)
    assert visit["labels"] == {"age": "20-39", "gender": "male"}
    assert visit["confidences"] == {"age": 0.8, "gender": 1.0}
    [seen] = query(dsn, "SELECT * FROM track_updates")
    assert (seen["track"], seen["dwell_ms"], seen["x"], seen["h"], seen["score"]) == (6, 10_000, 110, 410, 210)
    [slot] = query(dsn, "SELECT * FROM presence")
    assert (slot["period_ms"], slot["most"], slot["person_ms"], slot["entered"]) == (10_000, 2, 9000, 1)


def test_p11_replay_changes_nothing(store: Store, dsn: str) -> None:
    events = [event for track in range(20) for event in (confirmed(track), ended(track), presence(track))]
    store.write(pieces(events, [7] * 9))
    before = (count(dsn, "visits"), count(dsn, "presence"), rollups(dsn))
    for _ in range(2):
        written = store.write(pieces(events, [7] * 9))
        assert (written.inserted, written.duplicates, written.dead_letters) == (0, 60, 0)
        assert written.covered == {("lab", "b1"): (Covered(77, 60),)}, "a replay is acknowledged again"
    assert (count(dsn, "visits"), count(dsn, "presence"), rollups(dsn)) == before
    assert before[:2] == (20, 20)


def test_same_batch_twice_in_one_transaction_counts_once(store: Store, dsn: str) -> None:
    first = sent(ended(1), ended(2), presence())
    written = store.write([first, first])
    assert (written.inserted, written.duplicates) == (3, 3)
    assert count(dsn, "visits") == 2


def test_p16_holes_are_acknowledged_as_ranges(store: Store) -> None:
    parts = pieces([ended(track) for track in range(1, 31)], [10] * 3)
    assert store.write([parts[2]]).covered == {("lab", "b1"): (Covered(77, 0, (21, 30)),)}
    assert store.write([parts[0]]).covered == {("lab", "b1"): (Covered(77, 10, (21, 30)),)}
    assert store.write([parts[1]]).covered == {("lab", "b1"): (Covered(77, 30),)}
    assert store.covered("lab", "b1") == (Covered(77, 30),)
    assert store.covered("lab", "unheard") == ()


def test_batches_that_overlap_differently_count_once(store: Store, dsn: str) -> None:
    events = [ended(track) for track in range(1, 41)]
    store.write(pieces(events, [13, 13, 14]))
    written = store.write(pieces(events, [5, 30, 5]))
    assert (written.inserted, written.duplicates, written.dead_letters) == (0, 40, 0)
    partly = store.write([message(batch([*events[30:], ended(41)], first_seq=31))])
    assert (partly.inserted, partly.duplicates) == (1, 10)
    assert count(dsn, "visits") == 41


@pytest.mark.parametrize("seed", [1, 2])
def test_three_stores_write_overlapping_messages_without_deadlock_and_once(dsn: str, seed: int) -> None:
    rng = random.Random(seed)
    parts = []
    for stream in range(1, 7):
        events = [e for track in range(30) for e in (confirmed(track), ended(track), presence(camera=track % 2))]
        cut = pieces(events, [9] * 10, stream=stream)
        parts += [Incoming(m.site, f"b{stream % 3}", m.payload, m.topic, m.received_at) for m in cut]
    failures: list[psycopg.Error] = []

    def writer(own: random.Random) -> None:
        mine = list(parts)
        own.shuffle(mine)
        with Store(dsn) as store:
            for at in range(0, len(mine), 5):
                try:
                    store.write(mine[at : at + 5])
                except psycopg.Error as error:
                    failures.append(error)

    threads = [threading.Thread(target=writer, args=(random.Random(rng.random()),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert count(dsn, "visits") == 6 * 30
    assert count(dsn, "presence") == 6 * 30
    assert count(dsn, "open_visits") == 0
    assert count(dsn, "dead_letters") == 0
    assert sum(row[2] for row in rollups(dsn)["rollup_days"]) == 6 * 30
    assert query(dsn, "SELECT DISTINCT upto, ranges FROM streams") == [{"upto": 90, "ranges": []}]


def test_rollups_equal_what_the_rows_add_up_to(store: Store, dsn: str) -> None:
    visits, slots = [ended(t, t * 1000, camera=t % 2) for t in range(40)], [presence(t * 9000) for t in range(9)]
    store.write(pieces([*visits, *slots], [49]))
    store.write([sent(*[ended(t) for t in range(40)], stream=78)])
    for unit, table in (("minute", "rollup_minutes"), ("hour", "rollup_hours"), ("day", "rollup_days")):
        counted = query(
            dsn,
            """
            SELECT bucket, camera_id,
                sum(v)::int AS v, sum(d)::int AS d, sum(p)::int AS p, max(m) AS m, sum(e)::int AS e
            FROM (
                SELECT date_trunc(%(unit)s, ended_at) AS bucket, camera_id,
                    1 AS v, dwell_ms AS d, 0 AS p, 0 AS m, 0 AS e
                FROM visits
                UNION ALL
                SELECT date_trunc(%(unit)s, at), camera_id, 0, 0, person_ms, most, entered FROM presence
            ) AS parts GROUP BY 1, 2 ORDER BY 2, 1
            """,
            {"unit": unit},
        )
        assert rollups(dsn)[table] == [tuple(row.values()) for row in counted]
    by_label = [row[2:] for row in rollups(dsn)["attribute_hours"]]
    assert by_label == [("age", "20-39", 60), ("gender", "male", 60), ("age", "20-39", 20), ("gender", "male", 20)]


def test_attributes_count_into_the_hours_of_the_sites_time_zone(store: Store, dsn: str) -> None:
    """Kathmandu's hours begin at a quarter past."""
    store.write([sent(presence())])
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE facefleet.sites SET timezone = 'Asia/Kathmandu'")
    store.write([sent(*[ended(track, -track * 60_000) for track in range(1, 30)], stream=78)])
    counted = query(
        dsn,
        "SELECT date_trunc('hour', ended_at, 'Asia/Kathmandu') AS bucket, key AS head, value AS label, "
        "count(*) AS visits FROM visits, jsonb_each_text(labels) GROUP BY 1, 2, 3 ORDER BY 1, 2",
    )
    assert query(dsn, "SELECT bucket, head, label, visits FROM attribute_hours ORDER BY 1, 2") == counted
    assert len({row["bucket"] for row in counted}) == 2


def test_day_bucket_follows_the_sites_time_zone(store: Store, dsn: str) -> None:
    store.write([sent(presence())])
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE facefleet.sites SET timezone = 'Asia/Kolkata'")
    store.write([sent(ended(1), stream=78)])
    [day] = query(dsn, "SELECT bucket AT TIME ZONE 'Asia/Kolkata' AS local FROM rollup_days WHERE visits = 1")
    [hour] = query(dsn, "SELECT bucket AT TIME ZONE 'Asia/Kolkata' AS local FROM rollup_hours WHERE visits = 1")
    assert (day["local"].hour, day["local"].minute, hour["local"].minute) == (0, 0, 0)


# What is not a row ----------------------------------------------------------------------------------------------------


def test_bad_row_is_found_by_bisection_and_its_neighbours_live(store: Store, dsn: str) -> None:
    events = [ended(track, score=300 if track in (13, 37) else 220) for track in range(1, 51)]
    written = store.write([*pieces(events, [20, 30]), sent(presence(), stream=78)])
    assert (written.inserted, written.dead_letters) == (49, 2)
    assert written.covered == {("lab", "b1"): (Covered(77, 50), Covered(78, 1))}, "dead letters count as covered (P17)"
    assert count(dsn, "visits") == 48
    letters = query(dsn, "SELECT * FROM dead_letters ORDER BY seq")
    assert [(letter["seq"], letter["reason"]) for letter in letters] == [(13, "refused"), (37, "refused")]
    assert "visits_score_check" in letters[0]["error"]
    again = read(letters[0]["raw"]).batch
    assert (again.stream, again.first_seq, again.base_ms, again.events) == (77, 13, BASE_MS, (events[12],))
    assert sum(row[2] for row in rollups(dsn)["rollup_days"]) == 48


def test_bisection_keeps_losses_quarantine_and_other_letters_once(store: Store, dsn: str) -> None:
    events: list[AnyEvent] = [
        ended(1, score=300),
        ended(2, t_ms=10**12),
        Loss(70, 5, 9, LossReason.AGE),
        ended(3, camera=9),
        ended(4),
        ended(5, score=999),
    ]
    written = store.write([sent(*events)])
    assert (written.inserted, written.quarantined, written.dead_letters) == (2, 1, 3)
    assert [count(dsn, t) for t in ("visits", "quarantine", "losses", "dead_letters")] == [1, 1, 1, 3]


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (ended(1, camera=2), "camera 2 is not in the vocabulary"),
        (ended(1, attributes=(5, 0, 9)), "head 5, label 0 is not in the vocabulary"),
        (ended(1, attributes=(0, 3, 9)), "head 0, label 3 is not in the vocabulary"),
        (ended(1, attributes=(0, 3)), "2 attribute numbers, expected triples"),
        (ended(2**63), "too large"),
        (confirmed(1, score=70_000), "format requires"),
        (update(1, dwell_ms=-1), "dwell of -1 ms"),
        (ended(1, dwell_ms=-1), "dwell of -1 ms"),
        (ended(1, attributes=(0, 0, 9, 0, 1, 9)), "a head speaks twice"),
        (ended(1, attributes=(0, 0, 256)), "confidence 256 of head 0"),
        (Loss(0, 1, 2, 0), "impossible loss"),
        (Loss(5, 9, 2, 0), "impossible loss"),
    ],
)
def test_impossible_event_is_a_dead_letter_and_its_neighbours_live(
    store: Store, dsn: str, event: AnyEvent, error: str
) -> None:
    written = store.write([sent(presence(), event, presence(10_000))])
    assert (written.inserted, written.dead_letters) == (2, 1)
    [letter] = query(dsn, "SELECT * FROM dead_letters")
    assert (letter["reason"], letter["seq"]) == ("invalid", 2)
    assert error in letter["error"]


def test_p7_unreadable_payload_is_a_dead_letter_counted_not_piled_up(store: Store, dsn: str) -> None:
    for _ in range(3):
        written = store.write([message(b"\x93junk"), sent(ended(1))])
        assert written.dead_letters == 1
    [letter] = query(dsn, "SELECT * FROM dead_letters")
    assert (letter["reason"], letter["times"], letter["raw"]) == ("unreadable", 3, b"\x93junk")
    assert letter["topic"] == "facefleet/1/lab/b1/events"
    assert count(dsn, "visits") == 1


def test_p11_same_key_with_other_content_is_a_conflict_and_the_first_row_stands(store: Store, dsn: str) -> None:
    store.write([sent(ended(1), ended(2), ended(3))])
    written = store.write([sent(ended(1), ended(2, dwell_ms=9), ended(3))])
    assert (written.inserted, written.duplicates, written.dead_letters) == (0, 3, 1)
    [letter] = query(dsn, "SELECT * FROM dead_letters")
    assert (letter["reason"], letter["stream"], letter["seq"]) == ("conflict", 77, 2)
    assert query(dsn, "SELECT dwell_ms FROM visits WHERE track = 2") == [{"dwell_ms": 20_000}]


def test_p11_digests_of_the_former_kind_still_tell_a_replay_from_a_conflict(store: Store, dsn: str) -> None:
    """The ledger held eight bytes of BLAKE2b per event before; such rows stay until retention drops them."""
    first = sent(ended(1), ended(2), ended(3))
    store.write([first])
    envelope = read(first.payload).envelope
    head = struct.pack(">qhI", envelope.base_ms, envelope.clock, envelope.vocabulary_digest)
    former = b"".join(blake2b(head + bytes(raw), digest_size=8).digest() for raw in envelope.events)
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE facefleet.batches SET digests = %s", (former,))
    assert store.write([first, message(batch([ended(2)], first_seq=2))]).dead_letters == 0
    assert store.write([sent(ended(1), ended(2, dwell_ms=9), ended(3))]).dead_letters == 1
    assert query(dsn, "SELECT reason, seq FROM dead_letters") == [{"reason": "conflict", "seq": 2}]


def test_p11_conflict_within_one_transaction_is_noticed(store: Store, dsn: str) -> None:
    written = store.write([sent(ended(1)), sent(ended(1, dwell_ms=9))])
    assert (written.inserted, written.dead_letters) == (1, 1)
    assert count(dsn, "visits") == 1


def test_p12_vocabulary_appended_on_resend_is_no_conflict(store: Store) -> None:
    store.write([sent(presence())])
    store.write([message(batch([ended(1)], first_seq=2, inline=False))])
    written = store.write([message(batch([ended(1)], first_seq=2, inline=True))])
    assert (written.duplicates, written.dead_letters) == (1, 0)


def test_p6_deflated_resend_is_no_conflict(store: Store) -> None:
    content = batch([ended(track) for track in range(30)])
    store.write([message(encode_batch(content))])
    written = store.write([message(encode_batch(content, deflate=True))])
    assert (written.duplicates, written.dead_letters) == (30, 0)


def test_p8_batch_of_unknown_vocabulary_is_left_alone_until_its_resend(store: Store, dsn: str) -> None:
    first = store.write([message(batch([ended(1)], inline=False))])
    assert first == Written(0, 0, 0, 0, 1, {})
    assert count(dsn, "visits") == 0
    assert store.write([message(batch([ended(1)], inline=True))]).inserted == 1
    assert store.write([message(batch([ended(2)], first_seq=2, inline=False))]).inserted == 1


def test_vocabulary_of_one_box_means_nothing_to_another(store: Store) -> None:
    store.write([sent(presence())])
    other = message(batch([ended(1)], stream=5, inline=False), box="b2")
    assert store.write([other]).unknown_vocabulary == 1


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 201], ids=["empty", "NUL", "long"])
def test_vocabulary_no_registry_should_hold_is_a_dead_letter(store: Store, dsn: str, name: str) -> None:
    bad = batch([ended(1)])
    bad = msgspec.structs.replace(bad, vocabulary=Vocabulary((name,)))
    assert store.write([message(bad)]).dead_letters == 1
    assert count(dsn, "cameras") == 0


def test_p23_every_stream_with_events_is_named_at_a_birth_however_many_there_are(store: Store, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        store.write([sent(ended(1))])
        connection.execute(
            "INSERT INTO facefleet.streams (stream, box_id, upto, ranges, first_at, last_at) "
            "SELECT n + 1000, 1, CASE WHEN n % 3 = 0 THEN 5 ELSE 0 END, CASE WHEN n % 3 = 1 THEN '{7,9}'::bigint[] "
            "ELSE '{}' END, now(), now() FROM generate_series(1, 300) n"
        )
        connection.commit()
    covered = {said.stream: said for said in store.covered("lab", "b1")}
    assert len(covered) == 201 < RECENT_STREAMS, "those that are empty need no word, so the answer is complete"
    assert covered[1003] == Covered(1003, 5)
    assert covered[1001] == Covered(1001, 0, (7, 9))
    assert len(encode_ack(UUID(int=1), tuple(Covered(2**62 + i, 2**31) for i in range(RECENT_STREAMS)))) < MAX_BYTES


@pytest.mark.parametrize(
    ("t_ms", "fits"),
    [
        (60_000 + 4 * 60_000, True),
        (60_000 + 6 * 60_000, False),
        (-89 * 86_400_000, True),
        (-91 * 86_400_000, False),
        (2**62, False),
        (-(2**62), False),
    ],
    ids=["4 min ahead", "6 min ahead", "89 days ago", "91 days ago", "far future", "far past"],
)
def test_p32_unbelievable_times_go_to_quarantine_and_count_as_covered(
    store: Store, dsn: str, t_ms: int, fits: bool
) -> None:
    written = store.write([sent(presence(t_ms), presence())])
    assert (written.inserted, written.quarantined) == ((2, 0) if fits else (1, 1))
    assert written.covered == {("lab", "b1"): (Covered(77, 2),)}
    rows = query(dsn, "SELECT * FROM quarantine")
    assert [(row["seq"], row["at_ms"]) for row in rows] == ([] if fits else [(1, BASE_MS + t_ms)])
    assert all(read(row["raw"]).batch.events == (presence(t_ms),) for row in rows)


def test_p17_reported_loss_is_counted_and_covered(store: Store, dsn: str) -> None:
    store.write([sent(ended(1), ended(2), stream=70)])
    loss = Loss(70, 2, 10, LossReason.SIZE)
    written = store.write([sent(loss)])
    assert written.covered == {("lab", "b1"): (Covered(70, 10), Covered(77, 1))}
    [row] = query(dsn, "SELECT * FROM losses")
    assert (row["lost_stream"], row["first_seq"], row["last_seq"], row["reason"]) == (70, 2, 10, LossReason.SIZE)
    assert row["events"] == 8, "sequence number 2 had arrived before"
    late = store.write([message(batch([ended(9)], stream=70, first_seq=9))])
    assert (late.inserted, late.duplicates) == (0, 1), "what was reported lost is accounted for once"


def test_loss_covers_only_streams_of_its_own_box(store: Store, dsn: str) -> None:
    store.write([message(batch([ended(1)], stream=70), box="b2")])
    written = store.write([sent(Loss(70, 1, 1000, LossReason.AGE))])
    assert written.dead_letters == 1
    assert store.covered("lab", "b2") == (Covered(70, 1),)
    assert [letter["reason"] for letter in query(dsn, "SELECT reason FROM dead_letters")] == ["foreign stream"]


def test_strict_registry_keeps_unknown_boxes_out_until_they_are_registered(dsn: str) -> None:
    with Store(dsn, registry="strict") as store:
        assert store.write([sent(ended(1))]) == Written(0, 0, 1, 0, 0, {})
        with psycopg.connect(dsn) as connection:
            connection.execute("INSERT INTO facefleet.sites (name) VALUES ('lab')")
            connection.execute("INSERT INTO facefleet.boxes (site_id, name) SELECT site_id, 'b1' FROM facefleet.sites")
        assert store.write([sent(ended(1))]).inserted == 1


# What fails -----------------------------------------------------------------------------------------------------------


def test_missing_grant_stops_and_dead_letters_nothing(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("REVOKE INSERT ON facefleet.presence FROM facefleet_ingest")
        connection.execute("GRANT USAGE ON SCHEMA facefleet TO facefleet_ingest")
    with Store(psycopg.conninfo.make_conninfo(dsn, options="-c role=facefleet_ingest")) as store:
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            store.write([sent(ended(1), presence())])
        assert classify(caught.value) is Verdict.STOP
        assert [count(dsn, table) for table in ("visits", "presence", "dead_letters", "streams")] == [0, 0, 0, 0]
        with psycopg.connect(dsn) as connection:
            connection.execute("GRANT INSERT ON facefleet.presence TO facefleet_ingest")
        assert store.write([sent(ended(1), presence())]).inserted == 2


def test_lost_connection_is_tried_again_and_nothing_is_half_done(store: Store, dsn: str) -> None:
    store.write([sent(ended(1))])
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with pytest.raises(psycopg.Error) as caught:
        store.write([message(batch([ended(2), presence()], first_seq=2))])
    assert classify(caught.value) is Verdict.RETRY
    assert count(dsn, "visits") == 1
    assert store.write([message(batch([ended(2), presence()], first_seq=2))]).inserted == 2


def test_read_only_database_is_tried_again(store: Store, dsn: str) -> None:
    store.write([sent(ended(1))])
    store.close()
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as caught:
            store.write([message(batch([ended(2)], first_seq=2))])
        assert classify(caught.value) is Verdict.RETRY
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
    store.close()
    assert store.write([message(batch([ended(2)], first_seq=2))]).inserted == 1


def test_database_that_is_not_migrated_says_what_to_do(empty_dsn: str) -> None:
    with Store(empty_dsn) as store, pytest.raises(psycopg.errors.InvalidSchemaName) as caught:
        store.write([sent(ended(1))])
    assert classify(caught.value) is Verdict.STOP
    migrate(empty_dsn)
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("DELETE FROM facefleet.database_identity")
    with Store(empty_dsn) as store, pytest.raises(StoreError, match="facefleet-bridge migrate"):
        store.database_uuid()


def test_nothing_to_write_writes_nothing(store: Store) -> None:
    assert store.write([]) == Written(0, 0, 0, 0, 0, {})


def test_deleted_stream_row_doubles_no_event(store: Store, dsn: str) -> None:
    """The covered ranges say what is new; should they be lost, the keys of the tables still hold."""
    events = sent(*[ended(track) for track in range(9)], presence(), update(50))
    store.write([events])
    before = rollups(dsn)
    with psycopg.connect(dsn) as connection:
        connection.execute("DELETE FROM facefleet.streams")
    store.close()
    with Store(dsn) as another:
        assert another.write([events]).dead_letters == 0, "what was there is nobody's mistake"
    assert [count(dsn, table) for table in ("visits", "presence", "track_updates")] == [9, 1, 1]
    assert rollups(dsn) == before


def test_coverage_survives_the_database_round_trip(store: Store, dsn: str) -> None:
    events = [presence(i) for i in range(30)]
    for first in (3, 9, 20):
        store.write([message(batch(events[:2], first_seq=first))])
    [row] = query(dsn, "SELECT upto, ranges FROM streams")
    assert Coverage.from_flat(row["upto"], row["ranges"]) == Coverage(0, ((3, 4), (9, 10), (20, 21)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=absurd_batches())
def test_absurd_numbers_never_stop_the_store(store: Store, payload: bytes) -> None:
    """Every event of a readable batch becomes a row, a dead letter, or waits in quarantine."""
    written = store.write([message(payload)])
    try:
        events = len(read(payload).raw)
    except WireError:
        assert written.dead_letters == 1
        return
    assert written.covered
    if not written.duplicates:  # this stream was not drawn before
        assert written.inserted + written.dead_letters + written.quarantined == events
