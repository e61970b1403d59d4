"""Where a run's numbers come from: what its file says of settings, model, versions and clocks."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

RECORDED_PACKAGES = (
    "realtime_skyseg", "numpy", "torch", "openvino", "tensorrt", "opencv-python", "h5py", "hdf5plugin", "imagecodecs",
    "pyzmq", "pymmcore", "pycromanager",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a run's numbers come from."""

    run_id: str
    configuration: str  # the full settings, YAML
    model: str
    weights_sha256: str
    engine: str
    device: str
    precision: str
    agreement: float
    title: str = ""
    sample: str = ""
    operator: str = ""
    clock: str = ""
    #: What `time_s` counts from: a camera's frames are timed as they come, a recording's as they were recorded.
    timing: Literal["hand-over", "recording", "unknown"] = "hand-over"
    frame_names: Sequence[str] | None = None  # of the frames of a recording, by their numbers; it may begin again
    camera: dict[str, str | int | float | bool] = field(default_factory=dict)
    pixel_size_um: float | None = None
    supply: dict[str, str | int | float | bool] = field(default_factory=dict)  # of the magnet
    calibration: str = ""  # of the magnet, YAML
    experiment: dict[str, str] | None = None  # texts about a field programme; None: there is none


def iso(time_ns: int) -> str:
    """Unix time as text."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="microseconds")


def version_of(package: str) -> str:
    """Of an installed package; "" if it is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def git_commit() -> str:
    """Of this product's code; "unknown" outside a repository."""
    here = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=here, capture_output=True, text=True, timeout=5, check=True,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(here.parent.parent.parent)},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()
