"""The settings of `skyseg train`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from realtime_skyseg.section import Section

ClassName = Literal["background", "skyrmion", "defect", "outside", "edge"]


#: Keys of `TrainingSettings` that make the network.
SHAPE_KEYS = {"classes", "unshuffle", "filters", "depth", "doubled_from", "split_levels"}


Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class AugmentSettings(Section):
    """What is done to the crops that are learnt from: each kind has a share of the crops, and a strength."""

    inverted: Share = 0.0
    """Shown with bright skyrmions. With 0 the network knows dark ones only, and images with bright ones are inverted
    for it when it is used; above 0 it has to be blind to what is dark and what is bright, which costs accuracy."""
    empty: Share = 0.15
    """Films without any object: noise, correlated over up to `empty_blur_px`, illumination and dirt."""
    empty_blur_px: Annotated[float, Field(ge=0, le=5)] = 1.2
    """Largest standard deviation of the blur that correlates the noise of empty films."""
    domains: Share = 0.0
    """Large domains in little noise: what a frame shows that was made smaller, until the network sees them whole."""
    patterned: Share = 0.2
    """Continuous films cut into elements with an edge and an outside."""
    dirty: Share = 0.2
    """With specks and scratches as they look after a drift."""
    averaged: Share = 0.2
    """Mean of two frames of a video in which little has moved."""
    rotated: Share = 0.3
    """Turned by any angle; the others by quarters."""
    zoom: Range = (0.5, 1.7)
    """Smallest and largest enlargement."""
    blurred: Share = 0.3
    """Blurred by `blur_px`."""
    blur_px: Range = (0.3, 1.2)
    """Standard deviation of the blur, smallest and largest."""
    noisy: Share = 0.5
    """With white noise added."""
    noise: Annotated[float, Field(ge=0)] = 1.5
    """Most added noise, in units of the image's own."""
    least_cnr: Annotated[float, Field(ge=0)] = 1.0
    """No noise is added beyond this ratio of contrast to noise: labels of what cannot be seen teach to guess."""
    contrast: Annotated[float, Field(ge=0)] = 0.3
    """Standard deviation of the logarithm of a factor on the grey levels."""
    offset: Annotated[float, Field(ge=0)] = 0.15
    """Standard deviation of what is added to all pixels, in units of the image's contrast."""
    sloped: Share = 0.3
    """With a slope of the illumination of `slope`."""
    slope: Annotated[float, Field(ge=0)] = 0.3
    """Standard deviation of the slope, from the middle to the border."""
    ringed: Share = 0.0
    """With interference rings; 40 % of the empty films at least, unless it is 0. So it is with `dirty`."""
    rings: Annotated[float, Field(ge=0)] = 0.3
    """Largest amplitude of the rings, in units of the image's contrast."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        for name in ("zoom", "blur_px"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is [{low}, {high}]; allowed: [smallest, largest]")
        return self


class MoreImages(Section):
    """Images to learn from beside the others, for example simulated ones; none is scored on."""

    images: Path
    """Folder of images."""
    labels: Path
    """Folder of label pictures of the same names."""
    table: Path | None = None
    """CSV with the columns image, source_id, fold, or the published data set's own table.csv; absent: each image is a
    source of its own."""
    share: Share
    """Of the crops that show an image."""


class TrainingSettings(Section):
    """What `skyseg train` needs to know."""

    images: Path
    """Folder of images."""
    labels: Path
    """Folder of label pictures of the same names: colours, or class numbers in a single channel."""
    label_values: dict[int, ClassName] | None = None
    """What the numbers of single-channel labels mean; absent: 0 background, 1 skyrmion, 2 defect, 3 outside, 4 edge."""
    instance_labels: bool = False
    """Labels of other tools: each skyrmion has a number of its own above 0."""
    table: Path | None = None
    """CSV with the columns image, source_id, fold, or the published data set's own table.csv; absent: each image is a
    source of its own."""
    train_folds: Annotated[list[int], Field(min_length=1)] | None = None
    """Folds to learn from; needs `validate_folds`."""
    validate_folds: Annotated[list[int], Field(min_length=1)] | None = None
    """Folds to score on; never among `train_folds`."""
    validate_sources: Annotated[list[str], Field(min_length=1)] | None = None
    """Without folds: sources to score on; all others are learnt from."""
    validate_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """With neither: share of the sources to score on, drawn by `seed`."""
    more: list[MoreImages] = []
    """Further images to learn from, each with its share of the crops; the rest comes from `images`."""
    out: Path
    """The model file to write; beside it a folder with curves and a table, and, until the end, a checkpoint."""
    start_from: str | None = None
    """Go on from a shipped model or a file, instead of from random weights; it also fixes the network."""
    teachers: list[str] = []
    """Models whose averaged probabilities are learnt beside the labels (distillation)."""
    classes: Literal[3, 5] = 5
    """5: as in the labels; 3: edge and outside count as background."""
    class_weights: dict[ClassName, Annotated[float, Field(ge=0)]] = {"skyrmion": 1.2, "defect": 3.0, "edge": 1.5}
    """How much a pixel of a class counts in the loss; 1 for classes that are not named."""
    small_weight: Annotated[float, Field(ge=1)] = 1.7
    """Pixels of skyrmions below 100 px^2 count up to so many times, so that it is not cheaper to miss a small one."""
    dice: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the soft Dice loss of class skyrmion, beside the cross-entropy. It draws borders further out."""
    skyrmion_bias: Annotated[float, Field(ge=-5, le=5)] = 0.0
    """Added to the logit of class skyrmion in the model that is written, for every engine. Below 0 borders are drawn
    further in; `skyseg train --leave-out` tells which value is best on samples that were left out."""
    keep: Literal["best", "last"] = "best"
    """The weights to write: the best on the validation images, or the last, which those images had no say in."""
    augment: AugmentSettings = AugmentSettings()
    """What is done to the crops."""
    steps: Annotated[int, Field(ge=1)] = 3000
    """Optimiser steps."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Crops per step."""
    crop_px: Annotated[int, Field(ge=64, multiple_of=32)] = 192
    """Side of a crop."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Peak of the schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    """Of AdamW."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    """Of the moving average of the weights."""
    validate_every: Annotated[int, Field(ge=1)] = 200
    """Steps between two scores on the validation images, and between two checkpoints."""
    seed: int = 0
    """Of weights, sampling and augmentation."""
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    """CPU threads; absent: one per core."""
    unshuffle: Literal[1, 2, 4] = 2
    """The network works on 1/unshuffle of the image's grid."""
    filters: Annotated[int, Field(ge=4, le=128)] = 16
    """Channels of the first level."""
    depth: Annotated[int, Field(ge=1, le=5)] = 3
    """Levels above the lowest."""
    doubled_from: Annotated[int, Field(ge=1, le=5)] = 1
    """The first level, counted from 0, that has twice the channels of the one above; so on below."""
    split_levels: Annotated[int, Field(ge=0, le=6)] = 0
    """Levels, from the first, with convolutions of 1x3 and 3x1 in the place of 3x3: two thirds of the work."""

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        if (self.train_folds is None) != (self.validate_folds is None):
            raise ValueError("train_folds and validate_folds are set together, or neither")
        if self.train_folds and self.table is None:
            raise ValueError("train_folds needs the table that names the folds (table: CSV with column 'fold')")
        if self.train_folds and self.validate_sources:
            raise ValueError("validate_sources and folds exclude each other; allowed: one of them")
        both = set(self.train_folds or ()) & set(self.validate_folds or ())
        if both:
            raise ValueError(
                f"validate_folds has fold {sorted(both)[0]}, which is among train_folds; allowed: folds not trained on"
            )
        if sum(more.share for more in self.more) > 1:
            raise ValueError(f"more: shares add up to {sum(more.share for more in self.more):g}; allowed: at most 1")
        fixed = SHAPE_KEYS & self.model_fields_set
        if self.start_from and fixed:
            raise ValueError(f"{sorted(fixed)[0]} is fixed by the model of start_from; leave it out")
        return self
