"""Training of a network on labelled images."""

import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional

from realtime_skyseg.config import TrainingSettings
from realtime_skyseg.records import Class, Image, Mask
from realtime_skyseg.segmentation.model import NetworkShape, save_model
from realtime_skyseg.segmentation.network import MaskNet, UNet
from realtime_skyseg.segmentation.scaling import scale_mirrored
from realtime_skyseg.training.augment import Sampler
from realtime_skyseg.training.evaluate import Scores, score
from realtime_skyseg.training.labelled import LabelledImage, read_labelled

#: Weight of each class in the cross-entropy: defects are rare (0.15 % of all pixels).
CLASS_WEIGHTS = {Class.BACKGROUND: 1.0, Class.SKYRMION: 1.5, Class.DEFECT: 3.0, Class.OUTSIDE: 1.0, Class.EDGE: 1.5}


def train(settings: TrainingSettings) -> Path:
    """Train a network and write it to `settings.out`, with its figures on the validation folds.

    AdamW with warm-up and cosine decay, weighted cross-entropy plus soft Dice on class skyrmion, and an
    exponential moving average of the weights; the average with the best validation figures
    is saved. Runs on the GPU where there is one; on a
    CPU convolutions run in bfloat16.

    Returns:
        The path of the model file.
    """
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = read_labelled(settings.images, settings.labels, settings.table, settings.train_folds)
    validation = read_labelled(settings.images, settings.labels, settings.table, settings.validate_folds)
    shape = NetworkShape(settings.unshuffle, settings.filters, settings.depth)
    network = UNet(shape).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network)
    best, best_scores = average, None
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=1e-3)
    weights = torch.tensor([CLASS_WEIGHTS[value] for value in Class], device=device)
    sampler = Sampler(training, settings.crop_px, settings.seed)
    started = time.monotonic()
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("training", total=settings.steps)
        for step in range(settings.steps):
            rate = _rate(step, settings)
            for group in optimiser.param_groups:
                group["lr"] = rate
            images, masks = sampler.batch(settings.batch)
            target = torch.from_numpy(masks).to(device, torch.long)
            inputs = torch.from_numpy(images).to(device, memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16):
                small = network(inputs)
            loss = _loss(functional.pixel_shuffle(small.float(), shape.unshuffle), target, weights)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            _follow(average, network, min(settings.average_decay, (step + 1) / (step + 10)))
            progress.update(task, advance=1, description=f"loss {loss.item():.3f}")
            if (step + 1) % settings.validate_every == 0 or step + 1 == settings.steps:
                scores = validate(average, validation)
                progress.console.print(
                    f"step {step + 1} after {time.monotonic() - started:.0f} s: {_line(scores)}", soft_wrap=True
                )
                if best_scores is None or _merit(scores) > _merit(best_scores):
                    best, best_scores, best_step = copy.deepcopy(average), scores, step + 1
    assert best_scores is not None
    training_record = {
        "settings": settings.model_dump(mode="json", exclude={"images", "labels", "table", "out"}),
        "images": len(training),
        "validation_images": len(validation),
        "best_step": best_step,
        "validation": {key: round(value, 4) for key, value in best_scores.figures().items()},
        "seconds": round(time.monotonic() - started),
        "torch": torch.__version__,
    }
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    save_model(best.cpu(), settings.out, training_record)
    return settings.out


def validate(network: UNet, pairs: list[LabelledImage]) -> Scores:
    """Score a network on whole images in float32."""
    device = next(network.parameters()).device
    decide = MaskNet(network).eval()

    def segment(image: Image) -> Mask:
        padded = np.empty(network.shape.padded(image.shape), np.float32)
        scale_mirrored(image, padded)
        mask: Mask = decide(torch.from_numpy(padded)[None, None].to(device)).cpu().numpy()[0, 0]
        return mask[: image.shape[0], : image.shape[1]]

    with torch.inference_mode():
        return score(pairs, segment)


def _loss(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    # Smoothed targets: the labels were made by a machine and corrected by hand, and their borders are ragged.
    entropy = functional.cross_entropy(logits, target, weight=weights, label_smoothing=0.05)
    probability = logits.softmax(1)[:, Class.SKYRMION]
    truth = (target == Class.SKYRMION).float()
    dice = 1 - (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1)
    return entropy + dice


def _merit(scores: Scores) -> float:
    """What the best checkpoint is chosen by: pixels, objects and counts."""
    figures = scores.figures()
    return figures["skyrmion_mcc"] + figures["object_f1"] - figures["count_mape"]


def _rate(step: int, settings: TrainingSettings) -> float:
    warm_up = min(1.0, (step + 1) / 200)
    return settings.learning_rate * warm_up * (0.5 * (1 + math.cos(math.pi * step / settings.steps)) + 0.005)


@torch.no_grad()
def _follow(average: UNet, network: UNet, decay: float) -> None:
    for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.dtype.is_floating_point:
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def _line(scores: Scores) -> str:
    return ", ".join(f"{key} {value:.4f}" for key, value in scores.figures().items())
