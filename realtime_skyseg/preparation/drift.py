"""How far a frame has moved against the background."""

from typing import Any

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from realtime_skyseg.preparation.image import FloatImage
from realtime_skyseg.preparation.shift import LANCZOS, pad, shift_inside, sinc_weights

#: Largest drift that is followed, in px and as a share of the image's shorter side.
REACH_PX = 64
_REACH_SHARE = 0.25

#: Drift is measured in at most this much of the image, from its centre.
_DRIFT_SIDE_PX = 1024

#: Drift is rounded to this part of a px: exact in the file's float32, and independent of the last bits of a sum.
_DRIFT_STEPS = 1024

#: A correlation's peak below this may be chance, see `Drift.measure`.
CHANCE_QUALITY = 8.0

#: The refinement may lead beyond the reach by less than this.
_BEYOND_PX = 3


class Drift:
    """Where a frame is against a reference, by phase correlation.

    The reference's spectrum is whitened by the square root of its own amplitude, smooth illumination and noise of short
    wavelength are left out (they pull the peak to zero, or hide it). The correlation is band-limited then, and its peak
    is refined by interpolation with a windowed sinc and a parabola. A large drift is measured once more against the
    part of the reference that came into view, as otherwise the window draws the peak to zero. It works on 2 x 2 px in
    sum.

    Phase correlation: Kuglin and Hines, Proc. IEEE Int. Conf. Cybernetics and Society, 163 (1975). No matrix product
    here is large enough for BLAS to use threads: those wait for each other on a busy computer, for 20 ms and more.

    Args:
        reference: (height, width) float32.
    """

    _SMOOTH_PX = 17  # structure wider than this is left out
    _CUT = 0.1  # cycles per px: standard deviation of the Gaussian that leaves out noise
    _STEP = 2  # grid of the parts of the reference, in points of the correlation
    _SINC = 8  # half the width of the interpolation, in points of the correlation
    _POINTS = 9  # of the refinement, along each side

    def __init__(self, reference: FloatImage) -> None:
        self._bin = 2 if min(reference.shape) >= 128 else 1
        centre, sides = [], []
        for side in reference.shape:
            n = int(scipy.fft.prev_fast_len(min(side, _DRIFT_SIDE_PX) // self._bin, real=True))
            start = (side - n * self._bin) // 2
            centre.append(slice(start, start + n * self._bin))
            sides.append(n)
        self._centre = (centre[0], centre[1])
        self._shape = (sides[0], sides[1])
        self._reach = min(reach(reference.shape) // self._bin, min(sides) // 2 - 1)
        self._window = (_taper(sides[0])[:, None] * _taper(sides[1])[None, :]).astype(np.float32)
        self._flat = np.empty(self._shape, np.float32)
        self._smooth = np.empty(self._shape, np.float32)
        spectrum = self._spectrum(reference)
        self._reference = pad(self._flat, self._reach + self._STEP)
        amplitude = np.abs(spectrum)
        cycles = np.hypot(scipy.fft.fftfreq(sides[0])[:, None], scipy.fft.rfftfreq(sides[1])[None, :]) / self._bin
        floor = max(float(amplitude.max()) * 1e-6, 1e-12)
        weight = np.exp(-0.5 * (cycles / self._CUT) ** 2) / np.sqrt(np.maximum(amplitude, floor))
        self._weight = weight.astype(np.float32)
        self._conjugate = self._weighted(spectrum)
        self._part = (0, 0)
        self._part_conjugate = self._conjugate

    def measure(self, image: FloatImage) -> tuple[tuple[float, float], float]:
        """How far (right, down) in px the content of an image of the reference's shape has moved, and how sure that is:
        the correlation's peak in units of its standard deviation. Chance reaches 5; 0 for an image without structure,
        and where the correlation still rises at the end of the reach.
        """
        spectrum = self._spectrum(image)
        product = spectrum * self._conjugate
        surface = scipy.fft.irfft2(product, s=self._shape)
        spread = float(surface.std())
        if not spread > 0:
            return (0.0, 0.0), 0.0
        places = np.arange(-self._reach, self._reach + 1)
        near = surface[np.ix_(places, places)]
        place = divmod(int(near.argmax()), len(places))
        at_the_end = {0, len(places) - 1} & set(place)
        peak = 0.0 if at_the_end else float(near[place])
        down, right = (int(places[k]) for k in place)
        part = (round(down / self._STEP) * self._STEP, round(right / self._STEP) * self._STEP)
        if part != (0, 0):
            product = np.multiply(spectrum, self._conjugate_of(part), out=product)
            surface = scipy.fft.irfft2(product, s=self._shape)
        y, x = self._refine(surface, down - part[0], right - part[1])
        x, y = (
            round((value + start) * self._bin * _DRIFT_STEPS) / _DRIFT_STEPS
            for value, start in ((x, part[1]), (y, part[0]))
        )
        return (x, y), peak / spread

    def _conjugate_of(self, part: tuple[int, int]) -> NDArray[np.complex64]:
        """The weighted conjugate spectrum of the part of the reference that a drift (down, right) brings into view."""
        if part != self._part:
            rows, columns = (
                slice(margin - move, margin - move + n)
                for margin, move, n in zip([self._reach + self._STEP] * 2, part, self._shape, strict=True)
            )
            spectrum = scipy.fft.rfft2(self._reference[rows, columns] * self._window)
            self._part, self._part_conjugate = part, self._weighted(spectrum)
        return self._part_conjugate

    def _weighted(self, spectrum: NDArray[Any]) -> NDArray[np.complex64]:
        conjugate: NDArray[np.complex64] = (spectrum.conj() * self._weight).astype(np.complex64)
        return conjugate

    def _refine(self, surface: FloatImage, down: int, right: int) -> tuple[float, float]:
        """The highest point of a correlation within one point around one of its points."""
        around = np.arange(-self._SINC - 2, self._SINC + 3)
        local = surface[np.ix_((down + around) % surface.shape[0], (right + around) % surface.shape[1])]
        y = x = 0.0
        for half in (1.0, 0.125):
            offsets = np.linspace(-half, half, self._POINTS)
            values = (
                sinc_weights(y + offsets, around, self._SINC) @ local @ sinc_weights(x + offsets, around, self._SINC).T
            )
            i, j = divmod(int(values.argmax()), self._POINTS)
            i, j = (min(max(k, 1), self._POINTS - 2) for k in (i, j))
            step = offsets[1] - offsets[0]
            y += offsets[i] + step * _vertex(values[i - 1 : i + 2, j])
            x += offsets[j] + step * _vertex(values[i, j - 1 : j + 2])
        return down + y, right + x

    def _spectrum(self, image: FloatImage) -> NDArray[np.complex64]:
        """Of an image without what is smooth in it, which stays in `_flat`."""
        image = image[self._centre]
        flat = self._flat
        if self._bin > 1:
            cv2.resize(image, self._shape[::-1], flat, interpolation=cv2.INTER_AREA)
        else:
            np.copyto(flat, image)
        side = self._SMOOTH_PX // self._bin | 1
        cv2.blur(flat, (side, side), self._smooth)
        flat -= self._smooth
        np.multiply(flat, self._window, out=self._smooth)
        spectrum: NDArray[np.complex64] = scipy.fft.rfft2(self._smooth)
        return spectrum


class Reference:
    """A background, evenly lit, that can be looked at from a little beside."""

    def __init__(self, image: FloatImage, area: tuple[slice, slice]) -> None:
        rows, columns = area
        self._shape = (rows.stop - rows.start, columns.stop - columns.start)
        self._margin = reach(self._shape) + _BEYOND_PX + LANCZOS
        padded = pad(image, self._margin)
        # With a crop, what comes into view is known from beyond it; at the frame's border its last px is repeated.
        self._padded = np.ascontiguousarray(
            padded[rows.start : rows.stop + 2 * self._margin, columns.start : columns.stop + 2 * self._margin]
        )
        self.mean = float(image[area].mean())
        self._shifted = np.empty([side + 2 * LANCZOS for side in self._shape], np.float32)

    def shifted(self, right: float, down: float) -> FloatImage:
        """The background as it looks after a drift; overwritten by the next call."""
        return shift_inside(self._padded, self._margin, right, down, self._shifted)


def reach(shape: tuple[int, ...]) -> int:
    """Largest drift in px that is followed in an image of this shape."""
    return min(REACH_PX, int(min(shape) * _REACH_SHARE))


def _taper(n: int) -> NDArray[np.float64]:
    """A window of n px that falls off along a tenth at each end."""
    wide = max(1, n // 10)
    edge = np.sin(np.pi / 2 * (np.arange(wide) + 0.5) / wide) ** 2
    return np.concatenate([edge, np.ones(n - 2 * wide), edge[::-1]])


def _vertex(values: NDArray[np.floating]) -> float:
    """Where a parabola through three values at -1, 0, 1 is highest, within them."""
    before, here, after = (float(value) for value in values)
    bend = before - 2 * here + after
    return min(max(0.5 * (before - after) / bend, -1.0), 1.0) if bend < 0 else 0.0
