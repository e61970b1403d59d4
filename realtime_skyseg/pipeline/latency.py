"""How long the stages of a frame's way take."""

import math

import numpy as np

#: `others` is what all but `segment` takes together.
STAGES = ("queue", "prepare", "segment", "measure", "publish", "others", "total")


class Latency:
    """Durations of one stage, in bins of 1 %: percentiles of any number of frames in fixed memory."""

    _STEP = math.log(1.01)
    _SHORTEST_NS = 1_000.0
    _BINS = 2000  # up to 7 minutes

    def __init__(self) -> None:
        self._bins = np.zeros(self._BINS, np.int64)
        self._longest_ns = 0

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        place = int(math.log(max(duration_ns, self._SHORTEST_NS) / self._SHORTEST_NS) / self._STEP)
        self._bins[min(place, self._BINS - 1)] += 1
        self._longest_ns = max(self._longest_ns, duration_ns)

    def merge(self, other: "Latency") -> None:
        """Count in the durations of another one."""
        self._bins += other._bins
        self._longest_ns = max(self._longest_ns, other._longest_ns)

    def percentiles_ms(self) -> dict[str, float | None]:
        """p50, p99, p99_9 and max in ms; None where nothing was measured."""
        n = int(self._bins.sum())
        if n == 0:
            return {"p50": None, "p99": None, "p99_9": None, "max": None}
        upto = np.cumsum(self._bins)
        values: dict[str, float | None] = {}
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p99_9", 0.999)):
            place = int(np.searchsorted(upto, share * n))
            values[name] = round(
                min(self._SHORTEST_NS * math.exp((place + 0.5) * self._STEP), self._longest_ns) / 1e6, 3
            )
        return {**values, "max": round(self._longest_ns / 1e6, 3)}
