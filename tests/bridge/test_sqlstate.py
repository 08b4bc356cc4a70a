"""Each SQLSTATE class and what it means, by errors psycopg really raises."""

import psycopg
import pytest
from psycopg import errors

from bridge.sqlstate import Verdict, classify


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (errors.ConnectionFailure, Verdict.RETRY),  # 08
        (errors.ReadOnlySqlTransaction, Verdict.RETRY),  # 25
        (errors.DeadlockDetected, Verdict.RETRY),  # 40
        (errors.SerializationFailure, Verdict.RETRY),
        (errors.DiskFull, Verdict.RETRY),  # 53
        (errors.TooManyConnections, Verdict.RETRY),
        (errors.LockNotAvailable, Verdict.RETRY),  # 55
        (errors.AdminShutdown, Verdict.RETRY),  # 57
        (errors.QueryCanceled, Verdict.RETRY),
        (errors.IoError, Verdict.RETRY),  # 58
        (errors.NumericValueOutOfRange, Verdict.BAD_ROW),  # 22
        (errors.CheckViolation, Verdict.BAD_ROW),  # 23
        (errors.UniqueViolation, Verdict.BAD_ROW),
        (errors.InsufficientPrivilege, Verdict.STOP),  # 42
        (errors.UndefinedTable, Verdict.STOP),
        (errors.InternalError_, Verdict.STOP),  # XX
        (errors.InvalidPassword, Verdict.STOP),  # 28
    ],
)
def test_classes(error: type[psycopg.Error], verdict: Verdict) -> None:
    assert classify(error("said the server")) is verdict


def test_lost_connection_without_sqlstate_is_tried_again() -> None:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect("host=/var/tmp/no-such-folder dbname=x", connect_timeout=2)
    assert caught.value.sqlstate is None
    assert classify(caught.value) is Verdict.RETRY


def test_error_of_ours_without_sqlstate_stops() -> None:
    assert classify(psycopg.ProgrammingError("wrong use of psycopg")) is Verdict.STOP
