"""The `skyseg` command. Parses, calls, prints; everything else is elsewhere."""

import argparse
import csv
import io
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

import realtime_skyseg
from realtime_skyseg import log_file
from realtime_skyseg.errors import RunFileUnusableError, SettingsError, SkysegError
from realtime_skyseg.records import printable

_ENGINES = ("auto", "tensorrt", "torch", "openvino", "openvino-int8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 all well, 1 lost frames or a fault, 2 wrong use or settings."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if "added" in options:
        options.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    for way in (sys.stdout, sys.stderr):
        if isinstance(way, io.TextIOWrapper):
            way.reconfigure(errors="replace")  # "?" for what the terminal cannot show
    to_stderr = logging.StreamHandler()
    to_stderr.setLevel(logging.INFO if options.verbose else logging.WARNING)
    to_stderr.setFormatter(
        log_file.Plain(
            "%(levelname)s %(name)s: %(message)s" if options.verbose else "skyseg: %(message)s", trace=options.verbose
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[to_stderr])
    try:
        if getattr(options, "log", None):
            log_file.log_to(options.log)
        status: int = options.command(options)
        sys.stdout.flush()
    except SkysegError as error:
        return _failed(str(error), error.exit_status)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has left
        _drop_output()
        return 0
    except OSError as error:
        _drop_output()
        logging.getLogger(__name__).info("the command failed", exc_info=True)
        where = f"'{error.filename}'" if error.filename else "a file or the output"
        return _failed(f"{where} cannot be read or written: {error.strerror or error}", 2 if error.filename else 1)
    except MemoryError:
        return _failed("the memory of this computer is not enough for it", 1)
    except Exception as error:
        logging.getLogger(__name__).info("the command failed", exc_info=True)
        hint = "" if options.verbose else "; `skyseg -v ...` shows where"
        return _failed(f"this should not happen: {type(error).__name__}: {error}{hint}", 1)
    return status


def _failed(message: str, status: int) -> int:
    with suppress(OSError, ValueError):
        print(f"skyseg: {printable(message)}", file=sys.stderr)
    return status


def _drop_output() -> None:
    """Let Python not try again, at its end, to write what nobody takes."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skyseg", description="Live segmentation of magnetic skyrmions in Kerr microscopy."
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens to stderr")
    parser.add_argument("--version", action="version", version=f"skyseg {realtime_skyseg.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a value of the settings"
    )
    run_options = argparse.ArgumentParser(add_help=False, parents=[settings])
    run_options.add_argument("--json", action="store_true", help="print the summary as one JSON object last")
    run_options.add_argument("--log", type=Path, metavar="FILE", help="log what happens, one JSON object per line")
    run_options.add_argument("--plot", type=_picture, metavar="PNG", help="draw the run when it has ended")

    command = commands.add_parser("demo", parents=[run_options], help="the main job on the bundled synthetic recording")
    command.set_defaults(command=_demo)
    command = commands.add_parser("run", parents=[run_options], help="the service, until the camera ends or Ctrl-C")
    command.add_argument("config", type=Path, help="YAML settings")
    command.set_defaults(command=_run)

    command = commands.add_parser("sweep", parents=[run_options], help="a field programme with its rules")
    command.add_argument(
        "config", type=Path, nargs="?", help="YAML settings, or a run file whose experiment is repeated"
    )
    command.add_argument("--resume", type=Path, metavar="FILE", help="go on with an experiment that broke off")
    command.add_argument("--accept-changes", action="store_true", help="go on with other settings than the file's")
    command.add_argument("--dry-run", action="store_true", help="the rules decide, but nothing is done about it")
    command.add_argument("--check", type=Path, metavar="FILE", help="decide a finished run again, and compare")
    command.set_defaults(command=_sweep)

    command = commands.add_parser("watch", help="print a running service's stream")
    command.add_argument("address", nargs="?", help="of the service, tcp://HOST:PORT; default: that of the settings")
    command.add_argument("--once", action="store_true", help="leave at the end of the run")
    command.add_argument("--keys", type=Path, metavar="DIR", help="this client's keys, where the service asks for them")
    command.set_defaults(command=_watch)

    command = commands.add_parser("tell", help="ask something of a running service over its control socket")
    command.add_argument("do", help="status, stop, mark, set_field, enter_field, safe_field, demagnetise, pulse, "
                         "pause, resume, abort, take_background")  # fmt: skip
    command.add_argument("values", nargs="*", metavar="KEY=VALUE", help="for example field_mT=12.5")
    command.add_argument("--address", help="of the control socket; default: tcp://127.0.0.1:5556")
    command.add_argument("--wait", type=float, nargs="?", const=60.0, metavar="SECONDS",
                         help="until the field is there, at most so long (60)")  # fmt: skip
    command.add_argument("--keys", type=Path, metavar="DIR", help="this client's keys, where the service asks for them")
    command.set_defaults(command=_tell)

    command = commands.add_parser("keys", help="make keys, so that other machines may connect")
    command.add_argument("folder", type=Path, help="of the service's keys; made if absent")
    command.add_argument("--client", default="client", metavar="NAME", help="make keys for a client of this name")
    command.set_defaults(command=_keys)

    command = commands.add_parser("check", parents=[settings], help="validate settings without touching hardware")
    command.add_argument("config", type=Path, help="YAML settings")
    command.add_argument("--hardware", action="store_true", help="open and read every device too; sets nothing")
    command.add_argument("--plot", type=_picture, metavar="PNG", help="draw the field programme")
    command.set_defaults(command=_check)

    command = commands.add_parser("info", help="look into a run file")
    command.add_argument("file", type=Path)
    command.add_argument("--plot", type=_picture, metavar="PNG", help="draw the run")
    command.add_argument("--frame", type=int, metavar="N", help="with --plot: this frame; else that of most objects")
    command.add_argument("--check", action="store_true", help="verify the checksums of every frame, mask and row")
    command.set_defaults(command=_info)

    command = commands.add_parser(
        "analyse", parents=[settings], help="offline: recordings, folders of images, or run files that lack results"
    )
    command.add_argument("input", type=Path, nargs="+", help="a recording, a folder of images, or a finished run file")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new run files")
    command.add_argument("--settings", type=Path, metavar="CONFIG", help="YAML settings of a run, for recordings")
    command.add_argument("--model", help="a shipped model or a file; default: that of the settings or of the run file")
    command.add_argument("--engine", choices=_ENGINES, help="default: as the model's")
    command.add_argument(
        "--accept-other", action="store_true", help="fill in results that may differ from those of the live run"
    )
    command.add_argument(
        "--again",
        action="store_true",
        help="all frames of a run file, with its settings as changed here",
    )
    command.add_argument("--json", action="store_true", help="print a summary as one JSON object per input, last")
    command.set_defaults(command=_analyse)

    command = commands.add_parser("recover", help="rescue run files that were killed, cut or damaged")
    command.add_argument("file", type=Path, nargs="+", help="NAME.h5.partial; what is whole goes to NAME.recovered.h5")
    command.add_argument("--json", action="store_true", help="print what was rescued as one JSON object per file, last")
    command.set_defaults(command=_recover)

    command = commands.add_parser("table", help="export a run's numbers as CSV: one line per frame")
    command.add_argument("file", type=Path)
    command.add_argument("--objects", action="store_true", help="one line per object instead")
    command.add_argument("--steps", action="store_true", help="one line per step of the field programme instead")
    command.add_argument("--plot", type=_picture, metavar="PNG", help="draw the programme's outcome, and print its "
                         "nucleation and annihilation fields, instead of lines")  # fmt: skip
    command.add_argument("--out", type=Path, metavar="CSV", help="default: standard output")
    command.set_defaults(command=_table)

    command = commands.add_parser("models", help="list the shipped models")
    command.set_defaults(command=_models)

    command = commands.add_parser("train", parents=[settings], help="train a model on labelled images")
    command.add_argument("config", type=Path, help="YAML settings of the training")
    command.set_defaults(command=_train)

    command = commands.add_parser("evaluate", help="score a model on labelled images")
    command.add_argument("--images", type=Path, required=True, help="folder of images")
    command.add_argument("--labels", type=Path, required=True, help="folder of label pictures of the same names")
    command.add_argument("--label-values", metavar="N=CLASS,...", help="meaning of single-channel labels")
    command.add_argument("--table", type=Path, help="CSV with the columns image, source_id, fold")
    command.add_argument("--fold", type=int, action="append", help="only this fold; may be repeated")
    command.add_argument("--model", default="compact", help="a shipped model or a file; default: %(default)s")
    command.add_argument("--engine", default="auto", choices=_ENGINES, help="default: %(default)s")
    command.add_argument(
        "--invert", action="store_true", help="score on inverted images: bright skyrmions instead of dark"
    )
    command.add_argument("--zoom", type=float, default=1.0, metavar="FACTOR", help="score on shrunk or enlarged images")
    command.add_argument("--noise", type=float, default=0.0, metavar="SIGMA", help="add noise, in 8 bit grey levels")
    command.add_argument("--json", type=Path, metavar="FILE", help="write all figures, per source and image too")
    command.add_argument("--plot", type=Path, metavar="DIR", help="draw curves and the worst images")
    command.set_defaults(command=_evaluate)

    command = commands.add_parser("bench", help="latency of this machine, stage by stage, engine by engine")
    command.add_argument(
        "--model", action="append", help="a shipped model or a file; may be repeated; default: compact"
    )
    command.add_argument("--engine", action="append", choices=_ENGINES, help="may be repeated")
    command.add_argument("--size", action="append", metavar="HEIGHTxWIDTH", help="of the frames; may be repeated; "
                         "default: those of the recording")  # fmt: skip
    command.add_argument("--rate-hz", action="append", metavar="HZ", help="a number, or max: as fast as it goes; may "
                         "be repeated; default: 25")  # fmt: skip
    command.add_argument("--seconds", type=float, default=10.0, help="of each run; default: %(default)s")
    command.add_argument("--source", default="bundled", help="a recording; default: %(default)s")
    command.add_argument("--objects", type=int, metavar="N", help="make frames of N dark discs in noise instead, of "
                         "512x672 px or --size")  # fmt: skip
    command.add_argument("--saturation", action="store_true", help="search the highest rate without a missed frame")
    command.add_argument("--against", action="store_true", help="time the peers beside ours: the reference U-Nets in "
                         "TensorFlow, eager torch, a naive loop")  # fmt: skip
    command.add_argument("--rounds", type=int, default=5, help="of --against; default: %(default)s")
    command.add_argument("--tensorflow", default=sys.executable, metavar="PYTHON", help="the Python that has it, for "
                         "--against; default: this one")  # fmt: skip
    command.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    command.add_argument("--plot", type=_picture, metavar="PNG", help="draw histograms of the latencies")
    command.set_defaults(command=_bench)

    command = commands.add_parser("export", help="build a model's engine ahead of a run, or write it as an ONNX file")
    command.add_argument("model", help="a shipped model or a file")
    command.add_argument("--engine", required=True, choices=(*_ENGINES, "onnx"), help="onnx: half precision inside")
    command.add_argument("--size", default="512x672", metavar="HEIGHTxWIDTH", help="of frames; default: %(default)s")
    command.add_argument("--out", type=Path, metavar="FILE", help="onnx only; default: MODEL-HEIGHTxWIDTH.onnx")
    command.set_defaults(command=_export)

    command = commands.add_parser("quantise", help="give a model a graph in 8 bits, which OpenVINO runs faster")
    command.add_argument("model", help="a shipped model or a file; the graph is written beside it")
    command.add_argument("--images", type=Path, required=True, help="folder of images to calibrate on")
    command.add_argument("--labels", type=Path, required=True, help="folder of label pictures of the same names")
    command.add_argument("--table", type=Path, help="CSV with the columns image, source_id, fold")
    command.add_argument("--fold", type=int, action="append", help="only this fold; may be repeated")
    command.set_defaults(command=_quantise)

    command = commands.add_parser("import", help="turn a lab's .keras model into one of the product's")
    command.add_argument("file", type=Path, help="the .keras file")
    command.add_argument("--out", type=Path, help="the model file to write; default: FILE.safetensors")
    command.add_argument(
        "--classes",
        default="skyrmion,defect,background",
        help="what its outputs mean, in its order; default: %(default)s",
    )
    command.set_defaults(command=_import)

    command = commands.add_parser("threshold", help="make a model that binarises by a threshold")
    command.add_argument("out", type=Path, help="the model file to write")
    command.add_argument("--level", type=float, default=0.25, help="distance from the median, in units of the spread "
                         "between the 1st and 99th percentile; default: %(default)s")  # fmt: skip
    command.add_argument("--blur-px", type=float, default=1.5, help="sigma of the blur before; default: %(default)s")
    command.add_argument("--bright", action="store_true", help="skyrmions are bright; default: dark")
    command.set_defaults(command=_threshold)

    for entry in entry_points(group="realtime_skyseg.commands"):  # each reads its own arguments
        command = commands.add_parser(entry.name, add_help=False, help=f"see `skyseg {entry.name} --help`")
        command.set_defaults(command=_added, added=entry)
    return parser


def _added(options: argparse.Namespace) -> int:
    """A command of another package: a function that takes the arguments after its name, and returns an exit status."""
    status: int = options.added.load()(options.rest)
    return status


def _demo(options: argparse.Namespace) -> int:
    from realtime_skyseg.config import DEMO, validate

    return _serve(validate(DEMO, options.set), options)


def _run(options: argparse.Namespace) -> int:
    from realtime_skyseg.config import load_config

    return _serve(load_config(options.config, options.set), options)


def _sweep(options: argparse.Namespace) -> int:
    from realtime_skyseg.config import load_config, validate
    from realtime_skyseg.storage import open_run

    if options.check:
        if not (found := _redecide(options.check)):
            raise RunFileUnusableError(f"--check: run file '{options.check}' has no experiment")
        status: int = found["exit_status"]
        return status
    source = options.config or options.resume
    if source is None:
        raise SettingsError("sweep needs settings: allowed: skyseg sweep CONFIG, or skyseg sweep --resume FILE")
    changes = [*options.set, *(["experiment.dry_run=true"] if options.dry_run else [])]
    if options.config and options.config.suffix in (".yaml", ".yml"):
        config = load_config(options.config, changes)
    else:
        with open_run(source) as run:
            config = validate(run.config, changes)
    if config.experiment is None:
        raise SettingsError(f"'{source}' has no section experiment; allowed: settings with a field programme")
    return _serve(config, options, options.resume, options.accept_changes)


def _serve(config: Any, options: argparse.Namespace, resume: Path | None = None, accept_changes: bool = False) -> int:
    from realtime_skyseg import terminal
    from realtime_skyseg.service import Service

    console = terminal.console()
    service = Service(config, resume, accept_changes)
    asked: list[int] = []

    def end(number: int, _: object) -> None:
        asked.append(number)
        if len(asked) > 1 and service.running:
            _leave(service)
        service.stop()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with terminal.run_display(console, service) as display:
            summary = service.run(display)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    terminal.show_summary(console, summary)
    record = summary.as_dict()
    if service.experiment and service.experiment.outcome:
        record["experiment"] = _finish_sweep(console, service.experiment.outcome, summary.run_file)
    if options.plot and summary.frames["analysed"]:
        from realtime_skyseg.plots import plot_run, plot_sweep
        from realtime_skyseg.storage import open_run

        with open_run(summary.run_file) as run:
            (plot_sweep if service.experiment else plot_run)(run, options.plot)
        console.print(f"picture: {options.plot}")
    status = summary.exit_status
    if options.json:
        try:
            print(json.dumps(record), flush=True)
        except OSError as error:
            _drop_output()
            status = _failed(f"the summary cannot be printed: {error.strerror}; run file '{summary.run_file}'", 1)
    if summary.message:
        _failed(summary.message, status)
    return status


def _leave(service: Any) -> NoReturn:
    """Asked to end a second time: at once, whatever hangs, and without a lock that could hang too."""
    text = "skyseg: left at once"
    if service.run_file.name:
        text += f"; what was recorded is kept in '{service.run_file}.partial' (skyseg recover)"
    if service.field:  # it sees its connection close
        text += "; the field guard makes the field safe"
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
    os._exit(130)


def _finish_sweep(console: Any, outcome: Any, run_file: str) -> dict[str, Any]:
    """Show and write what came out of an experiment."""
    from dataclasses import asdict

    from realtime_skyseg import terminal
    from realtime_skyseg.experiment import report, write_clips
    from realtime_skyseg.storage import open_run

    with open_run(run_file) as run:
        terminal.show_experiment(console, run)
        record = {**report(run), **asdict(outcome)}
    clips = [str(clip) for clip in write_clips(run_file)]
    for clip in clips:
        console.print(f"clip: {clip}")
    return {**record, "clips": clips}


def _watch(options: argparse.Namespace) -> int:
    from realtime_skyseg import terminal
    from realtime_skyseg.config import DEFAULT_ADDRESS
    from realtime_skyseg.streaming import Subscriber

    with Subscriber(options.address or DEFAULT_ADDRESS, keys=options.keys) as subscriber:
        terminal.show_stream(terminal.console(), subscriber, options.once)
    return 0


def _picture(text: str) -> Path:
    """A file that a picture can be written to: known before the run, not after it."""
    path = Path(text)
    if path.suffix.lower() not in (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".eps"):
        raise argparse.ArgumentTypeError(f"'{text}' is no picture; allowed: a name that ends in .png, .pdf or .svg")
    if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
        raise argparse.ArgumentTypeError(f"'{text}' cannot be a file")
    return path


def _tell(options: argparse.Namespace) -> int:
    import yaml

    from realtime_skyseg import yaml_text
    from realtime_skyseg.config import DEFAULT_CONTROL_ADDRESS
    from realtime_skyseg.streaming import Control, control

    kinds = control.kinds(options.do)
    if not kinds:
        raise SettingsError(f"'{options.do}' is no request; allowed: {', '.join(control.requests())}")
    values = {}
    for pair in options.values:
        key, equals, text = pair.partition("=")
        try:
            values[key] = yaml_text.typed(text, kinds.get(key))
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise SettingsError(f"'{pair}': allowed: KEY=VALUE, for example field_mT=12.5")
    if options.wait is not None and options.do not in ("set_field", "demagnetise", "safe_field"):
        raise SettingsError(f"--wait: '{options.do}' moves no field; allowed: set_field, demagnetise, safe_field")
    with Control(options.address or DEFAULT_CONTROL_ADDRESS, keys=options.keys) as service:
        answer = service.ask(options.do, **values)
        if options.wait is not None:
            answer["status"] = service.wait_settled(answer.get("target"), options.wait)
        print(json.dumps(answer, indent=1))
    return 0


def _keys(options: argparse.Namespace) -> int:
    from realtime_skyseg.streaming.access import make_keys

    given = make_keys(options.folder, options.client)
    print(f"settings of the service: access.keys: {options.folder}")
    print(f"give to the client, and then delete here: {given}")
    return 0


def _check(options: argparse.Namespace) -> int:
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


def _rate_hz(config: Any) -> float | None:
    """Frames per second, where the camera's settings tell."""
    rate = (config.camera.model_extra or {}).get("rate_hz")
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def _info(options: argparse.Namespace) -> int:
    from realtime_skyseg import terminal
    from realtime_skyseg.storage import open_run

    with open_run(options.file) as run:
        terminal.show_run(terminal.console(), run)
        if options.plot:
            from realtime_skyseg.plots import plot_run

            plot_run(run, options.plot, options.frame)
            print(f"picture: {options.plot}")
        if options.check:
            problems = [(index, problem) for index in range(run.n_frames) if (problem := run.problem(index))]
            for index, problem in problems:
                print(f"frame {index}: {problem}")
            print(f"{run.n_frames - len(problems)} of {run.n_frames} frames are as they were written")
            return 1 if problems else 0
    return 0


def _analyse(options: argparse.Namespace) -> int:
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
            _failed(str(error), error.exit_status)
            summary = {"status": "fault", "exit_status": error.exit_status, "message": str(error), "run_file": None}
        else:
            console.print(
                f"{path}: {summary['run_file']}  {summary.get('filled') or summary['status']}", soft_wrap=True
            )
            if "filled" in summary:
                summary |= _redecide(path, summary["exit_status"])
        summaries.append({"input": str(path), **summary})
        status = max(status, summary["exit_status"])
    if options.json:
        for summary in summaries:
            print(json.dumps(summary))
    return status


def _redecide(path: Path, status: int = 0) -> dict[str, Any]:
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
        _failed(f"{path}: it cannot be decided again: {error}", error.exit_status)
        return {"redecided": None, "exit_status": max(status, error.exit_status)}
    for line in differences:
        print(f"skyseg: {line}", file=sys.stderr)
    count = f"{len(differences) or 'no'} difference{'' if len(differences) == 1 else 's'}"
    print(f"{path}: {decisions} decisions and {steps} steps were decided again, {count}")
    return {"redecided": {"decisions": decisions, "steps": steps, "differences": differences},
            "exit_status": max(status, 1 if differences else 0)}  # fmt: skip


def _recover(options: argparse.Namespace) -> int:
    from realtime_skyseg.storage import recover

    status = 0
    records = []
    for file in options.file:
        try:
            rescue = recover(file)
        except SkysegError as error:
            _failed(str(error), error.exit_status)
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


def _table(options: argparse.Namespace) -> int:
    from realtime_skyseg.storage import open_run

    if options.plot:
        from realtime_skyseg import terminal
        from realtime_skyseg.plots import plot_sweep

        with open_run(options.file) as run:
            plot_sweep(run, options.plot)
            terminal.show_experiment(terminal.console(), run)
        print(f"picture: {options.plot}")
        return 0
    with open_run(options.file) as run:
        if options.steps:
            experiment = run.experiment
            if experiment is None:
                raise SettingsError(f"--steps: run file '{options.file}' has no field programme")
            rows = experiment["steps"]
        else:
            rows = run.objects() if options.objects else run.table
            names = None if options.objects or options.steps else run.frame_names
    try:
        with options.out.open("w", newline="") if options.out else nullcontext(sys.stdout) as out:
            lines = csv.writer(out)
            whole = options.objects or options.steps
            lines.writerow(rows.dtype.names if whole else ["frame", *rows.dtype.names, *(["name"] if names else [])])
            plain = ([_cell(cell) for cell in row] for row in rows.tolist())
            lines.writerows(
                plain if whole else ([k, *row, *([names[k]] if names else [])] for k, row in enumerate(plain))
            )
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise SettingsError(f"--out: '{options.out}' cannot be written: {error.strerror}") from error
    return 0


def _cell(value: Any) -> Any:
    """A cell of a table as spreadsheets take it: texts as texts, nothing for NaN, whole numbers without a point."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float):
        return "" if math.isnan(value) else int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value


def _models(_: argparse.Namespace) -> int:
    from realtime_skyseg.segmentation.model import load_model, shipped_models

    for name in shipped_models():
        model = load_model(name)
        figures = ", ".join(f"{key} {value}" for key, value in model.training.get("validation", {}).items())
        print(f"{name}: {model.network}, sha256 {model.sha256[:16]}, validation: {figures or 'unknown'}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from realtime_skyseg.analysis import Segmenter
    from realtime_skyseg.config import load_training
    from realtime_skyseg.plots import plot_cases, plot_history
    from realtime_skyseg.training.evaluate import evaluate, worst
    from realtime_skyseg.training.train import Training

    training = Training(load_training(options.config, options.set))
    path = training.run()
    scores, masks = evaluate(Segmenter.load(str(path), "torch"), training.validation)
    plot_history(training.history, training.report_folder / "curves.png")
    plot_cases(worst(scores, training.validation, masks), training.report_folder / "worst.png")
    print(f"model: {path}, report: {training.report_folder}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from realtime_skyseg import terminal
    from realtime_skyseg.analysis import Segmenter
    from realtime_skyseg.training.evaluate import changed, evaluate, worst
    from realtime_skyseg.training.labelled import label_values, read_labelled

    values = label_values(options.label_values) if options.label_values else None
    pairs = read_labelled(options.images, options.labels, options.table, options.fold, values)
    segmenter = Segmenter.load(options.model, options.engine)
    pairs = changed(pairs, options.invert, options.zoom, options.noise)
    scores, masks = evaluate(segmenter, pairs)
    terminal.show_scores(terminal.console(), scores.as_dict())
    if options.json:
        record = {"model": segmenter.model.name, "engine": segmenter.engine.name, **scores.as_dict()}
        _write_json(options.json, record)
    sureness = scores.sureness()
    if options.plot and sureness:
        from realtime_skyseg.plots import plot_cases, plot_sureness

        plot_sureness(sureness, options.plot / "sureness.png")
        plot_cases(worst(scores, pairs, masks), options.plot / "worst.png")
        print(f"pictures: {options.plot}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from realtime_skyseg.bench import against, bench, cases_of, draw, report, report_against, saturation

    rates = []
    for text in options.rate_hz or ["25"]:
        try:
            rates.append(None if text == "max" else float(text))
        except ValueError:
            raise SettingsError(f"--rate-hz '{text}': allowed: frames per second, or max") from None
    models, engines = options.model or ["compact"], options.engine or ["auto"]
    cases = cases_of(models, engines, options.size or [], rates, options.seconds, options.source, options.objects)
    if options.against or options.saturation:
        if len(cases) > 1 or (options.against and options.saturation):
            raise SettingsError("--against, --saturation: allowed: one of them, with one model, engine, size and rate")

        def tell(line: str) -> None:
            print(line, file=sys.stderr)

        if options.against:
            figures = against(cases[0], options.rounds, options.tensorflow, tell)
            report_against(figures, print)
        else:
            figures = saturation(cases[0], tell)
            print(f"highest rate with no frame missed: {figures['rate_hz']} Hz")
    else:
        figures = bench(cases)
        report(figures, print)
        if options.plot:
            draw(figures, options.plot)
    if options.json:
        _write_json(options.json, figures)
    return 0


def _export(options: argparse.Namespace) -> int:
    from realtime_skyseg.segmentation import load_model, open_engine
    from realtime_skyseg.segmentation.cache import cache_folder

    if options.out and options.engine != "onnx":
        raise SettingsError(f"--out '{options.out}': allowed with --engine onnx; engines are kept in the user's cache")
    try:
        height, width = (int(side) for side in options.size.lower().split("x"))
    except ValueError:
        height = width = 0
    if not 16 <= min(height, width) <= max(height, width) <= 8192:
        raise SettingsError(f"--size '{options.size}': allowed: HEIGHTxWIDTH of 16 to 8192 px, for example 512x672")
    model = load_model(options.model)
    if options.engine == "onnx":
        from realtime_skyseg.segmentation.onnx_file import write_onnx

        height, width = model.shape.padded((height, width))
        out = options.out or Path(f"{model.name}-{height}x{width}.onnx")
        write_onnx(model, (height, width), out)
        print(f"{out}: image (1, 1, {height}, {width}) float32 -> mask uint8, float16 inside; not compared with torch")
        return 0
    engine = open_engine(model, (height, width), options.engine)
    where = "built at each start" if engine.name == "torch" else f"kept in {cache_folder()}"
    print(
        f"{model.name} for {height}x{width} px: {engine.name} on {engine.device} in {engine.precision}, {where}; "
        f"agrees with torch float32 on {engine.agreement:.2%} of the pixels"
    )
    return 0


def _quantise(options: argparse.Namespace) -> int:
    from realtime_skyseg.segmentation import load_model
    from realtime_skyseg.segmentation.quantise import quantise
    from realtime_skyseg.training.labelled import read_labelled

    model = load_model(options.model)
    pairs = read_labelled(options.images, options.labels, options.table, options.fold)
    agreement = quantise(model, [pair.image for pair in pairs])
    print(f"{model.quantised}: agrees with torch float32 on {agreement:.2%} of the pixels; now run `skyseg evaluate`")
    return 0


def _import(options: argparse.Namespace) -> int:
    from realtime_skyseg.segmentation.keras_file import import_keras

    out = options.out or options.file.with_suffix(".safetensors")
    classes = [name.strip() for name in options.classes.split(",")]
    print(f"model: {import_keras(options.file, classes, out)}")
    return 0


def _write_json(path: Path, record: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(record, indent=1))
    except OSError as error:
        raise SettingsError(f"--json: '{path}' cannot be written: {error.strerror}") from error


def _threshold(options: argparse.Namespace) -> int:
    from realtime_skyseg.segmentation.threshold import save_threshold

    print(f"model: {save_threshold(options.out, options.level, options.blur_px, options.bright)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
