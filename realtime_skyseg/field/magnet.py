"""What the field guard decides: what the supply is told and when, what is believed, and what the service hears.

Clock, supply and messages are handed in, so that nights full of faults can be simulated (`tests/field/field_world.py`).

Longer than other files: one class, because every decision looks at the same interval of what the supply may stand at.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from realtime_skyseg.config import FieldSettings
from realtime_skyseg.devices import EnteredField, FieldSource, PulseSource, finite_within
from realtime_skyseg.errors import FieldError, SettingsError, SkysegError

#: So many read-backs in a row that fail or are off are a fault, and so many that agree are believed; one may be a slip.
_ENOUGH = 3

#: Tries to read the field as found, before anything is set.
_TRIES = 12

#: No step is larger than what the slew rate allows in this time, however long the last one ago.
LONGEST_STEP_S = 0.3

#: How much earlier or later than usual within a call a supply may change; and a call that takes longer hangs.
_JITTER_S, _LONGEST_CALL_S = 1e-3, 0.15

#: A guard that follows another one waits so long for read-backs that agree; then it goes by what was set last.
_LOOK_S = 2.0

#: After a value without an answer, so long nothing is sent but questions, unless one is answered.
_SILENT_S = 2.0

#: A field that should be safe, and is not, is told of this often.
_SAY_S = 5.0

#: A request that waited longer, behind a supply that hung, is not carried out: whoever asked may have given up. Those
#: that stop the field are never too late.
_LATE_S = 4.0


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a guard learns from the service about the one before it, which has set the field and ended."""

    reason: str  # the fault
    low_mT: float  # the supply was told something from here
    high_mT: float  # to here: both ends differ where the answer to the last value is missing
    set_mT: float  # that last value
    told_mT: tuple[float, float]  # lowest and highest of what it was told within `settle_s`
    blind: bool  # the read-back had left what was set, and is not to be believed
    target: int  # number of the last target


class Magnet:
    """A supply behind limits, slew rate, calibration, read-back and safe state. `tick` moves everything on.

    What the supply may stand at is followed as an interval (`_low_mT` to `_high_mT`): both ends are the same, but where
    the answer to a value is missing, which may have arrived. The next value is within the slew rate of both. A fault
    ends in the safe state and is final: no target is taken any more.

    Args:
        settings: limits and so on.
        device: opened; nothing is set here.
        tell: takes messages for the service: events, and `about`, the value that the supply is told next.
        clock: monotonic, in s.
        wall: Unix time in ns.
        inherited: of a guard before this one; then the field goes to the safe state.

    Raises:
        SettingsError: the calibration is missing, or the limits need more than the supply gives.
        FieldError: the field as found cannot be read, or is outside the limits by more than the tolerance.
    """

    def __init__(
        self,
        settings: FieldSettings,
        device: FieldSource,
        tell: Callable[[dict[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
        inherited: Inherited | None = None,
    ) -> None:
        self._settings = settings
        self._device = device
        self._tell = tell
        self._clock = clock
        self._wall = wall
        self._calibration = settings.calibration
        self._limits = settings.limit_mT
        self._tolerance = settings.tolerance_mT
        self._slew = settings.slew_mT_per_s
        self._check_range()
        now = clock()
        self.period_s = settings.read_every_ms / 1e3  # between two ticks
        self.fault = ""
        self.closing = False
        self.target = 0  # number of the last target that was accepted
        self._heard_s = now  # the last sign of life of the service
        self._set_mT: float | None = None  # what the supply was told last; None: nothing yet
        self._low_mT = self._high_mT = math.nan  # what it may stand at
        self._started_s = self._ended_s = now  # of the last value, or when it was seen at rest
        self._took_s: deque[float] = deque(maxlen=2)  # how long the supply took for the last values
        self._told: deque[tuple[float, float]] = deque()  # (s, mT) of the last `settle_s`, and one before
        self._plan: deque[tuple[float, float]] = deque()  # (target in mT, s to stay there), in order
        self._there_s: float | None = None  # since when the first of the plan is reached
        self._near = 0  # read-backs in a row within the tolerance of what is to be reached, once it was set
        self._bad = 0  # read-backs in a row that failed or were off
        self._again = False  # tell the supply once more, because it reads back something else
        self._refused = False  # it did not take the last value, or its answer is missing
        self._unanswered = False  # and it has answered nothing since: what it was told may still wait there
        self._away_s = now  # when it was told something else than where it is to go
        self._recent: deque[float] = deque(maxlen=_ENOUGH)  # the last read-backs, as `_estimate` gives them
        self._agreed_mT = math.nan  # the last read-back that was as it should be
        self._met = False  # it was what was set last; once so, it does not go back to what was set before
        self._anchor_mT: float | None = None  # where a supply stands that takes values and ignores them
        self._blind = False  # the read-back has left what was set, and is not believed
        self._trouble = ""  # what keeps the field from its safe state
        self._said_s = now  # when that was told last
        self._looks_until_s: float | None = None  # until then a guard that follows another one only reads
        if inherited is None:
            self._found_mT = self._find()
        else:
            self._inherit(inherited, now)

    # --- requests ---

    def hear(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Take a message of the service, which is a sign of life; the answer, where it wants one."""
        self._heard_s = self._clock()
        error = value = None
        try:
            do = request["do"]
            stops = do in ("safe", "close", "stand_still")
            if not stops and self._heard_s - request.get("sent_s", self._heard_s) > _LATE_S:
                raise FieldError(f"the request came more than {_LATE_S:g} s late and is not carried out")
            if self.closing and not stops and do != "beat":
                raise FieldError("the field guard is closing and takes no request")
            match do:
                case "set":
                    self.aim(request["field_mT"])
                case "stand_still":
                    value = self.stand_still()
                case "demagnetise":
                    values = (request[key] for key in ("amplitude_mT", "ratio", "smallest_mT", "dwell_s"))
                    self.demagnetise(*values)
                case "pulse":
                    self.pulse(request["in_plane_mT"], request["seconds"])
                case "enter":
                    self.enter(request["field_mT"])
                case "safe":
                    self.make_safe(request["reason"])
                case "close":
                    self.close("the service ends")
        except Exception as caught:
            error = described(caught)
        if "id" not in request:
            return None
        return {"answer": request["id"], "error": error, "value": value, "target": self.target}

    def aim(self, field_mT: object) -> None:
        """Go to a field, in place of whatever is under way. Raises `FieldError` where it is refused."""
        target = self._accept(field_mT, "the field")
        start = self._go([(target, 0.0)])
        self._note("field_set", f"the field goes to {target:g} mT, from {start:g} mT")

    def stand_still(self) -> float | None:
        """Stay where the field is on its way, in place of whatever is under way.

        Returns what is set, in mT; None where nothing ever was. Raises `FieldError` where it is refused.
        """
        if self.fault or self.closing:
            raise FieldError(f"a standstill is refused: {self.fault or 'the field guard is closing'}; start a new run")
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
        value = finite_within(field_mT, self._limits, "the field entered", "mT")
        self._device.enter(self._to_device(value))
        self._note("field_entered", f"the field is {value:g} mT, as entered")

    def make_safe(self, reason: str) -> None:
        """Go to the safe state, in place of whatever is under way. A field that was never set is left alone."""
        if self._set_mT is None:
            return
        target = self._safe_mT()
        if [place for place, _ in self._plan] == [target] or (not self._plan and self._set_mT == target):
            return
        self._go_safe(reason)

    def close(self, reason: str) -> None:
        """Take no request any more, and make the field safe."""
        if not self.closing:
            self.closing = True
            self.make_safe(reason)

    def trip(self, reason: str) -> None:
        """Note a fault, once and for good, and go to the safe state."""
        if not self.fault:
            self.fault = reason
            self._note("field_fault", reason)
        self.make_safe(reason)

    @property
    def done(self) -> bool:
        """The guard may leave: it is closing, and either nothing was ever set, or safety was read back."""
        return self.closing and (self._set_mT is None or (not self._plan and self._near >= _ENOUGH))

    # --- time ---

    def tick(self) -> dict[str, Any] | None:
        """Move on by one step and read back; the reading, or None where the read-back failed."""
        if not self.closing and self._clock() - self._heard_s > self._settings.heartbeat_s:
            self.trip(f"the service gave no sign of life for {self._settings.heartbeat_s:g} s (field.heartbeat_s)")
        self._step()
        before_s, before_ns = self._clock(), self._wall()
        field_mT = reading = None
        try:
            device, field_mT = self._measure()
        except FieldError as error:
            self._recent.clear()
            self._suspect(f"the field cannot be read back: {error}")
        else:
            if self._unanswered:
                # What was late has arrived by now, and perhaps only just.
                self._unanswered, self._started_s, self._ended_s = False, self._clock(), self._clock()
            self._judge(device, field_mT)
            reading = {
                "time_ns": before_ns + round((self._clock() - before_s) * 5e8),
                "read_s": (before_s + self._clock()) / 2,
                "device": device,
                "field_mT": field_mT,
                "set_mT": self._set_mT,
                "settled": bool(self._near) and not self._plan,
                "target": self.target,
            }
        if self._arrive() and reading:
            reading["settled"] = not self._plan
        self._say(field_mT)
        return reading

    def _step(self) -> None:
        now = self._clock()
        if self._set_mT is None or self._looks_until_s is not None:
            return
        target = self._plan[0][0] if self._plan else self._set_mT
        if self._there(target):
            self._started_s = self._ended_s = now  # it stands, at least until now
            return
        value = self._next(target, now)
        if self._bad and not self.fault:
            return  # a slip, or a fault: the next two read-backs tell, if nothing is sent between them
        # What has no answer may still wait in the supply; one that stays silent perhaps takes values all the same.
        if value is None or (self._unanswered and now - self._ended_s < _SILENT_S):
            return
        low, high = min(self._low_mT, value), max(self._high_mT, value)
        # Before it is sent: should this process die, the next one knows what may have arrived.
        self._tell({"about": [low, high, value], "s": now, "blind": self._blind})
        self._again = False
        if value != self._set_mT:
            self._near, self._met = 0, False
        # As late as can be: what keeps this process from running until here must not shorten the time to the next.
        self._started_s = self._clock()
        try:
            self._device.set(self._to_device(value))
        except Exception as error:
            # It may have arrived all the same.
            self._low_mT, self._high_mT, self._refused, self._unanswered = low, high, True, True
            self._trouble = f"the supply does not take {self._to_device(value):g} {self._device.unit}: {_plain(error)}"
            self.trip(self._trouble)
        else:
            self._low_mT = self._high_mT = value
            if self._refused:  # what was read meanwhile says nothing of what was taken now
                self._refused, self._bad = False, 0
                self._recent.clear()
        self._ended_s = self._clock()
        self._took_s.append(self._ended_s - now)
        if value != target:
            self._away_s = self._ended_s
        self._set_mT = value
        self._told.append((self._ended_s, value))

    def _next(self, target: float, now: float) -> float | None:
        """The next value on the way to the target; None where none is near enough to all that may be set now."""
        passed_s = min(now - self._started_s, now + self._surely_s() - self._ended_s, LONGEST_STEP_S)
        stride = self._slew * passed_s
        least, most = self._high_mT - stride, self._low_mT + stride
        if self._anchor_mT is not None:
            # A supply that listens again must not leap: values stay near where it is, until it follows.
            reach = max(2 * self._tolerance, self._slew * self.period_s)
            least, most = max(least, self._anchor_mT - reach), min(most, self._anchor_mT + reach)
        # The last value once more is near enough to all, too: it was when it was sent first.
        values = [self._set_mT] if self._refused and self._set_mT is not None else []
        if least <= most:
            values.append(min(max(target, least), most))
        return min(values, key=lambda value: abs(value - target), default=None)

    def _surely_s(self) -> float:
        """How long the supply will take at least: where the last two calls took about as long, and did not hang.

        It changes somewhere between begin and end of a call. So from the end of one call to that time of the next one
        is the least that can lie between two changes, as long as they come at about the same place in a call.
        """
        least, most = min(self._took_s, default=0.0), max(self._took_s, default=0.0)
        steady = len(self._took_s) == 2 and most <= min(1.3 * least + _JITTER_S, _LONGEST_CALL_S)
        return max(0.0, least - _JITTER_S) if steady else 0.0

    def _safe_mT(self) -> float:
        assert self._set_mT is not None
        return 0.0 if self._settings.safe == "zero" else self._set_mT

    def _there(self, target: float) -> bool:
        return self._low_mT == self._high_mT == target and not (self._again or self._refused)

    def _arrive(self) -> bool:
        """Go on in the plan once its first target is read back, and was held for as long as it asks."""
        enough = _ENOUGH if self._refused else 1
        if not self._plan or self._near < enough or self._looks_until_s is not None:
            return False
        now = self._clock()
        self._there_s = now if self._there_s is None else self._there_s
        target, stay_s = self._plan[0]
        if now - self._there_s < stay_s:
            return False
        self._there_s = None
        self._plan.popleft()
        if self._plan:
            self._near = 0
        else:
            self._note("field_reached", f"the field is at {target:g} mT")
        return True

    def _say(self, field_mT: float | None) -> None:
        """Tell, every few seconds, that the field is not safe where it should be."""
        now = self._clock()
        if not (self.fault or self.closing) or self._set_mT is None or not (self._plan or self._near < _ENOUGH):
            self._said_s = now
        elif now - self._said_s >= _SAY_S:
            self._said_s = now
            where = "cannot be read" if field_mT is None else f"reads {field_mT:g} mT"
            self._note("field_unsafe", f"the field is not safe yet, and {where}: {self._trouble or 'it is on its way'}")

    # --- what is believed ---

    def _judge(self, device: float, field_mT: float) -> None:
        if self._device.range is None:
            return
        self._recent.append(self._estimate(device, field_mT))
        if self._looks_until_s is not None:
            self._look()
        elif self._set_mT is None:
            self._bad = 0
            found = self._believed()
            self._found_mT = self._found_mT if found is None else self._clamped(found)
        else:
            self._compare(device, field_mT)

    def _believed(self) -> float | None:
        """Where the field is, by several read-backs that agree; a single one may be anything."""
        if len(self._recent) < _ENOUGH or max(self._recent) - min(self._recent) > self._tolerance:
            return None
        return self._recent[-1]

    def _compare(self, device: float, field_mT: float) -> None:
        """The read-back has to be near something that was set within the last `settle_s`."""
        assert self._set_mT is not None
        low, high = self._told_range()
        if low - self._tolerance <= field_mT <= high + self._tolerance:
            self._bad = 0
            met = abs(field_mT - self._set_mT) <= self._tolerance
            if met or not self._met:  # on the way, the median of three: one of them may be a slip
                self._agreed_mT, self._met = field_mT if met else sorted(self._recent)[len(self._recent) // 2], met
            target = self._plan[0][0] if self._plan else self._set_mT
            near = abs(field_mT - target) <= self._tolerance and self._could_be_at(target)
            self._near = self._near + 1 if near else 0
            if near:
                self._blind, self._anchor_mT, self._trouble = False, None, ""
            elif self._anchor_mT is not None:
                self._follow(self._anchor_mT)
            elif self._plan and self._there(target):
                self._trouble = f"{field_mT:g} mT is read back where {target:g} mT was set"
            return
        self._near = 0
        self._suspect(
            f"{field_mT:g} mT ({device:g} {self._device.unit}) is read back where {self._set_mT:g} mT was "
            f"set; allowed: within {self._tolerance:g} mT after {self._settings.settle_s:g} s (field.tolerance_mT, "
            "settle_s)",
            self._believed(),
        )

    def _could_be_at(self, target: float) -> bool:
        """The supply was told this, or has refused it for so long that whatever else it took would be seen."""
        long_ago = self._clock() - self._settings.settle_s
        return self._there(target) or (self._refused and self._anchor_mT is None and self._away_s < long_ago)

    def _told_range(self) -> tuple[float, float]:
        long_ago = self._clock() - self._settings.settle_s
        while len(self._told) > 1 and self._told[1][0] < long_ago:
            self._told.popleft()
        told = [value for _, value in self._told]
        return min(told), max(told)

    def _suspect(self, reason: str, believed: float | None = None) -> None:
        """A read-back failed or is off; several are a fault."""
        self._near = 0
        if self._looks_until_s is not None:
            self._look()
            return
        self._bad += 1
        if self._bad < _ENOUGH:
            return
        self._bad = 0
        self._trouble = reason
        self.trip(reason)
        if self._set_mT is None:
            return
        if believed is not None and abs(believed - self._agreed_mT) <= self._tolerance and not self._blind:
            # It reads what it read when all was well: the supply takes values and ignores them, or the read-back
            # stands still. Either way it is told nothing far from there until it follows.
            self._stand_at(believed)
            self._trouble = f"{believed:g} mT is read back and does not follow what is set; look at the supply"
        elif believed is not None:
            self._blind = True
        if not self._plan:
            self._plan.append((self._safe_mT(), 0.0))
        self._again = True

    def _stand_at(self, field_mT: float) -> None:
        """Take the field for this, and stay near it until the read-back follows."""
        self._anchor_mT = self._low_mT = self._high_mT = self._clamped(field_mT)
        self._set_mT = self._anchor_mT
        self._started_s = self._ended_s = self._clock()
        self._told.clear()
        self._told.append((self._ended_s, self._anchor_mT))

    def _follow(self, anchor_mT: float) -> None:
        """Leave the place where the supply ignored what it was told, once it has followed."""
        found = self._believed()
        if found is not None and abs(found - anchor_mT) > self._tolerance:
            self._anchor_mT = None
        else:
            self._again = True

    def _estimate(self, device: float, field_mT: float) -> float:
        """A read-back in mT; outside the calibration the limit that is nearer."""
        if math.isfinite(field_mT):
            return field_mT
        return min(self._limits, key=lambda end: abs(self._to_device(end) - device))

    def _clamped(self, field_mT: float) -> float:
        return min(max(field_mT, self._limits[0]), self._limits[1])

    def _measure(self) -> tuple[float, float]:
        """The read-back in the supply's unit, and in mT; NaN outside the calibration."""
        try:
            device = float(self._device.read())
        except FieldError:
            raise
        except Exception as error:
            raise FieldError(f"{type(error).__name__}: {error}") from error
        if not math.isfinite(device) and self._device.range is not None:
            raise FieldError(f"the supply gives {device} {self._device.unit}; allowed: a finite number")
        if self._calibration is None:
            return device, device
        return device, self._calibration.to_mT(device, self._tolerance)

    # --- begin ---

    def _check_range(self) -> None:
        if self._calibration is None and self._device.unit != "mT":
            raise SettingsError(f"field.calibration: this key is missing; it leads from {self._device.unit} to mT")
        if self._device.range is None:
            return
        for end in self._limits:
            needed, (low, high) = self._to_device(end), self._device.range
            if not low <= needed <= high:
                raise SettingsError(
                    f"field.limit_mT: {end:g} mT needs {needed:g} {self._device.unit} of the supply, which gives "
                    f"{low:g} to {high:g} {self._device.unit}; allowed: limits that it can reach"
                )

    def _find(self) -> float:
        """The field as found."""
        if self._device.range is None:
            self._measure()
            return math.nan
        fault: FieldError | None = None
        for _ in range(_TRIES):
            try:
                device, field_mT = self._measure()
            except FieldError as error:
                fault = error
                continue
            self._recent.append(self._estimate(device, field_mT))
            found = self._believed()
            if found is None:
                continue
            low, high = self._limits
            if not low - self._tolerance <= field_mT <= high + self._tolerance:
                raise FieldError(
                    f"the supply stands at {device:g} {self._device.unit} = {field_mT:g} mT as found; allowed: "
                    f"{low:g} to {high:g} mT (field.limit_mT); bring it there by hand"
                )
            return self._clamped(found)
        raise fault or FieldError(
            f"the field as found is unsteady: {min(self._recent):g} to {max(self._recent):g} mT; allowed: read-backs "
            f"within {self._tolerance:g} mT (field.tolerance_mT)"
        )

    def _inherit(self, before: Inherited, now: float) -> None:
        self.fault = before.reason
        self.target = before.target
        self._low_mT, self._high_mT = self._clamped(before.low_mT), self._clamped(before.high_mT)
        self._set_mT = self._found_mT = self._clamped(before.set_mT)
        self._refused = self._low_mT != self._high_mT
        self._told.extend((now, value) for value in (*before.told_mT, self._set_mT))
        self._blind = before.blind
        self._looks_until_s = now + _LOOK_S
        self._trouble = "the guard before this one has ended, and the field is looked at"

    def _look(self) -> None:
        """After another guard: find out where the field is, by read-backs that agree, and go to safety from there.

        What was set last is more exact, so it counts where the read-back does not contradict it. Where read-backs
        never agree, or are not to be believed, it is all there is.
        """
        assert self._looks_until_s is not None
        found = self._believed()
        if found is None and self._clock() < self._looks_until_s:
            return
        self._looks_until_s = None
        low, high = self._told_range()
        if found is not None:
            self._agreed_mT = found
            if not (self._blind or low - self._tolerance <= found <= high + self._tolerance):
                self._refused = False
                self._low_mT = self._high_mT = self._set_mT = self._clamped(found)
                self._told.clear()
                self._told.append((self._clock(), self._set_mT))
        self._started_s = self._ended_s = self._clock()
        self._go_safe(self.fault)

    # --- parts ---

    def _accept(self, field_mT: object, what: str) -> float:
        if self.fault:
            raise FieldError(f"{what}: {field_mT!r} mT is refused after a fault: {self.fault}; start a new run")
        if self._device.range is None:
            raise FieldError(f"{what}: {field_mT!r} mT is refused, because this source can only be read")
        return finite_within(field_mT, self._limits, what, "mT")

    def _go(self, plan: list[tuple[float, float]]) -> float:
        """Follow a plan from where the field stands, which is returned."""
        if self._set_mT is None:
            self._set_mT = self._low_mT = self._high_mT = self._agreed_mT = self._found_mT
            self._told.append((self._clock(), self._found_mT))
            self._started_s = self._ended_s = self._clock()
        self.target += 1
        self._plan = deque(plan)
        self._there_s = None
        self._near = 0
        return self._set_mT

    def _go_safe(self, reason: str) -> None:
        start = self._go([(self._safe_mT(), 0.0)])
        where = "goes to zero from" if self._settings.safe == "zero" else "is held at"
        self._note("field_safe", f"the field {where} {start:g} mT: {reason}")

    def _note(self, kind: str, message: str) -> None:
        self._tell({"event": {"time_ns": self._wall(), "kind": kind, "message": message}})

    def _to_device(self, field_mT: float) -> float:
        return field_mT if self._calibration is None else self._calibration.to_device(field_mT)


def described(error: Exception) -> dict[str, str]:
    """An error as it travels to the service."""
    if isinstance(error, SkysegError):
        return {"kind": type(error).__name__, "message": str(error)}
    return {"kind": "FieldError", "message": _plain(error)}


def _plain(error: Exception) -> str:
    return str(error) if isinstance(error, SkysegError) else f"{type(error).__name__}: {error}"
