"""The twin's magnet: a supply in V, a yoke that lags and remembers, an AC coil, and a coil for in-plane pulses."""

import itertools
import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from realtime_skyseg.devices import DriverSettings

_NonNegative = Annotated[float, Field(ge=0)]
_Positive = Annotated[float, Field(gt=0)]

#: What was set is kept for so many changes: more than 40 s at the field guard's fastest usual rate.
_HISTORY = 4096
#: Parts that a period of the AC field is cut into.
_AC_PARTS = 8


class MagnetSettings(DriverSettings):
    """Parameters of `TwinMagnet`."""

    limit_V: _Positive = 10.0
    """The supply gives as much, of either sign."""
    mT_per_V: _Positive = 1.0
    """Field at the sample, out of plane."""
    lag_ms: _NonNegative = 20.0
    """Time constant with which the field follows the supply."""
    remanence_mT: _NonNegative = 0.02
    """Of the yoke: the field is lower by this where it rises, higher where it falls, also back at 0 V."""
    turn_mT: _Positive = 0.5
    """Way from one of these branches half-way to the other, after the field has turned."""
    read_noise_mT: _NonNegative = 0.003
    """Standard deviation of the read-back."""
    ac_mT: _NonNegative = 0.0
    """Amplitude of an alternating field at the sample, which the read-back does not show."""
    ac_hz: Annotated[float, Field(gt=0, le=1000)] = 10.0
    """Frequency of it, in the sample's time."""
    in_plane_limit_mT: _Positive = 60.0
    """Largest in-plane pulse, of either sign."""


@dataclass(frozen=True, slots=True)
class _Way:
    """How the field goes from one change of the supply on, in mT, without remanence."""

    since_s: float
    start_mT: float
    end_mT: float
    yoke: float  # state of the yoke at the start, -1 to 1


class TwinMagnet:
    """Gives the field at any time, from what the supply was told until then. All methods may be called by any thread.

    Times in s are of one clock of the caller's. A fault makes it ignore what it is told (`ignores`) or go to `gain`
    times that.
    """

    def __init__(self, settings: MagnetSettings, seed: int, now_s: float) -> None:
        self.settings = settings
        self.ignores = False
        self.gain = 1.0
        self.changes = 0  # how often it was set
        self.set_V = 0.0  # what it was told last
        self._random = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._ways = deque([_Way(now_s, 0.0, 0.0, 0.0)], maxlen=_HISTORY)
        self._pulse = (0.0, 0.0)  # mT, s that are left of it

    def set(self, volts: float, now_s: float) -> None:
        """Set the supply."""
        with self._lock:
            self.set_V = volts
            self.changes += 1
            if self.ignores:
                return
            way = self._ways[-1]
            base = self._base(way, now_s)
            self._ways.append(_Way(now_s, base, volts * self.settings.mT_per_V * self.gain, self._yoke(way, base)))

    def read(self, now_s: float) -> float:
        """Read the field back in V, by the nominal calibration."""
        with self._lock:
            noise = self.settings.read_noise_mT * self._random.standard_normal()
            return float(self._field(now_s) + noise) / self.settings.mT_per_V

    def field_mT(self, at_s: float) -> float:
        """The out-of-plane field at the sample, without AC, at a time of the last 40 s or so."""
        with self._lock:
            return self._field(at_s)

    def pulse(self, in_plane_mT: float, seconds: float) -> None:
        """Begin an in-plane pulse, in place of one that is under way; it lasts `seconds` of the sample's time."""
        with self._lock:
            self._pulse = (in_plane_mT, seconds)

    def parts(self, seconds: float, sample_s: float, from_s: float, to_s: float) -> list[tuple[float, float, float]]:
        """What the sample sees in its next `seconds`: (s, out-of-plane mT, in-plane mT), in order. A pulse runs on.

        Args:
            seconds: of the sample's time.
            sample_s: the sample's time at the beginning, for the AC field.
            from_s: the caller's clock at the beginning.
            to_s: and at the end.
        """
        s = self.settings
        with self._lock:
            in_plane, left_s = self._pulse
            pulsed_s = min(left_s, seconds)
            self._pulse = (in_plane, left_s - pulsed_s)
            n = max(1, math.ceil(seconds * s.ac_hz * _AC_PARTS)) if s.ac_mT else 1
            edges = sorted({*np.linspace(0.0, seconds, n + 1).tolist(), pulsed_s})
            parts = []
            for start, end in itertools.pairwise(edges):
                middle = (start + end) / 2
                field = self._field(from_s + (to_s - from_s) * middle / seconds)
                if s.ac_mT:
                    field += s.ac_mT * math.sin(2 * math.pi * s.ac_hz * (sample_s + middle))
                parts.append((end - start, field, in_plane if middle < pulsed_s else 0.0))
            return parts

    def _field(self, at_s: float) -> float:
        way = next((way for way in reversed(self._ways) if way.since_s <= at_s), self._ways[0])
        base = self._base(way, at_s)
        return base - self.settings.remanence_mT * self._yoke(way, base)

    def _base(self, way: _Way, at_s: float) -> float:
        tau_s = self.settings.lag_ms / 1e3
        left = math.exp(-max(0.0, at_s - way.since_s) / tau_s) if tau_s else 0.0
        return way.end_mT + (way.start_mT - way.end_mT) * left

    def _yoke(self, way: _Way, base_mT: float) -> float:
        # The stop operator of A. Visintin, Differential Models of Hysteresis (1994): it follows and saturates.
        return min(1.0, max(-1.0, way.yoke + (base_mT - way.start_mT) / self.settings.turn_mT))
