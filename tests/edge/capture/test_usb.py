"""A USB camera that is not there: at once for `check`, again and again for `run`."""

import os
from pathlib import Path

import pytest

from edge.capture.frames import SourceState
from edge.capture.sources import open_source, probe
from edge.capture.spec import SourceSpec
from edge.errors import CameraError
from tests.edge.capture.conftest import until


@pytest.mark.parametrize("location", ["97", "/dev/video97"])
def test_probe_of_a_camera_that_is_not_there_names_it_and_what_is(location: str) -> None:
    with pytest.raises(CameraError, match=r"/dev/video97: no such camera; found: .*; plug it in"):
        probe(SourceSpec("usb", location))


def test_a_missing_camera_is_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    with open_source(SourceSpec("usb", "97")) as source:
        assert until(lambda: source.state is SourceState.RECONNECTING)
        assert "no such camera" in source.last_error
        assert source.read(0.05) is None
    assert "VIDEOIO" not in capfd.readouterr().err


def test_a_file_that_is_no_camera_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "video"
    path.write_text("no device")
    with pytest.raises(CameraError, match="gives no video"):
        probe(SourceSpec("usb", str(path)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_camera_of_another_group_names_the_group(tmp_path: Path) -> None:
    path = tmp_path / "video"
    path.write_text("")
    path.chmod(0)
    with pytest.raises(CameraError, match="group video"):
        probe(SourceSpec("usb", str(path)))
