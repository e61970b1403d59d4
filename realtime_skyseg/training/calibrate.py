"""How far a model's results can be believed, learnt from images that it was not trained on, and tested by folds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from scipy.optimize import minimize
from torch.nn import functional

from realtime_skyseg.analysers.looks import OBJECT_LOOKS
from realtime_skyseg.analysers.trust import GOOD, Array, Trust, expanded, variance_terms
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.training.cases import Case
from realtime_skyseg.training.damage import DAMAGE, REASONS

#: Weight decay of the regressions.
_DECAY, _OBJECT_DECAY = 2e-4, 1e-3

#: Shares of the coordinates' own variance that is added, so that rare combinations are no certainty.
_SHRINKAGE = 0.1

#: Good frames that are kept to compare with.
_MOST_KNOWN = 200

#: Share of real good frames, counted right, that may be called out of range with their fold left out; of counts held.
FALSE_ALARMS, HELD = 0.01, 0.9

#: Share of damaged frames in the mix of which worse and worse ones are left out.
MIXED = 0.1

#: Bins of the reliability diagram.
BINS = 10


def fit(cases: Sequence[Case], on: str, seed: int = 0) -> Trust:
    """Learn all but the limits, which `calibrate` takes from folds left out.

    Args:
        cases: good and damaged.
        on: what they are of.
        seed: of which good ones are kept to compare with.
    """
    good = [case for case in cases if case.good]
    if len(good) < 20 or len(good) == len(cases):
        raise SettingsError(
            f"{len(good)} good and {len(cases) - len(good)} damaged images; allowed: 20 good ones or more"
        )
    answers = [GOOD, *REASONS]
    looks = np.array([case.frame for case in cases], np.float64)
    kinds = np.array([answers.index(DAMAGE[case.damage][0]) if case.damage else 0 for case in cases])
    weights = np.ones(len(cases))
    weights[kinds == 0] = _by_source(good) * (kinds > 0).sum()
    centre, scale = looks[kinds == 0].mean(0), looks[kinds == 0].std(0) + 1e-3
    standard = (looks - centre) / scale
    of, offsets = _logistic(expanded(standard), kinds, weights, len(answers), _DECAY)
    cut = standard[kinds == 0].clip(-5, 5)
    values, vectors = np.linalg.eigh(np.cov(cut.T) + _SHRINKAGE * np.eye(len(centre)))
    axes = vectors / np.sqrt(values)
    few = np.random.default_rng(seed).permutation(len(good))[:_MOST_KNOWN]
    known = standard[kinds == 0][few].clip(-8, 8) @ axes
    trust = Trust(
        on, dict(REASONS), centre, scale, of, offsets, axes, known, np.zeros(3), np.ones(3),
        np.zeros(len(OBJECT_LOOKS)), np.ones(len(OBJECT_LOOKS)), np.zeros(2 * len(OBJECT_LOOKS)), 0.0,
        np.ones(5), 0.0, 1.0,
    )  # fmt: skip
    return _fit_counts(_fit_objects(trust, good), good)


def _by_source(cases: Sequence[Case]) -> Array:
    """Weights that sum to 1 and grow with the root of a source's images: its images are near copies of each other."""
    _, at, n = np.unique([case.source for case in cases], return_inverse=True, return_counts=True)
    weights = 1 / np.sqrt(n[at])
    return np.asarray(weights / weights.sum(), np.float64)


def _logistic(inputs: Array, kinds: NDArray[np.integer], weights: Array, n: int, decay: float) -> tuple[Array, Array]:
    """Multinomial logistic regression; its weights (inputs, n) and offsets (n,)."""
    x, y = torch.from_numpy(inputs), torch.from_numpy(kinds.astype(np.int64))
    w = torch.from_numpy(weights / weights.sum())
    of = torch.zeros(inputs.shape[1], n, dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([of, offsets], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = (functional.cross_entropy(x @ of + offsets, y, reduction="none") * w).sum() + decay * (of**2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return of.detach().numpy(), offsets.detach().numpy()


def _fit_objects(trust: Trust, good: Sequence[Case]) -> Trust:
    """How likely an object is one; each source weighs the same, however many objects it has."""
    seen = [case for case in good if len(case.objects)]
    looks = np.concatenate([case.objects for case in seen]).astype(np.float64)
    right = np.concatenate([case.right for case in seen]).astype(np.int64)
    weights = np.concatenate(
        [np.full(len(case.objects), weight / len(case.objects) ** 0.5)
         for case, weight in zip(seen, _by_source(seen), strict=True)]
    )  # fmt: skip
    centre, scale = looks.mean(0), looks.std(0) + 1e-3
    of, offsets = _logistic(expanded((looks - centre) / scale), right, weights, 2, _OBJECT_DECAY)
    return replace(trust, object_centre=centre, object_scale=scale, object_weights=of[:, 1] - of[:, 0],
                   object_offset=float(offsets[1] - offsets[0]))  # fmt: skip


def _sureness(trust: Trust, case: Case) -> Array:
    return trust.sureness(case.objects[case.counted])


def _stripes(case: Case) -> int:
    return int((~case.counted).sum())


def _fit_counts(trust: Trust, good: Sequence[Case]) -> Trust:
    """How far the true count lies from the expected one."""
    weights = _by_source(good)
    sure = [_sureness(trust, case) for case in good]
    true = np.array([case.true for case in good], np.float64)
    total = np.array([float(p.sum()) for p in sure])
    enough = (total > 3) & (true > 0)
    missed = float(np.median((true / np.maximum(total, 1e-9))[enough])) - 1 if enough.any() else 0.0
    errors = true - total * (1 + missed)
    terms = np.array([variance_terms(case.frame, p, _stripes(case)) for case, p in zip(good, sure, strict=True)])

    def spread_of(logs: Array) -> Array:
        return np.exp(np.insert(logs, 1, 0.0))  # the Poisson binomial's part is what it is

    def loss(logs: Array) -> float:
        scale = np.sqrt(terms @ spread_of(logs))
        # Laplace's distribution: a few images are far off, which are not to make all intervals wide.
        return float((weights * (np.log(scale) + np.abs(errors) / scale * 2**0.5)).sum()) + 1e-3 * float(
            (logs**2).sum()
        )

    best = minimize(loss, np.array([0.0, -4.0, -7.0, -5.0]), method="Nelder-Mead", options={"maxiter": 2000})
    trust = replace(trust, missed=missed, spread=spread_of(best.x))
    return replace(trust, quantile=_quantile(count_scores(trust, good), weights, HELD))


def count_scores(trust: Trust, cases: Sequence[Case]) -> Array:
    """(n,) |true - expected count| in units of what is to be expected."""
    scores = []
    for case in cases:
        sure = _sureness(trust, case)
        scores.append(
            abs(case.true - float(sure.sum()) * (1 + trust.missed))
            / np.sqrt(trust.variance(case.frame, sure, _stripes(case)))
        )
    return np.array(scores)


def _quantile(values: Array, weights: Array, share: float) -> float:
    order = np.argsort(values)
    upto = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(upto, share)), len(values) - 1)])


def calibrate(cases: Sequence[Case], on: str, tell: Callable[[str], None] = print) -> tuple[Trust, dict[str, Any]]:
    """Learn from all cases; limits and figures are those of folds that were left out.

    Returns:
        What is to be kept in the model's file, and the figures of `figures_of`.
    """
    folds = sorted({case.fold for case in cases if case.fold >= 0})
    if len(folds) < 2:
        raise SettingsError(f"table: folds {folds}; allowed: two or more, so that one can be left out")
    held: list[tuple[Case, Array, int]] = []  # case, scores, answer
    parts: list[tuple[Trust, list[Case]]] = []
    for fold in track(folds, "folds left out", transient=True):
        trust = fit([case for case in cases if case.fold != fold], on)
        out = [case for case in cases if case.fold == fold]
        for case in out:
            scores, odds = trust.scores(case.frame)
            held.append((case, scores, int(odds[1:].argmax())))
        parts.append((trust, out))
    good = np.array([scores for case, scores, _ in held if case.good])
    # An alarm is false where the count is right.
    real = np.array([not case.made and case.counted_right for case, _, _ in held if case.good])
    limits = np.array([np.quantile(good[real, 0], 1 - FALSE_ALARMS, method="higher"), *(1.1 * good[:, 1:].max(0))])
    widths = np.maximum([2.0, *(0.15 * limits[1:])], 0.1)
    trust = replace(fit(cases, on), limits=limits, widths=widths)
    # The interval is tried where it was not fitted: its quantile is that of the folds left out.
    scores = np.concatenate([count_scores(part, [case for case in out if case.good]) for part, out in parts])
    weights = _by_source([case for _, out in parts for case in out if case.good])
    trust = replace(trust, quantile=_quantile(scores, weights, HELD))
    parts = [(replace(part, limits=limits, widths=widths), out) for part, out in parts]
    return trust, figures_of(parts, held)


def figures_of(parts: list[tuple[Trust, list[Case]]], held: list[tuple[Case, Array, int]]) -> dict[str, Any]:
    """Of folds left out: reliability, what the intervals hold, what is flagged and why, errors of the counts kept."""
    record: dict[str, Any] = {"folds": {}, "damage": {}}
    for trust, out in parts:
        record["folds"][str(out[0].fold)] = {**_reliability(trust, out), **_intervals(trust, out)}
    limits = parts[0][0].limits
    words = list(REASONS)
    for key, made in (("false_alarms", False), ("false_alarms_made", True)):
        seen = [(case, bool((scores > limits).any())) for case, scores, _ in held if case.good and case.made == made]
        for name, kept in ((key, [one for one in seen if one[0].counted_right]), (f"{key}_or_wrong", seen)):
            record[name] = float(np.mean([alarm for _, alarm in kept])) if kept else math.nan
    merged = {id(case): float(((scores - limits) / parts[0][0].widths).max()) for case, scores, _ in held}
    of_good = np.array([merged[id(case)] for case, _, _ in held if case.good])
    for damage, (reason, _) in DAMAGE.items():
        for name, is_plain in ((damage, True), (f"{damage}, mild", False)):
            these = [one for one in held if one[0].damage == damage and (one[0].severity == 1) == is_plain]
            if these:
                flagged = [bool((scores > limits).any()) for _, scores, _ in these]
                record["damage"][name] = {
                    "images": len(these),
                    "flagged": float(np.mean(flagged)),
                    "right_reason": float(np.mean([words[answer] == reason for _, _, answer in these])),
                    "auroc": auroc(of_good, np.array([merged[id(case)] for case, _, _ in these])),
                }
    for key, mild in (("auroc", False), ("auroc_mild", True)):
        areas = [row["auroc"] for name, row in record["damage"].items() if name.endswith("mild") == mild]
        record[key] = float(np.mean(areas)) if areas else math.nan
    record["selective"] = _selective([(case, _relative_width(trust, case)) for trust, out in parts for case in out])
    return record


def auroc(negative: Array, positive: Array) -> float:
    """Area under the receiver operating characteristic: how often a positive has the higher score."""
    values = np.concatenate([negative, positive])
    ranks = np.empty(len(values))
    ranks[values.argsort()] = np.arange(1, len(values) + 1)
    n = len(positive)
    return float((ranks[len(negative) :].sum() - n * (n + 1) / 2) / (n * len(negative)))


def _reliability(trust: Trust, cases: Sequence[Case]) -> dict[str, Any]:
    """Expected calibration error of the objects, and what a reliability diagram shows."""
    seen = [case for case in cases if case.good and len(case.objects)]
    sure = np.concatenate([trust.sureness(case.objects) for case in seen])
    right = np.concatenate([case.right for case in seen])
    at = np.minimum((sure * BINS).astype(int), BINS - 1)
    n = np.bincount(at, minlength=BINS)
    means, shares = (np.bincount(at, values, BINS) / np.maximum(n, 1) for values in (sure, right.astype(float)))
    return {
        "objects": len(sure), "ece": float((n * np.abs(means - shares)).sum() / max(len(sure), 1)),
        "probability": means.round(4).tolist(), "observed": shares.round(4).tolist(), "in_bin": n.tolist(),
    }  # fmt: skip


def _intervals(trust: Trust, cases: Sequence[Case]) -> dict[str, Any]:
    inside, widths, counts = [], [], []
    by_source: dict[str, list[bool]] = {}
    for case in cases:
        if case.good:
            low, high, _ = _interval(trust, case)
            inside.append(low <= case.true <= high)
            widths.append(high - low)
            counts.append(case.true)
            by_source.setdefault(case.source, []).append(inside[-1])
    return {
        "images": len(inside), "held": float(np.mean(inside)), "median_width": float(np.median(widths)),
        "median_true": float(np.median(counts)), "worst_source": float(min(np.mean(one) for one in by_source.values())),
    }  # fmt: skip


def _relative_width(trust: Trust, case: Case) -> float:
    """Of the interval, which is wider out of range, in units of the count."""
    low, high, _ = _interval(trust, case)
    return (high - low) / (int(case.counted.sum()) + 3)


def _interval(trust: Trust, case: Case) -> tuple[float, float, float]:
    return trust.interval(case.frame, _sureness(trust, case), _stripes(case), trust.judge(case.frame).domain)


def _selective(scored: list[tuple[Case, float]]) -> dict[str, list[float]]:
    """Mean count error, as a share of the true count, of what is kept of a mix, narrowest intervals first; `MIXED`."""
    order = sorted((one for one in scored if one[0].true > 0), key=lambda one: one[1])
    errors = np.array([min(abs(int(case.counted.sum()) - case.true) / case.true, 3.0) for case, _ in order])
    good = np.array([case.good for case, _ in order])
    weights = np.where(good, (1 - MIXED) / good.sum(), MIXED / (~good).sum())
    upto, total = np.cumsum(weights), np.cumsum(weights * errors)
    kept = np.linspace(0.05, 1, 20)
    at = np.minimum(np.searchsorted(upto, kept - 1e-9), len(upto) - 1)
    return {"kept": kept.round(2).tolist(), "error": (total[at] / upto[at]).tolist()}
