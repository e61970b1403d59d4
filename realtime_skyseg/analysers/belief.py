"""Whether a frame is one that the model knows, and how sure the objects and their count are."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from realtime_skyseg.analysers.api import Analyser, AnalyserSettings, View
from realtime_skyseg.quantities import Quantity
from realtime_skyseg.records import Kind

_UNKNOWN = "the model was not calibrated (skyseg calibrate): nothing is known of how far its counts can be believed"


class DomainSettings(AnalyserSettings):
    """When to say it."""

    frames: Annotated[int, Field(ge=1, le=1000)] = 2
    """So many frames in a row out of range, or in range again, make an event."""


class _OfTrust(Analyser):
    """Goes by what is known of the model, and says once where nothing is."""

    def __init__(self, settings: AnalyserSettings) -> None:
        super().__init__(settings)
        self.reset()

    def reset(self) -> None:
        """See `Analyser`."""
        self._told_unknown = False

    def _tell_unknown(self, view: View) -> None:
        if not self._told_unknown:
            view.tell("not_calibrated", _UNKNOWN)
        self._told_unknown = True


class DomainAnalyser(_OfTrust):
    """Scores each frame: is it one that the model knows, and why not."""

    Settings = DomainSettings
    quantities = (
        Quantity("domain", "f4", np.nan, "", "the model's range: 1 well inside, below 0.5 out of it", "frame"),
        Quantity("focus_px", "f4", np.nan, "px", "width of the skyrmions' borders; larger: out of focus", "frame"),
    )

    def reset(self) -> None:
        """See `Analyser`."""
        super().reset()
        self._outside = False  # as it was told
        self._in_a_row = 0  # frames that are otherwise
        self._judged = 0
        self._reasons: Counter[str] = Counter()

    def summary(self) -> dict[str, Any]:
        """How many frames were judged, how many were out of range, and why."""
        return {
            "judged": self._judged, "out_of_range": self._reasons.total(), "reasons": dict(self._reasons.most_common()),
        }  # fmt: skip

    def __call__(self, view: View) -> Mapping[str, Any]:
        """See `Analyser`."""
        assert isinstance(self.settings, DomainSettings)
        looks = view.looks
        if view.trust is None:
            self._tell_unknown(view)
            return {"focus_px": looks.focus}
        judgement = view.trust.judge(looks.frame)
        outside = judgement.domain < 0.5
        self._judged += 1
        if outside:
            self._reasons[judgement.reason] += 1
        self._in_a_row = self._in_a_row + 1 if outside != self._outside else 0
        if self._in_a_row == self.settings.frames:
            self._outside, self._in_a_row = outside, 0
            since = view.frame
            if outside:
                view.tell("out_of_range", f"frame {since}: counts cannot be believed: {judgement.reason}")
            else:
                view.tell("in_range", f"frame {since}: counts can be believed again")
        return {"domain": judgement.domain, "focus_px": looks.focus}


class SurenessAnalyser(_OfTrust):
    """Says how likely each object is one, and between what the count lies."""

    quantities = (
        Quantity("sureness", "f4", np.nan, "", "how likely it is an object, calibrated on images left out", "object"),
        Quantity("count_low", "f4", np.nan, "", "lowest count to expect, in 9 of 10 images of a new sample", "frame"),
        Quantity("count_high", "f4", np.nan, "", "highest count to be expected so", "frame"),
        Quantity("tendency", "f4", np.nan, "", "expected minus found: above 0, too few are found", "frame"),
        Quantity("mean_sureness", "f4", np.nan, "", "mean sureness of the skyrmions", "frame"),
    )  # fmt: skip

    def __call__(self, view: View) -> Mapping[str, Any]:
        """See `Analyser`."""
        trust = view.trust
        if trust is None:
            self._tell_unknown(view)
            return {}
        looks = view.looks
        domain = view.values.get("domain", math.nan)
        if math.isnan(domain):
            domain = trust.judge(looks.frame).domain
        sureness = trust.sureness(looks.objects)
        counted = sureness[view.objects["kind"] == Kind.SKYRMION]
        stripes = len(sureness) - len(counted)
        low, high, expected = trust.interval(looks.frame, counted, stripes, domain)
        return {
            "sureness": sureness,
            "count_low": low,
            "count_high": high,
            "tendency": expected - len(counted),
            "mean_sureness": float(counted.mean()) if len(counted) else math.nan,
        }
