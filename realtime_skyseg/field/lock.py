"""One guard per supply: a lock that ends with the process that holds it, however it ends."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from realtime_skyseg.config import FieldSettings
from realtime_skyseg.errors import FieldError


@contextmanager
def only_one(settings: FieldSettings) -> Iterator[None]:
    """Hold the supply that the settings name, as long as the block lasts. Where nobody can set it, nobody holds it.

    Raises:
        FieldError: another process of this computer has it.
    """
    name = settings.supply_name
    if name is None:
        yield
        return
    folder = Path(tempfile.gettempdir()) / "realtime_skyseg-supplies"
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.lock"
    try:
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            folder.chmod(0o1777)  # the computer's, not one person's
        lock = FileLock(path, timeout=0, mode=0o666, fallback_to_soft=False, preserve_lock_file=True)
        lock.acquire()
    except Timeout:
        holder = _holder(path)
        raise FieldError(
            f"field.driver: {name} is held by {holder}, the field guard of another run, until that run has ended and "
            "the field is safe; allowed: one run per supply"
        ) from None
    except OSError as error:
        raise FieldError(
            f"field.driver: '{path}', the lock of {name}, cannot be had: {error.strerror or error}"
        ) from error
    try:
        with suppress(OSError):
            path.with_suffix(".pid").write_text(f"{os.getpid()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    try:
        return f"process {path.with_suffix('.pid').read_text(encoding='utf-8')}"
    except OSError:
        return "a process"
