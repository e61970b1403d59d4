"""What is measured on a frame: today's objects, and whatever a lab adds in a package of its own (docs/analyser.md)."""

from realtime_skyseg.analysers.api import Analyser, AnalyserSettings, View
from realtime_skyseg.analysers.running import RunningAnalyser
from realtime_skyseg.quantities import Quantity

__all__ = ["Analyser", "AnalyserSettings", "Quantity", "RunningAnalyser", "View"]
