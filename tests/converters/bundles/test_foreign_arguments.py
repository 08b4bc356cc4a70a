"""What the verbs for foreign checkpoints are told, and what a manifest says of it."""

import shlex

import pytest

pytest.importorskip("torch", reason="needs the extra convert")
pytest.importorskip("nncf", reason="needs the extra convert")

from converters.bundles.foreign_arguments import command_of
from converters.cli import main, parser
from converters.training.transfer import BASE

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("ignore")]


def test_a_manifest_keeps_the_whole_command_and_nobodys_folders() -> None:
    argv = ["classifier", "/home/ann/age.pt", "--labels", "young, old", "--size=64", "--margin", "0.2"]
    argv += ["--calibrate", "/home/ann/faces/", "--data=/home/ann/tests", "--out", "/srv/age"]
    args = parser().parse_args(argv)
    args.argv = argv
    command = command_of(args)
    assert command == (
        "facefleet-convert classifier age.pt --labels 'young, old' --size=64 --margin 0.2 --calibrate faces "
        "--data=tests --out age"
    )
    assert "ann" not in command
    again = parser().parse_args(shlex.split(command)[1:])
    told = ("verb", "labels", "size", "margin", "max_drop", "threshold")
    assert [getattr(again, key) for key in told] == [getattr(args, key) for key in told]


def test_a_base_out_of_a_bundle_keeps_the_bundles_name() -> None:
    argv = ["train-student", "--pictures", "/home/ann/faces", "--bundle", "/srv/me", "--base", str(BASE)]
    args = parser().parse_args(argv)
    args.argv = argv
    assert command_of(args) == (
        "facefleet-convert train-student --pictures faces --bundle me --base gender-student/checkpoint.pt"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--threshold", "2"), "--threshold: 2, expected 0 to 1"),
        (("--margin", "-3"), "--margin: -3, expected a fraction of the face box"),
        (("--margin", "wide"), "invalid margin value: 'wide'"),
    ],
)
def test_a_number_that_cannot_be_is_wrong_usage(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["classifier", "age.pt", "--labels", "a,b", "--out", "age", *words])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
