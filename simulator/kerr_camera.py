"""A simulated Kerr microscope: what a camera shows of a film's magnetisation, as a difference image.

The way of the light: reflectivity of the sample (magnetisation, dirt) -> diffraction-limited optics -> drift ->
illumination -> photon and read noise -> camera bits -> minus the averaged image of the saturated sample.

Simplified: one wavelength, no defocus, no polarisation optics, noise that is Gaussian instead of Poisson (20,000
electrons a pixel make the two alike), a sample that is periodic at its borders.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from realtime_skyseg.errors import SettingsError

FloatImage = NDArray[np.float32]

_FULL_SCALE = 1.5  # the camera's largest number stands for this many times the mean signal


@dataclass(frozen=True)
class KerrSettings:
    """Parameters of `KerrCamera`."""

    wavelength_um: float = 0.46
    numerical_aperture: float = 0.9
    pixel_um: float = 0.2  # on the sample
    electrons: float = 20_000.0  # mean signal of a pixel at the centre
    read_noise: float = 3.0  # electrons
    flicker: float = 0.003  # standard deviation of the lamp's relative brightness, per exposure
    vignetting: float = 0.15  # relative loss of light in the corners
    contrast: float = 0.015  # intensity between magnetisation up and down, relative to the mean
    camera_bits: Literal[8, 12, 16] = 12
    average: int = 1  # exposures averaged into an image
    background_frames: int = 16  # exposures averaged into the background
    dirt_spots: int = 25
    dirt_depth: float = 0.2  # mean relative loss of light in a spot
    dirt_radius_px: float = 1.5
    offset_px: tuple[float, float] = (0.4, 0.25)  # (down, right): drift between background and first image
    drift_px: tuple[float, float] = (0.01, 0.006)  # (down, right): drift from image to image
    vibration_px: float = 0.05  # standard deviation per image and axis
    grey_contrast: float = 30.0  # grey levels of 255 between up and down in the difference image
    grey_level: float = 128.0  # of the saturated sample
    bits: Literal[8, 16] = 8  # of the difference image; with 16, a grey level is 257 units
    polarity: Literal["dark", "bright"] = "dark"  # how phi < 0 looks


class KerrCamera:
    """Looks at the centre of a sample of `sample_shape` (H, W) px through a view of `view_shape` (default: all of it).

    The background of the saturated (phi = 1) sample is taken when it is made. The same seed and calls give the same
    images bit for bit. A sample some 20 px larger than the view on every side hides its periodic borders.
    """

    def __init__(
        self,
        sample_shape: tuple[int, int],
        view_shape: tuple[int, int] | None = None,
        seed: int = 0,
        settings: KerrSettings | None = None,
    ) -> None:
        """Raises `SettingsError` where the view is larger than the sample or an average has less than 1 exposure."""
        view_shape = view_shape or sample_shape
        if any(not 0 < v <= s for v, s in zip(view_shape, sample_shape, strict=True)):
            raise SettingsError(f"view_shape: {view_shape} is not allowed; allowed: 1 to {sample_shape} px")
        self.settings = s = settings or KerrSettings()
        if min(s.average, s.background_frames) < 1:
            raise SettingsError(
                f"average and background_frames: {s.average} and {s.background_frames} are not both 1 or more"
            )
        self._random = np.random.default_rng(seed)
        self._shape = sample_shape
        top, left = ((a - b) // 2 for a, b in zip(sample_shape, view_shape, strict=True))
        self._view = np.s_[top : top + view_shape[0], left : left + view_shape[1]]
        self._down = np.fft.fftfreq(sample_shape[0])[:, None].astype(np.float32)
        self._right = np.fft.rfftfreq(sample_shape[1])[None, :].astype(np.float32)
        self._transfer = _transfer(np.hypot(self._down, self._right) / np.float32(s.pixel_um), s)
        self._dirt = self._make_dirt()
        self._illumination = _illumination(view_shape, s.vignetting)
        self._images = 0
        up = np.ones(sample_shape, np.float32)
        self._background = self._exposures(self._signal(up, (0.0, 0.0)), s.background_frames)

    def raw(self, phi: FloatImage) -> FloatImage:
        """The next image in electrons, float32 of the view's shape, of a sample with magnetisation `phi` (H, W).

        Raises `SettingsError` where `phi` is not of the sample's shape.
        """
        s = self.settings
        if phi.shape != self._shape:
            raise SettingsError(f"phi: the shape {phi.shape} is not allowed; allowed: {self._shape}")
        shake = s.vibration_px * self._random.standard_normal(2)
        down, right = (s.offset_px[i] + self._images * s.drift_px[i] + shake[i] for i in (0, 1))
        self._images += 1
        return self._exposures(self._signal(phi, (float(down), float(right))), s.average)

    def image(self, phi: FloatImage) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The next difference image (`raw` minus background), uint8 or uint16 of the view's shape."""
        s = self.settings
        sign = 1.0 if s.polarity == "dark" else -1.0
        gain = np.float32(sign * s.grey_contrast / (s.contrast * s.electrons))
        grey = (self.raw(phi) - self._background) * gain + np.float32(s.grey_level)
        if s.bits == 16:
            deep: NDArray[np.uint16] = np.clip(np.rint(grey * 257), 0, 65535).astype(np.uint16)
            return deep
        shallow: NDArray[np.uint8] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
        return shallow

    def _signal(self, phi: FloatImage, shift: tuple[float, float]) -> FloatImage:
        """Mean electrons of a pixel, (H, W) of the view, with the sample shifted by (down, right) px."""
        s = self.settings
        reflected = self._dirt * (1 + np.float32(s.contrast / 2) * phi)
        # A shift is a phase in Fourier space, exact for the band-limited image behind the optics.
        phase = np.exp(np.complex64(-2j * np.pi) * (self._down * shift[0] + self._right * shift[1]))
        spectrum = scipy.fft.rfft2(reflected) * self._transfer * phase
        seen = scipy.fft.irfft2(spectrum.astype(np.complex64), s=self._shape)[self._view]
        signal: FloatImage = np.maximum(seen, 0).astype(np.float32) * self._illumination * np.float32(s.electrons)
        return signal

    def _exposures(self, signal: FloatImage, n: int) -> FloatImage:
        """Mean of `n` exposures of a signal, in electrons."""
        s = self.settings
        step = np.float32(_FULL_SCALE * s.electrons / 2**s.camera_bits)
        total = np.zeros_like(signal)
        for _ in range(n):
            lit = signal * np.float32(1 + s.flicker * self._random.standard_normal())
            noise = self._random.standard_normal(signal.shape, dtype=np.float32)
            electrons = lit + noise * np.sqrt(lit + np.float32(s.read_noise**2))
            total += np.clip(np.rint(electrons / step), 0, 2**s.camera_bits - 1) * step
        return total / np.float32(n)

    def _make_dirt(self) -> FloatImage:
        """Relative reflectivity of the dirty sample, (H, W): 1 where it is clean.

        Dirt vanishes in the difference image unless the sample has drifted: then a spot leaves a bright and a dark
        half, the most common false positive in real images.
        """
        s = self.settings
        rows, columns = np.ogrid[: self._shape[0], : self._shape[1]]
        dirt = np.ones(self._shape)
        for _ in range(s.dirt_spots):
            row, column = (self._random.uniform(0, size) for size in self._shape)
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
