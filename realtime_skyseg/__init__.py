"""Live segmentation of magnetic skyrmions in Kerr microscopy.

>>> import realtime_skyseg as sky
>>> with sky.Service(sky.load_config("run.yaml")).start() as running:
...     with sky.Subscriber(running.address) as stream, sky.Control(running.control_address) as control:
...         newest = stream.latest(timeout_s=30)
...         answer = control.ask("stop")
...     summary = running.wait()
>>> newest.mask.shape
(512, 672)
>>> with sky.open_run(summary.run_file) as run:
...     image = run.raw[0]
>>> sky.Segmenter.load("compact")(image).count > 0
True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from realtime_skyseg import caches

if TYPE_CHECKING:
    from realtime_skyseg.config import load_config
    from realtime_skyseg.notebook import Segmenter, open_run
    from realtime_skyseg.service import Service
    from realtime_skyseg.streaming import Control, Subscriber

__all__ = ["Control", "Segmenter", "Service", "Subscriber", "load_config", "open_run"]

_PLACES = {
    "Control": "realtime_skyseg.streaming",
    "Segmenter": "realtime_skyseg.notebook",
    "Service": "realtime_skyseg.service",
    "Subscriber": "realtime_skyseg.streaming",
    "load_config": "realtime_skyseg.config",
    "open_run": "realtime_skyseg.notebook",
}

#: The same without pictures, on a computer that has not what these need (requirements-client.txt).
_PLAIN = {"open_run": "realtime_skyseg.storage"}

caches.prepare_numba()


def __dir__() -> list[str]:
    """What the Tab key offers."""
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `import realtime_skyseg` itself stays free of OpenCV, HDF5 and ZeroMQ.
    if name == "__version__":
        from importlib.metadata import version

        return version("realtime_skyseg")
    if name in _PLACES:
        try:
            return getattr(import_module(_PLACES[name]), name)
        except ModuleNotFoundError:
            if name not in _PLAIN:
                raise
            return getattr(import_module(_PLAIN[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
