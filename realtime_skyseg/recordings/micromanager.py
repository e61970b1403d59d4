"""What Micro-Manager says of its images: which frame, channel, position and plane each is, when, and of how many."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

from realtime_skyseg.recordings.recording import Choice, select

#: (time, channel, position, z), numbered from 0.
Key = tuple[int, int, int, int]

Place = TypeVar("Place")

AXES = ("time", "channel", "position", "z")


@dataclass
class Planes(Generic[Place]):
    """The images of an acquisition and what is said of them."""

    places: dict[Key, Place] = field(default_factory=dict)
    times_s: dict[Key, float] = field(default_factory=dict)
    names: dict[str, dict[int, str]] = field(default_factory=lambda: {"channel": {}, "position": {}})
    n_times: int = 1  #: that were wanted

    def add(self, metadata: Mapping[str, Any], place: Place, key: Key | None = None) -> bool:
        """Enter an image by its metadata; False where they do not say which it is."""
        key = key or _key(metadata)
        if key is None:
            return False
        if key in self.places:
            raise ValueError(f"two of its images say that they are frame {key[0]}")
        self.places[key] = place
        for axis, number, name in (("channel", key[1], "Channel"), ("position", key[2], "PositionName")):
            if isinstance(metadata.get(name), str):
                self.names[axis].setdefault(number, metadata[name])
        elapsed = metadata.get("ElapsedTime-ms")
        if isinstance(elapsed, int | float) and math.isfinite(elapsed):
            self.times_s[key] = elapsed / 1e3
        return True

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Take in what the acquisition was meant to be."""
        intended = summary.get("IntendedDimensions")
        wanted = intended.get("time") if isinstance(intended, dict) else summary.get("Frames")
        if isinstance(wanted, int) and 0 < wanted < 2**31:
            self.n_times = wanted
        listed = summary.get("ChNames")
        if isinstance(listed, list):
            for number, name in enumerate(listed):
                self.names["channel"].setdefault(number, str(name))

    def frames(self, path: Path, choice: Choice) -> tuple[list[Place], list[float | None], int]:
        """The places and times of the images of one channel, position and plane, and how many there should be.

        A channel may be taken less often than others, so that gaps are no loss; an early end is one.
        """
        present = {axis: sorted({key[number] for key in self.places}) for number, axis in enumerate(AXES)}
        sizes = {axis: len(values) for axis, values in present.items()}
        names = {axis: [found.get(value, str(value)) for value in present[axis]] for axis, found in self.names.items()}
        fixed = select(path, sizes, choice, names)
        free = next((axis for axis in AXES if axis not in fixed), "time")
        keys = sorted(
            (
                key
                for key in self.places
                if all(key[n] == present[a][fixed[a]] for n, a in enumerate(AXES) if a != free)
            ),
            key=lambda key: key[AXES.index(free)],
        )
        stated = len(keys)
        if free == "time" and keys:
            steps = [b[0] - a[0] for a, b in pairwise(keys)]
            step = max(min(steps, default=1), 1)
            stated += max((self.n_times - 1 - keys[-1][0]) // step, 0)
        return [self.places[key] for key in keys], [self.times_s.get(key) for key in keys], stated


def _key(metadata: Mapping[str, Any]) -> Key | None:
    coords = metadata.get("Coords")
    found = []
    for old, new in (("Frame", "time"), ("Channel", "channel"), ("Position", "position"), ("Slice", "z")):
        value = metadata.get(f"{old}Index", coords.get(new, 0) if isinstance(coords, dict) else None)
        if value is None and new != "time":
            value = 0
        if not isinstance(value, int) or not 0 <= value < 2**31:
            return None
        found.append(value)
    return (found[0], found[1], found[2], found[3])


def parts(path: Path) -> list[Path]:
    """The files of a Micro-Manager stack, which is continued as `name_1`, `name_2` beyond 4 GB, in order."""
    found = re.fullmatch(r"(.*_MMStack(?:_.*?)?)(?:_(\d+))?((?:\.ome)?\.tiff?)", path.name, re.IGNORECASE)
    if not found:
        return [path]
    numbered = re.compile(re.escape(found[1]) + r"(?:_(\d+))?" + re.escape(found[3]), re.IGNORECASE)
    hits = [(int(hit[1] or 0), file) for file in path.parent.iterdir() if (hit := numbered.fullmatch(file.name))]
    return [file for _, file in sorted(hits)]


#: `img_000000000_Default_000.tif` of 1.4, `img_channel000_position000_time000000000_z000.tif` of 2.0.
_OLD_NAME = re.compile(r"img_(\d+)_(.*)_(\d+)\.tiff?", re.IGNORECASE)
_NEW_NAME = re.compile(r"img_(?=.*time)((?:channel|position|time|z|slice)\d+_?)+\.tiff?", re.IGNORECASE)


def is_image(name: str) -> bool:
    """Whether a file is named as Micro-Manager names single images."""
    return bool(_OLD_NAME.fullmatch(name) or _NEW_NAME.fullmatch(name))


def key_of_name(name: str, channels: list[str]) -> Key | None:
    """Which image a file is by its name; `channels`: their names in order, which may grow."""
    if _NEW_NAME.fullmatch(name):
        told = {axis.lower(): int(number) for axis, number in re.findall(r"([a-z]+)(\d+)", name, re.IGNORECASE)}
        return (told["time"], told.get("channel", 0), told.get("position", 0), told.get("z", told.get("slice", 0)))
    if found := _OLD_NAME.fullmatch(name):
        if found[2] not in channels:
            channels.append(found[2])
        return (int(found[1]), channels.index(found[2]), 0, int(found[3]))
    return None
