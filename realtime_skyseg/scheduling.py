"""Which thread may take a processor from which."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def patient_threads() -> Iterator[None]:
    """Threads that are started inside, and theirs, wait for a free processor when they have something to do.

    Linux otherwise lets a thread that wakes take the processor of one that runs: the recorder and the sockets would
    hold the frame up that is being analysed. They get their full share of time all the same (SCHED_BATCH, which needs
    no rights). Nothing changes on other systems, or where another policy was chosen from outside.
    """
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    with contextlib.suppress(PermissionError):  # a container may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
