"""Nights of random faults on the guard's decisions: no promise is broken, and each repair is missed where it is not."""

import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
from field_world import Broken, Night

from realtime_skyseg.config import FieldSettings
from realtime_skyseg.field.keeper import Keeper
from realtime_skyseg.field.magnet import Inherited, Magnet


def broken(seeds: range, **parts: Any) -> Iterator[str]:
    """What broke in these nights, one sentence each."""
    for seed in seeds:
        try:
            Night(seed, **parts).run()
        except Broken as error:
            yield str(error)


def all_broken(seeds: range) -> list[str]:
    """The same at once, for another process."""
    return list(broken(seeds))


def test_three_thousand_nights() -> None:
    assert all_broken(range(3000)) == []


@pytest.mark.slow
def test_a_hundred_thousand_nights() -> None:
    parts = [range(start, start + 1000) for start in range(0, 100_000, 1000)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        assert [sentence for found in pool.map(all_broken, parts) for sentence in found] == []


# --- the ramp ---


class TimedSupply:
    """A supply whose calls take time; it changes in the middle of one."""

    unit, range, description = "mT", (-100.0, 100.0), {}

    def __init__(self, set_s: float, read_s: float) -> None:
        self.set_s, self.read_s = set_s, read_s
        self.now_s, self.value = 0.0, -70.0
        self.log: list[tuple[float, float]] = []

    def set(self, value: float) -> None:
        self.now_s += self.set_s / 2
        self.log.append((self.now_s, value))
        self.now_s += self.set_s / 2
        self.value = value

    def read(self) -> float:
        self.now_s += self.read_s
        return self.value

    def close(self) -> None:
        pass


@pytest.mark.parametrize("read_s", [0.001, 0.02, 0.1])
@pytest.mark.parametrize("set_s", [0.001, 0.005, 0.02, 0.05, 0.1])
def test_the_ramp_follows_the_clock(set_s: float, read_s: float) -> None:
    """50 mT/s are promised: within 5 %, and no step beyond the slew rate times the time since the last."""
    tree = {"driver": "manual", "limit_mT": [-80, 80], "slew_mT_per_s": 50, "tolerance_mT": 0.5, "settle_s": 0.5}
    supply = TimedSupply(set_s, read_s)
    magnet = Magnet(FieldSettings.model_validate(tree), supply, lambda _: None, lambda: supply.now_s, lambda: 0)
    for target, rel in [(70, 0.1), (-70, 0.05), (70, 0.05)]:  # after two values it is known how long the supply takes
        asked_s = supply.now_s
        magnet.aim(target)
        while supply.value != target:
            due_s = supply.now_s + magnet.period_s
            magnet.hear({"do": "beat"})
            magnet.tick()
            supply.now_s = max(supply.now_s, due_s)
        assert supply.log[-1][0] - asked_s == pytest.approx(140 / 50, rel=rel)
    times, fields = np.array(supply.log).T
    assert (np.abs(np.diff(fields)) <= 50 * 1.0001 * np.diff(times)).all()


# --- the repairs, taken out one by one ---


class BelievesOneReading(Magnet):
    """Takes the first read-back after another guard, whatever it is, and the nearest limit for what is outside."""

    def _measure(self) -> tuple[float, float]:
        return (value := float(self._device.read())), value

    def _look(self) -> None:
        found = self._recent[-1] if self._recent else math.nan
        self._looks_until_s = None
        low, high = self._limits
        start = min(max(found, low), high) if low <= found <= high else min(low, high, key=lambda end: abs(end - found))
        self._set_mT = self._low_mT = self._high_mT = start
        self._refused = False
        self._go_safe(self.fault)


class GivesUpAfterAFailedRead(Magnet):
    """Leaves where the field cannot be read right after another guard has ended."""

    def _suspect(self, reason: str, believed: float | None = None) -> None:
        if self._looks_until_s is not None:
            self.closing, self._set_mT = True, None
        else:
            super()._suspect(reason, believed)


class ReplacesOneGuard(Keeper):
    """A second guard that ends is not replaced."""

    replaced = False

    def ended(self, guard: str) -> Inherited | None:
        inherited, self.replaced = None if self.replaced else super().ended(guard), True
        return inherited


class SaysNothingOfItsEnd(Keeper):
    """A guard that ends is replaced, and the run ends as if nothing had been."""

    def fail(self, reason: str) -> None:
        pass

    def ended(self, guard: str) -> Inherited | None:
        return None


class DropsWhatIsLate(Magnet):
    """A request for safety that waited behind a supply that hung is not carried out."""

    def hear(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if request["do"] == "safe" and self._clock() - request["sent_s"] > 4.0:
            return None
        return super().hear(request)


class TakesARefusalForOne(Magnet):
    """A value whose answer is missing is taken for not sent."""

    def _step(self) -> None:
        before = self._set_mT
        super()._step()
        if self._refused and before is not None and self._looks_until_s is None:
            self._low_mT = self._high_mT = self._set_mT = before


class ArrivesByTelling(Magnet):
    """What was told counts as reached."""

    def _compare(self, device: float, field_mT: float) -> None:
        super()._compare(device, field_mT)
        if self._set_mT == (self._plan[0][0] if self._plan else self._set_mT):
            self._near = 3


class GivesUpAfterAWhile(Magnet):
    """Leaves a supply that refuses for 5 s after the service has gone."""

    @property
    def done(self) -> bool:
        late = self._refused and self.closing and self._clock() - self._away_s > 0.3
        return late or super().done


class GoesOnWhereItIsIgnored(Magnet):
    """Tells a supply that ignores it the way to zero, which it leaps once it listens again."""

    def _stand_at(self, field_mT: float) -> None:
        pass


NOBODY = "nobody guards the field|the last guard leaves the field at"
REPAIRS: list[tuple[dict[str, Any], str]] = [
    ({"magnet": BelievesOneReading}, "a step of"),
    ({"magnet": GivesUpAfterAFailedRead}, NOBODY),
    ({"keeper": ReplacesOneGuard}, NOBODY),
    ({"keeper": SaysNothingOfItsEnd}, "the run ends without a word"),
    ({"magnet": DropsWhatIsLate}, "a request for safety was lost"),
    ({"magnet": TakesARefusalForOne}, "a step of"),
    ({"magnet": ArrivesByTelling}, NOBODY),
    ({"magnet": GivesUpAfterAWhile}, NOBODY),
    ({"magnet": GoesOnWhereItIsIgnored}, "a step of"),
]


@pytest.mark.parametrize(("parts", "sentence"), REPAIRS, ids=[next(iter(p.values())).__name__ for p, _ in REPAIRS])
def test_a_repair_that_is_taken_out_is_missed(parts: dict[str, Any], sentence: str) -> None:
    assert any(re.search(sentence, found) for found in broken(range(1000), **parts))
