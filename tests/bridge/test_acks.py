"""When acks may go, and what they say."""

from bridge.acks import MOST_STREAMS, AckBook
from edge.wire import Covered

BOX, OTHER = ("lab", "b1"), ("lab", "b2")


def test_p15_second_ack_of_a_box_waits_for_the_second_to_pass() -> None:
    book = AckBook()
    book.note(BOX, [Covered(7, 10)])
    assert book.due(100.0) == [(BOX, (Covered(7, 10),))]
    book.said(BOX, 100.0)
    book.note(BOX, [Covered(7, 20)])
    assert book.due(100.9) == []
    assert book.wait_s(100.9, 0.5) < 0.11
    assert book.due(101.0) == [(BOX, (Covered(7, 20),))]


def test_boxes_do_not_wait_for_each_other() -> None:
    book = AckBook()
    book.note(BOX, [Covered(7, 10)])
    book.said(BOX, 100.0)
    book.note(OTHER, [Covered(8, 1)])
    assert book.due(100.1) == [(OTHER, (Covered(8, 1),))]


def test_ack_stays_owed_until_it_was_published() -> None:
    book = AckBook()
    book.note(BOX, [Covered(7, 10)])
    assert book.due(100.0)
    assert book.due(100.1), "nobody said it was published"
    book.said(BOX, 100.1)
    assert not book.due(200.0)


def test_newest_word_on_a_stream_counts_and_other_streams_stay() -> None:
    book = AckBook()
    book.note(BOX, [Covered(7, 10), Covered(8, 3)])
    book.note(BOX, [Covered(7, 4)])  # a restored database knows less
    assert dict(book.due(0.0))[BOX] == (Covered(8, 3), Covered(7, 4))


def test_box_with_countless_streams_gets_a_bounded_ack() -> None:
    book = AckBook()
    book.note(BOX, [Covered(stream, 1) for stream in range(1, MOST_STREAMS + 100)])
    ((_, covered),) = book.due(0.0)
    assert len(covered) == MOST_STREAMS
    assert covered[-1].stream == MOST_STREAMS + 99


def test_nothing_to_say_is_no_ack() -> None:
    book = AckBook()
    book.note(BOX, [])
    assert book.due(0.0) == []
    assert book.wait_s(0.0, 0.5) == 0.5


def test_p23_ack_is_complete_until_it_was_said_or_had_to_leave_a_stream_out() -> None:
    book = AckBook()
    book.note(BOX, [Covered(7, 10)], complete=True)
    book.note(BOX, [Covered(8, 1)])
    assert book.is_complete(BOX), "what is added takes nothing away"
    book.said(BOX, 0.0)
    book.note(BOX, [Covered(8, 2)])
    assert not book.is_complete(BOX)
    book.note(BOX, [Covered(stream, 1) for stream in range(1, MOST_STREAMS + 100)], complete=True)
    assert not book.is_complete(BOX)
