"""What the field guard does with a supply: every step towards a target, every read-back, every refusal."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from realtime_skyseg.config import FieldSettings
from realtime_skyseg.devices import EnteredField, FieldSource, PulseSource, finite_within
from realtime_skyseg.errors import FieldError, SettingsError

#: So many read-backs in a row that fail or are off are a fault; a single one may be a slip of the line.
_BAD_READINGS = 3

#: No step is larger than what the slew rate allows in this time, however long the last one ago.
_LONGEST_STEP_S = 0.2

#: A supply that takes no value any more is given up this long after the service has gone.
GIVE_UP_S = 5.0


class Magnet:
    """A supply behind limits, slew rate, calibration, read-back and safe state. `tick` moves everything on.

    What was set is followed in mT (`_set_mT`) and never jumps: each tick moves it by what the slew rate allows since
    the tick before. A fault ends in the safe state and is final: no target is taken any more.

    Args:
        settings: limits and so on.
        device: opened; nothing is set here.
        note: takes the kind and the message of an event.
        inherit: why a guard before this one ended, having set the field; then the field goes to the safe state.

    Raises:
        SettingsError: the calibration is missing, or the limits need more than the supply gives.
        FieldError: the field as found cannot be read, or is outside the limits by more than the tolerance.
    """

    def __init__(
        self, settings: FieldSettings, device: FieldSource, note: Callable[[str, str], None], inherit: str = ""
    ) -> None:
        self._settings = settings
        self._device = device
        self._note = note
        self._calibration = settings.calibration
        if self._calibration is None and device.unit != "mT":
            raise SettingsError(f"field.calibration: this key is missing; it leads from {device.unit} to mT")
        if device.range is not None:
            for end in settings.limit_mT:
                needed, (low, high) = self._to_device(end), device.range
                if not low <= needed <= high:
                    raise SettingsError(
                        f"field.limit_mT: {end:g} mT needs {needed:g} {device.unit} of the supply, which gives {low:g} "
                        f"to {high:g} {device.unit}; allowed: limits that it can reach"
                    )
        self.fault = ""
        self._set_mT: float | None = None  # what the supply was last told; None: nothing yet
        self._set_s = 0.0  # when that was, monotonic
        self._stepped_s = time.monotonic()  # when the last tick was
        self._told: deque[tuple[float, float]] = deque()  # (monotonic s, mT) of the last `settle_s`, and one before
        self._plan: deque[tuple[float, float]] = deque()  # (target in mT, s to stay there), in order
        self._there_s: float | None = None  # since when the first of the plan is reached
        self._near = False  # the first target of the plan is reached, and read back within the tolerance
        self._bad = 0  # read-backs in a row that failed or were off
        self._again = False  # tell the supply once more, because it reads back something else
        self._refused_s: float | None = None  # since when the supply takes no value
        found = self._measure()
        low, high = settings.limit_mT
        if device.range is not None and not low - settings.tolerance_mT <= found <= high + settings.tolerance_mT:
            if not inherit:
                raise FieldError(
                    f"the supply stands at {self._device_value:g} {device.unit} = {found:g} mT as found; allowed: "
                    f"{low:g} to {high:g} mT (field.limit_mT); bring it there by hand"
                )
            found = min(low, high, key=lambda end: abs(self._to_device(end) - self._device_value))
        self._found_mT = min(max(found, low), high)
        if inherit:
            self._set_mT, self._set_s = self._found_mT, time.monotonic()
            self._told.append((self._set_s, self._set_mT))
            self.trip(inherit)

    def aim(self, field_mT: object) -> None:
        """Go to a field, in place of whatever is under way. Raises `FieldError` where it is refused."""
        target = self._accept(field_mT, "the field")
        start = self._go([(target, 0.0)])
        self._note("field_set", f"the field goes to {target:g} mT, from {start:g} mT")

    def stand_still(self) -> float | None:
        """Stay where the field is on its way, in place of whatever is under way.

        Returns what is set, in mT; None where nothing ever was. Raises `FieldError` where it is refused.
        """
        if self.fault:
            raise FieldError(f"a standstill is refused after a fault: {self.fault}; start a new run")
        if self._set_mT is not None and self._plan:
            self._go([(self._set_mT, 0.0)])
            self._note("field_stands", f"the field stays at {self._set_mT:g} mT, on its way")
        return self._set_mT

    def demagnetise(self, amplitude_mT: object, ratio: object, smallest_mT: object, dwell_s: object) -> None:
        """Alternate from `amplitude_mT` to zero, each swing `ratio` times the one before, until `smallest_mT`; stay
        `dwell_s` at each turn. Raises `FieldError` where it is refused.
        """
        first = finite_within(amplitude_mT, (0.0, math.inf), "the amplitude of demagnetisation", "mT")
        factor = finite_within(ratio, (0.1, 0.99), "the ratio of demagnetisation", "")
        last = finite_within(smallest_mT, (1e-6, math.inf), "the smallest swing of demagnetisation", "mT")
        stay = finite_within(dwell_s, (0.0, 60.0), "the stay at each turn of demagnetisation", "s")
        self._accept(first, "the first swing of demagnetisation")
        self._accept(-first, "the second swing of demagnetisation")
        turns, swing = [], first
        while abs(swing) >= last:
            turns.append((swing, stay))
            swing *= -factor
        self._go([*turns, (0.0, 0.0)])
        self._note("field_demagnetise", f"the field goes to zero in {len(turns)} swings from {first:g} mT")

    def pulse(self, in_plane_mT: object, seconds: object) -> None:
        """Give an in-plane pulse. Raises `FieldError` where it is refused."""
        limits = self._settings.pulse_limit_mT
        if self.fault:
            raise FieldError(f"a pulse is refused after a fault: {self.fault}; start a new run")
        if limits is None or not isinstance(self._device, PulseSource):
            raise FieldError(
                f"a pulse of {in_plane_mT!r} mT is refused; allowed: with a supply that gives in-plane pulses, and "
                "limits for them (field.pulse_limit_mT)"
            )
        height = finite_within(in_plane_mT, limits, "the pulse", "mT")
        height = finite_within(height, self._device.pulse_limit_mT, "the pulse, by the supply,", "mT")
        length = finite_within(seconds, (0.0, self._settings.pulse_limit_s), "the length of the pulse", "s")
        self._device.pulse(height, length)
        self._note("field_pulse", f"an in-plane pulse of {height:g} mT for {length:g} s")

    def enter(self, field_mT: object) -> None:
        """Take the field that a person has set. Raises `FieldError` where it is refused."""
        if not isinstance(self._device, EnteredField):
            raise FieldError(f"the field entered: {field_mT!r} mT is refused, because this supply is read back")
        value = finite_within(field_mT, self._settings.limit_mT, "the field entered", "mT")
        self._device.enter(self._to_device(value))
        self._note("field_entered", f"the field is {value:g} mT, as entered")

    def make_safe(self, reason: str) -> None:
        """Go to the safe state, in place of whatever is under way. A field that was never set is left alone."""
        if self._set_mT is None:
            return
        target = 0.0 if self._settings.safe == "zero" else self._set_mT
        if [place for place, _ in self._plan] == [target] or (not self._plan and self._set_mT == target):
            return
        start = self._go([(target, 0.0)])
        where = "goes to zero from" if self._settings.safe == "zero" else "is held at"
        self._note("field_safe", f"the field {where} {start:g} mT: {reason}")

    def trip(self, reason: str) -> None:
        """Note a fault, once and for good, and go to the safe state."""
        if not self.fault:
            self.fault = reason
            self._note("field_fault", reason)
        self.make_safe(reason)

    @property
    def resting(self) -> bool:
        """Nothing is under way, or the supply takes nothing any more."""
        given_up = self._refused_s is not None and time.monotonic() - self._refused_s > GIVE_UP_S
        return not self._plan or given_up

    def tick(self) -> dict[str, Any] | None:
        """Move on by one step and read back; the reading, or None where the read-back failed."""
        self._step()
        before_ns = time.time_ns()
        try:
            field_mT = self._measure()
        except FieldError as error:
            self._suspect(f"the field cannot be read back: {error}")
            self._arrive()
            return None
        time_ns = (before_ns + time.time_ns()) // 2
        self._compare(field_mT)
        self._arrive()
        return {
            "time_ns": time_ns,
            "device": self._device_value,
            "field_mT": field_mT,
            "set_mT": self._set_mT,
            "settled": self._near and not self._plan,
        }

    def _accept(self, field_mT: object, what: str) -> float:
        if self.fault:
            raise FieldError(f"{what}: {field_mT!r} mT is refused after a fault: {self.fault}; start a new run")
        if self._device.range is None:
            raise FieldError(f"{what}: {field_mT!r} mT is refused, because this source can only be read")
        return finite_within(field_mT, self._settings.limit_mT, what, "mT")

    def _go(self, plan: list[tuple[float, float]]) -> float:
        """Follow a plan from where the field stands, which is returned."""
        if self._set_mT is None:
            self._set_mT, self._set_s = self._found_mT, time.monotonic()
            self._told.append((self._set_s, self._found_mT))
        self._plan = deque(plan)
        self._there_s = None
        self._near = False
        return self._set_mT

    def _step(self) -> None:
        now = time.monotonic()
        since_s, self._stepped_s = self._stepped_s, now
        if not self._plan or self._set_mT is None:
            return
        target = self._plan[0][0]
        if self._there(target):
            return
        # After a standstill of this process or of the device the field goes on by a step, not by a leap.
        allowed = self._settings.slew_mT_per_s * min(now - max(self._set_s, since_s), _LONGEST_STEP_S)
        left = target - self._set_mT
        value = target if abs(left) <= allowed else self._set_mT + math.copysign(allowed, left)
        try:
            self._device.set(self._to_device(value))
        except Exception as error:
            self._refused_s = self._refused_s or now
            self.trip(f"the supply does not take {self._to_device(value):g} {self._device.unit}: {error}")
            return
        self._refused_s = None
        self._again = self._near = False
        # The time after the call: the supply has changed before it, so the next step is never too large.
        self._set_mT, self._set_s = value, time.monotonic()
        self._told.append((self._set_s, value))

    def _there(self, target: float) -> bool:
        return self._set_mT == target and self._refused_s is None and not self._again

    def _arrive(self) -> None:
        """Go on in the plan once its first target is reached, and was held for as long as it asks."""
        if not self._plan:
            return
        target, stay_s = self._plan[0]
        if not (self._there(target) and (self._near or self.fault)):
            return
        now = time.monotonic()
        self._there_s = self._there_s or now
        if now - self._there_s >= stay_s:
            self._there_s = None
            self._plan.popleft()
            if not self._plan:
                self._note("field_reached", f"the field is at {target:g} mT")

    def _measure(self) -> float:
        try:
            self._device_value = float(self._device.read())
        except FieldError:
            raise
        except Exception as error:
            raise FieldError(f"{type(error).__name__}: {error}") from error
        if self._calibration is None:
            return self._device_value
        return self._calibration.to_mT(self._device_value, self._settings.tolerance_mT)

    def _compare(self, field_mT: float) -> None:
        """The read-back has to be near something that was set within the last `settle_s`."""
        if self._set_mT is None:
            self._bad = 0
            if not self._plan and math.isfinite(field_mT):
                low, high = self._settings.limit_mT
                self._found_mT = min(max(field_mT, low), high)
            return
        long_ago = time.monotonic() - self._settings.settle_s
        while len(self._told) > 1 and self._told[1][0] < long_ago:
            self._told.popleft()
        tolerance = self._settings.tolerance_mT
        told = [value for _, value in self._told]
        if min(told) - tolerance <= field_mT <= max(told) + tolerance:
            self._bad = 0
            target = self._plan[0][0] if self._plan else self._set_mT
            self._near = self._set_mT == target and abs(field_mT - target) <= tolerance
            return
        self._near = False
        self._suspect(
            f"{field_mT:g} mT ({self._device_value:g} {self._device.unit}) is read back where {self._set_mT:g} mT was "
            f"set; allowed: within {tolerance:g} mT after {self._settings.settle_s:g} s (field.tolerance_mT, settle_s)"
        )

    def _suspect(self, reason: str) -> None:
        self._bad += 1
        if self._bad < _BAD_READINGS:
            return
        self._bad = 0
        self.trip(reason)
        if self._set_mT is not None and self._settings.safe == "zero":
            self._again = True
            self._plan = self._plan or deque([(self._set_mT, 0.0)])

    def _to_device(self, field_mT: float) -> float:
        return field_mT if self._calibration is None else self._calibration.to_device(field_mT)
