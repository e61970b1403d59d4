"""What a rule sees of a frame, and what it may answer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from realtime_skyseg.programme import Step
from realtime_skyseg.records import FRAME_QUANTITIES, Kind, Objects, Segmentation


@dataclass(frozen=True, slots=True)
class Seen:
    """One analysed frame, as rules see it."""

    frame: int  # index in the run
    time_s: float  # hand-over by the camera, since the experiment began
    field_mT: float  # read back nearest to the exposure
    count: int  # skyrmions
    stripes: int
    area_fraction: float
    objects: Objects  # with at least the columns of `records.OBJECT_DTYPE`
    domain: float | None = None  # how far the model's domain holds the frame; None: nobody says
    values: Mapping[str, float] = field(default_factory=dict)  # what analysers found in it

    def value(self, quantity: str) -> float:
        """A quantity by its name; NaN if this frame has none."""
        return float(self.values[quantity] if quantity in self.values else getattr(self, quantity, math.nan))

    @property
    def diameter_px(self) -> float:
        """Median of the skyrmions; NaN where there is none."""
        return self._median("diameter")

    @property
    def area_px(self) -> float:
        """Median of the skyrmions; NaN where there is none."""
        return self._median("area")

    def _median(self, name: str) -> float:
        compact = self.objects[name][self.objects["kind"] == Kind.SKYRMION]
        return float(np.median(compact)) if len(compact) else math.nan


def seen(
    frame: int,
    time_s: float,
    field_mT: float,
    found: Segmentation,
    domain: float | None = None,
    values: Mapping[str, float] | None = None,
) -> Seen:
    """What rules see of a segmentation; as exact as the run file keeps it."""
    assert found.count is not None
    assert found.stripes is not None
    return Seen(
        frame, time_s, field_mT, found.count, found.stripes, float(np.float32(found.area_fraction)), found.objects,
        domain, {name: value for name, value in (values or {}).items() if name not in FRAME_QUANTITIES},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Situation:
    """Where the experiment stands when a frame is seen."""

    step: Step
    target_mT: float  # where the field goes, or is
    set_mT: float  # what the supply was told last
    settled: bool  # the frame's exposure began after the field had settled
    direction: int  # of the last move: 1 up, -1 down, 0 none yet
    leg_mT: tuple[float, float]  # where the steps that go one way begin and end; the step's own field where it is alone


Action = Literal["set", "pulse", "stop", "end_part", "mark", "wait"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rule wants. `wait`: nothing, and later rules are not asked about this frame."""

    action: Action
    reason: str = ""
    field_mT: float | None = None  # where the field goes; of `pulse` the out-of-plane field before it
    pulse: tuple[float, float] | None = None  # in-plane mT, s
    frames: int | None = None  # of `stop`: recorded where it stopped; of `set`: to average, else as the step's own
    span: tuple[float, float] | None = None  # of `mark`: s before and after the frame
    settle_s: float | None = None  # of `set`: longer than the step's own


WAIT = Decision("wait")


class Decider(Protocol):
    """A rule at work."""

    def decide(self, now: Seen, at: Situation) -> Decision | None:
        """Look at a fresh frame."""

    def next_field(self, count: float, at: Situation) -> Decision | None:
        """After a step that is one of several in one direction: another field than the programme's next."""
