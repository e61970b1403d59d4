"""Training of a network on labelled images."""

import copy
import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional

from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.config import SHAPE_KEYS, TrainingSettings
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import Class, Image, Mask
from realtime_skyseg.segmentation import load_model
from realtime_skyseg.segmentation.model import TrainedPolarity, save_model
from realtime_skyseg.segmentation.network import MaskNet, UNet
from realtime_skyseg.segmentation.scaling import scale_mirrored
from realtime_skyseg.segmentation.shape import NetworkShape
from realtime_skyseg.training.augment import Sampler
from realtime_skyseg.training.evaluate import Scores, score
from realtime_skyseg.training.labelled import LabelledImage, split

#: Share of the teachers in the loss, where there are any.
_TAUGHT = 0.5

#: Training images that are scored beside those of validation.
_FEW = 10


@dataclass(slots=True)
class _Progress:
    """What a checkpoint keeps beside the weights."""

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_merit: float = -math.inf
    best_figures: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


class Training:
    """One training from its settings to a model file; goes on from its checkpoint where there is one.

    AdamW with warm-up and cosine decay, weighted cross-entropy with label smoothing plus soft Dice on class
    skyrmion, and an exponential moving average of the weights; the average with the best validation figures is
    saved, or the last (`keep`). Runs on the GPU where there is one; convolutions run in bfloat16.

    Raises:
        SettingsError: images or labels cannot be read, the split leaves a side empty, or the checkpoint belongs to
            other settings.
    """

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings = settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # A processor that has it only by emulation takes 6 (compact) to 9 times (accurate) as long with it.
        self._has_bfloat16 = self._device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.training, self.validation = split(settings)
        self._teachers = [self._ready(_network_of("teachers", name)) for name in settings.teachers]
        if settings.start_from:
            network = _network_of("start_from", settings.start_from).train()
        else:
            network = UNet(NetworkShape(**settings.model_dump(include=SHAPE_KEYS)))
        self._network = self._ready(network)
        self._average = copy.deepcopy(self._network)
        self._best = copy.deepcopy(self._network)
        self._optimiser = torch.optim.AdamW(
            self._network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._sampler = Sampler(self.training, settings)
        self._progress = _Progress()
        self._checkpoint = settings.out.with_name(settings.out.name + ".checkpoint")
        if settings.out.exists() and not self._checkpoint.exists():
            raise SettingsError(f"out: '{settings.out}' exists already and is not overwritten; allowed: another name")

    @property
    def report_folder(self) -> Path:
        """Where the history of the figures goes."""
        return self.settings.out.with_name(self.settings.out.stem + "-report")

    @property
    def history(self) -> list[dict[str, float]]:
        """Step, loss, learning rate and validation figures at each validation."""
        return self._progress.history

    def run(self) -> Path:
        """Train, validate and save until all steps are done; returns the path of the model file."""
        settings, progress = self.settings, self._progress
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        with Progress(*columns, TimeRemainingColumn()) as bar:
            if self._resume():
                bar.console.print(f"goes on from step {progress.step} of {self._checkpoint}", soft_wrap=True)
            task = bar.add_task("training", total=settings.steps, completed=progress.step)
            started = time.monotonic() - progress.seconds
            losses: list[float] = []
            while progress.step < settings.steps:
                losses.append(self._step())
                progress.step += 1
                bar.update(task, completed=progress.step, description=f"loss {losses[-1]:.3f}")
                if progress.step % settings.validate_every == 0 or progress.step == settings.steps:
                    progress.seconds = time.monotonic() - started
                    line = self._validate(float(np.mean(losses)))
                    bar.console.print(f"step {progress.step} after {progress.seconds:.0f} s: {line}", soft_wrap=True)
                    losses.clear()
        network = self._best if settings.keep == "best" else self._average
        add_bias(network, settings.skyrmion_bias)
        polarity: TrainedPolarity = "any" if settings.augment.inverted else "dark"
        save_model(network.cpu(), settings.out, self._record(), polarity=polarity)
        self._checkpoint.unlink(missing_ok=True)
        return settings.out

    def _step(self) -> float:
        settings = self.settings
        rate = _rate(self._progress.step, settings)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        images, masks, weights = self._sampler.batch(settings.batch)
        target = torch.from_numpy(masks).to(self._device, torch.long)
        inputs = torch.from_numpy(images).to(self._device, memory_format=torch.channels_last)
        logits = self._logits(self._network, inputs)
        loss = _loss(logits, target, torch.from_numpy(weights).to(self._device), settings.dice)
        if self._teachers:
            loss = (1 - _TAUGHT) * loss + _TAUGHT * functional.cross_entropy(logits, self._taught(inputs))
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        done = self._progress.step + 1
        _follow(self._average, self._network, min(settings.average_decay, done / (done + 9)))
        return float(loss.item())

    def _logits(self, network: UNet, inputs: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._has_bfloat16):
            small = network(inputs)
        return functional.pixel_shuffle(small.float(), network.shape.unshuffle)

    def _validate(self, loss: float) -> str:
        """Score the average, keep it if it is the best, write checkpoint and history; returns a line for people."""
        progress = self._progress
        scores = validate(self._average, self.validation)
        figures, merit = {**scores.figures(), **self._on_training()}, merit_of(scores)
        rate = _rate(progress.step - 1, self.settings)
        progress.history.append({"step": progress.step, "loss": loss, "learning_rate": rate, **figures})
        if merit > progress.best_merit:
            progress.best_merit, progress.best_step, progress.best_figures = merit, progress.step, figures
            self._best.load_state_dict(self._average.state_dict())
        self._save_checkpoint()
        _write_history(self.report_folder / "history.csv", progress.history)
        return f"loss {loss:.3f}, " + ", ".join(f"{key} {value:.4f}" for key, value in figures.items())

    def _on_training(self) -> dict[str, float]:
        """Figures on a few of the images that are learnt from, to see whether they are learnt by heart."""
        few = self.training[:: -(-len(self.training) // _FEW)]
        figures = validate(self._average, few).figures()
        return {f"training_{name}": figures[name] for name in ("pixel_accuracy", "skyrmion_iou", "skyrmion_mcc")}

    def _save_checkpoint(self) -> None:
        state = {
            "settings": _identity(self.settings),
            "network": self._network.state_dict(),
            "average": self._average.state_dict(),
            "best": self._best.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "sampler": self._sampler.state,
            "progress": {name: getattr(self._progress, name) for name in _Progress.__slots__},
        }
        partial = self._checkpoint.with_name(self._checkpoint.name + ".partial")
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, partial)
            partial.replace(self._checkpoint)
        except (OSError, RuntimeError) as error:
            raise SettingsError(f"out: checkpoint '{self._checkpoint}' cannot be written: {error}") from error

    def _resume(self) -> bool:
        if not self._checkpoint.is_file():
            return False
        try:
            state = torch.load(self._checkpoint, map_location=self._device, weights_only=True)
        except Exception as error:  # a broken file makes torch raise nearly anything
            raise SettingsError(f"out: checkpoint '{self._checkpoint}' cannot be read: {error}; delete it") from error
        if state["settings"] != _identity(self.settings):
            before, now = state["settings"], _identity(self.settings)
            key = next(key for key in now if now[key] != before.get(key))
            raise SettingsError(
                f"{key}: checkpoint '{self._checkpoint}' was made with {before.get(key)!r}, not {now[key]!r}; "
                "use those settings, or delete it to start anew"
            )
        self._network.load_state_dict(state["network"])
        self._average.load_state_dict(state["average"])
        self._best.load_state_dict(state["best"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._sampler.state = state["sampler"]
        for name, value in state["progress"].items():
            setattr(self._progress, name, value)
        return True

    @torch.no_grad()
    def _taught(self, inputs: Tensor) -> Tensor:
        """The teachers' averaged probabilities."""
        return torch.stack([self._logits(teacher, inputs).softmax(1) for teacher in self._teachers]).mean(0)

    def _ready(self, network: UNet) -> UNet:
        moved: UNet = network.to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return moved

    def _record(self) -> dict[str, Any]:
        progress, settings = self._progress, self.settings
        here = {"images", "labels", "table", "out", "threads", "more"}  # matter on this computer only
        fixed = SHAPE_KEYS if settings.start_from else set()
        step, figures = progress.best_step, progress.best_figures
        if settings.keep == "last":
            step, figures = progress.step, {key: progress.history[-1][key] for key in figures}
        return {
            "settings": settings.model_dump(mode="json", exclude=here | fixed),
            "more": [{"images": more.images.parent.name, "share": more.share} for more in settings.more],
            "images": len(self.training),
            "validation_images": len(self.validation),
            "best_step": step,
            "validation": {key: round(value, 4) for key, value in figures.items() if math.isfinite(value)},
            "seconds": round(progress.seconds),
            "torch": torch.__version__,
        }


def _network_of(key: str, name: str) -> UNet:
    """A model's network; guests, which have other classes and another scaling of the input, are refused."""
    model = load_model(name)
    if model.scaling != "percentiles" or model.shape.classes != len(Class):
        raise SettingsError(
            f"{key}: '{name}' has {model.shape.classes} classes and the input scaling '{model.scaling}'; allowed: "
            f"models of {len(Class)} classes with the scaling 'percentiles'"
        )
    return model.load_network()


def segment_with(network: UNet) -> Callable[[Image], Mask]:
    """Image -> mask by a network in float32, without objects of the other polarity."""
    device = next(network.parameters()).device
    decide = MaskNet(network).eval()

    def segment(image: Image) -> Mask:
        padded = np.empty(network.shape.padded(image.shape), np.float32)
        scale_mirrored(image, padded)
        with torch.inference_mode():
            mask: Mask = decide(torch.from_numpy(padded)[None, None].to(device)).cpu().numpy()[0, 0]
        inside = np.s_[: image.shape[0], : image.shape[1]]
        return measure(np.ascontiguousarray(mask[inside]), image=padded[inside]).mask

    return segment


def validate(network: UNet, pairs: list[LabelledImage]) -> Scores:
    """Score a network on whole images in float32."""
    return score(pairs, segment_with(network))


def _loss(logits: Tensor, target: Tensor, weights: Tensor, dice_weight: float) -> Tensor:
    # Smoothed targets: the labels were made by a machine and corrected by hand, and their borders are ragged.
    entropy = functional.cross_entropy(logits, target, label_smoothing=0.05, reduction="none")
    entropy = (weights * entropy).sum() / weights.sum()
    probability = logits.softmax(1)[:, Class.SKYRMION]
    truth = (target == Class.SKYRMION).float()
    dice = 1 - (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1)
    return entropy + dice_weight * dice


def add_bias(network: UNet, bias: float) -> None:
    """Add to the logit of class skyrmion, in place."""
    cell = network.shape.unshuffle**2
    if bias:
        with torch.no_grad():
            assert network.head.bias is not None
            network.head.bias[Class.SKYRMION * cell : (Class.SKYRMION + 1) * cell] += bias


def merit_of(scores: Scores) -> float:
    """What the best weights are chosen by: pixels, objects, counts, and a little the defects; mean over sources."""
    figures = scores.over_sources()["mean"]
    return (
        figures["skyrmion_mcc"] + figures["object_f1"] - figures["count_mape"] + 0.1 * min(figures["defect_iou"], 0.2)
    )


def _rate(step: int, settings: TrainingSettings) -> float:
    warm_up = min(1.0, (step + 1) / min(200, settings.steps / 4))
    return settings.learning_rate * warm_up * (0.5 * (1 + math.cos(math.pi * step / settings.steps)) + 0.005)


@torch.no_grad()
def _follow(average: UNet, network: UNet, decay: float) -> None:
    for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.dtype.is_floating_point:
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def _identity(settings: TrainingSettings) -> dict[str, Any]:
    """What must not change between a training and its resumption."""
    return settings.model_dump(mode="json", exclude={"out", "threads"})


def _write_history(path: Path, history: list[dict[str, float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
