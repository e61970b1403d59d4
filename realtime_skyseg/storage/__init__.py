"""Run files: one HDF5 file per run, in the NeXus manner, readable while it is written."""

from realtime_skyseg.storage.reader import Run, open_run
from realtime_skyseg.storage.writer import Provenance, RunWriter

__all__ = ["Provenance", "Run", "RunWriter", "open_run"]
