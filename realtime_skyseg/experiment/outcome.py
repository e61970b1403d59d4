"""What comes out of an experiment: nucleation and annihilation fields, clips of events."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile

from realtime_skyseg import json_text
from realtime_skyseg.errors import RunFileError, RunFileUnusableError
from realtime_skyseg.storage import Run, open_run


@dataclass(frozen=True, slots=True)
class Transition:
    """Two neighbouring steps, between which the first skyrmion came or the last one vanished."""

    kind: Literal["nucleation", "annihilation"]
    direction: int  # 1: the field rose, -1: it fell
    field_mT: float  # middle between the fields read back at both
    half_mT: float  # half of what is between
    part: str
    cycle: int
    resumed: bool  # the run was killed on the way here


def transitions(steps: np.ndarray, present_count: float = 1.0) -> list[Transition]:
    """Where skyrmions came and went, by the rows of `Run.experiment["steps"]`, in order.

    Args:
        steps: the rows.
        present_count: mean count from which on there are skyrmions at a step.
    """
    found = []
    for before, row in pairwise(steps):
        if not (before["frames"] and row["frames"] and row["direction"]) or before["field_mT"] == row["field_mT"]:
            continue
        had, has = before["count"] >= present_count, row["count"] >= present_count
        if had == has or row["kind"] == b"pulse":
            continue
        a, b = float(before["field_mT"]), float(row["field_mT"])
        found.append(
            Transition(
                "nucleation" if has else "annihilation", int(row["direction"]), (a + b) / 2, abs(b - a) / 2,
                row["part"].decode(), int(row["cycle"]), bool(row["resumed"]),
            )
        )  # fmt: skip
    return found


def fields(found: list[Transition]) -> list[dict[str, Any]]:
    """Mean nucleation and annihilation fields, for rising and falling field.

    `uncertainty_mT` is one standard deviation: of the mean over the cycles, and of a field that is anywhere between two
    steps (half / sqrt(3)), which more cycles with the same steps do not improve. Resumed branches are left out.
    """
    out = []
    for kind in ("nucleation", "annihilation"):
        for direction in (-1, 1):
            same = [one for one in found if (one.kind, one.direction) == (kind, direction) and not one.resumed]
            if not same:
                continue
            values = np.array([one.field_mT for one in same])
            between = float(np.mean([one.half_mT**2 for one in same])) / 3
            spread = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
            out.append(
                {
                    "kind": kind,
                    "direction": direction,
                    "field_mT": float(values.mean()),
                    "uncertainty_mT": math.sqrt(between + spread),
                    "n": len(values),
                }
            )
    return out


def report(run: Run) -> dict[str, Any]:
    """What `skyseg sweep --json` and `skyseg table` tell beside the rows. Raises `RunFileError` without experiment."""
    experiment = run.experiment
    if experiment is None:
        raise RunFileUnusableError(
            f"run file '{run.path}' has no experiment; allowed: files of runs with a field programme"
        )
    found = transitions(experiment["steps"], run.config["experiment"]["present_count"])
    return {
        "fields": fields(found),
        "transitions": [asdict(one) for one in found],
        "steps": len(experiment["steps"]),
        "decisions": len(experiment["decisions"]),
    }


def write_clips(path: str | Path) -> list[Path]:
    """Write the frames around each event that asked for it as a TIFF stack beside the run file.

    Events whose frames overlap share a clip. Existing files are not overwritten.

    Raises:
        RunFileError: the file cannot be read, or a clip not be written.
    """
    with open_run(path) as run:
        spans = _spans(run)
        written = []
        for number, (first, last) in enumerate(spans, 1):
            name = run.path.name.removesuffix(".partial").removesuffix(".h5")
            clip = run.path.with_name(f"{name}-clip-{number:03d}.tif")
            if clip.exists():
                continue
            try:
                with tifffile.TiffWriter(clip) as out:
                    for index in range(first, last + 1):
                        out.write(run.raw[index], contiguous=True, description=f"frames {first} to {last} of {name}")
            except OSError as error:
                raise RunFileError(f"clip '{clip}' cannot be written: {error}") from error
            written.append(clip)
    return written


def _spans(run: Run) -> list[tuple[int, int]]:
    """First and last frame of each clip."""
    experiment = run.experiment
    if experiment is None:
        return []
    times = run.table["time_s"]
    spans: list[tuple[int, int]] = []
    for row in experiment["decisions"]:
        asked = json_text.load(row["inputs"]).get("span_s")
        frame = int(row["frame"])
        if not asked or not 0 <= frame < len(times):
            continue
        first = int(np.searchsorted(times, times[frame] - asked[0]))
        last = int(np.searchsorted(times, times[frame] + asked[1], side="right")) - 1
        if spans and first <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(last, spans[-1][1]))
        else:
            spans.append((first, last))
    return spans
