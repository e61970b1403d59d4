"""Where built engines and compiled loops are kept, and what happens where nothing can be kept."""

import atexit
import logging
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)


def can_write(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made if absent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@cache
def of_this_process() -> Path:
    """A folder that is gone when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="realtime_skyseg-"))
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a process that was forked off
        shutil.rmtree(folder, ignore_errors=True)


def prepare_numba() -> None:
    """See that numba can keep what it compiles, which it insists on; to be called before it is imported.

    It keeps it beside the modules, or in the user's cache folder. Where neither can be written (another user, no home),
    it goes to a folder of this process: then each start compiles anew, some 20 s.
    """
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    beside = Path(__file__).parent / "analysis" / "__pycache__"
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
    try:
        if can_write(beside) or can_write(Path(home).expanduser() / "numba"):
            return
        os.environ["NUMBA_CACHE_DIR"] = str(of_this_process())
    except (OSError, RuntimeError):  # not even a temporary folder, or no home: numba says it
        return
    log.warning("no folder for compiled code can be written: it is compiled at each start (some 20 s)")
