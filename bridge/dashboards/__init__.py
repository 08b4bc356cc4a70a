"""Grafana's dashboards and alarms as code; `bridge/grafana/` is what it generates."""
