"""One image in, its mask and objects out: the code that live runs, offline analysis and evaluation share."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.analysis.broken import close_gaps
from realtime_skyseg.analysis.large_domains import (
    FACTOR,
    LEAST_PX2,
    add_large_domains,
    may_show_large_domains,
    smaller_image,
)
from realtime_skyseg.analysis.outside import keep_bordered
from realtime_skyseg.analysis.specks import mark_specks
from realtime_skyseg.config import AnalysisSettings, EngineChoice, MeasureSettings
from realtime_skyseg.errors import FrameError
from realtime_skyseg.preparation.caption import Drawn, find_drawn
from realtime_skyseg.preparation.rings import without_rings
from realtime_skyseg.records import Class, Image, Mask, Polarity, Segmentation
from realtime_skyseg.segmentation import Engine, Model, load_model, open_engine
from realtime_skyseg.segmentation.noise import looks_like_noise
from realtime_skyseg.segmentation.scaling import as_image, scale_mirrored, shows_nothing

#: Smaller than this (cells of `FACTOR`), an image is not looked at a second time for large domains.
_LEAST_CELLS = 40

#: Fewer objects than this, or objects whose contrast, in units of the image's, times area is less (px), tell no
#: polarity: a speck of dirt is bright on one side and dark on the other.
_OBJECTS, _EVIDENCE = 5, 100.0

#: Around an object the film's level is a mean over a square of this side; noise is taken away by a Gaussian of this
#: standard deviation (px). With more outside and edge than this share, grey levels are more than two.
_AROUND_PX, _CALM_PX, _PATTERNED, _LEAST_UNEXPLAINED = 61, 1.5, 0.01, 0.05

#: The most that a single object tells.
_OF_ONE = 20.0

#: If dark or bright is known, what speaks for the other has to be so many times as much to be believed. On the 119
#: labelled images what speaks for the true one is at least 4.8 times the other (compact).
_SURPRISE = 2.0

#: In an image that looks like noise, what speaks for one polarity has to be so many times what speaks for the other,
#: and more by so much of the image's px. In 450 fields of 320x448 px with noise correlated over 1 to 3 px the larger
#: was at most 90 px where it was more than 1.5 times the other.
_SIGNAL, _LEAST_SIGNAL = 1.5, 7e-4

#: In noise, what is believed of one polarity, in relation to what it leaves unexplained, is at most 1.3 times that of
#: the other where there is much of it (60 such fields); in faint films with as much in the negative at least 2.9 times.
_LOPSIDED = 2.0


class Segmenter:
    """A model with its engine and the rules of measurement. Used by one thread at a time.

    >>> import realtime_skyseg as sky
    >>> segmentation = sky.Segmenter.load("compact")(image)
    >>> segmentation.count > 0, segmentation.mask.shape
    (True, (512, 672))

    The engine is made for one frame size: on the first image, or by `open`; another size makes another engine.
    """

    def __init__(
        self,
        model: Model,
        analysis: AnalysisSettings | None = None,
        measure: MeasureSettings | None = None,
        cache: Path | None = None,
    ) -> None:
        self.model = model
        self._settings = analysis or AnalysisSettings()
        self._rules = measure or MeasureSettings()
        self._cache = cache
        # What is done to the mask goes by what is dark; and networks that know dark skyrmions only have seen large
        # domains.
        self._dark_only = model.polarity == "dark"
        self._engine: Engine | None = None
        self._small_engine: Engine | None = None  # for the image made smaller
        self._shape = (0, 0)
        self._drawn: Drawn | None = None  # in the image in work
        self._large = False  # it may show large domains
        self._large_domains = 0  # that it shows

    @classmethod
    def load(
        cls,
        model: str = "compact",
        engine: EngineChoice = "auto",
        threads: int | None = None,
        min_area_px: int = 10,
        stripe_slenderness: float = 2.7,
        polarity: Polarity = "auto",
    ) -> Self:
        """Load a shipped model by name, or any model by path.

        Raises:
            SettingsError: there is no such model.
            ModelError: the file is not a model.
        """
        analysis = AnalysisSettings(model=model, engine=engine, threads=threads)
        measure = MeasureSettings(min_area_px=min_area_px, stripe_slenderness=stripe_slenderness, polarity=polarity)
        return cls.of(analysis, measure)

    @classmethod
    def of(cls, analysis: AnalysisSettings, measure: MeasureSettings) -> Self:
        """A segmenter with the settings of a run. Raises what `load` raises."""
        return cls(load_model(analysis.model), analysis, measure)

    @property
    def rules(self) -> MeasureSettings:
        """What counts as an object, and as a stripe."""
        return self._rules

    @property
    def engine(self) -> Engine:
        """The engine in use; raises `FrameError` before the first image."""
        if self._engine is None:
            raise FrameError("the engine is made with the first image: call open(shape) or segment one")
        return self._engine

    def open(self, shape: tuple[int, int]) -> Engine:
        """Make the engine for images of (height, width) ready, unless it is."""
        if self._engine is None or shape != self._shape:
            self._engine = self._open(shape)
            self._shape, self._small_engine = shape, None
            if self._dark_only and self._settings.large_domains and min(shape) >= FACTOR * _LEAST_CELLS:
                small = shape[0] // FACTOR, shape[1] // FACTOR
                self._small_engine = self._open(small)
            # What compiles itself at the first call does so here, not in the midst of a run.
            rehearsed = np.zeros(shape, np.uint8)
            rehearsed[2:6, 2:5] = rehearsed[2:6, 7:10] = Class.SKYRMION
            rehearsed[9:12, 2:6] = Class.OUTSIDE
            if self._dark_only:
                keep_bordered(rehearsed)
                close_gaps(rehearsed, self._shown())
            self._measure(rehearsed)
        return self._engine

    def _open(self, shape: tuple[int, int]) -> Engine:
        return open_engine(self.model, shape, self._settings.engine, self._settings.threads, self._cache)

    def __call__(
        self, image: Image, mark: Callable[[str], None] = lambda stage: None, polarity: int = 0
    ) -> Segmentation:
        """Segment and measure an image.

        Args:
            image: (height, width) of 16 px or more, integers or floats; dark or bright skyrmions.
            mark: called at the end of each stage: "prepare", "segment", "measure".
            polarity: -1 or 1 if earlier images of the film have told that skyrmions are dark or bright; 0: nothing is
                known. A network that knows dark ones only is then shown the image and its negative, which takes twice
                as long, and so it is if nothing is found, or more than half of the sample. In a run file: the column
                `polarity` of the frame that was analysed before.

        Returns:
            the mask, the objects and their numbers; `None` for the numbers of an image that is the same everywhere.

        Raises:
            FrameError: another shape or kind of numbers.
        """
        if shows_nothing(as_image(image)):
            return Segmentation.of_nothing((image.shape[0], image.shape[1]))
        return self.of_something(image, mark, polarity)

    def of_something(
        self, image: Image, mark: Callable[[str], None] = lambda stage: None, polarity: int = 0
    ) -> Segmentation:
        """As a call, for an image that is known to show something."""
        image = as_image(image)
        self._drawn = find_drawn(image) if self._settings.captions else None
        if self._drawn:
            image = self._drawn.without(image)
        clean = without_rings(image) if self._settings.rings else None
        found = self._decide(image if clean is None else clean, mark, polarity)
        found.drawn, found.ringed = self._drawn is not None, clean is not None
        return found

    def _decide(self, image: Image, mark: Callable[[str], None], polarity: int) -> Segmentation:
        """Which polarity, and whether there is anything."""
        if not self._dark_only:
            return self._once(image, False, mark)
        told = {"dark": -1, "bright": 1}.get(self._rules.polarity, 0)
        known = told or polarity
        found = self._once(image, known > 0, mark)
        found.polarity = known or -1
        noise = not self._large and looks_like_noise(self._shown())
        nothing, much = not len(found.objects), found.area_fraction > 0.5
        if known and (nothing if noise else told or not (nothing or much)):
            return found
        evidence, believed = self._evidence(found)
        other = self._once(image, known <= 0, lambda stage: mark(stage) if stage != "prepare" else None)
        other.polarity = -found.polarity
        surprise, doubted = self._evidence(other)
        if self._rules.polarity == "both":
            found.mask[other.mask == Class.SKYRMION] = Class.SKYRMION
            return measure(found.mask, self._rules.min_area_px, self._rules.stripe_slenderness)
        least, most = sorted((evidence, surprise))
        few = _LEAST_SIGNAL * image.size
        # As much in the negative, and as well explained by it: noise is symmetric. Faint stripes are not.
        lopsided = most > few and max(believed, doubted) > _LOPSIDED * min(believed, doubted)
        if noise and most < _SIGNAL * least + few and not lopsided:
            found.mask[found.mask == Class.SKYRMION] = Class.BACKGROUND
            empty = measure(found.mask, self._rules.min_area_px, self._rules.stripe_slenderness)
            return replace(empty, polarity=found.polarity, guessed=not known)
        if known:
            turned = len(other.objects) >= _OBJECTS and surprise > _EVIDENCE and doubted > _SURPRISE * believed
            return other if turned and not told else found
        chosen = other if doubted > believed else found
        chosen.guessed = len(chosen.objects) < _OBJECTS or most < _EVIDENCE
        return chosen

    def _evidence(self, found: Segmentation) -> tuple[float, float]:
        """How much speaks for what was found: how dark it is against the film around, times its area, object by object.

        No object says more than `_OF_ONE`, but for a large domain that the second look has found in a plain film: what
        lies beside an element is large, too, and dark in one of the two.

        Returns:
            that, and the same in relation to what it leaves unexplained of the image: between skyrmions that are packed
            the negative has as much that is dark, but its film is not of one grey level.
        """
        scaled = self._shown()
        film, skyrmions = found.mask == Class.BACKGROUND, found.mask == Class.SKYRMION
        _, labels = cv2.connectedComponents(skyrmions.astype(np.uint8), connectivity=8)
        darker = (_level_of(scaled, film)[skyrmions] - scaled[skyrmions]).clip(-1, 1)  # magnetic contrast is at most 1
        of_objects, area = np.bincount(labels[skyrmions], darker), np.bincount(labels[skyrmions])
        patterned = np.count_nonzero(found.mask >= Class.OUTSIDE) > _PATTERNED * found.mask.size
        trusted = (area >= LEAST_PX2) & (self._large_domains > 0 and not patterned)
        evidence = float(np.where(trusted, of_objects, np.minimum(of_objects, _OF_ONE)).sum())
        return evidence, evidence / (1.0 if patterned else _unexplained(scaled, film, skyrmions))

    def _shown(self) -> NDArray[np.float32]:
        """What the network was shown last, without what was mirrored."""
        return self.engine.input[: self._shape[0], : self._shape[1]]

    def _once(self, image: Image, inverted: bool, mark: Callable[[str], None]) -> Segmentation:
        self._prepare(image, inverted)
        self._large = self._small_engine is not None and may_show_large_domains(self._shown())
        mark("prepare")
        mask = self._segment()
        small = self._segment_smaller() if self._large else None
        mark("segment")
        self._mend(mask, small)
        segmentation = self._measure(mask)
        mark("measure")
        return segmentation

    def _prepare(self, image: Image, inverted: bool) -> None:
        """Scale the image into the engine's input, mirrored beyond the lower and right border."""
        scale_mirrored(image, self.open((image.shape[0], image.shape[1])).input, self.model.scaling, inverted)

    def _segment(self) -> Mask:
        """The mask (height, width) of what was prepared, owned by the caller."""
        mask = self.engine.run()
        return np.ascontiguousarray(mask[: self._shape[0], : self._shape[1]]).copy()

    def _segment_smaller(self) -> tuple[Mask, NDArray[np.float32]]:
        """Mask and scaled image of what was prepared, made smaller."""
        assert self._small_engine is not None
        small, engine = smaller_image(self._shown()), self._small_engine
        scale_mirrored(small, engine.input)
        part = np.s_[: small.shape[0], : small.shape[1]]
        return engine.run()[part], engine.input[part]

    def _mend(self, mask: Mask, small: tuple[Mask, NDArray[np.float32]] | None) -> None:
        """What is done to a mask after the network, in place."""
        if self._dark_only:
            keep_bordered(mask)
        if self._dark_only and self._settings.close_gaps:
            close_gaps(mask, self._shown())
        self._large_domains = add_large_domains(mask, *small, self._shown()) if small else 0
        if self._drawn:
            self._drawn.put(mask, Class.OUTSIDE)
        if self._dark_only and self._settings.specks:
            mark_specks(mask, self._shown())

    def _measure(self, mask: Mask) -> Segmentation:
        """The objects of the mask of what was prepared, after taking those of the other polarity out.

        What is prepared for a network that knows dark ones only has dark ones only.
        """
        polarity = self._rules.polarity if self.model.polarity == "any" else "dark"
        # Guests are left as they are: their input is not scaled to a median of 0.
        scaled = self._shown() if self.model.scaling == "percentiles" else None
        return measure(mask, self._rules.min_area_px, self._rules.stripe_slenderness, scaled, polarity)

    def network_outputs(self) -> Callable[[bool, str, Image], NDArray[np.float32]]:
        """Whether the negative is shown, name of an output of the network, and image -> that output, as in `View`.

        By torch on the CPU, whatever the engine: engines give only the class, which costs least.
        """
        from realtime_skyseg.segmentation.reference import outputs

        output_of = outputs(self.model)
        shape = self.model.shape

        def of_image(inverted: bool, name: str, image: Image) -> NDArray[np.float32]:
            image = as_image(image)
            height, width = image.shape
            scaled = np.empty(shape.padded(image.shape), np.float32)
            scale_mirrored(image, scaled, self.model.scaling, inverted)
            found = output_of(name, scaled)
            if name == "probability":
                return found[Class.SKYRMION, :height, :width]
            cell = shape.multiple
            return found[:, : -(-height // cell), : -(-width // cell)]

        return of_image


def _level_of(scaled: NDArray[np.float32], film: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The film's level around each pixel: what is taken for film may be a darker substrate elsewhere."""
    side = (_AROUND_PX, _AROUND_PX)
    share: Any = cv2.blur(film.astype(np.float32), side)
    level: Any = cv2.blur(np.where(film, scaled, np.float32(0)), side)
    whole = float(scaled[film].mean()) if film.any() else 0.0
    return np.where(share > 0.02, level / np.maximum(share, np.float32(0.02)), np.float32(whole))


def _unexplained(scaled: NDArray[np.float32], film: NDArray[np.bool_], skyrmions: NDArray[np.bool_]) -> float:
    """Share of the variance of the image, without its noise, that is not between film and skyrmions; N. Otsu, 1979."""
    calm: Any = cv2.GaussianBlur(scaled, (0, 0), _CALM_PX)[::2, ::2]
    film, skyrmions = film[::2, ::2], skyrmions[::2, ::2]
    n_film, n_dark = np.count_nonzero(film), np.count_nonzero(skyrmions)
    if not (n_film and n_dark) or calm[skyrmions].mean() > calm[film].mean():
        return 1.0
    within = n_film * calm[film].var() + n_dark * calm[skyrmions].var()
    return float(max(within / max((n_film + n_dark) * calm[film | skyrmions].var(), 1e-12), _LEAST_UNEXPLAINED))
