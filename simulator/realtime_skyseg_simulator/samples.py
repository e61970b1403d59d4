"""What every simulated sample offers, its settings, and how one is opened.

Two kinds: `film` (`film.py`, a phase field: hysteresis, stripes, skyrmions) and `particles`
(`particles.py`, diffusing skyrmions). Both can be cut into an element (`patterns.py`).
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, ValidationError

from realtime_skyseg import config
from realtime_skyseg.devices import DriverSettings
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import Class, Mask

FloatImage = NDArray[np.float32]

Pattern = Literal["none", "disc", "triangle", "wire", "hall_bar"]

#: Smaller objects are not counted, as by the service.
MIN_OBJECT_PX = 10
#: Objects of at least this many times the area of the largest disc inside them are stripes, as for the service.
STRIPE_SLENDERNESS = 3.0


class FilmSettings(DriverSettings):
    """Parameters of the phase field; lengths in px, the rest in the model's own units.

    gamma 0.6-0.8 and thickness 10-20 give skyrmions.
    """

    alpha: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Anisotropy: depth of the two wells of phi."""
    beta: Annotated[float, Field(gt=0, le=10)] = 1.1
    """Exchange."""
    gamma: Annotated[float, Field(ge=0, le=2)] = 0.7
    """Dipolar coupling."""
    thickness: Annotated[float, Field(gt=0, le=100)] = 14.0
    """Of the film: d in K(k)."""
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.03
    anisotropy_disorder: Annotated[float, Field(ge=0, le=1)] = 0.08
    """Standard deviation of the frozen random anisotropy, relative to alpha."""
    pinning: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Standard deviation of the frozen random field."""
    disorder_length: Annotated[float, Field(ge=0, le=50)] = 2.5
    """Correlation length of both."""
    time_step: Annotated[float, Field(gt=0, le=0.5)] = 0.4
    pulse_alpha: Annotated[float, Field(gt=0, le=2)] = 0.2
    """An in-plane field tilts the magnetisation, which weakens the two wells to this ..."""
    pulse_temperature: Annotated[float, Field(ge=0, le=1)] = 0.15
    """... and stirs it with this temperature."""
    pulse_steps: Annotated[int, Field(ge=1)] = 50
    """Length of a pulse that nucleates an ensemble of skyrmions (`Film.pulse`)."""


class _SampleSettings(DriverSettings):
    """What both kinds of samples share."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of all that is random in the sample."""
    pattern: Pattern = "none"
    """Element that the sample is cut into; `none`: a film larger than the view."""
    pattern_size: Annotated[float, Field(ge=0.1, le=1)] = 0.75
    """Extent of the element, as a share of the view."""
    annihilation_mT: Annotated[float, Field(gt=0)] = 3.7
    """Out-of-plane field at which the last skyrmions vanish: sets the scale of the field."""
    in_plane_threshold_mT: Annotated[float, Field(gt=0)] = 20.0
    """In-plane fields of at least this size nucleate."""


class FilmSampleSettings(_SampleSettings):
    """A sample of kind `film`."""

    kind: Literal["film"] = "film"
    steps_per_s: Annotated[float, Field(gt=0, le=10_000)] = 96.0
    """Time steps of the model per second: its speed is free."""
    scale: Annotated[float, Field(ge=0.5, le=8)] = 1.0
    """Pixels of the camera per pixel of the model: at 2, skyrmions are twice as large (and four times as cheap)."""
    start: Literal["skyrmions", "saturated", "demagnetised"] = "skyrmions"
    """State at the beginning: skyrmions after an in-plane pulse, all up, or stripes after a random state."""
    start_mT: float = 1.2
    """Out-of-plane field under which that state is made."""
    film: FilmSettings = FilmSettings()


class ParticleSampleSettings(_SampleSettings):
    """A sample of kind `particles`."""

    kind: Literal["particles"] = "particles"
    skyrmions: Annotated[int, Field(ge=1, le=5000)] = 300
    """In the whole sample, at the beginning."""
    pixel_um: Annotated[float, Field(gt=0)] = 0.2
    """Side of a pixel on the sample."""
    diameter_um: Annotated[float, Field(gt=0)] = 2.6
    """Mean diameter without field; it shrinks as the field rises."""
    diameter_spread: Annotated[float, Field(ge=0, le=0.3)] = 0.1
    """Relative standard deviation of the diameters."""
    annihilation_spread: Annotated[float, Field(ge=0, le=0.3)] = 0.1
    """Relative standard deviation of the fields at which single skyrmions vanish: twice this below annihilation_mT in
    the mean, small ones first, the last ones at annihilation_mT."""
    ellipticity: Annotated[float, Field(ge=0, le=0.5)] = 0.06
    """How much they differ from discs: standard deviation of the logarithm of an axis relative to the diameter."""
    diffusion_um2_per_s: Annotated[float, Field(ge=0, le=20)] = 0.3
    """Diffusion coefficient of a free skyrmion."""
    repulsion_kT: Annotated[float, Field(ge=0, le=100)] = 5.0
    """Energy of two skyrmions that touch, and of one that touches an edge."""
    repulsion_um: Annotated[float, Field(gt=0)] = 0.3
    """Length over which the repulsion decays by a factor of e."""
    pins: Annotated[int, Field(ge=0, le=20_000)] = 600
    """Pinning sites in the whole sample."""
    pin_depth_kT: Annotated[float, Field(ge=0, le=50)] = 3.0
    """Mean depth of a site; depths are distributed exponentially."""
    pin_radius_um: Annotated[float, Field(gt=0)] = 0.4
    """Standard deviation of a site's Gaussian well."""
    drive_um_per_s: float = 0.0
    """Velocity that a drive to the right gives a free skyrmion."""
    hall_angle_deg: Annotated[float, Field(ge=-90, le=90)] = 3.0
    """Angle between a force and the motion that it causes; positive: clockwise as seen in the image."""
    nucleation_s: Annotated[float, Field(gt=0)] = 0.05
    """Time constant with which an in-plane pulse brings vanished skyrmions back."""
    wall_px: Annotated[float, Field(gt=0, le=10)] = 1.5
    """Half width of the walls in the magnetisation, tanh(distance / wall_px)."""


def _choose(tree: object) -> object:
    """Validate the settings of the kind that they name, so that a fault names that kind's keys."""
    if not isinstance(tree, dict):
        return tree
    kinds: dict[object, type[FilmSampleSettings | ParticleSampleSettings]] = {
        "film": FilmSampleSettings,
        "particles": ParticleSampleSettings,
    }
    kind = tree.get("kind", "film")
    if kind not in kinds:
        raise SettingsError(f"sample.kind: {kind!r} is not allowed; allowed: {', '.join(map(str, kinds))}")
    try:
        return kinds[kind].model_validate(tree)
    except ValidationError as error:
        raise SettingsError(config.sentence(error, kinds[kind], prefix="sample")) from None


#: Settings of a sample of either kind; `kind` says which, film unless given.
SampleSettings = Annotated[FilmSampleSettings | ParticleSampleSettings, BeforeValidator(_choose)]


@dataclass(frozen=True, slots=True)
class Truth:
    """What is in a sample or an image, known exactly: for scoring, never for the analysis."""

    mask: Mask  # (H, W) uint8, values of `Class`: background, skyrmion (and stripe), and, of elements, outside and edge
    positions_px: NDArray[np.float32]  # (N, 2) x, y of the skyrmions' centres
    count: int  # skyrmions: compact objects; stripes and mazes are in the mask, but not counted


class Sample(Protocol):
    """A magnetic sample in a field. The same seed and calls give the same states bit for bit."""

    #: (H, W) of the sample in px: the view and a margin on every side.
    shape: tuple[int, int]
    #: (H, W) bool, True where there is magnetic material; None: everywhere.
    element: NDArray[np.bool_] | None

    def advance(self, seconds: float, field_mT: float, in_plane_mT: float = 0.0) -> None:
        """Let time pass under an out-of-plane and an in-plane field; one call per frame, or per part of one.

        An alternating field is a field that differs from call to call. Raises `SettingsError` for values that are not
        finite, and for negative time.
        """

    def magnetisation(self) -> FloatImage:
        """(H, W) float32, about -1 (down: skyrmions) to 1 (up), 0 outside elements; valid until the next `advance`."""

    def truth(self) -> Truth:
        """What is there now, at the size of the sample."""


def class_mask(magnetisation: FloatImage, element: NDArray[np.bool_] | None, edge: NDArray[np.bool_] | None) -> Mask:
    """The classes of a magnetisation: skyrmion where it points down, outside and edge as the element says."""
    mask: Mask = (magnetisation < 0).view(np.uint8) * np.uint8(Class.SKYRMION)
    if element is not None and edge is not None:
        mask[~element] = Class.OUTSIDE
        mask[edge] = Class.EDGE
    return mask


def truth_of(mask: Mask) -> Truth:
    """The truth that a mask (H, W) holds: what the service would count in a perfect segmentation.

    Skyrmions are 8-connected objects of at least `MIN_OBJECT_PX` that are not stripes: those have at least
    `STRIPE_SLENDERNESS` times the area of the largest disc inside.
    """
    foreground = (mask == Class.SKYRMION).view(np.uint8)
    _, labels, statistics, centres = cv2.connectedComponentsWithStats(foreground, connectivity=8)
    framed = cv2.copyMakeBorder(foreground, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inside = cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]
    pixels = np.flatnonzero(foreground)
    radius = np.zeros(len(statistics), np.float32)
    np.maximum.at(radius, labels.ravel()[pixels], inside.ravel()[pixels])
    area = statistics[:, cv2.CC_STAT_AREA]
    compact = (area >= MIN_OBJECT_PX) & (area < STRIPE_SLENDERNESS * math.pi * np.maximum(radius, 1) ** 2)
    compact[0] = False  # all that is no object
    found = centres[compact].astype(np.float32)
    found = found[np.lexsort(found.T)]  # from top to bottom: OpenCV's own order depends on its threads
    return Truth(mask, found, len(found))


def check_advance(seconds: float, field_mT: float, in_plane_mT: float) -> None:
    """Raise `SettingsError` unless the arguments of `Sample.advance` are allowed."""
    if not (math.isfinite(seconds) and seconds >= 0):
        raise SettingsError(f"seconds: {seconds} is not allowed; allowed: finite numbers from 0 on")
    for name, value in (("field_mT", field_mT), ("in_plane_mT", in_plane_mT)):
        if not math.isfinite(value):
            raise SettingsError(f"{name}: {value} is not allowed; allowed: finite numbers")
