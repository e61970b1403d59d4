"""What is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from realtime_skyseg.config import EngineChoice
from realtime_skyseg.errors import SettingsError

#: Size of made frames if none is asked for, and the side of the square that each object in them needs.
MADE_SHAPE = (512, 672)
LEAST_CELL_PX = 14


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement."""

    model: str = "compact"
    engine: EngineChoice = "auto"
    shape: tuple[int, int] | None = None  # height, width; None: as the recording
    rate_hz: float | None = 25.0  # None: as fast as it goes
    seconds: float = 10.0
    source: str = "bundled"  # what camera driver `replay` takes as its path
    objects: int | None = None  # per frame: frames are made instead of replaying `source`
    subscribers: int = 1  # all in one other process


def cases_of(
    models: Sequence[str],
    engines: Sequence[EngineChoice],
    sizes: Sequence[str],
    rates: Sequence[float | None],
    seconds: float,
    source: str,
    objects: int | None = None,
) -> list[Case]:
    """All combinations. Raises `SettingsError` for a size that is none, or too small for so many objects."""
    shapes: list[tuple[int, int] | None] = [_shape_of(size) for size in sizes] if sizes else [None]
    if objects is not None:
        for height, width in [shape or MADE_SHAPE for shape in shapes]:
            most = height * width // LEAST_CELL_PX**2
            if not 1 <= objects <= most:
                raise SettingsError(f"--objects {objects}: allowed on {height}x{width} px: 1 to {most}")
    return [
        Case(model, engine, shape, rate_hz, seconds, source, objects)
        for shape, engine, model, rate_hz in product(shapes, engines, models, rates)
    ]


def _shape_of(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        height = width = 0
    if not 64 <= min(height, width) <= max(height, width) <= 8192:
        raise SettingsError(f"--size '{text}': allowed: HEIGHTxWIDTH of 64 to 8192 px, for example 512x672")
    return height, width
