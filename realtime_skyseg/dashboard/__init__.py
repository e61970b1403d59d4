"""The live page: a client of the stream and, where that is allowed, of the control socket (docs/dashboard.md)."""

from realtime_skyseg.dashboard.feed import Feed, Series, Shown

__all__ = ["Feed", "Series", "Shown"]
