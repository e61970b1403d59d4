"""Last words: what is said when a command fails, and when nobody takes what it prints."""

import os
import sys
from contextlib import suppress

from realtime_skyseg.records import printable


def say_failure(message: str, status: int) -> int:
    """Say to stderr why a command failed; returns its exit status."""
    with suppress(OSError, ValueError):
        print(f"skyseg: {printable(message)}", file=sys.stderr)
    return status


def drop_output() -> None:
    """Let Python not try again, at its end, to write what nobody takes."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
