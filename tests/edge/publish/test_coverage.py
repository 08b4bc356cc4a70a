"""Acks of the database: believed at once, doubted when they say less, written down."""

import random

from edge.publish.coverage import DOUBT_S
from edge.wire import Covered, decode_batch
from tests.edge.publish.lives import DATABASE, OTHER, WORDS, Make, fill, held, kill


def test_p14_only_an_ack_of_the_whole_batch_takes_it_out(make: Make) -> None:
    outbox = make()
    fill(outbox, 3, events=10)
    stream = outbox.stream
    outbox.cover(DATABASE, [Covered(stream, 0, (2, 9, 11, 20))], 0.0)
    assert held(outbox) == [(1, 10), (21, 30)]
    outbox.cover(DATABASE, [Covered(stream, 9, (11, 20))], 0.0)
    assert held(outbox) == [(1, 10), (21, 30)]
    outbox.cover(DATABASE, [Covered(stream, 10, (11, 20))], 0.0)
    assert held(outbox) == [(21, 30)]
    assert not outbox.idle()
    outbox.cover(DATABASE, [Covered(stream, 30)], 0.0)
    assert outbox.idle()


def test_p16_acks_merge_by_union_whatever_their_order(make: Make) -> None:
    outbox = make()
    fill(outbox, 20)
    acks = [Covered(outbox.stream, 4), Covered(outbox.stream, 2, (6, 9)), Covered(outbox.stream, 12)]
    random.Random(3).shuffle(acks)
    for ack in acks:
        outbox.cover(DATABASE, [ack], 0.0)
    assert held(outbox)[0] == (13, 13)


def test_p16_nobody_can_hold_what_was_never_accepted(make: Make) -> None:
    """A hostile or mistaken ack must not swallow the events of tomorrow."""
    outbox = make()
    fill(outbox, 2)
    outbox.cover(DATABASE, [Covered(outbox.stream, 10**9), Covered(77, 5)], 0.0)
    fill(outbox, 1, now_s=5.0)
    assert held(outbox) == [(3, 3)]


def test_p18_acks_of_another_database_change_nothing(make: Make) -> None:
    outbox = make()
    fill(outbox, 2)
    assert outbox.cover(OTHER, [Covered(outbox.stream, 2)], 0.0) == 0
    assert held(outbox) == [(1, 1), (2, 2)]


def test_p18_a_config_that_names_another_database_makes_everything_pending_again(make: Make) -> None:
    outbox = make()
    fill(outbox, 3)
    outbox.cover(DATABASE, [Covered(outbox.stream, 3)], 0.0)
    outbox.close(10.0)
    again = make()
    assert held(again) == []
    again.use(OTHER)
    assert held(again) == [(1, 1), (2, 2), (3, 3)]


def test_acks_survive_a_restart_once_written_down_and_older_streams_are_sent_first(make: Make) -> None:
    outbox = make()
    fill(outbox, 4)
    outbox.cover(DATABASE, [Covered(outbox.stream, 2)], 4.0)
    outbox.commit(20.0)
    kill(outbox)
    again = make()
    fill(again, 1)
    rows = again.pending()
    assert [(row.first, again.is_current(row)) for row in rows] == [(3, False), (4, False), (1, True)]
    assert decode_batch(again.payload(rows[0], inline_vocabulary=True) or b"").vocabulary == WORDS
    assert decode_batch(again.payload(rows[0], inline_vocabulary=True) or b"").stream == outbox.stream


def test_acks_of_a_life_that_never_committed_are_written_down_when_it_ends(make: Make) -> None:
    old = make()
    fill(old, 3)
    old.close(3.0)
    brief = make()
    brief.cover(DATABASE, [Covered(old.stream, 3)], 0.0)
    brief.close(1.0)
    assert held(make()) == []


def test_p23_acked_batches_stay_and_are_pending_again_when_the_centre_was_restored(make: Make) -> None:
    outbox = make()
    fill(outbox, 10)
    outbox.cover(DATABASE, [Covered(outbox.stream, 10)], 10.0)
    outbox.cover(DATABASE, [Covered(outbox.stream, 6)], 11.0)
    outbox.commit(11.5)
    assert held(outbox) == [], "one ack that says less may just be late"
    outbox.commit(11.0 + DOUBT_S)
    assert held(outbox) == [(7, 7), (8, 8), (9, 9), (10, 10)]
    assert outbox.retakes == 1
    kill(outbox)
    assert [row.first for row in make().pending()] == [7, 8, 9, 10], "and the file knows it"


def test_p23_a_late_ack_is_corrected_by_the_next_and_nothing_is_sent_again(make: Make) -> None:
    outbox = make()
    fill(outbox, 10)
    for upto, at_s in ((10, 10.0), (6, 11.0), (10, 12.0)):
        outbox.cover(DATABASE, [Covered(outbox.stream, upto)], at_s)
    outbox.commit(100.0)
    assert held(outbox) == []


def test_p23_once_the_centre_was_restored_streams_it_no_longer_names_are_sent_again_too(make: Make) -> None:
    old = make()
    fill(old, 3)
    old.cover(DATABASE, [Covered(old.stream, 3)], 3.0)
    old.close(20.0)
    outbox = make()
    fill(outbox, 2)
    outbox.cover(DATABASE, [Covered(outbox.stream, 2)], 2.0)
    fill(outbox, 1, now_s=3.0)
    outbox.cover(DATABASE, [Covered(outbox.stream, 0, (3, 3))], 4.0)
    outbox.commit(4.0 + DOUBT_S)
    assert held(outbox) == [(1, 1), (2, 2), (3, 3), (1, 1), (2, 2)]


def test_p23_a_complete_ack_that_names_a_stream_no_longer_says_the_database_has_nothing_of_it(make: Make) -> None:
    """The backup is older than the stream's first event, and a box with nothing to send hears of no ranges."""
    old = make()
    fill(old, 3)
    old.cover(DATABASE, [Covered(old.stream, 3)], 3.0)
    old.close(20.0)
    outbox = make()
    outbox.cover(DATABASE, [Covered(outbox.stream, 0)], 4.0)
    outbox.commit(4.0 + DOUBT_S)
    assert held(outbox) == [], "an ack that is not complete says nothing of what it leaves out"
    outbox.cover(DATABASE, [Covered(outbox.stream, 0)], 20.0, complete=True)
    outbox.commit(21.0)
    assert held(outbox) == [], "it may be a late one"
    outbox.commit(20.0 + DOUBT_S)
    assert held(outbox) == [(1, 1), (2, 2), (3, 3)]


def test_p23_a_complete_ack_that_was_late_is_corrected_by_the_next(make: Make) -> None:
    outbox = make()
    fill(outbox, 3)
    outbox.cover(DATABASE, [Covered(outbox.stream, 3)], 3.0)
    outbox.cover(DATABASE, [], 4.0, complete=True)
    outbox.cover(DATABASE, [Covered(outbox.stream, 3)], 5.0)
    outbox.commit(60.0)
    assert held(outbox) == []


def test_p23_a_hole_below_what_the_ack_names_is_taken_back_too(make: Make) -> None:
    outbox = make()
    fill(outbox, 10)
    outbox.cover(DATABASE, [Covered(outbox.stream, 9)], 10.0)
    outbox.cover(DATABASE, [Covered(outbox.stream, 4, (8, 10))], 11.0)
    outbox.commit(11.0 + DOUBT_S)
    assert held(outbox) == [(5, 5), (6, 6), (7, 7)]


def test_p23_a_bridge_that_names_only_its_first_ranges_takes_nothing_back(make: Make) -> None:
    outbox = make()
    fill(outbox, 10)
    outbox.cover(DATABASE, [Covered(outbox.stream, 2, (4, 5, 7, 10))], 10.0)
    outbox.cover(DATABASE, [Covered(outbox.stream, 2, (4, 5))], 11.0)
    outbox.commit(30.0)
    assert held(outbox) == [(3, 3), (6, 6)]
