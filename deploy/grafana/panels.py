"""What a dashboard is made of, and how Grafana writes it down; which panels there are is said in catalogue.py."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

DATASOURCE = {"type": "prometheus", "uid": "repliq-prometheus"}
_COLUMNS = 24
_SCHEMA_VERSION = 39  # Grafana 10 and later; an older one is migrated by Grafana itself

Unit = Literal["short", "s", "percentunit", "reqps", "bytes", "currencyUSD", "ops", "dateTimeFromNow"]


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """One picture: `queries` are PromQL with the legend of its series, `alarm` the value from which it is red."""

    title: str
    about: str
    queries: tuple[tuple[str, str], ...]
    unit: Unit = "short"
    kind: Literal["timeseries", "stat"] = "timeseries"
    alarm: float | None = None
    low_is_bad: bool = False
    width: int = 8
    height: int = 8
    names: tuple[tuple[float, str], ...] = ()
    """What a value stands for, where it is no amount."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Dashboard:
    uid: str
    title: str
    about: str
    rows: tuple[Row, ...]


def write(dashboard: Dashboard) -> dict[str, Any]:
    """Return Grafana's JSON model; the same dashboard gives the same, so that a change can be read in a diff."""
    written: list[dict[str, Any]] = []
    top = 0
    for row in dashboard.rows:
        written.append(
            {"id": len(written) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": [],
             "gridPos": {"x": 0, "y": top, "w": _COLUMNS, "h": 1}}
        )  # fmt: skip
        top += 1
        left, tallest = 0, 0
        for panel in row.panels:
            if left + panel.width > _COLUMNS:
                left, top, tallest = 0, top + tallest, 0
            written.append(_panel(panel, len(written) + 1, left, top))
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest
    return {
        "uid": dashboard.uid, "title": dashboard.title, "description": dashboard.about, "tags": ["repliq"],
        "schemaVersion": _SCHEMA_VERSION, "version": 1, "editable": False, "graphTooltip": 1, "timezone": "browser",
        "refresh": "30s", "time": {"from": "now-6h", "to": "now"}, "templating": {"list": []},
        "annotations": {"list": [_alerts()]}, "links": [_siblings()], "panels": written,
    }  # fmt: skip


def _panel(panel: Panel, number: int, left: int, top: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "timeseries": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background", "graphMode": "area"},
    }[panel.kind]
    custom = {"lineWidth": 2, "fillOpacity": 8, "showPoints": "never", "spanNulls": True}
    if panel.alarm is not None and panel.kind == "timeseries":
        custom["thresholdsStyle"] = {"mode": "line"}
    return {
        "id": number, "type": panel.kind, "title": panel.title, "description": panel.about, "datasource": DATASOURCE,
        "gridPos": {"x": left, "y": top, "w": panel.width, "h": panel.height},
        "targets": [
            {"refId": chr(ord("A") + at), "datasource": DATASOURCE, "expr": query, "legendFormat": legend}
            for at, (query, legend) in enumerate(panel.queries)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit, "custom": custom if panel.kind == "timeseries" else {},
                "thresholds": {"mode": "absolute", "steps": _steps(panel)}, "mappings": _mappings(panel),
                **({} if panel.low_is_bad else {"min": 0}),  # what may be overdrawn goes below
            },
            "overrides": [],
        },
        "options": options,
    }  # fmt: skip


def _steps(panel: Panel) -> list[dict[str, Any]]:
    good, bad = ("red", "green") if panel.low_is_bad else ("green", "red")
    steps: list[dict[str, Any]] = [{"color": good, "value": None}]
    return steps if panel.alarm is None else [*steps, {"color": bad, "value": panel.alarm}]


def _mappings(panel: Panel) -> list[dict[str, Any]]:
    if not panel.names:
        return []
    return [{"type": "value", "options": {f"{value:g}": {"text": text} for value, text in panel.names}}]


def _alerts() -> dict[str, Any]:
    """Mark on every picture when an alert fired."""
    return {
        "name": "Alerts", "datasource": DATASOURCE, "enable": True, "iconColor": "red", "titleFormat": "{{alertname}}",
        "expr": 'ALERTS{alertstate="firing", severity="page"}', "step": "60s",
    }  # fmt: skip


def _siblings() -> dict[str, Any]:
    return {"type": "dashboards", "title": "Repliq", "tags": ["repliq"], "asDropdown": False, "keepTime": True}
