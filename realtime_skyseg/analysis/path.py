"""The way of one frame, for live runs and `skyseg analyse` alike: prepared image -> mask and objects -> analysers."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import numpy as np

from realtime_skyseg.analysers import RunningAnalyser, View
from realtime_skyseg.analysers.api import NETWORK_OUTPUTS
from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.analysers.running import Found, with_columns
from realtime_skyseg.analysers.trust import Trust
from realtime_skyseg.analysis.segmenter import Segmenter
from realtime_skyseg.preparation import Preparation
from realtime_skyseg.quantities import Quantity
from realtime_skyseg.records import FRAME_QUANTITIES, Background, Class, Frame, Image, Result, Segmentation
from realtime_skyseg.segmentation.scaling import shows_nothing


class FramePath:
    """Frame in, result out. Used by one thread at a time; frames come in order.

    Args:
        segmenter: the network and the rules of measurement.
        preparation: of raw frames; None: they are segmented as they are.
        analysers: those that work in the frame's own path.
        pixel_size_um: side of a pixel on the sample, if it is known.

    Attributes:
        backgrounds, events: what came of the last frame, for the run file and the stream.
        view: of the last frame, for analysers beside the path; None if it shows nothing.
        polarity: -1 or 1 once frames that count as live have told whether skyrmions are dark or bright.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        preparation: Preparation | None = None,
        analysers: Sequence[RunningAnalyser] = (),
        pixel_size_um: float | None = None,
    ) -> None:
        self.segmenter = segmenter
        self.preparation = preparation
        self._watched = bool(analysers)
        self._trust = Trust.of(segmenter.model.trust)
        self._analysers = [analyser for analyser in analysers if analyser.pace == "every_frame"]
        self._pixel_size_um = pixel_size_um
        self._columns: list[Quantity] = [q for analyser in self._analysers for q in analyser.of("object")]
        self._first_ns: int | None = None
        self.polarity = 0
        self._seen = {"caption": False, "rings": False}  # in the frame before
        self.backgrounds: Sequence[Background] = ()
        self.events: list[tuple[str, str]] = []
        self.view: View | None = None
        self._prepared: Image | None = None
        wanted = any(set(NETWORK_OUTPUTS) & analyser.analyser.needs for analyser in analysers)
        self._outputs = segmenter.network_outputs() if wanted else None
        for one in analysers:
            if type(one.analyser).__module__.startswith(
                "realtime_skyseg."
            ):  # ours compile themselves at the first call
                _rehearse(one)
            one.analyser.reset()

    def __call__(
        self,
        frame: Frame,
        live: bool = True,
        wanted: bool = True,
        mark: Callable[[str], None] = lambda stage: None,
    ) -> Result | None:
        """The result of a frame; None if it is not wanted.

        Args:
            frame: to analyse.
            live: it is, or was, analysed in the run, so that the preparation of later frames depends on it.
            wanted: else it only passes through the preparation.
            mark: called at the end of each stage, as `Segmenter` calls it; after the analysers with "analyse".
        """
        result = Result(frame, _NOTHING)
        self.backgrounds, self.events, self.view, self._prepared = (), [], None, None
        image = frame.image
        if shows_nothing(image):
            result.segmentation = Segmentation.of_nothing(image.shape)
            result.segmentation.polarity = self.polarity
            result.segmentation.objects = with_columns(result.segmentation.objects, {}, self._columns)
            return result if wanted else None
        if self.preparation:
            ready = self.preparation(image, frame.index, keep=live)
            self.backgrounds, self.events = ready.backgrounds, list(ready.events)
            image, result.drift_px, result.drift_quality = ready.image, ready.drift_px, ready.drift_quality
            self._prepared = image
        if not wanted:
            return None
        found = self.segmenter.of_something(image, mark, self.polarity)
        for kind, seen in (("caption", found.drawn), ("rings", found.ringed)) if live else ():
            if seen != self._seen[kind]:
                self._seen[kind] = seen
                self.events.append((kind, f"since frame {frame.index} {_SEEN[kind][not seen]}"))
        inverted = found.polarity > 0
        if live and not found.guessed and found.polarity != self.polarity:
            if inverted or self.polarity:  # that they are dark is nothing to tell, unless it was otherwise before
                kind = "bright: the network is shown negatives" if inverted else "dark"
                self.events.append(("polarity", f"since frame {frame.index} skyrmions are {kind}"))
            self.polarity = found.polarity
        found.polarity = self.polarity
        result.segmentation = self.preparation.place(found) if self.preparation else found
        if self._watched:
            self._analyse(result, self.preparation.place_image(image) if self.preparation else image, inverted)
            mark("analyse")
        return result

    def prepared(self) -> Image | None:
        """The image of the last frame that was segmented, (height, width) of the frame; None: the frame itself was."""
        if self.preparation is None or self._prepared is None:
            return None
        return self.preparation.place_image(self._prepared)

    def _analyse(self, result: Result, image: np.ndarray, inverted: bool) -> None:
        """Ask the analysers."""
        frame, found = result.frame, result.segmentation
        result.values = {name: float(getattr(found, name)) for name in FRAME_QUANTITIES}
        stamp_ns = frame.camera_ns if frame.camera_ns >= 0 else frame.received_ns
        self._first_ns = stamp_ns if self._first_ns is None else self._first_ns
        self.view = View(
            frame.index, (stamp_ns - self._first_ns) / 1e9, frame.field_mT, image, found.mask, found.objects,
            result.values, self._pixel_size_um, partial(self._outputs, inverted) if self._outputs else None,
            inverted, self._trust,
        )  # fmt: skip
        for analyser in self._analysers:
            one: Found = analyser(self.view)
            result.values.update(one.values)
            result.maps.update(one.maps)
            self.view.objects = with_columns(self.view.objects, one.columns, analyser.of("object"))
            self.events += one.events
        found.objects = self.view.objects


def _rehearse(running: RunningAnalyser) -> None:
    """Let an analyser see frames of three skyrmions and a stripe, of each kind of numbers, which nobody is told of."""
    mask = np.full((64, 64), Class.BACKGROUND, np.uint8)
    for top, left, tall, wide in ((4, 4, 8, 8), (4, 40, 8, 8), (40, 4, 8, 8), (52, 20, 4, 40)):
        mask[top : top + tall, left : left + wide] = Class.SKYRMION
    for index, kind in enumerate((np.uint8, np.uint16, np.float32)):
        found = measure(mask, 10, 2.7)
        values = {"count": float(found.count or 0), "stripes": float(found.stripes or 0), "area_fraction": 0.1}
        image = (mask * 50).astype(kind)
        view = View(index, float(index), math.nan, image, mask, found.objects, values, None, None)
        with suppress(Exception):  # what it cannot do with these it may do with others
            running.analyser(view)


#: Of what is left out: the event that it is there, and that it is gone.
_SEEN = {
    "caption": ("a caption or scale bar is left out", "there is no caption any more"),
    "rings": ("interference rings are taken out", "there are no interference rings any more"),
}

_NOTHING = Segmentation.of_nothing((0, 0))
