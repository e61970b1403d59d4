"""What a notebook sees: segmentations, segmenters and runs that show themselves, and draw on given axes."""

import base64
import html
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from realtime_skyseg import analysis, storage
from realtime_skyseg.analysers.selection import chosen_skyrmions, points_of
from realtime_skyseg.plots.pictures import busiest_frame, draw_grey, draw_outlines, overlay
from realtime_skyseg.plots.quantities import draw
from realtime_skyseg.records import Image, Segmentation
from realtime_skyseg.tables import (
    Table,
    diffusion_of,
    frame_table,
    object_table,
    objects_as_table,
    step_table,
    track_table,
)

#: Width of a picture in a notebook, px.
_WIDTH = 480


@dataclass(slots=True)
class ShownSegmentation(Segmentation):
    """A segmentation that keeps its image, to show itself."""

    image: Image | None = None

    def to_pandas(self) -> Any:
        """The objects as a `pandas.DataFrame`, units in the names; pandas has to be installed."""
        return self.table.to_pandas()

    @property
    def table(self) -> Table:
        """The objects, one per row, with units in the names of columns."""
        return objects_as_table(self.objects)

    @property
    def points(self) -> NDArray[np.float64]:
        """(n, 2) x and y of the skyrmions, without stripes, in px."""
        return points_of(self.objects)[chosen_skyrmions(self.objects)]

    def plot(self, axis: Axes | None = None) -> Axes:
        """Draw the image with the outlines of what was found, on axes of your own or new ones."""
        axis = axis or _new_axes()
        if self.image is not None:
            draw_grey(axis, self.image)
        draw_outlines(axis, self.mask)
        axis.set_title(self._told(), fontsize=10)
        return axis

    def _told(self) -> str:
        if self.count is None:
            return "shows nothing"
        return f"{self.count} skyrmions, {self.stripes} stripes, area fraction {self.area_fraction:.3f}"

    def _repr_html_(self) -> str:
        outlined = overlay(np.zeros(self.mask.shape, np.uint8) if self.image is None else self.image, self.mask)
        return f"<p>{html.escape(self._told())}</p>{_picture(outlined)}"

    def __repr__(self) -> str:
        return f"<Segmentation of {self.mask.shape[0]}x{self.mask.shape[1]} px: {self._told()}>"


class Segmenter(analysis.Segmenter):
    """A model with its engine and the rules of measurement. Used by one thread at a time.

    >>> import realtime_skyseg as sky
    >>> segmentation = sky.Segmenter.load("compact")(image)
    >>> segmentation.count > 0, segmentation.mask.shape
    (True, (512, 672))

    The engine is made for one frame size: on the first image, or by `open`; another size makes another engine.
    """

    def __call__(self, image: Image, *args: Any, **more: Any) -> ShownSegmentation:
        """Segment and measure an image; see `realtime_skyseg.analysis.Segmenter`. The result keeps the image."""
        found = super().__call__(image, *args, **more)
        return ShownSegmentation(**{one.name: getattr(found, one.name) for one in fields(found)}, image=image)

    def __repr__(self) -> str:
        return f"<Segmenter of {self._told()}>"

    def _repr_html_(self) -> str:
        return f"<p>Segmenter of {html.escape(self._told())}</p>"

    def _told(self) -> str:
        model = self.model
        told = f"model {model.name}, SHA-256 {model.sha256[:12]}"
        if self._engine is None:
            return f"{told}; its engine is made with the first image"
        engine = self._engine
        return f"{told}; {engine.name} ({engine.precision}) on {engine.device}, {self._shape[0]}x{self._shape[1]} px"


class Run(storage.Run):
    """An open run file that shows itself. Close it, or use it as a context manager.

    `objects`, `frames`, `tracks` and `steps` of `tables` are columns with units in their names, and become a
    `pandas.DataFrame` by `to_pandas()`.
    """

    @property
    def tables(self) -> "Tables":
        """The numbers of the run as tables."""
        return Tables(self)

    def plot(self, what: str = "frame", axis: Axes | None = None, frame: int | None = None) -> Axes:
        """Draw one of the pictures of `skyseg info --show` on axes of your own or new ones.

        Args:
            what: frame, counts, loop, cells, distances, gr, sq, tracks, msd, vanhove, pins, dwell, mobility,
                map:QUANTITY, or histogram:QUANTITY.
            axis: to draw on.
            frame: of pictures of one frame; None: the one with the most objects.

        Raises:
            SettingsError: there is no such picture.
            RunFileUnusableError: the run does not have what it shows.
        """
        axis = axis or _new_axes()
        draw(axis, self, what, frame)
        return axis

    def diffusion(self) -> tuple[float, float, str]:
        """The diffusion constant of all skyrmions, its standard error, and their unit; see docs/quantities.md."""
        return diffusion_of(self)

    def _told(self) -> str:
        table = self.table
        counts = table["count"][np.isfinite(table["count"])]
        told = f"{self.path.name}, {self.state}: {self.n_frames} frames of {self.raw.shape[1]}x{self.raw.shape[2]} px"
        return told + (f", {counts.min():.0f} to {counts.max():.0f} skyrmions" if len(counts) else ", none analysed")

    def __repr__(self) -> str:
        return f"<Run {self._told()}>" if self._file else f"<closed Run {self.path.name}>"

    def _repr_html_(self) -> str:
        if not self._file:
            return f"<p>closed run file {html.escape(self.path.name)}</p>"
        told = f"<p>{html.escape(self._told())}</p>"
        if not np.isfinite(self.table["count"]).any():
            return told
        frame = busiest_frame(self)
        return f"{told}{_picture(overlay(self.raw[frame], self.mask[frame]))}<p>frame {frame}</p>"


class Tables:
    """The numbers of a run, one table per kind."""

    def __init__(self, run: storage.Run) -> None:
        self._run = run

    @property
    def frames(self) -> Table:
        """One row per frame."""
        return frame_table(self._run)

    @property
    def objects(self) -> Table:
        """One row per object."""
        return object_table(self._run)

    @property
    def tracks(self) -> Table:
        """One row per skyrmion that is followed."""
        return track_table(self._run)

    @property
    def steps(self) -> Table:
        """One row per step of the field programme. Raises `SettingsError` where there was none."""
        return step_table(self._run)

    def measure(self, **analysers: Mapping[str, Any]) -> Table:
        """One row per object, with what analysers find now: `tables.measure(shapes={}, lattice={})`."""
        return object_table(self._run, analysers=analysers)


def open_run(path: str | Path) -> Run:
    """Open a run file that is finished, being written, or was left behind by a kill.

    Raises:
        RunFileUnusableError: there is no such file, or it is not a run file.
    """
    return Run(path)


def _new_axes() -> Axes:
    """Of a figure that the notebook shows."""
    return plt.subplots(figsize=(7, 5.4), layout="constrained")[1]


def _picture(image: NDArray[np.uint8]) -> str:
    """An image of red, green, blue for a notebook, not wider than `_WIDTH`."""
    if image.shape[1] > _WIDTH:
        size = _WIDTH, max(1, image.shape[0] * _WIDTH // image.shape[1])
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(coded.tobytes()).decode()}"/>'
