"""Commands that run the service: demo, run, sweep."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from realtime_skyseg.cli.files import decide_again
from realtime_skyseg.cli.output import drop_output, say_failure
from realtime_skyseg.errors import RunFileUnusableError, SettingsError


def demo_command(options: argparse.Namespace) -> int:
    """`skyseg demo`."""
    from realtime_skyseg.config import DEMO, validate

    return _serve(validate(DEMO, options.set), options)


def run_command(options: argparse.Namespace) -> int:
    """`skyseg run`."""
    from realtime_skyseg.config import load_config

    return _serve(load_config(options.config, options.set), options)


def sweep_command(options: argparse.Namespace) -> int:
    """`skyseg sweep`."""
    from realtime_skyseg.config import load_config, validate
    from realtime_skyseg.storage import open_run

    if options.check:
        if not (found := decide_again(options.check)):
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


@contextmanager
def _page_beside(config: Any) -> Iterator[None]:
    """The page of the settings, in a process of its own that ends with the run and can do it no harm."""
    if config.dashboard.port is None:
        yield
        return
    command = [sys.executable, "-m", "realtime_skyseg", "dashboard", config.stream.address]
    command += ["--port", str(config.dashboard.port), "--runs", str(config.record.folder)]
    command += ["--keys", str(config.access.keys)] if config.access.keys else []
    command += ["--control", *([config.control_address] if config.control_address else [])] * config.dashboard.control
    page = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        yield
    finally:
        page.terminate()
        try:
            page.wait(5)
        except subprocess.TimeoutExpired:
            page.kill()
            page.wait()


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
        with _page_beside(config), terminal.run_display(console, service) as display:
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
            drop_output()
            status = say_failure(f"the summary cannot be printed: {error.strerror}; run file '{summary.run_file}'", 1)
    if summary.message:
        say_failure(summary.message, status)
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
