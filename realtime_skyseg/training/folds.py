"""Leave one fold out: what a sample that nobody has seen may bring, and which bias on class skyrmion counts it best."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch.nn import functional

from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.config import TrainingSettings
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import Class
from realtime_skyseg.segmentation import load_model
from realtime_skyseg.segmentation.scaling import scale_mirrored
from realtime_skyseg.training.evaluate import Scores, score_image
from realtime_skyseg.training.labelled import LabelledImage, split
from realtime_skyseg.training.train import Training, merit_of

#: Biases on the logit of class skyrmion that are tried.
BIASES = tuple(np.arange(-1.5, 1.01, 0.25).tolist())


def leave_out(settings: TrainingSettings, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Train once for each fold, on all the others, and score the last weights on the one that was left out.

    What was trained before is not trained again, so that it can be interrupted. Models stand beside `out`, as
    NAME-without-FOLD.safetensors.

    Returns:
        `folds`: of each fold its images, figures pooled and over sources; `mean`: over the sources of all folds;
        `bias`: {bias: figures over all sources}, `best_bias`.

    Raises:
        SettingsError: there are no folds.
    """
    if settings.train_folds is None or settings.validate_folds is None:
        raise SettingsError("--leave-out: train_folds and validate_folds name the folds; allowed: settings with both")
    folds = sorted({*settings.train_folds, *settings.validate_folds})
    record: dict[str, Any] = {"folds": {}}
    logits: list[tuple[LabelledImage, NDArray[np.float32], NDArray[np.float32]]] = []
    plain: list[Any] = []
    for fold in folds:
        out = settings.out.with_name(f"{settings.out.stem}-without-{fold}.safetensors")
        others = [other for other in folds if other != fold]
        changes = {"train_folds": others, "validate_folds": [fold], "out": out, "keep": "last", "skyrmion_bias": 0.0}
        one = settings.model_copy(update=changes)
        if not out.exists() or out.with_name(out.name + ".checkpoint").exists():
            tell(f"fold {fold} is left out")
            Training(one).run()
        logits_of = _logits(str(out))
        found = [(pair, *logits_of(pair)) for pair in split(one)[1]]
        scores = _score(found, 0.0)
        record["folds"][fold] = {"images": len(found), **scores.figures(), "over_sources": scores.over_sources()}
        logits += found
        plain += scores.images
    record |= {"over_sources": Scores(plain).over_sources(), "bias": {}}
    best = 0.0, -np.inf
    for bias in track(BIASES, "bias", transient=True):
        scores = _score(logits, bias)
        record["bias"][bias] = scores.over_sources()["mean"]
        best = max(best, (bias, merit_of(scores)), key=lambda one: one[1])
    record["best_bias"] = best[0]
    return record


def _logits(model: str) -> Callable[[LabelledImage], tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Image -> logits (classes, height, width) and the scaled image, by torch in float32."""
    network = load_model(model).load_network()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device)

    def of(pair: LabelledImage) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        height, width = pair.image.shape
        padded = np.empty(network.shape.padded(pair.image.shape), np.float32)
        scale_mirrored(pair.image, padded)
        with torch.inference_mode():
            small = network(torch.from_numpy(padded)[None, None].to(device))
            full = functional.pixel_shuffle(small, network.shape.unshuffle)[0, :, :height, :width]
        return full.to(torch.float16).cpu().numpy(), np.ascontiguousarray(padded[:height, :width])

    return of


def _score(found: list[tuple[LabelledImage, NDArray[Any], NDArray[np.float32]]], bias: float) -> Scores:
    scores = []
    for pair, logits, image in found:
        biased = logits.astype(np.float32)
        biased[Class.SKYRMION] += bias
        mask = measure(biased.argmax(0).astype(np.uint8), image=image, polarity="dark").mask
        scores.append(score_image(pair.name, mask, pair.mask, pair.source))
    return Scores(scores)
