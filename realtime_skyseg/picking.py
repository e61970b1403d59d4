"""What to label next: new and doubtful frames, with their masks as a first label; and where to correct them."""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.afterwards import analysed_frames, views
from realtime_skyseg.analysers import View
from realtime_skyseg.analysers.trust import Trust
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.exports import class_colormap, mask_picture
from realtime_skyseg.storage import open_run
from realtime_skyseg.training.labelled import read_label

#: Of each run at most so many frames are looked at, evenly spread.
_MOST_LOOKED = 300

#: A frame that nothing is doubtful in counts for so much of one in which all is.
_SURE = 0.25


@dataclass(frozen=True, slots=True)
class Picked:
    """A frame that a person should label."""

    run: Path
    frame: int
    time_s: float
    domain: float  # NaN: the model was not calibrated
    doubt: float  # 0: all is sure, 1: nothing


def pick(
    runs: Sequence[Path], n: int, apart_s: float = 1.0, progress: Callable[[int, int | None], None] | None = None
) -> list[Picked]:
    """Choose frames of runs: those that are farthest from all chosen ones and, weighted, those of most doubt.

    Greedy k-centre selection in the space of looks (O. Sener, S. Savarese, ICLR 2018), whose distances are multiplied
    by the doubt: the mean of 4 p (1 - p) over the objects' sureness p, or 1 - the domain score, whichever is more.

    Args:
        runs: run files.
        n: how many frames.
        apart_s: frames of a run that are nearer in time than this are not both chosen.
        progress: called now and then.

    Raises:
        SettingsError: there are no frames.
        RunFileUnusableError: a run cannot be read, or none of its frames was analysed.
    """
    found: list[Picked] = []
    looks: list[NDArray[np.float32]] = []
    trust = None
    for path in runs:
        with open_run(path) as run:
            analysed = analysed_frames(run)
            frames = analysed[:: -(-len(analysed) // _MOST_LOOKED)]
            for done, view in enumerate(views(run, frames)):
                if math.isfinite(view.values["count"]):
                    found.append(_doubtful(path, view))
                    looks.append(view.looks.frame)
                    trust = view.trust
                if progress:
                    progress(done + 1, len(frames))
    if not found:
        raise SettingsError("no frame of these runs shows anything; allowed: runs with results")
    places = _places(np.array(looks, np.float64), trust)
    weight = _SURE + (1 - _SURE) * np.array([one.doubt for one in found])
    # New is what is far from the images that the model was calibrated on; then what is far from those chosen before.
    far = np.full(len(found), np.inf) if trust is None else _distances(places, trust.known)
    chosen: list[int] = []
    free = np.ones(len(found), np.bool_)
    while len(chosen) < n and free.any():
        best = int(np.where(free, np.minimum(far, 1e9) * weight, -1).argmax())
        chosen.append(best)
        far = np.minimum(far, np.linalg.norm(places - places[best], axis=1))
        near = [one.run == found[best].run and abs(one.time_s - found[best].time_s) < apart_s for one in found]
        free &= ~np.array(near)
        free[best] = False
    return [found[index] for index in chosen]


def _doubtful(path: Path, view: View) -> Picked:
    if view.trust is None:
        return Picked(path, view.frame, view.time_s, math.nan, 1.0)
    domain = view.trust.judge(view.looks.frame).domain
    sure = view.trust.sureness(view.looks.objects)
    doubt = float((4 * sure * (1 - sure)).mean()) if len(sure) else 0.0
    return Picked(path, view.frame, view.time_s, domain, max(doubt, 1 - domain))


def _places(looks: NDArray[np.float64], trust: Trust | None) -> NDArray[np.float64]:
    """Frames in the space of looks: as the calibration knows them, else standardised by their own spread."""
    if trust is not None:
        return np.asarray(((looks - trust.centre) / trust.scale).clip(-8, 8) @ trust.axes, np.float64)
    return np.asarray((looks - looks.mean(0)) / (looks.std(0) + 1e-3), np.float64)


def _distances(places: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([math.sqrt(float(((known - place) ** 2).sum(1).min())) for place in places])


def write_picked(picked: Sequence[Picked], out: Path) -> None:
    """Write images, their masks as labels, and table.csv, in the layout that `skyseg train` reads.

    Raises:
        SettingsError: the folder exists, or cannot be written.
    """
    try:
        (out / "images").mkdir(parents=True)
        (out / "labels").mkdir()
        with (out / "table.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["image", "source_id", "fold", "run", "frame", "time_s", "domain", "doubt"])
            for run_path in dict.fromkeys(one.run for one in picked):
                ones = sorted((one for one in picked if one.run == run_path), key=lambda one: one.frame)
                with open_run(run_path) as run:
                    for one, view in zip(ones, views(run, [one.frame for one in ones]), strict=True):
                        name = f"{run_path.stem}-{one.frame:06d}.png"
                        _write_pair(out, name, view)
                        numbers = [f"{number:.3f}" for number in (one.time_s, one.domain, one.doubt)]
                        lines.writerow([name, run_path.stem, 0, run_path, one.frame, *numbers])
    except FileExistsError:
        raise SettingsError(f"--out: '{out}' exists already; allowed: a new folder") from None
    except OSError as error:
        raise SettingsError(f"--out: '{out}' cannot be written: {error.strerror}") from error


def _write_pair(out: Path, name: str, view: View) -> None:
    """Image and label without what is beyond a crop; an image of floats becomes one of 16 bits, as bright as it can."""
    image: Any = view.image
    finite = np.isfinite(image)
    down, right = np.flatnonzero(finite.any(1)), np.flatnonzero(finite.any(0))
    part = np.s_[down[0] : down[-1] + 1, right[0] : right[-1] + 1]
    image = image[part]
    if image.dtype not in (np.uint8, np.uint16):
        low, high = float(np.nanmin(image)), float(np.nanmax(image))
        image = np.rint((np.nan_to_num(image, nan=low) - low) * (65535 / max(high - low, 1e-9))).astype(np.uint16)
    (out / "images" / name).write_bytes(bytes(cv2.imencode(".png", image)[1]))
    (out / "labels" / name).write_bytes(mask_picture(np.ascontiguousarray(view.mask[part])))


class Annotation:
    """Pictures of a folder of `skyseg pick` one after the other in a napari viewer; what is drawn is saved.

    Keys: n the next picture, b the one before. Closing the window saves too.

    Args:
        viewer: a `napari.Viewer`.
        folder: with images/ and labels/.

    Raises:
        SettingsError: the folder has no images, or a label cannot be read.
    """

    def __init__(self, viewer: Any, folder: Path) -> None:
        self.names = sorted(path.name for path in (folder / "images").glob("*.png"))
        if not self.names:
            raise SettingsError(f"'{folder}' has no images/*.png; allowed: a folder of skyseg pick")
        self._folder, self._viewer = folder, viewer
        self._at = 0
        viewer.bind_key("n", lambda _: self.go(1))
        viewer.bind_key("b", lambda _: self.go(-1))
        self.show()

    @property
    def classes(self) -> Any:
        """The layer that is drawn on: 0 film, 1 skyrmion, 2 defect, 3 outside, 4 edge."""
        return self._viewer.layers["classes"]

    def show(self) -> None:
        """Bring the picture that is meant."""
        name = self.names[self._at]
        image: Any = cv2.imread(str(self._folder / "images" / name), cv2.IMREAD_UNCHANGED)
        mask = read_label(self._folder / "labels" / name)
        self._viewer.layers.clear()
        self._viewer.add_image(image, name="image", colormap="gray", contrast_limits=np.percentile(image, (0.5, 99.5)))
        labels = self._viewer.add_labels(mask, name="classes", colormap=class_colormap(), opacity=0.4)
        labels.selected_label, labels.brush_size = 1, 6
        self._viewer.title = f"{name}, {self._at + 1} of {len(self.names)}: n next, b back, 1 skyrmion, 0 film"

    def go(self, by: int) -> None:
        """Save, and go so many pictures on."""
        self.save()
        self._at = (self._at + by) % len(self.names)
        self.show()

    def save(self) -> None:
        """Write the label as it is drawn now."""
        mask = np.asarray(self.classes.data).clip(0, 4).astype(np.uint8)
        (self._folder / "labels" / self.names[self._at]).write_bytes(mask_picture(mask))
