"""Offline analysis by the code of live runs: recordings become run files, and run files get the results they lack, or
are analysed again as a whole.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realtime_skyseg.afterwards import segmenter_of
from realtime_skyseg.analysis import FramePath, Segmenter
from realtime_skyseg.config import Config, validate
from realtime_skyseg.errors import ModelError, RunFileError, RunFileUnusableError, SettingsError
from realtime_skyseg.pipeline import Pipeline
from realtime_skyseg.preparation import Preparation
from realtime_skyseg.recordings import kind_of
from realtime_skyseg.records import Event, Frame, Result, Skipped
from realtime_skyseg.service import Service
from realtime_skyseg.storage import Run, RunFiller, crc32, open_run

#: What may differ where the results must not.
_HARMLESS = ("analysis.engine", "analysis.threads")

_RUN_SUFFIXES = (".h5", ".hdf5", ".nxs", ".partial")

#: Frames that were analysed live and are analysed again first: their masks must come out bit-equal.
_PROBES = 3


#: Called with how many frames are done, and of how many; None where nobody knows.
Progress = Callable[[int, int | None], None]


def analyse(
    path: Path,
    out: Path,
    overrides: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    accept_other: bool = False,
    progress: Progress | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Analyse a recording or a folder of images, or fill in what a run file lacks; gives a summary like that of a run.

    Args:
        path: what the replay camera reads, or a finished run file.
        out: folder of the new file, which has the name of `path`. Never overwritten.
        overrides: "key.subkey=value" texts that replace settings.
        settings: of the analysis of a recording; absent: those of `skyseg run` where nothing is said. A run file
            brings its own.
        accept_other: fill in results even where they would not be equal to live ones, because of another engine,
            device or version, or of a preparation that depends on frames which are not in the file.
        progress: called now and then.
        again: analyse all frames of a run file, with its own settings as `overrides` change them.

    Raises:
        SettingsError: a path or a setting is wrong, or the new file exists.
        SkysegError: what else stops a run, or results would not be equal to those of the live run.
    """
    path = path.expanduser()
    if path.is_file() and path.suffix in _RUN_SUFFIXES and kind_of(path) == "run":
        with open_run(path) as run:
            if run.state == "unfinished":
                raise RunFileUnusableError(f"run file '{path}' is not finished; allowed: first `skyseg recover {path}`")
            if not run.table["written"].any():
                raise RunFileUnusableError(f"run file '{path}' holds no frames; allowed: at least 1")
            if not again:
                return _fill(run, out / path.name, overrides, accept_other, progress)
            settings = _settings_again(run)
    elif again:
        raise SettingsError(f"--again: '{path}' is no run file; allowed: run files, as all else is analysed for once")
    elif (settings or {}).get("prepare", {}).get("background") == "take":
        raise SettingsError(
            "prepare.background: 'take' needs somebody who takes it; allowed: a file, rolling_median, or none"
        )
    return _record(path, out, overrides, settings or {}, progress)


def _settings_again(run: Run) -> dict[str, Any]:
    """The run's own settings, with its last background in place of one that was taken."""
    tree = {name: dict(run.config.get(name) or {}) for name in ("prepare", "analysis", "measure")}
    told = {key: value for key, value in (run.config.get("record") or {}).items() if key in ("sample", "operator")}
    title = run.provenance["title"]
    if tree["prepare"].get("background") == "take":
        taken = sum(1 for _ in run.backgrounds())
        if taken > 1:
            raise SettingsError(
                f"--again: run file '{run.path}' has {taken} backgrounds, and one is needed for all its frames; "
                "allowed: --set prepare.background=FILE"
            )
        tree["prepare"]["background"] = str(run.path) if taken else "none"
    if not tree["prepare"]:
        tree.pop("prepare")
    return {**tree, "record": {**told, "title": f"{title}, analysed again from {run.path.name}"}}


def _record(
    path: Path,
    out: Path,
    overrides: Sequence[str],
    settings: dict[str, Any],
    progress: Progress | None,
) -> dict[str, Any]:
    """The live service on a recording that waits for it."""
    tree = {
        **settings,
        "camera": {"driver": "replay", "path": str(path), "rate_hz": "max"},
        "analysis": {**settings.get("analysis", {}), "policy": "every"},
        "stream": {"enabled": False},
        "control": {"enabled": False},
        "record": {**settings.get("record", {}), "folder": str(out), "name": _name(path)},
    }
    for live_only in ("field", "experiment", "metrics", "access"):
        tree.pop(live_only, None)

    def watch(pipeline: Pipeline) -> None:
        if progress:
            progress(pipeline.counters.analysed, None)

    return Service(validate(tree, overrides)).run(watch).as_dict()


def _name(path: Path) -> str:
    path = path.resolve()
    return path.stem if path.is_file() else path.name


def _fill(
    run: Run, target: Path, overrides: Sequence[str], accept_other: bool, progress: Progress | None
) -> dict[str, Any]:
    table = run.table
    recorded, live = table["written"] == 1, table["skipped"] == Skipped.NOT_SKIPPED
    for override in overrides:
        if override.partition("=")[0].strip() not in _HARMLESS and not override.startswith("analysis.model="):
            raise SettingsError(
                f"--set {override}: only what run file '{run.path}' lacks is analysed, with its own settings; "
                "allowed: with --again, which analyses all its frames"
            )
    config = _settings_of(run, overrides)
    told = run.provenance["weights_sha256"]
    segmenter = segmenter_of(config, told)
    if segmenter.model.sha256 != told:
        raise ModelError(
            f"analysis.model: '{config.analysis.model}' has the SHA-256 {segmenter.model.sha256[:16]}..., but the run "
            f"was analysed with {told[:16]}...; allowed: the run's own model, or --again for all frames"
        )
    if config.prepare and not accept_other and (live & ~recorded).any():
        raise RunFileError(
            f"run file '{run.path}': frames were analysed that are not in the file, and prepare depends on the frames "
            "before; allowed: --accept-other, for results that may differ from live ones"
        )
    compared = "not compared with live results" if accept_other else _compare(run, live, segmenter, config)
    analysis = _Analysis(run, segmenter, config)
    filler = RunFiller(run.path, target)
    try:
        for index in np.flatnonzero(recorded):
            result = analysis(int(index), bool(live[index]), not live[index])
            if result is not None:
                filler.add_result(result)
                if progress:
                    progress(filler.filled, int((recorded & ~live).sum()))
        message = "no frame lacked a result"
        if filler.filled:
            engine = f"{segmenter.engine.name} ({segmenter.engine.precision}) on {segmenter.engine.device}"
            message = f"{filler.filled} frames were analysed afterwards by {segmenter.model.name}, {engine}; {compared}"
        summary = filler.close(Event(time.time_ns(), "analysed_afterwards", message))
    finally:
        filler.abandon()
    return summary | {"exit_status": 0, "run_file": str(target), "run_files": [str(target)], "filled": message}


def _settings_of(run: Run, overrides: Sequence[str]) -> Config:
    """The run's own settings, with the engine that `auto` chose then, and without what is not needed here."""
    tree = {
        name: section for name, section in run.config.items() if name in ("prepare", "analysis", "measure", "analysers")
    }
    tree["camera"] = {"driver": "replay", "path": "bundled"}
    # Of runs whose version had not these settings yet.
    before = dict.fromkeys(("captions", "rings", "specks", "large_domains", "close_gaps"), False)
    tree["analysis"] = {**before, **tree.get("analysis", {}), "engine": run.provenance["engine"]}
    return validate(tree, overrides)


class _Analysis:
    """The frames' way through a run that was recorded. Frames are taken in order."""

    def __init__(self, run: Run, segmenter: Segmenter, config: Config) -> None:
        self._run = run
        self._numbers = table = run.table
        # What was known before each frame: what the last one that was analysed live had told.
        live = np.where(table["skipped"] == Skipped.NOT_SKIPPED, np.arange(len(table)), -1)
        before = np.concatenate([[-1], np.maximum.accumulate(live)[:-1]]) if len(table) else live
        self._polarity = np.where(before >= 0, table["polarity"][before], 0)
        height, width = run.raw.shape[1:]
        preparation = Preparation(config.prepare, (height, width), run.backgrounds()) if config.prepare else None
        self._path = FramePath(segmenter, preparation, config.open_analysers(math.inf), config.measure.pixel_size_um)

    def __call__(self, index: int, live: bool, wanted: bool) -> Result | None:
        """The result of a frame, if it is wanted; see `FramePath`."""
        if not wanted and self._path.preparation is None:
            return None
        image, row = self._run.raw[index], self._numbers[index]
        frame = Frame(
            image, int(row["number"]), int(row["camera_ns"]), float(row["field_mT"]), index=index,
            received_ns=int(row["received_ns"]),
        )  # fmt: skip
        self._path.polarity = int(self._polarity[index])
        result = self._path(frame, live, wanted)
        if result:
            result.source_crc32 = crc32(image)
            result.segmented_ns = time.time_ns()
        return result


def _compare(run: Run, live: np.ndarray, segmenter: Segmenter, config: Config) -> str:
    """Analyse frames again that were analysed live: their masks must come out bit-equal. Says what was compared."""
    analysis = _Analysis(run, segmenter, config)
    places = np.flatnonzero(live)
    if not len(places):
        return "there was no live result to compare with"
    # What a prepared frame becomes depends on those before, so that only the first are cheap to have again.
    probes = set(places[:_PROBES] if config.prepare else places[np.linspace(0, len(places) - 1, _PROBES).astype(int)])
    for index in range(max(probes, default=-1) + 1):
        if live[index] and (again := analysis(index, True, index in probes)):
            differ = int((again.segmentation.mask != run.mask[index]).sum())
            if differ:
                raise ModelError(
                    f"run file '{run.path}': frame {index} comes out differently from the live run, in {differ} "
                    f"pixels, with {segmenter.engine.name} on {segmenter.engine.device}; allowed: the engine and "
                    "device of the run, or --accept-other"
                )
    return f"{len(probes)} live results came out equal"
