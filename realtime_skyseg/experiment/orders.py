"""What the experiment's machine is told, and what it answers."""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from realtime_skyseg.experiment.rules import Seen


class Told(IntEnum):
    """What a moment tells."""

    TICK = 0  # time passes
    FRAME = 1  # a frame was analysed
    PAUSE = 2  # on request
    RESUME = 3
    ABORT = 4
    ENDED = 5  # the run ends: the camera ended, or it was stopped
    REFUSED = 6  # the guard refused an order
    FAULT = 7  # the guard has a fault
    RESUMED = 8  # a run that was killed goes on
    STOOD = 9  # the answer to `StandStill`: `Moment.set_mT` is where the field stays
    ANSWER = 10  # the answer to `AskRule`


@dataclass(frozen=True, slots=True)
class Moment:
    """Something the machine is told, with the newest read-back of the field."""

    told: Told
    time_ns: int  # Unix time
    now_s: float  # since the experiment began, on a clock that never jumps
    reading_ns: int  # Unix time of the read-back
    field_mT: float
    set_mT: float  # what the supply was told last; NaN: nothing yet
    settled: bool
    frame: int = -1
    taken_s: float = math.nan  # hand-over of the frame by the camera, on the clock of `now_s`
    seen: Seen | None = None
    rule: int = -1  # of an answer: place of the rule; `frame` is the one that it was asked about
    answer: float = math.nan  # the field that it wants; NaN: none
    failed: str = ""  # why it gives no answer any more


@dataclass(frozen=True, slots=True)
class SetField:
    """Go to a field."""

    field_mT: float


@dataclass(frozen=True, slots=True)
class StandStill:
    """Stop a field on its way. Only the guard knows where that is; its answer is told as `Told.STOOD`."""


@dataclass(frozen=True, slots=True)
class GivePulse:
    """Give an in-plane pulse."""

    in_plane_mT: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Demagnetise:
    """Alternate the field and end at zero."""

    amplitude_mT: float
    ratio: float
    smallest_mT: float | None
    dwell_s: float


@dataclass(frozen=True, slots=True)
class AskRule:
    """Ask a Python rule about a frame. Its answer is told as `Told.ANSWER`, later; nothing waits for it."""

    place: int
    seen: Seen


@dataclass(frozen=True, slots=True)
class Row:
    """A row for the run file."""

    table: Literal["steps", "decisions"]
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Note:
    """An event."""

    kind: str
    message: str
    frame: int = -1


@dataclass(frozen=True, slots=True)
class Finished:
    """The experiment is over, and the field goes to its safe state.

    complete: the programme came to its end; stopped: a rule ended it; aborted: a request, or the end of the run, did;
    fault: an interlock, the magnet, or results that stayed away.
    """

    status: Literal["complete", "stopped", "aborted", "fault"]
    message: str


Order = SetField | StandStill | GivePulse | Demagnetise | AskRule | Row | Note | Finished
