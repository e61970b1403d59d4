"""What the service knows of the field, and what follows where its guard ends; pure, like `magnet`."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from realtime_skyseg.config import FieldSettings
from realtime_skyseg.field.magnet import Inherited
from realtime_skyseg.records import Event

#: Answers that are kept for those who do not wait for them any more.
_UNCLAIMED = 100


@dataclass(frozen=True, slots=True)
class Reading:
    """One read-back of the field."""

    time_ns: int  # Unix time, in the middle of the read-back
    read_s: float  # the same on `time.monotonic`, which all processes of a computer share
    device: float  # in the supply's unit
    field_mT: float  # by the calibration; NaN outside it
    set_mT: float | None  # what the supply was told last; None: nothing yet, the field is as it was found
    settled: bool  # the last target is reached, and this reading is within the tolerance of it
    target: int  # number of that target


class Keeper:
    """Follows one guard after the other: readings, events, faults, and whether the field is known to be safe.

    As long as the field was set and is not known to be safe, a guard that ends is replaced: also while the run ends,
    after a fault, and however often.

    Args:
        settings: the section `field`.
        clock: monotonic, in s.
        wall: Unix time in ns.
    """

    def __init__(
        self,
        settings: FieldSettings,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settle_s = settings.settle_s
        self._clock = clock
        self._wall = wall
        self.readings: deque[Reading] = deque(maxlen=4096)
        self.events: deque[Event] = deque(maxlen=1000)
        self.answers: dict[int, dict[str, Any]] = {}
        self.fault = ""
        self.target = 0  # number of the last target that is known
        self.settled = False
        self.safe = False  # the guard has left, with the field safe
        self.last_reading_s = clock()
        self._about: tuple[float, float, float] | None = None  # what the supply may be told: low, high, last
        self._told: deque[tuple[float, float, float]] = deque()  # (s, low, high) of the last `settle_s`, and one before
        self._blind = False

    @property
    def was_set(self) -> bool:
        """The field was set by a guard, or may have been."""
        return self._about is not None

    def take(self, message: dict[str, Any]) -> None:
        """Take what the guard says."""
        match message:
            case {"reading": values}:
                reading = Reading(**values)
                self.readings.append(reading)
                self.target = max(self.target, reading.target)
                self.settled = reading.settled and reading.target == self.target
                self.last_reading_s = self._clock()
            case {"about": (low, high, value), "s": when, "blind": blind}:
                self._about = (low, high, value)
                self._told.append((when, low, high))
                self._blind = blind
                while len(self._told) > 1 and self._told[1][0] < when - self._settle_s:
                    self._told.popleft()
            case {"answer": number}:
                self.answers[number] = message
                if len(self.answers) > _UNCLAIMED:
                    self.answers.pop(next(iter(self.answers)))
                if message["target"] > self.target:
                    self.target, self.settled = message["target"], False
            case {"event": values}:
                event = Event(**values)
                self.events.append(event)
                if event.kind == "field_fault":
                    self.fault = self.fault or event.message
            case {"left": reason}:
                self.safe = True
                if reason:  # nobody has asked for it here
                    self.fail(reason)

    def ended(self, guard: str) -> Inherited | None:
        """The guard's connection has ended. What the next one has to know; None: none is needed."""
        if self.safe:
            return None
        self.settled = False
        self.fail(f"{guard}, the field guard, ended unexpectedly")
        if self._about is None:
            return None
        low, high, value = self._about
        told = [self._told[0], *(one for one in self._told if one[0] >= self._clock() - self._settle_s)]
        return Inherited(
            reason=self.fault,
            low_mT=low,
            high_mT=high,
            set_mT=value,
            told_mT=(min(one[1] for one in told), max(one[2] for one in told)),
            blind=self._blind,
            target=self.target,
        )

    def fail(self, reason: str) -> None:
        """Note a fault. The first one stays."""
        self.fault = self.fault or reason
        self.note("field_fault", reason)

    def note(self, kind: str, message: str) -> None:
        """Note an event."""
        self.events.append(Event(self._wall(), kind, message))
