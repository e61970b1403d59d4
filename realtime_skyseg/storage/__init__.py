"""Run files: one HDF5 file per run, in the NeXus manner, readable while it is written."""

from realtime_skyseg.storage.chunk import crc32
from realtime_skyseg.storage.fill import RunFiller
from realtime_skyseg.storage.reader import Run, open_run
from realtime_skyseg.storage.recover import Rescue, recover
from realtime_skyseg.storage.writer import Provenance, RunWriter

__all__ = ["Provenance", "Rescue", "Run", "RunFiller", "RunWriter", "crc32", "open_run", "recover"]
