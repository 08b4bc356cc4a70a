"""A desk and a box for every test of flashing."""

from pathlib import Path

import pytest

from tests.edge.flash.desk import Box, Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "desk")


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")
