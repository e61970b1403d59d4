"""Labelled images: a folder of images, a folder of label pictures, and a table that says which belong together."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.config import TrainingSettings
from realtime_skyseg.errors import SettingsError, SkysegError
from realtime_skyseg.recordings import decode_image, open_recording
from realtime_skyseg.records import Class, Mask

#: Label colours (red, green, blue), each channel on or off.
COLOURS: dict[tuple[bool, bool, bool], Class] = {
    (False, False, True): Class.BACKGROUND,
    (True, False, False): Class.SKYRMION,
    (False, True, False): Class.DEFECT,
    (True, True, False): Class.OUTSIDE,
    (False, True, True): Class.EDGE,
}

_SUFFIXES = (".png", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image (height, width) with its mask of the same shape."""

    name: str
    source: str  # images of one source show the same sample: they are near copies of each other
    fold: int
    image: NDArray[np.uint8] | NDArray[np.uint16]
    mask: Mask


#: What the values of a label picture of a single channel mean. "instances": each skyrmion has a number of its own,
#: above 0, as tools of other fields have it.
LabelValues = Mapping[int, Class] | Literal["instances"]


def label_values(text: str) -> LabelValues:
    """Read "0=skyrmion,1=defect,2=background", or "instances"."""
    if text.strip() == "instances":
        return "instances"
    values = {}
    for part in text.split(","):
        number, _, name = part.partition("=")
        try:
            values[int(number)] = Class[name.strip().upper()]
        except (ValueError, KeyError):
            allowed = ", ".join(value.name.lower() for value in Class)
            raise SettingsError(f"label values '{part}': allowed: NUMBER=CLASS, with a class of {allowed}") from None
    return values


def read_label(path: Path, values: LabelValues | None = None) -> Mask:
    """Turn a label picture into a mask.

    Args:
        path: a picture in `COLOURS`, or one of a single channel whose values are classes.
        values: what the values of a single channel mean; None: those of `Class`.

    Raises:
        SettingsError: the file is no picture or has a colour or value that stands for no class.
    """
    try:
        picture: Any = decode_image(path)
    except (OSError, ValueError, cv2.error):
        raise SettingsError(f"labels: {path} cannot be read as a picture") from None
    if picture.ndim == 2:
        if values == "instances":
            return _mask_of_instances(path, picture)
        return _mask_of_values(path, picture, values or {int(value): value for value in Class})
    on = picture[..., :3] > np.iinfo(picture.dtype).max // 2
    code = on[..., 0] * 4 + on[..., 1] * 2 + on[..., 2]
    lookup = np.full(8, 255, np.uint8)
    for (red, green, blue), value in COLOURS.items():
        lookup[red * 4 + green * 2 + blue] = value
    mask: Mask = lookup[code]
    if (mask == 255).any():
        y, x = np.argwhere(mask == 255)[0]
        colour = tuple(int(v) for v in picture[y, x, :3])
        raise SettingsError(
            f"labels: {path} has the colour {colour} at column {x}, row {y}; allowed: red skyrmion, green defect, "
            "blue background, yellow outside, cyan edge"
        )
    return mask


def _mask_of_values(path: Path, picture: NDArray[Any], values: Mapping[int, Class]) -> Mask:
    mask = np.full(picture.shape, 255, np.uint8)
    for number, value in values.items():
        mask[picture == number] = value
    if (mask == 255).any():
        y, x = np.argwhere(mask == 255)[0]
        allowed = ", ".join(f"{number} {value.name.lower()}" for number, value in values.items())
        raise SettingsError(
            f"labels: {path} has the value {picture[y, x]} at column {x}, row {y}; allowed: {allowed} "
            "(set label_values to say otherwise)"
        )
    return mask


def _mask_of_instances(path: Path, picture: NDArray[Any]) -> Mask:
    """Any number above 0 is a skyrmion; where two touch, a pixel of film is put between them."""
    if picture.dtype.kind not in "iu" or (picture < 0).any():
        raise SettingsError(
            f"labels: {path} holds {picture.dtype} or numbers below 0; allowed: whole numbers from 0 on"
        )
    mask = (picture > 0).astype(np.uint8) * np.uint8(Class.SKYRMION)
    for here, there in (
        (np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:]), (np.s_[:-1, :-1], np.s_[1:, 1:]),
        (np.s_[:-1, 1:], np.s_[1:, :-1]),
    ):  # fmt: skip
        mask[here][(picture[here] != picture[there]) & (picture[there] > 0)] = Class.BACKGROUND
    return mask


def read_labelled(
    images: Path,
    labels: Path,
    table: Path | None = None,
    folds: Iterable[int] | None = None,
    values: LabelValues | None = None,
) -> list[LabelledImage]:
    """Read all pairs of one data set, sorted by file name.

    Args:
        images: folder of 8 or 16 bit pictures.
        labels: folder of label pictures with the same file names, or the same but for the suffix.
        table: CSV with the columns image, source_id and fold, or the published data set's own `table.csv`, which has no
            folds; without it each image is its own source. Fold -1: none is told.
        folds: keep only these folds; needs `table`.
        values: see `read_label`.

    Raises:
        SettingsError: a folder, file or column is missing, nothing is left, or shapes differ.
    """
    rows = _rows(images, table, folds is not None)
    if not labels.is_dir():
        raise SettingsError(f"labels: '{labels}' is not a folder")
    if folds is not None:
        if table is None:
            raise SettingsError("fold: choosing folds needs the table that names them (table: CSV with column 'fold')")
        wanted = set(folds)
        rows = [row for row in rows if row[2] in wanted]
        if not rows:
            raise SettingsError(f"fold: {table} has no image of fold {sorted(wanted)}")
    pairs = []
    for name, source, fold in rows:
        try:
            with open_recording(images / name) as recording:
                image: Any = recording.read(0)
        except SkysegError as error:
            raise SettingsError(f"images: {str(error).removeprefix('path: ')}") from error
        if image.dtype not in (np.uint8, np.uint16):
            raise SettingsError(f"images: {images / name} is {image.dtype}; allowed: a picture of 8 or 16 bit")
        label = _label_of(labels, name)
        mask = read_label(label, values)
        if image.shape != mask.shape:
            raise SettingsError(f"labels: {label} is {mask.shape}, but its image is {image.shape}")
        pairs.append(LabelledImage(name, source, fold, image, mask))
    return pairs


def spread_over_folds(pairs: Sequence[LabelledImage], folds: Sequence[int], name: str) -> list[LabelledImage]:
    """Made images, which have no source: a part of them, as one source, for each fold."""
    return [
        replace(pair, source=f"{name} {folds[index % len(folds)]}", fold=folds[index % len(folds)])
        for index, pair in enumerate(pairs)
    ]


def split(settings: TrainingSettings) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Images to learn from and images to score on; no source is on both sides.

    Raises:
        SettingsError: a side is empty, or a source is unknown.
    """
    names = settings.label_values or {}
    values: LabelValues | None = {number: Class[name.upper()] for number, name in names.items()} or None
    if settings.instance_labels:
        values = "instances"
    paths = (settings.images, settings.labels, settings.table)
    if settings.train_folds is not None:
        training = read_labelled(*paths, settings.train_folds, values)
        validation = read_labelled(*paths, settings.validate_folds, values)
        shared = {pair.source for pair in training} & {pair.source for pair in validation}
        if shared:
            raise SettingsError(
                f"validate_folds: source '{sorted(shared)[0]}' is in train_folds too; allowed: each source in one fold"
            )
        return training, validation
    pairs = read_labelled(*paths, values=values)
    sources = sorted({pair.source for pair in pairs})
    if settings.validate_sources is not None:
        chosen = set(settings.validate_sources)
        unknown = sorted(chosen - set(sources))
        if unknown:
            raise SettingsError(
                f"validate_sources: '{unknown[0]}' is none of the sources; allowed: {', '.join(sources)}"
            )
    else:
        n = max(1, round(settings.validate_share * len(sources)))
        chosen = set(np.random.default_rng(settings.seed).permutation(sources)[:n].tolist())
    training = [pair for pair in pairs if pair.source not in chosen]
    if not training:
        raise SettingsError(
            f"images: all {len(sources)} sources are to score on; at least one must be left to learn from"
        )
    return training, [pair for pair in pairs if pair.source in chosen]


def _label_of(labels: Path, image: str) -> Path:
    same = labels / image
    if same.is_file():
        return same
    others = [same.with_suffix(suffix) for suffix in _SUFFIXES]
    return next((other for other in others if other.is_file()), same)


def _rows(images: Path, table: Path | None, folds: bool) -> list[tuple[str, str, int]]:
    if not images.is_dir():
        raise SettingsError(f"images: '{images}' is not a folder")
    if table is None:
        names = sorted(path.name for path in images.iterdir() if path.suffix.lower() in _SUFFIXES)
        if not names:
            raise SettingsError(f"images: folder '{images}' has no .png or .tif file")
        return [(name, name, -1) for name in names]
    if not table.is_file():
        raise SettingsError(f"table: '{table}' is not a file")
    with table.open(newline="") as file:
        header = file.readline()
        file.seek(0)
        # The published data set's own table has semicolons, and the columns source_id, img_fn, label_fn, zenodo_index.
        reader = csv.DictReader(file, delimiter=";" if ";" in header else ",")
        columns = set(reader.fieldnames or ())
        image, fold = ("img_fn" if "img_fn" in columns else "image"), "fold" in columns
        missing = {image, "source_id"} - columns
        if missing:
            raise SettingsError(
                f"table: {table} has no column '{sorted(missing)[0]}'; needed: image (or img_fn), source_id, and fold "
                "where folds are chosen"
            )
        try:
            rows = sorted((Path(row[image]).name, row["source_id"], int(row["fold"]) if fold else -1) for row in reader)
        except ValueError as error:
            place = f"{table}, line {reader.line_num}"
            raise SettingsError(f"table: {place}: fold: {error}; allowed: whole numbers") from error
    if folds and not fold:
        raise SettingsError(f"table: {table} has no column 'fold'; needed: image, source_id, fold")
    present = [row for row in rows if (images / row[0]).is_file()]
    if not present:
        raise SettingsError(f"images: folder '{images}' holds none of the images of {table}")
    return present
