"""What people see on the terminal: the state of a run, its summary, a stream, a file."""

import io
import math
import os
import select
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TextIO, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from realtime_skyseg.experiment import Experiment, report
from realtime_skyseg.pipeline import STAGES, Pipeline
from realtime_skyseg.quantities import on_sample
from realtime_skyseg.records import Skipped, printable
from realtime_skyseg.service import Service, Summary
from realtime_skyseg.service.summary import range_of
from realtime_skyseg.storage import Run
from realtime_skyseg.streaming import EventMessage, HeaderMessage, ImageMessage, Message, SeriesEndMessage, Subscriber

#: Between two plain lines where the output is no terminal.
_LINE_S = 1.0


class RunDisplay:
    """Shows a running pipeline: a table that renews itself on a terminal, else a line a second."""

    def __init__(self, console: Console, live: Live | None, service: Service | None = None) -> None:
        self._service = service
        self._keys = Keys()
        self._console = console
        self._live = live
        self._next_line = 0.0

    def __call__(self, pipeline: Pipeline) -> None:
        """Show what the camera had to say, and the state of now."""
        while pipeline.notices:
            self._console.print(pipeline.notices.popleft(), soft_wrap=True)
        experiment = self._service.experiment if self._service else None
        state = _state(pipeline)
        if experiment:
            state.append(("experiment", _where(experiment)))
            if self._live:
                state.append(("keys", "p pause, r resume, a abort"))
                self._obey(experiment)
        if self._live:
            self._live.update(_state_table(state), refresh=True)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_S
            self._console.print("  ".join(f"{name} {value}" for name, value in state), soft_wrap=True)

    def _obey(self, experiment: Experiment) -> None:
        asks = {"p": experiment.pause, "r": experiment.resume, "a": experiment.abort}
        for key in self._keys.pressed():
            if key in asks:
                asks[key]()

    def __enter__(self) -> "RunDisplay":
        if self._live:
            self._keys.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._keys.close()


class Keys:
    """Keys pressed on the terminal, without waiting for them and without Enter."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def open(self) -> None:
        """Begin to take single keys, where standard input is a terminal."""
        if sys.platform != "win32" and sys.stdin.isatty():
            import termios
            import tty

            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)

    def pressed(self) -> str:
        """The keys since the last call."""
        keys = ""
        if sys.platform == "win32":
            import msvcrt

            while msvcrt.kbhit():
                keys += msvcrt.getwch()
        elif self._before is not None:
            while select.select([sys.stdin], [], [], 0)[0] and (key := os.read(sys.stdin.fileno(), 1)):
                keys += key.decode(errors="replace")
        return keys

    def close(self) -> None:
        """Give the terminal back as it was."""
        if sys.platform != "win32" and self._before is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)
            self._before = None


def _where(experiment: Experiment) -> str:
    status = experiment.status()
    step = "" if status["step"] is None else f", step {status['step']} of {status['steps']} ({status['part']})"
    target = "" if status["target_mT"] is None else f" to {status['target_mT']:.4g} mT"
    return f"{status['state']}{step}{target}, {status['decisions']} decisions"


class _Console(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        """Without what would command the terminal, as texts of files and clients may hold it."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)


class _Patient(io.TextIOBase):
    """Standard output that outlives its reader: a recording goes on where a terminal or a pipe is gone."""

    def __init__(self) -> None:
        self._out: TextIO | None = sys.stdout

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return sys.stdout.encoding

    def _try(self, work: Callable[[TextIO], int]) -> int:
        with suppress(OSError, ValueError):
            return work(self._out) if self._out else 0
        self._out = None
        return 0

    def write(self, text: str) -> int:
        return self._try(lambda out: out.write(text))

    def flush(self) -> None:
        self._try(lambda out: out.flush() or 0)

    def isatty(self) -> bool:
        return self._out is not None and self._out.isatty()

    def fileno(self) -> int:
        return sys.stdout.fileno()


def console() -> Console:
    """Standard output. Markup is off: paths and messages may have brackets of their own."""
    return _Console(file=cast(IO[str], _Patient()), markup=False)


@contextmanager
def run_display(console: Console, service: Service | None = None) -> Iterator[RunDisplay]:
    """A display for `Service.run`; with the service also of its field programme, which then obeys keys."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live, RunDisplay(console, live, service) as display:
            yield display
    else:
        yield RunDisplay(console, None, service)


def show_summary(console: Console, summary: Summary) -> None:
    """Print how a run went."""
    frames = summary.frames
    table = Table(title=f"run {summary.status}", show_header=False, title_justify="left")
    table.add_row("received", str(frames["received"]))
    table.add_row("analysed", _with_causes(frames["analysed"], frames["not_analysed"]))
    table.add_row("written", _with_causes(frames["written"], frames["not_written"]))
    if frames["camera_lost"]:
        table.add_row("lost by the camera", str(frames["camera_lost"]))
    table.add_row("rate", f"{summary.rate_hz:.1f} frames/s for {summary.duration_s:.1f} s")
    table.add_row("engine", f"{summary.engine} ({summary.precision}) on {summary.device}, model {summary.model}")
    if judged := range_of(summary.analysers):
        table.add_row("range", judged[1])
    table.add_row("run file", "\n".join(summary.run_files))
    console.print(table)
    console.print(_latency_table(summary.latency_ms))
    if summary.message:
        console.print(f"{summary.status}: {summary.message}", style="bold red", soft_wrap=True)


#: A service says something at least every `stream.heartbeat_s`, of 1 s unless it is set.
_SILENT_S = 5.0


def show_stream(console: Console, subscriber: Subscriber, once: bool) -> None:
    """Print a stream until its end (`once`), or for ever."""
    console.print(f"waiting for {subscriber.address} (Ctrl-C leaves)")
    next_line, heard_s, silent = 0.0, time.monotonic(), False
    while True:
        message = subscriber.receive(timeout_s=0.5)
        if message is None:
            if not silent and time.monotonic() - heard_s > _SILENT_S:
                silent = True
                console.print(
                    f"nothing from {subscriber.address} for {_SILENT_S:.0f} s: is the service running, and does it ask "
                    "for keys (--keys)?",
                    soft_wrap=True,
                )
            continue
        heard_s, silent = time.monotonic(), False
        if isinstance(message, ImageMessage):
            if not console.is_terminal and time.monotonic() < next_line:
                continue
            next_line = time.monotonic() + _LINE_S
        line = _line(message, subscriber)
        if line:
            fleeting = console.is_terminal and isinstance(message, ImageMessage)
            console.print(
                line.ljust(console.width - 1) if fleeting else line, end="\r" if fleeting else "\n", soft_wrap=True
            )
        if once and isinstance(message, SeriesEndMessage):
            return


#: Events of a run that are printed.
_MOST_EVENTS = 40

#: A run that is going on writes at least this often, unless its frames are rare.
_FRESH_S = 70.0


def _run_state(run: Run) -> str:
    """Whether a run has finished, is going on, or was left behind, as far as its file tells."""
    if run.state == "finished":
        return f"finished, exit status {run.exit_status}"
    age_s = time.time() - run.path.stat().st_mtime
    if age_s < _FRESH_S:
        return f"unfinished: written {max(age_s, 0):.0f} s ago, so it is going on or has just been killed"
    ago = f"{age_s / 3600:.1f} h" if age_s > 5400 else f"{age_s / 60:.0f} min"
    return f"unfinished: left by a kill, last written {ago} ago (skyseg recover {run.path})"


def show_run(console: Console, run: Run) -> None:
    """Print what a run file holds."""
    table = Table(title=str(run.path), show_header=False, title_justify="left")
    rows = run.table
    n = run.n_frames
    analysed = rows[rows["skipped"] == Skipped.NOT_SKIPPED]
    table.add_row("state", _run_state(run))
    table.add_row("frames", f"{n} of {run.raw.shape[1]}x{run.raw.shape[2]} {run.raw.dtype}")
    table.add_row("written", str(int(rows["written"].sum())))
    table.add_row("analysed", str(len(analysed)))
    if len(analysed):
        counts = analysed["count"][np.isfinite(analysed["count"])]
        if len(counts) < len(analysed):
            table.add_row("frames that show nothing", str(len(analysed) - len(counts)))
        if len(counts):
            table.add_row("skyrmions per frame", f"{counts.min():.0f} to {counts.max():.0f}, mean {counts.mean():.1f}")
        if len(counts) and (size := run.pixel_size_um) is not None:
            area = run.raw.shape[1] * run.raw.shape[2] * size**2
            table.add_row("skyrmions per um^2", f"{counts.mean() / area:.4g} in a frame of {area:.4g} um^2")
    times = rows["time_s"][np.isfinite(rows["time_s"])]
    if len(times) > 1:
        table.add_row("duration", f"{times[-1] - times[0]:.2f} s")
    elif n > 1:
        table.add_row("duration", "unknown: the images have no times")
    for name, value in run.provenance.items():
        if value and name not in ("versions", "python"):
            table.add_row(name.replace("_", " "), value)
    console.print(table)
    _show_quantities(console, run, analysed)
    events = run.events
    shown = events if len(events) <= _MOST_EVENTS else [*events[: _MOST_EVENTS - 10], None, *events[-10:]]
    for event in shown:
        if event is None:
            kinds = Counter(one["kind"] for one in events[_MOST_EVENTS - 10 : -10])
            left_out = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
            console.print(f"... {len(events) - _MOST_EVENTS} events in between: {left_out}", soft_wrap=True)
        else:
            console.print(f"event {event['kind']}, frame {event['frame']}: {event['message']}", soft_wrap=True)
    latency_ms = (run.summary or {}).get("latency_ms")
    if isinstance(latency_ms, dict) and all(isinstance(latency_ms.get(stage), dict) for stage in STAGES):
        console.print(_latency_table(latency_ms))  # a recovered run has none


def _show_quantities(console: Console, run: Run, analysed: NDArray[np.void]) -> None:
    """What analysers found, with unit and meaning."""
    table = Table("analysers", "mean", "from", "to", "what it is", box=None, padding=(0, 1))
    for name, quantity in run.quantities.items():
        values = analysed[name][np.isfinite(analysed[name])]
        if run.pixel_size_um is not None and (there := on_sample(quantity, run.pixel_size_um)):
            quantity, values = there[0], values * there[1]
        shown = [f"{value:.4g}" for value in (values.mean(), values.min(), values.max())] if len(values) else ["-"] * 3
        table.add_row(quantity.label, *shown, printable(quantity.meaning))
    for name in run.analysers:
        rows, maps = run.analyser(name)
        found = ", ".join(key for key in (*(rows.dtype.names or ())[1:], *maps))
        table.add_row(name, "", "", "", printable(f"{found}: {len(rows)} times"))
    if table.row_count:
        console.print(table)


def show_experiment(console: Console, run: Run) -> None:
    """Print the steps of a field programme, and where skyrmions came and vanished.

    Raises:
        RunFileError: the run had none.
    """
    found, experiment = report(run), run.experiment
    assert experiment is not None
    heads = ("step", "part", "field (mT)", "way", "frames", "skyrmions", "px", "area", "")
    table = Table(*heads, box=None, padding=(0, 1))
    steps = experiment["steps"]
    shown = steps if len(steps) <= 60 else np.concatenate([steps[:30], steps[-30:]])
    for row in shown:
        way = {1: "up", -1: "down"}.get(int(row["direction"]), "")
        end = row["end"].decode()
        notes = [*([end] if end != "complete" else []), *(["resumed"] if row["resumed"] else [])]
        table.add_row(
            str(row["number"]), row["part"].decode(), f"{row['field_mT']:.4g}", way, str(row["frames"]),
            _spread(row, "count"), f"{row['diameter_px']:.3g}", f"{row['area_fraction']:.3g}", ", ".join(notes),
        )  # fmt: skip
    console.print(table)
    if len(shown) < len(steps):
        console.print(f"{len(steps) - len(shown)} steps in the middle are not shown: skyseg table {run.path} --steps")
    console.print(f"{found['decisions']} decisions of rules")
    for one in found["fields"]:
        way = "rising" if one["direction"] > 0 else "falling"
        field = f"{one['field_mT']:.4g} ± {one['uncertainty_mT']:.2g} mT"
        console.print(f"{one['kind']} at {field} ({way} field, {one['n']} times)")


def _spread(row: np.void, name: str) -> str:
    mean, spread = float(row[name]), float(row[f"{name}_std"])
    if not math.isfinite(mean):
        return "-"
    return f"{mean:.4g}" + (f" ± {spread:.2g}" if math.isfinite(spread) else "")


def _state(pipeline: Pipeline) -> list[tuple[str, str]]:
    counters, last = pipeline.counters, pipeline.last
    rows = [
        ("received", str(counters.received)),
        ("analysed", _with_causes(counters.analysed, counters.not_analysed)),
        ("written", _with_causes(counters.written, counters.not_written)),
        ("rate", f"{pipeline.rate_hz:.1f}/s"),
    ]
    if last:
        rows.append(("skyrmions", _known(last.segmentation.count)))
        rows.append(("stripes", _known(last.segmentation.stripes)))
        domain = last.values.get("domain", math.nan)
        if math.isfinite(domain):
            rows.append(("range", f"{domain:.2f}" + ("" if domain >= 0.5 else ", out of range")))
        if math.isfinite(last.frame.field_mT):
            rows.append(("field", f"{last.frame.field_mT:.3f} mT"))
        total = pipeline.latency["total"].percentiles_ms()
        rows.append(("latency", f"p50 {total['p50']} ms, p99 {total['p99']} ms"))
    return rows


def _known(value: int | None) -> str:
    """A number, or a dash where the frame shows nothing."""
    return "-" if value is None else str(value)


def _state_table(state: list[tuple[str, str]]) -> Table:
    table = Table(show_header=False)
    for row in state:
        table.add_row(*row)
    return table


def _latency_table(latency_ms: dict[str, dict[str, float | None]]) -> Table:
    table = Table("stage (ms)", "p50", "p99", "p99.9", "max")
    for stage in STAGES:
        values = latency_ms[stage]
        table.add_row(stage, *("-" if value is None else f"{value:.2f}" for value in values.values()))
    return table


def _with_causes(n: int, causes: dict[str, int]) -> str:
    if not causes:
        return str(n)
    return f"{n} (not: " + ", ".join(f"{count} {cause}" for cause, count in sorted(causes.items())) + ")"


def _line(message: Message, subscriber: Subscriber) -> str:
    match message:
        case HeaderMessage():
            height, width = message.shape
            engine = f"model {message.model} on {message.engine}"
            return f"run {message.run[:8]}: {height}x{width}, {engine}, file {message.filename}"
        case ImageMessage():
            age_ms = (time.time_ns() - message.received_ns) / 1e6
            field = "" if message.field_mT is None else f"  field {message.field_mT:.3f} mT"
            area = "-" if message.area_fraction is None else f"{message.area_fraction:.3f}"
            return (
                f"frame {message.frame}  skyrmions {_known(message.count)}  stripes {_known(message.stripes)}"
                f"  area {area}{field}  age {age_ms:.0f} ms  lost {subscriber.lost}"
            )
        case EventMessage():
            return f"event {message.kind}: {message.message}"
        case SeriesEndMessage():
            frames = message.frames
            return (
                f"run ended: {message.status}  received {frames.get('received')}  analysed {frames.get('analysed')}"
                f"  written {frames.get('written')}  {message.message}"
            )
        case _:
            return ""
