"""The `skyseg` command. Parses, calls, prints; everything else is elsewhere."""

from realtime_skyseg.cli.entry import main, program

__all__ = [
    "main",
    "program",
]
