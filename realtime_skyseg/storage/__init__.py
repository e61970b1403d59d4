"""Run files: one HDF5 file per run, in the NeXus manner, readable while it is written."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realtime_skyseg.storage.chunk import crc32
    from realtime_skyseg.storage.fill import RunFiller
    from realtime_skyseg.storage.provenance import Provenance
    from realtime_skyseg.storage.reader import Run, open_run
    from realtime_skyseg.storage.rescue import Rescue, recover
    from realtime_skyseg.storage.writer import RunWriter

__all__ = ["Provenance", "Rescue", "Run", "RunFiller", "RunWriter", "crc32", "open_run", "recover"]

_PLACES = {
    "Provenance": "provenance", "Rescue": "rescue", "Run": "reader", "RunFiller": "fill", "RunWriter": "writer",
    "crc32": "chunk", "open_run": "reader", "recover": "rescue",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # On first use: who only reads run files needs no codecs.
    if name in _PLACES:
        return getattr(import_module(f"realtime_skyseg.storage.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
