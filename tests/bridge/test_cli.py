"""`facefleet-bridge`: help that teaches, statuses, and a message instead of a traceback for every mistake of a user."""

import re
from pathlib import Path

import pytest

from bridge.cli import main
from bridge.local import LOCAL_DATABASE

GOOD = "id: centre\ndsn: {dsn}\n"


@pytest.mark.parametrize("verb", ["run", "local", "migrate", "dead-letters", "grafana"])
def test_help_of_every_verb_shows_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"  facefleet-bridge {verb}" in capsys.readouterr().out


def test_help_names_every_verb_and_where_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(verb in said for verb in ("run", "local", "migrate", "dead-letters", "grafana"))
    assert "Begin with: facefleet-bridge local" in said


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "required: VERB"),
        (["dance"], "invalid choice: 'dance'"),
        (["run"], "required: CONFIG"),
        (["local", "--port", "0"], "'0' is no port, expected 1–65535"),
        (["local", "--retention-days", "x"], "'x' is no number of days"),
        (["local", "--broker", "hive"], "invalid choice: 'hive'"),
        (["migrate"], "give either CONFIG or --dsn"),
        (["migrate", "c.yaml", "--dsn", "dbname=x"], "give either CONFIG or --dsn"),
        (["migrate", "--dsn", "dbname=x", "--uuid", "mine"], "'mine' is no UUID"),
        (["run", "/nowhere/bridge.yaml"], "/nowhere/bridge.yaml:0: is unreadable (No such file or directory)"),
    ],
)
def test_mistake_in_the_command_is_status_2_and_says_what_is_expected(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "Traceback" not in said


def test_mistakes_in_the_config_are_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text("id: centre\ndsn: dbname=x\nakc: true\nmqtt: {tls: {ca: nowhere.pem}}\n")
    assert main(["run", str(path)]) == 2
    assert f'{path}:3: akc is not a known key, expected "ack"' in capsys.readouterr().err
    path.write_text(path.read_text().replace("akc", "ack"))
    assert main(["run", str(path)]) == 2
    assert "nowhere.pem" in capsys.readouterr().err


def test_migrate_makes_the_schema_says_which_database_it_is_and_runs_again(
    empty_dsn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", "--dsn", empty_dsn, "--uuid", str(LOCAL_DATABASE)]) == 0
    said = capsys.readouterr().out
    assert "applied 0001_" in said
    assert f"database {LOCAL_DATABASE}" in said
    path = tmp_path / "bridge.yaml"
    path.write_text(GOOD.format(dsn=empty_dsn))
    assert main(["migrate", str(path)]) == 0
    assert re.search(rf"nothing to do.*\ndatabase {LOCAL_DATABASE}", capsys.readouterr().out)
    assert main(["migrate", str(path), "--uuid", "11111111-2222-4333-8444-555555555555"]) == 1
    assert f"this database is {LOCAL_DATABASE}" in capsys.readouterr().err


def test_migrate_of_a_database_that_is_not_there_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "--dsn", "host=127.0.0.1 port=1 dbname=x user=x"]) == 1
    said = capsys.readouterr().err
    assert "connection" in said
    assert "Traceback" not in said


def test_run_on_a_database_without_schema_ends_with_the_next_step(
    empty_dsn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(GOOD.format(dsn=empty_dsn) + "mqtt: {port: 1}\n")
    assert main(["run", str(path)]) == 1
    assert 'has "facefleet-bridge migrate" not been run?' in capsys.readouterr().err


def test_run_on_another_database_than_configured_is_status_2(
    dsn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(GOOD.format(dsn=dsn) + "mqtt: {port: 1}\ndatabase: 11111111-2222-4333-8444-555555555555\n")
    assert main(["run", str(path)]) == 2
    assert "expected 11111111-2222-4333-8444-555555555555" in capsys.readouterr().err
