"""From a mask to a table of objects."""

from realtime_skyseg.analysis.measure import measure

__all__ = ["measure"]
