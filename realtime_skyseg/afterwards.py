"""More quantities of a run that is over: analysers on its stored frames and masks, without segmenting again."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.analysers import RunningAnalyser, View
from realtime_skyseg.analysers.api import NETWORK_OUTPUTS
from realtime_skyseg.analysers.running import with_columns
from realtime_skyseg.analysers.trust import Trust
from realtime_skyseg.analysis import Segmenter
from realtime_skyseg.config import Config, validate
from realtime_skyseg.errors import ModelError, RunFileUnusableError, SettingsError
from realtime_skyseg.preparation import Preparation
from realtime_skyseg.quantities import Columns
from realtime_skyseg.records import FRAME_QUANTITIES, OBJECT_DTYPE, OBJECT_QUANTITIES, Image, Objects, Skipped
from realtime_skyseg.segmentation import load_model, shipped_models
from realtime_skyseg.storage import Run

#: Called with how many frames are done, and of how many.
Progress = Callable[[int, int | None], None]


def analysed_frames(run: Run, frames: Sequence[int] | None = None) -> list[int]:
    """Indices of the frames that were analysed: all, or those that are told.

    Raises:
        RunFileUnusableError: no frame of the run was analysed.
        SettingsError: a frame that is told was not.
    """
    table = run.table
    analysed = np.flatnonzero((table["skipped"] == Skipped.NOT_SKIPPED) & (table["written"] == 1)).tolist()
    if not analysed:
        raise RunFileUnusableError(f"run file '{run.path}' has no analysed frame")
    if missing := sorted(set(frames or ()) - set(analysed)):
        raise SettingsError(
            f"--frame: {missing[0]} was not analysed; allowed: a frame from {analysed[0]} to {analysed[-1]} that was"
        )
    return analysed if frames is None else sorted(set(frames))


class StoredImages:
    """The images of a run as they were segmented: raw, or prepared again. Ask for them in the order of the frames.

    Raises:
        RunFileUnusableError: its settings cannot be read.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        tree = {"camera": {"driver": "replay", "path": "bundled"}}
        if run.config.get("prepare"):
            tree["prepare"] = run.config["prepare"]
        config = validate(tree)
        shape = run.raw.shape[1], run.raw.shape[2]
        self._preparation = Preparation(config.prepare, shape, run.backgrounds()) if config.prepare else None
        self._live = run.table["skipped"] == Skipped.NOT_SKIPPED
        self._next = 0
        self._last: Image | None = None

    @property
    def are_raw(self) -> bool:
        """Nothing is done to them."""
        return self._preparation is None

    def __call__(self, frame: int) -> Image:
        """(height, width) of a whole frame; NaN beyond the crop of a preparation."""
        if self._preparation is None:
            image: Image = self._run.raw[frame]
            return image
        # What a frame becomes depends on those before it.
        for index in range(self._next, frame + 1):
            ready = self._preparation(self._run.raw[index], index, keep=bool(self._live[index]))
            self._last = self._preparation.place_image(ready.image) if index == frame else None
        self._next = max(self._next, frame + 1)
        if self._last is None or frame != self._next - 1:
            raise ValueError(f"frame {frame} after frame {self._next - 1}; allowed: frames in their order")
        return self._last


def measure_again(
    run: Run, analysers: Mapping[str, Mapping[str, Any] | None], progress: Progress | None = None
) -> tuple[NDArray[np.void], Objects, Columns]:
    """What analysers find in the frames of a run that were analysed.

    Args:
        run: open.
        analysers: settings of each by its name, as in the settings of a run.
        progress: called now and then.

    Returns:
        One row per frame that was analysed, `frame` and the quantities of frames; one row per object, `frame`, the
        columns of `OBJECT_DTYPE` and the quantities of objects; and all of these quantities by name.

    Raises:
        SettingsError: an analyser or its settings are not known, or it fails.
        RunFileUnusableError: no frame was analysed.
    """
    config = validate({"camera": {"driver": "replay", "path": "bundled"}, "analysers": dict(analysers)})
    running = [one for one in config.open_analysers(math.inf) if one.pace == "every_frame"]
    analysed = analysed_frames(run)
    columns = [quantity for one in running for quantity in one.of("object")]
    of_frame = [quantity for one in running for quantity in one.of("frame")]
    frames = np.empty(len(analysed), [("frame", "i8"), *((one.name, one.dtype) for one in of_frame)])
    objects = []
    for row, (index, view) in enumerate(zip(analysed, views(run, analysed, _outputs(run, running)), strict=True)):
        frames[row] = (index, *(one.fill for one in of_frame))
        if np.isfinite(view.values["count"]):  # else it shows nothing
            for one in running:
                found = one(view)
                if one.failed:  # live that is an event; here nobody would hear of it
                    raise SettingsError(found.events[0][1])
                view.values.update(found.values)
                view.objects = with_columns(view.objects, found.columns, one.of("object"))
            for quantity in of_frame:
                frames[quantity.name][row] = view.values.get(quantity.name, quantity.fill)
            objects.append(_with_frame(view.objects, index))
        if progress:
            progress(row + 1, len(analysed))
    if not objects:
        objects = [_with_frame(with_columns(np.empty(0, OBJECT_DTYPE), {}, columns), 0)]
    declared = {one.name: one for one in (*OBJECT_QUANTITIES.values(), *columns, *of_frame)}
    return frames, np.concatenate(objects), declared


def views(
    run: Run, frames: Sequence[int], outputs: Callable[[bool, str, Image], NDArray[np.float32]] | None = None
) -> Iterator[View]:
    """Analysed frames of a run, in their order, as analysers see them; `outputs`: of the network."""
    table, images, trust = run.table, StoredImages(run), _trust_of(run)
    for index in frames:
        inverted = bool(table["polarity"][index] > 0)
        yield View(
            index, float(table["time_s"][index]), float(table["field_mT"][index]), images(index), run.mask[index],
            _plain(run.objects(index)), {name: float(table[name][index]) for name in FRAME_QUANTITIES},
            run.pixel_size_um, partial(outputs, inverted) if outputs else None, inverted, trust,
        )  # fmt: skip


def _trust_of(run: Run) -> Trust | None:
    """How far the results of the run's own weights can be believed; None: nobody knows, or they are not at hand."""
    try:
        model = _segmenter_of_run(run).model
    except (SettingsError, ModelError):
        return None
    return Trust.of(model.trust) if model.sha256 == run.provenance["weights_sha256"] else None


def _segmenter_of_run(run: Run) -> Segmenter:
    """With the run's own settings; of its own weights, if they are at hand."""
    tree = {"camera": {"driver": "replay", "path": "bundled"}, "analysis": run.config.get("analysis", {})}
    return segmenter_of(validate(tree), run.provenance["weights_sha256"])


def _plain(objects: Objects) -> Objects:
    """The columns that are always there."""
    rows = np.empty(len(objects), OBJECT_DTYPE)
    for name in OBJECT_DTYPE.names or ():
        rows[name] = objects[name]
    return rows


def _with_frame(objects: Objects, frame: int) -> Objects:
    names = objects.dtype.names or ()
    rows = np.empty(len(objects), [("frame", "i8"), *((name, objects.dtype[name]) for name in names)])
    rows["frame"] = frame
    for name in names:
        rows[name] = objects[name]
    return rows


def segmenter_of(config: Config, sha256: str) -> Segmenter:
    """With the model of the settings; or, if that is another one by now, with the shipped one of these weights."""
    segmenter = Segmenter.of(config.analysis, config.measure)
    if segmenter.model.sha256 == sha256 or config.analysis.model not in shipped_models():
        return segmenter
    for name in shipped_models():
        if load_model(name).sha256 == sha256:
            return Segmenter.of(config.analysis.model_copy(update={"model": name}), config.measure)
    return segmenter


def _outputs(run: Run, running: list[RunningAnalyser]) -> Callable[[bool, str, Image], NDArray[np.float32]] | None:
    """Of the run's own network, if an analyser needs it."""
    if not any(set(NETWORK_OUTPUTS) & one.analyser.needs for one in running):
        return None
    told = run.provenance["weights_sha256"]
    segmenter = _segmenter_of_run(run)
    if segmenter.model.sha256 != told:
        raise RunFileUnusableError(
            f"run file '{run.path}' was analysed with other weights ({told[:16]}...) than '{segmenter.model.name}' has "
            "now; allowed: analysers that do not need the network"
        )
    return segmenter.network_outputs()
