"""A simulated Kerr microscope: what a camera shows of a sample's magnetisation, raw and as a difference image.

The way of the light: reflectivity of the sample (magnetisation, dirt, substrate beside an element) -> diffraction-
limited optics -> drift -> illumination -> photon and read noise -> camera bits; the difference image is that minus the
averaged image of the saturated sample.

Simplified: one wavelength, a defocus that blurs like a Gaussian, no polarisation optics, noise that is Gaussian instead
of Poisson (20,000 electrons a pixel make the two alike), a sample that is periodic at its borders.
"""

from typing import Annotated, Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from pydantic import Field

from realtime_skyseg.devices import DriverSettings
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import Mask
from realtime_skyseg_simulator.samples import FloatImage

_NonNegative = Annotated[float, Field(ge=0)]
_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(ge=0, lt=1)]


class KerrSettings(DriverSettings):
    """Parameters of `KerrCamera`."""

    wavelength_um: _Positive = 0.46
    numerical_aperture: _Positive = 0.9
    pixel_um: _Positive = 0.2
    """Side of a pixel on the sample."""
    exposure_ms: _Positive = 50.0
    """Of a single exposure."""
    electrons_per_ms: _Positive = 400.0
    """Mean signal of a pixel at the centre of the light."""
    full_well: _Positive = 30_000.0
    """Electrons that the camera's largest number stands for."""
    read_noise: _NonNegative = 3.0
    """Electrons, standard deviation."""
    flicker: _NonNegative = 0.003
    """Standard deviation of the lamp's relative brightness, per exposure."""
    vignetting: _Share = 0.15
    """Relative loss of light in the corners."""
    illumination_drift: tuple[float, float] = (0.0005, 0.0007)
    """Relative change of the light across the view, (down, right), since the background was taken."""
    contrast: Annotated[float, Field(gt=0, lt=1)] = 0.015
    """Intensity between magnetisation up and down, relative to the mean."""
    polarity: Literal["dark", "bright"] = "dark"
    """How skyrmions, where the magnetisation points down, look."""
    substrate: _NonNegative = 0.6
    """Reflectivity beside an element, relative to the material."""
    camera_bits: Literal[8, 12, 16] = 12
    average: Annotated[int, Field(ge=1, le=1000)] = 1
    """Exposures averaged into an image."""
    background_frames: Annotated[int, Field(ge=1, le=1000)] = 16
    """Exposures averaged into the background."""
    background: Literal["up", "down", "demagnetised"] = "up"
    """Magnetisation when the background is taken: against `down`, an element looks brighter than what is beside it."""
    dirt_spots: Annotated[int, Field(ge=0, le=1000)] = 25
    dirt_depth: _Share = 0.2
    """Mean relative loss of light in a spot."""
    dirt_radius_px: _Positive = 1.5
    offset_px: tuple[float, float] = (0.4, 0.25)
    """Drift, (down, right), between the background and the first image."""
    drift_px: tuple[float, float] = (0.01, 0.006)
    """Drift, (down, right), from image to image."""
    vibration_px: _NonNegative = 0.05
    """Standard deviation per image and axis."""
    grey_contrast: _Positive = 30.0
    """Grey levels of 255 between up and down in the difference image."""
    grey_level: float = 128.0
    """Of what has not changed since the background."""
    bits: Literal[8, 16] = 8
    """Of the difference image; with 16, a grey level is 257 units."""


class KerrCamera:
    """Looks at the centre of a sample of `sample_shape` (H, W) px through a view of `view_shape` (default: all of it).

    The background is taken when it is made. The same seed and calls give the same images bit for bit. A sample some
    20 px larger than the view on every side hides its periodic borders.

    May be changed between images, as faults do:
        lamp: relative brightness of the light.
        defocus_px: standard deviation of the blur by a wrong focus.
        drift_px: (down, right), added to the drift.
    """

    def __init__(
        self,
        sample_shape: tuple[int, int],
        view_shape: tuple[int, int] | None = None,
        seed: int = 0,
        settings: KerrSettings | None = None,
        element: NDArray[np.bool_] | None = None,
    ) -> None:
        """Set up the microscope; `element`, (H, W) bool, says where the sample has magnetic material (None: all).

        Raises `SettingsError` where the view is larger than the sample.
        """
        view_shape = view_shape or sample_shape
        if any(not 0 < v <= s for v, s in zip(view_shape, sample_shape, strict=True)):
            raise SettingsError(f"view_shape: {view_shape} is not allowed; allowed: 1 to {sample_shape} px")
        self.settings = s = settings or KerrSettings()
        self.shape = view_shape  #: (H, W) of the images
        self.dtype = np.dtype(np.uint8 if s.camera_bits == 8 else np.uint16)  #: of raw images
        self.lamp = 1.0
        self.defocus_px = 0.0
        self.drift_px = (0.0, 0.0)
        self.shift_px = (
            0.0,
            0.0,
        )  #: (down, right): where the sample was in the latest image, relative to the background
        self._random = np.random.default_rng(seed)
        self._sample_shape = sample_shape
        self._corner = tuple((a - b) // 2 for a, b in zip(sample_shape, view_shape, strict=True))
        self._view = tuple(slice(start, start + size) for start, size in zip(self._corner, view_shape, strict=True))
        self._down = np.fft.fftfreq(sample_shape[0])[:, None].astype(np.float32)
        self._right = np.fft.rfftfreq(sample_shape[1])[None, :].astype(np.float32)
        self._transfer = _transfer(np.hypot(self._down, self._right) / np.float32(s.pixel_um), s)
        self._reflectivity = self._make_dirt()
        if element is None:
            self._kerr = self._reflectivity
        else:
            self._kerr = self._reflectivity * element
            self._reflectivity *= np.where(element, np.float32(1), np.float32(s.substrate))
        self._electrons = np.float32(s.exposure_ms * s.electrons_per_ms)
        self._illumination = _illumination(view_shape, s.vignetting)
        self._images = 0
        self._reflected = np.empty(sample_shape, np.float32)
        self._work = tuple(np.empty(view_shape, np.float32) for _ in range(3))
        reference = np.full(sample_shape, {"up": 1, "down": -1, "demagnetised": 0}[s.background], np.float32)
        self._background = self._exposures(self._signal(reference, (0.0, 0.0)), s.background_frames) * self._step
        self._illumination *= _ramp(view_shape, s.illumination_drift)

    def take(self, magnetisation: FloatImage) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The next raw image, `dtype` of the view's shape, of a sample with this magnetisation (H, W).

        It is the mean of `average` exposures, in the camera's own numbers. Raises `SettingsError` where the
        magnetisation is not of the sample's shape.
        """
        s = self.settings
        if magnetisation.shape != self._sample_shape:
            raise SettingsError(
                f"magnetisation: the shape {magnetisation.shape} is not allowed; allowed: {self._sample_shape}"
            )
        shake = s.vibration_px * self._random.standard_normal(2)
        down, right = (
            float(s.offset_px[i] + self._images * s.drift_px[i] + shake[i] + self.drift_px[i]) for i in (0, 1)
        )
        self.shift_px = (down, right)
        self._images += 1
        counts = self._exposures(self._signal(magnetisation, self.shift_px), s.average)
        raw: NDArray[np.uint8] | NDArray[np.uint16] = np.rint(counts, out=counts).astype(self.dtype)
        return raw

    def difference(self, raw: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The difference image of a raw one, as a microscope's own software shows it; uint8 or uint16."""
        s = self.settings
        grey = raw.astype(np.float32)
        grey *= self._step
        grey -= self._background
        grey *= np.float32(s.grey_contrast / (s.contrast * float(self._electrons)))
        grey += np.float32(s.grey_level)
        if s.bits == 16:
            grey *= 257
        np.rint(grey, out=grey)
        if s.bits == 16:
            deep: NDArray[np.uint16] = np.clip(grey, 0, 65535, out=grey).astype(np.uint16)
            return deep
        shallow: NDArray[np.uint8] = np.clip(grey, 0, 255, out=grey).astype(np.uint8)
        return shallow

    def image(self, magnetisation: FloatImage) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The next difference image: `difference` of `take`."""
        return self.difference(self.take(magnetisation))

    def take_truth(self, mask: Mask) -> Mask:
        """What the camera saw of a mask of the sample in the latest image: cut to the view, shifted to whole pixels."""
        rows, columns = (
            (np.arange(start, start + size) - round(shift)) % length
            for start, size, shift, length in zip(
                self._corner, self.shape, self.shift_px, self._sample_shape, strict=True
            )
        )
        seen: Mask = mask[rows[:, None], columns]
        return seen

    @property
    def _step(self) -> np.float32:
        """Electrons of one of the camera's numbers."""
        return np.float32(self.settings.full_well / 2**self.settings.camera_bits)

    def _signal(self, magnetisation: FloatImage, shift: tuple[float, float]) -> FloatImage:
        """Mean electrons of a pixel, (H, W) of the view, with the sample shifted by (down, right) px."""
        s = self.settings
        sign = 1 if s.polarity == "dark" else -1
        reflected = np.multiply(magnetisation, np.float32(sign * s.contrast / 2), out=self._reflected)
        if self._kerr is self._reflectivity:
            reflected += 1
            reflected *= self._reflectivity
        else:
            reflected *= self._kerr
            reflected += self._reflectivity
        spectrum = scipy.fft.rfft2(reflected)
        spectrum *= self._transfer
        # A shift is a phase in Fourier space, exact for the band-limited image behind the optics.
        for frequency, pixels in zip((self._down, self._right), shift, strict=True):
            factor = np.exp(np.complex64(-2j * np.pi * pixels) * frequency)
            if self.defocus_px:
                factor *= np.exp(np.float32(-2 * np.pi**2 * self.defocus_px**2) * frequency**2)
            spectrum *= factor
        seen = scipy.fft.irfft2(spectrum, s=self._sample_shape, overwrite_x=True)[self._view]
        signal: FloatImage = np.maximum(seen, 0, out=seen)
        signal = signal * self._illumination
        signal *= self._electrons * np.float32(self.lamp)
        return signal

    def _exposures(self, signal: FloatImage, n: int) -> FloatImage:
        """Mean of `n` exposures of a signal in electrons, in the camera's numbers."""
        s = self.settings
        total = np.zeros_like(signal)
        counts, noise, spread = self._work
        for _ in range(n):
            np.multiply(signal, np.float32(1 + s.flicker * self._random.standard_normal()), out=counts)
            self._random.standard_normal(out=noise, dtype=np.float32)
            np.add(counts, np.float32(s.read_noise**2), out=spread)
            noise *= np.sqrt(spread, out=spread)
            counts += noise
            counts /= self._step
            np.rint(counts, out=counts)
            total += np.clip(counts, 0, 2**s.camera_bits - 1, out=counts)
        total /= np.float32(n)
        return total

    def _make_dirt(self) -> FloatImage:
        """Relative reflectivity of the dirty sample, (H, W): 1 where it is clean.

        Dirt vanishes in the difference image unless the sample has drifted: then a spot leaves a bright and a dark
        half, the most common false positive in real images.
        """
        s = self.settings
        rows, columns = np.ogrid[: self._sample_shape[0], : self._sample_shape[1]]
        dirt = np.ones(self._sample_shape)
        for _ in range(s.dirt_spots):
            row, column = (self._random.uniform(0, size) for size in self._sample_shape)
            depth, size = s.dirt_depth * self._random.exponential(), s.dirt_radius_px * self._random.uniform(0.5, 1.5)
            dirt *= 1 - min(depth, 0.9) * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * size**2))
        return dirt.astype(np.float32)


def _transfer(frequency: NDArray[np.floating], s: KerrSettings) -> FloatImage:
    """Incoherent optical transfer function of a round pupil at `frequency` (cycles per um), float32, 1 at frequency 0.

    (2 / pi) (acos q - q sqrt(1 - q^2)) with q = f lambda / (2 NA): J. W. Goodman, Introduction to Fourier Optics.
    """
    q = np.minimum(frequency * s.wavelength_um / (2 * s.numerical_aperture), 1)
    transfer: FloatImage = (2 / np.pi * (np.arccos(q) - q * np.sqrt(1 - q**2))).astype(np.float32)
    return transfer


def _illumination(shape: tuple[int, int], vignetting: float) -> FloatImage:
    """Relative brightness, (H, W) float32: 1 near the centre, falling with the square of the distance."""
    down, right = (np.linspace(-1, 1, size) for size in shape)
    # Lamps are never centred quite well.
    distance = ((down[:, None] - 0.1) ** 2 + (right[None, :] + 0.15) ** 2) / 2
    return (1 - vignetting * distance).astype(np.float32)


def _ramp(shape: tuple[int, int], change: tuple[float, float]) -> FloatImage:
    """1 at the centre, (H, W) float32, rising by `change` from one side to the other, (down, right)."""
    down, right = (np.linspace(-0.5, 0.5, size) for size in shape)
    return (1 + change[0] * down[:, None] + change[1] * right[None, :]).astype(np.float32)
