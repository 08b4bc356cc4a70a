"""docker-compose.yml cannot be run here; what can be checked of it without a container engine is."""

import re
from pathlib import Path
from typing import Any

import yaml

from bridge.config import load_bridge
from bridge.dashboards.generate import IN_TREE
from bridge.dashboards.render import DASHBOARDS

ROOT = Path(__file__).resolve().parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_it_says_that_it_is_untested() -> None:
    assert "UNTESTED" in (ROOT / "docker-compose.yml").read_text().splitlines()[0]


def test_every_image_is_pinned() -> None:
    for name, service in COMPOSE["services"].items():
        assert re.search(r":\d+(\.\d+)+", service["image"]), name


def test_bridge_reads_its_config(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(COMPOSE["configs"]["bridge"]["content"])
    config = load_bridge(path)
    assert config.mqtt.host in COMPOSE["services"]
    assert "@database:" in config.dsn


def test_grafana_finds_its_files_and_its_environment() -> None:
    grafana = COMPOSE["services"]["grafana"]
    wanted = set(re.findall(r"\$([A-Z_]+)", (IN_TREE / "provisioning/datasources/facefleet.yaml").read_text()))
    assert wanted <= set(grafana["environment"])
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert mounts["./bridge/grafana/dashboards"] == DASHBOARDS
    assert all((ROOT / source).is_dir() for source in mounts if source.startswith("."))


def test_broker_is_told_what_its_own_config_tells() -> None:
    def told(text: str) -> dict[str, str]:
        lines = (line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#"))
        return {key: value for key, value in lines if key not in ("listener", "persistence_location")}

    assert told(COMPOSE["configs"]["mosquitto"]["content"]) == told((ROOT / "config/mosquitto.conf").read_text())
