"""The contact sheet draws every panel, and says which one has nothing to show."""

from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from bridge.dashboards import contact_sheet
from bridge.dashboards.generate import DASHBOARDS
from bridge.dashboards.model import Panel, placed
from tests.bridge.grafana.conftest import Fleet

matplotlib_image = pytest.importorskip("matplotlib.image")


def test_every_panel_is_drawn(fleet: Fleet, tmp_path: Path) -> None:
    argv = ["--dsn", fleet.dsn, "--now", fleet.now.isoformat(), "--box", "kiosk-2"]
    assert contact_sheet.main([*argv, "--contact-sheet", str(tmp_path / "sheet.png")]) == 0
    for page in DASHBOARDS:
        picture = matplotlib_image.imread(str(tmp_path / f"sheet-{page.title.lower()}.png"))[..., :3]
        laid = placed(page.items)
        unit_px = picture.shape[0] / (max(place.y + place.h for _, place in laid) + 2)
        for item, place in laid:
            if not isinstance(item, Panel):
                continue
            top, left = round((place.y + 2 + 1) * unit_px), round(place.x / 24 * picture.shape[1])
            inside = picture[
                top : round((place.y + 2 + place.h) * unit_px),
                left : round((place.x + place.w) / 24 * picture.shape[1]),
            ]
            bright = np.mean(inside.max(axis=2) > 0.4)
            assert bright > 0.002, f"{page.title}, {item.title} is an empty card"


def test_panel_without_data_is_named(dsn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert contact_sheet.main(["--dsn", dsn, "--contact-sheet", str(tmp_path / "sheet.png")]) == 1
    said = capsys.readouterr().err
    assert "Audience, Age: no rows" in said
    assert "Fewest visits shown" not in said


def test_sheet_is_drawn_with_the_readers_rights(dsn: str, tmp_path: Path) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE ROLE grafana_alone LOGIN IN ROLE facefleet_reader")
    as_reader = make_conninfo(dsn, user="grafana_alone")
    assert contact_sheet.main(["--dsn", as_reader, "--contact-sheet", str(tmp_path / "sheet.png")]) == 1


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.864, "percentunit", "86.4 %"), (5, "s", "5.0 s"), (400, "s", "6.7 min"), (90_000, "s", "25.0 h"),
        (21_000_000_000, "decbytes", "21.0 GB"), (12, "decbytes", "12 B"), (1234, "short", "1234"),
        (25_900, "short", "25.9 k"), (None, "short", "–"), (46.55, "celsius", "46.5 °C"), (3.1, "ms", "3.1 ms"),
    ],
)  # fmt: skip
def test_number_is_written_with_its_unit(value: float | None, unit: str, expected: str) -> None:
    assert contact_sheet.written(value, unit) == expected
