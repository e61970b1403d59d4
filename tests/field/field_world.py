"""A night with a magnet, simulated: a supply that misbehaves, guards that are killed, a service that dies or hangs.

`Night(seed).run()` plays one schedule of random faults on the guard's own decisions (`Magnet`) and the service's
(`Keeper`), and raises `Broken` where a promise is not kept. No clock, process or socket is real, so that a second holds
a thousand nights.
"""

import math
import random
from typing import Any

from realtime_skyseg.config import FieldSettings
from realtime_skyseg.errors import FieldError, SettingsError
from realtime_skyseg.field.keeper import Keeper
from realtime_skyseg.field.magnet import LONGEST_STEP_S, Magnet

LIMIT_MT, SLEW, TOLERANCE_MT, PERIOD_S = 80.0, 200.0, 0.5, 0.02

#: Requests and faults come in so many seconds; then the run ends, and nothing goes wrong any more.
BUSY_S = 1.0

#: How long a call waits for an answer.
_TIMEOUT_S = 0.05

#: A service that ends waits so long for its guard, and a new guard takes so long to come up.
_CLOSE_S, _SPAWN_S = 2.5, (0.03, 0.3)


def _settings(safe: str, settle_s: float) -> FieldSettings:
    tree = {
        "driver": "manual", "limit_mT": [-LIMIT_MT, LIMIT_MT], "slew_mT_per_s": SLEW, "tolerance_mT": TOLERANCE_MT,
        "settle_s": settle_s, "read_every_ms": 1e3 * PERIOD_S, "heartbeat_s": 0.2, "safe": safe,
    }  # fmt: skip
    return FieldSettings.model_validate(tree)


SETTINGS = [_settings("zero", 0.06), _settings("zero", 0.2), _settings("zero", 0.06), _settings("hold", 0.06)]


class Broken(BaseException):
    """A promise was not kept. No `Exception`, which the guard would take for a fault of the supply."""


class Killed(BaseException):
    """The guard's process ends here."""


#: Faults of the supply: name, and longest time it lasts; 0: one call.
SUPPLY_FAULTS = {
    "read_fails": 0.3, "read_nan": 0.3, "read_jumps": 0.3, "read_slips": 0.0, "read_stands_still": 0.0,
    "read_hangs": 0.0, "set_fails_before": 0.5, "set_fails_after": 0.3, "set_fails_once": 0.0, "set_is_ignored": 0.6,
    "set_hangs": 0.0, "set_arrives_late": 0.0,
}  # fmt: skip
READ_FAULTS = [name for name in SUPPLY_FAULTS if name.startswith("read")]
OTHER_FAULTS = ["guard_killed", "guard_killed", "guard_hangs", "service_killed", "service_stopped", "wall_clock_jumps"]


class Night:
    """One schedule. The parts are those of the product, or others that lack a repair."""

    def __init__(self, seed: int, magnet: type[Magnet] = Magnet, keeper: type[Keeper] = Keeper) -> None:
        self.seed = seed
        self.random = rng = random.Random(seed)
        self.settings = rng.choice(SETTINGS)
        self.now_s = 100.0
        self.wall_s = 1.8e9
        self._magnet_kind = magnet
        self.keeper = keeper(self.settings, self._clock, self._wall)
        self.faults = self._schedule()
        self.magnet: Magnet | None = None
        self.to_guard: list[dict[str, Any]] = []
        self.to_service: list[dict[str, Any]] = []
        self.service = "runs"  # stopped, closing, gone
        self.told_gone = False
        self.spawn_at_s = math.inf
        self.inherited: Any = None
        self.stopped_until_s = 0.0
        self.kill_in = -1  # device calls and messages until the guard's process ends
        self.close_by_s = math.inf
        self.verdict: str | None = None  # of a service that ended
        self.outlived = False  # a guard was left when the service ended
        self.safe_from_mT: float | None = None  # asked for safety there, and nothing else since
        self.safe_by_s = self.said_s = math.inf
        # the supply
        self.output = self.last_read = rng.choice([0.0, 0.0, 10.0])
        self.changed_s = self.now_s - 10.0
        self.until: dict[str, float] = {}
        self.ignored = self.leapt = False
        self.ignored_s = 0.0  # since when it ignores values
        self.seen = 0  # read-backs that show it, with nothing else wrong meanwhile and just before
        self.lied_s, self.side = 0.0, 1
        self.late: tuple[float, float] | None = None  # a value that arrives then
        self.set_s, self.read_s = rng.choice([(0.0, 0.0), (0.001, 0.002), (0.01, 0.002), (0.03, 0.03)])
        self.place = rng.random()  # within a call, where the output changes
        self.unit = "mT"
        self.range = (-100.0, 100.0)
        self.description: dict[str, Any] = {}

    def _schedule(self) -> list[tuple[float, str]]:
        rng = self.random
        names = [*SUPPLY_FAULTS, *OTHER_FAULTS]
        faults = [(100.0 + rng.uniform(0.05, BUSY_S), rng.choice(names)) for _ in range(rng.randint(2, 5))]
        if rng.random() < 0.4:  # the second fault meets the first
            when, name = faults[0]
            next_to_it = READ_FAULTS if name == "guard_killed" else names
            faults.append((when + rng.uniform(0.0, 0.1), rng.choice(next_to_it)))
        asked = [
            (100.0 + rng.uniform(0.02, BUSY_S), rng.choice(["set", "set", "set", "safe", "stand_still", "demagnetise"]))
            for _ in range(rng.randint(2, 5))
        ]
        first = [(100.02, "set")]
        ends_s = 100.0 + BUSY_S
        if rng.random() < 0.05:  # some runs go on for long, so that what was lost is not made good by their end
            ends_s += 9.0
            faults.append((100.9, "guard_hangs_for_long"))
            asked.append((100.95, "safe"))
        return sorted([*first, *faults, *asked, (ends_s, "close")], reverse=True)

    def _clock(self) -> float:
        return self.now_s

    def _wall(self) -> int:
        return int((self.wall_s + self.now_s) * 1e9)

    # --- the night ---

    def run(self) -> None:
        """Play it. Raises `Broken`, with the seed, where a promise is not kept."""
        try:
            self._start(None)
            while not self._over():
                self._serve()
                self._guard()
                self.now_s += PERIOD_S
                self._watch()
                if self.now_s > 140.0:
                    raise Broken("the guard never makes the field safe")
            self._judge()
        except Broken as error:
            raise Broken(f"night {self.seed}: {error}") from None

    def _over(self) -> bool:
        return self.service == "gone" and self.magnet is None and self.spawn_at_s == math.inf

    def _watch(self) -> None:
        """What was asked for happens soon where nothing is wrong; and a guard that is not done says so."""
        now_s, alone = self.now_s, self.magnet is None
        disturbed = alone or self.ignored or now_s < self.stopped_until_s
        lying = alone
        for name, until_s in self.until.items():
            if now_s < until_s:
                disturbed |= until_s < math.inf
                lying |= name != "set_is_ignored"
        if lying:
            self.seen = -100  # what it read last may be a lie
        if disturbed or self.safe_from_mT is None:
            self.safe_by_s = now_s + 2.8  # a new guard looks for 2 s where read-backs do not agree
        elif now_s > self.safe_by_s and not self._is_safe(self.output):
            raise Broken(f"a request for safety was lost: {self.output:g} mT")
        if self.service != "gone" or alone or now_s < self.until.get("guard_hangs", 0.0):
            self.said_s = now_s
        elif now_s - self.said_s > 11.0:  # a call to the supply may take 4.5 s
            raise Broken("the guard says nothing")

    def _judge(self) -> None:
        was_set = self.keeper.was_set
        if self.verdict is not None and not self.verdict and was_set and not self._is_safe(self.at_end_mT):
            raise Broken(f"the run ends without a word at {self.at_end_mT:g} mT")
        if self.verdict is not None and not self.outlived and was_set and not self._is_safe(self.at_end_mT):
            raise Broken(f"nobody guards the field, which is at {self.at_end_mT:g} mT")
        if self.outlived and was_set and not self._is_safe(self.output):
            raise Broken(f"the last guard leaves the field at {self.output:g} mT")

    def _is_safe(self, field_mT: float) -> bool:
        return self.settings.safe == "hold" or abs(field_mT) <= TOLERANCE_MT

    # --- the service ---

    def _serve(self) -> None:
        if self.now_s >= self.spawn_at_s:
            self.spawn_at_s = math.inf
            self._start(self.inherited)
            if self.service == "closing":
                self.to_guard.append({"do": "close"})
        if self.service == "gone":
            return
        while self.faults and self.faults[-1][0] <= self.now_s:
            self._happens(self.faults.pop()[1])
            if self.service == "gone":
                return
        if self.now_s < self.stopped_until_s:
            return
        messages, self.to_service = self.to_service, []
        for message in messages:
            if message != {"ended": True}:
                self.keeper.take(message)
                continue
            self.inherited = self.keeper.ended("process 1")
            if self.inherited:
                self.spawn_at_s = self.now_s + self.random.uniform(*_SPAWN_S)
            elif self.service == "closing":
                self._end(self.keeper.fault)
                return
        self.to_guard.append({"do": "beat"})
        if self.service == "closing" and self.now_s > self.close_by_s:
            self.keeper.fail("not safe in time")
            self._end(self.keeper.fault)

    def _end(self, verdict: str | None) -> None:
        """The service ends, or is killed (then it says nothing)."""
        self.service, self.verdict, self.at_end_mT = "gone", verdict, self.output
        self.outlived = self.magnet is not None or self.spawn_at_s < math.inf
        self.faults, self.kill_in = [], -1  # a guard that is killed without a service is not promised to be replaced
        if self.spawn_at_s < math.inf and verdict is None:
            self.spawn_at_s, self.outlived = math.inf, False  # both dead at once: not promised

    def _happens(self, name: str) -> None:
        rng = self.random
        self.ignored_s, self.seen = self.now_s, min(self.seen, 0)  # what is ignored shows once it has settled
        request: dict[str, Any] = {"do": name, "id": rng.randrange(10**6), "sent_s": self.now_s}
        match name:
            case "close":
                self.service, self.close_by_s = "closing", self.now_s + _CLOSE_S
                self.to_guard.append({"do": "close"})
            case "set" | "safe" | "stand_still" | "demagnetise":
                if self.service != "runs" or self.now_s < self.stopped_until_s or self.keeper.fault:
                    return
                self.safe_from_mT = abs(self.output) if name == "safe" else None
                values = {"field_mT": rng.choice([50.0, -50.0, 79.0, 20.0, 0.0]), "reason": "asked",
                          "amplitude_mT": 30.0, "ratio": 0.5, "smallest_mT": 5.0, "dwell_s": 0.0}  # fmt: skip
                self.to_guard.append(request | values)
            case "guard_killed":
                self.kill_in = rng.randint(0, 6)
            case "guard_hangs":
                self.until["guard_hangs"] = self.now_s + rng.uniform(0.1, 4.0)
            case "guard_hangs_for_long":
                self.until["guard_hangs"] = self.now_s + rng.uniform(4.0, 6.0)
            case "service_killed":
                self._end(None)
            case "service_stopped":
                self.stopped_until_s = self.now_s + rng.uniform(0.05, 0.5)
            case "wall_clock_jumps":
                self.wall_s += rng.choice([-3600.0, 3600.0])
            case _:
                longest_s = SUPPLY_FAULTS[name]
                self.until[name] = self.now_s + rng.uniform(0.0, longest_s) if longest_s else math.inf

    # --- the guard's process ---

    def _start(self, inherited: Any) -> None:
        self.to_guard, self.told_gone = [], False
        self.kill_in = -1
        try:
            self.magnet = self._magnet_kind(self.settings, self, self._tell, self._clock, self._wall, inherited)
        except (FieldError, SettingsError):
            raise Broken("the guard does not start") from None

    def _tell(self, message: dict[str, Any]) -> None:
        self._may_die()
        if self.service != "gone":
            self.to_service.append(message)
        elif "event" in message:
            self.said_s = self.now_s

    def _may_die(self) -> None:
        if self.kill_in >= 0:
            self.kill_in -= 1
            if self.kill_in < 0:
                raise Killed

    def _guard(self) -> None:
        magnet = self.magnet
        if magnet is None or self.now_s < self.until.get("guard_hangs", 0.0):
            return
        try:
            messages, self.to_guard = self.to_guard, []
            for message in messages:
                answer = magnet.hear(message)
                if answer:
                    self._tell(answer)
            if self.service == "gone":
                magnet.close("the service has gone")
            reading = magnet.tick()
            if reading:
                self._tell({"reading": reading})
            if magnet.done:
                self._tell({"left": ""})
                self.magnet = None
        except Killed:
            self.magnet = None
        if self.magnet is None and self.service != "gone":
            self.to_service.append({"ended": True})

    # --- the supply ---

    def _hits(self, name: str) -> bool:
        """A fault is on; one that hits a single call is used up."""
        until_s = self.until.get(name)
        if until_s is None:
            return False
        on = self.now_s < until_s
        if until_s == math.inf or not on:
            del self.until[name]
        return on

    def set(self, value: float) -> None:
        """Take a value, or not."""
        self._may_die()
        if not -LIMIT_MT <= value <= LIMIT_MT:
            raise Broken(f"{value!r} mT is outside the limits")
        self._wait_for_late()
        if self._hits("set_hangs"):
            self._hang(4.5)
        if self._hits("set_arrives_late"):
            self.late = (self.now_s + self.random.uniform(_TIMEOUT_S, 0.5), value)
            self.now_s += _TIMEOUT_S
            raise FieldError("no answer in time")
        self.now_s += self.place * self.set_s
        if self._hits("set_fails_before"):
            raise FieldError("it refuses")
        if self._hits("set_is_ignored"):
            if not self.ignored:
                self.ignored, self.ignored_s = True, self.now_s
                self.seen = 0 if self.now_s - self.lied_s > 0.2 else -100
        else:
            self._change(value)
        self.now_s += (1 - self.place) * self.set_s
        self._may_die()
        if self._hits("set_fails_after") or self._hits("set_fails_once"):
            raise FieldError("no answer")

    def _wait_for_late(self) -> None:
        """A value that is late holds up all that comes after it, as long as somebody waits for an answer."""
        if self.late is None:
            return
        at_s, value = self.late
        begun_s = self.now_s
        if at_s > begun_s + _TIMEOUT_S:
            self.now_s += _TIMEOUT_S
            raise FieldError("no answer in time")
        self.now_s = min(at_s, begun_s)
        self._change(value)
        self.now_s, self.late = max(at_s, begun_s), None

    def _change(self, value: float) -> None:
        step, passed_s = abs(value - self.output), self.now_s - self.changed_s
        if self.leapt:  # by itself, and nobody could see it yet: what counts is what was read last
            step = min(step, abs(value - self.last_read))
        most = SLEW * passed_s + 1e-6
        if not self.ignored:
            most = min(most, SLEW * LONGEST_STEP_S + 1e-6)
        elif self.seen > 4:
            # A supply that listens again takes the next value, which is near by once the guard has seen that.
            most = min(most, 2 * SLEW * (PERIOD_S + self.set_s + self.read_s))
        if step > most:
            raise Broken(f"a step of {step:g} mT from {self.output:g} mT, {passed_s:g} s after the last")
        if self.safe_from_mT is not None and abs(value) > self.safe_from_mT + SLEW * LONGEST_STEP_S:
            raise Broken(f"{value:g} mT is set after safety was asked for at {self.safe_from_mT:g} mT")
        self.leapt |= self.ignored
        self.ignored = False
        if value != self.output:
            self.output, self.changed_s = value, self.now_s

    def read(self) -> float:
        """The output, or a lie."""
        self._may_die()
        self._wait_for_late()
        self.now_s += self.read_s
        if self.until:
            truth, self.lied_s = self.lied_s, self.now_s
            lie = self._lie()
            if lie is not None:
                return lie
            self.lied_s = truth
        self.seen += self.now_s - self.ignored_s > self.settings.settle_s
        self.last_read, self.leapt = self.output, False
        return self.output

    def _lie(self) -> float | None:
        """What it gives instead of its output; None: no lie."""
        if self._hits("read_hangs"):
            self._hang(0.5)
        if self._hits("read_fails"):
            raise FieldError("no answer")
        if self._hits("read_nan"):
            return math.nan
        if self._hits("read_jumps"):
            self.side = -self.side  # no three lies in a row agree: that would be believed
            return self.side * self.random.uniform(5, 100)
        if self._hits("read_slips"):
            return self.random.choice([0.0, 1.0, -99.0, 99.0, 1e9])
        if self._hits("read_stands_still"):
            return self.last_read
        return None

    def _hang(self, longest_s: float) -> None:
        self.now_s += self.random.uniform(0.1, longest_s)
        self.safe_by_s = max(self.safe_by_s, self.now_s + 1.0)

    def close(self) -> None:
        """Nothing to release."""
