"""The highest rate at which nothing is skipped."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from realtime_skyseg.bench.case import Case
from realtime_skyseg.bench.latency import measure_run

#: The search for the highest rate ends where it is known to this.
_RATE_STEP = 0.03


def saturation(case: Case, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The highest rate of the camera at which every frame is analysed (policy `latest`) and written, to 3 %.

    Begins where the computer is when nothing waits (policy `every`), and halves the interval from there: each try is a
    run of `case.seconds`, at least 150 frames. A shared computer may miss a frame at any rate, so that a rate is given
    up only after two runs.

    Returns:
        `rate_hz`, `run` (as in `bench`, at that rate) and `tries` (rate and frames not analysed).
    """
    tries: list[dict[str, float]] = []

    def held(rate_hz: float) -> dict[str, Any] | None:
        for _ in range(2):
            with tempfile.TemporaryDirectory() as folder:
                run = measure_run(
                    replace(case, rate_hz=rate_hz, seconds=max(case.seconds, 150 / rate_hz)), Path(folder)
                )
            frames = run["frames"]
            missed = frames["received"] - min(frames["analysed"], frames["written"])
            late = run["rate_hz"] < rate_hz * (1 - _RATE_STEP)  # the camera itself did not keep its rate
            tries.append({"rate_hz": round(rate_hz, 2), "missed": missed, "came_hz": run["rate_hz"]})
            progress(f"{rate_hz:.1f} Hz: {missed} of {frames['received']} frames missed, {run['rate_hz']:.1f} Hz came")
            if not missed and not late:
                return run
        return None

    with tempfile.TemporaryDirectory() as folder:
        high = 1.2 * measure_run(replace(case, rate_hz=None), Path(folder))["rate_hz"]
    low, best = 0.0, None
    rate_hz = high / 1.3
    while high - low > _RATE_STEP * high:
        if run := held(rate_hz):
            low, best = rate_hz, run
        else:
            high = rate_hz
        rate_hz = (low + high) / 2 if low else high / 1.3
        if high < 0.5 or len(tries) >= 16:
            break
    return {"rate_hz": round(low, 2), "run": best, "tries": tries}
