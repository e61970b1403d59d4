"""What field programmes with rules reach on the twin, and how fast a decision becomes a field.

python benchmarks/experiment.py stop    [--seeds 5]                     adaptive steps against a fixed sweep
python benchmarks/experiment.py hold    [--seeds 3] [--targets 20 40]   a count is kept, with a stray field on the way
python benchmarks/experiment.py latency [--seconds 30]                  live: from the frame to the field on the device

`stop` and `hold` run in simulated time, so that a busy computer changes nothing: the film, the Kerr camera, the shipped
model, the experiment's machine and the guard's own magnet code, in one thread on one clock, with decisions that come
`--delay-ms` after the frame. `--truth` leaves camera and model out, and counts in the film itself. `latency` runs the
service with the settings of `configs/sweep_hold.yaml`, and reads the times at which the device was set.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from realtime_skyseg_simulator.film import FilmSample
from realtime_skyseg_simulator.kerr_camera import KerrCamera, KerrSettings
from realtime_skyseg_simulator.samples import FilmSampleSettings, class_mask

import realtime_skyseg as sky
from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.config import FieldSettings, PrepareSettings, load_config
from realtime_skyseg.experiment.orders import Demagnetise, GivePulse, Moment, Row, SetField, StandStill, Told
from realtime_skyseg.experiment.rules import seen
from realtime_skyseg.experiment.state_machine import StateMachine
from realtime_skyseg.field.magnet import Magnet
from realtime_skyseg.preparation import Preparation
from realtime_skyseg.programme import ExperimentSettings
from realtime_skyseg.records import Segmentation

CONFIGS = Path(__file__).parents[1] / "configs"

BACKGROUND_FRAMES = 64  # of the saturated film, with --prepare

HELD = 300  # frames before the stray field

SIZE_PX, FRAME_S, TICK_S = 512, 1 / 16, 1 / 80

ANNIHILATION_MT = 3.7


class Clock:
    """In place of the module `time` for the guard's magnet."""

    now_s = 1000.0

    def monotonic(self) -> float:
        """As of `time`."""
        return self.now_s

    def time_ns(self) -> int:
        """As of `time`."""
        return round(self.now_s * 1e9)


class Supply:
    """A supply in mT that does at once what it is told, and a coil for pulses."""

    unit, range, pulse_limit_mT = "mT", (-10.0, 10.0), (-60.0, 60.0)

    def __init__(self, clock: Clock, start_mT: float) -> None:
        self._clock = clock
        self.field_mT = start_mT
        self.description: dict[str, Any] = {}
        self._pulse = (0.0, -math.inf)

    def set(self, value: float) -> None:
        """As of `devices.FieldSource`, like the rest."""
        self.field_mT = value

    def read(self) -> float:
        """The output."""
        return self.field_mT

    def pulse(self, in_plane_mT: float, seconds: float) -> None:
        """Begin a pulse."""
        self._pulse = (in_plane_mT, self._clock.now_s + seconds)

    @property
    def in_plane_mT(self) -> float:
        """Of now."""
        return self._pulse[0] if self._clock.now_s <= self._pulse[1] else 0.0

    def close(self) -> None:
        """Nothing to release."""


@dataclass
class Course:
    """What happened, frame by frame."""

    status: str
    message: str
    counts: np.ndarray
    film: np.ndarray  # what was there: counted in the magnetisation
    fields_mT: np.ndarray
    decisions: list[dict[str, Any]]


def run(
    tree: dict[str, Any], seed: int, eyes: Callable[[np.ndarray], Segmentation], start_mT: float, frames: int,
    delay_s: float, stray: Callable[[int, list[dict[str, Any]]], float | None] = lambda *_: 0.0,
) -> Course:  # fmt: skip
    """One experiment in simulated time. `stray`: the stray field in mT by frame and decisions so far; None ends it."""
    limits = FieldSettings.model_validate(
        {"driver": "manual", "limit_mT": [-6, 6], "slew_mT_per_s": 10, "tolerance_mT": 0.1, "settle_s": 0.5,
         "pulse_limit_mT": [-60, 60]}
    )  # fmt: skip
    sample = FilmSample(FilmSampleSettings(seed=seed, start="saturated", start_mT=start_mT), SIZE_PX, SIZE_PX)
    clock = Clock()
    supply = Supply(clock, start_mT)
    magnet = Magnet(limits, supply, lambda _: None, clock.monotonic, clock.time_ns)  # type: ignore[arg-type]
    machine = StateMachine(ExperimentSettings.model_validate(tree), limits)
    decisions: list[dict[str, Any]] = []
    told: list[tuple[float, int, float, Segmentation, float]] = []
    counts: list[int] = []
    film: list[int] = []
    in_film = eyes_of("", True, seed, sample.shape)
    fields: list[float] = []
    start_s = clock.now_s
    reading: dict[str, Any] = magnet.tick() or {}

    def tell(kind: Told, set_mT: float | None = None, **values: Any) -> None:
        if set_mT is None:
            set_mT = math.nan if reading["set_mT"] is None else reading["set_mT"]
        moment = Moment(
            kind, clock.time_ns(), clock.now_s - start_s, reading["time_ns"], reading["field_mT"], set_mT,
            reading["settled"], **values,
        )  # fmt: skip
        for order in machine.advance(moment):
            match order:
                case SetField():
                    magnet.aim(order.field_mT)
                case StandStill():
                    tell(Told.STOOD, magnet.stand_still())
                case GivePulse():
                    magnet.pulse(order.in_plane_mT, order.seconds)
                case Demagnetise():
                    magnet.demagnetise(order.amplitude_mT, order.ratio, order.smallest_mT or 0.1, order.dwell_s)
                case Row(table="decisions"):
                    decisions.append(order.values)

    while not machine.finished and len(counts) < frames and (stray_mT := stray(len(counts), decisions)) is not None:
        for _ in range(round(FRAME_S / TICK_S)):
            clock.now_s += TICK_S
            magnet.hear({"do": "beat"})
            reading = magnet.tick() or reading
            sample.advance(TICK_S, supply.field_mT + stray_mT, supply.in_plane_mT)
            while told and told[0][0] <= clock.now_s:
                _, number, taken_s, found, field_mT = told.pop(0)
                now = seen(number, taken_s, field_mT, found)
                tell(Told.FRAME, frame=number, taken_s=taken_s, seen=now)
            tell(Told.TICK)
        found = eyes(sample.magnetisation())
        told.append((clock.now_s + delay_s, len(counts), clock.now_s - start_s, found, supply.field_mT))
        counts.append(found.count)
        film.append(in_film(sample.magnetisation()).count)
        fields.append(supply.field_mT)
    ended = machine.finished
    return Course(
        ended.status if ended else "frames",
        ended.message if ended else "",
        np.array(counts),
        np.array(film),
        np.array(fields),
        decisions,
    )


def eyes_of(
    settings: str, truth: bool, seed: int, sample_shape: tuple[int, int], prepare: bool = False
) -> Callable[[np.ndarray], Segmentation]:
    """What counts: the film's own magnetisation, or a Kerr image of it and the shipped model.

    With `prepare` the camera gives raw images, and the background, taken of the saturated film, follows their drift.
    """
    if truth:

        def look(magnetisation: np.ndarray) -> Segmentation:
            top, left = (magnetisation.shape[0] - SIZE_PX) // 2, (magnetisation.shape[1] - SIZE_PX) // 2
            mask = class_mask(magnetisation, None, None)[top : top + SIZE_PX, left : left + SIZE_PX]
            return measure(np.ascontiguousarray(mask), polarity="both")

        return look
    camera = KerrCamera(sample_shape, (SIZE_PX, SIZE_PX), seed, KerrSettings())
    config = load_config(CONFIGS / settings)
    least = config.measure.min_area_px
    segmenter = sky.Segmenter.load(
        config.analysis.model, threads=1, min_area_px=least, polarity=config.measure.polarity
    )
    if not prepare:
        return lambda magnetisation: segmenter(camera.image(magnetisation))
    preparation, number = Preparation(PrepareSettings(background="take", drift=True), (SIZE_PX, SIZE_PX)), count()
    preparation.take_background(BACKGROUND_FRAMES)
    for _ in range(BACKGROUND_FRAMES):
        preparation(camera.take(np.ones(sample_shape, np.float32)), next(number))
    return lambda magnetisation: preparation.place(
        segmenter(preparation(camera.take(magnetisation), next(number)).image)
    )


def sample_shape() -> tuple[int, int]:
    """Of the film around the view."""
    return FilmSample(FilmSampleSettings(seed=0, start="saturated", start_mT=5.0), SIZE_PX, SIZE_PX).shape


def spread(values: list[float]) -> str:
    """Median, least and most."""
    return f"{np.median(values):g} ({min(values):g} to {max(values):g})"


def seeds_of(options: argparse.Namespace) -> range:
    """Seeds of the films."""
    return range(options.first_seed, options.first_seed + options.seeds)


def draw(course: Course, title: str, path: Path, target: float | None = None, within: float = 0.0) -> None:
    """A picture of a run: count and field over the frames, and what the rules decided."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axis = figure.subplots()
    field = axis.twinx()
    field.plot(course.fields_mT, color="tab:blue", linewidth=1, label="field")
    field.set_ylabel("field (mT)", color="tab:blue")
    field.set_ylim(-6, 6)
    if target is not None:
        axis.axhspan(target - within, target + within, color="tab:green", alpha=0.2, label=f"{target:g} +- {within:g}")
        axis.set_ylim(0, 3 * target)
    axis.plot(course.film, color="tab:gray", linewidth=1, label="skyrmions in the film")
    axis.plot(course.counts, color="tab:red", linewidth=1, label="skyrmions counted")
    kinds = {"pulse": "tab:purple", "stop": "black", "freeze": "tab:green"}
    for kind, colour in kinds.items():
        at = [row["frame"] for row in course.decisions if kind in (row["action"], row["reason"].split(": ")[-1])]
        for number, frame in enumerate(at):
            axis.axvline(frame, color=colour, linestyle=":", linewidth=1, label="_" if number else kind)
    axis.set(xlabel="frame", ylabel="skyrmions", title=title)
    axis.legend(loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def stop(options: argparse.Namespace) -> None:
    """Stop at nucleation: the settings of sweep_stop.yaml against a fixed sweep in steps of 0.1 mT (h = 0.01)."""
    adaptive = load_config(CONFIGS / "sweep_stop.yaml").experiment
    assert adaptive is not None
    tree = adaptive.model_dump(mode="json")
    fixed = json.loads(json.dumps(tree))
    fixed["programme"][0]["step_mT"] = 0.1
    fixed["rules"] = [rule for rule in fixed["rules"] if rule["rule"] == "stop_when"]
    blind = json.loads(json.dumps(fixed))
    # The sweep as it is done without feedback: a step is judged once it is measured, and nothing is backed off.
    blind["frames"], blind["rules"][0] = 4, {**fixed["rules"][0], "back_off_mT": 0.0}
    shape = sample_shape()
    print("sweep      seed  frames to stop  count at stop  16 frames later  in the film  field at stop (mT)")
    outcomes: dict[str, list[tuple[int, int, int, int]]] = {}
    for seed in seeds_of(options):
        for name, settings in (("fixed 0.1", fixed), ("no feedback", blind), ("adaptive", tree)):
            course = run(
                settings,
                seed,
                eyes_of("sweep_stop.yaml", options.truth, seed, shape),
                4.5,
                3000,
                options.delay_ms / 1e3,
            )
            frames = [row["frame"] for row in course.decisions if row["action"] == "stop"]
            at = frames[0] if frames else -1
            outcomes.setdefault(name, []).append(
                (at + 1, int(course.counts[at]), int(course.counts[-1]), int(course.film[-1]))
            )
            if options.plot:
                draw(course, f"stop at nucleation, {name}, film {seed}", options.plot / f"stop-{name}-{seed}.png")
            print(f"{name:11s} {seed:3d} {at + 1:14d} {course.counts[at]:14d} {course.counts[-1]:15d} "
                  f"{course.film[-1]:12d} {course.fields_mT[at]:17.3f}  {course.status}", flush=True)  # fmt: skip
    for name, rows in outcomes.items():
        columns = [spread([float(row[k]) for row in rows]) for k in range(4)]
        print(f"{name}: frames to stop {columns[0]}, count at stop {columns[1]}, 16 frames later {columns[2]}, "
              f"in the film {columns[3]}")  # fmt: skip
    shares = [a[0] / b[0] for a, b in zip(outcomes["adaptive"], outcomes["fixed 0.1"], strict=True)]
    print(f"frames of adaptive / fixed 0.1: {spread(shares)}")


def hold(options: argparse.Namespace) -> None:
    """Hold a count for 300 frames after reaching it, under a stray field of 8 % for 50 frames, and 100 frames more."""
    settings = load_config(CONFIGS / "sweep_hold.yaml").experiment
    assert settings is not None
    shape = sample_shape()
    stray_mT = 0.08 * ANNIHILATION_MT
    print("target  seed  reached at  pulses | within before, worst | after, worst | in the film: before, after")
    for target in options.targets:
        for seed in seeds_of(options):
            tree = settings.model_dump(mode="json")
            tree["programme"][0]["frames"] = 100_000
            tree["rules"][0]["target"] = target
            tree["interlocks"]["max_duration_s"] = 10_000
            eyes = eyes_of("sweep_hold.yaml", options.truth, seed, shape, options.prepare)

            def stray(frame: int, decisions: list[dict[str, Any]]) -> float | None:
                since = frame - reached(decisions) - HELD
                return None if since >= 150 else stray_mT if 0 <= since < 50 else 0.0

            course = run(tree, seed, eyes, 4.5, options.frames, options.delay_ms / 1e3, stray)
            freezes = [
                row["frame"] for row in course.decisions if " fell to " in row["reason"] or "freeze" in row["reason"]
            ]
            pulses = sum(row["action"] == "pulse" for row in course.decisions)
            within = max(3.0, 0.1 * target)
            off, in_film = np.abs(course.counts - target), np.abs(course.film - target)
            if options.plot:
                title = f"hold {target}, film {seed}"
                draw(course, title, options.plot / f"hold-{target}-{seed}.png", target, within)
            if reached(course.decisions) >= options.frames:
                why = course.decisions[-1]["reason"] if course.decisions else ""
                print(f"{target:6d} {seed:5d}  never, {pulses} pulses: {why}", flush=True)
                continue
            begun = int(reached(course.decisions))
            begins, ends = slice(begun, begun + HELD), slice(begun + HELD + 100, None)
            before, after = off[begins], off[ends]
            print(
                f"{target:6d} {seed:5d} {begun:11d} {pulses:7d} {np.mean(before <= within):10.1%} "
                f"{before.max():10.0f} {np.mean(after <= within):11.1%} {after.max(initial=0):8.0f}  "
                f"{np.mean(in_film[begins] <= within):7.1%} {np.mean(in_film[ends] <= within):7.1%}  "
                f"{len(before)} + {len(after)} frames; freezes at {freezes}", flush=True,
            )  # fmt: skip


def reached(decisions: list[dict[str, Any]]) -> float:
    """Frame from which the target is held: the first freeze, and some frames on the way to its field."""
    rows = [row for row in decisions if "freeze" in row["reason"] or "reached" in row["reason"]]
    return rows[0]["frame"] + 5 if rows else math.inf


def latency(options: argparse.Namespace) -> None:
    """Live: a rule that moves the field at every tenth frame; from the hand-over of the frame to the device."""
    folder = Path(tempfile.mkdtemp())
    rule = folder / "move.py"
    rule.write_text(
        "def decide(results):\n"
        "    now = results[-1]\n"
        "    return 2.0 + 0.002 * (now.frame // 10 % 20) if now.frame % 10 == 0 else None\n"
    )
    changes = [
        f"record.folder={folder}", "stream.address=tcp://127.0.0.1:0",
        f"experiment.programme=[{{do: hold, field_mT: 2.0, frames: {round(16 * options.seconds)}}}]",
        f"experiment.rules=[{{rule: python, file: '{rule}'}}]", "experiment.settle_s=0", f"include={options.rig}",
    ]  # fmt: skip
    text = (CONFIGS / "sweep_hold.yaml").read_text().replace("sweep_rig_twin.yaml", str(CONFIGS / options.rig))
    if "demo" in options.rig:
        text = text.replace("camera: {height_px: 512, width_px: 512}\n", "")
    (folder / "run.yaml").write_text(text)
    service = sky.Service(load_config(folder / "run.yaml", changes[:-1]))
    summary = service.run()
    assert service.experiment is not None
    assert service.experiment.outcome is not None
    with sky.open_run(summary.run_file) as found:
        experiment, table = found.experiment, found.table
    assert experiment is not None
    taken_ns = {int(row["frame"]): int(table["received_ns"][row["frame"]]) for row in experiment["decisions"]}
    # The first read-back that shows a new value of the supply, which the guard sets just before it.
    steps = experiment["inputs"]
    until_read = []
    for row in experiment["decisions"][experiment["decisions"]["acted"] == 1]:
        later = steps[(steps["time_ns"] > row["time_ns"]) & (np.abs(steps["set_mT"] - row["old_mT"]) > 1e-9)]
        if len(later):
            until_read.append((int(later["reading_ns"][0]) - taken_ns[int(row["frame"])]) / 1e6)
    accepted = service.experiment.outcome.decision_ms
    print(f"rig {options.rig}, {len(until_read)} decisions, engine {summary.engine}, {summary.rate_hz:.1f} frames/s")
    print(f"frame handed over -> order accepted by the guard: p50 {accepted['p50']} ms, p99 {accepted['p99']} ms")
    print(f"frame handed over -> device set and read back:    p50 {np.percentile(until_read, 50):.1f} ms, "
          f"p99 {np.percentile(until_read, 99):.1f} ms")  # fmt: skip
    analysed = summary.latency_ms["total"]
    print(f"of which frame handed over -> result published:   p50 {analysed['p50']} ms, p99 {analysed['p99']} ms")


def main() -> int:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, work in (("stop", stop), ("hold", hold), ("latency", latency)):
        command = commands.add_parser(name)
        command.set_defaults(work=work)
        command.add_argument("--seeds", type=int, default=5 if name == "stop" else 3)
        command.add_argument("--first-seed", type=int, default=0, help="of the films; default: %(default)s")
        command.add_argument("--plot", type=Path, metavar="DIR", help="draw every run of `stop` and `hold`")
        command.add_argument("--truth", action="store_true", help="count in the film itself, without camera and model")
        command.add_argument("--prepare", action="store_true", help="hold: raw images, with section prepare")
        command.add_argument(
            "--delay-ms", type=float, default=60.0, help="from frame to decision; default: %(default)s"
        )
        if name == "hold":
            command.add_argument("--targets", type=int, nargs="+", default=[20, 40, 80, 160])
            command.add_argument("--frames", type=int, default=900, help="of each run; default: %(default)s")
        if name == "latency":
            command.add_argument("--seconds", type=float, default=30.0)
            command.add_argument("--rig", default="sweep_rig_twin.yaml", help="or sweep_rig_demo.yaml")
    options = parser.parse_args()
    begun = time.time()
    options.work(options)
    print(f"{time.time() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
