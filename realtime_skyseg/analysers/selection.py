"""Which objects count: limits on any quantity, and whether those at the border of the image do."""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from realtime_skyseg.analysers.api import Analyser, AnalyserSettings, View
from realtime_skyseg.quantities import Quantity
from realtime_skyseg.records import Kind, Objects


def _ordered(limits: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    low, high = limits
    if low is not None and high is not None and not low <= high:
        raise ValueError(f"{low:g} to {high:g} is no range; allowed: [lowest, highest], null for no limit")
    return limits


#: Lowest and highest value that counts; None: no limit.
Limits = Annotated[tuple[float | None, float | None], AfterValidator(_ordered)]


class SelectionSettings(AnalyserSettings):
    """What is chosen."""

    limits: dict[str, Limits] = {}
    """Lowest and highest value, by the names of quantities of objects: those that are always there, and those of
    analysers that stand above in the settings. null: no limit. An object without a value is not chosen."""
    border: bool = True
    """False: objects that touch the border of the image are not chosen."""


class SelectionAnalyser(Analyser):
    """Chooses objects. Analysers that stand below it in the settings and are about skyrmions take the chosen only."""

    Settings = SelectionSettings
    quantities = (
        Quantity("selected", "u1", 0, "", "1: within the limits of the settings", "object"),
        Quantity("selected_count", "f4", np.nan, "", "skyrmions within the limits of the settings", "frame"),
        Quantity("selected_stripes", "f4", np.nan, "", "stripes within the limits of the settings", "frame"),
    )

    def __call__(self, view: View) -> Mapping[str, Any]:
        """See `Analyser`."""
        assert isinstance(self.settings, SelectionSettings)
        chosen = select(view.objects, self.settings.limits, self.settings.border)
        skyrmions = view.objects["kind"] == Kind.SKYRMION
        return {
            "selected": chosen,
            "selected_count": float((chosen & skyrmions).sum()),
            "selected_stripes": float((chosen & ~skyrmions).sum()),
        }


def select(
    objects: Objects, limits: Mapping[str, tuple[float | None, float | None]], border: bool = True
) -> NDArray[np.bool_]:
    """(n,) which objects of a table lie within limits, see `SelectionSettings`.

    Raises:
        ValueError: a name that is no column of the table.
    """
    chosen = np.ones(len(objects), np.bool_)
    names = objects.dtype.names or ()
    for name, (low, high) in limits.items():
        if name not in names:
            raise ValueError(f"limits: '{name}' is no quantity of the objects; allowed: {', '.join(names)}")
        values = objects[name]
        chosen &= values >= (-np.inf if low is None else low)
        chosen &= values <= (np.inf if high is None else high)
    return chosen if border else chosen & (objects["border"] == 0)


def chosen_skyrmions(objects: Objects) -> NDArray[np.bool_]:
    """(n,) which rows are skyrmions, no stripes, and selected, where a selection was made."""
    skyrmions: NDArray[np.bool_] = objects["kind"] == Kind.SKYRMION
    return skyrmions & (objects["selected"] == 1) if "selected" in (objects.dtype.names or ()) else skyrmions


def points_of(objects: Objects) -> NDArray[np.float64]:
    """(n, 2) x and y of all objects."""
    return np.stack([objects["x"], objects["y"]], 1).astype(np.float64)
