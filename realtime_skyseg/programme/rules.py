"""The rules of an experiment, as settings."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from realtime_skyseg.programme.parts import NotNegative, Positive
from realtime_skyseg.records import FRAME_QUANTITIES
from realtime_skyseg.section import Section

#: What a condition can be about, besides the quantities of analysers.
QUANTITIES = (*FRAME_QUANTITIES, "diameter_px", "field_mT")


class Condition(Section):
    """Something that is true of the latest frames, with hysteresis and dwell."""

    quantity: str
    """count, stripes, area_fraction, diameter_px, field_mT, or a quantity of frames that an analyser finds."""
    at_least: float | None = None
    """True from here up."""
    at_most: float | None = None
    """True from here down."""
    hysteresis: NotNegative = 0.0
    """Once true, it is false only where the quantity is on the other side by more than this."""
    dwell_frames: Annotated[int, Field(ge=1, le=10_000)] = 2
    """So many frames in a row have to agree before it becomes true, or false again."""

    @model_validator(mode="after")
    def _check_side(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a condition needs either at_least or at_most")
        return self


class _Rule(Section):
    during: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the parts during which it is asked; absent: always."""


class StopWhen(_Rule):
    """End the programme, or the part, once a condition holds; the field is frozen in the frame that shows it."""

    rule: Literal["stop_when"]
    when: Condition
    back_off_mT: NotNegative = 0.0
    """Go back by so much, against the direction of the last move."""
    then_frames: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Frames to record at the field where it stopped."""
    ends: Literal["programme", "part"] = "programme"
    """What ends then."""


class HoldCount(_Rule):
    """Keep a number of skyrmions: trim by raising the field, freeze by lowering it, create by in-plane pulses.

    A higher field destroys, only a pulse creates: the way to a number is from above.
    """

    rule: Literal["hold_count"]
    target: Annotated[int, Field(ge=1, le=100_000)]
    tolerance: NotNegative | None = None
    """How far the count may be from the target; absent: 10 % of the target, at least 3."""
    annihilation_mT: float
    """Field at which the last skyrmion vanishes; its sign says which way destroys."""
    back_off_mT: Positive
    """Freeze: lower the field by so much from where skyrmions vanished last; more than the stray fields to expect."""
    step_mT: Positive
    """Largest step of trimming."""
    smallest_step_mT: Positive
    """Smallest step of trimming."""
    relax_frames: Annotated[int, Field(ge=1, le=1000)] = 5
    """Frames between two steps of trimming."""
    window_frames: Annotated[int, Field(ge=1, le=100)] = 3
    """The count is the median of so many frames."""
    pulse_in_plane_mT: float | None = None
    """Height of the pulses; absent: none is given, and too few skyrmions stay too few."""
    pulse_s: Positive = 0.2
    """Length of the pulses."""
    pulses: Annotated[list[tuple[float, NotNegative]], Field(max_length=100)] = []
    """What is known of pulses: [out-of-plane mT, skyrmions after it]. It learns more from its own."""
    pulse_relax_frames: Annotated[int, Field(ge=1, le=1000)] = 20
    """Frames between a pulse and the first look at what it made."""
    max_pulses: Annotated[int, Field(ge=0, le=100)] = 8
    """Without holding the target in between; then it says so, and gives no more."""

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.smallest_step_mT > self.step_mT:
            raise ValueError(
                f"smallest_step_mT is {self.smallest_step_mT:g}; allowed: at most step_mT ({self.step_mT:g})"
            )
        if self.annihilation_mT == 0:
            raise ValueError("annihilation_mT is 0; allowed: the field at which the last skyrmion vanishes")
        return self

    @property
    def within(self) -> float:
        """The tolerance in skyrmions."""
        return max(3.0, 0.1 * self.target) if self.tolerance is None else self.tolerance


class AdaptiveSteps(_Rule):
    """Choose the steps of staircases and loops: coarse where the count rests, fine where it changes."""

    rule: Literal["adaptive_steps"]
    coarse_mT: Positive
    fine_mT: Positive
    change: Positive = 1.0
    """A change of the count from step to step that calls for fine steps."""
    quiet_steps: Annotated[int, Field(ge=1, le=1000)] = 8
    """After so many fine steps in a row without such a change, the steps are coarse again."""
    near_mT: list[tuple[float, float]] = []
    """Fields [low, high] where the steps are fine in any case, from an earlier run."""
    reset_mT: float | None = None
    """A field that wipes the sample. With it, the first change sends the field there, and from there straight to
    `before_steps` coarse steps before the change, to meet it again in fine steps. Until then other rules are not asked.
    """
    dwell_frames: Annotated[int, Field(ge=1, le=100)] = 2
    """So many frames in a row have to show that first change."""
    before_steps: Positive = 2.0
    """See `reset_mT`."""
    reset_s: NotNegative = 0.5
    """Stay at `reset_mT`."""

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.fine_mT > self.coarse_mT:
            raise ValueError(f"fine_mT is {self.fine_mT:g}; allowed: at most coarse_mT ({self.coarse_mT:g})")
        return self


EventName = Literal["nucleation", "annihilation", "collapse", "merge"]


class OnEvent(_Rule):
    """Mark what happens to single skyrmions, and save the frames around it as a clip."""

    rule: Literal["on_event"]
    events: Annotated[list[EventName], Field(min_length=1)]
    """nucleation: the first skyrmion where there was none; annihilation: the last one vanishes; collapse: one vanishes
    among others; merge: two become one object."""
    present_count: Annotated[int, Field(ge=1)] = 1
    """Skyrmions from which on there are some, for nucleation and annihilation."""
    dwell_frames: Annotated[int, Field(ge=1, le=100)] = 2
    """So many frames in a row have to show it."""
    match_px: Positive = 12.0
    """How far a skyrmion moves between two analysed frames at most."""
    clip_s: Annotated[float, Field(ge=0, le=60)] = 3.0
    """Frames so long before and after go into the clip; 0: none."""
    max_clips: Annotated[int, Field(ge=0, le=1000)] = 20
    """Later events are marked only."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_rate(cls, tree: object) -> object:
        if isinstance(tree, dict) and "rate_hz" in tree:
            raise ValueError(
                f"rate_hz is {tree['rate_hz']}, but no camera driver changes its rate during a run, because another "
                "exposure makes another image; allowed: a rate for the whole run, in the section camera"
            )
        return tree


class PythonRule(_Rule):
    """A function of yours, given the latest results, that returns a field in mT, or None."""

    rule: Literal["python"]
    file: Path
    """The Python file. It is run in a process of its own, with the service's rights."""
    function: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] = "decide"
    """Called with a list of `realtime_skyseg.experiment.Seen`, the newest last."""
    window_frames: Annotated[int, Field(ge=1, le=10_000)] = 100
    """So many results at most."""
    limit_s: Annotated[float, Field(gt=0, le=60)] | None = None
    """It may take so long for an answer, or it is ended and not asked again; absent: `max_age_s`."""


Rule = Annotated[StopWhen | HoldCount | AdaptiveSteps | OnEvent | PythonRule, Field(discriminator="rule")]
