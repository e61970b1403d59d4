"""The page: live view, numbers over time and field, the state in words, and control where it is allowed."""

import asyncio
import json
import math
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect
from nicegui import app, ui

from realtime_skyseg.dashboard.feed import SILENT_S, Feed
from realtime_skyseg.dashboard.frames import pack
from realtime_skyseg.errors import ControlError, SkysegError
from realtime_skyseg.streaming import Control

_STATIC = Path(__file__).with_name("static")

#: Frames that may be on their way to a browser; more would only be late.
_ON_THE_WAY = 2

#: The page's numbers and plots are renewed so often.
_NUMBERS_S, _PLOTS_S = 0.25, 0.5

#: Points of a plot at most.
_POINTS = 1500

_RED, _GREEN, _AMBER = "#ff6b6b", "#7bd88f", "#ffd166"

#: Kinds of events that are worth a warning that stays until it is read.
_WARNINGS = (
    "fault", "camera_lost", "lost", "disk", "slow_disk", "field", "analyser_off", "analyser_failed", "not_written",
    "overexposed", "stream_crowded", "stream_flooded", "recording_ended",
)  # fmt: skip


def serve(feed: Feed, control: str = "", keys: Path | None = None, port: int = 8080, show: bool = False) -> None:
    """Serve the page to browsers of this computer, until it is interrupted.

    Args:
        feed: started.
        control: address of the control socket, if the page may ask for something; "": it may only look.
        keys: folder of keys for it.
        port: of the page.
        show: open a browser.
    """
    app.add_static_files("/skyseg", str(_STATIC))

    @app.websocket("/skyseg/frames")
    async def frames(socket: WebSocket) -> None:
        await _send_frames(socket, feed)

    def page() -> None:
        Page(feed, _Asker(control, keys) if control else None).build()

    ui.run(
        page, host="127.0.0.1", port=port, title="skyseg", dark=True, reload=False, show=show, favicon="🧲",
        show_welcome_message=False,
    )  # fmt: skip


async def _send_frames(socket: WebSocket, feed: Feed) -> None:
    """The newest frame, whenever the browser has drawn those before."""
    await socket.accept()
    loop, another = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        loop.call_soon_threadsafe(another.set)

    leave = feed.listen(tell)
    state = {"drawn": 0, "sent": 0, "want": False}
    another.set()

    async def hear() -> None:
        while True:
            told = json.loads(await socket.receive_text())
            if "drawn" in told:
                state["drawn"] = max(state["drawn"], int(told["drawn"]))
            if "want" in told:
                state["want"] = bool(told["want"])
            another.set()

    hearing = asyncio.create_task(hear())
    last = None
    try:
        while not hearing.done():
            await asyncio.wait({hearing, waiting := asyncio.create_task(another.wait())},
                               return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
            waiting.cancel()
            another.clear()
            shown = feed.shown
            if shown is None or shown is last or not state["want"] or state["sent"] - state["drawn"] >= _ON_THE_WAY:
                continue
            last = shown
            state["sent"] += 1
            await socket.send_bytes(await asyncio.to_thread(pack, shown, state["sent"]))
    except (WebSocketDisconnect, RuntimeError, ValueError):
        pass
    finally:
        leave()
        hearing.cancel()


class _Asker:
    """Asks the service something, in a thread of its own each time: the page never waits."""

    def __init__(self, address: str, keys: Path | None) -> None:
        self._address, self._keys = address, keys

    async def __call__(self, do: str, **values: object) -> dict[str, Any]:
        """The answer. Raises `ControlError`."""

        def ask() -> dict[str, Any]:
            with Control(self._address, 5.0, self._keys) as control:
                return control.ask(do, **values)

        return await asyncio.to_thread(ask)


class Page:
    """One viewer's page."""

    def __init__(self, feed: Feed, asker: _Asker | None) -> None:
        self._feed = feed
        self._asker = asker
        self._read: set[tuple[int, str]] = set()  # warnings that were read
        self._plotted = ("count", "time")

    def build(self) -> None:
        """Lay it out."""
        ui.add_head_html(f"<style>{(_STATIC / 'page.css').read_text()}</style>")
        with ui.element("header").classes("top"):
            ui.label("skyseg").classes("name")
            self._state = ui.label("").classes("state")
            ui.label("").classes("count").props("id=skyseg-count")  # of the frame that is seen: the view writes it
            if self._asker:
                button = ui.button("Safe field", on_click=lambda: self._ask("safe_field"))
                button.props('color=red-10 unelevated no-caps aria-label="Make the field safe"')
        self._warnings = ui.element("div").classes("warnings").props("role=alert")
        with ui.element("main").classes("body"):
            with ui.element("section").classes("live"):
                self._build_live()
            with ui.element("section").classes("side"):
                self._build_plots()
                self._words = ui.element("dl").classes("words")
                if self._asker:
                    self._build_control()
                ui.label("Events").classes("heading")
                self._events = ui.element("ol").classes("events")
        ui.timer(_NUMBERS_S, self._renew)
        ui.timer(_PLOTS_S, self._plot)

    # --- live view ---

    def _build_live(self) -> None:
        with ui.element("div").classes("tools"):
            self._pause = _button("Pause", self._toggle)
            _button("Step", lambda: self._tell("{paused: true, step: true}"))
            ui.checkbox("Outlines", value=True, on_change=lambda e: self._tell(f"{{outlines: {json.dumps(e.value)}}}"))
            self._colour = ui.select({"": "no colours"}, value="", label="Colour by", on_change=self._colour_by)
            self._colour.classes("colour").props("dense options-dense")
            ui.label("Brightness").classes("small")
            ends = (
                ui.range(min=0, max=100, value={"min": 0, "max": 100}).classes("ends").props('aria-label="Brightness"')
            )
            ends.on_value_change(lambda e: self._tell(f"{{low: {e.value['min'] / 100}, high: {e.value['max'] / 100}}}"))
            _button("Fit", lambda: self._tell("{view: {x: 0, y: 0, zoom: 1}}"))
        ui.html(
            '<canvas id="skyseg-live" tabindex="0" role="img" aria-label="Live view: plus and minus zoom, arrows move, '
            'zero fits"></canvas>', sanitize=False,
        ).classes("picture")  # fmt: skip
        with ui.element("div").classes("legend"):
            for name, colour in (("skyrmion", "#E69F00"), ("stripe", "#56B4E9"), ("defect", "#009E73"),
                                 ("outside", "#F0E442"), ("edge", "#CC79A7")):  # fmt: skip
                with ui.element("span"):
                    ui.element("i").style(f"background: {colour}")
                    ui.label(name)
            self._scale = ui.label("").classes("small")
            self._scale.props("id=skyseg-scale")
        self._object = ui.label("Click a skyrmion for its numbers.").classes("object").props("id=skyseg-object")
        ui.add_body_html("""<script type="module">
            import { LiveView } from "/skyseg/live.js";
            const begin = () => {
                const canvas = document.getElementById("skyseg-live");
                if (!canvas) { setTimeout(begin, 50); return; }
                const url = (location.protocol === "https:" ? "wss://" : "ws://") + location.host + "/skyseg/frames";
                const write = (id, text) => {
                    const place = document.getElementById(id);
                    if (place) place.textContent = text;
                };
                const told = {
                    scale: (name, low, high) => write("skyseg-scale",
                        `${name}: ${low.toPrecision(3)} (dark) to ${high.toPrecision(3)} (bright)`),
                    count: (head) => write("skyseg-count",
                        head.count === null ? "shows nothing" : `${head.count} skyrmions`),
                };
                window.skysegView = new LiveView(canvas, told, url);
                document.addEventListener("skyseg-object", (event) => {
                    write("skyseg-object", event.detail || "Click a skyrmion for its numbers.");
                });
            };
            begin();
        </script>""")

    def _tell(self, values: str) -> None:
        """Tell the view in the browser."""
        ui.run_javascript(f"window.skysegView?.set({values})")

    def _toggle(self) -> None:
        paused = self._pause.text == "Pause"
        self._pause.text = "Go on" if paused else "Pause"
        self._tell(f"{{paused: {json.dumps(paused)}, step: false}}")

    def _colour_by(self, event: Any) -> None:
        self._tell(f"{{colourBy: {json.dumps(event.value)}}}")
        ui.run_javascript('document.getElementById("skyseg-scale").textContent = ""')

    # --- numbers ---

    def _build_plots(self) -> None:
        with ui.element("div").classes("tools"):
            self._quantity = ui.select({"count": "skyrmions"}, value="count", label="Plot").props("dense options-dense")
            self._against = ui.toggle({"time": "over time", "field": "over field"}, value="time").props("dense no-caps")
        self._chart = ui.echart(_chart()).classes("chart").props('role=img aria-label="Plot"')
        self._histogram = (
            ui.echart(_histogram()).classes("chart low").props('role=img aria-label="Histogram of diameters"')
        )

    def _plot(self) -> None:
        feed = self._feed
        name, against = self._quantity.value or "count", self._against.value
        label = _label(feed, name)
        time_s, values, field = feed.series.arrays("time_s", name, "field_mT", most=_POINTS)
        if against == "field":
            step = np.diff(field, prepend=field[:1])
            series = [_points(field[step >= 0], values[step >= 0], "rising"), _points(field[step < 0], values[step < 0],
                                                                                      "falling")]  # fmt: skip
            axis = "field (mT)"
        else:
            series = [_points(time_s, values, label), [], ]  # fmt: skip
            axis = "time (s)"
        options = self._chart.options
        options["xAxis"]["name"], options["yAxis"]["name"] = axis, label
        options["series"][0]["data"], options["series"][1]["data"] = series[0], series[1]
        options["series"][0]["name"] = "rising" if against == "field" else label
        options["series"][0]["type"] = "scatter" if against == "field" else "line"
        options["legend"]["show"] = against == "field"
        self._chart.update()
        if (shown := feed.shown) is not None:
            size = feed.header.pixel_size_um if feed.header else None
            objects = shown.result.objects
            diameters = objects["diameter"][objects["kind"] == 0] * (size or 1.0)
            counts, edges = np.histogram(diameters, 24) if len(diameters) else (np.zeros(1, int), np.array([0.0, 1.0]))
            self._histogram.options["xAxis"]["name"] = f"diameter ({'µm' if size else 'px'})"
            self._histogram.options["xAxis"]["data"] = [f"{middle:.3g}" for middle in (edges[1:] + edges[:-1]) / 2]
            self._histogram.options["series"][0]["data"] = counts.tolist()
            self._histogram.update()

    def _renew(self) -> None:
        feed = self._feed
        text, colour = _state(feed)
        self._state.text = text
        self._state.style(f"color: {colour}")
        self._choices()
        self._tell_words()
        self._tell_warnings()
        self._tell_events()

    def _choices(self) -> None:
        """What there is to plot and to colour by."""
        plotted = {name: _label(self._feed, name) for name in [*self._feed.quantities, "latency_ms"]}
        if plotted != self._quantity.options:
            self._quantity.set_options(plotted)
        shown = self._feed.shown
        if shown is not None:
            hidden = ("x", "y", "left", "top", "width", "height", "kind", "border")
            names = [name for name in shown.result.objects.dtype.names or () if name not in hidden]
            colours = {"": "no colours"} | {name: name.replace("_", " ") for name in names}
            if colours != self._colour.options:
                self._colour.set_options(colours)
        size = self._feed.header.pixel_size_um if self._feed.header else None
        if size is not None:
            self._tell(f"{{pixelSize: {size}}}")

    def _tell_words(self) -> None:
        feed = self._feed
        frames, header, shown = feed.counters, feed.header, feed.shown
        words: dict[str, str] = {}
        if header:
            words["Records"] = header.filename
            words["Model"] = f"{header.model}, {header.engine}"
        if frames:
            skipped = sum(frames.get("not_analysed", {}).values())
            lost = sum(frames.get("not_written", {}).values()) + frames.get("camera_lost", 0)
            words["Frames"] = (
                f"{frames['received']} received, {frames['analysed']} analysed, {frames['written']} written"
            )
            words["Skipped"] = f"{skipped} not analysed" + (f"; {lost} LOST" if lost else "; none lost")
        if shown:
            field = shown.result.field_mT
            words["Field"] = "not known" if field is None else f"{field:.3f} mT"
            words["Stripes"] = "-" if shown.result.stripes is None else str(shown.result.stripes)
        recent_s, answers = (feed.series.columns.get(name, [])[-100:] for name in ("time_s", "latency_ms"))
        if len(recent_s) > 10:
            rate = (len(recent_s) - 1) / max(recent_s[-1] - recent_s[0], 1e-9)
            words["Rate"] = f"{rate:.1f} frames/s, answer after {np.nanmedian(answers):.0f} ms"
        words["This page"] = f"{feed.lost} messages missed" if feed.lost else "misses nothing"
        self._words.clear()
        with self._words:
            for name, value in words.items():
                with ui.element("dt"):
                    ui.label(name)
                with ui.element("dd"):
                    ui.label(value)

    def _tell_warnings(self) -> None:
        unread = [event for event in list(self._feed.events)
                  if event.kind.startswith(_WARNINGS) and (event.time_ns, event.kind) not in self._read]  # fmt: skip
        if [event.time_ns for event in unread] == getattr(self, "_warned", None):
            return
        self._warned = [event.time_ns for event in unread]
        self._warnings.clear()
        with self._warnings:
            for event in unread[-4:]:
                with ui.element("div").classes("warning"):
                    ui.label(f"{_clock(event.time_ns)} {event.message}")
                    ui.button("Read", on_click=self._reader((event.time_ns, event.kind))).props("flat dense no-caps")

    def _reader(self, which: tuple[int, str]) -> Callable[[], None]:
        return lambda: self._read.add(which)

    def _tell_events(self) -> None:
        events = list(self._feed.events)[-12:][::-1]
        if [event.time_ns for event in events] == getattr(self, "_told", None):
            return
        self._told = [event.time_ns for event in events]
        self._events.clear()
        with self._events:
            for event in events:
                with ui.element("li"):
                    ui.label(f"{_clock(event.time_ns)}  {event.message}")

    # --- control ---

    def _build_control(self) -> None:
        ui.label("Control").classes("heading")
        with ui.element("div").classes("tools"):
            field = ui.number("Field (mT)", format="%.3f").props("dense").classes("narrow")
            _button("Set", lambda: self._to_field("set_field", "Set the field to", "field_mT", field.value))
            swing = ui.number("Demagnetise from (mT)", format="%.1f").props("dense").classes("narrow")
            _button("Go", lambda: self._to_field("demagnetise", "Demagnetise from", "amplitude_mT", swing.value))
        with ui.element("div").classes("tools"):
            note = ui.input("Note").props("dense").classes("wide")
            _button("Write", lambda: self._ask("mark", message=note.value or ""))
            _button("Background", lambda: self._ask("take_background"))
        with ui.element("div").classes("tools"):
            _button("Pause programme", lambda: self._ask("pause"))
            _button("Resume", lambda: self._ask("resume"))
            _button(
                "Abort programme", lambda: self._sure("abort", "Abort the programme? The field is made safe."), "red"
            )
            _button("Stop recording", lambda: self._sure("stop", "End the run and its recording?"), "red")

    async def _to_field(self, do: str, question: str, key: str, field_mT: float | None) -> None:
        if field_mT is None:
            ui.notify("a field is missing", type="warning")
            return
        await self._sure(do, f"{question} {field_mT:g} mT?", **{key: field_mT})

    async def _ask(self, do: str, **values: object) -> None:
        assert self._asker
        try:
            await self._asker(do, **values)
        except (ControlError, SkysegError) as error:
            ui.notify(str(error), type="negative", multi_line=True, close_button="Close", timeout=0)
        else:
            ui.notify(f"{do.replace('_', ' ')}: accepted", type="positive")

    async def _sure(self, do: str, question: str, **values: object) -> None:
        """Ask first."""
        with ui.dialog() as dialog, ui.card():
            ui.label(question)
            with ui.row():
                ui.button("Yes", on_click=lambda: dialog.submit(True)).props("no-caps")
                ui.button("No", on_click=lambda: dialog.submit(False)).props("outline no-caps autofocus")
        if await dialog:
            await self._ask(do, **values)


def _button(text: str, action: Callable[[], Any], colour: str = "primary") -> ui.button:
    return ui.button(text, on_click=action).props(f"outline no-caps dense color={colour}")


def _state(feed: Feed) -> tuple[str, str]:
    """How the service is, in words, and their colour."""
    if feed.problem:
        return feed.problem, _RED
    if feed.ended is not None:
        good = feed.ended.status in ("ok", "stopped")
        told = f"the run is over: {feed.ended.status}" + (f", {feed.ended.message}" if feed.ended.message else "")
        return told, _GREEN if good else _RED
    if feed.header is None:
        return f"waiting for a service at {feed.address}", _AMBER
    if feed.silent_s > SILENT_S:
        return f"the service has not spoken for {feed.silent_s:.0f} s", _RED
    return "live", _GREEN


def _label(feed: Feed, name: str) -> str:
    names = {"count": "skyrmions", "latency_ms": "answer after (ms)"}
    quantity = feed.quantities.get(name)
    return names.get(name) or (quantity.label if quantity else name)


def _clock(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9).strftime("%H:%M:%S")


def _points(x: np.ndarray, y: np.ndarray, name: str) -> list[list[float | None]]:
    return [[_plain(a), _plain(b)] for a, b in zip(x.tolist(), y.tolist(), strict=True)]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)


def _axis(name: str) -> dict[str, Any]:
    return {"type": "value", "name": name, "nameLocation": "middle", "nameGap": 26, "scale": True,
            "splitLine": {"lineStyle": {"color": "#2a333c"}}, "axisLabel": {"color": "#b8c2cc"}}  # fmt: skip


def _chart() -> dict[str, Any]:
    line = {"type": "line", "data": [], "showSymbol": False, "symbolSize": 5, "lineStyle": {"width": 1.5}}
    return {
        "animation": False, "backgroundColor": "transparent", "color": ["#E69F00", "#56B4E9"],
        "textStyle": {"color": "#c8d0d8"}, "grid": {"left": 58, "right": 16, "top": 26, "bottom": 40},
        "legend": {"show": False, "top": 0, "textStyle": {"color": "#c8d0d8"}},
        "xAxis": _axis("time (s)"), "yAxis": {**_axis("skyrmions"), "nameGap": 42},
        "series": [{**line, "name": "rising"}, {**line, "name": "falling", "type": "scatter"}],
    }  # fmt: skip


def _histogram() -> dict[str, Any]:
    return {
        "animation": False, "backgroundColor": "transparent", "color": ["#56B4E9"], "textStyle": {"color": "#c8d0d8"},
        "grid": {"left": 58, "right": 16, "top": 10, "bottom": 40},
        "xAxis": {"type": "category", "data": [], "name": "diameter (px)", "nameLocation": "middle", "nameGap": 26,
                  "axisLabel": {"color": "#b8c2cc"}},
        "yAxis": {**_axis("skyrmions"), "nameGap": 42, "scale": False},
        "series": [{"type": "bar", "data": [], "barCategoryGap": "8%"}],
    }  # fmt: skip
