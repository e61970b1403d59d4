"""One viewer's page of a run, live or finished: the frame, plots, the state in words, the programme, and control."""

import csv
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from nicegui import ui

from realtime_skyseg.dashboard import charts
from realtime_skyseg.dashboard.feed import SILENT_S, Feed
from realtime_skyseg.dashboard.finished import FinishedRun
from realtime_skyseg.dashboard.hub import Hub, Source
from realtime_skyseg.errors import ControlError, SkysegError
from realtime_skyseg.records import Event

_STATIC = Path(__file__).with_name("static")

#: The page's numbers and plots are renewed so often; a finished run plays at such intervals.
_NUMBERS_S, _PLOTS_S, _PLAY_S = 0.5, 1.0, 0.1

#: Without a frame for so long, a run is not called live.
_STILL_S = 4.0

_RED, _GREEN, _AMBER = "#ff7b7b", "#7bd88f", "#ffd166"

#: Kinds of events that are worth a warning that stays until it is read.
_WARNINGS = (
    "fault", "camera_lost", "camera_hangs", "camera_gone", "camera_frozen", "lost", "disk", "recorder_", "not_written",
    "field_fault", "field_unsafe", "field_stale", "field_stands", "analyser_", "background_missing", "background_over",
    "stream_crowded", "stream_flooded", "experiment_refused", "frame_blank",
    "out_of_range", "not_calibrated", "count_jump",
)  # fmt: skip

#: How kinds of events end that say that all is well again.
_GOOD = ("_back", "_end")

#: Columns of a row of objects that are no quantity to look at.
_PLACES = ("x", "y", "left", "top", "width", "height", "kind", "border")

#: What is shown of the table of steps: column, its heading, digits.
_STEPS = (
    ("part", "part", None), ("target_mT", "asked (mT)", 3), ("field_mT", "field (mT)", 3), ("frames", "frames", 0),
    ("count", "skyrmions", 1), ("count_std", "±", 1), ("stripes", "stripes", 1), ("end", "end", None),
)  # fmt: skip


def frame_of_page(hub: Hub, here: str, titled: bool = True) -> ui.element:
    """The head of every page, with the ways to the others. Gives the element that a page may add to."""
    ui.add_head_html(f"<style>{(_STATIC / 'page.css').read_text()}</style>")
    ui.run_javascript('document.documentElement.lang = "en"')
    ui.colors(primary="#2b6cb0")
    head = ui.element("header").classes("top")
    with head:
        if titled:  # else the page has a title of its own
            ui.label("skyseg").classes("name").props("role=heading aria-level=1")
        with ui.element("nav").classes("ways").props('aria-label="Pages"'):
            ways = {"/": "Live", "/runs": "Finished runs", "/try": "Try an image", "/start": "Start"}
            for where, name in ways.items():
                if where == "/" and hub.feed is None:
                    continue
                link = ui.link(name, where)
                if where == here:
                    link.props("aria-current=page")
    return head


class Page:
    """A viewer's page.

    Args:
        hub: what all viewers share.
        source: the run.
        name: of the source, by which the browser asks for its frames.
    """

    def __init__(self, hub: Hub, source: Source, name: str) -> None:
        self._hub, self._source, self._name = hub, source, name
        self._read: dict[str, int] = {}  # kinds of warnings, and until when they were read
        self._told: dict[str, Any] = {}  # what was written last, by place
        self._control = hub.may_control and isinstance(source, Feed)

    def build(self, here: str) -> None:
        """Lay it out."""
        with frame_of_page(self._hub, here):
            self._state = ui.label("").classes("state").props("role=status")
            ui.label("").classes("count").props("id=skyseg-count")  # of the frame that is seen: the view writes it
            if self._control:
                button = ui.button("Safe field", on_click=lambda: self._ask("safe_field"))
                button.props("color=red-10 unelevated no-caps size=lg")
        self._warnings = ui.element("div").classes("warnings").props("role=alert")
        with ui.element("div").classes("body"):
            with ui.element("section").classes("live").props('aria-label="Frame"'):
                self._build_view()
            with ui.element("section").classes("side").props('aria-label="Numbers"'):
                self._build_side()
        ui.timer(_NUMBERS_S, self._renew)
        ui.timer(_PLOTS_S, self._plot)

    # --- the frame ---

    def _build_view(self) -> None:
        source = self._source
        with ui.element("div").classes("tools"):
            if isinstance(source, FinishedRun):
                self._build_reel(source)
            else:
                self._pause = plain_button("Pause", self._toggle)
                plain_button("Step", lambda: self._tell("{paused: true, step: true}"))
            ui.checkbox("Outlines", value=True, on_change=lambda e: self._tell(f"{{outlines: {json.dumps(e.value)}}}"))
            self._colour = ui.select({"": "no colours"}, value="", label="Colour by", on_change=self._colour_by)
            self._colour.classes("colour").props("dense options-dense")
            self._kind = ui.select({False: "as segmented", True: "raw frame"}, value=False, label="Image")
            self._kind.classes("colour").props("dense options-dense")
            self._kind.on_value_change(lambda e: self._tell(f"{{raw: {json.dumps(bool(e.value))}}}"))
            bright = {0: "99 % of pixels", 5: "90 %", 15: "70 %", -1: "by hand"}
            light = ui.select(bright, value=0, label="Brightness").classes("colour").props("dense options-dense")
            ends = ui.range(min=0, max=100, value={"min": 0, "max": 100}).classes("ends")
            ends.props('aria-label="Dark and bright end"').bind_visibility_from(light, "value", lambda v: v == -1)
            light.on_value_change(lambda e: self._tell(f"{{percent: {e.value}}}"))
            ends.on_value_change(lambda e: self._tell(f"{{low: {e.value['min'] / 100}, high: {e.value['max'] / 100}}}"))
            plain_button("Fit", lambda: self._tell("{view: {x: 0, y: 0, zoom: 1}}"))
            plain_button("Save picture", lambda: ui.run_javascript("window.skysegView?.save()"))
        view(self._name)

    def _build_reel(self, run: FinishedRun) -> None:
        """Choose the frame of a finished run."""
        last = len(run.frames) - 1
        playing = ui.timer(_PLAY_S, lambda: reel.set_value((int(reel.value) + 1) % (last + 1)), active=False)
        play = plain_button("Play", lambda: None)

        def toggle() -> None:
            playing.active = not playing.active
            play.text = "Hold" if playing.active else "Play"

        play.on_click(toggle)
        reel = ui.slider(min=0, max=max(last, 1), value=0).classes("reel").props('label aria-label="Frame"')
        reel.on_value_change(lambda e: run.show(min(int(e.value), last)))
        shown = ui.label("").classes("small")
        ui.timer(_PLAY_S, lambda: shown.set_text(f"frame {run.shown.frame} of {run.frames[-1]}" if run.shown else ""))
        plain_button("Open in napari", lambda: self._napari(run))

    def _napari(self, run: FinishedRun) -> None:
        """In a process of its own, which stays when the page goes."""
        frame = run.shown.frame if run.shown else run.frames[0]
        command = [sys.executable, "-m", "realtime_skyseg", "napari", str(run.path), "--frame", str(frame)]
        with tempfile.TemporaryFile() as log:
            child = subprocess.Popen(command, stderr=log, start_new_session=True)
            try:
                child.wait(1.5)  # at once it says that napari is missing
            except subprocess.TimeoutExpired:
                ui.notify(f"frame {frame} opens in napari", type="positive")
                return
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()
        ui.notify(said[-1] if said else "napari has ended", type="negative", timeout=0, close_button="Close")

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

    def _build_side(self) -> None:
        with ui.tabs().props("dense no-caps align=left").classes("tabs") as tabs:
            plots, state = ui.tab("Plots"), ui.tab("State")
            programme = ui.tab("Programme") if isinstance(self._source, Feed) else None
            control = ui.tab("Control") if self._control else None
        self._tabs = tabs
        with ui.tab_panels(tabs, value="Plots").classes("panels"):
            with ui.tab_panel(plots).classes("panel"):
                self._build_plots()
            with ui.tab_panel(state).classes("panel"):
                self._words = ui.element("dl").classes("words")
                self._latency = charts.draw(charts.latency_chart(), "Latency by stage")
            if programme:
                with ui.tab_panel(programme).classes("panel"):
                    self._build_programme()
            if control:
                with ui.tab_panel(control).classes("panel"):
                    self._build_control()
        self._short = ui.element("dl").classes("words")
        ui.label("Events").classes("heading").props("role=heading aria-level=2")
        self._events = ui.element("ol").classes("events").props("tabindex=0 aria-label=Events")

    def _build_plots(self) -> None:
        with ui.element("div").classes("tools"):
            self._quantity = ui.select({"count": "skyrmions"}, value="count", label="Plot").classes("colour")
            self._quantity.props("dense options-dense")
            self._against = ui.toggle({"time": "over time", "field": "over field"}, value="time")
            self._against.props("dense no-caps unelevated")
            plain_button("Save numbers", self._save_numbers)
        self._chart = charts.draw(charts.line_chart(), "Plot of a quantity")
        self._of_objects = ui.select({"diameter": "diameter"}, value="diameter", label="Histogram of").classes("colour")
        self._of_objects.props("dense options-dense")
        self._histogram = charts.draw(charts.histogram_chart(), "Histogram of the frame's skyrmions", "low")

    def _build_programme(self) -> None:
        self._plan = ui.label("This run has no field programme.").classes("small")
        self._course = charts.draw(charts.programme_chart(), "Planned and measured field over time")
        ui.label("Last decisions").classes("heading")
        self._decisions = ui.element("ol").classes("events").props("tabindex=0 aria-label=Decisions")
        ui.label("Steps").classes("heading")
        self._steps = ui.element("div").classes("steps").props("tabindex=0 role=region aria-label=Steps")

    def _plot(self) -> None:
        source, tab = self._source, self._tabs.value
        about, shown = source.about, source.shown
        if tab == "Plots":
            name = self._quantity.value or "count"
            over_field = self._against.value == "field"
            state = (name, over_field, len(source.series.columns["time_s"]))
            if self._told.get("plot") != state:
                self._told["plot"] = state
                charts.fill_line(self._chart.options, source.series, name, charts.label_of(about, name), over_field)
                self._chart.update()
            which = (self._of_objects.value, shown.frame if shown else -1)
            if shown is not None and self._told.get("histogram") != which:
                self._told["histogram"] = which
                size = about.pixel_size_um if about else None
                charts.fill_histogram(self._histogram.options, shown, self._of_objects.value or "diameter", size)
                self._histogram.update()
        elif tab == "State":
            charts.fill_latency(self._latency.options, self._hub.status.get("latency_ms") or {})
            self._latency.update()
        elif tab == "Programme":
            self._plot_programme()

    def _plot_programme(self) -> None:
        course, status = self._hub.programme, self._hub.status.get("experiment")
        if not course or not status:
            return
        said = [f"the programme {_DOES[status['state']]}" if status["state"] in _DOES else status["state"]]
        said += [f"part {status['part']}"] if status["part"] else []
        said += [f"step {status['step'] + 1} of {status['steps']}"] if status["step"] is not None else []
        said += [f"goes to {status['target_mT']:.3f} mT"] if status["target_mT"] is not None else []
        self._plan.text = ", ".join(said)
        time_s, field = self._source.series.arrays("time_s", "field_mT")
        since = (getattr(self._source, "first_ns", 0) - course["began_ns"]) / 1e9
        charts.fill_programme(self._course.options, course["planned"], time_s + since, field)
        self._course.update()
        rows = course["steps"][-30:][::-1]
        if self._changed("steps", [row["number"] for row in rows]):
            self._steps.clear()
            with self._steps, ui.element("table"):
                with ui.element("tr"):
                    for _, heading, _ in _STEPS:
                        with ui.element("th"):
                            ui.label(heading)
                for row in rows:
                    with ui.element("tr"):
                        for name, _, digits in _STEPS:
                            with ui.element("td"):
                                ui.label(_text(row.get(name), digits))
        decisions = [event for event in list(self._source.events) if event.kind == "decision"][-8:][::-1]
        if self._changed("decisions", [event.time_ns for event in decisions]):
            self._decisions.clear()
            with self._decisions:
                for event in decisions:
                    with ui.element("li"):
                        ui.label(f"{_clock(event.time_ns)}  {_decision(event.message)}")

    def _save_numbers(self) -> None:
        """What is plotted, all of it, as CSV."""
        columns = self._source.series.columns
        names = list(dict.fromkeys(["time_s", "field_mT", self._quantity.value or "count"]))
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(names)
        writer.writerows(zip(*(columns.get(name, []) for name in names), strict=False))
        ui.download(out.getvalue().encode(), f"{self._quantity.value}.csv")

    def _changed(self, place: str, what: object) -> bool:
        if self._told.get(place) == what:
            return False
        self._told[place] = what
        return True

    def _renew(self) -> None:
        text, colour = state_of(self._source)
        self._state.text = text
        self._state.style(f"color: {colour}")
        self._choices()
        self._tell_words()
        self._tell_warnings()
        self._tell_events()

    def _choices(self) -> None:
        """What there is to plot and to colour by."""
        about, shown = self._source.about, self._source.shown
        names = [*(about.quantities if about else ()), "latency_ms", "field_mT"]
        plotted = {name: charts.label_of(about, name) for name in names}
        if plotted != self._quantity.options:
            self._quantity.set_options(plotted)
        if shown is not None:
            found = [name for name in shown.objects.dtype.names or () if name not in _PLACES]
            colours = {"": "no colours"} | {name: name.replace("_", " ") for name in found}
            if colours != self._colour.options:
                self._colour.set_options(colours)
                self._of_objects.set_options({name: name.replace("_", " ") for name in found})
        if about and about.pixel_size_um is not None and self._changed("size", about.pixel_size_um):
            self._tell(f"{{pixelSize: {about.pixel_size_um}}}")

    def _tell_words(self) -> None:
        if self._changed("short", words := short_words(self._source)):
            _write(self._short, words)
        if self._changed("words", words := long_words(self._source, self._hub.status)):
            _write(self._words, words)

    def _tell_warnings(self) -> None:
        """Those that nobody has read yet: of each kind the newest, and how many there are."""
        unread: dict[str, list[Event]] = {}
        for event in list(self._source.events) if self._source.live else ():
            worth = event.kind.startswith(_WARNINGS) and not event.kind.endswith(_GOOD)
            if worth and event.time_ns > self._read.get(event.kind, 0):
                unread.setdefault(event.kind, []).append(event)
        if not self._changed("warnings", {kind: events[-1].time_ns for kind, events in unread.items()}):
            return
        self._warnings.clear()
        with self._warnings:
            for kind, events in unread.items():
                more = f" ({len(events) - 1} more of this kind)" if len(events) > 1 else ""
                with ui.element("div").classes("warning"):
                    ui.label(f"{_clock(events[-1].time_ns)} {events[-1].message}{more}")
                    button = ui.button("Read", on_click=self._reader(kind, events[-1].time_ns))
                    button.props("flat dense no-caps color=amber-3")

    def _reader(self, kind: str, time_ns: int) -> Callable[[], None]:
        return lambda: self._read.update({kind: time_ns})

    def _tell_events(self) -> None:
        events = [event for event in list(self._source.events) if event.kind != "decision"][-40:][::-1]
        if not self._changed("events", [event.time_ns for event in events]):
            return
        self._events.clear()
        with self._events:
            for event in events:
                with ui.element("li"):
                    ui.label(f"{_clock(event.time_ns)}  {event.message}")

    # --- control ---

    def _build_control(self) -> None:
        with ui.element("div").classes("tools"):
            field = ui.number("Field (mT)", format="%.3f").props("dense").classes("narrow")
            plain_button("Set", lambda: self._to_field("set_field", "Set the field to", field_mT=field.value))
            swing = ui.number("Demagnetise from (mT)", format="%.1f").props("dense").classes("narrow")
            plain_button("Go", lambda: self._to_field("demagnetise", "Demagnetise from", amplitude_mT=swing.value))
        with ui.element("div").classes("tools"):
            pulse = ui.number("In-plane pulse (mT)", format="%.1f").props("dense").classes("narrow")
            seconds = ui.number("for (s)", value=0.01, format="%.3f").props("dense").classes("narrow")
            plain_button("Pulse", lambda: self._to_field(
                "pulse", "Give an in-plane pulse of", in_plane_mT=pulse.value, seconds=seconds.value))  # fmt: skip
        with ui.element("div").classes("tools"):
            note = ui.input("Note").props("dense").classes("wide")
            plain_button("Write", lambda: self._ask("mark", message=note.value or ""))
            plain_button("Take background", lambda: self._ask("take_background"))
        with ui.element("div").classes("tools"):
            plain_button("Pause programme", lambda: self._ask("pause"))
            plain_button("Resume", lambda: self._ask("resume"))
            plain_button(
                "Abort programme", lambda: self._sure("abort", "Abort the programme? The field is made safe."), "red-4"
            )
            plain_button("Stop recording", lambda: self._sure("stop", "End the run and its recording?"), "red-4")

    async def _to_field(self, do: str, question: str, **values: float | None) -> None:
        if None in values.values():
            ui.notify("a number is missing", type="warning")
            return
        first = next(iter(values.values()))
        await self._sure(do, f"{question} {first:g} mT?", **values)

    async def _ask(self, do: str, **values: object) -> None:
        try:
            await self._hub.ask(do, **values)
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


def view(name: str) -> None:
    """The canvas with its legend; it draws the frames of the source of that name."""
    ui.html(
        '<canvas id="skyseg-live" tabindex="0" role="img" aria-label="Frame: plus and minus zoom, arrows move, '
        'zero fits"></canvas>', sanitize=False,
    ).classes("picture")  # fmt: skip
    with ui.element("div").classes("legend"):
        for kind, colour in (("skyrmion", "#E69F00"), ("stripe", "#56B4E9"), ("defect", "#009E73"),
                             ("outside", "#F0E442"), ("edge", "#CC79A7")):  # fmt: skip
            with ui.element("span"):
                ui.element("i").style(f"background: {colour}")
                ui.label(kind)
        ui.label("").classes("small").props("id=skyseg-scale")
    ui.label("Point at a skyrmion for its numbers.").classes("object").props("id=skyseg-object")
    ui.add_body_html(f"""<script type="module">
        import {{ begin }} from "/skyseg/live.js";
        begin({json.dumps(name)});
    </script>""")


#: What a programme does, by its state.
_DOES = {"runs": "runs", "paused": "is paused", "waits": "waits for a rule"}


def state_of(source: Source) -> tuple[str, str]:
    """How the service is, in words, and their colour."""
    if source.problem:
        return source.problem, _RED
    if isinstance(source, FinishedRun):
        status = source.ended[0] if source.ended else ""
        return f"a finished run: {source.path.name}" + (f", {status}" if status else ""), _GREEN
    if source.ended is not None:
        status, message = source.ended
        told = f"the run is over: {status}" + (f", {message}" if message else "")
        return told, _GREEN if status in ("ok", "stopped") else _RED
    if source.about is None:
        return f"waiting for a service at {source.address}", _AMBER
    if source.silent_s > SILENT_S:
        return f"the service has not spoken for {source.silent_s:.0f} s", _RED
    if isinstance(source, Feed) and source.still_s > _STILL_S:
        return f"no frame for {source.still_s:.0f} s", _AMBER
    return "live", _GREEN


def short_words(source: Source) -> dict[str, str]:
    """What is always told of a run."""
    frames, shown = source.counters, source.shown
    words: dict[str, str] = {}
    if frames:
        skipped = sum(frames.get("not_analysed", {}).values())
        lost = sum(frames.get("not_written", {}).values()) + frames.get("camera_lost", 0)
        words["Frames"] = f"{frames['received']} received, {frames['analysed']} analysed, {frames['written']} written"
        words["Skipped"] = f"{skipped} not analysed" + (f"; {lost} LOST" if lost else "; none lost")
    if shown:
        words["Field"] = "not known" if shown.field_mT is None else f"{shown.field_mT:.3f} mT"
        words["Stripes"] = "-" if shown.stripes is None else str(shown.stripes)
    domain = np.asarray(source.series.columns.get("domain", [])[-1:], np.float64)
    if np.isfinite(domain).all() and len(domain):
        words["Range"] = f"{domain[0]:.2f}, " + ("as the model knows it" if domain[0] >= 0.5 else "OUT OF RANGE")
    recent_s, answers = (source.series.columns.get(name, [])[-100:] for name in ("time_s", "latency_ms"))
    if source.live and len(recent_s) > 10:
        rate = (len(recent_s) - 1) / max(recent_s[-1] - recent_s[0], 1e-9)
        words["Rate"] = f"{rate:.1f} frames/s, answer after {np.nanmedian(answers):.0f} ms"
    return words


def long_words(source: Source, status: dict[str, Any]) -> dict[str, str]:
    """What else is known of a run, and of its service where it is live."""
    frames, about = source.counters, source.about
    words: dict[str, str] = {}
    if about:
        words |= {"File": about.filename, "Model": about.model, "Engine": about.engine}
        words["Pixel"] = "size not known" if about.pixel_size_um is None else f"{about.pixel_size_um:g} µm"
    if source.live and status:
        settled = "there" if status.get("field_settled") else "on its way"
        told = {
            "Folder": str(Path(status.get("run_file") or "").parent),
            "Disk": _said("{:.1f} GB left", status.get("disk_free_gb")),
            "Recorder": _said("{:.0%} of its queue is taken", status.get("recorder_fill")),
            "Magnet": _said(f"set to {{:.3f}} mT, {settled}", status.get("field_set_mT")),
            "Fault": status.get("fault") or "",
        }
        words |= {name: text for name, text in told.items() if text}
    if frames:
        causes = {**frames.get("not_analysed", {}), **frames.get("not_written", {})}
        words["Not done"] = ", ".join(f"{n} {cause.replace('_', ' ')}" for cause, n in causes.items() if n) or "none"
    if source.live:
        words["This page"] = f"{source.lost} messages missed" if source.lost else "misses nothing"
    return words


def _said(text: str, value: float | None) -> str:
    return "" if value is None else text.format(value)


def plain_button(text: str, action: Callable[[], Any], colour: str = "light-blue-3") -> ui.button:
    """A button as all of the page's are."""
    return ui.button(text, on_click=action).props(f"outline no-caps dense color={colour}")


def _write(place: ui.element, words: dict[str, str]) -> None:
    place.clear()
    with place:
        for name, value in words.items():
            with ui.element("dt"):
                ui.label(name)
            with ui.element("dd"):
                ui.label(value)


def _decision(message: str) -> str:
    """A decision, which is an event of JSON, in words."""
    try:
        told = json.loads(message)
        moved = f" ({told['old_mT']:.3f} to {told['new_mT']:.3f} mT)" if told.get("new_mT") is not None else ""
        return f"{told['rule']}: {told['action']}{moved}, {told['reason']}"
    except (ValueError, KeyError, TypeError):
        return message


def _text(value: object, digits: int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if digits is not None and isinstance(value, int | float) else str(value)


def _clock(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9).strftime("%H:%M:%S")
