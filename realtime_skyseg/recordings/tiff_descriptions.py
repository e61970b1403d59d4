"""What a TIFF file says of itself and of the set it belongs to: ImageJ, OME, Micro-Manager, tifffile."""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile

from realtime_skyseg import json_text
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.recordings.micromanager import Key, Planes, parts
from realtime_skyseg.recordings.tiff_pages import MICRO_MANAGER_TAG, TiffFile, quiet_tifffile, read_chain, read_tag
from realtime_skyseg.records import printable

MOST_FRAMES = 2_000_000

#: Letters of tifffile's axes.
_AXES = {"T": "time", "C": "channel", "Z": "z", "P": "position", "S": "samples", "I": "images", "Q": "others"}


@dataclass
class Described:
    """What a file says of the set that it belongs to."""

    axes: dict[str, int]  # sizes, the slowest first
    names: dict[str, list[str]] = field(default_factory=dict)
    planes: dict[Key, tuple[str, int]] = field(default_factory=dict)  # file name ("": this one) and number of the page
    times_s: dict[Key, float] = field(default_factory=dict)
    rate_hz: float | None = None


def from_imagej(text: str, held: int) -> Described | None:
    """ImageJ's description. Its planes stand in the order channel, z, time, the first being the fastest."""
    if not text.startswith("ImageJ="):
        return None
    lines = dict(re.findall(r"^(\w+)=(.*?)\s*$", text, re.MULTILINE))

    def number(key: str, default: int = 1) -> int:
        return max(int(lines[key]), 1) if re.fullmatch(r"[0-9]{1,9}", lines.get(key, "")) else default

    images = number("images", max(held, 1) if "images" in lines else 1)
    axes = {"time": number("frames"), "z": number("slices"), "channel": number("channels")}
    if math.prod(axes.values()) != images:
        axes = {"time": images}  # as ImageJ does it
    told = Described(axes)
    if lines.get("mode") in ("composite", "color"):
        told.names["channel"] = [f"channel {i}" for i in range(axes.get("channel", 1))]
    with suppress(KeyError, ValueError):
        interval = float(lines["finterval"])
        unit = {"ms": 1e-3, "msec": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0, "h": 3600.0, "hr": 3600.0}
        interval *= unit.get(lines.get("tunit", "sec").strip(), 1.0)
        told.rate_hz = 1 / interval if math.isfinite(interval) and interval > 0 else None
    return told


def from_tifffile(text: str, page: tifffile.TiffPage) -> Described | None:
    """Tifffile's description: a JSON object with the shape, and perhaps with the names of its axes."""
    described = json_object(text)
    shape, letters = described.get("shape"), described.get("axes")
    if not isinstance(shape, list) or not all(isinstance(n, int) and 0 < n < 2**31 for n in shape):
        return None
    inner = len(page.shape)
    if math.prod(shape[-inner:]) != math.prod(page.shape):
        inner = 0
        while inner < len(shape) and math.prod(shape[len(shape) - inner :]) < math.prod(page.shape):
            inner += 1
    outer = [int(n) for n in shape[: len(shape) - inner]]
    if not outer:
        return None
    if isinstance(letters, str) and len(letters) == len(shape):
        known = [_AXES.get(letter, letter) for letter in letters[: len(outer)]]
        return Described(dict(zip(known, outer, strict=False))) if len(set(known)) == len(outer) else None
    if sum(n > 1 for n in outer) <= 1:
        return Described({"time": math.prod(outer)})
    return Described({f"unnamed axis {i}": n for i, n in enumerate(outer)})


def from_micro_manager(path: Path, main: TiffFile) -> Planes[tuple[str, int]] | None:
    """The pages of a Micro-Manager stack say themselves which frame they are; its summary says how many were wanted."""
    if MICRO_MANAGER_TAG not in main.chain.tags[0]:
        return None
    planes: Planes[tuple[str, int]] = Planes()
    for part in parts(path):
        file = main if part.name == path.name else TiffFile(part)
        try:
            for page in range(len(file)):
                metadata = json_object(file.text(page, MICRO_MANAGER_TAG))
                if not planes.add(metadata, ("" if file is main else part.name, page)):
                    return None
                if page == 0 and isinstance(metadata.get("Summary"), dict):
                    planes.summary(metadata["Summary"])
        finally:
            if file is not main:
                file.close()
    with suppress(ValueError, OSError, KeyError), quiet_tifffile(), path.open("rb") as raw:
        summary = tifffile.tifffile.read_micromanager_metadata(raw, {"Summary"}).get("Summary")
        if isinstance(summary, dict):
            planes.summary(summary)
    return planes


def from_ome(path: Path, main: TiffFile) -> Described | None:
    """OME-XML: which page of which file is which plane (OME-TIFF specification, 6.0)."""
    text = next((text for text in main.chain.descriptions if text.rstrip().endswith("OME>")), None)
    if text is None:
        return None
    root = _xml(text)
    if root is None:
        return None
    beside = next((child for child in root if read_tag(child) == "BinaryOnly"), None)
    if beside is not None:
        name = Path(str(beside.get("MetadataFile", "")).replace("\\", "/")).name
        try:
            if name.lower().endswith((".tif", ".tiff")):
                with (path.parent / name).open("rb") as file:
                    texts = read_chain(file).descriptions
                root = _xml(next((text for text in texts if text.rstrip().endswith("OME>")), ""))
            else:
                root = _xml((path.parent / name).read_text("utf-8", "replace"))
        except (OSError, ValueError):
            root = None
        if root is None:
            raise SettingsError(
                f"path: {path} is described in '{printable(name)}', which is not there; allowed: with it"
            )
    images = [
        pixels for image in root for pixels in image if read_tag(image) == "Image" and read_tag(pixels) == "Pixels"
    ]
    names = [str(image.get("Name", "")) for image in root if read_tag(image) == "Image"]
    form = {key: images[0].get(key) for key in ("SizeX", "SizeY", "Type")} if images else {}
    first = (str(main.first.imagewidth), str(main.first.imagelength))
    alike = [
        (name, pixels)
        for name, pixels in zip(names, images, strict=False)
        if (pixels.get("SizeX"), pixels.get("SizeY")) == first
    ]
    if not alike or not form:
        return None
    own = _own_names(root, path)
    planes: dict[Key, tuple[str, int]] = {}
    told = Described({}, planes=planes)
    size = {"T": 1, "C": 1, "Z": 1}
    channels: list[str] = []
    for position, (_, pixels) in enumerate(alike):
        samples = max(
            [int(child.get("SamplesPerPixel") or 1) for child in pixels if read_tag(child) == "Channel"] or [1]
        )
        here = {axis: _count(pixels, axis) for axis in "TCZ"}
        here["C"] = max(here["C"] // samples, 1)
        if math.prod(here.values()) * len(alike) > MOST_FRAMES:
            raise ValueError(f"its OME-XML states {math.prod(here.values())} planes; allowed: up to {MOST_FRAMES}")
        size = {axis: max(size[axis], here[axis]) for axis in "TCZ"}
        order = [axis for axis in str(pixels.get("DimensionOrder", "XYZCT")) if axis in "TCZ"]
        if not channels:
            channels = [str(child.get("Name") or "") for child in pixels if read_tag(child) == "Channel"]
        _tiff_data(pixels, here, order, position, own, main, planes)
        for plane in (child for child in pixels if read_tag(child) == "Plane" and child.get("DeltaT")):
            with suppress(ValueError, KeyError):
                key = (int(plane.get("TheT", 0)), int(plane.get("TheC", 0)), position, int(plane.get("TheZ", 0)))
                told.times_s[key] = float(plane.get("DeltaT", "")) * _SECONDS[plane.get("DeltaTUnit", "s")]
        with suppress(ValueError, KeyError, ZeroDivisionError):
            step = float(pixels.get("TimeIncrement", "")) * _SECONDS[pixels.get("TimeIncrementUnit", "s")]
            told.rate_hz = 1 / step if step > 0 and math.isfinite(1 / step) else None
    if not planes:
        return None
    told.axes = {"time": size["T"], "channel": size["C"], "position": len(alike), "z": size["Z"]}
    told.names = {"position": [name for name, _ in alike], "channel": channels if all(channels) else []}
    return told


_SECONDS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}


def _tiff_data(
    pixels: ElementTree.Element,
    size: Mapping[str, int],
    order: Sequence[str],
    position: int,
    own: set[str],
    main: TiffFile,
    planes: dict[Key, tuple[str, int]],
) -> None:
    """Enter the planes of one image."""
    total = math.prod(size.values())
    lengths: dict[str, int] = {}
    for data in (child for child in pixels if read_tag(child) == "TiffData"):
        uuid = next((child for child in data if read_tag(child) == "UUID"), None)
        name = "" if uuid is None else str(uuid.get("FileName") or "")
        name = Path(name.replace("\\", "/")).name
        if not name or name in own or (uuid is not None and (uuid.text or "").strip() in own):
            name = ""
        count = data.get("PlaneCount") or data.get("NumPlanes")
        number = int(count) if count else 1 if data.get("IFD") else 0
        if number == 0:  # all that the file has
            if name not in lengths:
                lengths[name] = len(main) if not name else _pages(main.path.parent / name)
            number = lengths[name]
            if number == len(main) and not name and not main.whole:
                number = total
        page = int(data.get("IFD") or 0)
        start = {axis: int(data.get(f"First{axis}") or 0) for axis in "TCZ"}
        if any(not 0 <= start[axis] < size[axis] for axis in "TCZ") or page < 0:
            continue  # ImageJ's plugins leave such entries behind where they crop
        place = 0
        for axis in reversed(order):
            place = place * size[axis] + start[axis]
        for step in range(min(number, total - place)):
            rest, found = place + step, {}
            for axis in order:
                rest, found[axis] = divmod(rest, size[axis])
            planes.setdefault((found["T"], found["C"], position, found["Z"]), (name, page + step))


def _pages(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return len(read_chain(file).pages)
    except (OSError, ValueError):
        return 0


def _own_names(root: ElementTree.Element, path: Path) -> set[str]:
    """What this file is called in a description: its name, its UUID, or the only name in it if it was renamed."""
    told = {
        Path(str(uuid.get("FileName")).replace("\\", "/")).name: (uuid.text or "").strip()
        for uuid in root.iter()
        if read_tag(uuid) == "UUID" and uuid.get("FileName")
    }
    if path.name in told:
        return {path.name, told[path.name] or path.name}
    own = {uuid for uuid in (root.get("UUID"),) if uuid and uuid in told.values()}
    if own or not told:
        return own | {path.name}
    if len(told) == 1:
        return set(told)
    some = ", ".join(printable(name) for name in sorted(told)[:3])
    raise SettingsError(f"path: {path} is described as one of {some}, but not as which; allowed: its own name")


def _count(pixels: ElementTree.Element, axis: str) -> int:
    return max(int(pixels.get(f"Size{axis}") or 1), 1)


def _xml(text: str) -> ElementTree.Element | None:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        return None
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None


def json_object(text: str) -> dict[str, Any]:
    """The object that a text is, as JSON; {} where it is none."""
    with suppress(ValueError):
        described = json_text.load(text)
        if isinstance(described, dict):
            return described
    return {}
