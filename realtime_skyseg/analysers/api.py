"""What an analyser must offer, and what it is given.

An analyser is a class under the entry point group `realtime_skyseg.analysers`, found by its name, like a camera:

    [project.entry-points."realtime_skyseg.analysers"]
    mean_grey = "my_package:MeanGrey"

and is switched on by its name in the settings: `analysers: {mean_grey: {...}}`, where its own settings stand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.quantities import Quantity
from realtime_skyseg.records import Image, Mask, Objects
from realtime_skyseg.section import Section

if TYPE_CHECKING:
    from realtime_skyseg.analysers.looks import Looks
    from realtime_skyseg.analysers.objects import Runs
    from realtime_skyseg.analysers.trust import Trust

#: What an analyser may ask for beyond the image, the mask and the objects, which are always there.
NETWORK_OUTPUTS = ("probability", "features")


class AnalyserSettings(Section):
    """Base of an analyser's settings."""


@dataclass(slots=True)
class View:
    """One analysed frame, as analysers see it. Nothing in it may be changed, or kept beyond the call without a copy."""

    frame: int  # index in the run
    time_s: float  # hand-over by the camera, or the recording's own time, since the first frame
    field_mT: float  # NaN: unknown
    image: Image  # (height, width) as it was segmented: prepared, if the settings have a section prepare
    mask: Mask  # (height, width) uint8 of `Class`, of the frame's size
    objects: Objects  # one row per object, `OBJECT_DTYPE` and the columns of analysers before
    values: dict[str, float]  # the frame's quantities so far: count, stripes, area_fraction, those of analysers before
    pixel_size_um: float | None = None
    output_of: Callable[[str, Image], NDArray[np.float32]] | None = None
    inverted: bool = False  # skyrmions are bright
    trust: "Trust | None" = None  # how far the model's results can be believed; None: it was not calibrated
    told: list[tuple[str, str]] = field(default_factory=list)
    _runs: "tuple[Runs, int] | None" = None
    _looks: "Looks | None" = None

    def tell(self, kind: str, message: str) -> None:
        """An event, for the run file and the stream: a word for what it is, and a sentence."""
        self.told.append((kind, message))

    @property
    def probability(self) -> NDArray[np.float32]:
        """(height, width) float32: how likely the network takes each pixel for skyrmion. Only if `needs` names it."""
        return self._output("probability")

    @property
    def runs(self) -> "tuple[Runs, int]":
        """The runs of class skyrmion along rows, and of how many components: see `analysers.objects.find_runs`."""
        from realtime_skyseg.analysers.objects import find_runs  # numba, which clients do without

        if self._runs is None:
            self._runs = find_runs(self.mask)
        return self._runs

    @property
    def looks(self) -> "Looks":
        """What frame and objects look like: see `analysers.looks.looks_of`."""
        from realtime_skyseg.analysers.looks import looks_of

        if self._looks is None:
            self._looks = looks_of(self.image, self.mask, self.objects, self.runs, self.inverted)
        return self._looks

    @property
    def features(self) -> NDArray[np.float32]:
        """(channels, rows, columns) float32: what the network holds at its lowest level, one cell for so many pixels as
        `2**depth * unshuffle` of the model gives, from the image's left upper corner on. Only if `needs` names it.
        """
        return self._output("features")

    def _output(self, name: str) -> NDArray[np.float32]:
        if self.output_of is None:
            raise AttributeError(f"{name}: this analyser's `needs` does not name it")
        return self.output_of(name, self.image)


class Analyser:
    """Base of an analyser; a class of the same attributes that does not inherit from it is as good.

    One object serves one run, in one thread. `__call__` gives the values of a frame by the names of `quantities`; what
    it leaves out has no value for that frame.
    """

    #: Its section of the settings.
    Settings: ClassVar[type[AnalyserSettings]] = AnalyserSettings

    #: What it finds. Of "frame": one number; of "object": an array, one value per row of `View.objects`; of "map": a
    #: two-dimensional array, one value per `cell_px` x `cell_px` pixels of the frame, for the frames it likes.
    quantities: ClassVar[tuple[Quantity, ...]] = ()

    #: Of `NETWORK_OUTPUTS`.
    needs: ClassVar[frozenset[str]] = frozenset()

    #: `every_frame`: in the frame's own path, which waits for it: a millisecond or two. `when_idle`: in a thread of its
    #: own, with the newest frame whenever the one before is done; then it can have no quantities of "object".
    pace: ClassVar[Literal["every_frame", "when_idle"]] = "every_frame"

    def __init__(self, settings: AnalyserSettings) -> None:
        self.settings = settings

    def __call__(self, view: View) -> Mapping[str, Any]:
        """The values of a frame."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """What to tell of it in the summary of the run, as JSON."""
        return {}

    def reset(self) -> None:
        """Forget what was before: the frames have another size from now on, or another run begins."""
