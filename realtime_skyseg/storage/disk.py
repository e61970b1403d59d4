"""Room on a disk that is held back, so that what is open can be finished when the disk is full."""

import os
import tempfile
from pathlib import Path


class Reserve:
    """A nameless file that takes room on a folder's disk until it is closed or the process ends.

    It is given back in pieces, because another program that fills the disk may be quicker.

    Args:
        folder: on that disk.
        size: of all of it, in bytes.
        piece: that is given back at a time, in bytes.

    Raises:
        OSError: there is not so much room.
    """

    def __init__(self, folder: Path, size: int, piece: int) -> None:
        self._piece = piece
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  stays open
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:
                for _ in range(0, size, 1 << 20):
                    self._file.write(bytes(1 << 20))
        except BaseException:
            self._file.close()
            raise

    def give_back(self) -> bool:
        """Let go of a piece; False: there is none."""
        if self._file.closed:
            return False
        left = self._file.seek(0, os.SEEK_END) - self._piece
        if left > 0:
            self._file.truncate(left)
        else:
            self._file.close()
        return True

    def close(self) -> None:
        """Let go of all of it. Safe to repeat."""
        self._file.close()
