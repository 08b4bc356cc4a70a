"""Fixtures every test may ask for."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the data folder beside the checkout (or `FACEFLEET_SHARED`); skip without it."""
    folder = Path(os.environ.get("FACEFLEET_SHARED", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}")
    return folder
