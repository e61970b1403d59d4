"""Field programmes with feedback: what is planned, what rules decide, and what comes out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realtime_skyseg.experiment.controller import Experiment
    from realtime_skyseg.experiment.decide_again import redecide
    from realtime_skyseg.experiment.outcome import fields, report, transitions, write_clips

__all__ = ["Experiment", "fields", "redecide", "report", "transitions", "write_clips"]

_PLACES = {
    "Experiment": "controller",
    "fields": "outcome",
    "redecide": "decide_again",
    "report": "outcome",
    "transitions": "outcome",
    "write_clips": "outcome",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: the process of a Python rule needs next to nothing of this.
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
