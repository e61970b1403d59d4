"""Built engines, kept from one start to the next."""

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import platformdirs

from realtime_skyseg.caches import can_write, of_this_process
from realtime_skyseg.errors import ModelError

log = logging.getLogger(__name__)

_Loaded = TypeVar("_Loaded")


def cache_folder() -> Path:
    """The user's folder for built engines; where it cannot be written, one of this process."""
    folder = Path(platformdirs.user_cache_dir("realtime_skyseg"))
    if can_write(folder):
        return folder
    log.warning("'%s' cannot be written: engines are built at each start, in a folder of this process", folder)
    return of_this_process()


def cached(folder: Path, load: Callable[[Path], _Loaded], build: Callable[[Path], None]) -> _Loaded:
    """What `load` makes of `folder`. Where it is absent or `load` raises, `build` fills it anew.

    Services may build at once: each fills a folder of its own, and the first to rename wins.
    """
    if folder.exists():
        try:
            return load(folder)
        except (ModelError, OSError, ValueError, KeyError) as error:
            log.warning("the engine in %s cannot be used and is built again: %s", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        build(building)
        try:
            building.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return load(folder)
