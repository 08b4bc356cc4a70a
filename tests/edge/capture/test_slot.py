"""The slot holds one frame: the newest."""

import threading

import numpy as np

from edge.capture.frames import Frame
from edge.capture.slot import LatestFrame


def frame(index: int) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), index, float(index), float(index))


def test_a_newer_frame_replaces_an_unread_one_and_is_counted() -> None:
    slot = LatestFrame()
    for index in range(5):
        slot.put(frame(index))
    taken = slot.take(0.0)
    assert taken is not None
    assert taken.index == 4
    assert slot.dropped == 4


def test_a_frame_is_given_once() -> None:
    slot = LatestFrame()
    slot.put(frame(0))
    assert slot.take(0.0) is not None
    assert slot.take(0.0) is None
    assert slot.dropped == 0


def test_a_waiting_reader_gets_the_frame_that_comes() -> None:
    slot = LatestFrame()
    threading.Timer(0.05, slot.put, [frame(3)]).start()
    taken = slot.take(5.0)
    assert taken is not None
    assert taken.index == 3


def test_closing_wakes_the_reader_with_nothing() -> None:
    slot = LatestFrame()
    threading.Timer(0.05, slot.close).start()
    assert slot.take(5.0) is None
