"""Field programmes with feedback: what is planned, what rules decide, and what comes out."""

from realtime_skyseg.experiment.controller import Experiment, Outcome
from realtime_skyseg.experiment.outcome import fields, report, transitions, write_clips
from realtime_skyseg.experiment.replay import redecide
from realtime_skyseg.experiment.rules import Seen

__all__ = ["Experiment", "Outcome", "Seen", "fields", "redecide", "report", "transitions", "write_clips"]
