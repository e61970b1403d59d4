"""Rules: pure state machines that see one analysed frame after the other, and decide what happens to the field.

A rule looks at nothing but what it is given, no clock and no device. So the same frames lead to the same decisions,
live and when a run is decided again from its file.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from realtime_skyseg.errors import SettingsError
from realtime_skyseg.programme import (
    AdaptiveSteps,
    Condition,
    EventName,
    HoldCount,
    OnEvent,
    PythonRule,
    Rule,
    Step,
    StopWhen,
)
from realtime_skyseg.records import FRAME_QUANTITIES, Kind, Objects, Segmentation


@dataclass(frozen=True, slots=True)
class Seen:
    """One analysed frame, as rules see it."""

    frame: int  # index in the run
    time_s: float  # hand-over by the camera, since the experiment began
    field_mT: float  # read back nearest to the exposure
    count: int  # skyrmions
    stripes: int
    area_fraction: float
    objects: Objects  # with at least the columns of `records.OBJECT_DTYPE`
    domain: float | None = None  # how far the model's domain holds the frame; None: nobody says
    values: Mapping[str, float] = field(default_factory=dict)  # what analysers found in it

    def value(self, quantity: str) -> float:
        """A quantity by its name; NaN if this frame has none."""
        return float(self.values[quantity] if quantity in self.values else getattr(self, quantity, math.nan))

    @property
    def diameter_px(self) -> float:
        """Median of the skyrmions; NaN where there is none."""
        return self._median("diameter")

    @property
    def area_px(self) -> float:
        """Median of the skyrmions; NaN where there is none."""
        return self._median("area")

    def _median(self, name: str) -> float:
        compact = self.objects[name][self.objects["kind"] == Kind.SKYRMION]
        return float(np.median(compact)) if len(compact) else math.nan


def seen(
    frame: int,
    time_s: float,
    field_mT: float,
    found: Segmentation,
    domain: float | None = None,
    values: Mapping[str, float] | None = None,
) -> Seen:
    """What rules see of a segmentation; as exact as the run file keeps it."""
    assert found.count is not None
    assert found.stripes is not None
    return Seen(
        frame, time_s, field_mT, found.count, found.stripes, float(np.float32(found.area_fraction)), found.objects,
        domain, {name: value for name, value in (values or {}).items() if name not in FRAME_QUANTITIES},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Situation:
    """Where the experiment stands when a frame is seen."""

    step: Step
    target_mT: float  # where the field goes, or is
    set_mT: float  # what the supply was told last
    settled: bool  # the frame's exposure began after the field had settled
    direction: int  # of the last move: 1 up, -1 down, 0 none yet
    leg_mT: tuple[float, float]  # where the steps that go one way begin and end; the step's own field where it is alone


Action = Literal["set", "pulse", "stop", "end_part", "mark", "wait"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rule wants. `wait`: nothing, and later rules are not asked about this frame."""

    action: Action
    reason: str = ""
    field_mT: float | None = None  # where the field goes; of `pulse` the out-of-plane field before it
    pulse: tuple[float, float] | None = None  # in-plane mT, s
    frames: int | None = None  # of `stop`: recorded where it stopped; of `set`: to average, else as the step's own
    span: tuple[float, float] | None = None  # of `mark`: s before and after the frame
    settle_s: float | None = None  # of `set`: longer than the step's own


WAIT = Decision("wait")

#: A wipe is given up after so many frames at `AdaptiveSteps.reset_mT`.
_WIPE_FRAMES = 64


class Decider(Protocol):
    """A rule at work."""

    def decide(self, now: Seen, at: Situation) -> Decision | None:
        """Look at a fresh frame."""

    def next_field(self, count: float, at: Situation) -> Decision | None:
        """After a step that is one of several in one direction: another field than the programme's next."""


class _Quiet:
    """A rule that leaves the steps as they are."""

    def next_field(self, count: float, at: Situation) -> Decision | None:
        return None


def decider(rule: Rule) -> Decider:
    """The rule at work for its settings. A Python rule works in a process of its own, see `rule_process`."""
    match rule:
        case StopWhen():
            return _StopWhen(rule)
        case HoldCount():
            return _HoldCount(rule)
        case AdaptiveSteps():
            return _AdaptiveSteps(rule)
        case OnEvent():
            return _OnEvent(rule)
        case PythonRule():
            raise TypeError("a Python rule is asked in a process of its own, see rule_process")


class Truth:
    """Whether a condition holds, with its hysteresis and dwell."""

    def __init__(self, condition: Condition) -> None:
        self._condition = condition
        self._agree = 0
        self.holds = False

    def see(self, now: Seen) -> bool:
        """Take one more frame; True while the condition holds."""
        value = now.value(self._condition.quantity)
        high, low, slack = self._condition.at_least, self._condition.at_most, self._condition.hysteresis
        if math.isnan(value):
            self._agree = 0
            return self.holds
        if high is not None:
            inside = value >= (high - slack if self.holds else high)
        else:
            inside = value <= ((low or 0.0) + slack if self.holds else (low or 0.0))
        self._agree = self._agree + 1 if inside != self.holds else 0
        if self._agree >= self._condition.dwell_frames:
            self.holds, self._agree = not self.holds, 0
        return self.holds


class _StopWhen(_Quiet):
    def __init__(self, rule: StopWhen) -> None:
        self._rule = rule
        self._truth = Truth(rule.when)
        self._was = False

    def decide(self, now: Seen, at: Situation) -> Decision | None:
        rule, before = self._rule, self._was
        self._was = self._truth.see(now)
        if before or not self._was:
            return None
        side = (
            f"at least {rule.when.at_least:g}" if rule.when.at_least is not None else f"at most {rule.when.at_most:g}"
        )
        there = at.set_mT if math.isfinite(at.set_mT) else at.target_mT
        return Decision(
            "stop" if rule.ends == "programme" else "end_part",
            f"{rule.when.quantity} is {now.value(rule.when.quantity):g}, {side}",
            there - at.direction * rule.back_off_mT,
            frames=rule.then_frames,
        )


class _AdaptiveSteps:
    """Coarse and fine steps. With `reset_mT` the first change is only a hint where to look again from the start."""

    def __init__(self, rule: AdaptiveSteps) -> None:
        self._rule = rule
        self._leg = -2
        self._base: float | None = None  # count at the step before
        self._fine_left = 0  # fine steps until they are coarse again
        self._searching = rule.reset_mT is not None
        self._resetting: float | None = None  # where to go after the reset
        self._rest: deque[int] = deque(maxlen=9)  # counts before the change that is sought
        self._agree = 0  # frames in a row that differ from them
        self._before = 0.0  # their median when the change was met
        self._wiped = self._wiping = 0  # frames of the wipe: that show that count again, in a row; all
        self._frames = 0  # of the step that the wipe interrupted

    def decide(self, now: Seen, at: Situation) -> Decision | None:
        rule = self._rule
        self._enter(at)
        if self._resetting is not None:
            if not (at.settled and at.target_mT == rule.reset_mT):
                return WAIT
            # What survived the wipe would be taken for a new change on the way back.
            self._wiped = self._wiped + 1 if abs(now.count - self._before) < rule.change else 0
            self._wiping += 1
            if self._wiped < rule.dwell_frames and self._wiping < _WIPE_FRAMES:
                return WAIT
            left = "" if self._wiped else f", though {now.count} are left"
            back, self._resetting = self._resetting, None
            return Decision(
                "set", f"back to {back:g} mT{left}, to meet the change in fine steps", back, frames=self._frames
            )
        if not self._searching or at.step.leg < 0:
            return None
        if len(self._rest) < 3 or abs(now.count - float(np.median(self._rest))) < rule.change:
            self._agree = 0
            if at.settled:
                self._rest.append(now.count)
            return WAIT
        self._agree += 1
        if self._agree < rule.dwell_frames:
            return WAIT
        self._agree = 0
        self._before, self._wiped, self._wiping = float(np.median(self._rest)), 0, 0
        self._frames = at.step.frames
        self._rest.clear()
        self._searching = False
        self._fine_left = math.ceil((rule.before_steps + 1) * rule.coarse_mT / rule.fine_mT) + rule.quiet_steps
        self._base = None
        assert rule.reset_mT is not None
        begin, end = at.leg_mT
        back = at.target_mT - math.copysign(rule.before_steps * rule.coarse_mT, end - begin)
        # Not beyond where this direction began.
        self._resetting = round(min(max(back, min(begin, at.target_mT)), max(begin, at.target_mT)), 9)
        return Decision(
            "set",
            f"the count changed to {now.count} near {at.target_mT:g} mT: wipe, then look there in fine steps",
            rule.reset_mT,
            settle_s=rule.reset_s,
            frames=_WIPE_FRAMES + 1,
        )

    def next_field(self, count: float, at: Situation) -> Decision | None:
        rule = self._rule
        self._enter(at)
        if at.step.leg < 0:
            return None
        here, end = at.step.field_mT, at.leg_mT[1]
        if here == end:
            return None
        if self._base is not None and abs(count - self._base) >= rule.change:
            self._fine_left = rule.quiet_steps
        elif self._fine_left:
            self._fine_left -= 1
            if not self._fine_left:  # it was a false alarm, or there is another change further on
                self._searching = rule.reset_mT is not None
        self._base = count
        way = 1 if end > here else -1
        coarse = here + way * rule.coarse_mT
        fine = self._fine_left > 0 or any(
            low <= here <= high or max(low, min(here, coarse)) <= min(high, max(here, coarse))
            for low, high in rule.near_mT
        )
        after = round(here + way * (rule.fine_mT if fine else rule.coarse_mT), 9)
        if (end - after) * way <= 0:
            after = end
        return Decision("set", "fine step" if fine else "coarse step", after)

    def _enter(self, at: Situation) -> None:
        """Forget the count of a leg that went another way."""
        if at.step.leg != self._leg:
            self._leg = at.step.leg
            self._base = None
            self._rest.clear()
            self._agree = 0
            self._fine_left = 0
            self._searching = self._rule.reset_mT is not None
            self._resetting = None


@dataclass
class _Pulses:
    """Skyrmions after a pulse, by the out-of-plane field before it."""

    known: list[tuple[float, float]]
    sign: float  # of the field that destroys
    last: tuple[float, float] | None = None  # the own pulse that was looked at last

    def learn(self, field_mT: float, count: float) -> None:
        """Keep what an own pulse made; what contradicts it (a higher field leaves fewer) is forgotten."""
        self.last = (field_mT, count)
        self.known = [
            (field, known)
            for field, known in self.known
            if (self.sign * (field - field_mT) > 1e-6 and known <= count)
            or (self.sign * (field - field_mT) < -1e-6 and known >= count)
        ]
        self.known.append(self.last)

    def field_for(self, count: float) -> float | None:
        """The field where a pulse should give `count`, or a few more; None where nothing is known."""
        if not self.known:
            return None
        fields, counts = np.array(sorted(self.known, key=lambda pair: self.sign * pair[0])).T
        at_mT = float(fields[0]) if count >= counts[0] else float(np.interp(-count, -counts, fields))
        if self.last is not None and self.last[1] < count and len(fields) > 1:
            # At least as far below the last one as the mean slope says: neighbours that are wrong must not stop it.
            slope = (counts[0] - counts[-1]) / abs(fields[-1] - fields[0])
            if slope > 0:
                farther = self.last[0] - self.sign * (count - self.last[1]) / slope
                at_mT = min(at_mT, farther, key=lambda value: self.sign * value)
        return float(at_mT)


class _HoldCount(_Quiet):
    """Trim from above in steps that shrink near the target, freeze below the field that destroys, pulse for more.

    Three states: "look" (frames to relax in, then the median), "frozen" (at rest, watching), "given_up".
    """

    def __init__(self, rule: HoldCount) -> None:
        self._rule = rule
        self._sign = math.copysign(1.0, rule.annihilation_mT)
        self._pulses = _Pulses([(at, float(count)) for at, count in rule.pulses], self._sign)
        self._recent: deque[int] = deque(maxlen=rule.window_frames)
        self._state: Literal["look", "frozen", "given_up"] = "look"
        self._wait = 1  # settled frames until the next look
        self._trim: tuple[float, float] | None = None  # field and count at the last look while trimming
        self._floor = 0.0  # field where trimming began
        self._slope = 0.0  # skyrmions lost per mT
        self._size = 0.0  # last step of trimming, mT
        self._falling = 0.0  # skyrmions lost per frame, smoothed
        self._last: deque[int] = deque(maxlen=3)  # counts, settled or not
        self._given = 0  # pulses since the target was held
        self._pulsed_mT: float | None = None  # a pulse whose yield is not known yet
        self._off = self._well = 0  # frames in a row out of, and within, tolerance while at rest
        # Skyrmions too small to be counted near annihilation, that reappear when it is frozen. Before the first freeze
        # tells: what three films of the twin had (docs/sweep.md).
        self._unseen = 0.08 * rule.target
        self._corrected = False  # what reappeared after the freeze was trimmed already
        self._frozen_count: float | None = None  # counted when it was frozen, until that is compared
        self._rest: deque[int] = deque(maxlen=8 * rule.window_frames)  # counts at rest

    def decide(self, now: Seen, at: Situation) -> Decision | None:
        rule = self._rule
        self._falling = 0.5 * (self._falling + (self._last[-1] - now.count if self._last else 0))
        self._last.append(now.count)
        if self._state == "look" and self._trim and np.median(self._last) <= rule.target + self._lead():
            # At once, also while the field moves: what has begun to vanish goes on for some frames.
            return self._freeze(at, f"the count fell to {now.count}")
        if not at.settled:
            return None
        self._recent.append(now.count)
        if len(self._recent) < rule.window_frames:
            self._wait -= 1
            return None
        count = float(np.median(self._recent))
        if self._state != "look":
            return self._watch(count, at)
        self._wait -= 1
        return self._look(count, at) if self._wait <= 0 else None

    def _lead(self) -> float:
        """Skyrmions that still vanish once the field is lowered."""
        return min(0.02 * self._rule.target + 2 * max(0.0, self._falling), self._rule.within) - self._unseen

    def _watch(self, count: float, at: Situation) -> Decision | None:
        """At rest: do something only once the count has been off for a while."""
        rule = self._rule
        away = count - rule.target
        self._off = self._off + 1 if abs(away) > rule.within else 0
        self._well = 0 if self._off else self._well + 1
        if self._well > 20 * rule.window_frames:
            self._given = 0
        self._rest.append(int(self._recent[-1]))
        if self._frozen_count is not None and len(self._rest) == self._rest.maxlen:
            rest = float(np.median(self._rest))
            self._unseen = min(max(0.0, rest - self._frozen_count), 2 * rule.within)
            self._frozen_count = None
            # Once: a count that is well within the tolerance is better left alone than trimmed again and again.
            if rest - rule.target > rule.within / 2 and self._state == "frozen" and not self._corrected:
                self._corrected = True
                self._state, self._trim = "look", None
                return self._trim_on(rest, at)
        if self._off < 2 * rule.window_frames or (self._state == "given_up" and away < 0):
            return None
        self._off = self._well = 0
        self._state = "look"
        self._trim, self._corrected = None, False
        return self._look(count, at)

    def _look(self, count: float, at: Situation) -> Decision | None:
        rule = self._rule
        if self._pulsed_mT is not None:
            self._pulses.learn(self._pulsed_mT, count)
            self._pulsed_mT = None
        if count < rule.target - rule.within:
            return self._create(count, at)
        if count <= rule.target + self._lead() + (0.0 if self._trim else self._unseen):
            return self._freeze(at, f"the count is {count:g}")
        return self._trim_on(count, at)

    def _trim_on(self, count: float, at: Situation) -> Decision:
        rule = self._rule
        here, excess = at.target_mT, count - rule.target
        size = self._size * 1.5 or rule.step_mT * min(1.0, max(0.25, 2 * excess / rule.target))
        if self._trim is not None:
            moved = self._sign * (here - self._trim[0])
            lost = self._trim[1] - count
            if moved > 0:
                self._slope = max(lost / moved, 0.7 * self._slope)
            if self._slope * size > 0.02 * excess:
                # A fifth of what the last steps say: annihilation runs away in avalanches.
                size = min(size, 0.2 * excess / self._slope)
        self._size = min(max(size, rule.smallest_step_mT), rule.step_mT)
        if self._trim is None:
            self._floor, self._slope = here, 0.0
        self._trim = (here, count)
        self._wait = rule.relax_frames
        self._recent.clear()
        return Decision("set", f"{count:g} are more than {rule.target}: raise", here + self._sign * self._size)

    def _freeze(self, at: Situation, why: str) -> Decision:
        rule = self._rule
        here = at.set_mT if math.isfinite(at.set_mT) else at.target_mT
        trimmed = self._trim is not None
        self._frozen_count = float(np.median(self._last)) if trimmed else None
        self._rest.clear()
        self._state = "frozen"
        self._trim = None
        self._size = self._falling = 0.0
        self._off = self._well = 0
        self._recent.clear()
        if not trimmed:
            return Decision("mark", f"{why}: the target of {rule.target} is reached, the field stays")
        # Not lower than where trimming began: there is no need, and each time a little lower ends in a maze.
        lowest = max(self._sign * here - rule.back_off_mT, self._sign * self._floor)
        return Decision("set", f"{why}: freeze", self._sign * min(lowest, self._sign * here))

    def _create(self, count: float, at: Situation) -> Decision:
        rule = self._rule
        lacking = f"{count:g} are fewer than {rule.target}"
        self._trim, self._corrected = None, False
        self._size = self._falling = 0.0
        self._recent.clear()
        if rule.pulse_in_plane_mT is None or self._given >= rule.max_pulses:
            self._state = "given_up"
            why = f"after {self._given} pulses" if rule.pulse_in_plane_mT is not None else "and no pulse is allowed"
            return Decision("mark", f"{lacking} {why}: the field stays, nothing more is tried")
        # More than wanted: the rest is trimmed.
        at_mT = self._pulses.field_for(1.2 * rule.target + rule.within)
        if at_mT is None:
            at_mT = at.target_mT
        self._given += 1
        self._pulsed_mT = at_mT
        self._wait = rule.pulse_relax_frames
        self._state = "look"
        return Decision("pulse", f"{lacking}: pulse", at_mT, (rule.pulse_in_plane_mT, rule.pulse_s))


class _OnEvent(_Quiet):
    """What happens to single skyrmions, from one analysed frame to the next.

    Those that touch the border of the image come and go there, and are left out.
    """

    def __init__(self, rule: OnEvent) -> None:
        self._rule = rule
        self._clips = 0
        self._some: bool | None = None  # whether there are skyrmions, that `dwell_frames` frames in a row agree on
        self._agree = 0
        self._tracked = np.empty((0, 4))  # x, y, area of each skyrmion of the last frame, frames in a row that show it
        self._pending: list[_Pending] = []

    def decide(self, now: Seen, at: Situation) -> Decision | None:
        found = [*self._extremes(now), *self._single(now)]
        events = [text for name, text in found if name in self._rule.events]
        if not events:
            return None
        span = None
        if self._rule.clip_s and self._clips < self._rule.max_clips:
            self._clips += 1
            span = (self._rule.clip_s, self._rule.clip_s)
        return Decision("mark", "; ".join(events)[:300], span=span)

    def _extremes(self, now: Seen) -> list[tuple[str, str]]:
        """From none to some, and back."""
        some = now.count >= self._rule.present_count
        if self._some is None:
            self._some = some
        self._agree = self._agree + 1 if some != self._some else 0
        if self._agree < self._rule.dwell_frames:
            return []
        self._some, self._agree = some, 0
        name = "nucleation" if some else "annihilation"
        return [(name, f"{name} near {now.field_mT:.4g} mT, count {now.count}")]

    def _single(self, now: Seen) -> list[tuple[str, str]]:
        """Collapses and merges that enough frames have confirmed."""
        dwell, objects = self._rule.dwell_frames, now.objects
        out: list[_Pending] = []
        waiting: list[_Pending] = []
        there = self._over(objects, np.array([(one.x, one.y) for one in self._pending]).reshape(-1, 2)).sum(axis=1)
        for one, n in zip(self._pending, there, strict=True):
            if n == (one.name == "merge"):
                one.frames += 1
                (out if one.frames >= dwell else waiting).append(one)
        before = self._tracked[self._tracked[:, 3] >= dwell]
        over = self._over(objects, before[:, :2])
        fresh: list[_Pending] = []
        if len(objects):  # else it was the last one: an annihilation
            fresh = [_Pending("collapse", x, y) for x, y, _, _ in before[~over.any(axis=1)].tolist()]
            inside = self._inside(objects, before[:, :2], self._rule.match_px / 3)
            for place in np.flatnonzero(inside.sum(axis=0) == 2):
                parents, area = before[inside[:, place], 2], float(objects["area"][place])
                if 0.6 * parents.sum() < area < 2 * parents.sum() and area > 1.3 * parents.max():
                    fresh.append(_Pending("merge", float(objects["x"][place]), float(objects["y"][place])))
        for one in fresh:
            (out if dwell == 1 else waiting).append(one)
        self._pending = waiting[:1000]
        self._track(objects)
        return [(one.name, f"{one.name} at ({one.x:.0f}, {one.y:.0f}) px near {now.field_mT:.4g} mT") for one in out]

    def _track(self, objects: Objects) -> None:
        """Keep the skyrmions of a frame, with the number of frames in a row that they were seen in."""
        whole = objects[(objects["kind"] == Kind.SKYRMION) & (objects["border"] == 0)]
        here = np.stack([whole["x"], whole["y"], whole["area"], np.ones(len(whole))], axis=1).astype(float)
        if len(here) and len(self._tracked):
            apart = np.hypot(*(here[:, None, k] - self._tracked[None, :, k] for k in (0, 1)))
            nearest = apart.argmin(axis=1)
            known = apart[np.arange(len(here)), nearest] <= self._rule.match_px
            here[known, 3] += self._tracked[nearest[known], 3]
        self._tracked = here

    def _over(self, objects: Objects, places: np.ndarray) -> np.ndarray:
        """(place, object) bool: the object is near, or extends over the place."""
        apart = np.hypot(objects["x"][None] - places[:, :1], objects["y"][None] - places[:, 1:])
        over: np.ndarray = (apart <= self._rule.match_px) | self._inside(objects, places, 0.0)
        return over

    @staticmethod
    def _inside(objects: Objects, places: np.ndarray, slack: float) -> np.ndarray:
        """(place, object) bool: the place is in the object's bounding box, or at most `slack` px beside it."""
        found = np.ones((len(places), len(objects)), bool)
        for k, (start, size) in enumerate((("left", "width"), ("top", "height"))):
            low = objects[start].astype(float)
            found &= (places[:, k : k + 1] >= low - slack) & (places[:, k : k + 1] < low + objects[size] + slack)
        return found


@dataclass
class _Pending:
    """An event that more frames have to confirm."""

    name: EventName
    x: float
    y: float
    frames: int = 1


def load_function(rule: PythonRule) -> Callable[[Sequence[Seen]], object]:
    """The function of a Python rule. Raises `SettingsError` where there is none."""
    names: dict[str, object] = {"__name__": rule.file.stem, "__file__": str(rule.file)}
    try:
        exec(compile(rule.file.read_bytes(), str(rule.file), "exec"), names)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"experiment.rules: file '{rule.file}' cannot be read: {error}") from error
    except Exception as error:
        raise SettingsError(f"experiment.rules: file '{rule.file}' cannot be run: {error!r}") from error
    function = names.get(rule.function)
    if not callable(function):
        raise SettingsError(f"experiment.rules: file '{rule.file}' has no function '{rule.function}'")
    return function


def sources(rules: Sequence[Rule]) -> dict[str, str]:
    """SHA-256 of each file of a Python rule."""
    files = [rule.file for rule in rules if isinstance(rule, PythonRule)]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
