"""The section `experiment` of a run's settings."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from realtime_skyseg.programme.parts import NotNegative, Part, Positive, walk_through
from realtime_skyseg.programme.rules import Rule
from realtime_skyseg.section import Section


class Interlocks(Section):
    """What no rule and no request can pass, beside `field.limit_mT` and `field.slew_mT_per_s`."""

    dead_man_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """No fresh result for so long: the safe state, and the end of the experiment."""
    max_duration_s: Positive = 86_400.0
    """Of the whole experiment, pauses included; then the safe state."""
    hot_mT: Positive | None = None
    """Fields at least this far from zero are hot ..."""
    hot_s: Positive = 60.0
    """... and may last so long in a row; then the safe state."""


class ExperimentSettings(Section):
    """A field programme and the rules that may change it."""

    programme: Annotated[list[Part], Field(min_length=1, max_length=1000)]
    rules: Annotated[list[Rule], Field(max_length=20)] = []
    """Asked in this order at every fresh result; the first that decides acts."""
    settle_s: NotNegative = 0.3
    """See the parts' own `settle_s`."""
    frames: Annotated[int, Field(ge=0, le=100_000)] = 5
    """See the parts' own `frames`."""
    present_count: Positive = 1.0
    """Mean count of a step from which skyrmions are there, for nucleation and annihilation fields; above what the model
    finds in a saturated film."""
    max_age_s: Annotated[float, Field(gt=0, le=60)] = 1.0
    """A result older than this is not acted upon, and the programme waits while there is none."""
    min_domain: Annotated[float, Field(gt=0, le=1)] | None = None
    """Rules are not asked about a frame whose domain score (analyser `domain`) is lower; 0.5 is where the model's range
    ends. absent: they are asked about every frame."""
    out_of_range: Literal["go_on", "pause", "abort"] = "go_on"
    """What happens when frames were below `min_domain` for `out_of_range_s`: the programme goes on without its rules;
    or it pauses, until frames are in range for as long again; or it ends, and the field becomes safe."""
    out_of_range_s: Annotated[float, Field(gt=0, le=3600)] = 2.0
    """See `out_of_range`."""
    interlocks: Interlocks = Interlocks()
    dry_run: bool = False
    """True: the programme runs, the rules decide and are recorded, but nothing is done about it."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.out_of_range != "go_on" and self.min_domain is None:
            raise ValueError(
                f"out_of_range: '{self.out_of_range}' needs a lowest score; allowed: with min_domain, as 0.5"
            )
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        known = {part.name for part in walk_through(self.programme) if part.name}
        for place, rule in enumerate(self.rules):
            for name in rule.during or ():
                if name not in known:
                    allowed = ", ".join(sorted(known)) or "none, because no part of the programme has a name"
                    raise ValueError(f"rules.{place}.during: no part is named '{name}'; allowed: {allowed}")
        return self
