"""Rules: pure state machines that see one analysed frame after the other, and decide what happens to the field.

A rule looks at nothing but what it is given, no clock and no device. So the same frames lead to the same decisions,
live and when a run is decided again from its file.
"""

from realtime_skyseg.experiment.rules.choice import decider
from realtime_skyseg.experiment.rules.python_file import load_function, sources
from realtime_skyseg.experiment.rules.seen import WAIT, Action, Decider, Decision, Seen, Situation, seen
from realtime_skyseg.experiment.rules.shared import Truth

__all__ = [
    "WAIT",
    "Action",
    "Decider",
    "Decision",
    "Seen",
    "Situation",
    "Truth",
    "decider",
    "load_function",
    "seen",
    "sources",
]
