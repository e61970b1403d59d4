"""The page's plots: what ECharts is told of the numbers of a run."""

import math
from typing import Any

import numpy as np
from nicegui import ui
from numpy.typing import NDArray

from realtime_skyseg.dashboard.feed import About, Series, Shown

#: Points of a plot at most.
_POINTS = 800

_ORANGE, _BLUE, _GREEN = "#E69F00", "#56B4E9", "#2fbf8f"
_WORDS, _LINES = "#c8d0d8", "#2a333c"


def label_of(about: About | None, name: str) -> str:
    """What a quantity of frames is called on an axis."""
    names = {"count": "skyrmions", "latency_ms": "answer after (ms)", "field_mT": "field (mT)"}
    quantity = about.quantities.get(name) if about else None
    return names.get(name) or (quantity.label if quantity else name)


def line_chart() -> dict[str, Any]:
    """A quantity over time, or over the field with both branches."""
    line = {"type": "line", "data": [], "showSymbol": False, "symbolSize": 5, "lineStyle": {"width": 1.5}}
    return {
        **_plain(), "color": [_ORANGE, _BLUE],
        "legend": {"show": False, "top": 0, "textStyle": {"color": _WORDS}},
        "xAxis": _axis("time (s)"), "yAxis": {**_axis("skyrmions"), "nameGap": 42},
        "series": [{**line, "name": "rising"}, {**line, "name": "falling", "type": "scatter"}],
    }  # fmt: skip


def fill_line(options: dict[str, Any], series: Series, name: str, label: str, over_field: bool) -> None:
    """Give a `line_chart` its points."""
    time_s, values, field = series.arrays("time_s", name, "field_mT", most=_POINTS)
    if over_field:
        step = np.diff(field, prepend=field[:1])
        points = [_points(field[step >= 0], values[step >= 0]), _points(field[step < 0], values[step < 0])]
    else:
        points = [_points(time_s, values), []]
    options["xAxis"]["name"], options["yAxis"]["name"] = "field (mT)" if over_field else "time (s)", label
    options["series"][0] |= {"data": points[0], "name": "rising" if over_field else label}
    options["series"][0]["type"] = "scatter" if over_field else "line"
    options["series"][1]["data"] = points[1]
    options["legend"]["show"] = over_field


def histogram_chart() -> dict[str, Any]:
    """A quantity of objects in one frame."""
    return {
        **_plain(), "color": [_BLUE], "grid": {"left": 58, "right": 16, "top": 10, "bottom": 40},
        "xAxis": {"type": "category", "data": [], "name": "", "nameLocation": "middle", "nameGap": 26,
                  "axisLabel": {"color": _WORDS}},
        "yAxis": {**_axis("objects"), "nameGap": 42, "scale": False},
        "series": [{"type": "bar", "data": [], "barCategoryGap": "8%"}],
    }  # fmt: skip


def fill_histogram(options: dict[str, Any], shown: Shown, name: str, pixel_size_um: float | None) -> None:
    """Give a `histogram_chart` the skyrmions of a frame."""
    objects = shown.objects
    values = objects[name][objects["kind"] == 0].astype(float) if name in (objects.dtype.names or ()) else np.empty(0)
    values = values[np.isfinite(values)]
    in_um = pixel_size_um is not None and name == "diameter"
    counts, edges = np.histogram(values * (pixel_size_um or 1.0) if in_um else values, 24)
    unit = " (µm)" if in_um else " (px)" if name == "diameter" else ""
    options["xAxis"]["name"] = name.replace("_", " ") + unit
    options["xAxis"]["data"] = [f"{middle:.3g}" for middle in (edges[1:] + edges[:-1]) / 2]
    options["series"][0]["data"] = counts.tolist()


def latency_chart() -> dict[str, Any]:
    """Latency by stage: median and 99th percentile."""
    return {
        **_plain(), "color": [_BLUE, _ORANGE], "grid": {"left": 90, "right": 24, "top": 26, "bottom": 34},
        "legend": {"show": True, "top": 0, "textStyle": {"color": _WORDS}},
        "xAxis": {**_axis("ms"), "scale": False},
        "yAxis": {"type": "category", "data": [], "inverse": True, "axisLabel": {"color": _WORDS}},
        "series": [{"type": "bar", "name": name, "data": []} for name in ("median", "99th percentile")],
    }  # fmt: skip


def fill_latency(options: dict[str, Any], latency_ms: dict[str, dict[str, float | None]]) -> None:
    """Give a `latency_chart` the service's figures."""
    known = {stage: of for stage, of in latency_ms.items() if of.get("p50") is not None}
    options["yAxis"]["data"] = list(known)
    for series, name in zip(options["series"], ("p50", "p99"), strict=True):
        series["data"] = [round(of[name] or 0.0, 2) for of in known.values()]


def programme_chart() -> dict[str, Any]:
    """The planned field over time, the field as it was, and where it stands."""
    line = {"type": "line", "data": [], "showSymbol": False}
    return {
        **_plain(), "color": [_WORDS, _ORANGE, _GREEN],
        "legend": {"show": True, "top": 0, "textStyle": {"color": _WORDS}},
        "xAxis": {**_axis("time since it began (s)"), "scale": False}, "yAxis": {**_axis("field (mT)"), "nameGap": 42},
        "series": [{**line, "name": "planned", "lineStyle": {"width": 1, "type": "dashed"}},
                   {**line, "name": "measured", "lineStyle": {"width": 1.5}},
                   {"type": "scatter", "name": "now", "symbolSize": 11, "data": []}],
    }  # fmt: skip


def fill_programme(
    options: dict[str, Any], planned: list[list[float]], time_s: NDArray[np.float64], field_mT: NDArray[np.float64]
) -> None:
    """Give a `programme_chart` the plan, and what was measured at times since it began."""
    measured = _points(time_s, field_mT)
    options["series"][0]["data"], options["series"][1]["data"] = planned, measured
    options["series"][2]["data"] = [point for point in measured if None not in point][-1:]


def draw(options: dict[str, Any], label: str, style: str = "") -> ui.echart:
    """A plot on the page, with a name for who cannot see it."""
    return ui.echart(options).classes(f"chart {style}").props(f'role=img aria-label="{label}"')


def _plain() -> dict[str, Any]:
    return {"animation": False, "backgroundColor": "transparent", "textStyle": {"color": _WORDS},
            "grid": {"left": 58, "right": 16, "top": 26, "bottom": 40},
            "tooltip": {"trigger": "axis", "confine": True}}  # fmt: skip


def _axis(name: str) -> dict[str, Any]:
    return {"type": "value", "name": name, "nameLocation": "middle", "nameGap": 26, "scale": True,
            "splitLine": {"lineStyle": {"color": _LINES}}, "axisLabel": {"color": _WORDS}}  # fmt: skip


def _points(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[list[float | None]]:
    return [
        [None if math.isnan(value) else round(value, 5) for value in pair]
        for pair in zip(x.tolist(), y.tolist(), strict=True)
    ]
