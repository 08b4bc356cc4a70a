"""P29: two boxes with one id, told as what each of them hears."""

from edge.publish.twin import TwinWatch

HEART_S = 60.0


def watch(born_ms: int = 2000) -> TwinWatch:
    return TwinWatch("me", born_ms, HEART_S)


def test_p29_our_own_voice_is_nobody() -> None:
    me = watch()
    assert not me.heard_state("me", 2000, True, 0.0)
    assert not me.heard_health("me", 1.0)
    assert not me.duplicate(1.0)


def test_p29_a_retained_birth_alone_proves_nothing() -> None:
    """It outlives the box that published it."""
    me = watch()
    assert me.heard_state("other", 1000, False, 0.0)
    assert not any(me.duplicate(float(s)) or me.listening(float(s)) for s in range(0, 600, 10))


def test_p29_health_alone_proves_nothing() -> None:
    me = watch()
    me.heard_health("other", 0.0)
    assert not me.duplicate(0.0)


def test_p29_a_foreign_nonce_in_state_and_health_silences_the_younger_only() -> None:
    young, old = watch(2000), TwinWatch("elder", 1000, HEART_S)
    young.heard_state("elder", 1000, False, 0.0)
    young.heard_health("elder", 50.0)
    old.heard_state("me", 2000, True, 1.0)
    old.heard_health("me", 55.0)
    assert young.duplicate(60.0)
    assert not old.duplicate(60.0)


def test_p29_of_twins_born_in_the_same_millisecond_exactly_one_yields() -> None:
    a, b = TwinWatch("a", 5, HEART_S), TwinWatch("b", 5, HEART_S)
    for one, other in ((a, "b"), (b, "a")):
        one.heard_state(other, 5, False, 0.0)
        one.heard_health(other, 1.0)
    assert [a.duplicate(2.0), b.duplicate(2.0)].count(True) == 1


def test_p29_state_and_health_more_than_two_heartbeats_apart_prove_nothing() -> None:
    me = watch()
    me.heard_state("other", 1000, False, 0.0)
    me.heard_health("other", 2 * HEART_S + 1)
    assert not me.duplicate(2 * HEART_S + 2)


def test_p29_the_younger_speaks_again_when_the_other_has_been_silent_for_two_heartbeats() -> None:
    me = watch()
    me.heard_state("other", 1000, False, 0.0)
    for s in (1.0, 60.0, 120.0, 180.0):
        me.heard_health("other", s)
        assert me.duplicate(s)
    assert me.duplicate(180.0 + 2 * HEART_S)
    assert not me.duplicate(181.0 + 2 * HEART_S)


def test_p29_twins_that_throw_each_other_out_make_the_younger_listen() -> None:
    """One client id: the broker lets only one in, so neither ever hears the other's health."""
    young, old = watch(2000), TwinWatch("elder", 1000, HEART_S)
    for s in (1.0, 3.0):
        young.heard_state("elder", 1000, True, s)
        old.heard_state("me", 2000, True, s + 1)
    assert young.listening(4.0)
    assert not old.listening(4.0)
    young.heard_state("elder", 1000, True, 5.0)
    young.heard_health("elder", 30.0)
    assert young.duplicate(31.0)
    assert all(young.listening(float(s)) for s in range(31, 30 + int(2 * HEART_S)))


def test_p29_a_listener_who_hears_nothing_goes_back_to_work() -> None:
    me = watch()
    for s in (1.0, 3.0):
        me.heard_state("other", 1000, True, s)
    assert me.listening(4.0)
    assert me.listening(3.0 + 2 * HEART_S)
    assert not me.listening(5.0 + 2 * HEART_S)
    assert not me.listening(6.0 + 2 * HEART_S)


def test_p29_one_restored_broker_makes_nobody_listen() -> None:
    me = watch()
    me.heard_state("dead", 1000, True, 1.0)
    assert not me.listening(2.0)
    me.heard_state("dead", 1000, True, 1.0 + 5 * HEART_S)
    assert not me.listening(2.0 + 5 * HEART_S)
