"""One command from its arguments to its exit status."""

import atexit
import io
import logging
import os
import sys
from collections.abc import Sequence

from realtime_skyseg import log_file
from realtime_skyseg.cli.output import drop_output, say_failure
from realtime_skyseg.cli.parser import make_parser
from realtime_skyseg.errors import SkysegError


def program() -> int:
    """`skyseg` as a process of its own; returns its exit status, and leaves with it once files and sockets are closed.

    To unload torch and OpenVINO takes 0.3 to 0.6 s, for which nobody should wait who has asked a run to end.
    """
    ended: list[int] = []
    atexit.register(_leave, ended)  # before all others, so that it is called after them
    ended.append(main())
    return ended[0]


def _leave(ended: list[int]) -> None:
    if ended:  # argparse and a second Ctrl+C leave in their own way
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 all well, 1 lost frames or a fault, 2 wrong use or settings."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if "added" in options:
        options.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    for way in (sys.stdout, sys.stderr):
        if isinstance(way, io.TextIOWrapper):
            way.reconfigure(errors="replace")  # "?" for what the terminal cannot show
    to_stderr = logging.StreamHandler()
    to_stderr.setLevel(logging.INFO if options.verbose else logging.WARNING)
    to_stderr.setFormatter(
        log_file.Plain(
            "%(levelname)s %(name)s: %(message)s" if options.verbose else "skyseg: %(message)s", trace=options.verbose
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[to_stderr])
    try:
        if getattr(options, "log", None):
            log_file.log_to(options.log)
        status: int = options.command(options)
        sys.stdout.flush()
    except SkysegError as error:
        return say_failure(str(error), error.exit_status)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has left
        drop_output()
        return 0
    except OSError as error:
        drop_output()
        logging.getLogger(__name__).info("the command failed", exc_info=True)
        where = f"'{error.filename}'" if error.filename else "a file or the output"
        return say_failure(f"{where} cannot be read or written: {error.strerror or error}", 2 if error.filename else 1)
    except MemoryError:
        return say_failure("the memory of this computer is not enough for it", 1)
    except Exception as error:
        logging.getLogger(__name__).info("the command failed", exc_info=True)
        hint = "" if options.verbose else "; `skyseg -v ...` shows where"
        return say_failure(f"this should not happen: {type(error).__name__}: {error}{hint}", 1)
    return status
