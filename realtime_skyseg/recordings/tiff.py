"""TIFF files: plain, ImageJ, OME, Micro-Manager and tifffile, of one file or several.

The pages are found by the chain of their directories, which alone tells whether a file was cut. What a file says of
itself then says which page is which frame.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.errors import SettingsError
from realtime_skyseg.recordings.micromanager import AXES, Key
from realtime_skyseg.recordings.recording import Choice, Recording, select
from realtime_skyseg.recordings.tiff_descriptions import (
    MOST_FRAMES,
    Described,
    from_imagej,
    from_micro_manager,
    from_ome,
    from_tifffile,
    json_object,
)
from realtime_skyseg.recordings.tiff_pages import TiffFile, check_photometric, samples_of
from realtime_skyseg.records import printable

_MOST_OPEN = 8  # files of a set


class TiffRecording(Recording):
    """A TIFF file of one or many pages, as plain TIFF, ImageJ, OME, Micro-Manager or tifffile write it.

    Reduced images and masks are passed over. Where 0 is white, grey is turned round, and a palette is looked up. A JSON
    object in the first description may give `rate_hz`, `field_mT` (a list) and `synthetic`.
    """

    format = "tiff"

    def __init__(self, path: Path, choice: Choice = Choice()) -> None:  # noqa: B008  frozen
        super().__init__(path)
        self._open: dict[str, TiffFile] = {}
        try:
            self._main = TiffFile(path)
        except Exception as error:  # tifffile raises whatever the broken bytes lead to
            self._broken(0, error)
        try:
            self._describe(choice)
        except SettingsError:
            self.close()
            raise
        except Exception as error:
            self.close()
            self._broken(0, error)

    @property
    def files(self) -> set[str]:
        """Names of the files in the folder that hold the frames."""
        return {self.path.name} | {plane[0] for plane in self._planes or [] if plane and plane[0]}

    def close(self) -> None:
        """Close the files."""
        self._main.close()
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _describe(self, choice: Choice) -> None:
        main = self._main
        text = next((text for text in main.chain.descriptions if text), "")
        self._planes: list[tuple[str, int] | None] | None = None
        held = len(main)
        stack = None if (told := from_ome(self.path, main)) else from_micro_manager(self.path, main)
        if stack is not None:
            places, times, self.n_frames = stack.frames(self.path, choice)
            self._planes = [*places]  # and those that are missing at the end
            self._set_times(times)
            return
        if told is not None:
            fixed = select(self.path, told.axes, choice, told.names)
            free = next((name for name in told.axes if name not in fixed), "time")
            keys: list[Key] = []
            for step in range(told.axes[free]):
                time, channel, position, z = (step if name == free else fixed.get(name, 0) for name in AXES)
                keys.append((time, channel, position, z))
            self._planes = [told.planes.get(key) for key in keys]
            self.n_frames = len(keys)
            self._set_times([told.times_s.get(key) for key in keys])
            self.rate_hz = self.rate_hz or told.rate_hz
            return
        check_photometric(main.first)
        samples = samples_of(main.first)
        if samples > 1 and held > 1:
            raise SettingsError(
                f"path: {self.path} has pages of {samples} samples; allowed: one, or red, green and blue"
            )
        told = from_imagej(text, held) or from_tifffile(text, main.first) or Described({"time": 1})
        if samples > 1:
            told = Described({"samples": samples})
        self._samples = samples
        declared = math.prod(told.axes.values())
        if declared > MOST_FRAMES:
            raise ValueError(f"it states {declared} frames; allowed: up to {MOST_FRAMES}")
        self._in_a_row = main.in_a_row(declared)
        stated = max(declared, held) if main.whole else declared if declared > 1 else None
        if samples > 1:
            stated = samples
        fixed = select(self.path, told.axes, choice, told.names)
        if stated is not None and declared < held:
            told.axes, fixed = {"time": held}, {}  # more pages than the text knows of
        self._steps = (
            _places(told.axes, fixed)
            if fixed and declared > 1 and any(size > 1 for name, size in told.axes.items() if name in fixed)
            else None
        )
        self.n_frames = len(self._steps) if self._steps is not None else stated
        self._stated = stated
        self.rate_hz = told.rate_hz
        described = json_object(text)
        rate = described.get("rate_hz")
        if isinstance(rate, int | float) and math.isfinite(rate) and rate > 0:
            self.rate_hz = float(rate)
        fields = described.get("field_mT")
        if isinstance(fields, list) and all(isinstance(value, int | float) for value in fields):
            self.fields_mT = np.array(fields, np.float64)
        self.synthetic = described.get("synthetic") is True

    def _decode(self, index: int) -> NDArray[Any]:
        if self._planes is not None:
            return self._plane(index)
        place = index
        if self._steps is not None:
            if index >= len(self._steps):
                raise self._ended()
            place = self._steps[index]
        if 1 < self._samples <= index:
            raise self._ended()
        main = self._main
        try:
            if self._samples > 1:
                return np.asarray(main.pixels(0)[place])
            if place < len(main):
                return main.pixels(place)
            if place < self._in_a_row:
                return main.frame_in_a_row(place)
        except Exception as error:  # tifffile raises whatever the broken bytes lead to
            self._broken(index, error)
        if not main.whole:
            self._broken(index, "the file is cut: its chain of pages ends without an end mark")
        if place < (self._stated or 0):
            self._broken(index, f"the file states {self._stated} frames but holds {len(main)} pages")
        raise self._ended()

    def _plane(self, index: int) -> NDArray[Any]:
        assert self._planes is not None
        assert self.n_frames is not None
        if index >= self.n_frames:
            raise self._ended()
        plane = self._planes[index] if index < len(self._planes) else None
        if plane is None:
            self._lacking(index, sum(plane is not None for plane in self._planes))
        name, page = plane
        try:
            file = self._file(name)
            if page < len(file):
                return file.pixels(page)
        except OSError as error:
            self._broken(index, f"it is in '{printable(name)}', which cannot be opened ({error.strerror or error})")
        except Exception as error:
            self._broken(index, error)
        if not file.whole:
            self._broken(index, "the file is cut: its chain of pages ends without an end mark")
        held = sum(plane is not None and (plane[0] != name or plane[1] < len(file)) for plane in self._planes)
        return self._lacking(index, held)

    def _lacking(self, index: int, held: int) -> NoReturn:
        self._broken(index, f"the file states {self.n_frames} frames but holds {held} pages")

    def _file(self, name: str) -> TiffFile:
        """A file of the set, opened. The name is one of the folder: a description must not lead elsewhere."""
        if name in ("", self.path.name):
            return self._main
        if name not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[name] = TiffFile(self.path.parent / name)
        return self._open[name]


def _places(axes: Mapping[str, int], fixed: Mapping[str, int]) -> list[int]:
    """Numbers of the pages in which all axes but one stand still; the last axis is the fastest."""
    numbers = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
    return [int(number) for number in numbers[tuple(fixed.get(name, slice(None)) for name in axes)].ravel()]
