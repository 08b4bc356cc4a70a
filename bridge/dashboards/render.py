"""Values → what Grafana 11 reads: dashboard JSON, and provisioning for data source, dashboards and alarms. Pure."""

from typing import Any

from bridge.dashboards.model import ALL, Alert, Dashboard, Panel, Place, Row, Variable, placed

SOURCE = {"type": "grafana-postgresql-datasource", "uid": "facefleet"}
SCHEMA_VERSION = 39  # Grafana 11; newer ones migrate it when they load it
FOLDER = "facefleet"
DASHBOARDS = "/etc/grafana/facefleet"  # where Grafana finds the dashboards' JSON; docker-compose.yml mounts them there

Json = dict[str, Any]


def dashboard(page: Dashboard) -> Json:
    """Return a dashboard's JSON model."""
    return {
        "uid": page.uid,
        "title": f"facefleet · {page.title}",
        "description": page.about,
        "tags": [FOLDER],
        "timezone": "browser",
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,  # one crosshair for all curves
        "refresh": page.refresh,
        "time": {"from": f"now-{page.since}", "to": "now"},
        "links": [
            {"type": "dashboards", "title": FOLDER, "tags": [FOLDER], "asDropdown": False, "keepTime": False}
        ],
        "templating": {"list": [_variable(variable) for variable in page.variables]},
        "annotations": {"list": []},
        "panels": [_item(number, item, place) for number, (item, place) in enumerate(placed(page.items), 1)],
    }  # fmt: skip


def _variable(variable: Variable) -> Json:
    chosen = {"text": ["All"], "value": ["$__all"]} if variable.many else {}
    everything: Json = {"allValue": ALL} if variable.many else {}
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.name,
        "datasource": SOURCE,
        "definition": variable.sql,
        "query": variable.sql,
        "refresh": 2,  # whenever the time range changes
        "sort": 0,
        "multi": variable.many,
        "includeAll": variable.many,
        "current": chosen,
        **everything,
    }


def _item(number: int, item: Panel | Row, place: Place) -> Json:
    grid = {"x": place.x, "y": place.y, "w": place.w, "h": place.h}
    if isinstance(item, Row):
        return {"id": number, "type": "row", "title": item.title, "gridPos": grid, "collapsed": False, "panels": []}
    kind, options, custom = _LOOKS[item.shape](item)
    override: Json = {"timeFrom": item.since, "hideTimeOverride": False} if item.since else {}
    return {
        "id": number,
        "type": kind,
        "title": item.title,
        "description": item.about,
        "datasource": SOURCE,
        "gridPos": grid,
        "interval": item.least,
        **override,
        "targets": [
            {
                "refId": "A",
                "datasource": SOURCE,
                "format": "time_series" if kind == "timeseries" else "table",
                "rawQuery": True,
                "editorMode": "code",
                "rawSql": item.sql.strip(),
            }
        ],
        "fieldConfig": {"defaults": _defaults(item, custom), "overrides": _overrides(item)},
        "options": options,
    }


def _defaults(panel: Panel, custom: Json) -> Json:
    steps = panel.steps or ((None, "green"),)
    defaults: Json = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if panel.shape == "stat" else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]},
        "custom": custom,
    }
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.shape in ("lines", "bars", "heat"):
        defaults["min"] = 0
    if panel.shape == "heat":
        defaults["color"] = {"mode": "continuous-BlPu"}
    if panel.colours and panel.shape in ("table", "stat"):
        words = {text: {"color": colour, "index": i} for i, (text, colour) in enumerate(panel.colours.items())}
        defaults["mappings"] = [{"type": "value", "options": words}]
    return defaults


def _overrides(panel: Panel) -> list[Json]:
    overrides = [_override(column, {"unit": unit}) for column, unit in panel.units.items()]
    if panel.shape in ("lines", "bars") or (panel.shape == "stat" and "number" in panel.columns.values()):
        overrides += [
            _override(name, {"color": {"mode": "fixed", "fixedColor": colour}})
            for name, colour in panel.colours.items()
        ]
    if panel.shape == "table":
        coloured = [
            name for name, kind in panel.columns.items() if kind == "text" and name in ("status", "state", "golden")
        ]
        overrides += [_override(name, {"custom.cellOptions": {"type": "color-text"}}) for name in coloured]
    if panel.shape == "heat":
        overrides.append(_override("day", {"custom.cellOptions": {"type": "auto"}}))
    return overrides


def _override(column: str, properties: Json) -> Json:
    return {
        "matcher": {"id": "byName", "options": column},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def _series(panel: Panel) -> tuple[str, Json, Json]:
    bars = panel.shape == "bars"
    custom = {
        "drawStyle": "bars" if bars else "line",
        "lineWidth": 1,
        "fillOpacity": 80 if bars else 25 if panel.stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
    }
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    return "timeseries", {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}, custom


def _pie(_: Panel) -> tuple[str, Json, Json]:
    options = {
        "pieType": "donut",
        "reduceOptions": {"values": True, "calcs": ["lastNotNull"], "fields": ""},  # a row is a slice
        "displayLabels": ["percent"],
        "legend": {
            "displayMode": "table", "placement": "right", "showLegend": True, "values": ["value", "percent"],
        },
        "tooltip": {"mode": "single"},
    }  # fmt: skip
    return "piechart", options, {}


def _stat(panel: Panel) -> tuple[str, Json, Json]:
    texts = "number" not in panel.columns.values()
    options = {
        "reduceOptions": {"values": False, "calcs": ["lastNotNull"], "fields": "/.*/" if texts else ""},
        "textMode": "value" if len(panel.columns) == 1 else "value_and_name",
        "colorMode": "value",
        "graphMode": "none",
        "orientation": "vertical",
        "justifyMode": "auto",
    }
    return "stat", options, {}


def _table(_: Panel) -> tuple[str, Json, Json]:
    return "table", {"showHeader": True, "cellHeight": "sm"}, {"align": "auto", "cellOptions": {"type": "auto"}}


def _heat(_: Panel) -> tuple[str, Json, Json]:
    cells = {"type": "color-background", "mode": "basic"}
    return "table", {"showHeader": True, "cellHeight": "sm"}, {"align": "center", "cellOptions": cells}


def _ranking(panel: Panel) -> tuple[str, Json, Json]:
    options = {
        "orientation": "horizontal",
        "xField": next(iter(panel.columns)),
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "single"},
    }
    return "barchart", options, {"fillOpacity": 80}


_LOOKS = {
    "lines": _series, "bars": _series, "pie": _pie, "stat": _stat, "table": _table, "heat": _heat, "ranking": _ranking,
}  # fmt: skip


# Provisioning ---------------------------------------------------------------------------------------------------------


def data_source() -> Json:
    """Return the data source; host, database and password come from Grafana's environment."""
    return {
        "apiVersion": 1,
        "prune": True,
        "datasources": [
            {
                "name": FOLDER,
                **SOURCE,
                "access": "proxy",
                "url": "$FACEFLEET_DB_HOST",
                "user": "$FACEFLEET_DB_USER",
                "secureJsonData": {"password": "$FACEFLEET_DB_PASSWORD"},
                "jsonData": {
                    "database": "$FACEFLEET_DB_NAME",
                    "sslmode": "$FACEFLEET_DB_SSLMODE",
                    "maxOpenConns": 10,
                    "maxIdleConns": 4,
                    "connMaxLifetime": 3600,
                    "postgresVersion": 1600,
                    "timescaledb": False,  # it would change what $__timeGroup becomes
                },
                "editable": False,
            }
        ],
    }


def provider() -> Json:
    """Return where Grafana finds the dashboards."""
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": FOLDER,
                "folder": FOLDER,
                "type": "file",
                "allowUiUpdates": False,
                "updateIntervalSeconds": 60,
                "options": {"path": DASHBOARDS},
            }
        ],
    }


def alarms(groups: dict[str, tuple[Alert, ...]]) -> Json:
    """Return the alert rules."""
    return {
        "apiVersion": 1,
        "groups": [
            {
                "orgId": 1,
                "name": name,
                "folder": FOLDER,
                "interval": "1m",
                "rules": [_rule(alert) for alert in alerts],
            }
            for name, alerts in groups.items()
        ],
    }


def _rule(alert: Alert) -> Json:
    query = {
        "refId": "A",
        "relativeTimeRange": {"from": 600, "to": 0},
        "datasourceUid": SOURCE["uid"],
        "model": {
            "refId": "A",
            "datasource": SOURCE,
            "format": "table",  # text columns become labels, the one number the value
            "rawQuery": True,
            "editorMode": "code",
            "rawSql": alert.sql.strip(),
        },
    }
    evaluator = {"above": "gt", "below": "lt"}[alert.fires]
    threshold = {
        "refId": "C",
        "relativeTimeRange": {"from": 0, "to": 0},
        "datasourceUid": "__expr__",
        "model": {
            "refId": "C",
            "type": "threshold",
            "datasource": {"type": "__expr__", "uid": "__expr__"},
            "expression": "A",
            "conditions": [{"type": "query", "evaluator": {"type": evaluator, "params": [alert.limit]}}],
        },
    }
    return {
        "uid": alert.uid,
        "title": alert.title,
        "condition": "C",
        "data": [query, threshold],
        "for": alert.lasting,
        "noDataState": "Alerting" if alert.rows else "OK",
        "execErrState": "Alerting",  # a database that cannot be asked is an alarm
        "annotations": {"summary": alert.summary},
        "labels": {"severity": alert.severity},
        "isPaused": False,
    }
