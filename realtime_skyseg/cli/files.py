"""Commands on settings and files: check, info, analyse, recover, table."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from realtime_skyseg.cli.output import say_failure
from realtime_skyseg.errors import MissingExtraError, SettingsError, SkysegError


def check_command(options: argparse.Namespace) -> int:
    """`skyseg check`."""
    from realtime_skyseg.config import load_config
    from realtime_skyseg.experiment.rule_process import check_rules
    from realtime_skyseg.preparation import check_model
    from realtime_skyseg.segmentation.model import load_model

    config = load_config(options.config, options.set)
    config.camera.check()
    model = load_model(config.analysis.model)
    if config.prepare:
        check_model(model)
        for key in ("background", "flat_field"):
            path = getattr(config.prepare, f"{key}_path")
            if path is not None and not Path(path).is_file():
                raise SettingsError(f"prepare.{key}: '{path}' does not exist; allowed: an image, or a run file")
    if config.experiment:
        check_rules(config.experiment.rules)
    print(config.to_yaml(), end="")
    print(f"# {options.config}: valid")
    if config.experiment and config.field:
        from realtime_skyseg.programme import estimate, expand

        rate_hz = _rate_hz(config)
        asked = estimate(expand(config.experiment), config.field, rate_hz)
        print(
            f"# experiment: {asked.steps} steps, {asked.seconds:.0f} s "
            + (f"at {rate_hz:g} frames per second" if rate_hz else f"without its {asked.frames} frames")
            + f"; {asked.lowest_mT:g} to {asked.highest_mT:g} mT, at up to {asked.fastest_mT_per_s:.3g} mT/s, "
            f"{asked.way_mT:.4g} mT in all, {asked.pulses} in-plane pulses; rules may change it"
        )
    if options.plot:
        from realtime_skyseg.plots import plot_programme

        if config.experiment is None:
            raise SettingsError(
                f"--plot: '{options.config}' has no field programme; allowed: with a section experiment"
            )
        plot_programme(config, _rate_hz(config), options.plot)
        print(f"# picture: {options.plot}")
    if options.hardware:
        from realtime_skyseg.hardware import look

        for device, sentence in look(config).items():
            print(f"# {device}: {sentence}")
    return 0


def info_command(options: argparse.Namespace) -> int:
    """`skyseg info`."""
    from realtime_skyseg import terminal
    from realtime_skyseg.storage import open_run

    with open_run(options.file) as run:
        terminal.show_run(terminal.console(), run)
        if options.plot:
            from realtime_skyseg.plots import plot_run, plot_view

            if options.show:
                plot_view(run, options.show, options.plot, options.frame)
            else:
                plot_run(run, options.plot, options.frame)
            print(f"picture: {options.plot}")
        if options.check:
            problems = [(index, problem) for index in range(run.n_frames) if (problem := run.problem(index))]
            for index, problem in problems:
                print(f"frame {index}: {problem}")
            print(f"{run.n_frames - len(problems)} of {run.n_frames} frames are as they were written")
            return 1 if problems else 0
    return 0


def analyse_command(options: argparse.Namespace) -> int:
    """`skyseg analyse`."""
    from rich.progress import Progress

    from realtime_skyseg import terminal
    from realtime_skyseg.batch import analyse
    from realtime_skyseg.config import read_yaml

    settings = read_yaml(options.settings) if options.settings else None
    chosen = [f"analysis.{key}={value}" for key in ("model", "engine") if (value := getattr(options, key))]
    console = terminal.console()
    status, summaries = 0, []
    for path in options.input:
        try:
            with Progress(console=console, transient=True) as bar:
                bar.add_task(path.name, total=None)
                summary = analyse(
                    path, options.out, [*chosen, *options.set], settings, options.accept_other,
                    lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total), options.again,
                )  # fmt: skip
        except SkysegError as error:
            say_failure(str(error), error.exit_status)
            summary = {"status": "fault", "exit_status": error.exit_status, "message": str(error), "run_file": None}
        else:
            console.print(
                f"{path}: {summary['run_file']}  {summary.get('filled') or summary['status']}", soft_wrap=True
            )
            if "filled" in summary:
                summary |= decide_again(path, summary["exit_status"])
            if options.pictures or options.show:
                files = summary["run_files"]
                summary["pictures"] = [_pictures_of(file, options.pictures, options.show) for file in files]
        summaries.append({"input": str(path), **summary})
        status = max(status, summary["exit_status"])
    if options.json:
        for summary in summaries:
            print(json.dumps(summary))
    return status


def decide_again(path: Path, status: int = 0) -> dict[str, Any]:
    """Decide the experiment of a run file again, and say in a line whether that differs; nothing where there is none.

    Gives what to add to the summary: `redecided`, and `exit_status`, which is 1 at least where it differs.
    """
    from realtime_skyseg.experiment import redecide
    from realtime_skyseg.storage import open_run

    with open_run(path) as run:
        if run.experiment is None:
            return {}
        decisions, steps = len(run.experiment["decisions"]), len(run.experiment["steps"])
    try:
        differences = redecide(path)
    except SkysegError as error:
        say_failure(f"{path}: it cannot be decided again: {error}", error.exit_status)
        return {"redecided": None, "exit_status": max(status, error.exit_status)}
    for line in differences:
        print(f"skyseg: {line}", file=sys.stderr)
    count = f"{len(differences) or 'no'} difference{'' if len(differences) == 1 else 's'}"
    print(f"{path}: {decisions} decisions and {steps} steps were decided again, {count}")
    return {"redecided": {"decisions": decisions, "steps": steps, "differences": differences},
            "exit_status": max(status, 1 if differences else 0)}  # fmt: skip


def recover_command(options: argparse.Namespace) -> int:
    """`skyseg recover`."""
    from realtime_skyseg.storage import recover

    status = 0
    records = []
    for file in options.file:
        try:
            rescue = recover(file)
        except SkysegError as error:
            say_failure(str(error), error.exit_status)
            records.append({"file": str(file), "recovered": None, "message": str(error)})
            status = max(status, error.exit_status)
            continue
        print(f"{file}: {rescue.sentence()}")
        records.append({"file": str(file), **rescue.as_dict()})
        status = max(status, 0 if rescue.whole else 1)
    if options.json:
        for record in records:
            print(json.dumps(record))
    return status


def table_command(options: argparse.Namespace) -> int:
    """`skyseg table`."""
    from realtime_skyseg import terminal
    from realtime_skyseg.storage import open_run

    with open_run(options.file) as run:
        if options.plot:
            from realtime_skyseg.plots import plot_sweep

            plot_sweep(run, options.plot)
            terminal.show_experiment(terminal.console(), run)
            print(f"picture: {options.plot}")
            return 0
        from realtime_skyseg.tables import event_table, frame_table, object_table, step_table, track_table

        asked = _analysers(options.ask)
        with _progress() as show:
            if options.steps:
                table = step_table(run)
            elif options.events:
                table = event_table(run)
            elif options.tracks:
                table = track_table(run, show)
            elif options.objects:
                table = object_table(run, _limits(options.keep), not options.no_border, asked, show)
            else:
                table = frame_table(run, options.all, asked, show)
    if options.out:
        table.write(options.out)
    else:
        table.to_csv(sys.stdout)
    return 0


def pictures_command(options: argparse.Namespace) -> int:
    """`skyseg pictures`."""
    from realtime_skyseg.exports import KINDS, write_labels, write_pictures, write_video
    from realtime_skyseg.storage import open_run

    if not (options.out or options.labels or options.video):
        raise SettingsError("pictures needs something to write; allowed: --out, --labels, --video")
    if options.video and not 1 <= options.rate_hz <= 240:
        raise SettingsError(f"--rate-hz: {options.rate_hz:g}; allowed: 1 to 240")
    with open_run(options.file) as run, _progress() as show:
        if options.out:
            kinds = options.kind or ([] if options.show else KINDS)
            n = write_pictures(run, options.out, kinds, options.frame, show, options.show)
            print(f"pictures of {n} frames: {options.out}")
        if options.labels:
            write_labels(run, options.labels, options.by_track, show)
            print(f"labels: {options.labels}")
        if options.video:
            write_video(run, options.video, options.rate_hz, show)
            print(f"video: {options.video}")
    return 0


def napari_command(options: argparse.Namespace) -> int:
    """`skyseg napari`."""
    napari = _napari("napari")
    from realtime_skyseg.exports import add_to_napari
    from realtime_skyseg.storage import open_run

    with open_run(options.file) as run:
        viewer = napari.Viewer(title=str(options.file))
        add_to_napari(viewer, run)
        if options.frame is not None:
            viewer.dims.set_current_step(0, options.frame)
        napari.run()
    return 0


def pick_command(options: argparse.Namespace) -> int:
    """`skyseg pick`."""
    from realtime_skyseg.picking import pick, write_picked

    if options.out.exists():
        raise SettingsError(f"--out: '{options.out}' exists already; allowed: a new folder")
    if options.frames < 1:
        raise SettingsError(f"--frames: {options.frames}; allowed: 1 or more")
    with _progress() as progress:
        picked = pick(options.run, options.frames, options.apart, progress)
    write_picked(picked, options.out)
    for one in picked:
        print(f"{one.run} frame {one.frame} at {one.time_s:.1f} s: domain {one.domain:.2f}, doubt {one.doubt:.2f}")
    print(f"{len(picked)} images with their masks in {options.out}; now: skyseg annotate {options.out}")
    return 0


def annotate_command(options: argparse.Namespace) -> int:
    """`skyseg annotate`."""
    napari = _napari("annotate")
    from realtime_skyseg.picking import Annotation

    annotation = Annotation(napari.Viewer(), options.folder)
    napari.run()
    annotation.save()
    return 0


def _napari(command: str) -> Any:
    try:
        import napari
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"skyseg {command} needs the package '{error.name}', which is not installed: "
            "pip install 'realtime_skyseg[napari]'"
        ) from error
    return napari


def _pictures_of(file: str, kinds: list[Any], shown: list[str]) -> str:
    """Pictures and tables of a run file in a ZIP file beside it."""
    from realtime_skyseg.exports import write_pictures
    from realtime_skyseg.storage import open_run

    out = Path(file).with_suffix(".zip")
    with open_run(file) as run, _progress() as show:
        n = write_pictures(run, out, kinds, None, show, shown)
    print(f"pictures of {n} frames: {out}")
    return str(out)


@contextmanager
def _progress() -> Iterator[Callable[[int, int | None], None]]:
    """A bar on the terminal, where standard error is one."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("frames", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _analysers(texts: list[str]) -> dict[str, Any]:
    """`--ask shapes`, or `--ask 'shapes: {point_pixels: true}'`."""
    import yaml

    from realtime_skyseg import yaml_text

    found: dict[str, Any] = {}
    for text in texts:
        try:
            tree = yaml_text.load(text)
        except yaml.YAMLError as error:
            raise SettingsError(f"--ask {text}: {error}") from error
        if isinstance(tree, str):
            tree = {tree: None}
        if not isinstance(tree, dict):
            raise SettingsError(f"--ask {text}; allowed: the name of an analyser, or 'NAME: {{KEY: VALUE}}'")
        found |= tree
    return found


def _limits(texts: list[str]) -> dict[str, tuple[float | None, float | None]]:
    """`--keep diameter=5:40`, with either end left out for no limit."""
    found = {}
    for text in texts:
        name, _, limits = text.partition("=")
        ends = limits.split(":")
        try:
            low, high = (float(end) if end.strip() else None for end in ends)
        except ValueError:
            raise SettingsError(f"--keep {text}; allowed: NAME=LOW:HIGH, either of them left out") from None
        found[name.strip()] = (low, high)
    return found


def _rate_hz(config: Any) -> float | None:
    """Frames per second, where the camera's settings tell."""
    rate = (config.camera.model_extra or {}).get("rate_hz")
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None
