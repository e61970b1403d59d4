"""The `skyseg` command. Parses, calls, prints; everything else is elsewhere."""

import argparse
import json
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from realtime_skyseg.errors import SettingsError, SkysegError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 all well, 1 lost frames or a fault, 2 wrong use or settings."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.CRITICAL, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        status: int = options.command(options)
    except SkysegError as error:
        print(f"skyseg: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has left.
        sys.stderr.close()
        return 0
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skyseg", description="Live segmentation of magnetic skyrmions in Kerr microscopy."
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens to stderr")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a value of the settings"
    )
    run_options = argparse.ArgumentParser(add_help=False, parents=[settings])
    run_options.add_argument("--json", action="store_true", help="print the summary as one JSON object last")
    run_options.add_argument("--plot", type=Path, metavar="PNG", help="draw the run when it has ended")

    command = commands.add_parser("demo", parents=[run_options], help="the main job on the bundled synthetic recording")
    command.set_defaults(command=_demo)
    command = commands.add_parser("run", parents=[run_options], help="the service, until the camera ends or Ctrl-C")
    command.add_argument("config", type=Path, help="YAML settings")
    command.set_defaults(command=_run)

    command = commands.add_parser("watch", help="print a running service's stream")
    command.add_argument("address", nargs="?", help="of the service, tcp://HOST:PORT; default: that of the settings")
    command.add_argument("--once", action="store_true", help="leave at the end of the run")
    command.set_defaults(command=_watch)

    command = commands.add_parser("check", parents=[settings], help="validate settings without touching hardware")
    command.add_argument("config", type=Path, help="YAML settings")
    command.set_defaults(command=_check)

    command = commands.add_parser("info", help="look into a run file")
    command.add_argument("file", type=Path)
    command.add_argument("--plot", type=Path, metavar="PNG", help="draw the run")
    command.set_defaults(command=_info)

    command = commands.add_parser("models", help="list the shipped models")
    command.set_defaults(command=_models)

    command = commands.add_parser("train", parents=[settings], help="train a model on labelled images")
    command.add_argument("config", type=Path, help="YAML settings of the training")
    command.set_defaults(command=_train)

    command = commands.add_parser("evaluate", help="score a model on labelled images")
    command.add_argument("--images", type=Path, required=True, help="folder of images")
    command.add_argument("--labels", type=Path, required=True, help="folder of label pictures of the same names")
    command.add_argument("--table", type=Path, help="CSV with the columns image, source_id, fold")
    command.add_argument("--fold", type=int, action="append", help="only this fold; may be repeated")
    command.add_argument("--model", default="compact", help="a shipped model or a file; default: %(default)s")
    command.add_argument("--engine", default="auto", choices=("auto", "torch", "openvino"), help="default: %(default)s")
    command.add_argument(
        "--invert", action="store_true", help="score on inverted images: bright skyrmions instead of dark"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write all figures, per image too")
    command.set_defaults(command=_evaluate)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from realtime_skyseg.config import DEMO, validate

    return _serve(validate(DEMO, options.set), options)


def _run(options: argparse.Namespace) -> int:
    from realtime_skyseg.config import load_config

    return _serve(load_config(options.config, options.set), options)


def _serve(config: Any, options: argparse.Namespace) -> int:
    from realtime_skyseg import terminal
    from realtime_skyseg.service import Service

    console = terminal.console()
    service = Service(config)
    before = {number: signal.signal(number, lambda *_: service.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with terminal.run_display(console) as display:
            summary = service.run(display)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    terminal.show_summary(console, summary)
    if options.plot and summary.frames["analysed"]:
        from realtime_skyseg.plots import plot_run
        from realtime_skyseg.storage import open_run

        with open_run(summary.run_file) as run:
            plot_run(run, options.plot)
        console.print(f"picture: {options.plot}")
    if options.json:
        print(json.dumps(summary.as_dict()))
    if summary.message:
        print(f"skyseg: {summary.message}", file=sys.stderr)
    return summary.exit_status


def _watch(options: argparse.Namespace) -> int:
    from realtime_skyseg import terminal
    from realtime_skyseg.config import DEFAULT_ADDRESS
    from realtime_skyseg.streaming import Subscriber

    with Subscriber(options.address or DEFAULT_ADDRESS) as subscriber:
        terminal.show_stream(terminal.console(), subscriber, options.once)
    return 0


def _check(options: argparse.Namespace) -> int:
    from realtime_skyseg.config import load_config
    from realtime_skyseg.segmentation.model import load_model

    config = load_config(options.config, options.set)
    load_model(config.analysis.model)
    print(config.to_yaml(), end="")
    print(f"# {options.config}: valid")
    return 0


def _info(options: argparse.Namespace) -> int:
    from realtime_skyseg import terminal
    from realtime_skyseg.storage import open_run

    with open_run(options.file) as run:
        terminal.show_run(terminal.console(), run)
        if options.plot:
            from realtime_skyseg.plots import plot_run

            plot_run(run, options.plot)
            print(f"picture: {options.plot}")
    return 0


def _models(_: argparse.Namespace) -> int:
    from realtime_skyseg.segmentation.model import load_model, shipped_models

    for name in shipped_models():
        model = load_model(name)
        figures = ", ".join(f"{key} {value}" for key, value in model.training.get("validation", {}).items())
        print(f"{name}: {model.network}, sha256 {model.sha256[:16]}, validation: {figures or 'unknown'}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from realtime_skyseg.config import load_training
    from realtime_skyseg.training.train import train

    print(f"model: {train(load_training(options.config, options.set))}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from realtime_skyseg.segmenter import Segmenter
    from realtime_skyseg.training.evaluate import evaluate

    segmenter = Segmenter.load(options.model, options.engine)
    scores = evaluate(segmenter, options.images, options.labels, options.table, options.fold, options.invert)
    for name, value in scores.figures().items():
        print(f"{name:18} {value:.4f}")
    if options.json:
        record = {"model": segmenter.model.name, "engine": segmenter.engine.name, **scores.as_dict()}
        try:
            options.json.write_text(json.dumps(record, indent=1))
        except OSError as error:
            raise SettingsError(f"--json: '{options.json}' cannot be written: {error.strerror}") from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
