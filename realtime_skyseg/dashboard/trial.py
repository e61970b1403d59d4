"""One image, segmented with the settings in hand."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from realtime_skyseg.analysis import Segmenter
from realtime_skyseg.config import Config
from realtime_skyseg.dashboard.feed import About, Series, Shown
from realtime_skyseg.preparation import Preparation
from realtime_skyseg.records import FRAME_QUANTITIES, Event, Image, Segmentation
from realtime_skyseg.streaming.preview import eight_bits


class Trial:
    """An image that is segmented anew whenever the settings change. Has what a `Feed` has.

    Args:
        image: (height, width).
        name: of its file.
        config: the settings; `use` takes others.
        side_px: longer side of what is shown, at most.
    """

    live = False
    address = problem = control_address = ""
    lost = 0
    silent_s = 0.0

    def __init__(self, image: Image, name: str, config: Config, side_px: int = 1024) -> None:
        self.image, self.name = image, name
        self.about: About | None = None
        self.series, self.events = Series(), deque[Event]()
        self.counters: dict[str, Any] = {}
        self.ended: tuple[str, str] | None = None
        self.shown: Shown | None = None
        self.found: Segmentation | None = None
        self._side_px = side_px
        self._raw = False
        self._prepared: Image | None = None
        self._segmenter: Segmenter | None = None
        self._used: Config | None = None
        self._listeners: list[Callable[[], None]] = []
        self.use(config)

    def use(self, config: Config) -> None:
        """Segment with these settings. Raises what the segmenter and the preparation raise."""
        before = self._used
        if self._segmenter is None or before is None or (before.analysis, before.measure) != (
            config.analysis, config.measure
        ):  # fmt: skip
            self._segmenter = Segmenter.of(config.analysis, config.measure)
        self._prepared, image, preparation = None, self.image, None
        if config.prepare:
            height, width = self.image.shape
            preparation = Preparation(config.prepare, (height, width))
            image = preparation(self.image, 0).image
            self._prepared = preparation.place_image(image)
        found = self._segmenter(image)
        self.found = preparation.place(found) if preparation else found
        self._used = config
        model = config.analysis.model
        self.about = About("", self.name, model, self._segmenter.engine.name, config.measure.pixel_size_um,
                           FRAME_QUANTITIES)  # fmt: skip
        self._show()

    def want(self, viewer: object, rate_hz: int, raw: bool = False) -> None:
        """The image as it is, or prepared."""
        del viewer, rate_hz
        if raw != self._raw:
            self._raw = raw
            self._show()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call this when there is something else to show. Gives what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def close(self) -> None:
        """Nothing is open."""

    def _show(self) -> None:
        found = self.found
        assert found is not None
        prepared = self._prepared is not None and not self._raw
        small, low, high = eight_bits(self._prepared if prepared and self._prepared is not None else self.image,
                                      self._side_px)  # fmt: skip
        area = found.area_fraction
        self.shown = Shown(0, small, low, high, found.mask, found.objects, found.count, found.stripes,
                           float(area) if np.isfinite(area) else None, None, 0, prepared)  # fmt: skip
        for listener in list(self._listeners):
            listener()
