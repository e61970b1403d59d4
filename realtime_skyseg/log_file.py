"""A log for programs: one JSON object per line."""

import json
import logging
import logging.handlers
from datetime import UTC, datetime
from pathlib import Path

from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import printable

_BYTES, _FILES = 10_000_000, 5


class Plain(logging.Formatter):
    """A line of text; the trace of an error, too, where it is asked for."""

    def __init__(self, layout: str, trace: bool) -> None:
        super().__init__(layout)
        self._trace = trace

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        if self._trace:
            return super().format(record)
        error = f": {record.exc_info[1]!r}" if record.exc_info and record.exc_info[1] else ""
        return printable(str(self._fmt) % {"levelname": record.levelname, "name": record.name,
                                      "message": record.getMessage()} + error)  # fmt: skip


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to(path: Path) -> logging.Handler:
    """Let everything from level INFO on go to a file too; at 10 MB it is put aside as FILE.1, and so on up to FILE.5.

    Returns:
        The handler, for whoever closes it.

    Raises:
        SettingsError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=_BYTES, backupCount=_FILES, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--log: '{path}' cannot be written: {error.strerror}") from error
    handler.setFormatter(_Line())
    handler.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    return handler
