"""The files Grafana reads are what the code says, and hold together."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.cli import main
from bridge.dashboards import generate
from bridge.dashboards.model import Alert, Dashboard, Panel, Row

PAGES = {page.title: page for page in generate.DASHBOARDS}


def read(name: str) -> Any:
    path = generate.IN_TREE / name
    return json.loads(path.read_text()) if name.endswith(".json") else yaml.safe_load(path.read_text())


def test_files_in_the_tree_are_what_the_code_generates() -> None:
    assert generate.differences(generate.IN_TREE) == []


def test_check_names_what_differs_and_writing_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "grafana"
    shutil.copytree(generate.IN_TREE, folder)
    assert main(["grafana", "--check", "--out", str(folder)]) == 0
    (folder / "dashboards/fleet.json").write_text("{}")
    (folder / "dashboards/box.json").unlink()
    (folder / "dashboards/mine.json").write_text("{}")
    assert main(["grafana", "--check", "--out", str(folder)]) == 1
    said = capsys.readouterr().err
    assert (
        "dashboards/box.json is missing; dashboards/fleet.json differs; dashboards/mine.json is not generated" in said
    )
    assert f'Run "facefleet-bridge grafana --out {folder}"' in said
    (folder / "dashboards/mine.json").unlink()
    assert main(["grafana", "--out", str(folder)]) == 0
    assert main(["grafana", "--check", "--out", str(folder)]) == 0


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_panels_lie_side_by_side_within_the_grid(page: Dashboard) -> None:
    panels = read(f"dashboards/{page.title.lower()}.json")["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_every_query_goes_to_the_provisioned_source_and_uses_variables_that_exist(page: Dashboard) -> None:
    made = read(f"dashboards/{page.title.lower()}.json")
    [source] = read("provisioning/datasources/facefleet.yaml")["datasources"]
    names = {variable["name"] for variable in made["templating"]["list"]}
    queries = [
        (target["datasource"], target["rawSql"]) for panel in made["panels"] for target in panel.get("targets", [])
    ] + [(variable["datasource"], variable["query"]) for variable in made["templating"]["list"]]
    assert len(queries) == len(page.panels) + len(page.variables)
    for asked, sql in queries:
        assert asked == {"type": source["type"], "uid": source["uid"]}
        used = {name for name in re.findall(r"\$(\w+)", sql) if not name.startswith("__")}
        assert used <= names, sql


def test_all_is_one_word_however_large_the_fleet() -> None:
    for page in generate.DASHBOARDS:
        for variable in read(f"dashboards/{page.title.lower()}.json")["templating"]["list"]:
            assert variable["includeAll"] == variable["multi"] == (variable.get("allValue") == "'*'")


def test_alarms_survive_the_replacement_of_environment_variables() -> None:
    assert "$" not in (generate.IN_TREE / "provisioning/alerting/facefleet.yaml").read_text()


def test_alarm_ids_and_titles_are_unique_and_fit() -> None:
    rules = [rule for group in read("provisioning/alerting/facefleet.yaml")["groups"] for rule in group["rules"]]
    assert len(rules) >= 15
    assert len({rule["uid"] for rule in rules}) == len({rule["title"] for rule in rules}) == len(rules)
    assert all(len(rule["uid"]) <= 40 for rule in rules)
    for rule in rules:
        assert [query["refId"] for query in rule["data"]] == ["A", "C"]
        assert rule["condition"] == "C"


def test_original_projects_panels_are_there() -> None:
    titles = {panel.title for panel in PAGES["Audience"].panels if panel.shape == "pie"}
    assert {"Age", "Gender", "Race", "Emotion", "Detected and no longer detected"} <= titles
    assert "People over time" in {panel.title for panel in PAGES["Audience"].panels if panel.shape == "lines"}


def test_panel_over_time_must_begin_with_its_time() -> None:
    with pytest.raises(ValueError, match='its first column must be "time"'):
        Panel("x", "lines", "SELECT 1", {"people": "number"})


def test_alarm_with_a_dollar_sign_or_two_numbers_is_refused() -> None:
    rest: dict[str, Any] = {"limit": 0, "lasting": "1m", "severity": "warning"}
    with pytest.raises(ValueError, match="contains a dollar sign"):
        Alert("x", "t", "s", "SELECT '$box'", {"n": "number"}, **rest)
    with pytest.raises(ValueError, match="exactly one number"):
        Alert("x", "t", "s", "SELECT 1, 2", {"n": "number", "m": "number"}, **rest)


def test_headings_take_a_whole_line() -> None:
    for page in generate.DASHBOARDS:
        rows = [p for p in read(f"dashboards/{page.title.lower()}.json")["panels"] if p["type"] == "row"]
        assert len(rows) == sum(isinstance(item, Row) for item in page.items)
        assert all(row["gridPos"]["w"] == 24 for row in rows)
