"""Frames with the outlines of what was found in them, scale bars, and writing pictures."""

import math
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from numpy.typing import NDArray

from realtime_skyseg.afterwards import analysed_frames
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import Class, Image, Mask
from realtime_skyseg.storage import Run

#: Red, green, blue of each class's outline.
_COLOURS = {
    Class.SKYRMION: (255, 60, 60),
    Class.DEFECT: (60, 220, 60),
    Class.OUTSIDE: (250, 210, 40),
    Class.EDGE: (40, 210, 230),
}


def overlay(image: Image, mask: Mask) -> NDArray[np.uint8]:
    """The image in grey with the outlines of the mask's classes: (height, width, 3) uint8, red green blue."""
    low, high = _ends(image)
    grey = np.clip((image.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
    grey = np.nan_to_num(grey).astype(np.uint8)
    picture = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    for value, colour in _COLOURS.items():
        outlines, _ = cv2.findContours((mask == value).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour, 1)
    return np.asarray(picture, np.uint8)


def busiest_frame(run: Run, frame: int | None = None) -> int:
    """The analysed frame with the most objects, unless one is told.

    Raises:
        RunFileUnusableError: no frame of the run was analysed.
        SettingsError: the frame that is told was not.
    """
    if frame is not None:
        return analysed_frames(run, [frame])[0]
    analysed, table = analysed_frames(run), run.table
    objects = np.nan_to_num(table["count"][analysed] + table["stripes"][analysed])
    return analysed[int(np.argmax(objects))]


def _ends(image: Image) -> tuple[float, float]:
    """What is shown black and white."""
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def draw_grey(axis: Axes, image: Image, alpha: float = 1.0) -> None:
    """An image in grey, without axes."""
    low, high = _ends(image)
    axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="antialiased", alpha=alpha)
    axis.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    axis.set_axis_off()


def name_of(run: Run, frame: int) -> str:
    """A frame, with the name of its image if it has one."""
    names = run.frame_names
    return f"frame {frame}" if names is None else f"frame {frame} ({names[frame][:40]})"


def draw_outlines(axis: Axes, mask: Mask) -> None:
    """The outlines of all classes of a mask but film."""
    place = [np.arange(-1, side + 1) for side in mask.shape]
    for value, colour in _COLOURS.items():
        inside = np.pad(mask == value, 1)  # so that outlines close at the border
        if inside.any():
            axis.contour(place[1], place[0], inside, [0.5], colors=[np.divide(colour, 255)], linewidths=0.8)


def draw_frame(axis: Axes, run: Run, shown: int, table: NDArray[np.void]) -> None:
    """A frame as it was analysed, with the outlines of its mask, a scale bar, and what is known of it."""
    image = np.asarray(run.raw[shown], np.float32)
    below = [background for background in run.backgrounds() if background.first_frame <= shown]
    if below:
        image -= below[-1].image
    draw_grey(axis, image)
    draw_outlines(axis, run.mask[shown])
    row = table[shown]
    told = [name_of(run, shown)]
    told += [f"{row['time_s']:.2f} s"] if np.isfinite(row["time_s"]) else []
    told += [f"{row['field_mT']:.3g} mT"] if np.isfinite(row["field_mT"]) else []
    told += ["minus its background"] if below else []
    counted = (
        f"{row['count']:.0f} skyrmions, {row['stripes']:.0f} stripes" if np.isfinite(row["count"]) else "shows nothing"
    )
    axis.set_title(f"{', '.join(told)}\n{counted}", fontsize=10)
    scale_bar(axis, image.shape[1], run.pixel_size_um)


def round_length(most: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not beyond."""
    power = 10.0 ** math.floor(math.log10(most))
    return max(step * power for step in (1, 2, 5) if step * power <= most)


def scale_bar(axis: Axes, width_px: int, pixel_size_um: float | None) -> None:
    """A bar of a round length, about a fifth of the picture."""
    size, unit = (1.0, "px") if pixel_size_um is None else (pixel_size_um, "µm")
    length = round_length(0.2 * width_px * size)
    bar = AnchoredSizeBar(
        axis.transData, length / size, f"{length:g} {unit}", "lower right", size_vertical=1, fill_bar=True,
        borderpad=0.4, frameon=True,
    )  # fmt: skip
    bar.patch.set(alpha=0.6, linewidth=0)
    axis.add_artist(bar)


def save(figure: Figure, path: Path) -> None:
    """Write a picture. Raises `SettingsError` if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise SettingsError(f"picture '{path}' cannot be written: {error}") from error
