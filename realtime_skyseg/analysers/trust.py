"""How far a model's results can be believed: learnt from images that were left out, and kept in the model's file."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.analysers.looks import FRAME_LOOKS, OBJECT_LOOKS

Array = NDArray[np.float64]

#: Of good images; the other answers are the keys of `training.damage.REASONS`.
GOOD = "good"

_CNR = FRAME_LOOKS.index("cnr")

#: Standardised looks are cut there: beyond, a linear rule knows nothing.
_FARTHEST = 6.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a frame is one that the model knows."""

    domain: float  # 1: as those it was tested on; below 0.5: out of range
    reason: str  # the likeliest, in words; "" in range


@dataclass(frozen=True, slots=True)
class Trust:
    """What `skyseg calibrate` has found out about a model. All arrays are float64.

    A frame is out of range where a multinomial logistic regression on its looks takes it for a damaged one, or where it
    lies far from all good frames: the mean distance to the five nearest (kNN), and to their middle (Mahalanobis, 1936),
    both in coordinates in which good frames have a covariance of one.
    """

    calibrated_on: str
    reasons: dict[str, str]  # word and sentence of each answer but `GOOD`
    centre: Array  # (f,) of the looks of good frames
    scale: Array  # (f,)
    weights: Array  # (2 f, 1 + reasons): of standardised looks and their squares
    offsets: Array  # (1 + reasons,)
    axes: Array  # (f, k): standardised looks @ axes have a covariance of one
    known: Array  # (n, k): good frames in these coordinates
    limits: Array  # (3,) of log odds, mean distance to the nearest, and to the middle: 1 % of good frames are beyond
    widths: Array  # (3,): by so much more, the domain score falls from 0.5 to 0.27
    object_centre: Array  # (g,) of the looks of objects
    object_scale: Array  # (g,)
    object_weights: Array  # (2 g,)
    object_offset: float
    spread: Array  # (5,): variance of the count, see `variance`
    missed: float  # true objects that are not found, as a share of those that are
    quantile: float  # of |true - expected| / root of that variance: for 90 % of the images of a new source

    @classmethod
    def of(cls, kept: dict[str, Any] | None) -> Self | None:
        """From a model file. None: it was not calibrated, or for other looks than those of this version."""
        if kept is None or kept.get("looks") != looks_version():
            return None
        plain = {"calibrated_on", "reasons", "object_offset", "missed", "quantile"}
        names = cls.__dataclass_fields__
        values: dict[str, Any] = {name: kept[name] for name in names}
        for name in values.keys() - plain:
            values[name] = np.array(values[name], np.float64)
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """For a model file, to four digits."""

        def short(value: Any) -> Any:
            if not isinstance(value, np.ndarray):
                return value
            return [short(row) for row in value] if value.ndim > 1 else [float(f"{v:.4g}") for v in value]

        return {"looks": looks_version(), **{name: short(getattr(self, name)) for name in self.__dataclass_fields__}}

    def judge(self, looks: NDArray[np.floating]) -> Judgement:
        """Whether a frame is one that the model knows.

        Args:
            looks: (f,) of the frame, see `looks_of`.
        """
        scores, odds = self.scores(looks)
        beyond = (scores - self.limits) / self.widths
        domain = 1 / (1 + math.exp(min(float(beyond.max()), 50.0)))
        return Judgement(domain, "" if domain >= 0.5 else list(self.reasons.values())[int(odds[1:].argmax())])

    def scores(self, looks: NDArray[np.floating]) -> tuple[Array, Array]:
        """Log odds against a good frame, distances to the five nearest and to the middle; log odds of all answers."""
        standard = (looks - self.centre) / self.scale
        odds = expanded(standard) @ self.weights + self.offsets
        odds -= odds.max()
        shares = np.exp(odds)
        good, bad = float(shares[0]), float(shares[1:].sum())
        here = standard.clip(-8, 8) @ self.axes
        squares = ((self.known - here) ** 2).sum(1)
        near = math.sqrt(float(np.partition(squares, 4)[:5].mean()))
        return np.array([math.log(bad + 1e-12) - math.log(good + 1e-12), near, math.sqrt(float(here @ here))]), odds

    def sureness(self, looks: NDArray[np.floating]) -> Array:
        """(n,) how likely each object is one.

        Args:
            looks: (n, g) of the objects, see `looks_of`.
        """
        odds = expanded((looks - self.object_centre) / self.object_scale) @ self.object_weights + self.object_offset
        return np.asarray(1 / (1 + np.exp(-odds)), np.float64)

    def interval(
        self, looks: NDArray[np.floating], sureness: Array, stripes: int, domain: float
    ) -> tuple[float, float, float]:
        """Lowest and highest count that is to be expected in nine of ten images of a new sample, and the likeliest.

        Out of range nothing is known: the interval is wider, by the inverse of the domain score.

        Args:
            looks: (f,) of the frame.
            sureness: (n,) of the objects that are counted.
            stripes: found besides, which noise may break into pieces.
            domain: of the frame, see `judge`.
        """
        n = len(sureness)
        expected = float(sureness.sum()) * (1 + self.missed)
        half = self.quantile * math.sqrt(self.variance(looks, sureness, stripes)) / min(1.0, 2 * max(domain, 0.01))
        return max(0.0, math.floor(min(expected - half, n))), math.ceil(max(expected + half, n)), expected

    def variance(self, looks: NDArray[np.floating], sureness: Array, stripes: int) -> float:
        """Of the true count about the expected one."""
        return float(self.spread @ variance_terms(looks, sureness, stripes))


def variance_terms(looks: NDArray[np.floating], sureness: Array, stripes: int) -> Array:
    """What the variance of a count is linear in: 1, a Poisson binomial's sum p (1 - p), the number of objects, its
    square, and that in units of contrast to noise.
    """
    n = float(len(sureness) + stripes)
    noise = 10.0 ** -float(looks[_CNR])
    return np.array([1.0, float((sureness * (1 - sureness)).sum()), n, n**2, (n * noise) ** 2])


def expanded(standard: NDArray[np.floating]) -> Array:
    """Standardised looks, cut, and their squares: what the regressions are linear in."""
    cut = np.asarray(standard, np.float64).clip(-_FARTHEST, _FARTHEST)
    return np.concatenate([cut, np.minimum(cut**2, 16) / 4], -1)


def looks_version() -> str:
    """The looks that a calibration is of."""
    return f"1: {','.join(FRAME_LOOKS)}; {','.join(OBJECT_LOOKS)}"
